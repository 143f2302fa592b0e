"""The temporal metric, on worlds whose distances are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.pipeline.methods.encoders.temporal_metric import (
    INTERVALS,
    MetricArchitecture,
    MetricEncoder,
    PairBatch,
    TemporalMetric,
    TemporalMetricConfig,
    euclidean_distance,
    interval_distance,
    spread_loss,
    violation,
)


def learn(states: Tensor, following: Tensor, updates: int, seed: int = 0, **options: object) -> MetricEncoder:
    """A metric of transitions (N, D), two replicas."""
    torch.manual_seed(seed)
    settings = {
        "hidden": (64, 64),
        "latent_dim": 16,
        "horizon": 60.0,
        "sharpness": 0.1,
        "learning_rate": 3e-3,
        **options,
    }
    learner = TemporalMetric(TemporalMetricConfig(**settings), 2, states.mean(0), states.std(0, correction=0))
    groups = [{"params": g["params"], "lr": g["lr"]} for g in learner.parameter_groups()]
    adam = torch.optim.Adam(groups)
    for update in range(updates):
        adam.param_groups[0]["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * update / updates))
        rows, others = torch.randint(len(states), (2, 2, 128))
        batch = PairBatch(states[rows], following[rows], states[others])
        adam.zero_grad()
        learner.losses(batch).loss.sum().backward()
        adam.step()
    return learner.export().eval().requires_grad_(False)


def distances(encoder: MetricEncoder, states: Tensor) -> Tensor:
    """All pairs, (R, N, N)."""
    points = encoder.embed(states[None])
    return encoder.between(points[:, :, None], points[:, None])


def test_losses_by_hand() -> None:
    step = torch.tensor([[0.5, 1.0, 2.0, 3.0]])
    torch.testing.assert_close(violation(step), torch.tensor([(0 + 0 + 1 + 4) / 4]))
    far = torch.tensor([[0.0, 10.0]])
    expected = (math.log1p(math.exp(0.5 * 10)) / 0.5 + math.log(2) / 0.5) / 2
    torch.testing.assert_close(spread_loss(far, 10.0, 0.5), torch.tensor([expected]))
    torch.testing.assert_close(euclidean_distance(torch.zeros(3), torch.tensor([3.0, 0.0, 4.0])), torch.tensor(5.0))


def test_the_interval_distance_is_a_quasimetric() -> None:
    x, y, z = torch.randn(3, 500, 2 * INTERVALS, generator=torch.Generator().manual_seed(0))
    assert not interval_distance(x, x).any()
    there, back = interval_distance(x, y), interval_distance(y, x)
    assert (there >= 0).all()
    assert (there - back).abs().max() > 0.5
    assert (interval_distance(x, z) <= there + interval_distance(y, z) + 1e-5).all()
    a, b = torch.zeros(INTERVALS), torch.zeros(INTERVALS)
    a[0], b[0], a[1], b[1] = 0.0, 2.0, 1.0, 3.0  # [0, 2] and [1, 3] cover 3
    assert interval_distance(a, b) == pytest.approx(3.0)


def test_the_multiplier_rises_while_steps_are_too_long() -> None:
    learner = TemporalMetric(TemporalMetricConfig(multiplier=5.0), 2, torch.zeros(2), torch.ones(2))
    assert torch.nn.functional.softplus(learner.multiplier).tolist() == pytest.approx([5.0, 5.0])
    s = torch.randn(2, 32, 2)
    for following, sign in ((s + 100, -1), (s, 1)):
        learner.zero_grad()
        learner.losses(PairBatch(s, following, torch.randn(2, 32, 2))).loss.sum().backward()
        assert (torch.sign(learner.multiplier.grad) == sign).all()  # descent: a negative gradient raises it


def test_replicas_are_independent() -> None:
    learner = TemporalMetric(TemporalMetricConfig(hidden=(8,), latent_dim=4), 3, torch.zeros(2), torch.ones(2))
    batch = PairBatch(*torch.randn(3, 3, 16, 2))
    learner.losses(batch).loss[1].backward()
    for name, parameter in learner.named_parameters():
        assert not parameter.grad[[0, 2]].any(), name


@pytest.mark.slow
def test_a_line_is_measured_in_steps() -> None:
    line = torch.arange(21.0).unsqueeze(1)
    steps = torch.cat([line[:-1], line[1:]]), torch.cat([line[1:], line[:-1]])
    found = distances(learn(*steps, 1500), line)
    wanted = (line - line.T).abs()
    far = wanted > 3
    assert ((found - wanted).abs() / wanted.clamp(min=1))[:, far].mean() < 0.1


@pytest.mark.slow
def test_a_wall_is_gone_around_and_waiting_does_not_count() -> None:
    """Two rooms of 4 x 4 with a door at one end: cells beside the wall are near in a line and far on foot."""
    free = [(x, y) for x in range(9) for y in range(4) if x != 4 or y == 0]
    moves = [(a, b) for a in free for b in free if abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 1]  # standing still, too
    states, following = (torch.tensor(part, dtype=torch.float) for part in zip(*moves, strict=True))
    encoder = learn(states, following, 2000)
    cells = torch.tensor([(3.0, 3.0), (5.0, 3.0), (1.0, 3.0)])
    found = distances(encoder, cells).mean(0)
    assert found[0, 1] > 1.8 * found[0, 2]  # 8 steps across the wall, 2 in the room; both 2 in a line


@pytest.mark.slow
@pytest.mark.parametrize("noise", [8])
def test_noise_changes_the_order_of_distances_little(noise: int) -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    angle = np.cumsum(rng.choice([-0.1, 0.1], 4000))
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    noisy = np.concatenate([ring, rng.standard_normal((4000, noise))], 1)
    grid = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 64, endpoint=False)), np.sin(a)], 1)
    plain = learn(*(torch.tensor(x, dtype=torch.float) for x in (ring[:-1], ring[1:])), 1500)
    robust = learn(*(torch.tensor(x, dtype=torch.float) for x in (noisy[:-1], noisy[1:])), 1500)
    padded = np.concatenate([grid, rng.standard_normal((64, noise))], 1)
    one = distances(plain, torch.tensor(grid, dtype=torch.float)).mean(0).flatten()
    other = distances(robust, torch.tensor(padded, dtype=torch.float)).mean(0).flatten()
    assert spearmanr(one, other).statistic > 0.95


def test_a_directed_space_gives_labels_no_points() -> None:
    encoder = MetricEncoder(
        MetricArchitecture(replicas=1, observation_dim=2, hidden=(4,), latent_dim=INTERVALS, head="interval")
    )
    assert encoder.offers == ()
    with pytest.raises(ValueError, match="latent_dim: found 12, expected a multiple of 8"):
        TemporalMetric(TemporalMetricConfig(head="interval", latent_dim=12), 1, torch.zeros(2), torch.ones(2))
