from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.data.resident import TransitionTable
from dynarep.data.schema import Episode
from dynarep.data.shards import load_dataset, write_dataset
from dynarep.pipeline import measures as module
from dynarep.pipeline.artifacts.pretrained import PretrainedIntent
from dynarep.pipeline.artifacts.storage import ArtifactError
from dynarep.pipeline.measures import distances_over_time, map_latents, step_calibration
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.icvf import (
    ICVF,
    KINDS,
    GoalBatch,
    ICVFConfig,
    IntentArchitecture,
    IntentEncoder,
    icvf_loss,
    intent_advantage,
    value_over_time,
)
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.training.loop import Run, TrainingConfig
from tests.entries import entry

torch.set_num_threads(1)

GAMMA = 0.9


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def chain_value(states: int) -> Tensor:
    """V*(s, g) of a chain that only moves forward."""
    ahead = torch.arange(states).double() - torch.arange(states).double().unsqueeze(1)
    return torch.where(ahead >= 0, -(1 - GAMMA**ahead) / (1 - GAMMA), -1 / (1 - GAMMA))


def test_values_of_a_chain_are_a_fixed_point() -> None:
    value = chain_value(8)
    goldens = [0, -1, -1.9, -2.71, -3.439, -4.0951, -4.68559, -5.217031]
    torch.testing.assert_close(value[0], torch.tensor(goldens).double())

    s, g = torch.cartesian_prod(torch.arange(7), torch.arange(8)).T
    s, g = s[g >= s], g[g >= s]
    reached = (s == g).double()

    def evaluate(table: Tensor) -> tuple[Tensor, Tensor]:
        now, following = (table[i, g].expand(1, 2, -1) for i in (s, s + 1))
        reward, discount = (reached - 1)[None], (GAMMA * (1 - reached))[None]
        advantage = intent_advantage(reward, discount, following, now)
        target = reward.unsqueeze(1) + discount.unsqueeze(1) * following
        return icvf_loss(now, target, advantage, 0.9), advantage

    loss, advantage = evaluate(value)
    assert loss.item() < 1e-18
    assert advantage.abs().max() < 1e-9
    loss, advantage = evaluate(1.1 * value)
    assert loss.item() > 0.01
    assert advantage.abs().max() > 0.1


class TwoArms:
    """From state 0 the data goes left (1, 2, 3) or right (4, 5, 6) equally often; 3 and 6 stay where they are."""

    moves = ((0, 1), (0, 4), (1, 2), (2, 3), (3, 3), (4, 5), (5, 6), (6, 6))
    left, right = 3, 6

    def solve(self, expectile: float, iterations: int = 300) -> Tensor:
        """V(s, g, z) (7, 7, 7) by Newton steps on the loss with exact expectations; members start apart."""
        moves = torch.tensor(self.moves)
        move, g, z = torch.cartesian_prod(*map(torch.arange, (len(moves), 7, 7))).T
        s, s_next = moves[move].T
        value = -10 * torch.rand(1, 2, 7, 7, 7).double()
        value.requires_grad_()
        for _ in range(iterations):
            with torch.no_grad():
                target = self.target(value, s, s_next, g, g, z)
                reward, discount = self.outcome(s, z)
                advantage = intent_advantage(reward, discount, value[:, :, s_next, z, z], value[:, :, s, z, z])
            loss = icvf_loss(value[:, :, s, g, z], target, advantage, expectile).sum()
            (gradient,) = torch.autograd.grad(loss, value, create_graph=True)
            (curvature,) = torch.autograd.grad(gradient.sum(), value)  # the Hessian is diagonal
            with torch.no_grad():
                value -= gradient / curvature
        assert (value[0, 0] - value[0, 1]).abs().max() < 1e-6
        return value[0, 0].detach()

    @staticmethod
    def outcome(s: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        reached = (s == goal).double()[None]
        return reached - 1, GAMMA * (1 - reached)

    def target(self, value: Tensor, s: Tensor, s_next: Tensor, goal: Tensor, g: Tensor, z: Tensor) -> Tensor:
        reward, discount = self.outcome(s, goal)
        return reward.unsqueeze(1) + discount.unsqueeze(1) * value[:, :, s_next, g, z]


@pytest.mark.parametrize("expectile", [0.5, 0.9, 0.99])
def test_an_intent_sees_the_outcomes_of_its_own_moves(expectile: float) -> None:
    arms = TwoArms()
    value = arms.solve(expectile)
    never = -1 / (1 - GAMMA)
    towards = -1 + GAMMA * -(1 - GAMMA**2) / (1 - GAMMA)  # -2.71 with the first move
    for own, other in ((arms.left, arms.right), (arms.right, arms.left)):
        own_end, other_end = value[0, own, own], value[0, other, own]
        torch.testing.assert_close(own_end.item(), expectile * towards + (1 - expectile) * never, atol=1e-3, rtol=0)
        torch.testing.assert_close(other_end.item(), (1 - expectile) * towards + expectile * never, atol=1e-3, rtol=0)
    torch.testing.assert_close(value[1, 3], torch.full((7,), towards + 0.81).double(), atol=1e-3, rtol=0)  # -1.9


def random_batch(batch: int = 32, replicas: int = 2, dim: int = 3) -> GoalBatch:
    s, s_next, g, z = 3 + 2 * torch.randn(4, replicas, batch, dim)
    reached = (torch.rand(2, replicas, batch) < 0.4).float()
    return GoalBatch(s, s_next, g, z, reached[0], reached[1])


def learner(**values: Any) -> ICVF:
    config = ICVFConfig(**{"hidden": (16,), "latent_dim": 8, "gamma": GAMMA, **values})
    model = ICVF(config, 2, torch.full((3,), 3.0), torch.tensor([1.0, 2.0, 3.0]))
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # as if it had lagged behind
    return model


def test_advantage_takes_the_smaller_next_value_and_the_mean_value() -> None:
    following, now = torch.tensor([[[-3.0, -1.0], [-2.0, -4.0]]]), torch.tensor([[[-4.0, 0.0], [-6.0, -1.0]]])
    reward, discount = torch.tensor([[-1.0, 0.0]]), torch.tensor([[0.9, 0.0]])
    advantage = intent_advantage(reward, discount, following, now)
    torch.testing.assert_close(advantage, torch.tensor([[-1 - 2.7 + 5, 0.5]]))


def test_loss_by_hand() -> None:
    value, target = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), torch.tensor([[[2.0, 0.0], [3.0, 3.0]]])
    loss = icvf_loss(value, target, torch.tensor([[-1.0, 0.0]]), 0.9)
    torch.testing.assert_close(loss, torch.tensor([(0.1 * 1 + 0.9 * 4) / 2 + (0.1 * 9 + 0.9 * 4) / 2]))


@pytest.mark.parametrize("variant", ["icvf", "ailot"])
@pytest.mark.parametrize("normalise", [True, False])
def test_shared_evaluations_are_the_separate_ones(variant: str, normalise: bool) -> None:
    model, batch = learner(variant=variant, normalise=normalise), random_batch()
    raw = (batch.observations, batch.next_observations, batch.outcomes, batch.intents)
    standard = [(x - 3) / (torch.tensor([1.0, 2.0, 3.0]) + 1e-3) if normalise else x for x in raw]
    s, s_next, g, z = standard
    reward, reward_z = batch.reached_outcome - 1, batch.reached_intent - 1
    discount, discount_z = GAMMA * -reward, GAMMA * -reward_z
    with torch.no_grad():
        target = reward.unsqueeze(1) + discount.unsqueeze(1) * model.target(s_next, g, z)
        following, now = model.target(s_next, z, z), model.target(s, z, z)
        advantage = reward_z + discount_z * following.amin(1) - now.mean(1)
        weight = torch.where(advantage < 0, 0.1, 0.9)
        value = model.online(s, g, z)
        loss = (weight.unsqueeze(1) * (target - value).square()).mean(2).sum(1)
    result = model.losses(batch)
    assert (advantage < 0).any()
    assert (advantage >= 0).any()
    torch.testing.assert_close(result.loss, loss, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.metrics["advantage"], advantage.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.metrics["value"], value.mean((1, 2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.metrics["accepted"], (advantage >= 0).float().mean(1))


def test_value_is_multilinear() -> None:
    model, batch = learner(), random_batch()
    s, g, z = (x.unsqueeze(1) for x in (batch.observations, batch.outcomes, batch.intents))
    v = model.online
    t = v.modulation(v.psi(z))
    a, b = v.state_branch(t * v.phi(s)), v.outcome_branch(t * v.psi(g))
    value = v(batch.observations, batch.outcomes, batch.intents)
    assert value.shape == (2, 2, 32)
    torch.testing.assert_close(value, (a * b).sum(-1))
    for features in (v.phi(s), v.psi(g), t):
        assert (features >= 0).all()


def test_layer_norm_bounds_the_value_of_the_ailot_variant() -> None:
    model = learner(variant="ailot")
    with torch.no_grad():
        model.online.state_branch.weight.mul_(1e3)
    s, g, z = 100 * torch.randn(3, 2, 50, 3)
    value = model.online(s, g, z).abs()
    assert value.max() <= 8 + 1e-3  # the latent dimension
    assert value.max() > 1


def test_value_is_the_same_in_another_basis_of_the_branches() -> None:
    model, batch = learner(), random_batch()
    online, inputs = model.online, (batch.observations, batch.outcomes, batch.intents)
    for bias in (online.state_branch.bias, online.outcome_branch.bias):
        torch.nn.init.normal_(bias)  # type: ignore[arg-type]
    before = online(*inputs)
    basis = torch.eye(8) + 0.2 * torch.randn(8, 8)
    with torch.no_grad():
        for branch, change in ((online.state_branch, basis), (online.outcome_branch, torch.linalg.inv(basis).T)):
            branch.weight.copy_(branch.weight @ change)
            assert branch.bias is not None
            branch.bias.copy_(branch.bias @ change)
    torch.testing.assert_close(online(*inputs), before, atol=1e-3, rtol=1e-4)
    with torch.no_grad():
        online.state_branch.weight.copy_(online.state_branch.weight @ basis)
    assert not torch.allclose(online(*inputs), before, atol=0.1)


def test_targets_get_no_gradient() -> None:
    model, batch = learner(), random_batch()
    model.target.requires_grad_(True)
    result = model.losses(batch)
    result.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.target.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.online.parameters())
    assert not any(metric.requires_grad for metric in result.metrics.values())


def test_members_and_replicas_are_independent() -> None:
    model, batch = learner(), random_batch()

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model.losses(batch).loss.sum(), list(model.online.parameters())))

    before = gradients()
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter[:, 1] += 0.3
            parameter[1, 0] -= 0.3
    for old, new in zip(before, gradients(), strict=True):
        assert torch.equal(old[0, 0], new[0, 0])
    assert any(not torch.equal(old[0, 1], new[0, 1]) for old, new in zip(before, gradients(), strict=True))
    assert not torch.equal(*(p for p in model.online.psi.layers[0].weight[0]))


def test_targets_follow_slowly() -> None:
    model = ICVF(ICVFConfig(hidden=(8,), latent_dim=4, target_rate=0.25), 1, torch.zeros(2), torch.ones(2))
    pairs = list(zip(model.target.parameters(), model.online.parameters(), strict=True))
    assert all(torch.equal(target, online) for target, online in pairs)
    before = [target.clone() for target, _ in pairs]
    with torch.no_grad():
        for _, online in pairs:
            online += 1.0
    model.after_update()
    for old, (target, _) in zip(before, pairs, strict=True):
        torch.testing.assert_close(target, old + 0.25)
    trained = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in model.online.parameters()}


@pytest.mark.parametrize("variant", ["icvf", "ailot"])
@pytest.mark.parametrize("normalise", [True, False])
def test_export_is_psi_of_the_first_member(variant: str, normalise: bool) -> None:
    model = learner(variant=variant, normalise=normalise)
    x = torch.randn(2, 5, 3)
    psi = model.online.psi(model.normaliser(x).unsqueeze(1))
    encoder = model.export()
    torch.testing.assert_close(encoder.embed(x), psi[:, 0])
    assert not torch.allclose(encoder.embed(x), psi[:, 1])
    assert torch.equal(encoder.calibration, torch.ones(2))
    with torch.no_grad():
        model.online.psi.layers[0].weight.zero_()
        model.normaliser.mean.fill_(7.0)
    torch.testing.assert_close(encoder.embed(x), psi[:, 0])  # a copy


@pytest.mark.parametrize("variant", ["icvf", "ailot"])
def test_the_encoder_keeps_the_value_of_the_first_member(variant: str) -> None:
    model, (s, g, z) = learner(variant=variant), torch.randn(3, 2, 5, 3)
    expected = model.online(*(model.normaliser(x) for x in (s, g, z)))
    encoder = model.export()
    assert encoder.architecture.gamma == GAMMA
    torch.testing.assert_close(encoder.value(s, g, z), expected[:, 0])
    one = PretrainedIntent(encoder, replica=1)
    torch.testing.assert_close(one.value(s[1], g[1], z[1]), expected[1, 0])
    np.testing.assert_allclose(one.value(s[1].numpy(), g[1, 0].numpy()), one.value(s[1], g[1, :1], g[1, :1]), rtol=1e-4)
    other = learner(variant=variant)
    other.start_from(encoder)
    for member in range(2):
        torch.testing.assert_close(other.online(*(other.normaliser(x) for x in (s, g, z)))[:, member], expected[:, 0])


def test_an_encoder_of_psi_alone_has_no_value() -> None:
    encoder = IntentEncoder(IntentArchitecture(replicas=1, observation_dim=2, hidden=(4,), latent_dim=3))
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"normaliser", "psi", "calibration"}
    with pytest.raises(ArtifactError, match=r"icvf\): value: found no V, expected an icvf encoder that keeps it"):
        PretrainedIntent(encoder).value(np.zeros(2), np.zeros(2))


def test_the_share_of_accepted_steps_by_the_place_of_the_goal() -> None:
    model, batch = learner(), random_batch()
    kind = torch.arange(32).remainder(3).expand(2, -1)
    found = model.losses(replace(batch, kind=kind)).metrics
    shares = [found[f"accepted_{name}"] * (kind[0] == number).sum() for number, name in enumerate(KINDS)]
    torch.testing.assert_close(sum(shares), 32 * found["accepted"])
    assert not torch.allclose(found["accepted_random"], found["accepted_future"])


def test_a_step_into_a_final_goal_is_worth_one_step() -> None:
    """Its target is the reward alone, -1, whatever V says of the goal."""
    model, batch = learner(), random_batch()
    zeros, ones = torch.zeros(2, 32), torch.ones(2, 32)
    arriving = replace(batch, reached_outcome=zeros, reached_intent=zeros, arrived_outcome=ones, arrived_intent=ones)
    s, g, z = (model.normaliser(x) for x in (batch.observations, batch.outcomes, batch.intents))
    advantage = -1.0 - model.target(s, z, z).mean(1)
    weight = torch.where(advantage < 0, 0.1, 0.9).unsqueeze(1)
    expected = (weight * (-1.0 - model.online(s, g, z)).square()).mean(2).sum(1)
    torch.testing.assert_close(model.losses(arriving).loss, expected)


def test_batches_name_final_goals() -> None:
    table = TransitionTable.from_episodes([line(3, 1.0, "a"), line(2, 10.0, "b")])
    sources = Sources({"dataset": lambda: table}, 1, 4000, torch.device("cpu"))
    model = ICVF(ICVFConfig(final_goals=True, p_same=1.0), 1, torch.zeros(2), torch.ones(2))
    batch = model.batch(sources, torch.Generator().manual_seed(0))
    s, following, goal = (x[0, :, 0] for x in (batch.observations, batch.next_observations, batch.intents))
    assert set(goal.tolist()) == {0.0, 1.0, 2.0, 3.0, 10.0, 20.0}  # 3 and 20 are final
    arrived, kind = batch.arrived_intent[0].bool(), batch.kind[0]  # type: ignore[index]
    assert torch.equal(goal[arrived], following[arrived])
    assert set(goal[arrived].tolist()) == {3.0, 20.0}
    assert torch.equal(kind == KINDS.index("current"), batch.reached_intent[0].bool())
    future = kind == KINDS.index("future")
    assert (goal[future] > s[future]).all()
    assert arrived[future].any()
    plain = ICVF(ICVFConfig(), 1, torch.zeros(2), torch.ones(2)).batch(sources, torch.Generator().manual_seed(0))
    assert set(plain.intents[0, :, 0].tolist()) == {0.0, 1.0, 2.0, 10.0}
    assert not plain.arrived_intent.any()  # type: ignore[union-attr]


def test_values_over_time_of_a_known_value(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = IntentArchitecture(replicas=2, observation_dim=2, hidden=(4,), latent_dim=3, gamma=GAMMA)
    encoder = IntentEncoder(architecture)
    scale = torch.tensor([1.0, 3.0])[:, None]
    monkeypatch.setattr(encoder, "value", lambda s, g, z: -scale * (g - s)[..., 0])
    rows = value_over_time(encoder, [line(12, 1.0, "a"), line(3, 1.0, "b")])
    assert [row["k"] for row in rows] == [1, 2, 5, 10]
    for row in rows:
        assert row["value"] == pytest.approx(2 * row["k"])
    assert rows[1]["ideal"] == pytest.approx(1.9)


@pytest.mark.slow
def test_networks_learn_the_values_of_a_chain() -> None:
    """Eight one-hot states, all pairs of state and goal in every batch, the intent being the goal."""
    config = ICVFConfig(hidden=(64,), latent_dim=32, gamma=GAMMA, normalise=False, target_rate=0.02, learning_rate=1e-3)
    model = ICVF(config, 1, torch.zeros(8), torch.ones(8))
    optimizer = torch.optim.Adam([p for group in model.parameter_groups() for p in group["params"]], lr=1e-3)
    s, g = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T
    s, g = s[g >= s], g[g >= s]
    one_hot = torch.eye(8)
    reached = (s == g).float()[None]
    states, following, goal = (one_hot[i][None] for i in (s, (s + 1).clamp(max=7), g))
    batch = GoalBatch(states, following, goal, goal, reached, reached)
    for _ in range(3000):
        optimizer.zero_grad()
        model.losses(batch).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
    value = model.online(states, goal, goal)[0].mean(0).detach().double()
    torch.testing.assert_close(value, chain_value(8)[s, g], atol=0.2, rtol=0)


def line(length: int, step: float, name: str) -> Episode:
    positions = step * np.arange(length + 1, dtype=np.float32)
    return Episode(id=name, observations=np.stack([positions, positions], 1), terminated=False, truncated=True)


def test_calibration_makes_one_step_one() -> None:
    encoder = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=2, hidden=(), latent_dim=2))
    with torch.no_grad():
        encoder.psi.layers[0].weight.copy_(torch.stack([torch.eye(2), 3 * torch.eye(2)]))
    # squared steps of 2 * 1 ten times and 2 * 4 thirty times; psi of the second replica is three times as large
    calibration = step_calibration(encoder, [line(10, 1.0, "a"), line(30, 2.0, "b")])
    mean = (10 * 2 + 30 * 8) / 40
    torch.testing.assert_close(calibration, torch.tensor([1 / mean, 1 / (9 * mean)]), rtol=1e-5, atol=0)
    with torch.no_grad():
        encoder.psi.layers[0].weight[1].zero_()
    with pytest.raises(ValueError, match=r"psi of replica \[1\]"):
        step_calibration(encoder, [line(10, 1.0, "a")])


def test_distances_over_time() -> None:
    episodes = [line(60, 1.0, "a"), line(3, 1.0, "b"), line(1, 1.0, "c")]
    steps, distances = distances_over_time(episodes, lambda x: torch.cat([x, 3 * x]))
    np.testing.assert_allclose(distances, 10 * steps.astype(float) ** 2, rtol=1e-5)  # mean of 2 k^2 and 18 k^2
    assert steps.max() == 50
    # 59 starts with up to 50 steps ahead, then 0 -> 1, 0 -> 2, 1 -> 2; an episode of one step gives nothing
    assert len(steps) == 10 * 50 + sum(range(1, 50)) + 3


def test_latents_for_a_map_are_spread_over_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAP_EPISODES", 3)
    monkeypatch.setattr(module, "MAP_STATES", 20)
    encoder = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=2, hidden=(4,), latent_dim=3))
    found = map_latents(encoder, [line(40, 1.0, "a"), line(1, 2.0, "b"), line(20, -1.0, "c"), line(500, 0.0, "d")])
    assert found["latents"].shape == (len(found["step"]), 3)
    assert 18 <= len(found["step"]) <= 22
    np.testing.assert_array_equal(found["length"], [40, 1, 20])
    assert np.isnan(found["return"]).all()  # lines have no rewards
    for episode in (0, 2):
        steps = found["step"][found["episode"] == episode]
        assert (np.diff(steps) == 3).all()
    state = line(40, 1.0, "a").current[[found["step"][0]]]
    with torch.no_grad():
        np.testing.assert_allclose(found["latents"][0], encoder(torch.from_numpy(state))[0], rtol=1e-5)


def test_nothing_to_measure_on_is_refused_before_training(tmp_path: Path) -> None:
    episodes = [line(1, 1.0, "a"), line(1, 2.0, "b")]
    write_dataset(tmp_path / "short", "short", episodes, provenance={}, env=None, bounds=((), ()))
    c = entry("pretrain", "icvf", training=TrainingConfig(updates=10**9))
    with pytest.raises(
        ValueError, match=r"^pretrain\.name\.held_out: none of the 1 episodes .* hold out more episodes$"
    ):
        pretrain(c, load_dataset(tmp_path / "short"), Run("pretrain/intent", 0, 1, tmp_path, tmp_path))
