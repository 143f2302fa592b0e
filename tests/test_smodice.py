import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.engine import Run, TrainingConfig
from dynarep.pipeline.functional import gradient_penalty
from dynarep.pipeline.imitate import WeightedPolicyConfig, imitate
from dynarep.pipeline.methods.smodice import (
    SMODICE,
    Divergence,
    OccupancyBatch,
    SMODICEConfig,
    density_ratio,
    discriminator_loss,
    dual_loss,
)

torch.set_num_threads(1)

STATES, ACTIONS, GAMMA = 5, 3, 0.9
LOW, HIGH = (-1.0, 0.0), (1.0, 4.0)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Process:
    """A random MDP; the data's occupancy d^O has mass n / N, so that N equally likely samples are exactly it.

    Args:
        sizes: samples per state-action pair.
    """

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.kernel = self.rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
        self.sizes = self.rng.integers(3, 30, (STATES, ACTIONS))
        self.data = self.sizes / self.sizes.sum()
        self.policy = self.rng.dirichlet(np.ones(ACTIONS), size=STATES)
        # the initial distribution that makes the data an occupancy; positive for this seed
        self.initial = (self.data.sum(1) - GAMMA * np.einsum("sa,sat->t", self.data, self.kernel)) / (1 - GAMMA)

    def occupancy(self, policy: np.ndarray) -> np.ndarray:
        step = np.einsum("sa,sat->st", policy, self.kernel)
        states = np.linalg.solve(np.eye(STATES) - GAMMA * step.T, (1 - GAMMA) * self.initial)
        return states[:, None] * policy

    def advantage(self, reward: np.ndarray, v: np.ndarray) -> np.ndarray:
        """R + gamma P V - V, (states, actions)."""
        return reward + GAMMA * self.kernel @ v - v[:, None]

    def samples(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.reshape(-1).repeat(self.sizes.reshape(-1))[None])

    def dual(self, reward: np.ndarray, v: np.ndarray, divergence: Divergence, alpha: float) -> float:
        start = torch.tensor([[self.initial @ v]])
        return float(dual_loss(start, self.samples(self.advantage(reward, v)), GAMMA, divergence, alpha))


def divergence_of(d: np.ndarray, data: np.ndarray, divergence: Divergence) -> float:
    x = d / data
    return float((data * (x * np.log(x) if divergence == "kl" else 0.5 * (x - 1) ** 2)).sum())


@pytest.mark.parametrize("divergence", ["kl", "chi_square"])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_the_dual_at_its_optimum_is_the_best_value_and_gives_the_weights(divergence: Divergence, alpha: float) -> None:
    """R is made such that the occupancy of a known policy is best: R + gamma P V - V = (1 + alpha) f'(d / d^O)."""
    process = Process()
    d, v = process.occupancy(process.policy), process.rng.normal(size=STATES)
    slope = np.log(d / process.data) + 1 if divergence == "kl" else d / process.data - 1
    reward = (1 + alpha) * slope - process.advantage(np.zeros((STATES, ACTIONS)), v)
    best = float((d * reward).sum()) - (1 + alpha) * divergence_of(d, process.data, divergence)
    assert process.dual(reward, v, divergence, alpha) == pytest.approx(best, abs=1e-9)
    weight = density_ratio(process.samples(process.advantage(reward, v)), divergence, alpha)
    torch.testing.assert_close(weight, process.samples(d / process.data))
    for scale in (0.1, 1.0, 10.0):
        for _ in range(20):
            other = v + scale * process.rng.normal(size=STATES)
            assert process.dual(reward, other, divergence, alpha) > best + 1e-6


def test_without_regularisation_the_expert_is_best_and_the_divergence_vanishes() -> None:
    """DemoDICE with alpha = 0: the largest -KL(d || d^E) is 0, the weights are d^E / d^O."""
    process = Process()
    expert = process.occupancy(process.policy)
    reward = np.log(expert / process.data)
    assert process.dual(reward, np.zeros(STATES), "kl", 0.0) == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(density_ratio(process.samples(reward), "kl"), process.samples(expert / process.data))
    assert process.dual(reward, process.rng.normal(size=STATES), "kl", 0.0) > 1e-3


@pytest.mark.parametrize("divergence", ["kl", "chi_square"])
def test_the_best_weights_are_those_of_an_occupancy(divergence: Divergence) -> None:
    """SMODICE: R of states; at the numerical optimum d = w d^O obeys the Bellman flow and attains the dual's value."""
    process = Process()
    expert = process.occupancy(process.policy).sum(1)
    log_ratio = np.log(expert / process.data.sum(1))
    reward = torch.from_numpy(log_ratio)[:, None].expand(-1, ACTIONS)
    kernel, start = torch.from_numpy(process.kernel), torch.from_numpy(process.initial)
    index = torch.from_numpy(np.arange(STATES * ACTIONS).repeat(process.sizes.reshape(-1)))
    v = torch.zeros(STATES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [v], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        e = (reward + GAMMA * kernel @ v - v[:, None]).reshape(-1)[index]
        loss = dual_loss((start @ v)[None, None], e[None], GAMMA, divergence).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    e = process.advantage(np.broadcast_to(log_ratio[:, None], (STATES, ACTIONS)), v.detach().numpy())
    weight = density_ratio(process.samples(e), divergence)[0].numpy()
    first = np.concatenate([[0], process.sizes.reshape(-1).cumsum()[:-1]])
    d = process.data * weight[first].reshape(STATES, ACTIONS)
    flow = (1 - GAMMA) * process.initial + GAMMA * np.einsum("sa,sat->t", d, process.kernel)
    np.testing.assert_allclose(d.sum(1), flow, atol=1e-6)
    value = float((d.sum(1) * log_ratio).sum()) - divergence_of(d.clip(1e-300), process.data, divergence)
    assert process.dual(reward.numpy(), v.detach().numpy(), divergence, 0.0) == pytest.approx(value, abs=1e-6)
    before, after = ((x.sum(1) * np.log(x.sum(1) / expert)).sum() for x in (process.data, d))
    assert after < before  # nearer to the expert's states than the data


def test_chi_square_gives_no_negative_weights_and_is_flat_where_they_are_zero() -> None:
    e = torch.tensor([[-3.0, -1.0, 0.0, 2.0]], requires_grad=True)
    torch.testing.assert_close(density_ratio(e, "chi_square"), torch.tensor([[0.0, 0.0, 1.0, 3.0]]))
    loss = dual_loss(torch.zeros(1, 1), e, GAMMA, "chi_square")
    torch.testing.assert_close(loss, torch.tensor([(-0.5 - 0.5 + 0.0 + 4.0) / 4]))
    loss.sum().backward()
    torch.testing.assert_close(e.grad, density_ratio(e.detach(), "chi_square") / 4)


def test_kl_weights_do_not_overflow_and_have_mean_one() -> None:
    e = torch.tensor([[900.0, 899.0, -900.0], [0.0, 0.0, 0.0]])
    weight = density_ratio(e, "kl")
    p = 1 / (1 + math.exp(-1.0))
    torch.testing.assert_close(weight, torch.tensor([[3 * p, 3 * (1 - p), 0.0], [1.0, 1.0, 1.0]]))


def test_the_discriminator_is_least_at_the_log_ratio() -> None:
    process = Process()
    counts = process.rng.integers(2, 20, (STATES, ACTIONS))
    expert = counts / counts.sum()

    def loss(h: np.ndarray) -> float:
        shown = torch.from_numpy(h.reshape(-1).repeat(counts.reshape(-1))[None])
        return float(discriminator_loss(shown, process.samples(h)))

    best = np.log(expert / process.data)
    middle = (expert + process.data) / 2
    shannon = sum((p * np.log(p / middle)).sum() for p in (expert, process.data)) / 2
    assert loss(best) == pytest.approx(2 * np.log(2) - 2 * shannon, abs=1e-9)
    for _ in range(20):
        assert loss(best + 0.1 * process.rng.normal(size=best.shape)) > loss(best)


def learner(**values: object) -> SMODICE:
    config = SMODICEConfig(hidden=(16,), gamma=GAMMA, **values)  # type: ignore[arg-type]
    return SMODICE(config, 2, torch.randn(3), torch.rand(3) + 0.5, LOW, HIGH)


def random_batch(*, expert_actions: int = 2) -> OccupancyBatch:
    s_expert, s, s_next, start = torch.randn(4, 2, 6, 3)
    return OccupancyBatch(s_expert, torch.rand(2, 6, expert_actions), s, torch.rand(2, 6, 2), s_next, start)


@pytest.mark.parametrize("observe", ["states", "state_actions"])
def test_losses_are_their_formulas_and_train_disjoint_parameters(observe: str) -> None:
    dice = learner(observe=observe, alpha=0.5)
    nn.init.normal_(dice.policy.network.layers[-1].weight)
    batch = random_batch()
    torch.manual_seed(7)
    result = dice.losses(batch)
    torch.manual_seed(7)
    u = torch.rand(2, 6, 1)
    mean, std = dice.policy.normaliser.mean, dice.policy.normaliser.std

    def standard(s: Tensor) -> Tensor:
        return (s - mean) / (std + 1e-3)

    def h(s: Tensor, a: Tensor) -> Tensor:
        x = standard(s)
        return dice.discriminator(torch.cat([x, a], -1) if observe == "state_actions" else x)[..., 0]  # type: ignore[no-any-return]

    def value(s: Tensor) -> Tensor:
        return dice.value(standard(s))[..., 0]  # type: ignore[no-any-return]

    log_ratio = h(batch.observations, batch.actions)
    loss_d = discriminator_loss(h(batch.expert_observations, batch.expert_actions), log_ratio)
    mixed = [
        u * b + (1 - u) * a
        for a, b in (
            (standard(batch.expert_observations), standard(batch.observations)),
            (batch.expert_actions, batch.actions),
        )
    ]
    penalty = gradient_penalty(
        dice.log_ratio, mixed[0], mixed[1] if observe == "state_actions" else torch.empty(2, 6, 0)
    )
    e = log_ratio.detach() + GAMMA * value(batch.next_observations) - value(batch.observations)
    loss_v = dual_loss(value(batch.initial_observations), e, GAMMA, "kl", 0.5)
    weight = torch.softmax(e.detach() / 1.5, -1) * 6
    act = dice.policy.act(batch.observations)
    log_prob = torch.distributions.Normal(act, torch.ones_like(act)).log_prob(batch.actions).sum(-1)
    parts = {"discriminator": loss_d + 10 * penalty, "value": loss_v, "policy": -(weight * log_prob).mean(-1)}
    torch.testing.assert_close(result.loss, sum(parts.values()))
    for module, loss in parts.items():
        own = list(getattr(dice, module).parameters())
        expected = torch.autograd.grad(loss.sum(), own, retain_graph=True)
        found = torch.autograd.grad(result.loss.sum(), own, retain_graph=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    (group, actor) = dice.parameter_groups()
    assert {id(p) for g in (group, actor) for p in g["params"]} == {id(p) for p in dice.parameters()}
    assert {id(p) for p in actor["params"]} == {id(p) for p in (*dice.policy.parameters(), dice.log_std)}


def test_replicas_are_independent() -> None:
    dice = learner(observe="state_actions")
    dice.losses(random_batch()).loss[0].backward()  # type: ignore[no-untyped-call]
    for parameter in dice.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].any() or parameter is dice.value.layers[-1].bias  # its gradient is 0 but for rounding
        assert not parameter.grad[1].any()


def test_an_expert_seen_without_actions_is_imitated_with_the_actions_of_the_data() -> None:
    """s' = a: the expert stays near 0.5, the data go anywhere, so the action that leads on is 0.5."""
    config = SMODICEConfig(hidden=(32,), gamma=0.9, learning_rate=1e-2, gradient_penalty=0.0)
    dice = SMODICE(config, 2, torch.zeros(1), torch.ones(1), (-1.0,), (1.0,))
    optimizer = torch.optim.Adam([{k: g[k] for k in ("params", "lr")} for g in dice.parameter_groups()])
    for _ in range(300):
        s, a, start = 2 * torch.rand(3, 2, 128, 1) - 1
        shown = 0.5 + 0.1 * torch.randn(2, 128, 1)
        optimizer.zero_grad()
        batch = OccupancyBatch(shown, torch.empty(2, 128, 0), s, a, a, start)
        dice.losses(batch).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    states = torch.linspace(0.3, 0.7, 20)[None, :, None]
    assert ((dice.export().act(states) - 0.5).abs() < 0.15).all()


@pytest.fixture
def walk(tmp_path: Path, make_episode: Callable[..., Episode]) -> Callable[..., Dataset]:
    """A prepared dataset of two random episodes."""

    def build(name: str, **values: object) -> Dataset:
        episodes = [make_episode(30, f"{name}-{i}", seed=i, **values) for i in range(2)]
        low, high = ((), ()) if values.get("action_dim") == 0 else ((-1.0, -1.0), (1.0, 1.0))
        write_dataset(tmp_path / name, name, episodes, provenance={}, env=None, bounds=(low, high))
        return load_dataset(tmp_path / name)

    return build


def policy_config(*, absorbing: bool = False, observe: str = "states") -> WeightedPolicyConfig:
    training = TrainingConfig(updates=4, batch_size=8, updates_per_chunk=2)
    method = SMODICEConfig(hidden=(8,), observe=observe)  # type: ignore[arg-type]
    return WeightedPolicyConfig(kind="smodice", absorbing=absorbing, method=method, training=training)


def run(folder: Path) -> Run:
    (folder / "out").mkdir()
    return Run("imitate", 0, 2, folder / "out", folder / "checkpoints")


@pytest.mark.parametrize("absorbing", [False, True])
def test_a_demonstration_without_actions_will_do(walk: Callable[..., Dataset], tmp_path: Path, absorbing: bool) -> None:
    shown, data = walk("shown", action_dim=0), walk("data", terminated=True, truncated=False)
    policy, facts = imitate("s", policy_config(absorbing=absorbing), shown, data, None, run(tmp_path))
    assert policy.act(torch.randn(1, 5, 3)).shape == (2, 5, 2)
    assert (policy.architecture.observation_dim, policy.architecture.absorbing) == (3, absorbing)
    saw = {"expert": "2 episodes (60 steps), observations only", "other": "60 transitions without rewards"}
    assert facts == {"saw": saw}


def test_actions_shown_are_not_said_to_be_used(walk: Callable[..., Dataset], tmp_path: Path) -> None:
    shown = walk("shown")
    for observe, content in (("states", "observations only"), ("state_actions", "observations and actions")):
        (folder := tmp_path / observe).mkdir()
        _, facts = imitate("s", policy_config(observe=observe), shown, walk("data"), None, run(folder))
        assert facts["saw"]["expert"] == f"2 episodes (60 steps), {content}"


def test_actions_are_asked_for_where_they_are_needed(walk: Callable[..., Dataset], tmp_path: Path) -> None:
    shown, data = walk("shown", action_dim=0), walk("data")
    with pytest.raises(ValueError, match="dataset shown has no actions; smodice imitates actions"):
        imitate("s", policy_config(observe="state_actions"), shown, data, None, run(tmp_path))
    with pytest.raises(ValueError, match="dataset shown has no actions; smodice imitates actions"):
        imitate("s", policy_config(), data, shown, None, run(tmp_path / "data"))
    other = replace(data, name="other", spec=replace(data.spec, action_dim=1))
    with pytest.raises(ValueError, match="action_dim: found 1 in demonstrations other, expected 2 as in data"):
        imitate("s", policy_config(), other, data, None, run(tmp_path / "shown"))
