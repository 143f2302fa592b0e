"""The world model: its functions by hand and against plain NumPy, its windows, and what its latents keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dynarep
from dynarep.data.resident import TransitionTable, Windows
from dynarep.data.sampling import window
from dynarep.data.schema import Episode
from dynarep.data.shards import load_dataset, write_dataset
from dynarep.pipeline.artifacts.storage import save_model
from dynarep.pipeline.method import Sources, World
from dynarep.pipeline.methods.encoders.world_model import (
    WorldModel,
    WorldModelArchitecture,
    WorldModelConfig,
    WorldModelEncoder,
    centred,
    model_error,
)
from dynarep.pipeline.nn.networks import MLP, NormedLinear, simplices
from dynarep.pipeline.nn.world_model import (
    BINS,
    PolicyPrior,
    ValueEnsemble,
    bounded_log_std,
    consistency_loss,
    discount_of,
    discounted,
    expected_value,
    latent_network,
    moved_scale,
    policy_loss,
    rollout,
    squashed_gaussian,
    symexp,
    symlog,
    td_target,
    two_hot,
    value_loss,
    value_range,
)
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import a_run, entry

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"hidden": (16,), "dynamics_hidden": (16, 16), "latent_dim": 8}


def world(replicas: int = 2, observations: int = 4, actions: int = 2) -> World:
    return World(replicas, torch.zeros(observations), torch.ones(observations), (-1.0,) * actions, (1.0,) * actions)


# A plain NumPy implementation, one sample at a time, of what TD-MPC2's and CDRED's code computes.


def np_mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def np_simnorm(x: np.ndarray) -> np.ndarray:
    groups = [np.exp(x[i : i + 8] - x[i : i + 8].max()) for i in range(0, len(x), 8)]
    return np.concatenate([g / g.sum() for g in groups])


def np_mlp(network: MLP, member: tuple[int, ...], x: np.ndarray, final: Any = None) -> np.ndarray:
    """Linear, LayerNorm, Mish; the last layer alone, or LayerNorm and ``final``."""
    for i, layer in enumerate(network.layers):
        w, b = (getattr(layer, name)[member].detach().double().numpy() for name in ("weight", "bias"))
        x = x @ w + b[0]
        last = i == len(network.layers) - 1
        if last and final is None:
            return x
        scale, shift = (getattr(layer, name)[member].detach().double().numpy()[0] for name in ("scale", "shift"))
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + shift
        x = final(x) if last else np_mish(x)
    return x


def np_two_hot(x: float) -> np.ndarray:
    y = min(max(math.copysign(math.log1p(abs(x)), x), -10.0), 10.0)
    place = (y + 10.0) / 0.2
    low = min(math.floor(place), 99)
    weights = np.zeros(101)
    weights[low], weights[low + 1] = 1 - (place - low), place - low
    return weights


def np_value(logits: np.ndarray) -> float:
    p = np.exp(logits - logits.max())
    mean = float((p / p.sum()) @ np.linspace(-10, 10, 101))
    return math.copysign(math.expm1(abs(mean)), mean)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval()


def test_losses_are_those_of_plain_numpy() -> None:
    """Consistency, value and policy losses on fixed weights and one batch of two replicas."""
    torch.manual_seed(0)
    R, B, H, obs, act, d, N = 2, 3, 3, 5, 2, 16, 3
    rho, gamma, eta = 0.5, 0.97, 1e-4
    c = WorldModelConfig(hidden=(12,), dynamics_hidden=(11, 10), latent_dim=d, anchor="none")
    learner = randomised(WorldModel(c, world(R, obs, act)))
    assert isinstance(learner, WorldModel)
    encoder = learner.encoder
    critic, target = (randomised(ValueEnsemble(R, d, act, (9, 8), N)) for _ in range(2))
    prior = randomised(PolicyPrior(R, d, act, (9, 8)))
    states, actions = torch.randn(R, B, H + 1, obs), torch.rand(R, B, H, act) * 2 - 1
    rewards, noise = torch.randn(R, B, H), torch.randn(R, B, H + 1, act)
    chosen, within = torch.tensor([2, 0]), torch.ones(R, B, H)
    within[1, 2, 2] = 0.0
    reached = torch.cat([torch.ones(R, B, 1), within], -1)
    scale = torch.tensor([1.0, 2.5])

    consistency, value, policy = np.zeros(R), np.zeros(R), np.zeros(R)
    for r in range(R):
        for b in range(B):

            def h(t: int, r: int = r, b: int = b) -> np.ndarray:
                seen = states[r, b, t].double().numpy() / (1 + 1e-3)
                return np_mlp(encoder.encoder, (r,), seen, np_simnorm)

            def pi(z: np.ndarray, e: np.ndarray, r: int = r) -> tuple[np.ndarray, float]:
                out = np_mlp(prior.network, (r,), z)  # type: ignore[arg-type]
                mean, log_std = out[:act], -10 + 6 * (np.tanh(out[act:]) + 1)
                a = np.tanh(mean + e * np.exp(log_std))
                density = (np.sum(-0.5 * e**2 - log_std) - 0.5 * math.log(2 * math.pi)) * act
                return a, float(density - np.log(np.maximum(1 - a**2, 0) + 1e-6).sum())

            def q(network: Any, i: int, z: np.ndarray, a: np.ndarray, r: int = r) -> np.ndarray:
                return np_mlp(network.network, (r, i), np.concatenate([z, a]))

            z = [h(0)]
            for t in range(H):
                a = actions[r, b, t].double().numpy()
                z.append(np_mlp(encoder.dynamics, (r,), np.concatenate([z[t], a]), np_simnorm))
                w = rho**t / H / B
                consistency[r] += w * float(within[r, b, t]) * np.mean((z[t + 1] - h(t + 1)) ** 2)
                after, _ = pi(h(t + 1), noise[r, b, t + 1].double().numpy())
                y = float(rewards[r, b, t]) + gamma * min(np_value(q(target, i, h(t + 1), after)) for i in (2, 0))
                for i in range(N):
                    logits = q(critic, i, z[t], a)
                    log_p = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
                    value[r] -= float(within[r, b, t]) * w / N * np_two_hot(y) @ log_p
            for t in range(H + 1):
                a, log_p = pi(z[t], noise[r, b, t].double().numpy())
                best = min(np_value(q(critic, i, z[t], a)) for i in (2, 0))
                policy[r] += float(reached[r, b, t]) * rho**t * (eta * log_p - best / float(scale[r])) / (H + 1) / B

    result = learner.losses(Windows(states[:, :, 0], actions, states[:, :, 1:], within))
    np.testing.assert_allclose(result.metrics["consistency"].numpy(), consistency, rtol=2e-4)
    np.testing.assert_allclose(result.loss.detach().numpy(), 20 * consistency, rtol=2e-4)

    with torch.no_grad():
        flat = states.flatten(1, 2)
        encoded = encoder.embed(flat).view(R, B, H + 1, d)
        rolled = torch.cat([encoded[:, :, :1], rollout(encoder.step, encoded[:, :, 0], actions)], 2)

        def sequences(x: Tensor) -> Tensor:
            return x.view(R, -1, B, x.shape[2] // B, *x.shape[3:])

        following = encoded[:, :, 1:].flatten(1, 2)
        after, _ = prior(following, noise[:, :, 1:].flatten(1, 2))
        of_target = sequences(expected_value(target(following, after)))
        targets = td_target(rewards, of_target, chosen, gamma)
        logits = sequences(critic(rolled[:, :, :-1].flatten(1, 2), actions.flatten(1, 2)))
        np.testing.assert_allclose(value_loss(logits, targets, within, rho).numpy(), value, rtol=2e-4)
        acted, log_probs = prior(rolled.flatten(1, 2), noise.flatten(1, 2))
        least = sequences(expected_value(critic(rolled.flatten(1, 2), acted)))[:, chosen].amin(1)
        found = policy_loss(least, log_probs.view(R, B, H + 1), reached, scale, eta, rho)
        np.testing.assert_allclose(found.numpy(), policy, rtol=2e-4)


def test_simplices_and_normed_layers() -> None:
    x = torch.randn(2, 3, 16)
    found = simplices(x)
    torch.testing.assert_close(found.view(2, 3, 2, 8).sum(-1), torch.ones(2, 3, 2))
    torch.testing.assert_close(found[..., 8:], x[..., 8:].softmax(-1))
    layer = NormedLinear((2,), 16, 5)
    torch.nn.init.normal_(layer.scale)
    plain = x @ layer.weight + layer.bias
    expected = torch.nn.functional.layer_norm(plain, (5,)) * layer.scale + layer.shift
    torch.testing.assert_close(layer(x), expected)
    network = latent_network((2,), (16, 7, 24))
    assert all(isinstance(part, NormedLinear) for part in network.layers)
    assert 0.01 < network.layers[0].weight.std() < 0.03  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="latent_dim: found 20, expected a multiple of 8"):
        latent_network((2,), (16, 7, 20))


def test_two_hot_by_hand_and_back() -> None:
    x = torch.tensor([0.0, math.e - 1, -(math.exp(0.3) - 1), 1e6, -1e6])
    weights = two_hot(x)
    assert weights.shape == (5, BINS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert weights[0, 50] == 1
    torch.testing.assert_close(weights[1, 55], torch.tensor(1.0), atol=1e-4, rtol=0)  # symlog is 1, five bins of 0.2
    torch.testing.assert_close(weights[2, [48, 49]], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)
    assert weights[3, 100] == 1
    assert weights[4, 0] == 1
    values = torch.linspace(-300.0, 300.0, 41)
    torch.testing.assert_close(symexp(symlog(values)), values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected_value((two_hot(values) + 1e-12).log()), values, rtol=1e-3, atol=1e-3)


def test_the_log_probability_is_that_of_a_tanh_gaussian_for_one_number_and_a_power_of_it_for_more() -> None:
    mean, log_std, noise = torch.tensor([[0.3]]), torch.tensor([[-0.7]]), torch.tensor([[0.9]])
    action, log_prob = squashed_gaussian(mean, log_std, noise)
    from torch.distributions import Normal, TanhTransform, TransformedDistribution

    squashed = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    torch.testing.assert_close(log_prob, squashed.log_prob(action)[..., 0], atol=1e-4, rtol=1e-4)
    two = [x.expand(1, 2) for x in (mean, log_std, noise)]
    _, doubled = squashed_gaussian(*two)
    squash = (1 - action.square() + 1e-6).log().sum(-1)
    density = 2 * (-0.5 * 0.9**2 + 0.7) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(doubled, 2 * density - 2 * squash)
    assert bounded_log_std(torch.tensor([-50.0, 0.0, 50.0])).tolist() == [-10.0, -4.0, 2.0]


def test_scale_and_discount_by_hand() -> None:
    values = torch.stack([torch.linspace(0.0, 100.0, 101), torch.linspace(0.0, 0.5, 101)])
    torch.testing.assert_close(value_range(values), torch.tensor([90.0, 1.0]))
    torch.testing.assert_close(moved_scale(torch.ones(2), values), torch.tensor([1.89, 1.0]))
    assert [discount_of(length) for length in (500, 100, 10, 10**6)] == pytest.approx([0.99, 0.95, 0.95, 0.995])


def test_losses_by_hand() -> None:
    steps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    torch.testing.assert_close(discounted(steps, 0.5), torch.tensor([(2.0 + 0.5 * 3.0) / 2]))
    predicted, encoded = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]])
    whole = consistency_loss(predicted, encoded, torch.ones(1, 1, 2), 0.5)
    torch.testing.assert_close(whole, torch.tensor([(5.0 + 0.5 * 2.0) / 2]))
    cut = consistency_loss(predicted, encoded, torch.tensor([[[1.0, 0.0]]]), 0.5)
    torch.testing.assert_close(cut, torch.tensor([2.5]))
    values = torch.tensor([[[4.0], [2.0], [3.0]]])
    torch.testing.assert_close(td_target(torch.ones(1, 1), values, torch.tensor([0, 2]), 0.5), torch.tensor([[2.5]]))
    critic = ValueEnsemble(1, 8, 2, (4,), 3)
    assert not critic(torch.randn(1, 5, 8), torch.randn(1, 5, 2)).any()


def episodes(lengths: tuple[int, ...]) -> list[Episode]:
    """Observations count steps and name the episode, actions count steps."""
    return [
        Episode(
            id=f"e-{i}",
            observations=np.stack([np.arange(n + 1.0), np.full(n + 1, i)], 1).astype(np.float32),
            actions=np.arange(float(n), dtype=np.float32)[:, None] / 100,
            terminated=False,
            truncated=True,
        )
        for i, n in enumerate(lengths)
    ]


def test_no_window_leaves_its_episode() -> None:
    table = TransitionTable.from_episodes(episodes((1, 2, 5, 3)))
    index = torch.arange(len(table))
    rows, within = window(index, table.last[index], 3)
    assert (rows <= table.last[index].unsqueeze(1)).all()
    assert within.tolist()[0] == [1, 0, 0]  # an episode of one step
    assert within[3:8].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    b = table.gather(rows)
    names = b.observations[..., 1]
    assert torch.equal(names, names[:, :1].expand(-1, 3))
    follows = b.observations[:, 1:, 0] == b.next_observations[:, :-1, 0]
    assert follows[within[:, 1:] == 1].all()


def test_a_batch_holds_windows_of_the_table() -> None:
    table = TransitionTable.from_episodes(episodes((4, 9)))
    learner = WorldModel(WorldModelConfig(horizon=4, **SMALL), world(2, 2, 1))
    sources = Sources({"dataset": lambda: table}, 2, 64, CPU)
    b = learner.batch(sources, torch.Generator().manual_seed(0))
    assert b.start.shape == (2, 64, 2)
    assert b.actions.shape == (2, 64, 4, 1)
    assert b.following.shape == (2, 64, 4, 2)
    step = b.following[..., 0] - b.start[..., None, 0]
    assert torch.equal(step * b.within, torch.arange(1.0, 5.0) * b.within)
    assert torch.equal(b.actions[..., 0][b.within == 1], ((step - 1 + b.start[..., None, 0]) / 100)[b.within == 1])
    assert not torch.equal(b.start[0], b.start[1])


def test_what_lies_beyond_an_end_does_not_count() -> None:
    torch.manual_seed(0)
    learner = WorldModel(WorldModelConfig(**SMALL), world())
    parts = torch.randn(2, 6, 4), torch.rand(2, 6, 3, 2), torch.randn(2, 6, 3, 4)
    within = torch.ones(2, 6, 3)
    within[:, :, 2] = 0
    one = learner.losses(Windows(*parts, within)).loss
    parts[2][:, :, 2] += 5.0
    torch.testing.assert_close(learner.losses(Windows(*parts, within)).loss, one)


@pytest.mark.parametrize("anchor", ["reconstruction", "inverse", "none"])
def test_replicas_are_independent_and_targets_have_no_gradient(anchor: Any) -> None:
    torch.manual_seed(0)
    learner = WorldModel(WorldModelConfig(anchor=anchor, **SMALL), world())
    b = Windows(
        torch.randn(2, 6, 4), torch.rand(2, 6, 3, 2), torch.randn(2, 6, 3, 4).requires_grad_(), torch.ones(2, 6, 3)
    )
    learner.losses(b).loss[0].backward()  # type: ignore[no-untyped-call]
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad[1].any(), name
    if anchor == "none":  # h(s_{t+1}) is a target alone
        assert b.following.grad is None or not b.following.grad.any()
    groups = learner.parameter_groups()
    assert [group["lr"] for group in groups] == pytest.approx([0.9e-4, 3e-4])
    assert sum(len(group["params"]) for group in groups) == len(list(learner.parameters()))


class Exact(WorldModelEncoder):
    """Latents are observations, and their dynamics are known: s' = s + a."""

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        return observations.expand(self.architecture.replicas, -1, -1)

    def step(self, latents: Tensor, actions: Tensor) -> Tensor:
        return latents + actions


def test_model_error_of_known_dynamics() -> None:
    rng = np.random.default_rng(0)
    found = []
    for i, length in enumerate((1, 4, 30)):
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        observations = np.concatenate([np.zeros((1, 2), np.float32), actions.cumsum(0)]).astype(np.float32)
        found.append(Episode(id=f"e-{i}", observations=observations, actions=actions, terminated=False, truncated=True))
    a = WorldModelArchitecture(
        replicas=2, observation_dim=2, action_low=(-1.0, -1.0), action_high=(1.0, 1.0), hidden=(4,), latent_dim=8
    )
    rows = model_error(Exact(a), found)
    assert [row["k"] for row in rows] == [1, 2, 3, 5, 10, 20]  # no episode has 50 steps
    assert all(row["error"] < 1e-10 for row in rows)
    points = np.concatenate([e.observations for e in found])
    variance = ((points - points.mean(0)) ** 2).sum(1).mean()
    moved = np.concatenate([(e.actions**2).sum(1) for e in found if e.actions is not None])
    assert rows[0]["staying"] == pytest.approx(moved.mean() / variance, rel=1e-4)


def test_a_saved_one_is_loaded_in_one_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = WorldModel(WorldModelConfig(**SMALL), world()).export()
    save_model(tmp_path / "world", made)
    encoder = dynarep.load_encoder(tmp_path / "world")
    states = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    latents = encoder(states)
    assert latents.shape == (7, 8)
    np.testing.assert_allclose(latents.sum(-1), np.ones(7), rtol=1e-5)
    encoder.export_program(tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    np.testing.assert_allclose(exported(torch.from_numpy(states)).detach().numpy(), latents, rtol=1e-5)
    step = made.embed(torch.from_numpy(states)[None], torch.zeros(1, 7, 2), "next")
    torch.testing.assert_close(step, made.step(made.embed(torch.from_numpy(states)[None]), torch.zeros(1, 7, 2)))


def test_pretraining_trains_and_measures_it(tmp_path: Path) -> None:
    made = point_mass(6, 0)
    bounds = [-1.0, -1.0], [1.0, 1.0]
    write_dataset(
        tmp_path / "mass", "mass", made, provenance={}, env=None, bounds=bounds, returns=None, shard_bytes=10**6
    )
    training = TrainingConfig(updates=4, batch_size=8, updates_per_chunk=2, gradient_clip=20)
    c = entry("pretrain", "world_model", WorldModelConfig(**SMALL), held_out=0.3, training=training)
    found = pretrain(c, load_dataset(tmp_path / "mass"), a_run(tmp_path / "run"))
    metrics = found.measured.metrics
    assert list(metrics["model_error"]) == ["1", "2", "3", "5", "10", "20", "50"]
    assert 1 <= metrics["effective_rank"] <= 8
    assert [row["k"] for row in found.measured.tables["model_error"]] == [1, 2, 3, 5, 10, 20, 50]
    assert {"z", "raw", "standardised"} <= set(metrics)


def test_its_own_weights_are_where_a_training_starts() -> None:
    first, second = (WorldModel(WorldModelConfig(**SMALL), world()) for _ in range(2))
    second.start_from(first.export())
    states = torch.randn(1, 5, 4)
    torch.testing.assert_close(first.encoder.embed(states), second.encoder.embed(states))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim: found 12, expected a multiple of 8"):
        WorldModel(WorldModelConfig(latent_dim=12), world())
    assert WorldModel.needs(WorldModelConfig()).actions == ("dataset",)


def point_mass(count: int, seed: int, exogenous: int = 0) -> list[Episode]:
    """A mass in the plane with friction, pushed by a slowly changing force; numbers of noise beside it."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        s, a = rng.normal(size=4) * (1, 1, 0.3, 0.3), np.zeros(2)
        states, actions = [s], []
        for _ in range(100):
            a = np.clip(0.8 * a + 0.4 * rng.normal(size=2), -1, 1)
            velocity = 0.95 * s[2:] + 0.1 * a - 0.02 * s[:2]
            s = np.concatenate([s[:2] + 0.2 * velocity, velocity])
            states.append(s)
            actions.append(a)
        seen = np.concatenate([np.array(states), rng.normal(size=(101, exogenous))], 1)
        found.append(
            Episode(
                id=f"e-{i}",
                observations=seen.astype(np.float32),
                actions=np.array(actions, np.float32),
                terminated=False,
                truncated=True,
            )
        )
    return found


def learn(anchor: Any, updates: int) -> tuple[WorldModelEncoder, list[Episode]]:
    torch.manual_seed(0)
    fit, kept = point_mass(50, 0), point_mass(10, 1)
    seen = np.concatenate([episode.current for episode in fit])
    moments = torch.from_numpy(seen.mean(0)), torch.from_numpy(seen.std(0))
    c = WorldModelConfig(anchor=anchor, hidden=(64,), dynamics_hidden=(64, 64), latent_dim=32, learning_rate=1e-3)
    learner = WorldModel(c, World(2, *moments, (-1.0, -1.0), (1.0, 1.0)))
    table = TransitionTable.from_episodes(fit)
    sources, generator = Sources({"dataset": lambda: table}, 2, 64, CPU), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(learner.parameter_groups())
    for _ in range(updates):
        adam.zero_grad()
        learner.losses(learner.batch(sources, generator)).loss.sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    return learner.export().eval().requires_grad_(False), kept


def told_linearly(encoder: WorldModelEncoder, kept: list[Episode]) -> Tensor:
    """Share of each state's variance that a linear map of the latents tells, (R, obs_dim)."""
    states = torch.cat([torch.from_numpy(episode.current) for episode in kept])[None]
    latents, wanted = centred(encoder.embed(states)), centred(encoder.normaliser(states))
    solution = torch.linalg.lstsq(
        latents.double(), wanted.double().expand(len(latents), -1, -1), driver="gelsd"
    ).solution
    left = wanted - latents.double() @ solution
    return 1 - left.square().mean(1) / wanted.double().square().mean(1)


@pytest.mark.slow
def test_latents_keep_what_a_linear_map_can_read() -> None:
    """With the anchor they keep place and velocity of a mass, and its model predicts better than standing still does."""
    encoder, kept = learn("reconstruction", 1000)
    assert told_linearly(encoder, kept).min() > 0.9
    rows = {row["k"]: row for row in model_error(encoder, kept)}
    assert rows[3]["error"] < 0.3 * rows[3]["staying"]
    assert rows[10]["error"] < 0.3 * rows[10]["staying"]
