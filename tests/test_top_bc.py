"""Cloning the best episodes under given rewards, as a learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dynarep.configs.params import ParamsError
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.cloning import best_rows
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.methods.learners.top_bc import TopBCConfig
from dynarep.pipeline.relabel import relabel
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import a_run, entry

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
    c = TopBCConfig(top=0.1, hidden=(16,), learning_rate=1e-2)
    labels = dict(zip((e.id for e in data.episodes), torch.split(rewards, LENGTHS, -1), strict=True))
    made = entry("learn", "top_bc", c, rewards="x", training=TrainingConfig(updates=200, batch_size=32))
    policy, facts = learn(made, data, data, None, labels, a_run(tmp_path))
    actions = policy.act(torch.randn(1, 50, 3)).mean((1, 2))
    torch.testing.assert_close(actions, torch.tensor([0.2, 0.6]), rtol=0, atol=0.05)
    assert facts["saw"] == {"expert": "what the rewards x saw", "other": "100 transitions with the rewards x"}
    assert (facts["chosen_transitions"], facts["chosen_episodes"]) == ([10, 40], [1, 1])
    assert facts["warning"] == "top: 0.1 is 1 episodes, fewer than 5"


def test_only_the_best_of_the_recorded_rewards_are_cloned(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    """Episodes of level -0.5 earn -1, of 0.5 100; rewards of kind recorded rank them, all of them are as bc has them."""
    episodes = [
        make_episode(
            100,
            f"e-{i}",
            seed=i,
            actions=np.full((100, 2), level, np.float32),
            rewards=np.full(100, 1 if i else -0.01, np.float32),
        )
        for i, level in enumerate((-0.5, 0.5))
    ]
    write_dataset(tmp_path / "w", "walk", episodes, provenance={}, env=None, bounds=((-1.0, -1.0), (1.0, 1.0)))
    data = load_dataset(tmp_path / "w")
    recorded = relabel(entry("relabel", "recorded"), data, data, None, a_run(tmp_path / "label")).rewards
    for top in (1.0, 0.5):
        c = TopBCConfig(top=top, hidden=(16,), learning_rate=1e-2)
        made = entry("learn", "top_bc", c, rewards="true", training=TrainingConfig(updates=150, batch_size=32))
        policy, facts = learn(made, data, data, None, recorded, a_run(tmp_path / str(top)))
        error = (policy.act(torch.randn(1, 50, 3)) - 0.5).square().mean((1, 2))
        assert (error < 0.05).all() if top < 1 else (error > 0.1).all()
        assert facts["chosen_transitions"] == [round(200 * top)] * 2


def test_ranking_needs_rewards(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    values = {"kind": "top_bc", "dataset": "a", "demonstrations": "a", "training": {"updates": 1}}
    with pytest.raises(ParamsError, match=r"learn\.best\.rewards: found none.*top_bc learns from rewards"):
        parse_entry("learn", "best", values)
    data = dataset(tmp_path / "data", make_episode)
    blind = replace(data, spec=replace(data.spec, has_rewards=False))
    with pytest.raises(ValueError, match="dataset data has no rewards of its own"):
        relabel(entry("relabel", "recorded"), blind, blind, None, a_run(tmp_path / "label"))
