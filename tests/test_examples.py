"""Every example, as its README says to run it, at toy size."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from models import make

from dynarep.pipeline.artifacts.storage import save_model

EXAMPLES = Path(__file__).parents[1] / "examples"
IGNORED = shutil.ignore_patterns("__pycache__", "artifacts", "recordings", ".dvc", ".git")


def main_of(script: str) -> Callable[[list[str]], None]:
    found: Callable[[list[str]], None] = runpy.run_path(str(EXAMPLES / script))["main"]
    return found


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Of observations of three numbers."""
    save_model(tmp_path / "encoder", make("intent"))
    return tmp_path / "encoder"


def test_every_folder_is_explained() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| \[\w+\]\((\w+)\)", (EXAMPLES / "README.md").read_text(), re.M)) == folders
    assert all((EXAMPLES / name / "README.md").is_file() for name in folders)


def test_distance_field(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "field.png"
    goal = ["--goal", "0.5", "0", "-0.5", "--axes", "0", "2"]
    main_of("distance_field/plot.py")([str(encoder), *goal, "--out", str(picture)])
    low, high = map(float, re.findall(r"-?\d+\.\d+", capsys.readouterr().out.partition(": ")[2]))
    assert 0 <= low < 0.1 < high
    pixels = matplotlib.image.imread(picture)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20


def test_stable_baselines3(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--steps", "64", "--seeds", "1", "--episodes", "1"]
    main_of("stable_baselines3/train.py")([str(encoder), "--env", "Pendulum-v1", *sizes])
    assert re.findall(r"^(\w+): mean return -\d+", capsys.readouterr().out, re.M) == ["observations", "psi"]


def test_changed_physics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--steps", "200", "--updates", "5", "--width", "8", "--replicas", "2", "--episodes", "2"]
    main_of("changed_physics/compare.py")([*sizes, "--out", str(tmp_path / "out")])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores) == {
        "bc",
        "bc_changed_top3",
        "value_dice",
        "repr_changed",
        "repr_own",
        "repr_changed_top3",
        "random",
    }
    assert all(score["normalised_low"] <= score["normalised_high"] for score in scores.values())
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in scores)


def test_changed_physics_is_changed() -> None:
    import gymnasium

    level, names = gymnasium.logger.min_level, runpy.run_path(str(EXAMPLES / "changed_physics" / "compare.py"))
    gymnasium.logger.min_level = level
    models = [names["changed"](mass, friction).unwrapped.model for mass, friction in ((1.0, 1.0), (2.0, 0.5))]
    for field, factor in (("body_mass", 2.0), ("body_inertia", 2.0)):
        np.testing.assert_allclose(getattr(models[1], field), factor * getattr(models[0], field))
    np.testing.assert_allclose(models[1].geom_friction, models[0].geom_friction * [0.5, 1, 1])


def shrunk(values: Any) -> Any:
    """Parameters with every training of ten updates."""
    if isinstance(values, dict):
        small = {"updates": 10, "updates_per_chunk": 5, "episodes": 1, "workers": 1}
        shrunken = {key: shrunk(value) for key, value in values.items()}
        return shrunken | {
            key: value
            for key, value in small.items()
            if key in values or ("updates" in values and key == "updates_per_chunk")
        }
    return values


class Project:
    """A copy of examples, with git and DVC."""

    def __init__(self, root: Path, *parts: Path) -> None:
        self.root = root
        for part in parts:
            if part.is_dir():
                shutil.copytree(
                    part, root / part.name if part.name == "configs" else root, ignore=IGNORED, dirs_exist_ok=True
                )
            else:
                shutil.copy(part, root)
        programs = root.parent / "bin"
        programs.mkdir()
        for name, arguments in (("python", ""), ("dvc", "-m dvc ")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
            (programs / name).chmod(0o755)
        params = root / "params.yaml"
        params.write_text(yaml.safe_dump(shrunk(yaml.safe_load(params.read_text())), sort_keys=False))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
        self.environment = kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(root.parent / "dvc"),
            "DVC_SITE_CACHE_DIR": str(root.parent / "dvc"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        for name in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{name}_NAME": "test", f"GIT_{name}_EMAIL": "test@example.org"}
        self.call("git", "init", "-q")
        self.call("dvc", "init", "-q")

    def call(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The example with data of its own after ``dvc repro``, with what the sweep needs."""
    sweep = EXAMPLES / "dataset_sweep"
    root = tmp_path_factory.mktemp("own") / "room"
    project = Project(root, EXAMPLES / "own_data", sweep / "configs", sweep / "sweep.sh")
    project.call("git", "add", ".")
    project.call("git", "commit", "-qm", "A room")
    project.call("dvc", "repro")
    return project


@pytest.mark.slow
def test_own_data(room: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = json.loads((room.root / "artifacts" / "report" / "metrics.json").read_text())
    assert set(scores) == {"bc", "repr_value_dice", "iql_ailot", "iql_true", "top_ailot", "top_otr", "random"}
    assert all(-40 <= score["return_mean"] <= 0 and score["success_rate"] is not None for score in scores.values())
    assert "iql_ailot" in (room.root / "artifacts" / "report" / "index.html").read_text()
    monkeypatch.chdir(tmp_path)
    source = f"dvc://{room.root}#artifacts/pretrain/intent"
    main_of("distance_field/plot.py")([source, "--goal", "0.4", "-0.8"])
    assert (tmp_path / "field.png").is_file()


@pytest.mark.slow
def test_dataset_sweep(room: Project) -> None:
    printed = room.call("./sweep.sh", "arbitrary-third,arbitrary-tenth")
    shown = json.loads(room.call("dvc", "exp", "show", "--json"))
    (base,) = [row for row in shown if row["rev"] != "workspace"]
    results = [experiment["revs"][0]["data"] for experiment in base["experiments"]]
    datasets = [result["params"]["params.yaml"]["data"]["pretrain"]["intent"]["dataset"] for result in results]
    assert sorted(datasets) == ["arbitrary-tenth", "arbitrary-third"]
    for result, dataset in zip(results, datasets, strict=True):
        assert "iql_ailot" in result["metrics"]["artifacts/report/metrics.json"]["data"]
        assert dataset in printed


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a few updates; its outputs are not kept."""
    book = json.loads((EXAMPLES / "maze.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    for cell in code:
        source = "".join(cell["source"]).replace("UPDATES = 2000", "UPDATES = 20")
        exec(compile(source, cell["id"], "exec"), names)
    assert names["UPDATES"] == 20
    printed = capsys.readouterr().out
    for text in ("episodes of play", "success_rate", "steps from"):
        assert text in printed
