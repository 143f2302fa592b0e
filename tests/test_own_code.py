"""A stage runs the code of its own project, and a process that would write nothing says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository, as a queued experiment of DVC has it."""
    for folder in ("pipeline", "stages", "data", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.hdf5"))
    (tmp_path / "params.yaml").write_text("evaluate: {env: Hopper-v4, demonstrations: none}\n")
    return tmp_path


def demonstrate(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dynarep.stages.demonstrate"]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_copy_of_the_project_runs_its_own_code(copy: Path) -> None:
    path = copy / "stages" / "demonstrate.py"
    marked = path.read_text().replace('"""Write returns', 'print("the copy")\n    """Write returns', 1)
    path.write_text(marked)
    done = demonstrate(copy)
    assert done.returncode == 0, done.stderr
    assert "the copy" in done.stdout
    assert (copy / "artifacts" / "demonstrate" / "metrics.json").is_file()


def test_a_project_without_code_runs_the_installed_one(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("evaluate: {env: Hopper-v4, demonstrations: none}\n")
    assert demonstrate(tmp_path).returncode == 0
    assert not (tmp_path / ".dynarep" / "code").exists()


@pytest.mark.parametrize("variable", ["SLURM_PROCID", "RANK", "LOCAL_RANK"])
def test_a_task_that_would_write_nothing_is_refused(tmp_path: Path, variable: str) -> None:
    (tmp_path / "params.yaml").write_text("evaluate: {env: Hopper-v4, demonstrations: none}\n")
    done = demonstrate(tmp_path, **{variable: "1"})
    assert done.returncode == 1
    assert f"{variable}: found 1, but demonstrate runs in one process" in done.stderr
