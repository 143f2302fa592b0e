"""Planning: returns and elites by hand, and the known optimum of a linear-quadratic problem."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dynarep.pipeline.nn.planning import PlanningConfig, imagined_return, plan, weighted_elites


def add(z: Tensor, a: Tensor) -> Tensor:
    return z + a


def test_imagined_return_by_hand() -> None:
    """r = z a, z' = z + a, V = 10 z, gamma = 1/2: from 1 with actions 1 and 2."""
    start, actions = torch.tensor([[[1.0]]]), torch.tensor([[[[1.0], [2.0]]]])
    found = imagined_return(add, lambda z, a: (z * a)[..., 0], lambda z: 10 * z[..., 0], start, actions, 0.5)
    assert found.tolist() == [[1.0 + 0.5 * 4.0 + 0.25 * 40.0]]


def test_elites_by_hand() -> None:
    c = PlanningConfig(horizon=1, samples=4, elites=2, prior_samples=0, temperature=0.5, min_std=0.01)
    actions = torch.tensor([0.5, -1.0, 1.0, 0.0]).view(1, 1, 4, 1, 1)
    returns = torch.tensor([[[2.0, float("nan"), 4.0, -1.0]]])
    found = weighted_elites(returns, actions, c)
    w = 1 / (1 + math.exp(-1.0))  # exp(0.5 (4 - 4)) against exp(0.5 (2 - 4))
    torch.testing.assert_close(found.weights, torch.tensor([[[w, 1 - w]]]))
    assert found.elites.flatten().tolist() == [1.0, 0.5]
    mean = w + 0.5 * (1 - w)
    assert found.mean.item() == pytest.approx(mean)
    assert found.std.item() == pytest.approx(math.sqrt(w * (1 - mean) ** 2 + (1 - w) * (0.5 - mean) ** 2))
    assert weighted_elites(returns.nan_to_num(), torch.zeros_like(actions), c).std.item() == pytest.approx(0.01)


def test_what_is_drawn_is_the_first_action_of_an_elite() -> None:
    c = PlanningConfig(horizon=2, samples=3, elites=2, prior_samples=0)
    actions = torch.arange(2 * 2 * 3 * 2.0).view(2, 2, 3, 2, 1)
    returns = torch.tensor([0.0, 50.0, 100.0]).expand(2, 2, 3)
    found = weighted_elites(returns, actions, c)
    assert torch.equal(found.first(torch.Generator().manual_seed(0)), actions[:, :, 2, 0])
    assert torch.equal(found.shifted[:, :, 0], found.mean[:, :, 1])
    assert not found.shifted[:, :, 1].any()


A, B, Q, R = 0.9, 0.5, 1.0, 0.3


def riccati() -> tuple[float, float]:
    """P of the value -P z^2 and K of the action -K z of z' = A z + B a, r = -(Q z^2 + R a^2), without a discount."""
    p = Q
    for _ in range(200):
        p = Q + A * A * p - (A * B * p) ** 2 / (R + B * B * p)
    return p, A * B * p / (R + B * B * p)


def planned(c: PlanningConfig, start: Tensor, **options: Any) -> Any:
    p, _ = riccati()
    return plan(
        c,
        lambda z, a: A * z + B * a,
        lambda z, a: -(Q * z.square() + R * a.square())[..., 0],
        lambda z: -p * z.square()[..., 0],
        start,
        1,
        1.0,
        torch.Generator().manual_seed(0),
        **options,
    )


STATES = torch.tensor([[[0.8], [-0.4], [0.0]], [[-0.8], [0.2], [0.6]]])
"""Two replicas with three latents each."""


def test_the_optimum_of_a_linear_quadratic_problem() -> None:
    """With the true value at its end a plan of any length begins with -K z, up to what the elites scatter."""
    _, gain = riccati()
    for horizon in (1, 3):
        c = PlanningConfig(horizon=horizon, prior_samples=0, iterations=10, temperature=20.0)
        found = planned(c, STATES)
        torch.testing.assert_close(found.mean[:, :, 0], -gain * STATES, atol=0.03, rtol=0)
    assert found.mean.shape == (2, 3, 3, 1)
    assert (found.elites.abs() <= 1).all()
    first = found.first(torch.Generator().manual_seed(1))
    torch.testing.assert_close(first, -gain * STATES, atol=0.3, rtol=0)


def test_actions_stay_within_their_bounds() -> None:
    """Far from 0 the optimum without bounds is beyond them."""
    _, gain = riccati()
    start = torch.tensor([[[5.0]]])
    assert gain * 5.0 > 1
    found = planned(PlanningConfig(prior_samples=0), start)
    assert found.elites.min() == -1
    assert found.mean[0, 0, 0, 0] < -0.9


def test_a_good_prior_is_among_the_elites() -> None:
    """One iteration of few samples: the prior's sequences are the best ones."""
    _, gain = riccati()
    c = PlanningConfig(samples=12, elites=4, prior_samples=4, iterations=1, temperature=50.0)
    found = planned(c, STATES, prior=lambda z: -gain * z)
    torch.testing.assert_close(found.mean[:, :, 0], -gain * STATES, atol=0.02, rtol=0)
    without = planned(PlanningConfig(samples=12, elites=4, prior_samples=0, iterations=1, temperature=50.0), STATES)
    assert (without.mean[:, :, 0] + gain * STATES).abs().max() > 0.05


def test_a_plan_starts_at_the_mean_that_is_given() -> None:
    c = PlanningConfig(horizon=1, prior_samples=0, iterations=1, max_std=0.06, samples=64, elites=8)
    mean = torch.full((2, 3, 1, 1), 0.9)
    assert planned(c, STATES, mean=mean).mean.min() > 0.6
    assert planned(c, STATES).mean.abs().max() < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elites": 600}, "elites: found 600, expected at most samples, 512"),
        ({"prior_samples": 513}, "prior_samples: found 513, expected at most samples, 512"),
        ({"min_std": 3.0}, "min_std: found 3.0, expected at most max_std, 2.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanningConfig(**options)
