"""Stage programs that are killed at each of their writes, and run again and again: nothing is lost, mixed or grows."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dynarep.data.schema import Episode
from dynarep.pipeline.run import Stage, stage_main

pytestmark = pytest.mark.slow

TRAINING = {"updates": 40, "batch_size": 8, "updates_per_chunk": 10, "checkpoint_every": 20}
SHARED = {"dataset": "walk", "demonstrations": "walk"}
PARAMS: dict[str, Any] = {
    "seed": 0,
    "replicas": 2,
    "pretrain": {"e": {"kind": "icvf", "dataset": "walk", "hidden": [8], "latent_dim": 4, "training": TRAINING}},
    "relabel": {"r": {**SHARED, "kind": "rnd", "space": "e", "hidden": [8], "training": TRAINING}},
    "learn": {"a": {**SHARED, "kind": "iql", "rewards": "r", "hidden": [8], "training": TRAINING}},
    "evaluate": {"env": "InvertedPendulum-v4", "episodes": 1, "max_steps": 5, "workers": 1, "demonstrations": "walk"},
    "report": {},
}
STAGES = {
    "prepare": "",
    "pretrain": "e",
    "relabel": "r",
    "learn": "a",
    "demonstrate": "",
    "evaluate": "a",
    "report": "",
}
"""Entry by section, in order."""

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.link", "os.symlink")
"""Events of Python that change a folder; opening a file for writing is another."""

REPETITIONS, SETTLED = 12, 4
"""Runs of the soak, and those after which nothing grows any more."""
MEMORY = 0.02
"""By what part memory may be larger after the last run, since an allocator gives nothing back."""


def is_write(event: str, arguments: tuple[Any, ...], project: Path) -> bool:
    """Whether an event of Python changes something in a project."""
    writing = event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return bool(writing) and str(arguments[0]).startswith(str(project))


def run(project: Path, section: str, *, kill_at: int | None = None) -> int:
    """Run a stage in a copy of this process, which kills itself at a write if asked to; its status, negative for a signal."""
    child = os.fork()
    if not child:
        os.chdir(project)
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if kill_at is not None and is_write(event, arguments, project):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        status = 1
        try:
            start(project, section)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(project: Path, section: str) -> None:
    entry = [STAGES[section]] if STAGES[section] else []
    program = import_module(f"dynarep.stages.{section}").main
    stage_main(section, program, [*entry, "--params", str(project / "params.yaml")], entries=bool(entry))


def destination(project: Path, section: str) -> Path:
    if section == "prepare":
        return project / "artifacts" / "shards" / "walk"
    return Stage(section, project / "params.yaml", STAGES[section]).destination


def content(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_episode: Callable[..., Episode]) -> Path:
    """A project in which every stage has run once."""
    torch.set_num_threads(1)
    project = tmp_path_factory.mktemp("whole")
    episodes = [make_episode(20, seed=i, observation_dim=4, action_dim=1) for i in range(6)]
    columns = {
        "observations": [e.current for e in episodes],
        "actions": [e.actions for e in episodes],
        "rewards": [e.rewards for e in episodes],
        "terminals": [np.zeros(20, bool)] * 6,
        "timeouts": [np.arange(20) == 19] * 6,
    }
    np.savez(project / "walk.npz", **{name: np.concatenate(parts) for name, parts in columns.items()})  # type: ignore[arg-type]
    cards = project / "configs" / "datasets"
    cards.mkdir(parents=True)
    bounds = {"action_low": [-3.0], "action_high": [3.0]}
    (cards / "walk.yaml").write_text(yaml.safe_dump({"path": "walk.npz", "format": "arrays", **bounds}))
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    for section in STAGES:
        import_module(f"dynarep.stages.{section}")
        assert run(project, section) == 0, section
    return project


@pytest.mark.parametrize("section", STAGES)
def test_a_stage_that_is_killed_at_any_write_loses_nothing_and_ends_as_if_it_was_not(
    whole: Path, tmp_path: Path, section: str
) -> None:
    """Each run begins with what the one before left behind."""
    project = tmp_path / "project"
    shutil.copytree(whole, project)
    place, wanted = destination(project, section), content(destination(whole, section))
    marked = {**wanted, "earlier": sha256(b"").hexdigest()}

    def begin_anew() -> None:
        """What lies there is an earlier output; there is none of prepare, which leaves a fresh one alone."""
        if section == "prepare":
            shutil.rmtree(place, ignore_errors=True)
        else:
            (place / "earlier").touch()

    begin_anew()
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        status = run(project, section, kill_at=number)
        old = place.with_name(f".{place.name}.old")
        there = place if place.exists() else old if old.exists() else None
        if there is None:
            assert section == "prepare", number
        else:
            assert content(there) in (wanted, marked), number
            if content(there) == wanted and status:
                begin_anew()
    assert status == 0, number
    assert number > 5
    assert content(place) == wanted
    assert not [path for path in place.parent.iterdir() if path.name.startswith(".")]
    assert not list((project / ".dynarep").rglob("*.ckpt"))


@pytest.mark.parametrize("section", STAGES)
def test_a_disk_that_is_full_is_one_line_and_loses_nothing(whole: Path, tmp_path: Path, section: str) -> None:
    """No file can grow, which Python meets as it meets a full disk."""
    project = tmp_path / "project"
    shutil.copytree(whole, project)
    place = destination(project, section)
    if section == "prepare":
        shutil.rmtree(place)
    before = content(place)
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(project)
        sys.stdout, sys.stderr = Path(os.devnull).open("w"), os.fdopen(sender, "w")  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            start(project, section)
        except SystemExit as stop:
            sys.stderr.write(f"ended with {stop.code}\n")
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as errors:
        *_, line, status = errors.read().splitlines()
    os.waitpid(child, 0)
    assert status == "ended with 1"
    assert line.startswith(f"error: {Stage(section, project, STAGES[section]).name}: ")
    assert str(project) in line
    assert re.search(f"{os.strerror(errno.EFBIG)}|cannot be written", line)
    assert content(place) == before


def test_stages_that_run_again_and_again_grow_in_nothing(whole: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(whole, project)
    result = tmp_path / "found.json"
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        os.chdir(project)
        found = []
        try:
            for _ in range(REPETITIONS):
                for section in STAGES:
                    start(project, section)
                found.append(used(project))
            result.write_text(json.dumps(found))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    found = json.loads(result.read_text())
    settled, last = found[SETTLED - 1], found[-1]
    assert {key: last[key] for key in ("handles", "threads", "files")} == {
        key: settled[key] for key in ("handles", "threads", "files")
    }
    assert last["memory"] <= (1 + MEMORY) * settled["memory"], [entry["memory"] for entry in found]


def used(project: Path) -> dict[str, int]:
    """Handles and threads of this process, its memory, garbage aside, and files of a project, temporary ones included."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "handles": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "memory": pages * resource.getpagesize(),
        "files": sum(1 for path in project.rglob("*") if path.is_file()),
    }
