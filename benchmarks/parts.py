"""Where the time goes on a CPU: parts of an update, an evaluation step and a coupling, timed alone beside the whole.

Parts of a group need not add up to the whole: alone, a part finds its data in the cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import peers
from benchmarks.ours import (
    ACTIONS,
    ENDLESS,
    OBSERVATIONS,
    icvf_learner,
    iql_learner,
    metric_learner,
    our_rollouts,
    policy_folder,
    repeated,
    sinkhorn,
)
from benchmarks.timing import Contender, Group, Work
from dynarep.pipeline.training.device import keep_freed_memory
from dynarep.pipeline.training.gradients import gradients_of

Make = Callable[[int, int], tuple[Any, Any]]
"""From hidden units and batch size to a learner and what draws its batches."""


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the matrix products that are done inside it, with their operands."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            self.calls.append(partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


class _Update:
    """The parts of an update, compiled as the loop does it."""

    def __init__(self, make: Make, hidden: int, batch: int) -> None:
        keep_freed_memory()
        torch._dynamo.config.trace_autograd_ops = True
        self.learner, sample = make(hidden, batch)
        groups = [{"params": group["params"], "lr": group["lr"]} for group in self.learner.parameter_groups()]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.parameters = [p for group in groups for p in group["params"]]
        self.sample = partial(sample, torch.Generator())
        eager = gradients_of(self.learner, self.parameters)
        self.compiled = torch.compile(eager, fullgraph=True)
        self.batch = self.sample()
        with _Products() as products:
            found, _ = eager(self.batch)
        self.products = products.calls
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient

    def whole(self) -> None:
        found, _ = self.compiled(self.sample())
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.learner.after_update()

    def gradients(self) -> None:
        self.compiled(self.batch)

    @torch.no_grad()
    def multiply(self) -> None:
        for product in self.products:
            product()

    def multiply_by_xla(self) -> Callable[[], Any]:
        """What does the same products by JAX, with operands that are transposed where PyTorch's are."""
        import jax
        import jax.numpy as jnp

        pairs = [[x.detach() for x in product.args] for product in self.products]
        transposed = [[x.stride(-1) != 1 for x in pair] for pair in pairs]
        stored = [
            [jnp.asarray((x.mT if flip else x).contiguous().numpy()) for x, flip in zip(pair, flips, strict=True)]
            for pair, flips in zip(pairs, transposed, strict=True)
        ]

        def products(operands: Any) -> Any:
            return [
                jnp.matmul(*(x.mT if flip else x for x, flip in zip(pair, flips, strict=True))).max()
                for pair, flips in zip(operands, transposed, strict=True)
            ]

        compiled = jax.jit(products)
        return lambda: jax.block_until_ready(compiled(stored))


def _update_parts(make: Make, count: int) -> list[Contender]:
    @cache
    def update_of(hidden: int, batch: int) -> _Update:
        return _Update(make, hidden, batch)

    def part(choose: Callable[[_Update], Callable[[], Any]], hidden: int = 256, batch: int = 256) -> Callable[[], Work]:
        return lambda: repeated(lambda: choose(update_of(hidden, batch)), count)

    return [
        Contender("the whole update", part(lambda update: update.whole)),
        Contender("losses and gradients", part(lambda update: update.gradients)),
        Contender("their matrix products alone", part(lambda update: update.multiply)),
        Contender("the same products by JAX", part(lambda update: update.multiply_by_xla())),
        Contender(
            "their calls: the same with 8 units, batch 8", part(lambda update: update.gradients, hidden=8, batch=8)
        ),
        Contender("Adam", part(lambda update: update.optimizer.step)),
        Contender("target networks", part(lambda update: update.learner.after_update)),
        Contender("drawing a batch", part(lambda update: update.sample)),
    ]


def _environment_steps(count: int) -> Work:
    """Gymnasium's step of one environment, with fixed actions."""
    import gymnasium

    import benchmarks.environments  # noqa: F401

    environment = gymnasium.make(ENDLESS, disable_env_checker=True)
    environment.reset(seed=0)
    return repeated(lambda: partial(environment.step, np.zeros(ACTIONS, np.float32)), count)


def _simulator_steps(count: int) -> Work:
    """MuJoCo alone, as many of its steps as one of the environment's."""
    import gymnasium
    import mujoco

    import benchmarks.environments  # noqa: F401

    simulation: Any = gymnasium.make(ENDLESS, disable_env_checker=True).unwrapped
    simulation.reset(seed=0)
    return repeated(lambda: partial(mujoco.mj_step, simulation.model, simulation.data, simulation.frame_skip), count)


def _decisions(count: int, block: int) -> Work:
    """A policy of one replica, asked for a block of episodes at once."""
    policy = policy_folder(Path(tempfile.mkdtemp()) / "policy")
    observations = torch.zeros(1, block, OBSERVATIONS)

    def work() -> float:
        with torch.inference_mode():
            for _ in range(count):
                policy.act(observations).numpy()
        return float(count * block)

    return work


def _passes(cost: np.ndarray, iterations: int) -> Callable[[], Any]:
    """What an iteration cannot do without: the kernel times a vector on either side."""
    kernel = np.exp(-cost / (0.05 * cost.mean())).astype(np.float32)
    rows, columns = (np.ones(size, np.float32) for size in kernel.shape)

    def call() -> None:
        for _ in range(iterations):
            rows @ kernel
            columns @ kernel.T

    return call


def _exponentials(cost: np.ndarray) -> Callable[[], Any]:
    """Those of the first kernel and of the coupling."""
    exponents = (-cost / (0.05 * cost.mean())).astype(np.float32)
    kernel = np.empty_like(exponents)
    return lambda: (np.exp(exponents, out=kernel), np.exp(exponents, out=kernel))


def parts(scale: float) -> list[Group]:
    """The groups; the first contender of each is the whole, and the others are its parts."""
    from dynarep.pipeline.playing.play import BLOCK

    def n(count: int) -> int:
        return max(2, round(count * scale))

    cost = peers.cost_of(*peers.walks(1000, 1000))
    return [
        Group("Parts of an update of IQL", "updates", _update_parts(partial(iql_learner, replicas=1), n(100))),
        Group(
            "Parts of an update of ICVF",
            "updates",
            _update_parts(partial(icvf_learner, replicas=1, variant="icvf"), n(30)),
        ),
        Group(
            "Parts of an update of ICVF, LayerNorm and GELU",
            "updates",
            _update_parts(partial(icvf_learner, replicas=1, variant="ailot"), n(30)),
        ),
        Group(
            "Parts of an update of the temporal metric",
            "updates",
            _update_parts(partial(metric_learner, replicas=1), n(100)),
        ),
        Group(
            "Parts of an evaluation's step",
            "environment steps",
            [
                Contender("the whole step", partial(our_rollouts, n(1000), 1)),
                Contender("Gymnasium's step", partial(_environment_steps, n(4000))),
                Contender("MuJoCo's steps in it", partial(_simulator_steps, n(4000))),
                Contender("the policy", partial(_decisions, n(1000), BLOCK)),
                Contender("the policy, asked for ten at once", partial(_decisions, n(500), 10)),
            ],
        ),
        Group(
            "Parts of a coupling, 1000 x 1000, 100 iterations, epsilon 5%",
            "couplings",
            [
                Contender("the whole coupling", partial(repeated, partial(sinkhorn, cost, 0.05, 100), n(5))),
                Contender("200 products of kernel and vector", partial(repeated, partial(_passes, cost, 100), n(5))),
                Contender("exponentials", partial(repeated, partial(_exponentials, cost), n(5))),
            ],
        ),
    ]
