import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dynarep.pipeline.method import World
from dynarep.pipeline.methods.learners.iql import (
    IQL,
    IQLConfig,
    RewardBatch,
    advantage_weight,
    policy_loss,
    q_loss,
    value_loss,
)

torch.set_num_threads(1)

LOW, HIGH = (-1.0, -2.0), (1.0, 6.0)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_value_loss_by_hand() -> None:
    q, v = torch.tensor([[1.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(value_loss(q, v, 0.7), torch.tensor([(0.3 * 4 + 0.7 * 9) / 2, 0.7 / 2]))


def test_q_loss_by_hand() -> None:
    q = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])
    reward, discount, following = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.9, 0.0]]), torch.tensor([[10.0, 7.0]])
    # targets 10 and 0.5: (81 + 2.25) / 2 + (100 + 2.25) / 2
    torch.testing.assert_close(q_loss(q, reward, discount, following), torch.tensor([92.75]))


def test_weights_and_policy_loss_by_hand() -> None:
    q, v = torch.tensor([[1.0, 1.0, 9.0, -500.0]]), torch.tensor([[1.0, 0.5, 0.0, 500.0]])
    weight = advantage_weight(q, v, 3.0, 100.0)
    torch.testing.assert_close(weight, torch.tensor([[1.0, math.exp(1.5), 100.0, 0.0]]))
    log_prob = torch.tensor([[-1.0, 2.0, -0.1, -7.0]])
    torch.testing.assert_close(policy_loss(log_prob, weight), torch.tensor([-(-1 + 2 * math.exp(1.5) - 10) / 4]))


def expectile_of(samples: Tensor, expectile: float) -> float:
    """The least point of ``value_loss``, by Newton steps on a piecewise quadratic."""
    v = samples.mean().clone().requires_grad_()
    for _ in range(50):
        loss = value_loss(samples[None], v.expand(1, len(samples)), expectile).sum()
        (gradient,) = torch.autograd.grad(loss, v, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient, v)
        v = (v - gradient / curvature).detach().requires_grad_()
    return float(v.detach())


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.95])
def test_expectile_of_a_fair_coin_is_the_expectile(expectile: float) -> None:
    assert expectile_of(torch.tensor([0.0, 1.0]).double(), expectile) == pytest.approx(expectile, abs=1e-6)


def test_expectiles_go_from_the_mean_to_the_maximum() -> None:
    samples = torch.tensor([0.0, 1.0, 2.0, 10.0, -4.0]).double()
    found = [expectile_of(samples, expectile) for expectile in (0.5, 0.7, 0.9, 0.99, 0.99999)]
    assert found[0] == pytest.approx(1.8, abs=1e-6)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(10.0, abs=1e-2)


def learner(**values: Any) -> IQL:
    config = IQLConfig(**{"hidden": (16,), **values})
    model = IQL.build(config, World(2, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]), LOW, HIGH))
    with torch.no_grad():
        for parameter in model.target_critic.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # as if it had lagged behind
    torch.nn.init.normal_(model.policy.network.layers[-1].weight)
    torch.nn.init.normal_(model.log_std, std=0.3)
    return model


def random_batch(batch: int = 8) -> RewardBatch:
    s, s_next = torch.randn(2, 2, batch, 3)
    return RewardBatch(s, torch.rand(2, batch, 2), torch.randn(2, batch), (torch.rand(2, batch) < 0.4).float(), s_next)


@pytest.mark.parametrize("normalise", [True, False])
def test_one_backward_pass_is_the_three_separate_ones(normalise: bool) -> None:
    model, batch = learner(normalise=normalise), random_batch()
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]) + 1e-3
    s, s_next = ((x - mean) / std if normalise else x for x in (batch.observations, batch.next_observations))
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    actions = 2 * (batch.actions - low) / (high - low) - 1  # Q and the policy take actions in [-1, 1]
    pair = torch.cat([s, actions], -1).unsqueeze(1)
    with torch.no_grad():
        target_q = model.target_critic(pair)[..., 0]
        smallest = torch.minimum(target_q[:, 0], target_q[:, 1])
        v, v_next = model.value(s)[..., 0], model.value(s_next)[..., 0]
        weight = (3.0 * (smallest - v)).exp().clamp(max=100.0)
        backup = batch.rewards + 0.99 * (1 - batch.terminated) * v_next
    difference = smallest - model.value(s)[..., 0]
    loss_v = (torch.where(difference < 0, 0.3, 0.7) * difference.square()).mean(1)
    q = model.critic(pair)[..., 0]
    loss_q = (q[:, 0] - backup).square().mean(1) + (q[:, 1] - backup).square().mean(1)
    centre = torch.tanh(model.policy.network(s))
    density = torch.distributions.Normal(centre, model.log_std.exp().expand_as(centre))
    loss_pi = -(weight * density.log_prob(actions).sum(2)).mean(1)

    result = model.losses(batch)
    result.loss.sum().backward()  # type: ignore[no-untyped-call]
    for name, loss in (("value_loss", loss_v), ("q_loss", loss_q), ("policy_loss", loss_pi)):
        torch.testing.assert_close(result.metrics[name], loss.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.loss, loss_v + loss_q + loss_pi, atol=1e-5, rtol=1e-4)
    groups = (
        (loss_v, list(model.value.parameters())),
        (loss_q, list(model.critic.parameters())),
        (loss_pi, [*model.policy.parameters(), model.log_std]),
    )
    for loss, parameters in groups:
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-3)
            assert gradient.any()
    assert all(parameter.grad is None for parameter in model.target_critic.parameters())
    assert batch.terminated.any()
    assert (difference < 0).any()
    assert (difference > 0).any()


def test_groups_hold_each_trained_parameter_once_and_the_actor_decays() -> None:
    model = learner(learning_rate=0.02)
    constant, decaying = model.parameter_groups()
    assert constant["lr"] == decaying["lr"] == 0.02
    trained = [id(p) for group in (constant, decaying) for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in decaying["params"]} == {id(p) for p in (*model.policy.parameters(), model.log_std)}
    assert decaying["cosine"]
    assert not constant.get("cosine", False)


def test_target_critics_follow_slowly() -> None:
    model = learner(target_rate=0.25)
    pairs = list(zip(model.target_critic.parameters(), model.critic.parameters(), strict=True))
    before = [target.clone() for target, _ in pairs]
    model.after_update()
    for old, (target, online) in zip(before, pairs, strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * online.detach())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layer_norm_is_that_of_q_and_v(layer_norm: bool) -> None:
    """With it the scale of a hidden layer cannot matter."""
    model, s = learner(layer_norm=layer_norm), torch.randn(2, 8, 3)
    pair = torch.cat([s, torch.rand(2, 8, 2)], -1).unsqueeze(1)
    networks = ((model.critic, pair), (model.target_critic, pair), (model.value, s), (model.policy.network, s))
    for network, x in networks:
        before = network(x)
        network.layers[0].weight.data.mul_(100.0)
        network.layers[0].bias.data.mul_(100.0)
        same = torch.allclose(network(x), before, rtol=1e-2, atol=1e-2)
        assert same == (layer_norm and network is not model.policy.network)
    assert not IQLConfig().layer_norm


def test_export_acts_as_the_trained_policy() -> None:
    model, s = learner(), torch.randn(2, 5, 3)
    policy = model.export()
    expected = model.policy.act(s)
    assert torch.equal(policy.act(s), expected)
    torch.nn.init.normal_(model.policy.network.layers[-1].weight)
    assert torch.equal(policy.act(s), expected)


def test_a_small_problem_is_solved_within_its_support() -> None:
    """A corridor of four states. Left (-1) pays 0.5 and ends; right (+1) moves on, and pays 4 and ends from the last.

    From state 2 the data never moves right, so that 4 is out of reach and left is best wherever it is recorded. The
    critic is never told what right is worth in state 2.
    """
    gamma, rows = 0.8, [(0, -1, 0.5, None), (0, 1, 0.0, 1), (1, 1, 1.0, 2), (2, -1, 0.5, None), (3, 1, 4.0, None)]
    best = {2: 0.5, 1: 1 + gamma * 0.5, 0: gamma * (1 + gamma * 0.5), 3: 4.0}
    config = IQLConfig(
        hidden=(32, 32), normalise=False, gamma=gamma, expectile=0.95, target_rate=0.05, learning_rate=3e-3
    )
    model = IQL.build(config, World(1, torch.zeros(4), torch.ones(4), (-1.0,), (1.0,)))
    one_hot = torch.eye(4)
    batch = RewardBatch(
        torch.stack([one_hot[s] for s, *_ in rows])[None],
        torch.tensor([[[float(a)] for _, a, *_ in rows]]),
        torch.tensor([[r for _, _, r, _ in rows]]),
        torch.tensor([[float(following is None) for *_, following in rows]]),
        torch.stack([one_hot[0 if following is None else following] for *_, following in rows])[None],
    )
    optimizer = torch.optim.Adam([p for group in model.parameter_groups() for p in group["params"]], lr=3e-3)
    for _ in range(1000):
        optimizer.zero_grad()
        model.losses(batch).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
    value = model.value(one_hot[None])[0, :, 0].detach()
    torch.testing.assert_close(value, torch.tensor([best[s] for s in range(4)]), atol=0.1, rtol=0)
    actions = model.export().act(one_hot[None])[0, :, 0]
    assert actions[0] > 0.3  # the better of two recorded actions
    assert actions[1] > 0.9
    assert actions[2] < -0.9
