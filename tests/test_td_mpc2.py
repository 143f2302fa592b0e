"""TD-MPC2: the reward head by hand, who learns from which loss, refusals, stopping and resuming, a line with a known answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynarep.configs.params import ParamsError
from dynarep.data.resident import TransitionTable, Windows
from dynarep.pipeline.entries import Entry, parse_entry
from dynarep.pipeline.latent_actor_critic import LatentActorCritic, LatentBatch, joined
from dynarep.pipeline.learn import learn
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.learners.cdred import CDRED
from dynarep.pipeline.methods.learners.td_mpc2 import TDMPC2, TDMPC2Config, reward_loss
from dynarep.pipeline.methods.policies.latent_gaussian import LatentGaussian
from dynarep.pipeline.methods.policies.latent_planner import LatentPlanner
from dynarep.pipeline.nn.distillation import CoupledDistillation
from dynarep.pipeline.nn.world_model import BINS, RewardHead, expected_value, two_hot
from tests.entries import unplugged
from tests.test_cdred_online import SMALL, entry_of, filled, pretrained
from tests.test_sac import acting, dataset, episodes, run, settings, trained, world

torch.set_num_threads(1)
CPU = torch.device("cpu")
PLANNING = {"iterations": 2, "samples": 12, "elites": 4, "prior_samples": 4}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(**values: Any) -> TDMPC2:
    c = TDMPC2Config(**{"environment": settings(), **SMALL, **values})
    model = TDMPC2(c, world())
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def drawn(model: TDMPC2, size: int = 6, **values: Tensor) -> LatentBatch:
    steps = model.config.horizon
    given = {
        "start": torch.randn(2, size, 2),
        "actions": torch.rand(2, size, steps, 1) * 2 - 1,
        "following": torch.randn(2, size, steps, 2),
        "within": torch.ones(2, size, steps),
        "rewards": torch.randn(2, size, steps),
        **values,
    }
    return LatentBatch(Windows(**given), None, torch.tensor([[0, 2], [1, 2]]), torch.zeros(2))


def test_the_loss_of_the_reward_head_by_hand() -> None:
    """Logits of 0 cost log 101 whatever is paid; certainty of the bin that is paid costs nothing."""
    rewards, within = torch.tensor([[[0.0, 1.0, -3.0], [7.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 1, 1], [1, 1, 0]]])
    found = reward_loss(torch.zeros(1, 2, 3, BINS), rewards, within, 0.5)
    torch.testing.assert_close(found, torch.tensor([math.log(101) * (2 * 1 + 2 * 0.5 + 1 * 0.25) / (2 * 3)]))
    sure = torch.full((1, 2, 3, BINS), -1e4)
    sure[..., 50] = 0.0  # the bin of 0
    assert float(reward_loss(sure, torch.zeros(1, 2, 3), within, 0.5)) == 0.0
    half = two_hot(torch.tensor(0.5))
    spread = half.clamp(min=1e-30).log().expand(1, 1, 1, -1)
    entropy = -(half[half > 0] * half[half > 0].log()).sum()
    torch.testing.assert_close(reward_loss(spread, torch.full((1, 1, 1), 0.5), torch.ones(1, 1, 1), 0.5), entropy[None])


def test_a_reward_head_starts_at_0_and_learns_what_is_paid() -> None:
    head = RewardHead(2, 3, (16,))
    points = torch.rand(2, 64, 3) * 2 - 1
    assert not head(points).abs().max() > 1e-6
    paid = torch.stack([2.0 * points[0, :, 0], 5.0 - points[1, :, 1]])
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        reward_loss(head.logits(points).unsqueeze(2), paid.unsqueeze(2), torch.ones(2, 64, 1), 0.5).sum().backward()
        optimizer.step()
    assert (head(points) - paid).abs().mean() < 0.1


def test_windows_carry_rewards_where_the_table_has_them() -> None:
    replay = filled(7, 10, starts={0, 4}).windows(torch.tensor([[0, 4], [10, 14]]), 3)
    assert replay.rewards is not None
    assert replay.rewards.tolist() == [[[0, 1, 2], [4, 5, 6]], [[100, 101, 102], [104, 105, 106]]]
    assert torch.equal(replay.rewards, replay.actions.squeeze(-1))
    recorded = episodes()
    with_rewards = TransitionTable.from_episodes(recorded)
    assert with_rewards.windows(torch.tensor([[10]]), 2).rewards.tolist() == [[[1.0, 1.0]]]  # type: ignore[union-attr]
    for episode in recorded:
        object.__setattr__(episode, "rewards", None)
    without = TransitionTable.from_episodes(recorded).windows(torch.tensor([[0], [1]]), 3)
    assert without.rewards is None
    other = Windows(**{**vars(without), "rewards": torch.zeros(2, 1, 3)})
    assert joined([without, other]).rewards is None
    assert joined([other, other]).rewards.shape == (2, 2, 3)  # type: ignore[union-attr]


def test_each_network_learns_from_its_own_losses() -> None:
    model = make().eval()
    batch = drawn(model)
    result = model.losses(batch)
    p = model.policy
    parts = {"encoder": p.encoder, "dynamics": p.dynamics, "critic": p.critic, "head": p.reward, "prior": p.prior}

    def moved(loss: Tensor) -> set[str]:
        names = set()
        for name, part in parts.items():
            found = torch.autograd.grad(loss.sum(), list(part.parameters()), retain_graph=True, allow_unused=True)
            names |= {name} if any(g is not None and bool(g.abs().sum() > 0) for g in found) else set()
        return names

    assert moved(result.loss) == set(parts)
    points = torch.cat([p.latents(batch.windows.start).unsqueeze(2).expand(-1, -1, 3, -1), batch.windows.actions], -1)
    of_reward, paid = model.reward_losses(points, batch)
    assert moved(of_reward.loss) == {"encoder", "head"}
    assert paid is batch.windows.rewards
    groups = {id(x) for group in model.parameter_groups() for x in group["params"]}
    assert groups == {id(x) for x in model.parameters() if x.requires_grad}


def test_values_are_those_of_the_recorded_reward_and_the_policy_climbs_the_mean() -> None:
    """H = 1: the losses of the reward, the values and the policy from the networks alone."""
    model = make(horizon=1).eval()
    batch, p = drawn(model), model.policy
    w = batch.windows
    torch.manual_seed(5)
    found = model.losses(batch)
    torch.manual_seed(5)
    with torch.no_grad():
        z, z_next, a = p.latents(w.start), p.latents(w.following[:, :, 0]), w.actions[:, :, 0]
        predicted = p.step(z, a)
        consistency = (predicted - z_next).square().mean((1, 2))
        paid = w.rewards[:, :, 0]  # type: ignore[index]
        logits = p.reward.logits(torch.cat([z, a], -1))  # type: ignore[operator]
        reward = -(two_hot(paid) * logits.log_softmax(-1)).sum(-1).mean(1)
        tried, _ = p.prior(z_next, torch.randn(2, 6, 1))
        y = paid + 0.99 * expected_value(model.target_critic(z_next, tried))[:, [0, 2]].min(1).values
        value = -(two_hot(y).unsqueeze(1) * model.critic(z, a).log_softmax(-1)).sum(-1).mean((1, 2))
        both = torch.stack([z, predicted], 2).flatten(1, 2)
        acted, density = p.prior(both, torch.randn(2, 12, 1))
        q = expected_value(model.critic(both, acted))[:, [1, 2]].mean(1).view(2, 6, 2)
        terms = 1e-4 * density.view(2, 6, 2) - q / model.value_scale.view(2, 1, 1)
        policy = (terms * torch.tensor([1.0, 0.5])).mean((1, 2))
    expected = 20 * consistency + 0.1 * reward + 0.1 * value + policy
    torch.testing.assert_close(found.loss.detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.metrics["reward"], paid.mean(1))


def test_one_update_moves_what_it_should() -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([{k: v for k, v in g.items() if k != "clip"} for g in model.parameter_groups()])
    model.losses(drawn(model)).loss.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    model.after_update()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    seen = ("policy.normaliser", "policy.low", "policy.high")
    still = {name for name in before if name.startswith(seen)} | {"value_scale"}  # values within 1 of each other
    assert moved == set(before) - still
    assert any(name.startswith("target_critic") for name in moved)


def entry(**values: Any) -> Entry[Any]:
    small = {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL.items()}
    return acting("td_mpc2", **{**small, **values})


def test_entries_parse_and_others_are_refused() -> None:
    found = entry(planning={"samples": 12, "elites": 3, "prior_samples": 0})
    assert (found.config.planning.samples, found.config.planning.iterations, found.config.horizon) == (12, 6, 3)
    assert entry().config.planning is None
    with pytest.raises(ParamsError, match=r"planning: .*elites: found 64, expected at most samples, 12"):
        entry(planning={"samples": 12})
    with pytest.raises(ParamsError, match=r"learn\.name\.environment: missing"):
        parse_entry(
            "learn",
            "name",
            {"kind": "td_mpc2", "dataset": "none", "demonstrations": "none", "training": {"updates": 1}},
        )
    for key in ("demonstrations", "dataset"):
        with pytest.raises(
            ParamsError, match=rf"{key}: found 'some', expected none; td_mpc2 reads its own steps alone"
        ):
            entry(**{key: "some"})
    with pytest.raises(ParamsError, match="rewards: found 'label', expected none; td_mpc2 reads no rewards"):
        entry(rewards="label")


def test_a_batch_has_windows_of_the_replay_with_their_rewards() -> None:
    model, replay = make(), filled(20, 30)
    sources = Sources({"dataset": lambda: replay}, 2, 6, CPU)
    batch = model.batch(sources, torch.Generator().manual_seed(0))
    assert batch.windows.actions.shape == (2, 6, 3, 1)
    inside = batch.windows.within.bool()
    assert torch.equal(batch.windows.rewards[inside], batch.windows.actions.squeeze(-1)[inside])  # type: ignore[index]
    assert batch.reward is None


def test_both_learners_share_all_but_the_reward() -> None:
    own = {name for name in vars(TDMPC2) if callable(getattr(TDMPC2, name)) and not name.startswith("_")}
    assert own == {"needs", "saw", "reward_losses", "climbed", "Config"}
    assert issubclass(CDRED, LatentActorCritic)
    q = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]])
    assert TDMPC2.climbed(None, q).tolist() == [[2.0, 3.0]]  # type: ignore[arg-type]
    assert CDRED.climbed(None, q).tolist() == [[1.0, 2.0]]  # type: ignore[arg-type]


def test_it_starts_from_a_world_model() -> None:
    encoder, states = pretrained(), torch.randn(1, 6, 2)
    model = TDMPC2(TDMPC2Config(environment=settings(), **SMALL), world(encoder=encoder))
    torch.testing.assert_close(model.policy.latents(states)[1], encoder.embed(states)[0])


@pytest.mark.parametrize("planning", [None, PLANNING])
@pytest.mark.parametrize("kind", ["td_mpc2", "cdred"])
def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path: Path, kind: str, planning: dict[str, int] | None) -> None:
    experts = dataset(tmp_path, "expert", observation_dim=4) if kind == "cdred" else None
    chosen = entry if kind == "td_mpc2" else entry_of
    values: dict[str, Any] = {"environment": {"env": "InvertedPendulum-v4"}, "training": {"checkpoint_every": 10}}
    given = chosen(planning=planning, **values)
    whole, _ = learn(given, None, experts, None, None, run(tmp_path / "whole"))
    with unplugged(13):
        trained(tmp_path / "resumed", given, None, experts)
    resumed = trained(tmp_path / "resumed", given, None, experts)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())
    if planning is None:
        assert isinstance(whole, LatentGaussian)
    else:
        assert isinstance(whole, LatentPlanner)
        assert isinstance(whole.reward, RewardHead if kind == "td_mpc2" else CoupledDistillation)
        assert whole.architecture.planning is not None
        assert whole.architecture.planning.samples == 12


@pytest.mark.parametrize("snapshots", [1, 3])
def test_snapshots_change_nothing(tmp_path: Path, snapshots: int) -> None:
    plain = trained(tmp_path / "plain", entry())
    found = trained(tmp_path / "more", entry(training={"snapshots": snapshots}))
    assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("planning", [None, {**PLANNING, "samples": 32}])
def test_the_line_is_learned(tmp_path: Path, planning: dict[str, int] | None) -> None:
    """x moves by half the action and pays 1 - x^2: the best action leads as near to 0 as it can."""
    given = entry(
        planning=planning,
        hidden=[32],
        latent_dim=32,
        head_hidden=[32],
        values=2,
        horizon=2,
        gamma=0.5,
        learning_rate=3e-3,
        encoder_rate_scale=1.0,
        environment={"random_steps": 400, "capacity": 1000},
        training={"updates": 300, "batch_size": 64},
    )
    policy, facts = learn(given, None, None, None, None, run(tmp_path))
    x = torch.tensor([-0.8, -0.3, 0.3, 0.8])
    after = x + 0.5 * policy.act(torch.stack([x, torch.ones(4)], -1)[None]).squeeze(-1)
    best = x - x.clamp(-0.5, 0.5)
    assert (after - best).abs().mean() < 0.2
    assert after.abs().mean() < 0.7 * x.abs().mean()
    assert facts["saw"]["other"] == "the true reward of its own steps"
