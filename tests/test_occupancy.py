"""The expert's occupancy ratio on a process where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.factorisation import expert_weights, occupancy_reward
from dynarep.pipeline.learn import learn
from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.learners.repr_value_dice import ReprValueDICEConfig
from dynarep.pipeline.methods.rewards.occupancy import OccupancyConfig
from dynarep.pipeline.relabel import relabel
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import a_run, entry

GAMMA = 0.9


def test_ratio_is_the_occupancy_ratio_of_a_tabular_process() -> None:
    """With P / p_n factorised exactly and rho = p_n, mu^T theta_E + 1 - gamma = d^E(s) / p_n(s) in every state."""
    rng = np.random.default_rng(0)
    states, actions = 6, 3
    kernel = rng.dirichlet(np.ones(states), size=(states, actions))
    noise = rng.dirichlet(np.ones(states))
    policy = rng.dirichlet(np.ones(actions), size=states)
    walk = np.einsum("sa,sat->st", policy, kernel)
    occupancy = np.linalg.solve(np.eye(states) - GAMMA * walk.T, (1 - GAMMA) * noise)
    u, values, vt = np.linalg.svd((kernel / noise).reshape(-1, states), full_matrices=False)
    phi, mu = u * np.sqrt(values), vt.T * np.sqrt(values)
    pairs = (occupancy[:, None] * policy).reshape(-1)
    counts = np.round(pairs * 200_000).astype(int)  # demonstrations in the expert's proportions
    shown = torch.from_numpy(np.repeat(phi, counts, axis=0))[None]
    reward = occupancy_reward(torch.from_numpy(mu)[None], expert_weights(shown, GAMMA), GAMMA, scale=2.0)
    ratio = (1 - GAMMA) * torch.exp(reward / 2.0)
    torch.testing.assert_close(ratio[0], torch.from_numpy(occupancy / noise), rtol=2e-4, atol=0)


def test_reward_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.5]])
    mu = torch.tensor([[[0.4, 0.2], [-3.0, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[math.log((0.5 + 0.1) / 0.1), 0.0, 0.0]])
    torch.testing.assert_close(occupancy_reward(mu, weights, GAMMA, 1.0), expected)
    torch.testing.assert_close(occupancy_reward(mu, weights, GAMMA, 3.0), 3 * expected)


def prepared(folder: Path, episodes: list[Episode], actions: bool = True) -> Dataset:
    bounds = ((-1.0, -1.0), (1.0, 1.0)) if actions else ((), ())
    write_dataset(folder, folder.name, episodes, provenance={}, env=None, bounds=bounds)
    return load_dataset(folder)


def test_rewards_of_a_dataset(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", [make_episode(n, f"e-{n}", seed=n) for n in (5, 9)])
    expert = prepared(tmp_path / "expert", [make_episode(4, f"x-{n}", seed=10 + n) for n in (0, 1)])
    torch.manual_seed(0)
    encoder = DynamicsEncoder(
        DynamicsArchitecture(replicas=2, observation_dim=3, action_dim=2, hidden=(8,), feature_dim=4)
    )
    encoder.requires_grad_(False)
    c = entry("relabel", "occupancy", OccupancyConfig(gamma=GAMMA), space="dynamics", examples=1)
    run = a_run(tmp_path / "run")
    found = relabel(c, data, expert, encoder, run)
    s, a = (
        torch.from_numpy(np.concatenate(x))[None]
        for x in zip(*[(e.current, e.actions) for e in expert.episodes], strict=True)
    )
    theta = GAMMA * encoder.phi(s, a).mean(1)
    for episode in data.episodes:
        ratio = (encoder.mu(torch.from_numpy(episode.successors)[None]) * theta[:, None]).sum(-1).clamp(min=0)
        expected = torch.log((ratio + 0.1) / 0.1)
        np.testing.assert_allclose(found.rewards[episode.id], expected, rtol=1e-4, atol=1e-5)
    assert set(found.examples[0]) == {"agent", "rewards", "true_rewards"}
    assert found.metrics["replicas"] == 2
    assert found.metrics["experts"] == 2
    blind = prepared(tmp_path / "blind", [make_episode(4, "b", action_dim=0)], actions=False)
    with pytest.raises(ValueError, match=r"space dynamics\.phi needs actions, but blind has none"):
        relabel(c, data, blind, encoder, run)
    with pytest.raises(ValueError, match="space: found none, expected an entry of pretrain with phi and mu"):
        relabel(c, data, expert, None, run)


def test_cloning_of_the_episodes_that_resemble_the_expert(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    """ReprValueDICE with ``top`` clones, in each replica, the episodes to which the label gives the highest return."""
    lengths, constants = (40, 30, 35), (-0.6, 0.0, 0.6)
    data = prepared(
        tmp_path / "data",
        [
            make_episode(n, f"e-{i}", seed=i, actions=np.full((n, 2), x, np.float32))
            for i, (n, x) in enumerate(zip(lengths, constants, strict=True))
        ],
    )
    expert = prepared(tmp_path / "expert", [make_episode(6, "x", seed=9)])
    torch.manual_seed(0)
    encoder = DynamicsEncoder(
        DynamicsArchitecture(replicas=2, observation_dim=3, action_dim=2, hidden=(8,), feature_dim=4)
    ).requires_grad_(False)
    label = entry("relabel", "occupancy", OccupancyConfig(gamma=GAMMA), space="dynamics")
    rewards = relabel(label, data, expert, encoder, a_run(tmp_path / "label")).rewards
    best = np.stack([rewards[episode.id].sum(-1) for episode in data.episodes]).argmax(0)
    assert len(set(best.tolist())) == 2, "the replicas should disagree, or the test cannot tell them apart"

    method = ReprValueDICEConfig(top=0.3, hidden=(64,), gamma=GAMMA, actor_rate=1e-3, cloning_weight=1000)
    training = TrainingConfig(updates=600, batch_size=32)
    c = entry("learn", "repr_value_dice", method, encoder="dynamics", training=training)
    policy, facts = learn(c, data, expert, encoder, None, a_run(tmp_path / "learn"))
    assert "also through phi and mu" in facts["saw"]["other"]
    for replica, episode in enumerate(best):
        states = torch.from_numpy(data.episodes[episode].current)[None]
        error = policy.act(states)[replica] - constants[episode]
        assert error.abs().median() < 0.3, replica  # nearer to its own constant than to the others
