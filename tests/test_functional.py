import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynarep.pipeline.dual_game import dual_objective
from dynarep.pipeline.nn.functional import (
    effective_rank,
    expectile_loss,
    gaussian_log_prob,
    gradient_penalty,
    log_mean_exp,
    polyak,
    reverse_gradient,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_expectile_loss_weighs_by_the_sign_it_is_given() -> None:
    difference = torch.tensor([-2.0, -2.0, 3.0, 3.0, 1.0])
    sign = torch.tensor([-1.0, 5.0, -0.1, 0.2, 0.0])
    expected = torch.tensor([0.1 * 4, 0.9 * 4, 0.1 * 9, 0.9 * 9, 0.9])
    torch.testing.assert_close(expectile_loss(difference, sign, 0.9), expected)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_expectile_one_half_is_half_the_square(difference: float, sign: float) -> None:
    loss = expectile_loss(torch.tensor(difference), torch.tensor(sign), 0.5)
    torch.testing.assert_close(loss, torch.tensor(0.5 * difference**2))


def test_polyak_moves_targets_and_nothing_else() -> None:
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.fill_(3.0)
        for parameter in target.parameters():
            parameter.fill_(1.0)
    polyak(target.parameters(), online.parameters(), 0.25)
    assert all((parameter == 1.5).all() for parameter in target.parameters())
    assert all((parameter == 3.0).all() for parameter in online.parameters())
    polyak(target.parameters(), online.parameters(), 1.0)
    assert all((parameter == 3.0).all() for parameter in target.parameters())


def test_reverse_gradient_is_the_identity_with_a_negated_gradient() -> None:
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    (y.square().sum() + x.sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, -2.0 * x.detach() + 1.0)


def test_log_mean_exp() -> None:
    x = torch.tensor([[0.0, math.log(3.0)], [1000.0, 1000.0]])
    torch.testing.assert_close(log_mean_exp(x), torch.tensor([math.log(2.0), 1000.0]))
    weight = torch.tensor([0.75, 0.25]).log()
    torch.testing.assert_close(log_mean_exp(x, weight), torch.tensor([math.log(1.5), 1000.0]))


def test_dual_objective_by_hand() -> None:
    initial = torch.tensor([[2.0, 4.0], [0.0, 1.0]])
    expert = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    result = dual_objective(initial, expert, 0.9)
    torch.testing.assert_close(result, torch.tensor([0.1 * 3.0 + math.log(2.0), 0.1 * 0.5]))

    replay = torch.tensor([[math.log(2.0)] * 4, [1.0, 1.0, 1.0, 1.0]])  # of another batch size
    result = dual_objective(initial, expert, 0.9, bellman_replay=replay, replay_ratio=0.25)
    expected = [
        0.75 * 0.1 * 3.0 + math.log(0.75 * 2.0 + 0.25 * 2.0) - 0.25 * math.log(2.0),
        0.75 * 0.1 * 0.5 + math.log(0.75 + 0.25 * math.e) - 0.25,
    ]
    torch.testing.assert_close(result, torch.tensor(expected))


def test_dual_objective_without_replay_is_the_limit_of_little_replay() -> None:
    initial, expert, replay = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = dual_objective(initial, expert, 0.9)
    torch.testing.assert_close(dual_objective(initial, expert, 0.9, bellman_replay=replay, replay_ratio=0.0), alone)
    little = dual_objective(initial, expert, 0.9, bellman_replay=replay, replay_ratio=1e-7)
    torch.testing.assert_close(little, alone, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no replay transitions"):
        dual_objective(initial, expert, 0.9, replay_ratio=0.1)


def test_gradient_penalty_of_a_linear_critic() -> None:
    # gradients (2, 1 | 2) and (0, 0 | 0.5): norms 3 and 0.5
    weight = torch.tensor([[2.0, 1.0, 2.0], [0.0, 0.0, 0.5]], requires_grad=True)

    def critic(observations: Tensor, actions: Tensor) -> Tensor:
        return (torch.cat([observations, actions], -1) @ weight.unsqueeze(-1)).squeeze(-1)

    penalty = gradient_penalty(critic, torch.randn(2, 5, 2), torch.randn(2, 5, 1))
    torch.testing.assert_close(penalty, torch.tensor([4.0, 0.25]))
    penalty.sum().backward()  # type: ignore[no-untyped-call]
    # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w|
    torch.testing.assert_close(weight.grad, torch.tensor([[8 / 3, 4 / 3, 8 / 3], [0.0, 0.0, -1.0]]))


def test_gradient_penalty_sees_each_point() -> None:
    observations = torch.tensor([[[1.0], [2.0]]])  # Q = s^2 + a: gradient (2 s, 1)
    penalty = gradient_penalty(lambda s, a: (s.square() + a).squeeze(-1), observations, torch.zeros(1, 2, 1))
    expected = ((math.sqrt(5.0) - 1) ** 2 + (math.sqrt(17.0) - 1) ** 2) / 2
    torch.testing.assert_close(penalty, torch.tensor([expected]))
    assert not observations.requires_grad


def test_gaussian_log_prob_is_torchs() -> None:
    mean, actions = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    log_std = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    torch.testing.assert_close(gaussian_log_prob(actions, mean, log_std), expected)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.eye(5), 5.0),
        (torch.ones(7, 3), 1.0),
        (torch.diag(torch.tensor([2.0, 1.0, 1.0])), 2.0**1.5),  # entropy of (1/2, 1/4, 1/4)
        (torch.cat([torch.eye(3), torch.zeros(4, 3)]) @ torch.diag(torch.tensor([3.0, 3.0, 0.0])), 2.0),
    ],
)
def test_effective_rank(matrix: Tensor, rank: float) -> None:
    torch.testing.assert_close(effective_rank(matrix), torch.tensor(rank))
    torch.testing.assert_close(effective_rank(torch.stack([matrix, -4 * matrix])), torch.tensor([rank, rank]))
