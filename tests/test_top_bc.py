"""Cloning the best episodes under given rewards, as a learner of the offline_rl stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.training.loop import Run, TrainingConfig
from dynarep.pipeline.methods.learners.bc import BCConfig, best_rows
from dynarep.pipeline.offline_rl import OfflinePolicyConfig, OfflineRLConfig, TopBCConfig, offline_rl

LENGTHS = (30, 10, 20, 40)


def dataset(folder: Path, make_episode: Callable[..., Episode]) -> Dataset:
    """Four episodes whose actions are 0.2 times their number in every state."""
    episodes = [
        make_episode(n, f"e-{i}", seed=i, action_dim=1, actions=np.full((n, 1), 0.2 * i, np.float32))
        for i, n in enumerate(LENGTHS)
    ]
    write_dataset(folder, "data", episodes, provenance={}, env=None, bounds=((-1.0,), (1.0,)))
    return load_dataset(folder)


def rewards_of(*returns: tuple[float, ...]) -> torch.Tensor:
    """(R, N) rewards that sum to the given returns of the four episodes."""
    rows = [torch.cat([torch.full((n,), g / n) for g, n in zip(row, LENGTHS, strict=True)]) for row in returns]
    return torch.stack(rows)


def test_each_replica_has_its_own_best_episodes() -> None:
    rewards = rewards_of((1.0, 9.0, 3.0, 2.0), (5.0, 0.0, 0.0, 9.0))
    first, second = best_rows(rewards, LENGTHS, 0.3)
    assert first.tolist() == list(range(30, 60))  # episodes 1 and 2 hold 30 of 100 transitions
    assert second.tolist() == list(range(60, 100))  # one episode at least, though it holds more
    assert [len(rows) for rows in best_rows(rewards, LENGTHS, 1.0)] == [100, 100]


def test_policy_is_that_of_the_best_episode(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    data = dataset(tmp_path / "data", make_episode)
    rewards = rewards_of((1.0, 9.0, 3.0, 2.0), (5.0, 0.0, 0.0, 9.0))
    c = OfflineRLConfig(
        policies={},
        top_bc=TopBCConfig(top=0.1, method=BCConfig(hidden=(16,), learning_rate=1e-2)),
        training=TrainingConfig(updates=200, batch_size=32),
    )
    (tmp_path / "out").mkdir()
    run = Run("offline_rl/x", 0, 2, tmp_path / "out", tmp_path / "kept")
    policy = offline_rl(c, OfflinePolicyConfig(rewards="x", learner="top_bc"), data, rewards, run)
    actions = policy.act(torch.randn(1, 50, 3)).mean((1, 2))
    torch.testing.assert_close(actions, torch.tensor([0.2, 0.6]), rtol=0, atol=0.05)
