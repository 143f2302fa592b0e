"""Score benchmark: run a grid of settings and methods through the stages, and print and store the table.

    python -m benchmarks.scores --preset hopper --recordings <folder>

Each setting is a project in ``.dynarep/scores/<preset>/<setting>`` whose stages DVC runs, so what is fresh is not run again,
and a stopped benchmark goes on where it was. DVC runs one stage at a time; ``--workers`` starts several of it, in the order of
its own graph. Returns and budgets go to ``benchmarks/results/<preset>.json``, method by method. A change of the code alone
does not make a result stale: ``--fresh`` repeats everything.
"""

from __future__ import annotations

import argparse
import graphlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.presets import WORK, Setting, dvc, lay_out, load_preset, settings_of
from benchmarks.tables import RESULTS, score_table
from benchmarks.timing import processor

Graph = Mapping[str, set[str]]
"""Stages, each with those that it depends on."""


def graph_of(folder: Path) -> Graph:
    """The graph of a project, as DVC resolves it."""
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        graph = repo.index.graph
        return {stage.name: {other.name for other in graph.successors(stage)} for stage in graph}


def needed(graph: Graph, targets: Iterable[str]) -> dict[str, set[str]]:
    """The part of a graph that leads to some stages."""
    found: dict[str, set[str]] = {}
    waiting = list(targets)
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found[stage] = set(graph[stage])
            waiting += graph[stage]
    return found


def run_stages(folder: Path, graph: Graph, workers: int, done: Callable[[str], None]) -> list[str]:
    """Let DVC run stages, several at once, each after those that it depends on.

    Args:
        folder: of the project; what stages say goes to ``log.txt`` in it.
        graph: the stages to run.
        workers: how many at once; they share the cores.
        done: called with the name of each stage that is fresh or has been run.

    Returns:
        Names of the stages that failed; what depends on them was not run.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    running: dict[Future[Any], str] = {}
    failed: list[str] = []
    finished = 0
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for stage in sorter.get_ready():
                running[pool.submit(dvc, folder, "--wait-for-lock", "repro", "--single-item", stage)] = stage
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, result = running.pop(future), future.result()
                with (folder / "log.txt").open("a") as log:
                    log.write(result.stdout)
                if result.returncode == 0:
                    finished += 1
                    print(f"{finished}/{len(graph)} {folder.name}: {stage}", flush=True)
                    sorter.done(stage)
                    done(stage)
                else:
                    failed.append(stage)
                    last = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
                    reason = f" {last[-1]};" if last else ""
                    print(f"{stage} failed:{reason} see {folder / 'log.txt'}", file=sys.stderr, flush=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file, None if it is not there."""
    return json.loads(path.read_text()) if path.exists() else None


def result(folder: Path, setting: Setting, graph: Graph, method: str) -> dict[str, Any]:
    """What is stored of a method that has been evaluated: raw returns, budget, parameters, versions."""
    artifacts, entry = folder / "artifacts", setting.params["learn"][method]
    entries = [stage.split("@") for stage in needed(graph, [f"evaluate@{method}"]) if "@" in stage]
    logs = {f"{section}/{name}": read_json(folder / "logs" / section / name / "run.json") for section, name in entries}
    played, random = (read_json(artifacts / "evaluate" / name / "returns.json") for name in (method, "random"))
    dataset, expert = (
        read_json(artifacts / "shards" / entry[key] / "index.json") for key in ("dataset", "demonstrations")
    )
    demonstrated = read_json(artifacts / "demonstrate" / "metrics.json")["returns"]
    acting = entry.get("environment")
    return {
        "setting": folder.name,
        "method": method,
        "env": played["env"],
        "returns": {
            name.partition("@")[2] or "last": [[round(value, 2) for value in row] for row in policy["returns"]]
            for name, policy in played["policies"].items()
        },
        "successes": played["policies"][method].get("successes"),
        "demonstrations_return": fmean(demonstrated) if demonstrated else None,
        "random_return": fmean(value for row in random["policies"]["random"]["returns"] for value in row),
        "budget": {
            "updates": entry["training"]["updates"],
            "batch_size": entry["training"].get("batch_size", 256),
            "transitions": dataset["transitions"] if dataset else 0,
            "own_steps": acting["random_steps"] + entry["training"]["updates"] if acting else 0,
            "demonstration_steps": expert["transitions"] if expert else 0,
            "seconds": {name: log and log["seconds"] for name, log in logs.items()},
        },
        "labels": read_json(artifacts / "relabel" / entry["rewards"] / "metrics.json"),
        "params": {
            **{key: setting.params[key] for key in ("seed", "replicas", "evaluate")},
            **{
                f"{section}.{name}": setting.params[section][name] for section, name in entries if section != "evaluate"
            },
        },
        "revision": next((log["revision"] for log in logs.values() if log), None),
        "versions": played["versions"],
    }


class Store:
    """The results file of a preset; each cell, a method in a setting, is written as soon as it is there."""

    def __init__(self, path: Path, description: str) -> None:
        self.path = path
        kept = json.loads(path.read_text())["cells"] if path.exists() else []
        self.cells = {(cell["setting"], cell["method"]): cell for cell in kept}
        """By setting and method."""
        self.head = {
            "description": description,
            "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0))},
        }

    def add(self, cell: dict[str, Any]) -> None:
        """Store a cell, in place of an earlier result of its setting and method."""
        self.cells[cell["setting"], cell["method"]] = cell
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        rows = ",\n".join(json.dumps(row) for row in self.cells.values())
        temporary.write_text(json.dumps(self.head)[:-1] + f', "cells": [\n{rows}\n]}}\n')
        temporary.replace(self.path)


def run_setting(folder: Path, setting: Setting, methods: list[str], workers: int, store: Store) -> list[str]:
    """Evaluate methods in a setting whose project is laid out, and store them; names of stages that failed."""
    whole = graph_of(folder)
    # what every result is compared with comes first, so that a stopped benchmark has stored all that is evaluated
    failed = run_stages(folder, needed(whole, ["demonstrate", "evaluate@random"]), workers, lambda stage: None)
    if failed:
        return failed

    def finished(stage: str) -> None:
        section, _, method = stage.partition("@")
        if section == "evaluate" and method in methods:
            store.add(result(folder, setting, whole, method))

    return run_stages(folder, needed(whole, [f"evaluate@{method}" for method in methods]), workers, finished)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description="Run a grid of scores.")
    parser.add_argument("--preset", required=True, help="a file of benchmarks/presets, without .yaml")
    parser.add_argument("--recordings", type=Path, help="folder of the recordings that the preset's cards name")
    chosen = "only methods whose setting/name matches this regular expression"
    parser.add_argument("--entries", "--cells", default="", help=chosen)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="stages at once")
    parser.add_argument("--fresh", action="store_true", help="forget finished runs first")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what is stored")
    return parser.parse_args(arguments)


def chosen(settings: Mapping[str, Setting], pattern: str) -> dict[str, list[str]]:
    """Methods of each setting, without those that act at random, whose setting/name matches."""
    return {
        name: [
            method
            for method, entry in setting.params["learn"].items()
            if entry["kind"] != "random" and re.search(pattern, f"{name}/{method}")
        ]
        for name, setting in settings.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Run a preset and print its table; exit status 1 if a stage failed."""
    options = parse(arguments)
    failed: list[str] = []
    try:
        preset = load_preset(options.preset)
        store = Store(RESULTS / f"{options.preset}.json", preset["description"])
        if not options.table:
            if options.fresh:
                shutil.rmtree(WORK, ignore_errors=True)
            settings = settings_of(preset)
            methods = chosen(settings, options.entries)
            if not any(methods.values()):
                raise ValueError(
                    f"--entries: {options.entries!r} matches no method of {', '.join(settings) or 'no setting'}"
                )
            for name in filter(methods.get, settings):
                folder = WORK / options.preset / name
                lay_out(settings[name], folder, options.recordings)
                failed += run_setting(folder, settings[name], methods[name], options.workers, store)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{preset['description']}\n\n{score_table(list(store.cells.values()))}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
