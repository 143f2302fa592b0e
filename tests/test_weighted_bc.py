"""Weights of single transitions."""

from __future__ import annotations

import math

import pytest
import torch

from dynarep.data.resident import TransitionTable
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.learners.weighted_bc import WeightedBC, WeightedBCConfig, cloning_weights
from dynarep.pipeline.nn.functional import suffix_returns


def test_suffix_returns_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    torch.testing.assert_close(
        suffix_returns(rewards, [3, 2], 0.5), torch.tensor([[3.0, 4.0, 4.0, 16.0, 16.0]], dtype=torch.float64)
    )
    assert suffix_returns(rewards, [3, 2], 0.0) is rewards


def test_weights_by_hand() -> None:
    returns = torch.tensor([[0.0, 1.0, 2.0]])
    raw = torch.tensor([math.exp(-4.0), math.exp(-2.0), 1.0], dtype=torch.float64)
    torch.testing.assert_close(cloning_weights(returns, 2.0, 1000.0)[0], raw / raw.mean())


def test_the_unit_of_rewards_does_not_matter() -> None:
    returns = torch.randn(2, 50)
    torch.testing.assert_close(
        cloning_weights(returns, 5.0, 1e3), cloning_weights(returns * 700 + 3, 5.0, 1e3), rtol=1e-4, atol=1e-4
    )


def test_a_single_transition_cannot_outweigh_all_others() -> None:
    returns = torch.zeros(1, 1000)
    returns[0, 7] = 100.0
    weights = cloning_weights(returns, 50.0, 20.0)
    assert weights.max() <= 20.0 + 1e-9
    assert weights[0, 7] == weights.max()
    assert weights.mean() == pytest.approx(1.0)


def test_equal_rewards_leave_no_weights() -> None:
    with pytest.raises(ValueError, match="the same for every transition"):
        cloning_weights(torch.ones(2, 5), 5.0, 10.0)


def test_transitions_are_drawn_in_proportion() -> None:
    n = 4
    packed = torch.cat([torch.arange(n).unsqueeze(1), torch.zeros(n, 1), torch.zeros(n, 2)], 1).float()
    table = TransitionTable(packed, torch.tensor([n]), observation_dim=1, action_dim=1)
    rewards = torch.log(torch.tensor([[1.0, 2.0, 3.0, 4.0]])) / torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0])).std()
    sources = Sources({"dataset": lambda: table}, 1, 20000, torch.device("cpu"), rewards)
    learner = WeightedBC(
        WeightedBCConfig(temperature=1.0, gamma=0.0), 1, torch.zeros(1), torch.ones(1), (-1.0,), (1.0,)
    )
    learner.prepare(sources)
    scale = torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0])).std()
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0]).pow(1 / scale)
    rows = learner.batch(sources, torch.Generator().manual_seed(0)).observations.flatten().long()
    torch.testing.assert_close(rows.bincount(minlength=n) / 20000, expected / expected.sum(), rtol=0.05, atol=0.01)
    assert 0 < learner.facts()["effective_share"][0] <= 1
