"""The same work done in other ways: JAX with optax, plain PyTorch, d3rlpy, OTT-JAX, POT, Gymnasium, WebDataset.

Written for the comparison, from the papers and the packages' documentation; nothing of the project's code is used, so
that its design is not compared with itself. Imports are inside, since the packages are in the extra ``bench``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.timing import Work

GAMMA, EXPECTILE, TEMPERATURE, TARGET_RATE, LEARNING_RATE = 0.99, 0.7, 3.0, 0.005, 3e-4
SCAN = 64


class Recording:
    """Random transitions of a size, the same for everybody."""

    def __init__(self, count: int = 100_000, observation_dim: int = 11, action_dim: int = 3) -> None:
        rng = np.random.default_rng(0)
        self.observations = rng.normal(size=(count, observation_dim)).astype(np.float32)
        self.actions = rng.uniform(-1, 1, (count, action_dim)).astype(np.float32)
        self.rewards = rng.normal(size=count).astype(np.float32)
        self.next_observations = rng.normal(size=(count, observation_dim)).astype(np.float32)
        self.terminated = (rng.random(count) < 0.01).astype(np.float32)
        self.last = np.minimum((np.arange(count) // 1000 + 1) * 1000, count) - 1

    def __len__(self) -> int:
        return len(self.rewards)


def _jax_mlp(key: Any, sizes: tuple[int, ...], stack: tuple[int, ...] = ()) -> list[tuple[Any, Any]]:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (*stack, i, o)) / np.sqrt(i), jnp.zeros((*stack, o)))
        for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _jax_apply(layers: list[tuple[Any, Any]], x: Any, *, final_relu: bool = False, layer_norm: bool = False) -> Any:
    import jax

    for i, (w, b) in enumerate(layers):
        x = x @ w + b
        if i < len(layers) - 1 or final_relu:
            x = jax.nn.relu(x)
            if layer_norm:
                x = jax.nn.standardize(x, axis=-1, epsilon=1e-5)
    return x


def _jax_loop(state: Any, update: Any, draw: Any, count: int, *, scan: bool) -> Work:
    """``count`` updates per call: one dispatch each with indices from NumPy, or scans with sampling on the device."""
    import jax

    key = jax.random.PRNGKey(1)
    rng = np.random.default_rng(0)
    single = jax.jit(update)

    @jax.jit
    def many(state: Any, key: Any) -> Any:
        def body(state: Any, key: Any) -> Any:
            return update(state, draw(key)), None

        return jax.lax.scan(body, state, jax.random.split(key, SCAN))[0]

    def work() -> float:
        nonlocal state, key
        if scan:
            for _ in range(count // SCAN):
                key, use = jax.random.split(key)
                state = many(state, use)
        else:
            for _ in range(count):
                state = single(state, draw(rng))
        jax.block_until_ready(state)
        return float(count // SCAN * SCAN if scan else count)

    return work


def jax_iql(hidden: int, batch: int, count: int, *, scan: bool) -> Work:
    """IQL in JAX with optax; the three losses share one gradient."""
    import jax
    import jax.numpy as jnp
    import optax

    data = Recording()
    s_dim, a_dim = data.observations.shape[1], data.actions.shape[1]
    k1, k2, k3 = jax.random.split(jax.random.PRNGKey(0), 3)
    parameters = {
        "v": _jax_mlp(k1, (s_dim, hidden, hidden, 1)),
        "q": _jax_mlp(k2, (s_dim + a_dim, hidden, hidden, 1), (2,)),
        "pi": _jax_mlp(k3, (s_dim, hidden, hidden, a_dim)),
        "log_std": jnp.zeros(a_dim),
    }
    optimizer = optax.adam(LEARNING_RATE)

    def q_of(layers: Any, pair: Any) -> Any:
        x = pair[None]
        for i, (w, b) in enumerate(layers):
            x = jnp.einsum("nbi,nio->nbo", jnp.broadcast_to(x, (2, *x.shape[1:])), w) + b[:, None]
            x = jax.nn.relu(x) if i < len(layers) - 1 else x
        return x[..., 0]

    def loss(p: Any, target: Any, s: Any, a: Any, r: Any, s_next: Any, done: Any) -> Any:
        pair = jnp.concatenate([s, a], -1)
        q_target = q_of(target, pair).min(0)
        v = _jax_apply(p["v"], s)[:, 0]
        difference = q_target - v
        v_loss = (jnp.where(difference > 0, EXPECTILE, 1 - EXPECTILE) * difference**2).mean()
        v_next = jax.lax.stop_gradient(_jax_apply(p["v"], s_next)[:, 0])
        y = r + GAMMA * (1 - done) * v_next
        q_loss = ((q_of(p["q"], pair) - y) ** 2).mean(1).sum()
        weight = jnp.minimum(jnp.exp(TEMPERATURE * jax.lax.stop_gradient(difference)), 100.0)
        mean, log_std = jnp.tanh(_jax_apply(p["pi"], s)), jnp.clip(p["log_std"], -5, 2)
        log_prob = (-0.5 * ((a - mean) / jnp.exp(log_std)) ** 2 - log_std).sum(-1)
        return v_loss + q_loss - (weight * log_prob).mean()

    def update(state: Any, fields: Any) -> Any:
        p, target, moments = state
        gradient = jax.grad(loss)(p, target, *fields)
        change, moments = optimizer.update(gradient, moments)
        p = optax.apply_updates(p, change)
        target = jax.tree.map(lambda t, q: t + TARGET_RATE * (q - t), target, p["q"])
        return p, target, moments

    columns = [data.observations, data.actions, data.rewards, data.next_observations, data.terminated]
    packed = jnp.asarray(np.concatenate([c.reshape(len(data), -1) for c in columns], 1))
    cuts = np.cumsum([c.reshape(len(data), -1).shape[1] for c in columns])[:-1]

    def on_device(key: Any) -> Any:
        rows = packed[jax.random.randint(key, (batch,), 0, len(data))]
        s, a, r, s_next, done = jnp.split(rows, cuts, 1)
        return s, a, r[:, 0], s_next, done[:, 0]

    def on_host(rng: np.random.Generator) -> Any:
        index = rng.integers(0, len(data), batch)
        return [column[index] for column in columns]

    initial = (parameters, parameters["q"], optimizer.init(parameters))
    return _jax_loop(initial, update, on_device if scan else on_host, count, scan=scan)


def jax_icvf(hidden: int, batch: int, count: int, *, scan: bool, layer_norm: bool) -> Work:
    """ICVF in JAX with optax; every value is evaluated on its own, as the formulas stand."""
    import jax
    import jax.numpy as jnp
    import optax

    data = Recording()
    s_dim = data.observations.shape[1]
    keys = jax.random.split(jax.random.PRNGKey(0), 10)

    def member(k: Any) -> Any:
        k = jax.random.split(k, 5)
        size = (hidden, hidden)
        return {
            "phi": _jax_mlp(k[0], (s_dim, *size)),
            "psi": _jax_mlp(k[1], (s_dim, *size)),
            "t": _jax_mlp(k[2], (hidden, *size)),
            "a": _jax_mlp(k[3], (hidden, hidden)),
            "b": _jax_mlp(k[4], (hidden, hidden)),
        }

    parameters = jax.vmap(member)(keys[:2])
    optimizer = optax.adam(LEARNING_RATE)

    def value(p: Any, s: Any, g: Any, z: Any) -> Any:
        def mlp(x: Any, name: str) -> Any:
            return _jax_apply(p[name], x, final_relu=True, layer_norm=layer_norm)

        t = mlp(mlp(z, "psi"), "t")
        a, b = _jax_apply(p["a"], t * mlp(s, "phi")), _jax_apply(p["b"], t * mlp(g, "psi"))
        return (a * b).sum(-1)

    values = jax.vmap(value, (0, None, None, None))

    def loss(p: Any, target: Any, s: Any, s_next: Any, g: Any, z: Any, at_g: Any, at_z: Any) -> Any:
        q = at_g - 1.0 + GAMMA * (1.0 - at_g) * values(target, s_next, g, z)
        q_z = at_z - 1.0 + GAMMA * (1.0 - at_z) * values(target, s_next, z, z).min(0)
        advantage = q_z - values(target, s, z, z).mean(0)
        weight = jnp.where(advantage >= 0, 0.9, 0.1)
        return (weight * (q - values(p, s, g, z)) ** 2).mean(1).sum()

    def update(state: Any, fields: Any) -> Any:
        p, target, moments = state
        change, moments = optimizer.update(jax.grad(loss)(p, target, *fields), moments)
        p = optax.apply_updates(p, change)
        return p, jax.tree.map(lambda t, q: t + TARGET_RATE * (q - t), target, p), moments

    def batch_of(observations: Any, following: Any, index: Any, g: Any, z: Any) -> Any:
        s, s_next, outcome, intent = observations[index], following[index], observations[g], observations[z]
        return s, s_next, outcome, intent, (g == index) * 1.0, (z == index) * 1.0

    table = jnp.asarray(data.observations), jnp.asarray(data.next_observations)
    last = jnp.asarray(data.last)

    def on_device(key: Any) -> Any:
        k = jax.random.split(key, 4)
        index = jax.random.randint(k[0], (batch,), 0, len(data))

        def goals(key: Any) -> Any:
            kind, u = jax.random.uniform(key, (2, batch))
            ahead = index + jnp.round((last[index] - index) * u).astype(index.dtype)
            anywhere = jax.random.randint(key, (batch,), 0, len(data))
            return jnp.where(kind < 0.3, anywhere, jnp.where(kind < 0.8, ahead, index))

        z = goals(k[1])
        g = jnp.where(jax.random.uniform(k[3], (batch,)) < 0.5, z, goals(k[2]))
        return batch_of(*table, index, g, z)

    def on_host(rng: np.random.Generator) -> Any:
        index = rng.integers(0, len(data), batch)

        def goals() -> Any:
            kind, u = rng.random((2, batch))
            ahead = index + np.round((data.last[index] - index) * u).astype(index.dtype)
            return np.where(kind < 0.3, rng.integers(0, len(data), batch), np.where(kind < 0.8, ahead, index))

        z = goals()
        g = np.where(rng.random(batch) < 0.5, z, goals())
        return batch_of(data.observations, data.next_observations, index, g, z)

    initial = (parameters, parameters, optimizer.init(parameters))
    return _jax_loop(initial, update, on_device if scan else on_host, count, scan=scan)


def jax_metric(hidden: int, batch: int, count: int, *, scan: bool) -> Work:
    """The temporal metric in JAX with optax: one network on three batches of states, and the multiplier."""
    import jax
    import jax.numpy as jnp
    import optax

    data = Recording()
    s_dim = data.observations.shape[1]
    parameters = {
        "gate": jnp.ones(s_dim),
        "psi": _jax_mlp(jax.random.PRNGKey(0), (s_dim, hidden, hidden, 32)),
        "multiplier": jnp.asarray(10.0),
    }
    optimizer = optax.adam(LEARNING_RATE)

    def loss(p: Any, s: Any, s_next: Any, others: Any) -> Any:
        x = jnp.concatenate([s, s_next, others]) * p["gate"] ** 2
        a, b, c = jnp.split(_jax_apply(p["psi"], x, layer_norm=True), 3)
        step, far = (jnp.sqrt(((a - y) ** 2).sum(-1) + 1e-6) for y in (b, c))
        excess = (jnp.maximum(step - 1.0, 0.0) ** 2).mean() - 0.25**2
        weight, stop = jax.nn.softplus(p["multiplier"]), jax.lax.stop_gradient
        spread = (jax.nn.softplus(0.01 * (500.0 - far)) / 0.01).mean()
        return spread + stop(weight) * excess - weight * stop(excess)

    def update(state: Any, fields: Any) -> Any:
        p, moments = state
        change, moments = optimizer.update(jax.grad(loss)(p, *fields), moments)
        return optax.apply_updates(p, change), moments

    observations, following = jnp.asarray(data.observations), jnp.asarray(data.next_observations)

    def on_device(key: Any) -> Any:
        index, others = jax.random.randint(key, (2, batch), 0, len(data))
        return observations[index], following[index], observations[others]

    def on_host(rng: np.random.Generator) -> Any:
        index, others = rng.integers(0, len(data), (2, batch))
        return data.observations[index], data.next_observations[index], data.observations[others]

    return _jax_loop((parameters, optimizer.init(parameters)), update, on_device if scan else on_host, count, scan=scan)


def torch_iql(hidden: int, batch: int, count: int) -> Work:
    """IQL as single-file PyTorch codes have it: an optimiser, a backward pass and a logged number for each loss."""
    import torch
    from torch import nn

    data = Recording()
    s_dim, a_dim = data.observations.shape[1], data.actions.shape[1]

    def mlp(inputs: int, outputs: int) -> nn.Sequential:
        sizes = (inputs, hidden, hidden)
        layers = [m for i, o in zip(sizes[:-1], sizes[1:], strict=True) for m in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(hidden, outputs))

    q1, q2, v, pi = mlp(s_dim + a_dim, 1), mlp(s_dim + a_dim, 1), mlp(s_dim, 1), mlp(s_dim, a_dim)
    targets = [mlp(s_dim + a_dim, 1).requires_grad_(False) for _ in range(2)]
    for target, q in zip(targets, (q1, q2), strict=True):
        target.load_state_dict(q.state_dict())
    log_std = nn.Parameter(torch.zeros(a_dim))
    v_optimizer = torch.optim.Adam(v.parameters(), LEARNING_RATE)
    q_optimizer = torch.optim.Adam([*q1.parameters(), *q2.parameters()], LEARNING_RATE)
    pi_optimizer = torch.optim.Adam([*pi.parameters(), log_std], LEARNING_RATE)
    columns = [
        torch.from_numpy(c)
        for c in (data.observations, data.actions, data.rewards, data.next_observations, data.terminated)
    ]

    def work() -> float:
        for _ in range(count):
            index = torch.from_numpy(np.random.randint(0, len(data), batch))  # noqa: NPY002
            s, a, r, s_next, done = (column[index] for column in columns)
            with torch.no_grad():
                pair = torch.cat([s, a], 1)
                q_target = torch.min(targets[0](pair), targets[1](pair)).squeeze(1)
                v_next = v(s_next).squeeze(1)
            advantage = q_target - v(s).squeeze(1)
            v_loss = (torch.abs(EXPECTILE - (advantage < 0).float()) * advantage**2).mean()
            v_optimizer.zero_grad()
            v_loss.backward()
            v_optimizer.step()
            y = r + GAMMA * (1 - done) * v_next
            errors = [nn.functional.mse_loss(q(torch.cat([s, a], 1)).squeeze(1), y) for q in (q1, q2)]
            q_loss = (errors[0] + errors[1]) / 2
            q_optimizer.zero_grad()
            q_loss.backward()  # type: ignore[no-untyped-call]
            q_optimizer.step()
            with torch.no_grad():
                for target, q in zip(targets, (q1, q2), strict=True):
                    for old, new in zip(target.parameters(), q.parameters(), strict=True):
                        old.data.copy_((1 - TARGET_RATE) * old.data + TARGET_RATE * new.data)
            weight = torch.exp(TEMPERATURE * advantage.detach()).clamp(max=100.0)
            density: Any = torch.distributions.Normal(torch.tanh(pi(s)), log_std.clamp(-5, 2).exp())
            pi_loss = -(weight * density.log_prob(a).sum(-1)).mean()
            pi_optimizer.zero_grad()
            pi_loss.backward()
            pi_optimizer.step()
            _ = v_loss.item(), q_loss.item(), pi_loss.item()
        return float(count)

    return work


def d3rlpy_iql(hidden: int, batch: int, count: int) -> Work:
    """IQL of d3rlpy, its replay buffer included."""
    import logging

    import d3rlpy
    import structlog
    from d3rlpy.models.encoders import VectorEncoderFactory

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    data = Recording()
    ends = np.zeros(len(data))
    ends[data.last] = 1.0
    dataset = d3rlpy.dataset.MDPDataset(data.observations, data.actions, data.rewards, np.zeros(len(data)), ends)
    encoder = VectorEncoderFactory([hidden, hidden])
    algorithm = d3rlpy.algos.IQLConfig(
        batch_size=batch,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
    ).create(device="cpu:0")
    algorithm.build_with_dataset(dataset)

    def work() -> float:
        for _ in range(count):
            algorithm.update(dataset.sample_transition_batch(batch))
        return float(count)

    return work


def walks(n: int, m: int, dim: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two random walks of n and m points, as costs between episodes have structure."""
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(size, dim)).cumsum(0) / np.sqrt(size) for size in (n, m))
    return x.astype(np.float32), y.astype(np.float32)


def cost_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances, mean 1."""
    cost = np.square(x[:, None] - y[None]).sum(-1)
    return np.asarray(cost / cost.mean(), np.float32)


def ott_sinkhorn(cost: np.ndarray, epsilon: float, iterations: int) -> Any:
    """The coupling by OTT-JAX in the log domain, as OTR calls it; a compiled function of no arguments."""
    import jax
    import jax.numpy as jnp
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    @jax.jit
    def solve(cost: Any) -> Any:
        problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=epsilon))
        solver = sinkhorn.Sinkhorn(threshold=0.0, min_iterations=iterations, max_iterations=iterations)
        return solver(problem).matrix

    on_device = jnp.asarray(cost)
    return lambda: np.asarray(solve(on_device))


def pot_sinkhorn(cost: np.ndarray, epsilon: float, iterations: int, *, log: bool, dtype: Any) -> Any:
    """The coupling by POT; a function of no arguments."""
    import warnings

    import ot

    n, m = cost.shape
    a, b, cost = np.full(n, 1 / n, dtype), np.full(m, 1 / m, dtype), cost.astype(dtype)

    def solve() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = "sinkhorn_log" if log else "sinkhorn"
            return ot.sinkhorn(a, b, cost, epsilon, method=method, numItermax=iterations, stopThr=0.0, warn=False)

    return solve
