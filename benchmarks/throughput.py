"""Throughput benchmark: this project and its peers at the same work, side by side in one run.

    python -m benchmarks.throughput

Peers come with ``pip install -e .[bench]``; those that are missing are named as such. Numbers are medians over repeats in
which the contenders of a group take turns on one core (or one GPU), with the least and the largest; ratios are those of
medians. The floor is the arithmetic of an update (counted by PyTorch) at the rate of a batched product of its size.
Writes ``benchmarks/results/throughput.json``; ``python -m benchmarks.tables docs/performance.md`` shows it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from benchmarks import peers
from benchmarks.scores import RESULTS, ROOT, processor
from benchmarks.timing import Contender, Group, Timing, Work, compare

OBSERVATIONS, ACTIONS = 11, 3
SIDES = "dataset", "demonstrations"


def device() -> Any:
    """Where the project trains."""
    from dynarep.pipeline.training.loop import training_device

    return training_device()


def recording() -> Any:
    """``peers.Recording`` as a transition table of 100 episodes."""
    import torch

    from dynarep.data.resident import TransitionTable

    data = peers.Recording()
    columns = data.observations, data.actions, data.next_observations, data.terminated[:, None], data.rewards[:, None]
    packed = torch.from_numpy(np.concatenate(columns, 1)).to(device())
    return TransitionTable(packed, torch.full((100,), 1000), observation_dim=OBSERVATIONS, action_dim=ACTIONS)


def iql_learner(hidden: int, batch: int, replicas: int) -> tuple[Any, Any]:
    """The learner of IQL on Hopper's sizes, and what draws its batches."""
    import torch

    from dynarep.data.sampling import uniform
    from dynarep.pipeline.methods.learners.iql import IQL, IQLConfig, RewardBatch

    torch.manual_seed(0)
    table = recording()
    rewards = table.packed[:, -1].expand(replicas, -1).contiguous()
    moments = torch.zeros(OBSERVATIONS), torch.ones(OBSERVATIONS)
    learner = IQL(IQLConfig(hidden=(hidden, hidden)), replicas, *moments, (-1.0,) * ACTIONS, (1.0,) * ACTIONS)

    def sample(generator: Any) -> Any:
        index = uniform(len(table), (replicas, batch), generator, table.packed.device)
        b = table.gather(index)
        return RewardBatch(b.observations, b.actions, rewards.gather(1, index), b.terminated, b.next_observations)

    return learner, sample


def icvf_learner(hidden: int, batch: int, replicas: int, variant: str) -> tuple[Any, Any]:
    """The learner of ICVF on Hopper's sizes, and what draws its batches."""
    import torch

    from dynarep.data.sampling import goal_and_intent, uniform
    from dynarep.pipeline.methods.encoders.icvf import ICVF, GoalBatch, ICVFConfig

    torch.manual_seed(0)
    table = recording()
    c = ICVFConfig(hidden=(hidden,), latent_dim=hidden, variant=variant)  # type: ignore[arg-type]
    learner = ICVF(c, replicas, torch.zeros(OBSERVATIONS), torch.ones(OBSERVATIONS))

    def sample(generator: Any) -> Any:
        index = uniform(len(table), (replicas, batch), generator, table.packed.device)
        mixture = {name: getattr(c, name) for name in ("p_random", "p_trajectory", "p_current", "p_same")}
        g, z = goal_and_intent(index, table.last[index], len(table), generator=generator, **mixture)
        b = table.gather(index)
        outcomes, intents = table.observations_at(g), table.observations_at(z)
        reached = (g == index).float(), (z == index).float()
        return GoalBatch(b.observations, b.next_observations, outcomes, intents, *reached)

    return learner, sample


def engine(make: Callable[[], tuple[Any, Any]], count: int, *, compile_it: bool) -> Work:
    """Trainings by the engine, with chunks, logging, progress lines and checkpoints; what counts is after the first chunk.

    What is left out is Lightning's start and end and compiling, which do not grow with the length of a training.
    """
    from dynarep.pipeline.training.loop import Run, TrainingConfig, train

    chunk = min(250, count)
    training = TrainingConfig(
        updates=chunk + count + 1, updates_per_chunk=chunk, checkpoint_every=max(chunk, count // 2), compile=compile_it
    )

    def work() -> tuple[float, float]:
        learner, sample = make()
        draws: list[float] = []

        def timed(generator: Any) -> Any:
            draws.append(time.perf_counter())
            return sample(generator)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output"
            path.mkdir()
            run = Run("bench", 0, 1, path, Path(folder) / "checkpoints")
            kept, sys.stderr = sys.stderr, io.StringIO()
            try:
                train(learner, timed, training, run=run, metrics=("loss",), key="bench")
            finally:
                sys.stderr = kept
            return float(count), draws[chunk + count] - draws[chunk]

    return work


def bare(make: Callable[[], tuple[Any, Any]], count: int) -> Work:
    """The loop that the engine wraps: sample, losses, backward, Adam, targets."""
    import torch

    from dynarep.pipeline.training.loop import keep_freed_memory

    keep_freed_memory()
    learner, sample = make()
    learner.to(device())
    groups = [{"params": group["params"], "lr": group["lr"]} for group in learner.parameter_groups()]
    optimizer = torch.optim.Adam(groups, fused=True)
    generator = torch.Generator(device())

    def work() -> float:
        for _ in range(count):
            losses = learner.losses(sample(generator))
            optimizer.zero_grad(set_to_none=True)
            losses.loss.sum().backward()
            optimizer.step()
            learner.after_update()
        if device().type == "cuda":
            torch.cuda.synchronize()
        return float(count)

    return work


def arithmetic(make: Callable[[], tuple[Any, Any]]) -> float:
    """Floating point operations of the matrix products of one update."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    learner, sample = make()
    learner.to(device())
    batch = sample(torch.Generator(device()))
    with FlopCounterMode(display=False) as counter:
        learner.losses(batch).loss.sum().backward()
    return float(counter.get_total_flops())


def product_rate(size: int) -> float:
    """Floating point operations per second of a product of two (size, size) matrices, on the core of the benchmark."""
    import torch

    a, b, out = (torch.randn(2, size, size, device=device()) for _ in range(3))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(20):
            torch.bmm(a, b, out=out)
        if device().type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 20 * 2 * 2 * size**3 / (time.perf_counter() - started))
    os.sched_setaffinity(0, cores)
    return best


def sinkhorn(cost: np.ndarray, epsilon: float, iterations: int) -> Callable[[], np.ndarray]:
    """This project's coupling; a function of no arguments."""
    import torch

    from dynarep.pipeline.training.loop import keep_freed_memory
    from dynarep.pipeline.transport import sinkhorn as solve
    from dynarep.pipeline.transport import uniform_masses

    keep_freed_memory()  # as the relabelling stage does it
    c = torch.from_numpy(cost)[None].to(device())
    a, b = (uniform_masses(torch.tensor([n], device=device()), n) for n in cost.shape)
    eps = torch.tensor([epsilon], device=device())
    return lambda: solve(c, a, b, eps, max_iterations=iterations, tolerance=0.0).coupling[0].cpu().numpy()


def repeated(make: Callable[[], Callable[[], Any]], count: int) -> Work:
    """Call what ``make`` returns ``count`` times."""
    call = make()

    def work() -> float:
        for _ in range(count):
            call()
        return float(count)

    return work


def label_error(coupling: np.ndarray, reference: np.ndarray, cost: np.ndarray) -> float:
    """Largest error of what a step pays, relative to the mean."""
    paid, exact = ((p * cost).sum(1) for p in (coupling, reference))
    return float(np.abs(paid - exact).max() / exact.mean())


def relabelling(episodes: int, length: int, iterations: int) -> Work:
    """AILOT's labels for episodes against one expert, from points that are already embedded."""
    import torch

    from dynarep.pipeline.methods import ailot
    from dynarep.pipeline.transport import pad_with_last

    agents = [torch.from_numpy(peers.walks(length, 2, 256, seed)[0]) for seed in range(episodes)]
    expert = torch.from_numpy(peers.walks(1000, 2, 256, 99)[0])[None].to(device())
    c = ailot.AILOTConfig(max_iterations=iterations)

    size = 1 if device().type == "cpu" else 64

    def work() -> float:
        for first in range(0, episodes, size):
            x, lengths = pad_with_last([agent.to(device()) for agent in agents[first : first + size]])
            experts, expert_lengths = expert.expand(len(x), -1, -1), torch.full_like(lengths, 1000)
            ailot.label(x, lengths, experts, expert_lengths, torch.ones(len(x), device=device()), c).rewards.cpu()
        return float(episodes * length)

    return work


def ott_relabelling(episodes: int, length: int, iterations: int) -> Work:
    """The same costs and couplings by OTT-JAX, as OTR's code does it: one compiled function for every episode."""
    import jax
    import jax.numpy as jnp
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott

    agents = [peers.walks(length, 2, 256, seed)[0] for seed in range(episodes)]
    expert = jnp.asarray(peers.walks(1000, 2, 256, 99)[0])

    @jax.jit
    def label(x: Any) -> Any:
        cost = jnp.maximum((x**2).sum(1)[:, None] + (expert**2).sum(1) - 2 * x @ expert.T, 0)
        problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=0.01 * cost.mean()))
        solver = ott.Sinkhorn(threshold=0.0, min_iterations=iterations, max_iterations=iterations)
        return (solver(problem).matrix * cost).sum(1)

    def work() -> float:
        for agent in agents:
            np.asarray(label(agent))
        return float(episodes * length)

    return work


ENDLESS = "benchmarks.environments:EndlessHopper-v0"


def policy_folder(folder: Path) -> Any:
    """A policy with random weights, saved."""
    import torch

    from dynarep.pipeline.artifacts.storage import save_model
    from dynarep.pipeline.encoders import Policy, PolicyArchitecture

    torch.manual_seed(0)
    bounds = (-1.0,) * ACTIONS, (1.0,) * ACTIONS
    architecture = PolicyArchitecture(
        replicas=1, observation_dim=OBSERVATIONS, action_low=bounds[0], action_high=bounds[1], hidden=(256, 256)
    )
    policy = Policy(architecture)
    save_model(folder, policy)
    return policy


def our_rollouts(steps: int, workers: int, episodes: int = 10) -> Work:
    """Evaluation by this project: episodes of an endless Hopper, ``steps`` each."""
    from dynarep.pipeline.artifacts.storage import load_policy
    from dynarep.pipeline.playing.evaluate import EvaluateConfig, play

    folder = Path(tempfile.mkdtemp())
    policy_folder(folder / "policy")
    settings = EvaluateConfig(env=ENDLESS, episodes=episodes, workers=workers, max_steps=steps)

    def work() -> float:
        played = play({"policy": folder / "policy"}, settings, load_policy)
        return float(sum(rollouts.lengths.sum() for rollouts in played.values()))

    return work


def vector_rollouts(steps: int, *, processes: bool, episodes: int = 10) -> Work:
    """The same episodes by Gymnasium's vector environments, the policy asked for all of them at once."""
    import gymnasium
    import torch

    import benchmarks.environments  # noqa: F401

    torch.set_num_threads(1)
    policy = policy_folder(Path(tempfile.mkdtemp()) / "policy")
    kind = gymnasium.vector.AsyncVectorEnv if processes else gymnasium.vector.SyncVectorEnv
    vector: Any = kind([partial(gymnasium.make, ENDLESS, disable_env_checker=True) for _ in range(episodes)])

    def work() -> float:
        observations, _ = vector.reset(seed=0)
        with torch.inference_mode():
            for _ in range(steps):
                actions = policy.act(torch.from_numpy(observations.astype(np.float32))[None])[0].numpy()
                observations, *_ = vector.step(actions)
        return float(episodes * steps)

    return work


def episodes_of(count: int) -> list[Any]:
    """Episodes of 1000 steps."""
    from dynarep.data.schema import Episode

    data = peers.Recording(count * 1000)
    parts = [slice(i * 1000, (i + 1) * 1000) for i in range(count)]
    tail = np.zeros((1, OBSERVATIONS), np.float32)
    return [
        Episode(
            id=f"e-{i:05d}",
            observations=np.concatenate([data.observations[p], tail]),
            actions=data.actions[p],
            rewards=data.rewards[p],
            terminated=False,
            truncated=True,
        )
        for i, p in enumerate(parts)
    ]


def our_reading(count: int) -> Work:
    """Load a prepared dataset, checked against its index."""
    from dynarep.data.shards import load_dataset, write_dataset

    folder = Path(tempfile.mkdtemp()) / "data"
    episodes = episodes_of(count)
    write_dataset(folder, "data", episodes, provenance={}, env=None, bounds=((-1.0,) * ACTIONS, (1.0,) * ACTIONS))

    def work() -> float:
        found: list[Any] = load_dataset(folder).episodes
        return float(sum(e.observations.nbytes + e.actions.nbytes + e.rewards.nbytes for e in found)) / 1e6

    return work


def webdataset_reading(count: int) -> Work:
    """WebDataset with one npz member per episode."""
    import webdataset

    path = Path(tempfile.mkdtemp()) / "data.tar"
    with webdataset.TarWriter(str(path)) as tar:
        for e in episodes_of(count):
            arrays = {"observations": e.observations, "actions": e.actions, "rewards": e.rewards}
            tar.write({"__key__": e.id, "npz": arrays})

    def work() -> float:
        reader = webdataset.WebDataset(str(path), shardshuffle=False).decode()
        return float(sum(array.nbytes for sample in reader for array in sample["npz"].values())) / 1e6

    return work


def h5_reading(count: int) -> Work:
    """h5py, flat arrays as in D4RL."""
    import h5py

    path = Path(tempfile.mkdtemp()) / "data.hdf5"
    episodes = episodes_of(count)
    with h5py.File(path, "w") as file:
        for name in ("actions", "rewards"):
            file[name] = np.concatenate([getattr(e, name) for e in episodes])
        file["observations"] = np.concatenate([e.observations[:-1] for e in episodes])

    def work() -> float:
        with h5py.File(path) as file:
            return float(sum(file[name][:].nbytes for name in file)) / 1e6

    return work


def tiny_learner(batch: int) -> tuple[Any, Any]:
    """A regression with 64 hidden units, so small that the loop around it shows."""
    import torch
    from torch import nn

    from dynarep.pipeline.nn.functional import Losses
    from dynarep.pipeline.nn.networks import MLP

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = MLP((1,), (OBSERVATIONS, 64, 64, 1))

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": list(self.parameters()), "lr": 1e-3}]

        def losses(self, x: Any) -> Losses:
            error = self.network(x).square().mean((1, 2))
            return Losses(error, {"error": error.detach()})

        def after_update(self) -> None:
            pass

    def sample(generator: Any) -> Any:
        return torch.randn(1, batch, OBSERVATIONS, generator=generator, device=device())

    return Regression(), sample


def lightning_steps(batch: int, count: int, *, logged: bool) -> Work:
    """The same training as one Lightning step per update, with nothing or two values logged."""
    import lightning as pl
    import torch
    from torch.utils.data import DataLoader

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.learner, self.sample = tiny_learner(batch)
            self.generator = torch.Generator(device())

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

        def training_step(self, row: Any, index: int) -> Any:
            losses = self.learner.losses(self.sample(self.generator))
            if logged:
                self.log_dict({"loss": losses.loss.sum(), "error": losses.metrics["error"].sum()})
            return losses.loss.sum()

    folder = tempfile.mkdtemp()

    def work() -> tuple[float, float]:
        module = Module()
        trainer = pl.Trainer(
            max_steps=count,
            devices=1,
            logger=pl.pytorch.loggers.CSVLogger(folder) if logged else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.perf_counter()
        trainer.fit(module, DataLoader(torch.zeros(count, 1)))  # type: ignore[arg-type]
        return float(count), time.perf_counter() - started

    return work


def our_batches(count: int) -> Work:
    """Batches from the packed table."""
    import torch

    from dynarep.data.sampling import uniform

    table = recording()
    generator = torch.Generator(device())

    def work() -> float:
        for _ in range(count):
            table.gather(uniform(len(table), (256,), generator, table.packed.device))
        return float(count)

    return work


def loader_batches(count: int) -> Work:
    """TensorDataset and DataLoader with random sampling."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler, TensorDataset

    data = peers.Recording()
    columns = data.observations, data.actions, data.rewards, data.next_observations, data.terminated
    dataset = TensorDataset(*map(torch.from_numpy, columns))

    def work() -> float:
        sampler = RandomSampler(dataset, replacement=True, num_samples=256 * count)
        for _ in DataLoader(dataset, 256, sampler=sampler):
            pass
        return float(count)

    return work


def groups(scale: float) -> list[Group]:
    """All groups; ``scale`` shortens every turn, 1 is about two seconds."""
    h, b = 256, 256

    def n(count: int, least: int = 1) -> int:
        return max(least, round(count * scale))

    def size(length: int) -> int:  # of a problem: only a dry run has smaller ones than it says
        return length if scale >= 0.1 else max(20, round(length * scale))

    iql, icvf = partial(iql_learner, h, b, 1), partial(icvf_learner, h, b, 1, "icvf")
    normed = partial(icvf_learner, h, b, 1, "ailot")
    scan = n(192, peers.SCAN)
    found = [
        Group(
            "IQL, 256x256, batch 256",
            "updates",
            [
                Contender("dynarep", partial(engine, iql, n(500, 2), compile_it=True)),
                Contender("dynarep, not compiled", partial(engine, iql, n(250, 2), compile_it=False)),
                Contender("dynarep, bare loop, not compiled", partial(bare, iql, n(200))),
                Contender("PyTorch, an optimiser per loss", partial(peers.torch_iql, h, b, n(120)), "CORL's structure"),
                Contender("d3rlpy", partial(peers.d3rlpy_iql, h, b, n(80))),
                Contender("JAX, jit", partial(peers.jax_iql, h, b, n(200), scan=False)),
                Contender("JAX, scan of 64", partial(peers.jax_iql, h, b, scan, scan=True)),
            ],
            partial(arithmetic, iql),
        )
    ]
    for name, make, layer_norm in (("ICVF", icvf, False), ("ICVF, LayerNorm and GELU", normed, True)):
        found.append(
            Group(
                f"{name}, 256x256, batch 256",
                "updates",
                [
                    Contender("dynarep", partial(engine, make, n(150, 2), compile_it=True)),
                    Contender("dynarep, not compiled", partial(engine, make, n(100, 2), compile_it=False)),
                    Contender("dynarep, bare loop, not compiled", partial(bare, make, n(60))),
                    Contender(
                        "JAX, jit",
                        partial(peers.jax_icvf, h, b, n(60), scan=False, layer_norm=layer_norm),
                        "the structure of icvf_release",
                    ),
                    Contender(
                        "JAX, scan of 64", partial(peers.jax_icvf, h, b, peers.SCAN, scan=True, layer_norm=layer_norm)
                    ),
                ],
                partial(arithmetic, make),
            )
        )
    cost = peers.cost_of(*peers.walks(size(1000), size(1000)))
    for epsilon in (0.05, 0.01):
        pot = partial(peers.pot_sinkhorn, cost, epsilon, 100)
        ways: list[tuple[str, Callable[[], Callable[[], Any]]]] = [
            ("dynarep", partial(sinkhorn, cost, epsilon, 100)),
            ("OTT-JAX", partial(peers.ott_sinkhorn, cost, epsilon, 100)),
            ("POT, log domain", partial(pot, log=True, dtype=np.float64)),
            ("POT, kernel, float64", partial(pot, log=False, dtype=np.float64)),
            ("POT, kernel, float32", partial(pot, log=False, dtype=np.float32)),
        ]
        contenders = [Contender(name, partial(repeated, make, n(5) if name == "dynarep" else 1)) for name, make in ways]
        found.append(Group(f"Sinkhorn, 1000 x 1000, 100 iterations, epsilon {epsilon:.0%}", "problems", contenders))
    found += [
        Group(
            "Labels, episodes of 1000 steps against one expert, 100 iterations",
            "transitions",
            [
                Contender("dynarep", partial(relabelling, n(10), size(1000), 100), "AILOT, stops when converged"),
                Contender("OTT-JAX", partial(ott_relabelling, n(2), size(1000), 100)),
            ],
        ),
        Group(
            "Loop around a network of 64 units, batch 256",
            "updates",
            [
                Contender("dynarep", partial(engine, partial(tiny_learner, 256), n(3000, 2), compile_it=False)),
                Contender("dynarep, bare loop", partial(bare, partial(tiny_learner, 256), n(3000))),
                Contender("Lightning, a step per update", partial(lightning_steps, 256, n(1000, 2), logged=False)),
                Contender("Lightning, two values logged", partial(lightning_steps, 256, n(500, 2), logged=True)),
            ],
        ),
        Group(
            "Hopper, policy of 256x256, 10 episodes",
            "environment steps",
            [
                Contender("dynarep", partial(our_rollouts, n(1000), 1)),
                Contender("SyncVectorEnv", partial(vector_rollouts, n(300), processes=False)),
                Contender("AsyncVectorEnv", partial(vector_rollouts, n(300), processes=True)),
            ],
        ),
        Group(
            "Hopper, policy of 256x256, 60 episodes, all cores",
            "environment steps",
            [
                Contender("dynarep", partial(our_rollouts, n(1000), len(os.sched_getaffinity(0)), 60)),
                Contender("dynarep, one process", partial(our_rollouts, n(1000), 1, 60)),
                Contender(
                    "AsyncVectorEnv", partial(vector_rollouts, n(200), processes=True, episodes=20), "20 at once"
                ),
            ],
            one_core=False,
        ),
        Group(
            "Reading episodes of 1000 steps",
            "MB",
            [
                Contender("dynarep", partial(our_reading, n(200))),
                Contender("WebDataset, npz members", partial(webdataset_reading, n(200))),
                Contender("h5py, flat arrays", partial(h5_reading, n(200))),
            ],
        ),
        Group(
            "Batches of 256 transitions",
            "batches",
            [
                Contender("dynarep", partial(our_batches, n(20_000))),
                Contender("TensorDataset and DataLoader", partial(loader_batches, n(1500))),
            ],
        ),
    ]
    return found


def growth(scale: float) -> list[Group]:
    """How the project's own cost grows; the first of each group is what the others are compared with."""
    cuda = device().type == "cuda"

    def n(count: int) -> int:
        return max(2, round(count * scale))

    def size(length: int) -> int:
        return length if scale >= 0.1 else max(20, round(length * scale))

    def loop(**changes: int) -> Callable[[], Work]:
        sizes = {"hidden": 256, "batch": 256, "replicas": 1} | changes
        load = (sizes["hidden"] / 256) ** 2 * sizes["batch"] / 256 * sizes["replicas"]
        return partial(bare, partial(iql_learner, **sizes), n(max(5, int(150 / load**0.7))))

    return [
        Group(
            "IQL by what grows",
            "updates",
            [
                Contender("256x256, batch 256, 1 replica", loop()),
                Contender("batch 1024", loop(batch=1024)),
                Contender("batch 64", loop(batch=64)),
                Contender("128x128", loop(hidden=128)),
                Contender("512x512", loop(hidden=512)),
                Contender("5 replicas", loop(replicas=5)),
                Contender("10 replicas", loop(replicas=10)),
            ],
        ),
        Group(
            "Labels by what grows",
            "transitions",
            [
                Contender("10 episodes of 1000 steps", partial(relabelling, 10, size(1000), 100)),
                Contender("40 episodes of 1000 steps", partial(relabelling, 40, size(1000), 100)),
                Contender("10 episodes of 250 steps", partial(relabelling, 10, size(250), 100)),
                Contender("10 episodes of 500 steps", partial(relabelling, 10, size(500), 100)),
                Contender("10 episodes of 2000 steps", partial(relabelling, 10, size(2000), 100)),
                *(
                    [Contender("1000 episodes of 1000 steps", partial(relabelling, 1000, size(1000), 100))]
                    if cuda
                    else []
                ),
            ],
        ),
    ]


def accuracy() -> dict[str, dict[str, float]]:
    """Largest error of what a step pays, against POT's log domain in float64 with the same number of iterations."""
    cost = peers.cost_of(*peers.walks(1000, 1000))
    found: dict[str, dict[str, float]] = {}
    for epsilon in (0.05, 0.01):
        pot = partial(peers.pot_sinkhorn, cost, epsilon, 100)
        reference = pot(log=True, dtype=np.float64)()
        ways: dict[str, Callable[[], Callable[[], Any]]] = {
            "dynarep": partial(sinkhorn, cost, epsilon, 100),
            "OTT-JAX": partial(peers.ott_sinkhorn, cost, epsilon, 100),
            "POT, kernel, float64": partial(pot, log=False, dtype=np.float64),
            "POT, kernel, float32": partial(pot, log=False, dtype=np.float32),
        }
        for name, make in ways.items():
            try:
                error = label_error(make()(), reference, cost)
            except ImportError:
                continue
            found.setdefault(name, {})[f"{epsilon:.0%}"] = error
    return found


def peak_memory(group: int, contender: int, scale: float) -> int | None:
    """Largest resident memory, in MB, of a process that does this contender's work alone; None if it fails."""
    code = (
        "import resource, sys; from benchmarks import throughput as t;"
        f"c = t.groups({scale})[{group}].contenders[{contender}]; work = c.start();"
        "work(); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return int(lines[-1]) if done.returncode == 0 and lines else None


END_TO_END = {"pretrain_intent": 6000, "offline_rl": 20_000}
"""Updates of the two trainings in the default params file."""


def end_to_end() -> dict[str, float]:
    """Seconds of the stage programs that lead to ``iql_ailot``, at the size of the default run, and of their bare loops.

    The loops are not compiled. Their rates are measured afterwards on the same cores, in one thread as the programs, and
    their times are updates over rates.
    """
    import torch

    from dynarep.data.shards import load_dataset
    from dynarep.pipeline.artifacts.storage import load_intent_encoder
    from dynarep.pipeline.methods import ailot

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        values = yaml.safe_load((project / "params.yaml").read_text())
        for stage, updates in END_TO_END.items():
            assert values[stage]["training"]["updates"] == updates
        values["relabel"]["methods"] = {"ailot": values["relabel"]["methods"]["ailot"]}
        values["offline_rl"]["policies"] = {"iql_ailot": {"rewards": "ailot"}}
        (project / "params.yaml").write_text(yaml.safe_dump(values))
        for stage in ("prepare", "pretrain_intent", "relabel", "offline_rl"):
            started = time.perf_counter()
            program = [sys.executable, "-m", f"dynarep.stages.{stage}"]
            subprocess.run(program, cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
            found[stage] = time.perf_counter() - started
        dataset, expert = (load_dataset(project / "artifacts" / "shards" / values["relabel"][name]) for name in SIDES)
        encoder = load_intent_encoder(project / "artifacts" / "pretrain_intent").to(device())

    replicas, batches = values["replicas"], [values[stage]["training"]["batch_size"] for stage in END_TO_END]
    makes = partial(icvf_learner, 128, batches[0], replicas, "icvf"), partial(iql_learner, 128, batches[1], replicas)
    for (stage, updates), make in zip(END_TO_END.items(), makes, strict=True):
        work = bare(make, 300)
        work()
        started = time.perf_counter()
        work()
        found[f"{stage}, bare loop"] = updates * (time.perf_counter() - started) / 300
    with torch.no_grad():
        started = time.perf_counter()
        points, goal = (
            [encoder.embed(torch.from_numpy(e.observations[: e.length]).to(device())[None]) for e in side.episodes]
            for side in (dataset, expert)
        )
        c = ailot.AILOTConfig(temperature=0.05)
        for x in points:
            lengths, expert_lengths = (torch.full((replicas,), y.shape[1], device=device()) for y in (x, goal[0]))
            ailot.label(x, lengths, goal[0], expert_lengths, encoder.calibration, c)
        found["relabel, bare loop"] = time.perf_counter() - started
    stages = ("pretrain_intent", "relabel", "offline_rl")
    found["ratio"] = sum(found[name] for name in stages) / sum(found[f"{name}, bare loop"] for name in stages)
    return found


def start_up(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds until a program has said what it does, and of ``dvc repro`` where nothing is to be done, if that is so."""
    stages = [f"python -m dynarep.stages.{name} --help" for name in ("prepare", "relabel", "pretrain_intent")]
    status = [sys.executable, "-m", "dvc", "status", "--quiet"]
    clean = subprocess.run(status, cwd=ROOT, capture_output=True, check=False).returncode == 0
    found: dict[str, dict[str, float]] = {}
    for command in [*stages, *(["python -m dvc repro"] if clean else [])]:
        words = shlex.split(command)
        words[0] = sys.executable if words[0] == "python" else words[0]
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
            seconds.append(time.perf_counter() - started)
        found[command] = {"median": median(seconds[1:]), "low": min(seconds[1:]), "high": max(seconds[1:])}
    return found


def row(timing: Timing, ours: float) -> dict[str, Any]:
    """What is stored of a contender."""
    if timing.missing is not None:
        return {"name": timing.name, "missing": timing.missing}
    return {
        "name": timing.name,
        "note": timing.note,
        "rate": timing.median,
        "low": min(timing.rates),
        "high": max(timing.rates),
        "ratio": ours / timing.median,
    }


def versions() -> dict[str, str]:
    """Versions of what was compared."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in (
        "torch",
        "lightning",
        "jax",
        "optax",
        "ott-jax",
        "POT",
        "d3rlpy",
        "gymnasium",
        "mujoco",
        "webdataset",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description="Measure throughput.")
    parser.add_argument("--only", default="", help="groups whose name matches this regular expression")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contender")
    parser.add_argument("--scale", type=float, default=1.0, help="length of a turn; 1 is about two seconds")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory, which takes a process each")
    parser.add_argument("--end-to-end", action="store_true", help="also time the stages of a default run (minutes)")
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json", help="where the numbers go")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "device": str(device())},
        "versions": versions(),
        "repeats": options.repeats,
        "groups": [],
    }
    kinds = [("compared", groups), ("growth", growth)]
    if device().type == "cpu":
        from benchmarks.parts import parts

        kinds.append(("parts", parts))
    sections = [(group, kind) for kind, of_kind in kinds for group in of_kind(options.scale)]
    for i, (group, kind) in enumerate(sections):
        if not re.search(options.only, group.name):
            continue
        timings = compare(group, options.repeats)
        ours = timings[0].median
        rows = [row(timing, ours) for timing in timings]
        entry: dict[str, Any] = {"name": group.name, "unit": group.unit, "kind": kind, "rows": rows}
        if group.floor is not None:
            entry["floor"] = product_rate(256) / group.floor()
        if kind == "compared" and not options.no_memory:
            for j, r in enumerate(rows):
                r["peak_mb"] = None if "missing" in r else peak_memory(i, j, options.scale)
        result["groups"].append(entry)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{group.name} ({group.unit}/s)")
        for r in rows:
            if "missing" in r:
                print(f"  {r['name']:34s} not measured: {r['missing']}")
            else:
                print(
                    f"  {r['name']:34s} {r['rate']:12,.4g} [{r['low']:,.4g}, {r['high']:,.4g}]  ours / it {r['ratio']:.2f}"
                )
        if "floor" in entry:
            print(f"  {'arithmetic alone':34s} {entry['floor']:12,.4g}")
    if re.search(options.only, "Sinkhorn accuracy"):
        result["accuracy"] = accuracy()
        print("\nerror of what a step pays", json.dumps(result["accuracy"], indent=1))
    if re.search(options.only, "Start-up"):
        result["start_up"] = start_up(options.repeats)
        print("\nseconds until a program is done", json.dumps(result["start_up"], indent=1))
    if options.end_to_end:
        result["end_to_end"] = end_to_end()
        print("\nseconds of stages", json.dumps(result["end_to_end"], indent=1))
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
