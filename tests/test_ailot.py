import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.configs.params import ParamsError, validate
from dynarep.pipeline.methods.rewards.ailot import (
    AILOTConfig,
    entry_step,
    intent_cost,
    intent_reward,
    label,
    squared_distance,
)
from dynarep.pipeline.transport import Labels, pad_with_last, sinkhorn, uniform_masses

LINE = torch.arange(4.0)[:, None]


def rewards(agent: Tensor, expert: Tensor, calibration: float = 1.0, **settings: object) -> Labels:
    c = validate(AILOTConfig, settings, "ailot")
    lengths = torch.tensor([len(agent)]), torch.tensor([len(expert)])
    return label(agent[None], lengths[0], expert[None], lengths[1], torch.tensor([calibration]), c)


def absolute(agent: Tensor, expert: Tensor, lookahead: int, epsilon: float) -> float:
    """The fraction of the mean cost that is ``epsilon``."""
    return epsilon / float(intent_cost(agent[None], expert[None], lookahead).mean())


def episodes(*lengths: int, dim: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, dim, generator=generator).cumsum(0) for length in lengths]


def test_own_episode_pays_nothing_at_small_epsilon() -> None:
    (agent,) = episodes(60)
    found = rewards(agent, agent, epsilon=1e-4, max_iterations=5000)
    torch.testing.assert_close(found.rewards, torch.full((1, 60), 5.0), atol=1e-3, rtol=0.0)
    assert found.dropped_mass == 0.0


def test_large_epsilon_pays_the_mean_cost_from_the_entry_on() -> None:
    agent, expert = episodes(20, 30)
    agent = agent + expert[7] - agent[0]
    found = rewards(agent, expert, lookahead=0, epsilon=1e5, temperature=0.02)
    cost = intent_cost(agent[None], expert[None], 0)[0]
    first = int(cost[0].argmin())
    assert first == 7
    expected = 5.0 * torch.exp(-0.02 * cost[:, first:].sum(1) / 30)
    torch.testing.assert_close(found.rewards[0], expected, rtol=1e-4, atol=0.0)
    assert float(found.dropped_mass) == pytest.approx(first / 30, rel=1e-4)


@pytest.mark.parametrize(("lookahead", "expected"), [(0, 0.0), (1, 2.4997), (2, 6.4999)])
def test_only_lookahead_notices_a_reversed_expert(lookahead: int, expected: float) -> None:
    reversed_line = LINE.flip(0)
    epsilon = absolute(LINE, reversed_line, lookahead, 0.01)
    found = rewards(
        LINE, reversed_line, lookahead=lookahead, epsilon=epsilon, max_iterations=5000, tolerance=0, truncate=False
    )
    assert float((found.transport.coupling * found.cost).sum()) == pytest.approx(expected, abs=2e-4)
    assert found.dropped_mass == 0.0


def test_worked_example() -> None:
    expert = torch.tensor([-1.0, 0.0, 1.1, 2.0, 3.2])[:, None]
    cost = intent_cost(LINE[None], expert[None], 2)
    torch.testing.assert_close(cost[0, 0], torch.tensor([1.81, 0.0, 2.65, 5.44, 11.68]))
    assert entry_step(cost, torch.tensor([5])) == 1
    found = rewards(
        LINE,
        expert,
        epsilon=absolute(LINE, expert, 2, 0.01),
        scale=5,
        temperature=0.5,
        max_iterations=2000,
        tolerance=0,
    )
    np.testing.assert_allclose(found.rewards[0], [5.0, 2.7168, 4.1680, 4.3642], atol=2e-4)
    assert float(found.cost[0, 0, 0]) > 0
    assert float(found.dropped_mass) == pytest.approx(0.2, abs=1e-3)


def test_leaving_the_goal_pays_only_as_published() -> None:
    """Both episodes begin where the expert ends; one stays, one goes back the way."""
    expert = torch.arange(11.0)[:, None]
    stays, leaves = torch.full((11, 1), 10.0), torch.arange(10.0, -1.0, -1.0)[:, None]

    def total(agent: Tensor, before_entry: str) -> float:
        return float(rewards(agent, expert, before_entry=before_entry, temperature=0.1, epsilon=1e-3).rewards.sum())

    assert total(leaves, "free") > 0.8 * total(stays, "free")
    assert total(stays, "rematched") == pytest.approx(55.0, rel=1e-3)  # 11 steps of alpha
    assert total(leaves, "rematched") < 0.5 * total(stays, "rematched")
    found = rewards(leaves, expert, before_entry="rematched")
    assert found.dropped_mass == 0.0
    torch.testing.assert_close(found.transport.coupling[0, :, -1], torch.full((11,), 1 / 11))


def test_moving_and_turning_intents_changes_nothing() -> None:
    agent, expert = episodes(30, 40)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))[0]
    settings = {"tolerance": 0, "max_iterations": 100, "temperature": 0.05}
    one = rewards(agent, expert, **settings).rewards
    other = rewards(agent @ rotation + 10.0, expert @ rotation + 10.0, **settings).rewards
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_scaling_intents_and_units_changes_nothing() -> None:
    agent, expert = episodes(30, 40)
    settings = {"tolerance": 0, "max_iterations": 100}
    one = rewards(agent, expert, units="raw", temperature=0.05, **settings).rewards
    other = rewards(3.0 * agent, 3.0 * expert, units="raw", temperature=0.05 / 9, **settings).rewards
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    calibrated = rewards(3.0 * agent, 3.0 * expert, 1 / 9, temperature=0.05, **settings).rewards
    torch.testing.assert_close(one, calibrated, rtol=1e-3, atol=1e-4)


def test_raw_units_ignore_the_calibration() -> None:
    agent, expert = episodes(10, 12)
    one, other = (rewards(agent, expert, scale, units="raw", temperature=0.05).rewards for scale in (1.0, 7.0))
    assert torch.equal(one, other)
    assert not torch.equal(one, rewards(agent, expert, 7.0, temperature=0.05).rewards)


def test_lookahead_stays_at_the_last_state() -> None:
    agent, expert = episodes(5, 3)
    found = intent_cost(agent[None], expert[None], 2)[0]
    for i in range(5):
        for j in range(3):
            now = (agent[i] - expert[j]).square().sum()
            ahead = (agent[min(i + 2, 4)] - expert[min(j + 2, 2)]).square().sum()
            assert float(found[i, j]) == pytest.approx(float(now + ahead), rel=1e-5)


def test_lookahead_longer_than_an_episode() -> None:
    agent, expert = episodes(2, 3)
    expected = squared_distance(agent[None], expert[None])[0] + (agent[-1] - expert[-1]).square().sum()
    torch.testing.assert_close(intent_cost(agent[None], expert[None], 50)[0], expected)


def test_squared_distance_of_close_points_far_from_the_origin() -> None:
    x = torch.tensor([[[1000.0, 1000.0], [1000.0, 1000.5]]])
    torch.testing.assert_close(squared_distance(x, x)[0], torch.tensor([[0.0, 0.25], [0.25, 0.0]]))


def test_truncation_drops_cost_and_does_not_renormalise() -> None:
    coupling = torch.tensor([[[0.3, 0.2], [0.1, 0.4]]])
    cost = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    found = intent_reward(coupling, cost, torch.tensor([2]), torch.tensor([1]), 1.0, 1.0)
    torch.testing.assert_close(found, torch.exp(-2.0 * torch.tensor([[0.4, 1.6]])))
    assert float(intent_reward(coupling, cost, torch.tensor([2]), torch.tensor([0]), 1.0, 1.0)[0, 0]) == pytest.approx(
        math.exp(-1.4)
    )


def test_entry_is_the_first_of_equal_steps_and_never_padding() -> None:
    cost = torch.tensor([[[2.0, 1.0, 1.0, 0.0]], [[2.0, 3.0, 0.5, 0.0]]])
    assert entry_step(cost, torch.tensor([3, 4])).tolist() == [1, 3]


def test_a_batch_is_its_members() -> None:
    agents, experts = episodes(12, 30, 1), episodes(25, 9, 14)[::-1]
    agent, agent_lengths = pad_with_last(agents)
    expert, expert_lengths = pad_with_last(experts)
    calibration = torch.tensor([0.01, 0.02, 0.03])
    found = label(agent, agent_lengths, expert, expert_lengths, calibration, AILOTConfig())
    for i, (x, y) in enumerate(zip(agents, experts, strict=True)):
        alone = rewards(x, y, float(calibration[i]))
        torch.testing.assert_close(found.rewards[i, : len(x)], alone.rewards[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.dropped_mass[i], alone.dropped_mass[0], rtol=1e-3, atol=1e-5)
        assert (found.rewards[i, len(x) :] == 0).all()


def test_epsilon_is_relative_to_the_mean_cost_of_real_steps() -> None:
    agent, expert = episodes(15, 20)
    found = rewards(agent, expert, epsilon=0.05, tolerance=0, max_iterations=20)
    a, b = uniform_masses(torch.tensor([15]), 15), uniform_masses(torch.tensor([20]), 20)
    expected = sinkhorn(found.cost, a, b, 0.05 * found.cost.mean()[None], max_iterations=20, tolerance=0)
    torch.testing.assert_close(found.transport.coupling, expected.coupling, rtol=1e-3, atol=1e-7)


def test_episodes_that_never_move_are_no_division_by_zero() -> None:
    still = torch.ones(3, 2)
    torch.testing.assert_close(rewards(still, still).rewards, torch.full((1, 3), 5.0))


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"lookahead": -1}, {"units": "metres"}, {"tau": 1.0}])
def test_refuses_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ParamsError, match=f"ailot.{next(iter(wrong))}"):
        validate(AILOTConfig, wrong, "ailot")
