"""Weights of single transitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dynarep.data.resident import TransitionTable
from dynarep.pipeline.method import Sources, World
from dynarep.pipeline.methods.learners.weighted_bc import WeightedBC, WeightedBCConfig, cloning_weights
from dynarep.pipeline.nn.functional import suffix_returns
from dynarep.pipeline.training.config import TrainingConfig


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


def table_of(observations: list[float]) -> TransitionTable:
    n = len(observations)
    packed = torch.cat([torch.tensor(observations).unsqueeze(1), torch.zeros(n, 4)], 1)
    return TransitionTable(packed[:, :4], torch.tensor([n]), observation_dim=1, action_dim=1)


def sources_of(table: TransitionTable, rewards: list[float], batch_size: int = 20000) -> Sources:
    return Sources({"dataset": lambda: table}, 1, batch_size, torch.device("cpu"), torch.tensor([rewards]))


def learner_of(**values: Any) -> WeightedBC:
    return WeightedBC.build(
        WeightedBCConfig(gamma=0.0, **values), World(1, torch.zeros(1), torch.ones(1), (-1.0,), (1.0,))
    )


def test_equal_rewards_leave_no_weights() -> None:
    with pytest.raises(ValueError, match="the same for every transition"):
        learner_of().prepare(sources_of(table_of([0.0, 1.0]), [1.0, 1.0]))


def test_with_a_baseline_the_better_of_two_transitions_counts_at_every_state() -> None:
    """State 0 pays 2 or 3, state 1 pays 0 or 1: V takes the level away, so the better one at each has the same weight."""
    sources = sources_of(table_of([0.0, 0.0, 1.0, 1.0]), [2.0, 3.0, 0.0, 1.0])
    torch.manual_seed(0)
    learner = learner_of(temperature=1.0, hidden=(16,), baseline=TrainingConfig(updates=1))
    learner.prepare(sources)
    first, _ = learner.phases()
    baseline = first.learner
    optimiser = torch.optim.Adam(baseline.network.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for update in range(600):
        optimiser.param_groups[0]["lr"] = 1e-2 if update < 400 else 1e-4
        optimiser.zero_grad()
        baseline.losses(first.batch(sources.sized(256), generator)).loss.sum().backward()
        optimiser.step()
    assert first.finish is not None
    first.finish(sources)
    (weights,) = learner.weights
    assert weights[1] == pytest.approx(weights[3].item(), rel=0.05)
    assert weights[0] / weights[1] == pytest.approx(math.exp(-1 / torch.tensor([-0.5, 0.5, -0.5, 0.5]).std()), rel=0.05)


def test_transitions_are_drawn_in_proportion() -> None:
    n = 4
    sources = sources_of(table_of([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]).log().tolist())
    learner = learner_of(temperature=1.0)
    learner.prepare(sources)
    scale = torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0])).std()
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0]).pow(1 / scale)
    rows = learner.batch(sources, torch.Generator().manual_seed(0)).observations.flatten().long()
    torch.testing.assert_close(rows.bincount(minlength=n) / 20000, expected / expected.sum(), rtol=0.05, atol=0.01)
    assert 0 < learner.facts()["effective_share"][0] <= 1


def test_rewards_that_judge_episodes_are_not_compared_by_state() -> None:
    """Two episodes of two steps, all from state 0 to 1: with a baseline the good one would count as much as the poor one."""
    table = table_of([0.0, 1.0, 0.0, 1.0])
    table.lengths = torch.tensor([2, 2])
    learner = learner_of(temperature=1.0, baseline=TrainingConfig(updates=1))
    learner.prepare(sources_of(table, [0.3, 0.3, 0.9, 0.9]))
    assert len(learner.phases()) == 1
    weights = learner.weights[0]
    assert weights[2] == weights[3] > weights[0] == weights[1]
    learner.prepare(sources_of(table, [0.3, 0.4, 0.9, 0.9]))
    assert len(learner.phases()) == 2
