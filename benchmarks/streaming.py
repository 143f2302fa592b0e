"""Streaming benchmark: memory, mixing and throughput of a stream against the resident table.

    python -m benchmarks.streaming [memory] [mixing] [throughput]

prints the tables of ``docs/streaming.md``. Memory is limited by the operating system (RLIMIT_DATA, all that a process
writes to); each of its rows is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTE = 1_000_000
LAGS = (1, 10, 100)


def write_drifting(
    folder: Path, *, episodes: int, steps: int, dim: int, shard_bytes: int, action_dim: int = 3, seed: int = 0
) -> None:
    """A dataset that changes from its first to its last episode; observation 0 says how far along an episode is.

    The other observations are smooth within an episode and have an offset of its own.
    """
    from dynarep.data.schema import Episode
    from dynarep.data.shards import write_dataset

    rng = np.random.default_rng(seed)

    def drawn() -> Iterator[Episode]:
        for i in range(episodes):
            states = rng.normal(size=(steps + 1, dim)).astype(np.float32)
            states[:, 1:] = states[:, 1:].cumsum(0) / np.sqrt(steps) + rng.normal(size=dim - 1)
            states[:, 0] = i / episodes
            actions = rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32)
            yield Episode(id=f"e-{i:06d}", observations=states, actions=actions, terminated=False, truncated=True)

    bounds = ((-1.0,) * action_dim, (1.0,) * action_dim)
    write_dataset(folder, "drifting", drawn(), provenance={}, env=None, bounds=bounds, shard_bytes=shard_bytes)


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


TRAININGS: dict[str, dict[str, Any]] = {
    "pretrain_dynamics": {"kind": "contrastive", "hidden": [16], "feature_dim": 8},
    "pretrain_intent": {"kind": "icvf", "hidden": [16], "latent_dim": 8},
}
"""Small models, by name of what is measured."""


def train(name: str, folder: Path, output: Path, *, buffer_steps: int | None, updates: int, reuse: float = 1.0) -> None:
    """Train one of ``TRAININGS``; all data in memory without ``buffer_steps``."""
    from dynarep.data.shards import load_dataset, open_dataset
    from dynarep.pipeline.entries import parse_entry
    from dynarep.pipeline.pretrain import pretrain
    from dynarep.pipeline.training.run import Run

    output.mkdir(parents=True)
    values = {
        **TRAININGS[name],
        "dataset": "drifting",
        "stream": None if buffer_steps is None else {"buffer_steps": buffer_steps, "reuse": reuse},
        "training": {"updates": updates, "batch_size": 256, "updates_per_chunk": 50, "compile": False},
    }
    dataset: Any = load_dataset(folder) if buffer_steps is None else open_dataset(folder)
    pretrain(parse_entry("pretrain", name, values), dataset, Run(name, 0, 1, output, output / "checkpoints"))


def memory_of(
    stage: str, work: Path, *, buffer_steps: int | None, updates: int, reuse: float, limit: int
) -> dict[str, Any]:
    """Train after memory has been limited to ``limit`` bytes more than a training on little data took.

    Args:
        stage: one of ``TRAININGS``.
        work: holds the datasets ``little`` and ``big``.
        buffer_steps: of the stream; None for all in memory.
        updates: to make.
        reuse: of the stream.
        limit: bytes.

    Returns:
        Whether it came to its ``end``, and by how many bytes the resident memory had ``grown`` at its peak, or its ``error``.
    """
    with tempfile.TemporaryDirectory() as outputs:
        train(stage, work / "little", Path(outputs) / "warm", buffer_steps=buffer_steps and 9000, updates=100)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
        before, written = _status("VmRSS"), _status("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (written + limit, resource.RLIM_INFINITY))
        try:
            train(stage, work / "big", Path(outputs) / "run", buffer_steps=buffer_steps, updates=updates, reuse=reuse)
        except (MemoryError, RuntimeError) as error:
            return {"end": False, "error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        return {"end": True, "grown": _status("VmHWM") - before}


def memory(
    *,
    limit: int,
    factor: float,
    buffer_steps: int,
    updates: int,
    stages: tuple[str, ...] = tuple(TRAININGS),
) -> list[dict[str, Any]]:
    """``memory_of`` a stream, and of the same data in memory, on a dataset ``factor`` times as large as the limit.

    The stream reads all of the dataset, and a little more.
    """
    dim, steps = 60, 500
    episodes = round(factor * limit / (steps * (dim + 3) * 4))
    reuse = updates * 256 / (1.1 * episodes * steps)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_drifting(work / "little", episodes=20, steps=steps, dim=dim, shard_bytes=MEGABYTE)
        write_drifting(work / "big", episodes=episodes, steps=steps, dim=dim, shard_bytes=8 * MEGABYTE)
        size = sum(path.stat().st_size for path in (work / "big").glob("*.tar"))
        for stage in stages:
            for buffer in (buffer_steps, None):
                values = {"buffer_steps": buffer, "updates": updates, "reuse": reuse, "limit": limit}
                program = (
                    "import json, pathlib, sys, torch; torch.set_num_threads(1); "
                    "from benchmarks.streaming import memory_of; "
                    "print(json.dumps(memory_of(sys.argv[1], pathlib.Path(sys.argv[2]), **json.loads(sys.argv[3]))))"
                )
                command = [sys.executable, "-c", program, stage, folder, json.dumps(values)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    found = {
                        "end": False,
                        "error": (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1],
                    }
                else:
                    found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"stage": stage, "stream": buffer is not None, "bytes": size, **found})
    return rows


def autocorrelation(values: np.ndarray, lag: int) -> float:
    """Correlation of a series (T, features) with itself ``lag`` later, mean over features."""
    centred = values - values.mean(0)
    return float(((centred[lag:] * centred[:-lag]).mean(0) / centred.var(0)).mean())


def batch_means(folder: Path, *, updates: int, batch: int, seed: int = 0, **stream: Any) -> tuple[np.ndarray, int]:
    """Mean observations of successive batches, (updates, dim), and episodes in the buffer.

    Args:
        folder: of a prepared dataset.
        updates: how many batches.
        batch: transitions in each.
        seed: of draws and order.
        stream: ``steps`` of the buffer, none for the resident table; ``reuse`` and ``shuffle_shards`` as in ``StreamConfig``;
            ``recorded`` order, no shuffling.
    """
    import torch

    from dynarep.data.resident import TransitionTable
    from dynarep.data.sampling import uniform
    from dynarep.data.shards import load_dataset, open_dataset
    from dynarep.data.stream import EpisodeBuffer

    generator = torch.Generator().manual_seed(seed)

    def means(table: Callable[[int], TransitionTable]) -> np.ndarray:
        found = []
        for update in range(updates):
            now = table(update)
            found.append(now.observations_at(uniform(len(now), (batch,), generator, "cpu")).mean(0))
        return torch.stack(found).double().numpy()

    if "steps" not in stream:
        table = TransitionTable.from_episodes(load_dataset(folder).episodes)
        return means(lambda _: table), len(table.lengths)
    recorded = stream.pop("recorded", False)
    per_update = batch / stream.pop("reuse", 1.0)
    with EpisodeBuffer(open_dataset(folder), steps_per_update=per_update, seed=seed, **stream) as buffer:
        if recorded:
            everything = np.arange(len(buffer._order.ids))
            buffer._order.epoch = lambda epoch: [everything]  # type: ignore[method-assign]

        def current(update: int) -> TransitionTable:
            buffer.advance(update)
            return buffer.table

        return means(current), len(buffer.table.lengths)


def mixing(*, transitions: int = 1_000_000, updates: int = 4000, seeds: int = 2) -> list[dict[str, Any]]:
    """Autocorrelation of batch means over updates: of the drift along the dataset, and of the other observations."""
    tenth = transitions // 10
    cases: list[tuple[int, str, dict[str, Any]]] = [(250, "resident table", {})]
    cases += [(250, f"stream, {share}%", {"steps": transitions * share // 100}) for share in (5, 10, 20, 50)]
    cases += [
        (250, "stream, 10%, `reuse: 0.1`", {"steps": tenth, "reuse": 0.1}),
        (250, "stream, 10%, `shuffle_shards: 4`", {"steps": tenth, "shuffle_shards": 4}),
        (250, "10%, in recorded order", {"steps": tenth, "recorded": True}),
        (25, "stream, 10%", {"steps": tenth}),
        (25, "10%, in recorded order", {"steps": tenth, "recorded": True}),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for steps, name, case in cases:
            path = Path(folder) / f"of-{steps}"
            if not path.exists():
                size = transitions // steps * (steps * 40 + 500) // 100
                write_drifting(path, episodes=transitions // steps, steps=steps, dim=6, shard_bytes=size)
            found = [batch_means(path, updates=updates, batch=256, seed=seed, **dict(case)) for seed in range(seeds)]
            row: dict[str, Any] = {"what": name, "steps": steps, "episodes": found[0][1]}
            for feature, columns in (("drift", slice(0, 1)), ("others", slice(1, None))):
                row[feature] = [
                    statistics.fmean(autocorrelation(values[:, columns], lag) for values, _ in found) for lag in LAGS
                ]
            rows.append(row)
    return rows


def throughput(*, repeats: int = 9, updates: int = 50, replicas: int = 3) -> list[dict[str, Any]]:
    """Updates per second of both losses from a stream and from the resident table, in turns in one process."""
    import torch

    from dynarep.data.resident import TransitionTable
    from dynarep.data.shards import load_dataset, open_dataset
    from dynarep.data.stream import EpisodeBuffer
    from dynarep.pipeline.method import Sources, World
    from dynarep.pipeline.methods.encoders.contrastive import Dynamics, DynamicsConfig
    from dynarep.pipeline.methods.encoders.icvf import ICVF, ICVFConfig
    from dynarep.pipeline.sources import Resident
    from dynarep.pipeline.training.device import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    batch, dim = 256, 11
    world = World(replicas, torch.zeros(dim), torch.ones(dim), (-1.0,) * 3, (1.0,) * 3)

    def worker(learner: Any, source: Any) -> Callable[[], None]:
        tables = dict.fromkeys(("dataset", "whole"), lambda: source.table)
        sources = Sources(tables, replicas, batch, torch.device("cpu"))
        groups = [{"params": group["params"], "lr": group["lr"]} for group in learner.parameter_groups()]
        optimizer = torch.optim.Adam(groups, fused=True)
        generator, update = torch.Generator(), 0

        def work() -> None:
            nonlocal update
            for _ in range(updates):
                source.advance(update)
                losses = learner.losses(learner.batch(sources, generator))
                optimizer.zero_grad(set_to_none=True)
                losses.loss.sum().backward()
                optimizer.step()
                learner.after_update()
                update += 1

        return work

    makers: dict[str, Callable[[], Any]] = {
        "pretrain_dynamics": lambda: Dynamics.build(DynamicsConfig(hidden=(128, 128), feature_dim=64), world),
        "pretrain_intent": lambda: ICVF.build(ICVFConfig(hidden=(128,), latent_dim=128), world),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        write_drifting(path, episodes=2000, steps=500, dim=dim, shard_bytes=2 * MEGABYTE)
        resident = Resident(TransitionTable.from_episodes(load_dataset(path).episodes), [])
        for stage, make in makers.items():
            streams = {
                f"stream, reuse {reuse:g}": EpisodeBuffer(
                    open_dataset(path), steps=100_000, steps_per_update=batch / reuse, seed=0
                )
                for reuse in (1.0, 4.0)
            }
            workers = {name: worker(make(), source) for name, source in {"resident": resident, **streams}.items()}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
            for work in workers.values():
                work()
            for _ in range(repeats):
                for name, work in workers.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    work()
                    times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            for source in streams.values():
                source.close()
            for name, found in times.items():
                rates = {
                    kind: [updates / seconds[i] for seconds in found] for i, kind in enumerate(("wall", "processor"))
                }
                rows.append({"stage": stage, "what": name, **rates})
    return rows


def _print(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    print()
    for row in (header, ("---",) * len(header), *rows):
        print("| " + " | ".join(row) + " |")


def _spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="Measure streams.")
    parts = ("memory", "mixing", "throughput")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; everything by default")
    chosen = parser.parse_args(arguments).parts or parts
    if "memory" in chosen:
        limit = 64 * MEGABYTE
        found = memory(limit=limit, factor=10.2, buffer_steps=30_000, updates=2000)
        rows = [
            (
                row["stage"],
                "stream" if row["stream"] else "all in memory",
                f"{row['bytes'] / MEGABYTE:.0f} MB",
                f"{limit / MEGABYTE:.0f} MB",
                f"{row['grown'] / MEGABYTE:.0f} MB" if row["end"] else f"fails: {row['error']}",
            )
            for row in found
        ]
        _print(("stage", "data", "dataset", "limit", "growth of resident memory"), rows)
    if "mixing" in chosen:
        rows = [
            (
                row["what"],
                str(row["steps"]),
                f"{row['episodes']:,}",
                *(f"{value:.3f}" for value in [*row["drift"], *row["others"]]),
            )
            for row in mixing()
        ]
        lags = tuple(f"{feature}, lag {lag}" for feature in ("drift", "others") for lag in LAGS)
        _print(("batches from", "steps per episode", "episodes held", *lags), rows)
    if "throughput" in chosen:
        rows = []
        base: dict[str, Any] = {}
        for row in throughput():
            base = row if row["what"] == "resident" else base
            shares = [
                f"{statistics.median(a / b for a, b in zip(row[k], base[k], strict=True)):.2f}"
                for k in ("wall", "processor")
            ]
            rows.append((row["stage"], row["what"], _spread(row["wall"]), _spread(row["processor"]), *shares))
        _print(("stage", "data", "updates/s", "updates/s of processor time", "ratio", "ratio, processor"), rows)


if __name__ == "__main__":
    main()
