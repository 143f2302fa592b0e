"""This project's side of the throughput benchmark: its learners, loops, couplings, rollouts and readers at work.

Beside them stand the peers that need what is measured here, such as the same network in Lightning's loop or the same policy
in Gymnasium's vector environments; all others are in ``benchmarks.peers``.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.timing import NotMeasured, Work

OBSERVATIONS, ACTIONS = 11, 3


def device() -> Any:
    """Where the project trains."""
    from dynarep.pipeline.training.device import training_device

    return training_device()


def recording() -> Any:
    """``peers.Recording`` as a transition table of 100 episodes."""
    import torch

    from dynarep.data.resident import TransitionTable

    data = peers.Recording()
    columns = data.observations, data.actions, data.next_observations, data.terminated[:, None], data.rewards[:, None]
    packed = torch.from_numpy(np.concatenate(columns, 1)).to(device())
    return TransitionTable(packed, torch.full((100,), 1000), observation_dim=OBSERVATIONS, action_dim=ACTIONS)


def drawn(method: Any, c: Any, batch: int, replicas: int) -> tuple[Any, Any]:
    """The learner of a method on Hopper's sizes, and what draws its batches with a generator."""
    import torch

    from dynarep.pipeline.method import Sources, World

    torch.manual_seed(0)
    table = recording()
    bounds = (-1.0,) * ACTIONS, (1.0,) * ACTIONS
    learner = method.build(c, World(replicas, torch.zeros(OBSERVATIONS), torch.ones(OBSERVATIONS), *bounds))
    rewards = table.packed[:, -1].expand(replicas, -1).contiguous()
    sources = Sources({"dataset": lambda: table}, replicas, batch, table.packed.device, rewards)
    return learner, partial(learner.batch, sources)


def iql_learner(hidden: int, batch: int, replicas: int) -> tuple[Any, Any]:
    """IQL, see ``drawn``."""
    from dynarep.pipeline.methods.learners.iql import IQL, IQLConfig

    return drawn(IQL, IQLConfig(hidden=(hidden, hidden)), batch, replicas)


def icvf_learner(hidden: int, batch: int, replicas: int, variant: Any) -> tuple[Any, Any]:
    """ICVF, see ``drawn``."""
    from dynarep.pipeline.methods.encoders.icvf import ICVF, ICVFConfig

    return drawn(ICVF, ICVFConfig(hidden=(hidden,), latent_dim=hidden, variant=variant), batch, replicas)


def metric_learner(hidden: int, batch: int, replicas: int) -> tuple[Any, Any]:
    """The temporal metric, see ``drawn``."""
    from dynarep.pipeline.methods.encoders.temporal_metric import TemporalMetric, TemporalMetricConfig

    return drawn(TemporalMetric, TemporalMetricConfig(hidden=(hidden, hidden)), batch, replicas)


def loop(make: Callable[[], tuple[Any, Any]], count: int, *, compile_it: bool, capture: bool = False) -> Work:
    """Trainings by the loop, with chunks, logging, progress lines and checkpoints; what counts is after the first chunk.

    What is left out is Lightning's start and end and compiling, which do not grow with the length of a training.

    Raises:
        NotMeasured: if it was to be captured as one CUDA graph and was not; the message says why.
    """
    from dynarep.pipeline.method import Sources
    from dynarep.pipeline.training.config import TrainingConfig
    from dynarep.pipeline.training.loop import train
    from dynarep.pipeline.training.run import Run

    chunk = min(250, count)
    training = TrainingConfig(
        updates=chunk + count + 1,
        updates_per_chunk=chunk,
        checkpoint_every=max(chunk, count // 2),
        compile=compile_it,
        capture=capture,
    )

    def work() -> tuple[float, float]:
        learner, sample = make()
        draws: list[float] = []

        def timed(sources: Any, generator: Any) -> Any:
            draws.append(time.perf_counter())
            return sample(generator)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output"
            path.mkdir()
            run = Run("bench", 0, 1, path, Path(folder) / "checkpoints")
            kept, sys.stderr = sys.stderr, io.StringIO()
            try:
                train(learner, Sources({}, 1, 1, device()), timed, training, run=run, shown=("loss",), key="bench")
                printed = sys.stderr.getvalue()
            finally:
                sys.stderr = kept
            if "not captured" in printed:
                raise NotMeasured(printed.strip().splitlines()[-1])
            return float(count), draws[chunk + count] - draws[chunk]

    return work


def bare(make: Callable[[], tuple[Any, Any]], count: int) -> Work:
    """What the loop wraps: sample, losses, backward, Adam, targets."""
    import torch

    from dynarep.pipeline.training.device import keep_freed_memory

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

    from dynarep.pipeline.training.device import keep_freed_memory
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


def relabelling(episodes: int, length: int, iterations: int, experts: int = 1) -> Work:
    """AILOT's labels for episodes, each against every expert, from points that are already embedded."""
    import torch

    from dynarep.pipeline.methods.rewards import ailot
    from dynarep.pipeline.transport import pad_with_last

    agents = [torch.from_numpy(peers.walks(length, 2, 256, seed)[0]) for seed in range(episodes)]
    shown = [torch.from_numpy(peers.walks(1000, 2, 256, 99 + e)[0])[None].to(device()) for e in range(experts)]
    c = ailot.AILOTConfig(max_iterations=iterations)

    size = 1 if device().type == "cpu" else 64

    def work() -> float:
        for first in range(0, episodes, size):
            x, lengths = pad_with_last([agent.to(device()) for agent in agents[first : first + size]])
            expert_lengths, calibration = torch.full_like(lengths, 1000), torch.ones(len(x), device=device())
            for expert in shown:
                ailot.label(x, lengths, expert.expand(len(x), -1, -1), expert_lengths, calibration, c).rewards.cpu()
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
    from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture

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
    from dynarep.pipeline.artifacts.storage import load_policy_model
    from dynarep.pipeline.playing.evaluate import play
    from dynarep.pipeline.playing.play import EvaluateConfig

    folder = Path(tempfile.mkdtemp())
    policy_folder(folder / "policy")
    settings = EvaluateConfig(env=ENDLESS, episodes=episodes, workers=workers, max_steps=steps)

    def work() -> float:
        played = play({"policy": folder / "policy"}, settings, load_policy_model)
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


def streamed_batches(transitions: int) -> Work:
    """Batches of 256 from a dataset of Hopper's size on disk, of which at most 100,000 transitions are in memory."""
    import torch

    from benchmarks.streaming import write_drifting
    from dynarep.data.shards import open_dataset
    from dynarep.data.stream import EpisodeBuffer

    steps, held = 1000, min(100_000, transitions)
    made = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    folder, episodes = Path(made) / "data", max(1, transitions // steps)
    write_drifting(folder, episodes=episodes, steps=steps, dim=OBSERVATIONS, shard_bytes=16_000_000)
    buffer = EpisodeBuffer(open_dataset(folder), steps=held, steps_per_update=256, seed=0)
    generator, update = torch.Generator(), 0

    def work() -> float:
        nonlocal update
        for _ in range(2000):
            buffer.advance(update)
            buffer.table.gather(buffer.table.random_rows(1, 256, generator))
            update += 1
        return 2000.0

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
