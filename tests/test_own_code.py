"""A stage runs the code of its own project, and a process that would write nothing says so."""

from __future__ import annotations

import json
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
    (tmp_path / "params.yaml").write_text("evaluate: {env: Hopper-v4, demonstrations: none, episodes: 1}\n")
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


def call(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_queued_experiment_runs_the_code_that_it_was_queued_with(
    copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the package imported from the workspace, as an editable install does it, and the workspace changed since."""
    package = tmp_path_factory.mktemp("editable") / "dynarep"
    package.mkdir()
    for target in ("pipeline", "stages", "data", "configs", "pipeline/root/__init__.py"):
        (package / Path(target).name).symlink_to(copy / target)
    path = copy / "stages" / "demonstrate.py"
    code = path.read_text()
    assert '"dataset": name' in code
    path.write_text(code.replace('"dataset": name', '"dataset": name, "code": "queued"'))
    (copy / "dvc.yaml").write_text(
        "stages:\n  demonstrate:\n    cmd: python -m dynarep.stages.demonstrate\n    params: [evaluate]\n"
        "    deps: [stages/demonstrate.py]\n    outs: [artifacts/demonstrate]\n"
    )
    shutil.copy(ROOT / ".dvcignore", copy)
    (copy / ".gitignore").write_text(".dynarep\nlogs\n__pycache__\n")
    user = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = {**user, "PYTHONPATH": str(package.parent), "DVC_NO_ANALYTICS": "1"}
    dvc = (sys.executable, "-m", "dvc")
    call("git", "init", "-q", cwd=copy)
    call(*dvc, "init", "-q", cwd=copy)
    call("git", "add", "-A", cwd=copy)
    call("git", "commit", "-qm", "one", cwd=copy, **environment)
    call(*dvc, "exp", "run", "--queue", "--name", "waits", "-S", "evaluate.episodes=3", cwd=copy, **environment)
    path.write_text(code.replace('"dataset": name', '"dataset": name, "code": "changed since"'))
    call(*dvc, "exp", "run", "--run-all", cwd=copy, **environment)
    call(*dvc, "get", "--rev", "waits", "--out", "got", ".", "artifacts/demonstrate", cwd=copy, **environment)
    assert json.loads((copy / "got" / "metrics.json").read_text())["code"] == "queued"
