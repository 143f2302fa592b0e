"""Fourier features of dynamics with Gaussian noise, against densities and ratios that are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.data.resident import TransitionTable
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.learn import learn
from dynarep.pipeline.measures import action_resolution
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.fourier import (
    Fourier,
    FourierConfig,
    FourierEncoder,
    fourier_features,
    least_squares,
)
from dynarep.pipeline.methods.learners.repr_value_dice import ReprValueDICEConfig
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.relabel import relabel
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import CPU, a_run, entry

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_features_are_those_of_the_gaussian_kernel() -> None:
    x, y = torch.randn(2, 1, 200, 3)
    frequencies = torch.randn(2, 3, 4096)
    z, z_other = fourier_features(x, frequencies), fourier_features(y, frequencies)
    torch.testing.assert_close(z.square().sum(-1), torch.ones(2, 200))
    kernel = torch.exp(-0.5 * (x - y).square().sum(-1)).expand(2, -1)
    torch.testing.assert_close((z * z_other).sum(-1), kernel, atol=0.05, rtol=0)


def test_least_squares_find_the_ratio_of_a_tabular_process() -> None:
    """With a feature for every pair and every state, phi^T W^T z is P / p_n."""
    rng = np.random.default_rng(0)
    pairs, states = 5, 5
    counts = 1 + rng.multinomial(40, np.full(states, 1 / states), size=pairs)  # rows with different totals
    noise = 1 + rng.multinomial(20, np.full(states, 1 / states))
    pair, following = (torch.from_numpy(x) for x in np.nonzero(counts))
    repeats = torch.from_numpy(counts[pair, following])
    eye = torch.eye(states)[None]
    phi, z = (eye[:, x.repeat_interleave(repeats)] for x in (pair, following))
    z_noise = eye[:, torch.arange(states).repeat_interleave(torch.from_numpy(noise))]
    weights = least_squares(phi, z, z_noise, 1e-7)
    ratio = (counts / counts.sum(1, keepdims=True)) / (noise / noise.sum())
    torch.testing.assert_close(weights[0].T, torch.from_numpy(ratio).float(), rtol=1e-4, atol=1e-4)


def gaussian_table(count: int = 8000) -> TransitionTable:
    """s' = 0.6 s + 0.5 a + 0.6 e with standard normal s, a, e: episodes of one step."""
    s, a, e = np.random.default_rng(0).normal(size=(3, count, 1)).astype(np.float32)
    following = 0.6 * s + 0.5 * a + 0.6 * e
    packed = torch.from_numpy(np.concatenate([s, a, following, np.zeros_like(s)], 1))
    return TransitionTable(packed, torch.ones(count, dtype=torch.long), observation_dim=1, action_dim=1)


@pytest.fixture(scope="module")
def learned() -> FourierEncoder:
    torch.manual_seed(0)
    table = gaussian_table()
    learner = Fourier(
        FourierConfig(hidden=(32,), feature_dim=512, bandwidth=1.0, learning_rate=3e-3),
        1,
        torch.zeros(1),
        torch.ones(1),
        1,
    )
    sources = Sources({"dataset": lambda: table, "whole": lambda: table}, 1, 256, CPU)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([{k: g[k] for k in ("params", "lr")} for g in learner.parameter_groups()])
    for _ in range(500):
        optimizer.zero_grad()
        learner.losses(learner.batch(sources, generator)).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learner.finish(sources)
    return learner.export().eval().requires_grad_(False)  # type: ignore[return-value]


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def test_kernel_and_ratio_of_a_linear_gaussian_system(learned: FourierEncoder) -> None:
    assert float(learned.width) == pytest.approx(0.6, rel=0.05)  # sigma, with a bandwidth of 1 and one number
    batch = gaussian_table(2000).gather(torch.arange(2000)[None])
    s, a, following = (x[0] for x in (batch.observations, batch.actions, batch.next_observations))
    others = following[torch.randperm(len(following))]
    density = torch.distributions.Normal(0.6 * s + 0.5 * a, 0.6)
    kernel = (learned(s, a) * learned.features(learned.standardised(others[None]))[0]).sum(-1)
    closed = torch.exp(density.log_prob(others) + math.log(0.6 * math.sqrt(2 * math.pi))).squeeze(1)
    assert (kernel - closed).abs().mean() < 0.05
    assert correlation(kernel, closed) > 0.98
    marginal = torch.distributions.Normal(0.0, math.sqrt(0.97))
    truth = (density.log_prob(others) - marginal.log_prob(others)).exp().squeeze(1)
    found = learned.ratio(s, a, others)
    assert correlation(found, truth) > 0.97
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)  # E_{p_n} r


def test_actions_are_told_apart_as_well_as_the_noise_allows(learned: FourierEncoder) -> None:
    """P(|e| < |e - c x|) with c = 0.5 sigma / 0.6, which is 1/2 + E of the normal's mass: about 0.63 for sigma = 1."""
    table = gaussian_table(4000)

    def ratio(s: Tensor, a: Tensor, following: Tensor) -> Tensor:
        return (learned.phi(s, a) * learned.mu(following)).sum(-1)

    def exact(s: Tensor, a: Tensor, following: Tensor) -> Tensor:
        return -(following - 0.6 * s - 0.5 * a).square().sum(-1)

    found, best = (action_resolution(score, table, None, None) for score in (ratio, exact))
    assert best["1.0"] > 0.6
    for sigma in ("0.3", "1.0"):
        assert found[sigma] == pytest.approx(best[sigma], abs=0.04)


def test_resolution_of_a_blind_and_of_a_perfect_score() -> None:
    table = gaussian_table(1000)
    blind = action_resolution(lambda s, a, following: -following.abs().sum(-1), table, (-1.0,), (1.0,))
    assert blind == {"0.1": 0.5, "0.3": 0.5, "1.0": 0.5}
    recorded = table.gather(torch.arange(len(table))[None])
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    perfect = action_resolution(
        lambda s, a, following: -(a - recorded.actions[:, order]).abs().sum(-1), table, (-1.0,), (1.0,)
    )
    assert min(perfect.values()) > 0.99
    # noise has the unit of the bounds
    seen: list[Tensor] = []
    action_resolution(lambda s, a, f: seen.append(a) or a.sum(-1), table, (-4.0,), (4.0,))  # type: ignore[func-returns-value]
    assert float((seen[3] - seen[0]).std()) == pytest.approx(4.0, rel=0.1)


def prepared(folder: Path, count: int, seed: int) -> Dataset:
    """Walks in the plane, pushed by actions between 0 and 4."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        actions = rng.uniform(0.0, 4.0, size=(30, 2)).astype(np.float32)
        moves = 0.2 * (actions - 2.0) + 0.05 * rng.normal(size=(30, 2))
        states = np.concatenate([np.zeros((1, 2)), moves.cumsum(0)]).astype(np.float32)
        episodes.append(
            Episode(id=f"e-{number}", observations=states, actions=actions, terminated=False, truncated=True)
        )
    write_dataset(folder, folder.name, episodes, provenance={}, env=None, bounds=((0.0, 0.0), (4.0, 4.0)))
    return load_dataset(folder)


def test_the_stages_take_it_where_they_take_a_contrastive_one(tmp_path: Path) -> None:
    data, expert = prepared(tmp_path / "data", 20, 0), prepared(tmp_path / "expert", 1, 1)
    training = TrainingConfig(updates=400, batch_size=64)
    c = FourierConfig(hidden=(32,), feature_dim=64)
    made = pretrain(entry("pretrain", "fourier", c, training=training), data, a_run(tmp_path / "pretrain"))
    metrics = made.measured.metrics
    assert metrics["held_out"]["normalisation"] == pytest.approx(1.0, abs=0.2)
    assert metrics["held_out"]["retrieval_accuracy"] > 3 * metrics["held_out"]["retrieval_chance"]
    assert 0.5 < metrics["action_resolution"]["0.1"] < metrics["action_resolution"]["1.0"]
    assert metrics["action_resolution"]["1.0"] > 0.8
    label = relabel(entry("relabel", "occupancy", space="dynamics"), data, expert, made.encoder, a_run(tmp_path / "l"))
    assert all(rewards.shape == (2, 30) for rewards in label.rewards.values())
    method = ReprValueDICEConfig(hidden=(8,), top=0.2)
    learner = entry(
        "learn", "repr_value_dice", method, encoder="dynamics", training=TrainingConfig(updates=5, batch_size=8)
    )
    policy, _ = learn(learner, data, expert, made.encoder, None, a_run(tmp_path / "learn"))
    actions = policy.act(torch.zeros(1, 4, 2))
    assert ((actions >= 0) & (actions <= 4)).all()


def test_snapshots_are_refused(tmp_path: Path) -> None:
    training = TrainingConfig(updates=10, batch_size=8, snapshots=2)
    with pytest.raises(ValueError, match=r"^pretrain\.name\.training\.snapshots: found 2, expected 1: fourier"):
        pretrain(
            entry("pretrain", "fourier", training=training), prepared(tmp_path / "d", 3, 0), a_run(tmp_path / "run")
        )
