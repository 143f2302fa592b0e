"""A policy of several modes does what was done where the mean of the data is what nobody did."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynarep.data.resident import Batch
from dynarep.pipeline.artifacts.storage import load_policy_model, save_artifact
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.learners.bc import BC, BCConfig
from dynarep.pipeline.methods.policies.deterministic import Policy

WORLD = World(2, torch.zeros(1), torch.ones(1), (-2.0,), (2.0,))


def built(components: int) -> BC:
    torch.manual_seed(0)
    return BC.build(BCConfig(hidden=(16,), learning_rate=1e-2, components=components), WORLD)


def trained(components: int) -> BC:
    """On states in which seven of ten went right, by 1.6, and three went left."""
    learner = built(components)
    groups = [{"params": group["params"], "lr": group["lr"]} for group in learner.parameter_groups()]
    optimizer = torch.optim.Adam(groups)
    for _ in range(300):
        states = torch.rand(2, 64, 1) * 2 - 1
        actions = torch.where(torch.rand(2, 64, 1) < 0.7, 1.6, -1.6) + 0.02 * torch.randn(2, 64, 1)
        batch = Batch(states, actions, None, torch.zeros(2, 64), states)
        optimizer.zero_grad()
        learner.losses(batch).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return learner


def states() -> Tensor:
    return torch.linspace(-0.9, 0.9, 7).view(1, 7, 1)


def test_two_modes_are_kept_apart_and_the_likelier_one_is_played() -> None:
    one, two = trained(1).export(), trained(2).export()
    with torch.no_grad():
        between, played = one.act(states()), two.act(states())
        modes, weights = two.modes(two.mean(states()))
    assert ((between - 0.64).abs() < 0.3).all()  # 0.7 * 1.6 - 0.3 * 1.6
    torch.testing.assert_close(played, torch.full_like(played, 1.6), atol=0.1, rtol=0)
    torch.testing.assert_close(modes.amin(-2) * 2, torch.full_like(played, -1.6), atol=0.1, rtol=0)
    assert weights.exp().amax(-1).sub(0.7).abs().max() < 0.15


def test_the_density_of_a_mixture_is_that_of_its_parts() -> None:
    policy = Policy.build(WORLD, (4,), components=2)
    logits = torch.tensor([1.0, 0.0])
    output = torch.tensor([[[0.3, 1.0, -0.5, 0.0]]]).expand(2, 1, 4)  # two of (mode before tanh, logit)
    density = policy.log_prob(output, torch.full((2, 1, 1), 0.2), torch.full((2, 1, 1), -1.0))
    sigma = math.exp(-1.0)
    parts = torch.distributions.Normal(torch.tanh(torch.tensor([0.3, -0.5])), sigma)
    expected = torch.logsumexp(torch.log_softmax(logits, 0) + parts.log_prob(torch.tensor(0.2)), 0)
    torch.testing.assert_close(density, expected.expand(2, 1))
    torch.testing.assert_close(policy.mode(output), torch.tanh(torch.full((2, 1, 1), 0.3)))


def test_one_component_is_the_policy_of_before() -> None:
    assert built(1).policy.outputs == 1
    assert float(built(1).log_std.detach().abs().max()) == 0.0
    with pytest.raises(ValueError, match="components"):
        BCConfig(components=0)


def test_a_mixture_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = built(3).export()
    save_artifact(tmp_path, policy, {"stage": "learn", "kind": "bc"})
    loaded = load_policy_model(tmp_path)
    assert isinstance(loaded, Policy)
    assert loaded.architecture == policy.architecture
    assert torch.equal(loaded.act(states()), policy.act(states()))
