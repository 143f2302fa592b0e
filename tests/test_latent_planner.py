"""A policy that plans: a problem with a known best action, its state and noise, its artifact, and episodes with it."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynarep
from dynarep.pipeline.artifacts.storage import ArtifactError, code_of, exportable, load_policy_model, save_artifact
from dynarep.pipeline.methods.policies import latent_planner
from dynarep.pipeline.methods.policies.latent_planner import LatentPlanner, LatentPlannerArchitecture
from dynarep.pipeline.nn import latent_policy
from dynarep.pipeline.nn.distillation import DistillationConfig
from dynarep.pipeline.nn.planning import PlanningConfig
from dynarep.pipeline.nn.world_model import expected_value, two_hot
from dynarep.pipeline.playing.play import EvaluateConfig, play_block
from tests.test_planning import A, B, Q, R, riccati

torch.set_num_threads(1)
FEW = PlanningConfig(iterations=2, samples=16, elites=4, prior_samples=4)
DISTILLATION = DistillationConfig(hidden=(8,), target_hidden=(8,), embedding_dim=4)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def architecture(**values: Any) -> LatentPlannerArchitecture:
    given = {
        "replicas": 2,
        "observation_dim": 2,
        "action_low": (-1.0,),
        "action_high": (1.0,),
        "hidden": (8,),
        "latent_dim": 8,
        "policy_hidden": (8,),
        "head_hidden": (10,),
        "values": 3,
        "gamma": 0.9,
        "planning": FEW,
        **values,
    }
    return LatentPlannerArchitecture(**given)


def made(**values: Any) -> LatentPlanner:
    policy = LatentPlanner(architecture(**values))
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.5)
    return policy.eval().requires_grad_(False)


class Quadratic(nn.Module):
    """-(Q z^2 + R a^2) of points (z, a)."""

    def forward(self, points: Tensor) -> Tensor:
        z, a = points.unbind(-1)
        return -(Q * z.square() + R * a.square())


def solvable(**planning: Any) -> LatentPlanner:
    """The linear-quadratic problem of ``tests/test_planning.py`` as a model; actions are from -1 to 3."""
    p, _ = riccati()
    c = PlanningConfig(prior_samples=0, temperature=20.0, **planning)
    policy = made(observation_dim=1, action_low=(-1.0,), action_high=(3.0,), planning=c, gamma=1.0 - 1e-9)
    policy.latents = lambda x: x.expand(2, -1, -1)  # type: ignore[method-assign]
    policy.step = lambda z, a: A * z + B * a  # type: ignore[method-assign]
    policy.value = lambda z, generator: -p * z.square()[..., 0]  # type: ignore[method-assign]
    policy.reward = Quadratic()  # type: ignore[assignment]
    return policy


def test_it_takes_the_best_action_of_a_linear_quadratic_problem() -> None:
    _, gain = riccati()
    states = torch.linspace(-0.8, 0.8, 5).view(1, 5, 1)
    policy = solvable(iterations=10)
    actions = policy.act(states)
    torch.testing.assert_close((actions - 1) / 2, -gain * states.expand(2, -1, -1), atol=0.3, rtol=0)
    assert ((actions - 1) / 2 + gain * states).abs().mean() < 0.08
    tried = policy.explore(states, torch.randn(2, 5, 1))
    assert ((tried - 1) / 2 + gain * states).abs().mean() < 0.2, "the noise is that of the plan, at least 0.05"
    assert (policy.explore(torch.full((1, 5, 1), 9.0), torch.randn(2, 5, 1)) >= -1).all()


def test_a_plan_goes_on_from_the_one_before_until_the_next_episode() -> None:
    policy = solvable(iterations=1, samples=32, elites=4)
    given: list[Tensor] = []
    plan = policy.plan

    def watched(c: PlanningConfig, z: Tensor, generator: torch.Generator, mean: Tensor) -> Any:
        given.append(mean)
        return plan(c, z, generator, mean)

    policy.plan = watched  # type: ignore[method-assign]
    states = torch.full((1, 3, 1), 0.8)
    for _ in range(2):
        policy.act(states)
    policy.reset((0,))
    policy.act(states)
    policy.act(states[:, :2])
    assert [bool(mean.any()) for mean in given] == [False, True, False, False]
    assert not given[1][:, :, -1].any()
    assert given[1][:, :, 0].mean() < 0, "the way back to 0"


def test_many_states_are_planned_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    _, gain = riccati()
    monkeypatch.setattr(latent_planner, "STATES", 2)
    policy, states = solvable(iterations=10), torch.linspace(-0.8, 0.8, 5).view(1, 5, 1)
    for _ in range(2):
        actions = policy.act(states)
        assert ((actions - 1) / 2 + gain * states).abs().mean() < 0.08


def test_noise_follows_from_the_seed_and_the_step() -> None:
    policy, states = made(), torch.randn(1, 4, 2)

    def episode(*seed: int) -> list[Tensor]:
        policy.reset(seed)
        return [policy.act(states) for _ in range(2)]

    one, same, other = episode(3, 0), episode(3, 0), episode(3, 5)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1])
    noise = torch.randn(2, 4, 1)
    assert torch.equal(policy.explore(states, noise), policy.explore(states, noise))
    assert not torch.equal(policy.explore(states, noise), policy.explore(states, torch.randn(2, 4, 1)))


def test_the_value_is_the_mean_of_two_qs_without_dropout() -> None:
    policy = made(values=2).train()
    policy.tried = lambda z, generator: torch.full((*z.shape[:2], 1), 0.3)  # type: ignore[method-assign]
    seen: list[Tensor] = []
    value = policy.value

    def watched(z: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(value(z, generator))
        q = expected_value(policy.critic(z, torch.full((*z.shape[:2], 1), 0.3)))
        torch.testing.assert_close(seen[-1], q.mean(1))
        return seen[-1]

    policy.value = watched  # type: ignore[method-assign]
    policy.critic.network.dropout = 0.5
    policy.explore(torch.randn(1, 2, 2), torch.randn(2, 2, 1))
    assert len(seen) == FEW.iterations
    assert policy.critic.training


@pytest.mark.parametrize("distillation", [None, DISTILLATION])
def test_the_reward_is_that_of_a_head_or_of_distillation(distillation: DistillationConfig | None) -> None:
    policy = made(distillation=distillation)
    points = torch.randn(2, 5, 9)
    found = policy.reward(points)
    assert found.shape == (2, 5)
    if distillation is None:
        weights = two_hot(torch.tensor(4.0)).clamp(min=1e-9).log()
        policy.reward.logits = lambda x: weights.expand(*x.shape[:2], -1)  # type: ignore[union-attr,method-assign]
        torch.testing.assert_close(policy.reward(points), torch.full((2, 5), 4.0), atol=1e-3, rtol=0)


def test_without_planning_it_is_the_prior() -> None:
    policy, states = made(planning=None), torch.randn(1, 4, 2)
    torch.testing.assert_close(policy.act(states), policy.prior.mode(policy.latents(states)))
    noise = torch.randn(2, 4, 1)
    torch.testing.assert_close(policy.explore(states, noise), policy.prior(policy.latents(states), noise)[0])


@pytest.mark.parametrize("distillation", [None, DISTILLATION])
def test_an_artifact_of_it_acts_the_same(tmp_path: Path, distillation: DistillationConfig | None) -> None:
    policy, states = made(distillation=distillation), torch.randn(1, 5, 2)
    save_artifact(tmp_path, policy, {})
    again = load_policy_model(tmp_path)
    assert isinstance(again, LatentPlanner)
    assert again.architecture == policy.architecture
    for model in (policy, again):
        model.reset((1, 2))
    for _ in range(2):
        assert torch.equal(again.act(states), policy.act(states))
    alone = dynarep.load_policy(tmp_path, replica=1)
    alone.reset(4)
    first = alone(states[0].numpy())
    assert (np.abs(first) <= 1).all()
    alone.reset(4)
    assert np.array_equal(alone(states[0].numpy()), first)
    doubled = dynarep.load_policy(tmp_path, dtype=torch.float64)
    assert doubled(states[0].double()).dtype == torch.float64
    with pytest.raises(ArtifactError, match="latent_planner: draws at random or keeps a state"):
        exportable(policy)


def test_an_artifact_with_impossible_planning_is_refused(tmp_path: Path) -> None:
    save_artifact(tmp_path, made(), {})
    path = tmp_path / "config.json"
    for key, value, message in (
        ("samples", 1 << 40, r"architecture.planning.samples: found 1099511627776, expected 0 to"),
        ("elites", 17, "found 17, expected at most samples, 16"),
        ("horizon", 2, "architecture.planning: found"),
    ):
        config = json.loads(path.read_text())
        config["architecture"]["planning"][key] = value
        other = tmp_path / key
        save_artifact_copy(tmp_path, other, config)
        with pytest.raises(ArtifactError, match=message):
            load_policy_model(other)


def save_artifact_copy(folder: Path, other: Path, config: dict[str, Any]) -> None:
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())


def test_its_artifact_changes_with_the_file_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, source = made(), inspect.getsource
    before = code_of(policy)
    for changed in (latent_planner, latent_policy):
        monkeypatch.setattr(inspect, "getsource", lambda module, file=changed: source(module) + "#" * (module is file))
        assert code_of(policy) != before
    monkeypatch.setattr(inspect, "getsource", source)
    assert code_of(policy) == before


def test_it_plays_episodes_that_follow_from_the_seed() -> None:
    policy = made()
    settings = EvaluateConfig(env="tests.line:Line-v0", episodes=3, seed=7)
    one, same = (play_block(policy, "plans", settings, 0).returns for _ in range(2))
    assert np.array_equal(one, same)
    assert one.shape == (2, 3)
    assert not np.array_equal(one, play_block(policy, "plans", replace(settings, seed=8), 0).returns)
