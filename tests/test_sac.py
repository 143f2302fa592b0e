"""Soft actor-critic: losses by hand, a problem with a known answer, and acting: stopping, resuming, failing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.configs.params import ParamsError
from dynarep.data.replay import ReplayTable
from dynarep.data.resident import Batch
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.entries import Entry, parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.learners.sac import SAC, SACConfig
from dynarep.pipeline.methods.policies.squashed_gaussian import SquashedGaussian, squashed_log_prob
from dynarep.pipeline.nn.networks import RunningNormaliser
from dynarep.pipeline.playing.environments import CollectionConfig, make_environment, restore_simulator, simulator_state
from dynarep.pipeline.playing.replay import Replay
from dynarep.pipeline.soft_actor_critic import (
    ActingBatch,
    actor_loss,
    critic_loss,
    critic_target,
    temperature_loss,
    temperature_of,
)
from dynarep.pipeline.sources import SourceError
from dynarep.pipeline.training.run import Run
from tests.entries import unplugged
from tests.line import STEPS

torch.set_num_threads(1)
CPU = torch.device("cpu")
LINE = "tests.line:Line-v0"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_losses_by_hand() -> None:
    temperature = torch.tensor([[0.5]])
    next_q, next_log_prob = torch.tensor([[[4.0, 1.0], [3.0, 2.0]]]), torch.tensor([[-2.0, 0.0]])
    target = critic_target(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.9, 0.0]]), next_q, next_log_prob, temperature)
    torch.testing.assert_close(target, torch.tensor([[1.0 + 0.9 * (3.0 + 1.0), 2.0]]))
    q = torch.tensor([[[4.6, 0.0], [3.6, 2.0]]])
    torch.testing.assert_close(critic_loss(q, target), torch.tensor([(0.0 + 4.0) / 2 + (1.0 + 0.0) / 2]))
    log_prob = torch.tensor([[-1.0, 3.0]])
    torch.testing.assert_close(actor_loss(log_prob, q, temperature), torch.tensor([(-0.5 - 3.6 + 1.5 - 0.0) / 2]))
    torch.testing.assert_close(temperature_loss(temperature, log_prob, -3.0), torch.tensor([-0.5 * (1.0 - 3.0)]))


def test_the_temperature_begins_as_published() -> None:
    assert float(temperature_of(torch.tensor(math.log(0.2)))) == pytest.approx(0.18232, abs=1e-5)


def test_the_density_of_squashed_actions_is_that_of_a_transformed_distribution() -> None:
    mean, log_std, noise = torch.randn(3, 2, 5, 3).unbind(0)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    expected = squashed.log_prob(torch.tanh(mean + log_std.exp() * noise)).sum(-1)
    torch.testing.assert_close(squashed_log_prob(mean, log_std, noise), expected, atol=1e-3, rtol=1e-3)
    assert squashed_log_prob(mean + 40.0, log_std, noise).isfinite().all()


def test_running_statistics_are_those_of_all_that_was_seen() -> None:
    seen = [5.0 + 3.0 * torch.randn(2, n, 4) for n in (1, 7, 1, 200)]
    normaliser = RunningNormaliser(2, 4)
    for part in seen:
        normaliser.see(part)
    every = torch.cat(seen, 1)
    torch.testing.assert_close(normaliser.mean, every.mean(1, keepdim=True))
    torch.testing.assert_close(normaliser.variance, every.var(1, keepdim=True, correction=0))
    assert float(normaliser(torch.full((2, 1, 4), 1e6)).max()) == 10.0


def world(observation_dim: int = 2, action_dim: int = 1, replicas: int = 2, **values: Any) -> World:
    zeros, ones = torch.zeros(observation_dim), torch.ones(observation_dim)
    return World(replicas, zeros, ones, (-1.0,) * action_dim, (1.0,) * action_dim, **values)


def settings(**values: Any) -> CollectionConfig:
    return CollectionConfig(**{"env": LINE, "random_steps": 40, "capacity": 300, **values})


def make(**values: Any) -> SAC:
    return SAC(SACConfig(**{"environment": settings(), "hidden": (16,), **values}), world())


def random_batch(size: int = 8) -> ActingBatch:
    s, s_next = torch.randn(2, 2, size, 2)
    rewards, ends = torch.randn(2, size), (torch.rand(2, size) < 0.4).float()
    return ActingBatch(s, torch.rand(2, size, 1) * 2 - 1, rewards, ends, s_next, torch.zeros(2))


def test_one_backward_pass_gives_each_network_the_gradient_of_its_own_loss() -> None:
    model, batch = make(), random_batch()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.manual_seed(1)
    loss = model.losses(batch).loss.sum()
    parts = {
        "critic": list(model.critic.parameters()),
        "policy": list(model.policy.network.parameters()),
        "temperature": [model.log_temperature],
    }
    found = dict(zip(parts, (torch.autograd.grad(loss, p, retain_graph=True) for p in parts.values()), strict=True))

    torch.manual_seed(1)
    noise, next_noise = torch.randn(2, *batch.actions.shape)
    alpha, policy = temperature_of(model.log_temperature), model.policy
    s, s_next = policy.normaliser(batch.observations), policy.normaliser(batch.next_observations)
    q = model.critic(torch.cat([s, batch.actions], -1).unsqueeze(1))[..., 0]
    with torch.no_grad():
        following, log_prob = policy.sample(batch.next_observations, next_noise)
        least = model.target_critic(torch.cat([s_next, following], -1).unsqueeze(1))[..., 0].min(1).values
        y = batch.rewards + 0.99 * (1 - batch.terminated) * (least - alpha * log_prob)
    of_critic = ((q[:, 0] - y).square().mean(1) + (q[:, 1] - y).square().mean(1)).sum()
    action, log_prob = policy.sample(batch.observations, noise)
    least = model.critic(torch.cat([s, action], -1).unsqueeze(1))[..., 0].min(1).values
    of_actor = (alpha.detach() * log_prob - least).mean(1).sum()
    of_temperature = -(alpha * (log_prob.detach() - 1.0)).mean(1).sum()
    for (name, parameters), own in zip(parts.items(), (of_critic, of_actor, of_temperature), strict=True):
        for got, expected in zip(found[name], torch.autograd.grad(own, parameters, retain_graph=True), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_bandit_is_solved() -> None:
    """One step pays -(a - 0.4)^2: the critic learns it, and the policy's mode finds its top."""
    torch.manual_seed(0)
    c = SACConfig(environment=settings(), hidden=(32,), actor_rate=3e-3, critic_rate=3e-3, temperature_rate=1e-2)
    model = SAC(c, world())
    optimizer = torch.optim.Adam([{k: v for k, v in g.items() if k != "clip"} for g in model.parameter_groups()])
    for _ in range(800):
        actions = torch.rand(2, 64, 1) * 2 - 1
        pays = -(actions.squeeze(-1) - 0.4).square()
        states = torch.zeros(2, 64, 2)
        optimizer.zero_grad()
        model.losses(
            ActingBatch(states, actions, pays, torch.ones(2, 64), states, torch.zeros(2))
        ).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
    tried = torch.linspace(-0.9, 0.9, 7).view(1, 1, 7, 1).expand(2, 2, 7, 1)
    q = model.critic(torch.cat([torch.zeros(2, 2, 7, 2), tried], -1)).squeeze(-1)
    assert (q + (tried.squeeze(-1) - 0.4).square()).abs().max() < 0.08
    assert (model.export().act(torch.zeros(1, 1, 2)) - 0.4).abs().max() < 0.1


def step(value: float, replicas: int = 2, count: int = 1) -> Batch:
    filled = torch.full((replicas, count), value)
    return Batch(filled.unsqueeze(-1), filled.unsqueeze(-1), filled, filled, filled.unsqueeze(-1))


def test_a_replay_keeps_the_newest_rows_of_each_replica_apart() -> None:
    table = ReplayTable(2, 5, observation_dim=1, action_dim=1, device=CPU)
    offset = torch.tensor([[0.0], [100.0]])
    for value in range(7):
        b = step(float(value))
        table.extend(replace(b, observations=b.observations + offset.unsqueeze(-1)), torch.zeros(2, 1))
    assert len(table) == 5
    drawn = table.gather(table.random_rows(2, 400, torch.Generator().manual_seed(0))).observations.squeeze(-1)
    assert set(drawn[0].tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0}
    assert set(drawn[1].tolist()) == {102.0, 103.0, 104.0, 105.0, 106.0}
    again = ReplayTable(2, 5, observation_dim=1, action_dim=1, device=CPU)
    again.restore(table.state())
    assert torch.equal(again.packed, table.packed)
    assert again.written == 7
    with pytest.raises(ValueError, match="capacity: found 5, expected at least 6"):
        table.extend(step(0.0, count=6), torch.zeros(2, 6))


class Still:
    """Does nothing, and keeps what it saw."""

    def __init__(self) -> None:
        self.starts: list[Tensor] = []

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        return torch.zeros_like(noise)

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        self.starts.append(starts.clone())
        return batch


def test_limits_of_steps_are_no_ends_and_ends_are() -> None:
    with Replay(settings(), 2, 0, CPU) as source:
        policy = Still()
        source.advance(20, policy)
        assert source.steps == source.steps_after(21) == 61
        rows = source.table.gather(torch.arange(61))
        assert float(rows.terminated.sum()) == 0
        started = torch.stack(policy.starts)[:, 0, 0].nonzero().flatten().tolist()
        assert started == [0, STEPS, 2 * STEPS, 3 * STEPS]
        follows = (rows.next_observations[:-1] == rows.observations[1:]).all(-1)
        assert (~follows).nonzero().flatten().tolist() == [STEPS - 1, 2 * STEPS - 1, 3 * STEPS - 1]
    with Replay(settings(env_options={"terminal": 1.0}), 1, 0, CPU) as source:
        source.advance(0, Still())
        rows = source.table.gather(torch.arange(41))
        assert torch.equal(rows.terminated, (rows.next_observations[:, 0].abs() > 1.0).float())
        assert rows.terminated.sum() > 0


@pytest.mark.parametrize("environments", [1, 3])
def test_steps_that_are_made_ahead_are_those_of_the_next_update(environments: int) -> None:
    """Each update finds the same steps in the table, whichever of environment and learner is faster, and none is made in vain."""
    c = settings(environments=environments)
    with Replay(c, 2, 0, CPU) as plain, Replay(c, 2, 0, CPU, updates=20) as ahead:
        for update in range(20):
            plain.advance(update, Still())
            ahead.advance(update, Still())
            assert ahead.steps == plain.steps
            assert torch.equal(ahead.table.returns, plain.table.returns)
            for name, value in plain.table.state().items():
                found = ahead.table.state()[name]
                assert torch.equal(found, value) if isinstance(value, Tensor) else found == value
        made = [[(s.episode, s.length) for row in source._simulations for s in row] for source in (plain, ahead)]
        assert made[0] == made[1]


def test_a_failure_of_a_step_made_ahead_is_told_at_its_update(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynarep.pipeline.playing.replay import _Simulation

    with Replay(settings(), 1, 0, CPU, updates=20) as source:
        source.advance(0, Still())
        source.advance(1, Still())
        assert source._begun_sweep is not None
        source._begun_sweep.stepped.result()

        def fail(self: object, action: object) -> None:
            raise SourceError("a wire is loose")

        monkeypatch.setattr(_Simulation, "step", fail)
        source.advance(2, Still())  # its step was made before the wire came loose; that of update 3 fails
        steps = source.steps
        assert source.state()["steps"] == steps
        for _ in range(2):
            with pytest.raises(SourceError, match="a wire is loose"):
                source.advance(3, Still())
        assert source.steps == steps
        assert source.state()["simulations"][0][0]["physics"] is None


def test_replicas_and_environments_see_different_episodes() -> None:
    with Replay(settings(environments=3), 2, 0, CPU) as source:
        source.advance(0, Still())
        assert source.steps == 42  # sweeps of three
        first = source.table.gather(torch.tensor([0, 1, 2, 300, 301, 302])).observations[:, 0]
        assert len(set(first.tolist())) == 6


@pytest.mark.parametrize("env", ["Hopper-v4", "HalfCheetah-v4", "InvertedPendulum-v4"])
def test_a_restored_simulation_goes_on_to_the_bit(env: str) -> None:
    one, two = make_environment(env), make_environment(env)
    rng = np.random.default_rng(0)
    one.reset(seed=0)
    two.reset(seed=1)
    for _ in range(30):
        one.step(one.action_space.low * 0.1)
    state = simulator_state(one)
    assert state is not None
    restore_simulator(two, state)
    for _ in range(40):
        action = rng.uniform(one.action_space.low, one.action_space.high)
        (a, reward, *ends, _), (b, again, *others, _) = one.step(action), two.step(action)
        assert np.array_equal(a, b)
        assert (reward, ends) == (again, others)


def test_a_simulation_that_cannot_be_stored_is_none() -> None:
    assert simulator_state(make_environment(LINE)) is None


def acting(kind: str = "sac", **values: Any) -> Entry[Any]:
    collection = {"env": LINE, "random_steps": 64, "capacity": 500, **values.pop("environment", {})}
    training = {"updates": 30, "batch_size": 16, "updates_per_chunk": 10, **values.pop("training", {})}
    given = {"kind": kind, "dataset": "none", "demonstrations": "none", "hidden": [16], **values}
    return parse_entry("learn", "name", {**given, "environment": collection, "training": training})


def run(folder: Path) -> Run:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Run("learn/name", 0, 2, folder / "out", folder / "checkpoints")


def episodes(count: int = 3, observation_dim: int = 2, action_dim: int = 1) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            id=f"e{i}",
            observations=rng.normal(size=(11, observation_dim)).astype(np.float32),
            actions=rng.uniform(-1, 1, (10, action_dim)).astype(np.float32) if action_dim else None,
            rewards=np.full(10, i, np.float32),
            terminated=i == 1,
            truncated=i != 1,
        )
        for i in range(count)
    ]


def dataset(folder: Path, name: str = "data", **values: Any) -> Dataset:
    made = episodes(**values)
    count = 0 if made[0].actions is None else made[0].actions.shape[1]
    bounds = ((-1.0,) * count, (1.0,) * count)
    write_dataset(folder / name, name, made, provenance={"cards": {}, "sources": {}}, env=None, bounds=bounds)
    return load_dataset(folder / name)


def trained(folder: Path, entry: Entry[Any], *data: Any) -> dict[str, Tensor]:
    given = [*data, None, None, None, None][:4]
    policy, _ = learn(entry, *given, run(folder))  # type: ignore[arg-type]
    return dict(policy.state_dict())


@pytest.mark.parametrize("env", [LINE, "InvertedPendulum-v4"])
def test_a_run_that_is_stopped_goes_on(tmp_path: Path, env: str, capsys: pytest.CaptureFixture[str]) -> None:
    """To the bit where the simulation can be stored, in a new episode where it cannot, which is said."""
    entry = acting(environment={"env": env}, training={"checkpoint_every": 10})
    whole = trained(tmp_path / "whole", entry)
    with unplugged(13):
        trained(tmp_path / "resumed", entry)
    resumed = trained(tmp_path / "resumed", entry)
    said = capsys.readouterr().err
    assert "resuming at update 10" in said
    assert ("cannot be restored" in said) == (env == LINE)
    same = all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert same == (env != LINE)


@pytest.mark.parametrize(
    ("option", "message"), [("breaks_at", "the motor is too hot"), ("infinite_at", "reward is not fin")]
)
def test_an_environment_that_fails_ends_the_run_with_a_checkpoint(tmp_path: Path, option: str, message: str) -> None:
    entry = acting(environment={"env_options": {option: 77}})
    with pytest.raises(
        ValueError, match=rf"replica 0, environment 0, episode 3, step 17: .*{message}.* update 13 of 30"
    ):
        trained(tmp_path, entry)
    kept = torch.load(tmp_path / "checkpoints" / "learn-name.ckpt", weights_only=True)["dynarep"]
    assert kept["updates"] == 13
    assert kept["source"]["steps"] == 77
    assert len(kept["source"]["table"]["rows"][0]) == 77
    resumed = trained(tmp_path, entry)  # in new episodes, of an environment that counts anew
    assert resumed["normaliser.count"].flatten().tolist() == [94.0, 94.0]


def test_a_dataset_fills_the_replay_and_the_rewards_have_one_scale(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    rewards = {e.id: np.stack([e.rewards, 2 * e.rewards]) for e in data.episodes if e.rewards is not None}
    seen: list[Replay] = []
    init = Replay.__init__

    def keeping(self: Replay, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        seen.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "__init__", keeping)
        trained(tmp_path, acting(dataset="data", rewards="label", reward_bias=-2.0), data, None, None, rewards)
    table = seen[0].table
    assert table.written == 30 + 64 + 30
    rows = table.gather(torch.tensor([15, 500 + 15, 40, 500 + 40]))  # returns 0, 10, 20 and twice these
    factors = [1000 / 20, 1000 / 40]
    assert rows.rewards is not None
    assert rows.rewards[:2].tolist() == pytest.approx([factors[0] - 2, 2 * factors[1] - 2])
    true = 1.0 - rows.next_observations[2:, 0].square()
    torch.testing.assert_close(rows.rewards[2:], true * torch.tensor(factors) - 2.0, atol=1e-4, rtol=1e-4)
    assert float(table.gather(torch.tensor([19])).terminated) == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"environment": {"random_steps": 8}},
            "environment.random_steps: found 8, expected at least training.batch_size, 16",
        ),
        ({"environment": {"capacity": 8}}, "environment.capacity: found 8, expected at least training.batch_size, 16"),
        ({"environment": {"env": "Nothing-v0"}}, "env 'Nothing-v0' cannot be made"),
        (
            {"environment": {"env": "tests.line:Endless-v0"}},
            "has no limit of steps of its own; set environment.max_steps",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"learn\.name: .*{message}"):
        trained(tmp_path, acting(**values))


def test_entries_are_checked() -> None:
    with pytest.raises(ParamsError, match=r"learn\.name\.environment: missing"):
        parse_entry(
            "learn", "name", {"kind": "sac", "dataset": "none", "demonstrations": "none", "training": {"updates": 1}}
        )
    with pytest.raises(ParamsError, match="found dataset 'data' and rewards 'none', expected both or none"):
        acting(dataset="data")
    with pytest.raises(ParamsError, match=r"learn\.name\.dataset: found none, expected a dataset; bc learns from it"):
        parse_entry(
            "learn", "name", {"kind": "bc", "dataset": "none", "demonstrations": "x", "training": {"updates": 1}}
        )


def test_sizes_of_a_dataset_are_those_of_the_environment(tmp_path: Path) -> None:
    rewards = {f"e{i}": np.ones((1, 10), np.float32) * i for i in range(3)}
    for sizes, message in (
        ({"observation_dim": 3}, "observation_dim: found 3 in dataset data, expected 2 as in env tests.line:Line-v0"),
        ({"action_dim": 2}, "action_dim: found 2 in dataset data, expected 1 as in env tests.line:Line-v0"),
        ({"action_dim": 0}, "dataset data has no actions"),
    ):
        data = dataset(tmp_path / message[:20].replace(" ", "-"), **sizes)
        with pytest.raises(ValueError, match=message):
            trained(tmp_path, acting(dataset="data", rewards="label"), data, None, None, rewards)


def test_it_acts_in_one_process(tmp_path: Path) -> None:
    from dynarep.pipeline.training.processes import TrainerConfig

    within = replace(run(tmp_path), trainer=TrainerConfig(devices=2))
    with pytest.raises(ValueError, match="trainer: found 2 processes, expected one"):
        learn(acting(), None, None, None, None, within)


def test_the_policy_knows_its_statistics_and_what_it_saw(tmp_path: Path) -> None:
    policy, facts = learn(acting(), None, None, None, None, run(tmp_path))
    assert isinstance(policy, SquashedGaussian)
    assert policy.normaliser.count.flatten().tolist() == [94.0, 94.0]
    assert facts["interaction"]["steps"] == 94
    assert facts["saw"]["own steps"] == f"94 in {LINE}"
    alone = policy.replica_rows([1])
    observations = torch.randn(1, 5, 2)
    torch.testing.assert_close(alone.act(observations)[0], policy.act(observations)[1])


@pytest.mark.slow
def test_the_line_is_learned(tmp_path: Path) -> None:
    entry = acting(
        hidden=[32, 32],
        actor_rate=1e-3,
        critic_rate=1e-3,
        environment={"random_steps": 200},
        training={"updates": 1500},
    )
    policy, _ = learn(entry, None, None, None, None, run(tmp_path))
    x = torch.tensor([-0.8, -0.3, 0.3, 0.8])
    actions = policy.act(torch.stack([x, torch.ones(4)], -1)[None]).squeeze(-1)
    after = x + 0.5 * actions
    assert after.abs().max() < 0.45
    assert (after.abs() < x.abs()).all()
