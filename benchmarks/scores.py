"""Score benchmark: run a grid of settings and methods through the stages, and print and store the table.

    python -m benchmarks.scores --preset hopper --recordings <folder>

Raw returns and budgets go to ``benchmarks/results/<preset>.json``, cell by cell; a cell that is there with the same
parameters and data is not run again, and finished stage runs are kept in ``.dynarep/scores``, so a stopped benchmark goes
on where it was. A change of the code alone does not make a result stale: ``--fresh`` repeats everything.
"""

from __future__ import annotations

import argparse
import contextlib
import graphlib
import importlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.grid import LABEL, POLICY, Cell, Job, Preset, cells, datasets, load_preset
from benchmarks.tables import score_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".dynarep" / "scores"


def prepare_datasets(preset: Preset, recordings: Path | None, work: Path) -> dict[str, str]:
    """Write the shards of all datasets of a preset below ``work``; their fingerprints by name.

    Raises:
        ValueError: if a card needs ``recordings`` and there is none.
        DataError: if a recording is not as its card says.
    """
    from dynarep.data.prepare import prepare
    from dynarep.data.shards import read_index

    names = datasets(preset)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cards"
        shutil.copytree(ROOT / "configs" / "datasets", folder)
        for name, card in preset.cards.items():
            path = card.get("path", "")
            if "{recordings}" in path:
                if recordings is None:
                    raise ValueError(f"card {name}: path {path!r} needs --recordings")
                card = {**card, "path": path.replace("{recordings}", str(recordings.resolve()))}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
        prepare(names, cards=folder, root=ROOT, out=work / "shards")
    return {name: read_index(work / "shards" / name)["fingerprint"] for name in names}


def run_job(stage: str, folder: Path, threads: int) -> float:
    """Run one stage in ``folder``; its output and messages go to ``log.txt``. Returns the CPU seconds it took."""
    import torch

    from dynarep.pipeline.run import Stage

    torch.set_num_threads(threads)
    main = importlib.import_module(f"dynarep.stages.{stage}").main
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        started = time.process_time()
        try:
            main(Stage(stage, folder / "params.yaml"))
        except BaseException:
            traceback.print_exc()
            raise
        return time.process_time() - started


def set_up(job: Job, work: Path) -> Path:
    """Make the folder of a job: params file, and links to shards and inputs."""
    folder = work / "jobs" / job.name
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(job.params)))
    links = {"shards": work / "shards"}
    for upstream in job.chain().values():
        if upstream is not job:
            links[upstream.stage] = work / "jobs" / upstream.name / "artifacts" / upstream.stage
    for name, target in links.items():
        (artifacts / name).unlink(missing_ok=True)
        (artifacts / name).symlink_to(target)
    return folder


def run_jobs(jobs: Mapping[str, Job], work: Path, workers: int, done: Callable[[str], None]) -> list[str]:
    """Run what is not finished, in parallel processes, in the given order as far as possible.

    Args:
        jobs: by name, inputs included.
        work: folder of jobs.
        workers: processes; they share the cores.
        done: called with the name of each job whose output is there.

    Returns:
        Names of the jobs that failed; what depends on them was not run.
    """
    order = {name: i for i, name in enumerate(jobs)}
    sorter = graphlib.TopologicalSorter({name: [i.name for i in job.inputs] for name, job in jobs.items()})
    sorter.prepare()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the processes when they load their libraries
    ready: list[str] = []
    running: dict[Future[float], str] = {}
    failed: list[str] = []
    finished = 0
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        while True:
            ready = sorted([*ready, *sorter.get_ready()], key=lambda name: order[name])
            complete = [name for name in ready if (work / "jobs" / name / "job.json").exists()]
            for name in complete:
                ready.remove(name)
                sorter.done(name)
                finished += 1
                done(name)
            if complete:
                continue
            while ready and len(running) < workers:
                name = ready.pop(0)
                running[pool.submit(run_job, jobs[name].stage, set_up(jobs[name], work), threads)] = name
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                error = future.exception()
                if error is None:
                    (work / "jobs" / name / "job.json").write_text(f'{{"seconds": {future.result():.1f}}}\n')
                    ready.append(name)
                    print(f"{finished + 1}/{len(jobs)} {name}: {future.result():.0f} s", flush=True)
                else:
                    failed.append(name)
                    log = work / "jobs" / name / "log.txt"
                    print(f"{name}: {type(error).__name__}: {error}; see {log}", file=sys.stderr, flush=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def result(cell: Cell, work: Path) -> dict[str, Any]:
    """What is stored of a finished cell: raw returns, what they are compared with, budget, parameters, provenance."""
    jobs = list(cell.job.chain().values())
    evaluated, learned = jobs[-1], jobs[-2]
    artifacts = work / "jobs" / evaluated.name / "artifacts"
    played = read_json(artifacts / "evaluate" / "returns.json")
    training = read_json(artifacts / learned.stage / "metrics.json")[POLICY]
    metadata = read_json(artifacts / learned.stage / POLICY / "metadata.json")
    dataset, demonstrations = (
        read_json(work / "shards" / name / "index.json") for name in (cell.data.dataset, cell.data.demonstrations)
    )
    returns = {
        name.partition("@")[2] or "last": [[round(value, 2) for value in row] for row in policy["returns"]]
        for name, policy in played["policies"].items()
        if name.partition("@")[0] == POLICY
    }
    random = [value for row in played["policies"]["random"]["returns"] for value in row]
    labels = [job for job in jobs if job.stage == "relabel" and job.params["relabel"]["methods"]]
    return {
        "setting": cell.setting,
        "method": cell.method,
        "key": evaluated.key,
        "env": played["env"],
        "returns": returns,
        "demonstrations_return": fmean(demonstrations["returns"]) if demonstrations["returns"] else None,
        "random_return": fmean(random),
        "budget": {
            **training,
            "transitions": dataset["transitions"],
            "demonstration_steps": demonstrations["transitions"],
            "seconds": {job.stage: read_json(work / "jobs" / job.name / "job.json")["seconds"] for job in jobs},
        },
        "labels": read_json(artifacts / "relabel" / "metrics.json")[LABEL] if labels else None,
        "params": {job.stage: job.params[job.stage] for job in jobs}
        | {"seed": evaluated.params["seed"], "replicas": evaluated.params["replicas"]},
        "revision": metadata["revision"],
        "versions": played["versions"],
    }


class Store:
    """The results file of a preset; each cell is written as soon as it is there."""

    def __init__(self, path: Path, description: str) -> None:
        self.path = path
        kept = read_json(path)["cells"] if path.exists() else []
        self.cells = {(cell["setting"], cell["method"]): cell for cell in kept}
        """By setting and method."""
        self.head = {
            "description": description,
            "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0))},
        }

    def has(self, cell: Cell) -> bool:
        """Whether the result of just this cell, parameters and data included, is stored."""
        stored = self.cells.get((cell.setting, cell.method))
        return stored is not None and bool(stored["key"] == cell.job.key)

    def add(self, cell: dict[str, Any]) -> None:
        """Store a cell, in place of an earlier result of its setting and method."""
        self.cells[cell["setting"], cell["method"]] = cell
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        rows = ",\n".join(json.dumps(row) for row in self.cells.values())
        temporary.write_text(json.dumps(self.head)[:-1] + f', "cells": [\n{rows}\n]}}\n')
        temporary.replace(self.path)


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def main(arguments: list[str] | None = None) -> None:
    """Run a preset and print its table; exit status 1 if a cell failed."""
    from dynarep.data.schema import DataError

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description="Run a grid of scores.")
    parser.add_argument("--preset", required=True, help="a file of benchmarks/presets, without .yaml")
    parser.add_argument("--recordings", type=Path, help="folder of the recordings that the preset's cards name")
    parser.add_argument("--cells", default="", help="only cells whose setting/method matches this regular expression")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--fresh", action="store_true", help="forget finished runs first")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what is stored")
    options = parser.parse_args(arguments)
    try:
        preset = load_preset(options.preset)
        store = Store(RESULTS / f"{options.preset}.json", preset.description)
        failed: list[str] = []
        if not options.table:
            if options.fresh:
                shutil.rmtree(WORK, ignore_errors=True)
            grid = cells(preset, prepare_datasets(preset, options.recordings, WORK))
            chosen = [cell for cell in grid if re.search(options.cells, str(cell))]
            if not chosen:
                raise ValueError(f"--cells: {options.cells!r} matches none of {', '.join(map(str, grid))}")
            chosen = [cell for cell in chosen if options.fresh or not store.has(cell)]
            jobs = {name: job for cell in chosen for name, job in cell.job.chain().items()}

            def finished(name: str) -> None:
                for cell in chosen:
                    if cell.job.name == name:
                        store.add(result(cell, WORK))

            failed = run_jobs(jobs, WORK, options.workers, finished)
    except (DataError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{preset.description}\n\n{score_table(list(store.cells.values()))}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
