"""Stage programs that are stopped by signals, and run again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dynarep.data.schema import Episode
from dynarep.data.shards import write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PARAMS = """
seed: 0
replicas: 2
learn:
  long:
    kind: bc
    dataset: walk
    demonstrations: walk
    hidden: [64, 64]
    training: {updates: 1000, batch_size: 64, updates_per_chunk: 70, checkpoint_every: 140}
"""
PIPELINE = """
stages:
  learn:
    foreach: ${learn}
    do:
      cmd: python -m dynarep.stages.learn ${key}
      params: [seed, replicas, 'learn.${key}']
      deps: [artifacts/shards/walk]
      outs: ['artifacts/learn/${key}']
"""


def make_project(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            id=f"e-{i}",
            observations=rng.normal(size=(21, 3)).cumsum(0).astype(np.float32),
            actions=rng.uniform(-1, 1, (20, 2)).astype(np.float32),
            terminated=False,
            truncated=True,
        )
        for i in range(10)
    ]
    bounds = (-1.0, -1.0), (1.0, 1.0)
    write_dataset(folder / "artifacts" / "shards" / "walk", "walk", episodes, provenance={}, env=None, bounds=bounds)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "dvc.yaml").write_text(PIPELINE)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """``python`` in commands of DVC is this one, and DVC needs no git."""
    python, settings = folder / "bin" / "python", folder / "dvc" / "config"
    if not python.exists():
        for path, text in (
            (python, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
            (settings, "[core]\n  no_scm = true\n"),
        ):
            path.parent.mkdir()
            path.write_text(text)
        python.chmod(0o755)
    return os.environ | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_GLOBAL_CONFIG_DIR": str(settings.parent),
        "DVC_SITE_CACHE_DIR": str(settings.parent),
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }


STAGE = [sys.executable, "-m", "dynarep.stages.learn", "long"]
REPRO = [sys.executable, "-m", "dvc", "repro"]


def run(project: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def stop(project: Path, number: signal.Signals, *command: str) -> tuple[int, str]:
    """Run until the long training writes a checkpoint, then send a signal to the group, as a terminal does."""
    process = subprocess.Popen(
        command,
        cwd=project,
        env=environment(project),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    before = written(project)
    while written(project) == before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=100)
    return process.returncode, output


def checkpoints(project: Path) -> Path:
    return project / ".dynarep" / "checkpoints" / "learn" / "long"


def written(project: Path) -> int:
    """Changes with every checkpoint of the long training."""
    path = checkpoints(project) / "learn-long.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


def weights(project: Path) -> bytes:
    return (project / "artifacts" / "learn" / "long" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stage was not stopped."""
    project = make_project(tmp_path_factory.mktemp("whole"))
    run(project, *STAGE)
    assert not checkpoints(project).exists()
    return project


def test_a_stage_stopped_by_ctrl_c_or_killed_ends_as_if_it_was_not(tmp_path: Path, whole: Path) -> None:
    project = make_project(tmp_path)
    code, output = stop(project, signal.SIGINT, *STAGE)
    assert code == 130, output
    path = re.escape(str(checkpoints(Path()) / "learn-long.ckpt"))
    last = output.splitlines()[-1]
    found = re.fullmatch(
        rf"learn/long: stopped at update (\d+) of 1000 of learn/long, saved in {path}; run it again to go on", last
    )
    assert found, output
    assert "Traceback" not in output
    assert not list((project / "artifacts" / "learn").glob("*"))

    for number in (signal.SIGTERM, signal.SIGKILL):
        code, output = stop(project, number, *STAGE)
        assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL), output
        assert re.search(r"learn/long: resuming at update \d+ from .*learn-long\.ckpt", output)
    run(project, *STAGE)
    assert weights(project) == weights(whole)
    assert not checkpoints(project).exists()


def test_dvc_repro_goes_on_after_ctrl_c(tmp_path: Path, whole: Path) -> None:
    project = make_project(tmp_path)
    run(project, sys.executable, "-m", "dvc", "init", "--no-scm")
    code, output = stop(project, signal.SIGINT, *REPRO)
    assert code != 0
    assert "run it again to go on" in output
    status = subprocess.run(
        [sys.executable, "-m", "dynarep.stages.status"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
    )
    assert status.returncode == 1, status.stderr
    line = r"1/1  learn@long  interrupted  .*waits at update [\d,]+ of 1,000"
    assert re.match(line, status.stdout), status.stdout
    assert "learn/long: resuming at update" in run(project, *REPRO)
    assert weights(project) == weights(whole)
    assert (
        "all stages are fresh"
        in subprocess.run(status.args, cwd=project, env=environment(project), capture_output=True, text=True).stdout
    )
    shutil.rmtree(project / ".dvc")
