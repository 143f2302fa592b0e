"""Hilbert values on a chain whose values are known."""

from __future__ import annotations

import torch

from dynarep.pipeline.methods.encoders.hilp import HILP, GoalBatch, HILPConfig, hilbert_value


def test_the_value_is_the_negated_distance() -> None:
    x, y = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    torch.testing.assert_close(hilbert_value(x, y), torch.tensor(-5.0))


def test_the_values_of_a_chain_are_a_fixed_point() -> None:
    """With psi on a line at minus the value of reaching the end, the targets of steps towards it are the values."""
    gamma, n = 0.9, 6
    learner = HILP(HILPConfig(gamma=gamma, hidden=(), latent_dim=1), 1, torch.zeros(1), torch.full((1,), 1.0 - 1e-3))
    for network in (learner.online, learner.target):
        layer = network.layers[0]
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.bias.fill_(0.0)
    value = [(1 - gamma**k) / (1 - gamma) for k in range(n)]  # steps to the end, discounted
    place = torch.tensor(value)
    s, s_next, goal = place[1:], place[:-1], torch.zeros(n - 1)
    batch = GoalBatch(*(x.view(1, -1, 1) for x in (s, s_next, goal)), torch.zeros(1, n - 1))
    losses = learner.losses(batch)
    assert losses.loss.item() < 1e-4
    at_goal = GoalBatch(torch.zeros(1, 3, 1), torch.ones(1, 3, 1), torch.zeros(1, 3, 1), torch.ones(1, 3))
    assert learner.losses(at_goal).loss.item() < 1e-4  # reached: reward 0 and no future


def test_targets_get_no_gradient_and_members_are_independent() -> None:
    learner = HILP(HILPConfig(hidden=(8,), latent_dim=4), 2, torch.zeros(2), torch.ones(2))
    batch = GoalBatch(*torch.randn(3, 2, 16, 2), torch.zeros(2, 16))
    learner.losses(batch).loss[0].backward()
    assert all(p.grad is None for p in learner.target.parameters())
    assert not any(p.grad[1].any() for p in learner.online.parameters())
    assert all(layer.weight.grad[0].any() for layer in learner.online.layers)


def test_export_is_the_first_member() -> None:
    learner = HILP(HILPConfig(hidden=(8,), latent_dim=4), 2, torch.zeros(3), torch.ones(3))
    encoder = learner.export()
    s = torch.randn(2, 5, 3)
    torch.testing.assert_close(encoder.embed(s), learner.online(learner.normaliser(s).unsqueeze(1))[:, 0])
    assert encoder.distance(s[0], s[0]).max() < 0.01
