"""Throughput benchmark: this project and its peers at the same work, side by side in one run.

    python -m benchmarks.throughput

Peers come with ``pip install -e .[bench]``; those that are missing are named as such. Numbers are medians over repeats in
which the contenders of a group take turns on one core (or one GPU), with the least and the largest; ratios are those of
medians. The floor is the arithmetic of an update (counted by PyTorch) at the rate of a batched product of its size.
Writes ``benchmarks/results/throughput.json``, group by group; ``--resume`` goes on with a run that was stopped.
``python -m benchmarks.tables docs/performance.md`` shows it.
"""

from __future__ import annotations

import argparse
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

from benchmarks import acting, peers
from benchmarks.ours import (
    arithmetic,
    bare,
    device,
    h5_reading,
    icvf_learner,
    iql_learner,
    label_error,
    lightning_steps,
    loader_batches,
    loop,
    metric_learner,
    ott_relabelling,
    our_batches,
    our_reading,
    our_rollouts,
    product_rate,
    relabelling,
    repeated,
    sinkhorn,
    streamed_batches,
    tiny_learner,
    vector_rollouts,
    webdataset_reading,
)
from benchmarks.parts import parts
from benchmarks.presets import ROOT
from benchmarks.tables import RESULTS
from benchmarks.timing import Contender, Group, Timing, Work, compare, processor


def groups(scale: float) -> list[Group]:
    """All groups; ``scale`` shortens every turn, 1 is about two seconds."""
    h, b = 256, 256

    def n(count: int, least: int = 1) -> int:
        return max(least, round(count * scale))

    def size(length: int) -> int:  # of a problem: only a dry run has smaller ones than it says
        return length if scale >= 0.1 else max(20, round(length * scale))

    iql, icvf = partial(iql_learner, h, b, 1), partial(icvf_learner, h, b, 1, "icvf")
    normed, metric = partial(icvf_learner, h, b, 1, "ailot"), partial(metric_learner, h, b, 1)
    scan = n(192, peers.SCAN)

    def trained(make: Callable[[], tuple[Any, Any]], count: int) -> list[Contender]:
        captured = partial(loop, make, n(4 * count, 2), compile_it=True, capture=True)
        return [
            Contender("dynarep", partial(loop, make, n(count, 2), compile_it=True)),
            *([Contender("dynarep, one CUDA graph", captured)] if device().type == "cuda" else []),
            Contender("dynarep, not compiled", partial(loop, make, n(2 * count // 3, 2), compile_it=False)),
            Contender("dynarep, bare loop, not compiled", partial(bare, make, n(count // 2))),
        ]

    found = [
        Group(
            "IQL, 256x256, batch 256",
            "updates",
            [
                *trained(iql, 400),
                Contender("PyTorch, an optimiser per loss", partial(peers.torch_iql, h, b, n(120)), "CORL's structure"),
                Contender("d3rlpy", partial(peers.d3rlpy_iql, h, b, n(80))),
                Contender("JAX, jit", partial(peers.jax_iql, h, b, n(200), scan=False)),
                Contender("JAX, scan of 64", partial(peers.jax_iql, h, b, scan, scan=True)),
            ],
            partial(arithmetic, iql),
        )
    ]
    for name, make, layer_norm in (("ICVF", icvf, False), ("ICVF, LayerNorm and GELU", normed, True)):
        jitted = partial(peers.jax_icvf, h, b, n(60), scan=False, layer_norm=layer_norm)
        scanned = partial(peers.jax_icvf, h, b, peers.SCAN, scan=True, layer_norm=layer_norm)
        found.append(
            Group(
                f"{name}, 256x256, batch 256",
                "updates",
                [
                    *trained(make, 150),
                    Contender("JAX, jit", jitted, "the structure of icvf_release"),
                    Contender("JAX, scan of 64", scanned),
                ],
                partial(arithmetic, make),
            )
        )
    found.append(
        Group(
            "Temporal metric, 256x256, batch 256",
            "updates",
            [
                *trained(metric, 500),
                Contender("JAX, jit", partial(peers.jax_metric, h, b, n(400), scan=False)),
                Contender("JAX, scan of 64", partial(peers.jax_metric, h, b, scan, scan=True)),
            ],
            partial(arithmetic, metric),
        )
    )
    found.append(acting.group(n(150, 2)))
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
                Contender("dynarep", partial(loop, partial(tiny_learner, 256), n(3000, 2), compile_it=False)),
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
    """How the project's own cost grows, by one number at a time, with which the contenders' names begin."""

    def size(length: int) -> int:
        return length if scale >= 0.1 else max(20, round(length * scale))

    def trained(**changes: int) -> Callable[[], Work]:
        sizes = {"hidden": 256, "batch": 256, "replicas": 1} | changes
        load = (sizes["hidden"] / 256) ** 2 * sizes["batch"] / 256 * sizes["replicas"]
        return partial(bare, partial(iql_learner, **sizes), max(2, round(max(5, int(150 / load**0.7)) * scale)))

    def labelled(episodes: int, length: int = 1000, experts: int = 1) -> Callable[[], Work]:
        return partial(relabelling, episodes, size(length), 100, experts)

    many = [1000] if device().type == "cuda" else []
    return [
        Group(
            "IQL by replicas",
            "updates",
            [Contender(f"{r} replica{'s' * (r > 1)}", trained(replicas=r)) for r in (1, 2, 5, 10)],
        ),
        Group("IQL by width", "updates", [Contender(f"{h} units", trained(hidden=h)) for h in (64, 128, 256, 512)]),
        Group("IQL by batch", "updates", [Contender(f"{b} transitions", trained(batch=b)) for b in (64, 256, 1024)]),
        Group(
            "Labels by episodes",
            "transitions",
            [Contender(f"{n} episodes of 1000 steps", labelled(n)) for n in (5, 10, 20, 40, *many)],
        ),
        Group(
            "Labels by steps",
            "transitions",
            [Contender(f"{t} steps, 5 episodes", labelled(5, t)) for t in (250, 500, 1000, 2000)],
        ),
        Group(
            "Labels by demonstrations",
            "transitions",
            [Contender(f"{e} of 1000 steps, 5 episodes", labelled(5, experts=e)) for e in (1, 2, 4, 8)],
        ),
        Group(
            "Batches by transitions on disk",
            "batches",
            [
                Contender(f"{n:,} in shards, 100,000 in memory", partial(streamed_batches, round(n * min(scale, 1))))
                for n in (100_000, 1_000_000, 10_000_000)
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


def peak_memory(kind: str, group: int, contender: int, scale: float) -> int | None:
    """Largest resident memory, in MB, of a process that does this contender's work alone; None if it fails.

    Linux alone tells it (``VmHWM``): ``ru_maxrss`` of a new process begins at that of the one that started it.
    """
    of_kind = {"compared": "groups", "growth": "growth"}[kind]
    code = (
        "import re; from pathlib import Path; from benchmarks import throughput as t;"
        f"c = t.{of_kind}({scale})[{group}].contenders[{contender}]; work = c.start();"
        "work(); print(int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return int(lines[-1]) if done.returncode == 0 and lines else None


END_TO_END = {"pretrain intent": 6000, "learn iql_ailot": 20_000}
"""Updates of the two trainings in Hopper's preset."""


def end_to_end() -> dict[str, float]:
    """Seconds of the stage programs that lead to ``iql_ailot`` in Hopper's preset, and of their bare loops.

    The loops are not compiled. Their rates are measured afterwards on the same cores, in one thread as the programs, and
    their times are updates over rates.
    """
    import torch

    from dynarep.data.shards import load_dataset
    from dynarep.pipeline.artifacts.storage import load_encoder_model
    from dynarep.pipeline.methods.rewards import ailot

    found: dict[str, float] = {}
    programs = "pretrain intent", "relabel ailot", "learn iql_ailot"
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        preset = (project / "configs" / "presets" / "hopper.yaml").read_text()
        (project / "params.yaml").write_text(preset)
        values = yaml.safe_load(preset)
        entries = {name: values[name.split()[0]][name.split()[1]] for name in programs}
        for program, updates in END_TO_END.items():
            assert entries[program]["training"]["updates"] == updates
        for program in ("prepare", *programs):
            started = time.perf_counter()
            command = [sys.executable, "-m", *f"dynarep.stages.{program}".split()]
            subprocess.run(command, cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
            found[program] = time.perf_counter() - started
        label = entries["relabel ailot"]
        shards = project / "artifacts" / "shards"
        dataset, expert = (load_dataset(shards / label[name]) for name in ("dataset", "demonstrations"))
        encoder = load_encoder_model(project / "artifacts" / "pretrain" / label["space"]).to(device())

    replicas, batches = values["replicas"], [entries[program]["training"]["batch_size"] for program in END_TO_END]
    makes = partial(icvf_learner, 128, batches[0], replicas, "icvf"), partial(iql_learner, 128, batches[1], replicas)
    for (program, updates), make in zip(END_TO_END.items(), makes, strict=True):
        work = bare(make, 300)
        work()
        started = time.perf_counter()
        work()
        found[f"{program}, bare loop"] = updates * (time.perf_counter() - started) / 300
    with torch.no_grad():
        started = time.perf_counter()
        points, goal = (
            [encoder.embed(torch.from_numpy(e.observations[: e.length]).to(device())[None]) for e in side.episodes]
            for side in (dataset, expert)
        )
        c = ailot.AILOTConfig(temperature=label["temperature"])
        calibration = encoder.calibration_of(encoder.spaces[0])
        assert calibration is not None
        for x in points:
            lengths, expert_lengths = (torch.full((replicas,), y.shape[1], device=device()) for y in (x, goal[0]))
            ailot.label(x, lengths, goal[0], expert_lengths, calibration, c)
        found["relabel ailot, bare loop"] = time.perf_counter() - started
    found["ratio"] = sum(found[name] for name in programs) / sum(found[f"{name}, bare loop"] for name in programs)
    return found


def start_up(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds until a program has said what it does, and of ``dvc repro`` where nothing is to be done, if that is so."""
    stages = [f"python -m dynarep.stages.{name} --help" for name in ("prepare", "relabel", "pretrain")]
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


def resumed(output: Path, begun: dict[str, Any]) -> dict[str, Any]:
    """What a stopped run has stored.

    Args:
        output: where it is.
        begun: what this run has before its first group.

    Raises:
        ValueError: if the stored run was made on another machine, with other versions, or another number or length of turns.
    """
    stored: dict[str, Any] = json.loads(output.read_text())
    for field in ("machine", "versions", "repeats", "scale"):
        if stored[field] != begun[field]:
            raise ValueError(f"{output}: {field}: found {stored[field]}, expected {begun[field]} to go on with its run")
    return {**begun, "groups": stored["groups"]}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description="Measure throughput.")
    parser.add_argument("--only", default="", help="groups whose name matches this regular expression")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every contender")
    parser.add_argument("--scale", type=float, default=1.0, help="length of a turn; 1 is about two seconds")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory, which takes a process each")
    parser.add_argument("--end-to-end", action="store_true", help="also time the stages of a whole path (minutes)")
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json", help="where the numbers go")
    parser.add_argument("--resume", action="store_true", help="keep the groups that a stopped run left in the output")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "device": str(device())},
        "versions": versions(),
        "repeats": options.repeats,
        "scale": options.scale,
        "groups": [],
    }
    if options.resume:
        result = resumed(options.output, result)
    done = {group["name"] for group in result["groups"]}
    kinds = [("compared", groups), ("growth", growth)]
    if device().type == "cpu":
        kinds.append(("parts", parts))
    sections = [(i, group, kind) for kind, of_kind in kinds for i, group in enumerate(of_kind(options.scale))]
    for i, group, kind in sections:
        if group.name in done or not re.search(options.only, group.name):
            continue
        torch._dynamo.reset()  # contenders of earlier groups count towards the limit of compiled variants
        timings = compare(group, options.repeats)
        ours = timings[0].median
        rows = [row(timing, ours) for timing in timings]
        entry: dict[str, Any] = {"name": group.name, "unit": group.unit, "kind": kind, "rows": rows}
        if group.floor is not None:
            entry["floor"] = product_rate(256) / group.floor()
        if kind != "parts" and not options.no_memory:
            for j, r in enumerate(rows):
                r["peak_mb"] = None if "missing" in r else peak_memory(kind, i, j, options.scale)
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
