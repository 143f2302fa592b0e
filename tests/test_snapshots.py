"""Snapshots of a policy along its training: which updates, which weights, and that evaluation finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynarep.pipeline.artifacts.storage import load_policy_model, save_artifact
from dynarep.pipeline.dual_game import Transitions
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.learners.bc import BC, BCConfig
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.playing.evaluate import snapshots_of
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.loop import train
from dynarep.pipeline.training.run import Run
from tests.entries import NOTHING, drawn_by


def cloned(folder: Path, chunk: int) -> Policy:
    """Cloning of random actions for 40 updates with four snapshots, into ``folder``."""
    torch.manual_seed(0)
    learner = BC.build(BCConfig(hidden=(8,)), World(2, torch.zeros(3), torch.ones(3), (-1.0,), (1.0,)))

    def sample(generator: torch.Generator) -> Transitions:
        x = torch.randn(2, 8, 7, generator=generator)
        return Transitions(x[..., :3], x[..., 3:4].tanh(), x[..., 4:])

    training = TrainingConfig(updates=40, batch_size=8, updates_per_chunk=chunk, snapshots=4)
    folder.mkdir(parents=True)
    run = Run("bc", 0, 2, folder, folder / "kept")
    train(learner, NOTHING, drawn_by(sample), training, run=run, shown=("loss",), key="bc-k")
    return learner.export()


@pytest.mark.skipif(torch.cuda.is_available(), reason="samples on the CPU")
def test_snapshots_are_the_policies_on_the_way(tmp_path: Path) -> None:
    last = cloned(tmp_path / "learn" / "bc", 40)
    cloned(tmp_path / "again" / "bc", 7)
    states = []
    for update in (10, 20, 30):
        one, other = (
            load_policy_model(tmp_path / x / "bc" / "snapshots" / f"{update:09d}") for x in ("learn", "again")
        )
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        states.append(one.network.layers[0].weight)
    states.append(last.network.layers[0].weight)
    assert all(not torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])
    assert len(list((tmp_path / "learn" / "bc" / "snapshots").iterdir())) == 3
    save_artifact(tmp_path / "learn" / "bc", last, {})
    assert list(snapshots_of("bc", tmp_path / "learn" / "bc")) == ["bc", "bc@10", "bc@20", "bc@30"]
