"""The unit of actions does not matter: scaled together with their bounds, every learner and encoder learns the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.training.run import Run

UNITS = {"turns": (-0.01, 0.01), "degrees": (-180.0, 180.0), "pixels": (0.0, 512.0)}
TRAINING = {"updates": 30, "batch_size": 32, "updates_per_chunk": 10, "compile": False}
BASE = {"dataset": "d", "demonstrations": "d"}


def dataset(folder: Path, low: float, high: float) -> Dataset:
    """States that lead to the action that was taken, in [-1, 1], written in other units."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(8):
        unit = rng.uniform(-0.9, 0.9, (30, 2))
        states = np.concatenate([np.zeros((1, 2)), 0.5 * unit + 0.1 * rng.normal(size=unit.shape)])
        actions = low + (unit + 1) / 2 * (high - low)
        rewards = 1 - np.square(unit).sum(1)
        arrays = {"observations": states, "actions": actions, "rewards": rewards}
        arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
        episodes.append(Episode(id=f"e-{number}", **arrays, terminated=False, truncated=True))
    write_episodes(folder, episodes, action_low=low, action_high=high)
    return load_dataset(folder)


def run(folder: Path) -> Run:
    (folder / "out").mkdir(parents=True)
    return Run("test", 0, 2, folder / "out", folder / "checkpoints")


def encoder_of(folder: Path, data: Dataset, kind: str, **options: Any) -> Encoder:
    entry = parse_entry(
        "pretrain", kind, {"kind": kind, "dataset": "d", "held_out": 0.3, "training": TRAINING, **options}
    )
    return pretrain(entry, data, run(folder)).encoder


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        if name not in ("low", "high"):
            torch.testing.assert_close(
                value, theirs[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("contrastive", {"hidden": [16], "feature_dim": 8}),
        ("fourier", {"hidden": [16], "feature_dim": 8}),
        ("inverse", {"hidden": [16]}),
        ("world_model", {"hidden": [16], "latent_dim": 8, "dynamics_hidden": [16]}),
    ],
)
def test_encoders(tmp_path: Path, unit: str, kind: str, options: dict[str, Any]) -> None:
    one = encoder_of(tmp_path / "a", dataset(tmp_path / "one", -1.0, 1.0), kind, **options)
    other = encoder_of(tmp_path / "b", dataset(tmp_path / "other", *UNITS[unit]), kind, **options)
    assert_same(one, other)


LEARNERS: dict[str, dict[str, Any]] = {
    "bc": {"hidden": [16]},
    "top_bc": {"hidden": [16], "rewards": "r"},
    "weighted_bc": {"hidden": [16], "rewards": "r", "baseline": {**TRAINING, "updates": 10}},
    "value_dice": {"hidden": [16]},
    "repr_value_dice": {"hidden": [16], "encoder": "dynamics"},
    "smodice": {
        "hidden": [16],
        "observe": "state_actions",
        "discriminator": {**TRAINING, "updates": 10},
        "value": {**TRAINING, "updates": 10},
    },
    "iql": {"hidden": [16], "rewards": "r"},
    "td3_bc": {"hidden": [16], "rewards": "r"},
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_learners(tmp_path: Path, kind: str) -> None:
    policies = []
    for name, (low, high) in {"one": (-1.0, 1.0), **UNITS}.items():
        data = dataset(tmp_path / name, low, high)
        entry = parse_entry("learn", kind, {"kind": kind, **BASE, "training": TRAINING, **LEARNERS[kind]})
        encoder = None
        if "encoder" in LEARNERS[kind]:
            encoder = encoder_of(tmp_path / f"{name}-encoder", data, "contrastive", hidden=[16], feature_dim=8)
        rewards = {e.id: e.rewards[None] for e in data.episodes} if "rewards" in LEARNERS[kind] else None
        policy, _ = learn(entry, data, data, encoder, rewards, run(tmp_path / f"{name}-run"))
        policies.append(policy)
    for policy in policies[1:]:
        assert_same(policies[0], policy)


ACTING: dict[str, dict[str, Any]] = {
    "sac": {"demonstrations": "none"},
    "ngt": {"reward_hidden": [8, 8], "outputs": 4},
    "dac": {"reward_hidden": [8]},
    "pwil": {},
    "cdred": {
        "latent_dim": 16,
        "head_hidden": [8],
        "reward": {"hidden": [8], "target_hidden": [8], "embedding_dim": 4},
    },
    "td_mpc2": {"demonstrations": "none", "latent_dim": 16, "head_hidden": [8]},
}


@pytest.mark.parametrize("kind", ACTING)
def test_learners_that_act(tmp_path: Path, kind: str) -> None:
    """The environment is in the same units as the demonstrations."""
    policies = []
    for unit in (1.0, 0.01, 180.0):
        rng = np.random.default_rng(0)
        states, actions = rng.normal(size=(21, 2)), unit * rng.uniform(-1, 1, (20, 1))
        shown = Episode(
            id="e", observations=states.astype(np.float32), actions=actions.astype(np.float32), rewards=None,
            terminated=False, truncated=True,
        )  # fmt: skip
        folder = tmp_path / f"{unit}"
        write_episodes(folder / "d", [shown], action_low=-unit, action_high=unit)
        acts = {"env": "tests.line:Line-v0", "env_options": {"unit": unit}, "random_steps": 16, "capacity": 100}
        given = {"kind": kind, "dataset": "none", "demonstrations": "d", "hidden": [16], **ACTING[kind]}
        entry = parse_entry("learn", kind, {**given, "environment": acts, "training": {**TRAINING, "batch_size": 8}})
        demonstrations = None if "demonstrations" in ACTING[kind] else load_dataset(folder / "d")
        policies.append(learn(entry, None, demonstrations, None, None, run(folder / "run"))[0])
    for policy in policies[1:]:
        assert_same(policies[0], policy)
