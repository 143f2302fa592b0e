"""CDRED while acting: windows of a replay, who learns from which loss, starting from a world model, stopping and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynarep.data.replay import ReplayTable
from dynarep.data.resident import Batch, TransitionTable, Windows
from dynarep.pipeline.entries import Entry
from dynarep.pipeline.latent_actor_critic import LatentBatch
from dynarep.pipeline.learn import learn
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.world_model import WorldModelArchitecture, WorldModelEncoder
from dynarep.pipeline.methods.learners.cdred import CDRED, CDREDConfig, distillation_loss
from dynarep.pipeline.nn.distillation import DistillationConfig, coupled_reward
from dynarep.pipeline.nn.networks import Normaliser
from dynarep.pipeline.nn.world_model import expected_value, moved_scale, two_hot, value_range
from dynarep.pipeline.playing.replay import Replay
from tests.entries import unplugged
from tests.test_sac import acting, dataset, run, settings, trained, world

torch.set_num_threads(1)
CPU = torch.device("cpu")
REWARD = {"hidden": (16,), "target_hidden": (8,), "embedding_dim": 4}
SMALL: dict[str, Any] = {"hidden": (12,), "latent_dim": 16, "head_hidden": (14,), "values": 3}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def filled(rows: int, capacity: int, stride: int = 1, starts: set[int] | None = None) -> ReplayTable:
    """Two replicas; row i of a replica is numbered i, of the second one 100 + i."""
    table = ReplayTable(2, capacity, observation_dim=1, action_dim=1, device=CPU, stride=stride)
    for first in range(0, rows, stride):
        number = torch.arange(first, first + stride).float()
        both = torch.stack([number, 100.0 + number])
        begins = torch.tensor([float(i in (starts or {0})) for i in range(first, first + stride)]).expand(2, -1)
        x = both.unsqueeze(-1)
        table.extend(Batch(x, x, both, torch.zeros_like(both), x + stride), begins)
    return table


def seen(table: ReplayTable, rows: list[int], steps: int = 3) -> list[list[float]]:
    """What each window holds within its episode, the first replica's and then the second's."""
    index = torch.tensor([rows, [table.capacity + i for i in rows]])
    found = table.windows(index, steps)
    assert torch.equal(found.start, found.actions[:, :, 0])
    return [
        [float(a) for a, inside in zip(actions, within, strict=True) if inside]
        for actions, within in zip(found.actions.flatten(0, 1).squeeze(-1), found.within.flatten(0, 1), strict=True)
    ]


def test_windows_of_a_replay_end_where_an_episode_does_and_at_the_newest_row() -> None:
    table = filled(7, 10, starts={0, 4})
    assert seen(table, [0, 2, 3, 4, 5, 6]) == [
        [0, 1, 2],
        [2, 3],
        [3],
        [4, 5, 6],
        [5, 6],
        [6],
        [100, 101, 102],
        [102, 103],
        [103],
        [104, 105, 106],
        [105, 106],
        [106],
    ]


def test_windows_of_a_full_replay_go_around_its_end_and_not_from_the_newest_row_to_the_oldest() -> None:
    table = filled(13, 10)
    assert seen(table, [9, 2, 1, 3])[:4] == [[9, 10, 11], [12], [11, 12], [3, 4, 5]]


def test_windows_follow_one_environment_of_several() -> None:
    table = filled(9, 12, stride=3, starts={0, 1, 2, 7})
    assert seen(table, [0, 1, 2, 4])[:4] == [[0, 3, 6], [1, 4], [2, 5, 8], [4]]


def test_a_restored_replay_has_the_same_windows() -> None:
    table, again = filled(13, 10, starts={0, 5}), ReplayTable(2, 10, observation_dim=1, action_dim=1, device=CPU)
    again.restore(table.state())
    assert seen(table, list(range(10))) == seen(again, list(range(10)))


def test_recorded_rows_of_a_replay_are_no_episodes() -> None:
    class Keeps:
        def observe(self, batch: Batch, starts: Tensor) -> Batch:
            return batch

    with Replay(settings(), 2, 0, CPU) as source:
        zeros = torch.zeros(2, 5)
        states = torch.zeros(2, 5, 2)
        source.fill(Batch(states, zeros.unsqueeze(-1), zeros, zeros, states), Keeps())  # type: ignore[arg-type]
        assert source.table.windows(torch.tensor([[0, 1], [300, 301]]), 3).within.tolist() == [[[1, 0, 0]] * 2] * 2


def make(replicas: int = 2, **values: Any) -> CDRED:
    c = CDREDConfig(**{"environment": settings(), "reward": DistillationConfig(**REWARD), **SMALL, **values})  # type: ignore[arg-type]
    model = CDRED(c, world(replicas=replicas))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def drawn(model: CDRED, size: int = 5) -> LatentBatch:
    c, steps = model.config, model.config.horizon
    within = torch.ones(2, 2 * size, steps)
    within[0, 1, 1:] = 0
    windows = Windows(
        torch.randn(2, 2 * size, 2),
        torch.rand(2, 2 * size, steps, 1) * 2 - 1,
        torch.randn(2, 2 * size, steps, 2),
        within,
    )
    targets = torch.randint(c.reward.targets, (2, size * steps, 2))
    return LatentBatch(windows, targets, torch.tensor([[0, 2], [1, 2]]), torch.zeros(2))


def test_each_network_learns_from_its_own_losses() -> None:
    model = make().eval()
    batch = drawn(model)
    result = model.losses(batch)

    def moved(loss: Tensor, module: torch.nn.Module) -> bool:
        found = torch.autograd.grad(loss.sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
        return any(g is not None and bool(g.abs().sum() > 0) for g in found)

    parts = {
        "encoder": model.policy.encoder,
        "dynamics": model.policy.dynamics,
        "critic": model.critic,
        "predictors": model.distillation.predictors,
        "prior": model.policy.prior,
    }
    assert all(moved(result.loss, part) for part in parts.values())
    policy, _ = model.policy_losses(torch.randn(2, 10, 4, 16), batch)
    assert {name for name, part in parts.items() if moved(policy, part)} == {"prior"}
    start = model.policy.latents(batch.windows.start)
    point = torch.cat([start.unsqueeze(2).expand(-1, -1, 3, -1), batch.windows.actions], -1)
    distilled = model.distilled(point, batch)
    assert {name for name, part in parts.items() if moved(distilled, part)} == {"encoder", "predictors"}
    assert not model.rewards(point).requires_grad
    fixed = [*model.target_critic.parameters(), *model.distillation.targets.parameters()]
    assert not any(parameter.requires_grad for parameter in fixed)
    groups = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert groups == {id(p) for p in model.parameters() if p.requires_grad}


def test_one_step_of_all_losses_by_hand() -> None:
    """H = 1, so a window is a transition: the sum of the losses, from the networks alone."""
    model = make(horizon=1).eval()
    batch = drawn(model)
    w, c, policy = batch.windows, model.config, model.policy
    torch.manual_seed(5)
    found = model.losses(batch)
    torch.manual_seed(5)
    with torch.no_grad():
        z, z_next = policy.latents(w.start), policy.latents(w.following[:, :, 0])
        a = w.actions[:, :, 0]
        predicted = model.policy.dynamics(torch.cat([z, a], -1))
        consistency = (predicted - z_next).square().mean((1, 2))
        expert, behaviour, targets = model.distillation.predictions(torch.cat([z, a], -1))
        reward = coupled_reward(expert, behaviour, targets, 0.9, 0.8)
        gaps = []
        for side, prediction in enumerate((expert[:, :5], behaviour[:, 5:])):
            for r in range(2):
                own = targets[r][batch.reward[r, :, side], torch.arange(5 * side, 5 * side + 5)]
                gaps.append((prediction[r] - own).square().mean())
        distilled = torch.stack(gaps).view(2, 2).sum(0)
        tried, _ = policy.prior(z_next, torch.randn(2, 10, 1))
        y = reward + 0.99 * expected_value(model.target_critic(z_next, tried))[:, [0, 2]].min(1).values
        log_p = model.critic(z, a).log_softmax(-1)
        value = -(two_hot(y).unsqueeze(1) * log_p).sum(-1).mean((1, 2))
        both = torch.stack([z, predicted], 2).flatten(1, 2)
        acted, density = policy.prior(both, torch.randn(2, 20, 1))
        q = expected_value(model.critic(both, acted))[:, [1, 2]].min(1).values.view(2, 10, 2)
        scale = torch.ones(2).lerp(value_range(q[:, :, 0]), 0.01)
        terms = 1e-4 * density.view(2, 10, 2) - q / scale.view(2, 1, 1)
        of_policy = (terms * torch.tensor([1.0, 0.5])).mean((1, 2))
    expected = 20 * consistency + 0.1 * distilled + 0.1 * value + of_policy
    torch.testing.assert_close(found.loss.detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.value_scale, scale)
    assert c.gamma == 0.99


def test_steps_beyond_the_end_of_an_episode_do_not_count() -> None:
    model = make().eval()
    batch = drawn(model)
    within = torch.ones_like(batch.windows.within)
    within[:, :, 1:] = 0
    batch = replace(batch, windows=replace(batch.windows, within=within))
    torch.manual_seed(1)
    one = model.losses(batch).loss
    model.value_scale.fill_(1.0)
    changed = batch.windows.following.clone()
    changed[:, :, 1:] = 7.0
    torch.manual_seed(1)
    other = model.losses(replace(batch, windows=replace(batch.windows, following=changed))).loss
    torch.testing.assert_close(one, other)


def test_the_distillation_loss_by_hand() -> None:
    errors = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]])
    within = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    expected = torch.tensor([[(1 + 2 / 2 + 3) / 4, (5 + 6 / 2 + 7 + 8 / 2) / 4]])
    torch.testing.assert_close(distillation_loss(errors, within, 0.5), expected)


def test_the_expert_is_paid_more_than_the_agent_where_both_differ() -> None:
    """Known answer: the expert goes right, the agent left; after some updates only the expert's side pays."""
    model = make(learning_rate=3e-3)
    batch = drawn(model, 16)
    side = torch.cat([torch.ones(2, 16), -torch.ones(2, 16)], 1)
    windows = replace(
        batch.windows, actions=side[:, :, None, None].expand(-1, -1, 3, 1).contiguous(), within=torch.ones(2, 32, 3)
    )
    batch = replace(batch, windows=windows)
    groups = [{k: v for k, v in group.items() if k != "clip"} for group in model.parameter_groups()]
    optimizer = torch.optim.Adam(groups)
    for _ in range(300):
        optimizer.zero_grad()
        batch = replace(batch, reward=torch.randint(5, (2, 16 * 3, 2)))
        result = model.losses(batch)
        result.loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
    assert (result.metrics["expert_reward"] > result.metrics["agent_reward"]).all()
    acts = model.policy.act(batch.windows.start)
    assert acts.mean() > 0.5, "what pays is to the right, and the policy goes there"


def test_the_scale_of_values_follows_their_range() -> None:
    values = torch.linspace(0.0, 100.0, 101).expand(2, -1)
    torch.testing.assert_close(moved_scale(torch.ones(2), values), torch.full((2,), 0.99 + 0.9))


def entry_of(**values: Any) -> Entry[Any]:
    reward = {name: list(v) if isinstance(v, tuple) else v for name, v in REWARD.items()}
    small = {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL.items()}
    return acting("cdred", demonstrations="expert", **{**small, "reward": reward, **values})


def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    experts = dataset(tmp_path, "expert", observation_dim=4)
    entry = entry_of(environment={"env": "InvertedPendulum-v4"}, training={"checkpoint_every": 10})
    whole = trained(tmp_path / "whole", entry, None, experts)
    with unplugged(13):
        trained(tmp_path / "resumed", entry, None, experts)
    resumed = trained(tmp_path / "resumed", entry, None, experts)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curve = (tmp_path / "whole" / "out" / "curves.tsv").read_text().split("\n")
    assert "gradient_norm" in curve[0]


def pretrained(latent_dim: int = 16) -> WorldModelEncoder:
    a = WorldModelArchitecture(
        replicas=1,
        observation_dim=2,
        action_low=(-1.0,),
        action_high=(1.0,),
        hidden=(12,),
        latent_dim=latent_dim,
        dynamics_hidden=(14,),
    )
    encoder = WorldModelEncoder(a)
    encoder.normaliser = Normaliser(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    return encoder.eval().requires_grad_(False)


def test_it_starts_from_a_world_model() -> None:
    encoder = pretrained()
    c = CDREDConfig(environment=settings(), reward=DistillationConfig(**REWARD), **SMALL)  # type: ignore[arg-type]
    model = CDRED(c, world(encoder=encoder))
    states = torch.randn(1, 6, 2)
    for replica in range(2):
        torch.testing.assert_close(model.policy.latents(states)[replica], encoder.embed(states)[0])
    actions = torch.rand(1, 6, 1)
    ahead = encoder.step(encoder.embed(states), actions)
    z = model.policy.latents(states)
    torch.testing.assert_close(model.policy.step(z, actions.expand(2, -1, -1))[1], ahead[0])
    before = model.policy.normaliser.mean.clone()
    row = torch.zeros(2, 3)
    model.observe(Batch(torch.full((2, 3, 2), 9.0), row.unsqueeze(-1), row, row, torch.zeros(2, 3, 2)), row)
    assert torch.equal(model.policy.normaliser.mean, before), "what was pretrained reads what it read"


def test_a_world_model_of_another_size_is_refused() -> None:
    c = CDREDConfig(environment=settings(), reward=DistillationConfig(**REWARD), **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"encoder: found latent_dim 24, expected 16"):
        CDRED(c, world(encoder=pretrained(24)))


def test_demonstrations_without_actions_are_refused(tmp_path: Path) -> None:
    experts = dataset(tmp_path, "expert", action_dim=0)
    with pytest.raises(ValueError, match="dataset expert has no actions; cdred imitates actions"):
        learn(entry_of(), None, experts, None, None, run(tmp_path))


def test_a_batch_is_half_of_the_demonstrations(tmp_path: Path) -> None:
    model = make()
    experts = dataset(tmp_path, "expert")
    table = TransitionTable.from_episodes(experts.episodes)
    replay = filled(20, 30)
    replay.observation_dim, replay.packed = 2, torch.full((60, 7), -50.0)
    sources = Sources({"demonstrations": lambda: table, "dataset": lambda: replay}, 2, 6, CPU)
    batch = model.batch(sources, torch.Generator().manual_seed(0))
    assert batch.windows.start.shape == (2, 12, 2)
    assert (batch.windows.start[:, 6:] == -50).all()
    assert (batch.windows.start[:, :6] > -50).all()
    assert batch.reward.shape == (2, 18, 2)
    assert len(set(batch.chosen[0].tolist())) == 2
