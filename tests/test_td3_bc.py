import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from dynarep.configs.params import ParamsError
from dynarep.data.resident import TransitionTable
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset, write_rewards
from dynarep.pipeline.artifacts.storage import load_policy_model
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.learners.td3_bc import (
    TD3BC,
    SARSABatch,
    TD3BCConfig,
    actor_loss,
    critic_loss,
    next_actions,
    smoothed_action,
    td_target,
)
from dynarep.pipeline.run import Stage
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.loop import train
from dynarep.pipeline.training.run import Run
from dynarep.stages import learn as stage
from tests.entries import NOTHING, a_run, drawn_by, entry

torch.set_num_threads(1)

LOW, HIGH = (-1.0, -2.0), (1.0, 6.0)
MEAN, STD = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_smoothed_action_by_hand() -> None:
    action, noise = torch.tensor([0.1, 0.1, 0.1, 0.9, -0.7]), torch.tensor([0.2, 0.8, -0.8, 0.3, -0.5])
    torch.testing.assert_close(smoothed_action(action, noise, 0.5), torch.tensor([0.3, 0.6, -0.4, 1.0, -1.0]))


def test_target_by_hand() -> None:
    next_q = torch.tensor([[[10.0, 7.0], [8.0, 9.0]]])
    reward, discount = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.9, 0.0]])
    torch.testing.assert_close(td_target(reward, discount, next_q), torch.tensor([[1 + 0.9 * 8, 0.5]]))
    penalised = td_target(reward, discount, next_q, torch.tensor([[3.0, 5.0]]))
    torch.testing.assert_close(penalised, torch.tensor([[1 + 0.9 * (8 - 3), 0.5]]))


def test_critic_loss_by_hand() -> None:
    q, target = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]]), torch.tensor([[10.0, 0.5]])
    torch.testing.assert_close(critic_loss(q, target), torch.tensor([(81 + 2.25) / 2 + (100 + 2.25) / 2]))


def test_actor_loss_by_hand() -> None:
    q, error = torch.tensor([[1.0, -3.0], [4.0, 4.0]]), torch.tensor([[0.5, 1.5], [0.0, 0.0]])
    torch.testing.assert_close(actor_loss(q, error, 2.5), torch.tensor([1.0 + 2.5 * 0.5, -2.5]))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_rewards_does_not_reach_the_actor(scale: float) -> None:
    q, error = torch.randn(2, 8, requires_grad=True), torch.rand(2, 8)
    loss, scaled = actor_loss(q, error, 2.5), actor_loss(scale * q, error, 2.5)
    torch.testing.assert_close(scaled, loss)
    gradients = [torch.autograd.grad(x.sum(), q)[0] for x in (loss, scaled)]
    torch.testing.assert_close(gradients[0], gradients[1])
    mean = q.detach().abs().mean(1, keepdim=True)
    torch.testing.assert_close(gradients[0], (-2.5 / 8 / mean).expand(2, 8))  # lambda is a constant


def learner(**values: Any) -> TD3BC:
    model = TD3BC.build(TD3BCConfig(**{"hidden": (16,), **values}), World(2, MEAN, STD, LOW, HIGH))
    with torch.no_grad():
        for parameter in (*model.target_critic.parameters(), *model.target_actor.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))  # as if it had lagged behind
    torch.nn.init.normal_(model.policy.network.layers[-1].weight)
    return model


def random_batch(batch: int = 8) -> SARSABatch:
    (s, s_next), (a, a_next) = torch.randn(2, 2, batch, 3), torch.rand(2, 2, batch, 2)
    a_next[:, 2] = math.nan
    return SARSABatch(s, a, torch.randn(2, batch), (torch.rand(2, batch) < 0.4).float(), s_next, a_next)


@pytest.mark.parametrize(("penalty", "layer_norm"), [(0.0, False), (0.5, True)])
@pytest.mark.parametrize("delayed", [True, False])
def test_one_backward_pass_is_the_two_separate_ones(delayed: bool, penalty: float, layer_norm: bool) -> None:
    """Against the losses written out, in which the gradient of Q in the action is taken on its own."""
    model, batch = learner(critic_penalty=penalty, layer_norm=layer_norm), random_batch()
    model.set_extra_state(4 if delayed else 5)
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    a, a_next = ((x - low) / (high - low) * 2 - 1 for x in (batch.actions, batch.next_actions))
    s, s_next = ((x - MEAN) / (STD + 1e-3) for x in (batch.observations, batch.next_observations))

    def values(critic: torch.nn.Module, state: Tensor, action: Tensor) -> Tensor:
        return critic(torch.cat([state, action], -1)[:, None])[..., 0]  # type: ignore[no-any-return]

    state = torch.get_rng_state()
    noise = (0.2 * torch.randn_like(batch.actions)).clamp(-0.5, 0.5)
    torch.set_rng_state(state)
    with torch.no_grad():
        unit = (torch.tanh(model.target_actor(s_next)) + noise).clamp(-1, 1)
        next_q = torch.minimum(*values(model.target_critic, s_next, unit).unbind(1))
        distance = (unit - a_next).square().sum(-1)
        distance[:, 2] = 0  # where no action followed
        target = batch.rewards + 0.99 * (1 - batch.terminated) * (next_q - penalty * distance)
    loss_q = (values(model.critic, s, a) - target[:, None]).square().mean(2).sum(1)
    critic = list(model.critic.parameters())
    expected = list(zip(critic, torch.autograd.grad(loss_q.sum(), critic), strict=True))

    unit = torch.tanh(model.policy.network(s))
    cloning = (unit - a).square().mean((1, 2))
    action = unit.detach().requires_grad_()
    q = values(model.critic, s, action)[:, 0]
    (slope,) = torch.autograd.grad(q.sum(), action)
    weight = 2.5 / q.detach().abs().mean(1)
    surrogate = cloning - weight * (slope * unit).sum(-1).mean(1)
    actor = list(model.policy.parameters())
    expected += list(zip(actor, torch.autograd.grad(surrogate.sum(), actor), strict=True))

    result = model.losses(batch)
    result.loss.sum().backward()  # type: ignore[no-untyped-call]
    loss_pi = cloning - weight * q.mean(1)
    torch.testing.assert_close(result.loss, loss_q if delayed else loss_q + loss_pi, atol=1e-5, rtol=1e-4)
    for name, metric in (
        ("critic_loss", loss_q),
        ("squared_error", cloning),
        ("q", values(model.critic, s, a).mean((1, 2))),
        ("next_q", next_q.mean(1)),
    ):
        torch.testing.assert_close(result.metrics[name], metric.detach(), atol=1e-5, rtol=1e-4)
        assert not result.metrics[name].requires_grad
    for parameter, gradient in expected:
        if delayed and any(parameter is p for p in actor):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)
        assert gradient.any()
    targets = [*model.target_critic.parameters(), *model.target_actor.parameters()]
    assert all(parameter.grad is None for parameter in targets)
    assert batch.terminated.any()


def test_replicas_do_not_see_each_other() -> None:
    model, batch = learner(critic_penalty=0.5), random_batch()
    model.set_extra_state(1)
    other = replace(batch, observations=batch.observations.clone(), rewards=batch.rewards.clone())
    other.observations[1] += 1.0
    other.rewards[1] *= 3.0
    gradients = []
    for seen in (batch, other):
        torch.manual_seed(1)
        loss = model.losses(seen).loss
        parameters = [p for group in model.parameter_groups() for p in group["params"]]
        gradients.append([loss, *torch.autograd.grad(loss.sum(), parameters)])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_wait(delay: int) -> None:
    """To the bit on delayed updates, though Adam's momentum would move the actor if it had gradients of zero."""
    model = learner(policy_delay=delay)
    optimizer = torch.optim.Adam(model.parameter_groups(), fused=True)
    waiting = {
        name: parameter for name, parameter in model.named_parameters() if not name.startswith("critic.")
    }  # the actor and both targets
    assert {name.split(".")[0] for name in waiting} == {"policy", "target_actor", "target_critic"}
    for update in range(1, 8):
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        optimizer.zero_grad()
        model.losses(random_batch()).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
        assert model.updates == update
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved == (name not in waiting or update % delay == 0), (update, name)
        if update % delay == 0:
            for target, online in (("target_actor", "policy.network"), ("target_critic", "critic")):
                name = ".layers.0.weight"
                average = 0.995 * before[target + name] + 0.005 * model.get_parameter(online + name).detach()
                torch.testing.assert_close(model.get_parameter(target + name), average)


def test_everything_is_trained_once_at_a_constant_rate() -> None:
    model = learner(learning_rate=0.02)
    (group,) = model.parameter_groups()
    assert set(group) == {"params", "lr"}
    assert group["lr"] == 0.02
    assert len(group["params"]) == len({id(p) for p in group["params"]})
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}


def test_the_delay_is_part_of_the_state() -> None:
    model, other = learner(), learner()
    for _ in range(3):
        model.after_update()
    other.load_state_dict(model.state_dict())
    assert other.updates == 3
    assert not other.delayed


class InterruptionError(Exception):
    pass


def test_a_run_resumed_between_two_actor_updates_is_the_same_to_the_bit(tmp_path: Path) -> None:
    batches = [random_batch() for _ in range(9)]
    training = TrainingConfig(updates=9, updates_per_chunk=3, checkpoint_every=3)

    def fit(output: Path, first: int, stop: int | None, checkpoints: str = "checkpoints") -> TD3BC:
        torch.manual_seed(0)
        count = iter(range(first, len(batches)))

        def sample(generator: torch.Generator) -> SARSABatch:
            if (index := next(count)) == stop:
                raise InterruptionError
            return batches[index]

        output.mkdir()
        model = learner()
        run = Run("learn/td3_bc", 0, 2, output, tmp_path / checkpoints)
        train(model, NOTHING, drawn_by(sample), training, run=run, shown=("q",), key="key")
        return model

    whole = fit(tmp_path / "whole", 0, None, "others")
    with pytest.raises(InterruptionError):
        fit(tmp_path / "stopped", 0, 4)  # leaves a checkpoint after update 3, when the actor is due next
    resumed = fit(tmp_path / "resumed", 3, None)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert resumed.updates == 9


def test_layer_norm_is_the_critics() -> None:
    """With it the scale of a hidden layer cannot matter."""
    for layer_norm in (False, True):
        model, batch = learner(layer_norm=layer_norm), random_batch()
        model.critic.layers[0].bias.data.normal_()
        pair = torch.cat([batch.observations, batch.actions], -1)[:, None]
        networks = [(model.critic, pair), (model.target_critic, pair), (model.policy.network, batch.observations)]
        for network, x in networks:
            before = network(x)
            for parameter in network.layers[0].parameters():
                parameter.data.mul_(100.0)
            same = torch.allclose(network(x), before, rtol=1e-2, atol=1e-2)
            assert same == (layer_norm and network is not model.policy.network)


def test_export_acts_as_the_trained_policy() -> None:
    model, s = learner(), torch.randn(2, 5, 3)
    policy = model.export()
    expected = model.policy.act(s)
    assert torch.equal(policy.act(s), expected)
    torch.nn.init.normal_(model.policy.network.layers[-1].weight)
    assert torch.equal(policy.act(s), expected)


def test_a_penalty_needs_next_actions() -> None:
    with pytest.raises(ValueError, match="critic_penalty needs next_actions"):
        learner(critic_penalty=0.1).losses(replace(random_batch(), next_actions=None))


def fit(model: TD3BC, draw: Callable[[], SARSABatch], updates: int) -> None:
    rate = model.config.learning_rate
    optimizer = torch.optim.Adam(model.parameter_groups(), fused=True)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = rate * (1 - update / updates)
        optimizer.zero_grad()
        model.losses(draw()).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()


@pytest.mark.parametrize("alpha", [0.0, 0.9, 2.5])
def test_a_bandit_has_a_balance_of_value_and_cloning(alpha: float) -> None:
    """One state, actions u uniform in [-1, 1] of their range, reward 1 + u / 2.

    The mean action is 0, so with lambda = alpha / (1 + u / 2) the loss u^2 - lambda Q(u) is least where u = lambda / 4.
    """
    balance = math.sqrt(1 + alpha / 2) - 1
    config = TD3BCConfig(hidden=(32,), alpha=alpha, learning_rate=1e-2)
    model = TD3BC.build(config, World(2, torch.zeros(1), torch.ones(1), (2.0,), (6.0,)))
    state, unit = torch.ones(2, 32, 1), torch.linspace(-1, 1, 32).expand(2, 32)
    batch = SARSABatch(state, 4 + 2 * unit[..., None], 1 + unit / 2, torch.ones(2, 32), state)
    fit(model, lambda: batch, 400)
    action = (model.export().act(torch.ones(2, 1, 1)) - 4) / 2
    torch.testing.assert_close(action, torch.full((2, 1, 1), balance), atol=0.02, rtol=0)


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_values_of_two_states(penalty: float) -> None:
    """The second state pays 2 + a and ends, the first pays 1 and leads there. A clone of data with mean 0 acts as 0.

    So Q(first) = 1 + gamma (2 - penalty E (noise - a')^2), noise and a' of mean zero and independent.
    """
    clipped = (0.2 * torch.randn(100_000)).clamp(-0.5, 0.5)
    values = {"gamma": 0.9, "alpha": 0.0, "target_rate": 0.05, "learning_rate": 1e-2}
    config = TD3BCConfig(hidden=(32,), critic_penalty=penalty, **values)
    model = TD3BC.build(config, World(1, torch.zeros(2), torch.ones(2), (-1.0,), (1.0,)))
    first, second = torch.eye(2).unsqueeze(1).expand(2, 64, 2)
    a = torch.linspace(-1, 1, 64)
    states, actions, rewards = torch.cat([first, second])[None], a.repeat(2)[None], torch.cat([0 * a + 1, 2 + a])[None]
    ends = torch.cat([0 * a, 0 * a + 1])[None]

    def draw() -> SARSABatch:
        following = torch.cat([a[torch.randperm(64)], 0 * a + math.nan])[None, :, None]
        return SARSABatch(states, actions[..., None], rewards, ends, second.repeat(2, 1)[None], following)

    fit(model, draw, 400)
    q = model.critic(torch.cat([model.policy.normaliser(states), actions[..., None]], -1)[:, None])[0, :, :, 0].detach()
    expected = 1 + 0.9 * (2 - penalty * float(clipped.square().mean() + a.square().mean()))
    torch.testing.assert_close(q[:, :64], torch.full((2, 64), expected), atol=0.1, rtol=0)
    torch.testing.assert_close(q[:, 64:], rewards[:, 64:].expand(2, 64), atol=0.1, rtol=0)
    assert model.export().act(states).abs().max() < 0.02


def test_units_of_actions_do_not_matter() -> None:
    """The same to rounding, with other bounds and actions scaled along."""
    models, batches = [], []
    batch = random_batch()
    for low, high in (((-1.0, -1.0), (1.0, 1.0)), (LOW, HIGH)):
        torch.manual_seed(1)
        models.append(TD3BC.build(TD3BCConfig(hidden=(16,), critic_penalty=0.5), World(2, MEAN, STD, low, high)))
        scaled = {name: models[-1].policy.rescale(getattr(batch, name)) for name in ("actions", "next_actions")}
        batches.append(replace(batch, **scaled))
    for model, batch in zip(models, batches, strict=True):
        torch.manual_seed(2)
        fit(model, lambda batch=batch: batch, 6)  # type: ignore[misc]
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def prepared(folder: Path, episodes: list[Episode]) -> Dataset:
    write_dataset(folder, folder.name, episodes, provenance={}, env=None, bounds=(LOW, HIGH))
    return load_dataset(folder)


def test_next_actions(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    episodes = [make_episode(3, "e-0", seed=0), make_episode(1, "e-1", seed=1), make_episode(2, "e-2", seed=2)]
    dataset = prepared(tmp_path / "data", episodes)
    found = next_actions(TransitionTable.from_episodes(dataset.episodes))
    actions = [torch.as_tensor(episode.actions) for episode in episodes]
    nothing = torch.full((1, 2), math.nan)
    expected = torch.cat([part for a in actions for part in (a[1:], nothing)])
    torch.testing.assert_close(found, expected, equal_nan=True)


TRAINING = TrainingConfig(updates=6, batch_size=8)


def recorded(dataset: Dataset) -> dict[str, np.ndarray]:
    return {e.id: e.rewards[None] for e in dataset.episodes if e.rewards is not None}


def test_the_stage_hands_the_penalty_what_follows(
    tmp_path: Path, make_episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [make_episode(5, f"e-{i}", seed=i) for i in range(3)]
    dataset = prepared(tmp_path / "data", episodes)
    pairs = {
        tuple(e.current[t].tolist()): (e.actions[t], e.actions[t + 1] if t < 4 else None)  # type: ignore[index]
        for e in episodes
        for t in range(5)
    }
    seen: list[SARSABatch] = []
    losses = TD3BC.losses
    monkeypatch.setattr(TD3BC, "losses", lambda self, batch: seen.append(batch) or losses(self, batch))  # type: ignore[func-returns-value]
    for penalty in (0.0, 0.5):
        seen.clear()
        c = TD3BCConfig(hidden=(8,), critic_penalty=penalty)
        made = entry("learn", "td3_bc", c, rewards="recorded", training=TRAINING)
        model, _ = learn(made, dataset, dataset, None, recorded(dataset), a_run(tmp_path / f"output-{penalty}"))
        assert model.replicas == 2
        assert len(seen) == 6
        if penalty == 0.0:
            assert all(batch.next_actions is None for batch in seen)
            continue
        for batch in seen:
            assert batch.next_actions is not None
            rows = zip(*(x.flatten(0, 1) for x in (batch.observations, batch.actions, batch.next_actions)), strict=True)
            for s, a, following in rows:
                action, after = pairs[tuple(s.tolist())]
                assert a.tolist() == action.tolist()
                assert following.isnan().all() if after is None else following.tolist() == after.tolist()


def test_a_penalty_on_transitions_that_do_not_follow_each_other(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    dataset = prepared(tmp_path / "data", [make_episode(5, "e-0", separate=True), make_episode(5, "e-1", seed=1)])
    made = entry("learn", "td3_bc", TD3BCConfig(critic_penalty=0.1), rewards="recorded", training=TRAINING)
    with pytest.raises(ValueError, match=r"learn\.name: critic_penalty: .*row 0 of the dataset does not lead"):
        learn(made, dataset, dataset, None, recorded(dataset), a_run(tmp_path / "run"))


def test_an_unknown_learner_is_refused() -> None:
    values = {"kind": "cql", "dataset": "data", "demonstrations": "data", "training": {"updates": 1}}
    with pytest.raises(ParamsError, match=r"learn\.p\.kind: found 'cql', expected one of .*td3_bc"):
        parse_entry("learn", "p", values)


def test_both_learners_through_the_stage(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    artifacts = tmp_path / "artifacts"
    dataset = prepared(artifacts / "shards" / "data", [make_episode(12, f"e-{i}", seed=i) for i in range(3)])
    (artifacts / "relabel" / "true").mkdir(parents=True)
    write_rewards(artifacts / "relabel" / "true", dataset, recorded(dataset))
    shared = {
        "dataset": "data",
        "demonstrations": "data",
        "rewards": "true",
        "training": {"updates": 6, "batch_size": 8},
    }
    values = {
        "a": {**shared, "kind": "iql", "hidden": [8]},
        "b": {**shared, "kind": "td3_bc", "hidden": [4], "layer_norm": True, "critic_penalty": 0.01},
    }
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"seed": 0, "replicas": 2, "learn": values}))
    columns = {"a": "policy_loss", "b": "squared_error"}
    for name, (kind, hidden) in {"a": ("iql", (8,)), "b": ("td3_bc", (4,))}.items():
        stage.main(Stage("learn", params, name))
        folder = artifacts / "learn" / name
        metadata = json.loads((folder / "metadata.json").read_text())
        assert (metadata["kind"], metadata["rewards"]) == (kind, "true")
        assert metadata["saw"] == {
            "expert": "what the rewards true saw",
            "other": "36 transitions with the rewards true",
        }
        assert metadata["params"]["learn"] == {name: values[name]}
        policy = load_policy_model(folder)
        assert (policy.replicas, policy.architecture.hidden) == (2, hidden)
        assert columns[name] in (folder / "curves.tsv").read_text().splitlines()[0].split("\t")
