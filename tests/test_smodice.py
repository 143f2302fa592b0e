import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.entries import Entry
from dynarep.pipeline.learn import absorbed, learn
from dynarep.pipeline.method import Needs
from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.learners.smodice import (
    Comparison,
    Discriminator,
    Divergence,
    OccupancyValue,
    RatedBatch,
    SMODICEConfig,
    cloning_weights,
    density_ratio,
    discriminator_loss,
    dual_loss,
    effective_share,
)
from dynarep.pipeline.nn.functional import gradient_penalty
from dynarep.pipeline.nn.networks import Normaliser
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import a_run, entry

torch.set_num_threads(1)

STATES, ACTIONS, GAMMA = 5, 3, 0.9


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Process:
    """A random MDP; the data's occupancy d^O has mass n / N, so that N equally likely samples are exactly it."""

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


def rated(replicas: int = 2, batch: int = 6) -> RatedBatch:
    s, s_next, start, noise = torch.randn(4, replicas, batch, 3)
    return RatedBatch(s, torch.rand(replicas, batch, 2), s_next, torch.randn(replicas, batch), start, noise)


def moments() -> tuple[Tensor, Tensor]:
    return torch.randn(3), torch.rand(3) + 0.5


def encoder() -> DynamicsEncoder:
    architecture = DynamicsArchitecture(replicas=2, observation_dim=3, action_dim=2, hidden=(16,), feature_dim=8)
    model = DynamicsEncoder(architecture)
    model.normaliser = Normaliser(*moments())
    return model


@pytest.mark.parametrize("read", ["states", "state_actions", "phi"])
def test_loss_of_the_discriminator(read: str) -> None:
    observe: Literal["states", "state_actions"] = "states" if read == "states" else "state_actions"
    config = SMODICEConfig(hidden=(16,), observe=observe, noise=0.5)
    mean, std = moments()
    model = encoder() if read == "phi" else None
    discriminator = Discriminator(config, 2, mean, std, 2, model)
    s_expert, s = torch.randn(2, 2, 6, 3)
    a_expert, a = torch.rand(2, 2, 6, 2)
    torch.manual_seed(7)
    result = discriminator.losses(Comparison(s_expert, a_expert, s, a))

    torch.manual_seed(7)
    width = 0 if read == "states" else 2
    shapes = [(2, 6, 3), (2, 6, width), (2, 6, 3), (2, 6, width)]
    noise = [0.5 * torch.randn(shape) for shape in shapes]
    u = torch.rand(2, 6, 1)

    def logit(x: Tensor, actions: Tensor) -> Tensor:
        """At x as the discriminator sees it, standardised and noisy."""
        if model is None:
            return discriminator.network(torch.cat([x, actions], -1))[..., 0]  # type: ignore[no-any-return]
        phi = model.phi(x * (std + 1e-3) + mean, actions)
        phi = (phi - phi.mean(-1, keepdim=True)) / (phi.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return discriminator.network(phi)[..., 0]  # type: ignore[no-any-return]

    x_expert, x = ((y - mean) / (std + 1e-3) + n for y, n in ((s_expert, noise[0]), (s, noise[2])))
    b_expert, b = a_expert[..., :width] + noise[1], a[..., :width] + noise[3]
    expected = discriminator_loss(logit(x_expert, b_expert), logit(x, b))
    torch.testing.assert_close(result.metrics["cross_entropy"], expected.detach(), atol=1e-5, rtol=1e-4)
    penalty = gradient_penalty(logit, (1 - u) * x_expert + u * x, (1 - u) * b_expert + u * b)
    torch.testing.assert_close(result.loss, expected + 10 * penalty, atol=1e-4, rtol=1e-4)
    clean = logit((s - mean) / (std + 1e-3), a[..., :width])  # what it says afterwards is without noise
    torch.testing.assert_close(discriminator(s, a), clean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("initial", ["episodes", "data"])
def test_loss_of_the_value(initial: Literal["episodes", "data"]) -> None:
    mean, std = moments()
    value = OccupancyValue(SMODICEConfig(hidden=(16,), gamma=GAMMA, alpha=0.5, initial=initial), 2, mean, std)
    batch = rated()

    def v(s: Tensor) -> Tensor:
        return value.network((s - mean) / (std + 1e-3))[..., 0]  # type: ignore[no-any-return]

    e = batch.log_ratio + GAMMA * v(batch.next_observations) - v(batch.observations)
    torch.testing.assert_close(value.advantage(batch), e)
    start = v(batch.observations if initial == "data" else batch.initial_observations)
    torch.testing.assert_close(value.losses(batch).loss, dual_loss(start, e, GAMMA, "kl", 0.5))


def test_the_representation_gives_the_expected_next_value() -> None:
    """With an exact factorisation phi^T omega is E V(s'), for any V; sampled successors scatter around it."""
    process = Process()
    noise = process.rng.random(STATES) + 0.2
    noise /= noise.sum()
    u, s, w = np.linalg.svd((process.kernel / noise).reshape(-1, STATES), full_matrices=False)
    phi, mu = torch.from_numpy((u * np.sqrt(s)).reshape(STATES, ACTIONS, -1)), torch.from_numpy(w.T * np.sqrt(s))

    class Tables(DynamicsEncoder):
        def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
            return torch.einsum("rbs,rba,sak->rbk", observations, actions, phi)

        def mu(self, observations: Tensor) -> Tensor:
            return observations @ mu

    architecture = DynamicsArchitecture(
        replicas=1, observation_dim=STATES, action_dim=ACTIONS, hidden=(), feature_dim=STATES
    )
    c = SMODICEConfig(hidden=(16,), gamma=GAMMA, observe="state_actions")
    value = OccupancyValue(c, 1, torch.zeros(STATES), torch.ones(STATES), Tables(architecture)).double()
    states, actions = torch.eye(STATES).double(), torch.eye(ACTIONS).double()
    v = value(states[None])[0]
    omega = value.encoder.mu(states[None]).mT @ (torch.from_numpy(noise) * v)[None, :, None]  # type: ignore[union-attr]
    pairs = states.repeat_interleave(ACTIONS, 0)[None], actions.repeat(STATES, 1)[None]
    unread = pairs[0].flip(1)
    batch = RatedBatch(*pairs, unread, torch.zeros(1, STATES * ACTIONS).double(), states[None], states[None])
    expected = (GAMMA * torch.from_numpy(process.kernel) @ v - v[:, None]).reshape(1, -1)
    torch.testing.assert_close(value.advantage(batch, omega), expected)
    # as many samples of each state as p_n has mass
    counts = torch.from_numpy(np.round(noise * 100000)).long()
    drawn = states.repeat_interleave(counts, 0)[None]
    torch.testing.assert_close(value.omega(drawn), omega, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(value.advantage(replace(batch, noise=drawn)), expected, atol=1e-3, rtol=1e-3)


def test_only_their_own_parameters_learn_and_replicas_are_independent() -> None:
    c = SMODICEConfig(hidden=(16,), observe="state_actions", noise=0.1)
    batch = rated()
    parts: list[tuple[nn.Module, object]] = [
        (
            Discriminator(c, 2, *moments(), 2, encoder()),
            Comparison(batch.next_observations, batch.actions, batch.observations, batch.actions),
        ),
        (OccupancyValue(c, 2, *moments(), encoder()), batch),
    ]
    for part, seen in parts:
        (group,) = part.parameter_groups()  # type: ignore[operator]
        assert {id(p) for p in group["params"]} == {id(p) for p in part.network.parameters()}  # type: ignore[union-attr]
        part.losses(seen).loss[0].backward()  # type: ignore[operator]
        assert all(p.grad is None for p in part.encoder.parameters())  # type: ignore[union-attr]
        for p in group["params"]:
            assert not p.grad[1].any()
        assert group["params"][0].grad[0].any()


@pytest.mark.parametrize("divergence", ["kl", "chi_square"])
def test_weights_are_bounded_in_units_of_their_mean(divergence: Divergence) -> None:
    e = torch.cat([2 * torch.rand(2, 999), torch.tensor([[80.0], [800.0]])], 1)
    weight = cloning_weights(e, SMODICEConfig(divergence=divergence, max_weight=20.0))
    torch.testing.assert_close(weight.mean(1), torch.ones(2))
    torch.testing.assert_close(weight[:, -1], torch.full((2,), 20.0))
    rest = density_ratio(e[:, :-1], divergence)
    torch.testing.assert_close(weight[:, :-1] / weight[:, :-1].mean(1, keepdim=True), rest / rest.mean(1, keepdim=True))
    unbounded = cloning_weights(e[:, :-1], SMODICEConfig(divergence=divergence, max_weight=500.0))
    torch.testing.assert_close(unbounded, rest / rest.mean(1, keepdim=True))
    with pytest.raises(ValueError, match="all weights of a replica are zero"):
        cloning_weights(torch.full((1, 5), -2.0), SMODICEConfig(divergence="chi_square"))


def test_effective_share() -> None:
    torch.testing.assert_close(
        effective_share(torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 3.0]])), torch.tensor([1.0, 0.25])
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Dataset]:
    """A dataset of given episodes with one- or two-dimensional actions in [-1, 1]."""

    def build(name: str, episodes: list[Episode]) -> Dataset:
        actions = episodes[0].actions
        bound = () if actions is None else (1.0,) * actions.shape[1]
        low = tuple(-b for b in bound)
        write_dataset(tmp_path / name, name, episodes, provenance={}, env=None, bounds=(low, bound))
        return load_dataset(tmp_path / name)

    return build


@pytest.fixture
def walk(prepared: Callable[..., Dataset], make_episode: Callable[..., Episode]) -> Callable[..., Dataset]:
    """A prepared dataset of two random episodes."""

    def build(name: str, **values: Any) -> Dataset:
        return prepared(name, [make_episode(30, f"{name}-{i}", seed=i, **values) for i in range(2)])

    return build


def training(updates: int, batch_size: int = 8) -> TrainingConfig:
    return TrainingConfig(updates=updates, batch_size=batch_size, updates_per_chunk=updates)


def policy_config(*, absorbing: bool = False, observe: str = "states", **inputs: Any) -> Entry[Any]:
    c = SMODICEConfig(
        hidden=(8,),
        observe=observe,  # type: ignore[arg-type]
        absorbing=absorbing,
        discriminator=training(3),
        value=training(3),
    )
    return entry("learn", "smodice", c, training=training(4), **inputs)


def test_an_expert_seen_without_actions_is_imitated_with_the_actions_of_the_data(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    """s' = a: the expert stays near 0.5, the data go anywhere, so the action that leads on is 0.5."""
    rng = np.random.default_rng(0)
    wander = rng.uniform(-1, 1, (4001, 1)).astype(np.float32)
    stay = (0.5 + 0.1 * rng.normal(size=(201, 1))).astype(np.float32)
    ends = {"terminated": False, "truncated": True}
    data = prepared("data", [Episode(id="a", observations=wander, actions=wander[1:], **ends)])
    shown = prepared("shown", [Episode(id="b", observations=stay, **ends)])
    method = SMODICEConfig(
        hidden=(32,),
        gamma=0.9,
        learning_rate=1e-2,
        value_rate=1e-2,
        gradient_penalty=0.0,
        initial="data",
        discriminator=training(150, 128),
        value=training(200, 128),
    )
    c = entry("learn", "smodice", method, training=training(200, 128))
    policy, facts = learn(c, data, shown, None, None, a_run(tmp_path / "run"))
    states = torch.linspace(0.3, 0.7, 20)[None, :, None]
    assert ((policy.act(states) - 0.5).abs() < 0.15).all()
    assert all(0.02 < share < 0.5 for share in facts["effective_share"])


@pytest.mark.parametrize("absorbing", [False, True])
def test_a_demonstration_without_actions_will_do(walk: Callable[..., Dataset], tmp_path: Path, absorbing: bool) -> None:
    shown, data = walk("shown", action_dim=0), walk("data", terminated=True, truncated=False)
    within = a_run(tmp_path / "run")
    policy, facts = learn(policy_config(absorbing=absorbing), data, shown, None, None, within)
    assert policy.act(torch.randn(1, 5, 3)).shape == (2, 5, 2)
    assert (policy.architecture.observation_dim, policy.architecture.absorbing) == (3, absorbing)
    saw = {"expert": "2 episodes (60 steps), observations only", "other": "60 transitions without rewards"}
    assert facts["saw"] == saw
    assert len(facts["effective_share"]) == 2
    assert all((within.output / part / "curves.tsv").is_file() for part in (".", "discriminator", "value"))


def test_actions_shown_are_not_said_to_be_used(walk: Callable[..., Dataset], tmp_path: Path) -> None:
    shown = walk("shown")
    for observe, content in (("states", "observations only"), ("state_actions", "observations and actions")):
        _, facts = learn(policy_config(observe=observe), walk("data"), shown, None, None, a_run(tmp_path / observe))
        assert facts["saw"]["expert"] == f"2 episodes (60 steps), {content}"


def test_actions_are_asked_for_where_they_are_needed(walk: Callable[..., Dataset], tmp_path: Path) -> None:
    shown, data, within = walk("shown", action_dim=0), walk("data"), a_run(tmp_path / "run")
    with pytest.raises(ValueError, match="dataset shown has no actions; smodice imitates actions"):
        learn(policy_config(observe="state_actions"), data, shown, None, None, within)
    with pytest.raises(ValueError, match="dataset shown has no actions; smodice imitates actions"):
        learn(policy_config(), shown, data, None, None, within)
    other = replace(data, name="other", spec=replace(data.spec, action_dim=1))
    with pytest.raises(ValueError, match="action_dim: found 1 in demonstrations other, expected 2 as in data"):
        learn(policy_config(), data, other, None, None, within)


def test_weights_in_the_representation(walk: Callable[..., Dataset], tmp_path: Path) -> None:
    shown, data = walk("shown"), walk("data")
    c = policy_config(observe="state_actions", encoder="dynamics")
    _, facts = learn(c, data, shown, encoder(), None, a_run(tmp_path / "run"))
    assert facts["saw"]["other"] == "60 transitions without rewards, also through phi and mu"
    with pytest.raises(ValueError, match=r"learn\.name: observe: found states, expected state_actions"):
        learn(policy_config(encoder="dynamics"), data, shown, encoder(), None, a_run(tmp_path / "states"))
    with pytest.raises(ValueError, match="has absorbing False, this run needs True"):
        learn(
            policy_config(observe="state_actions", absorbing=True, encoder="dynamics"),
            data,
            shown,
            encoder(),
            None,
            a_run(tmp_path / "absorbing"),
        )


def test_a_run_can_be_repeated_to_the_bit(walk: Callable[..., Dataset], tmp_path: Path) -> None:
    shown, data = walk("shown"), walk("data")
    acts = []
    for name in ("a", "b"):
        c = policy_config(observe="state_actions")
        policy, _ = learn(c, data, shown, None, None, a_run(tmp_path / name))
        acts.append(policy.act(torch.ones(1, 2, 3)))
    assert torch.equal(*acts)


def test_absorption_has_its_share_of_the_discounted_occupancy(make_episode: Callable[..., Episode]) -> None:
    gamma, lengths = 0.9, (1, 8, 200)
    needs = Needs(absorbing="discounted", gamma=gamma)
    ended = [make_episode(n, f"e-{n}", terminated=True, truncated=False) for n in lengths]
    for n, e in zip(lengths, absorbed(ended, needs, 10), strict=True):
        share = (e.length - n) / e.length
        assert share == pytest.approx(gamma**n, abs=0.5 / e.length)
    (cut,) = absorbed([make_episode(8)], needs, 10)
    assert cut.length == 8


def test_absorption_for_so_many_steps(make_episode: Callable[..., Episode]) -> None:
    lengths = (1, 8, 200)
    ended = [make_episode(n, f"e-{n}", terminated=True, truncated=False) for n in lengths]
    for steps in (1, 10):
        found = absorbed(ended, Needs(absorbing="steps"), steps)
        assert [e.length for e in found] == [n + steps for n in lengths]
        for n, e in zip(lengths, found, strict=True):  # the last successor is the absorbing state, then it is stayed in
            assert e.observations[:, -1].tolist() == [0.0] * n + [1.0] * (steps + 1)
    (cut,) = absorbed([make_episode(8)], Needs(absorbing="steps"), 10)
    assert cut.length == 8
    assert absorbed(ended, Needs(), 10) is ended


def test_smoke_shrinks_every_training() -> None:
    c = policy_config()
    shrunk = replace(c, config=replace(c.config, value=TrainingConfig(updates=9999))).smoke()
    assert {shrunk.inputs.training.updates, shrunk.config.value.updates, shrunk.config.discriminator.updates} == {20}
    assert replace(shrunk.config, value=c.config.value, discriminator=c.config.discriminator) == c.config
