"""The command ``dynarep`` and its programs that are no stages: ``score`` and ``init``."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import yaml

from dynarep.configs.params import validate
from dynarep.data.card import load_card
from dynarep.data.readers import read
from dynarep.data.schema import Episode
from dynarep.init import main as init
from dynarep.pipeline.entries import read_entry
from dynarep.pipeline.playing.play import EvaluateConfig
from dynarep.pipeline.registry import ROOMS
from dynarep.score import main as score
from dynarep.score import share_or_number

CODE = Path(__file__).parents[1] / "pipeline" / "root"


def states(way: np.ndarray) -> np.ndarray:
    """Along a curve, a third of a unit each step."""
    return np.stack([way / 3, (way / 3) ** 2 / 10, np.ones(len(way))], 1).astype(np.float32)


def episodes() -> list[Episode]:
    """Twelve ways along a curve of 30 steps: the n-th waits after 10 + n of them, and the last one goes back; then all of it."""
    ways = [np.minimum(np.arange(31), 10 + number) for number in range(12)]
    ways = [*ways[:-1], ways[-1][::-1], np.arange(31)]
    actions, rewards = np.full((30, 1), 0.1, np.float32), np.zeros(30, np.float32)
    return [
        Episode(
            id=f"line-{number:06d}",
            observations=states(way),
            actions=actions,
            rewards=rewards,
            terminated=False,
            truncated=True,
        )
        for number, way in enumerate(ways)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.write_d4rl(tmp_path_factory.mktemp("recorded"), episodes())


@pytest.fixture
def here(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNAREP_DATA", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_command_ranks_a_recording_and_writes_the_best(
    here: Path, recorded: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(recorded), "--demonstrations", "12", "--updates", "20"]
    assert score([*command, "--write", "d4rl", "best.hdf5", "--keep", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "metric: training of 20 updates" in printed
    assert max(map(len, printed[printed.index(" rank ") :].splitlines()[:-2])) <= 80
    rows = list(csv.DictReader((here / "scores" / "recording" / "scores.csv").open()))
    assert len(rows) == 13
    order = [int(row["episode"][-6:]) for row in rows]
    assert order[0] == 12, "the demonstration itself"
    assert order[-1] == 11, "the one that goes back"
    assert order[1:-1] == sorted(order[1:-1], reverse=True), "the further the better"
    about = json.loads((here / "scores" / "recording" / "about.json").read_text())
    assert (about["demonstrations"], about["updates"]) == (["12"], 20)
    kept = list(read(here / "best.hdf5", load(here, {"path": "best.hdf5", "format": "d4rl"})))
    assert [int(episode.length) for episode in kept] == [30, 30, 30]
    assert all(episode.rewards is not None and episode.rewards.any() for episode in kept)
    assert not list(here.glob(".*")), "nothing but the results here"

    assert score(command) == 0
    assert "recording: 13 episodes, 390 steps, fresh" in (again := capsys.readouterr().out)
    assert "metric: trained before" in again
    assert (
        again[again.index(" rank ") : again.index("score =")]
        == printed[printed.index(" rank ") : printed.index("score =")]
    )
    assert len(list((cache / "scores").iterdir())) == 1


def load(folder: Path, values: dict[str, Any]) -> Any:
    (folder / "card.yaml").write_text(yaml.safe_dump(values))
    return load_card("card", folder)


def test_a_lerobot_folder_gets_progress_of_its_frames_and_another_recording_can_demonstrate(
    here: Path, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    source = layouts.write_lerobot(here, episodes())
    command = [str(source), "--demonstrations", str(recorded), "--updates", "20", "--out", "out"]
    assert score([*command, "--write", "lerobot", "good", "--keep", "3"]) == 0, capsys.readouterr().err
    table = pyarrow.parquet.read_table(here / "out" / "sarm_progress.parquet").to_pydict()
    assert list(table) == ["index", "episode_index", "frame_index", "progress_sparse"]
    assert table["index"] == list(range(13 * 31))
    assert 0 <= min(table["progress_sparse"]) < max(table["progress_sparse"]) <= 1
    last = table["progress_sparse"][12 * 31 :]
    assert last == sorted(last), "along the line"
    assert json.loads((here / "good" / "meta" / "info.json").read_text())["total_episodes"] == 3
    assert score([*command, "--write", "lerobot", "good"]) == 1
    assert "good: is there; name another place, or say --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.hdf5", "--demonstrations", "0"], "nowhere.hdf5: no such file or folder"),
        (["RECORDED", "--demonstrations", "13"], "--demonstrations: 13: found nowhere in recording, expected one episode"),
        (["RECORDED", "--demonstrations", "-1"], "--demonstrations: -1: found nowhere in recording, expected one episode"),
        (["RECORDED", "--demonstrations", "wide.npz"], "wide: observations: found 5 numbers, expected 3 as in recording"),
        (["RECORDED", "--demonstrations", "1", "b"], "--demonstrations: found ['1', 'b'], expected numbers of episodes or one"),
        (["RECORDED", "--demonstrations", "1", "--keep", "3"], "--keep: found it without --write"),
        (["RECORDED", "--demonstrations", "1", "--write", "zarr", "x"], "--write: found 'zarr', expected one of d4rl, robomimic"),
        (["RECORDED", "--demonstrations", "1", "--write", "lerobot", "x"], "lerobot: found a recording of format d4rl"),
        (["RECORDED", "--demonstrations", "1", "--out", "there"], "there: is there and no folder of scores; name another --out"),
        (["RECORDED", "--demonstrations", "1", "--out", "others"], "updates: found 7, expected 20; these are other scores"),
    ],
)  # fmt: skip
def test_faults_are_one_line_before_any_training(
    here: Path, recorded: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wide(here)
    (here / "there").mkdir()
    (here / "others").mkdir()
    cached = Path(str(recorded))
    keys = {"made_by": "dynarep score", "dataset": str(cached), "demonstrations": ["1"], "updates": 7}
    (here / "others" / "about.json").write_text(json.dumps(keys))
    command = [str(recorded) if argument == "RECORDED" else argument for argument in arguments]
    assert score([*command, "--updates", "20"]) == 1
    printed = capsys.readouterr()
    if "others" not in arguments:
        assert message in printed.err
    else:
        assert "these are other scores" in printed.err
    assert printed.err.startswith("error: score: ")
    assert printed.err.count("\n") == 1
    assert "training" not in printed.out


def wide(folder: Path) -> None:
    """A recording with other observations than ``episodes``."""
    ends = np.arange(20) % 10 == 9
    np.savez(
        folder / "wide.npz",
        observations=np.eye(20, 5),
        actions=np.zeros((20, 1)),
        terminals=~ends & ends,
        timeouts=ends,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demonstrations", "-1"], "--demonstrations: found -1, expected numbers of episodes of recording, 0 to 12"),
        (["--demonstrations", "wide.npz"], "wide: observations: found 5 numbers, expected 3 as in recording"),
        (["--demonstrations", "1", "--env", "Pendulm-v1"], "--env: env 'Pendulm-v1' cannot be made"),
        (["--demonstrations", "1", "--env", "CartPole-v1"], "--env: env 'CartPole-v1': actions are Discrete(2)"),
        (
            ["--demonstrations", "1", "--env", "MountainCarContinuous-v0"],
            "observations: found 2 numbers, expected 3 as in",
        ),
    ],
)
def test_init_refuses_what_would_not_fit_later_and_writes_nothing(
    here: Path, recorded: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wide(here)
    assert init([str(recorded), *arguments, "--folder", "project"]) == 1
    assert message in capsys.readouterr().err
    assert not (here / "project").exists()


def test_a_training_has_updates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        score(["recording.hdf5", "--demonstrations", "1", "--updates", "0"])
    assert "--updates: found '0', expected a number of at least 1" in capsys.readouterr().err


def test_what_to_keep_is_a_share_or_a_number() -> None:
    assert [share_or_number(text) for text in ("0.5", "1", "20", "1.0")] == [0.5, 1, 20, None]
    for text in ("0", "-1", "1.5", "0.0", "many", "nan"):
        with pytest.raises(Exception, match=f"found {text!r}, expected a share such as 0.8"):
            share_or_number(text)


@pytest.mark.parametrize("env", [None, "Pendulum-v1"])
@pytest.mark.parametrize("numbered", [True, False])
def test_init_lays_out_a_project_whose_parts_fit(
    here: Path, recorded: Path, numbered: bool, env: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(recorded, here / "mine.hdf5")
    shown = ["12"] if numbered else [str(recorded)]
    command = ["mine.hdf5", "--demonstrations", *shown, "--folder", "project", *(["--env", env] if env else [])]
    assert init(command) == 0, capsys.readouterr().err
    project = here / "project"
    values = yaml.safe_load((project / "params.yaml").read_text())
    entries = [read_entry(project / "params.yaml", section, name) for section in ROOMS for name in values[section]]
    assert {entry.kind for entry in entries} == {
        "temporal_metric",
        "inverse",
        "follow",
        "weighted_bc",
        "bc",
        "random",
    }
    known: dict[str, set[str]] = {}
    for entry in entries:
        for name in {entry.inputs.dataset, getattr(entry.inputs, "demonstrations", entry.inputs.dataset)}:
            card = load_card(name, project / "configs" / "datasets")
            known[name] = {episode.id for episode in read(project / str(card.path), card)}
            assert card.env == env
    shown = "mine-demonstrations" if numbered else "recording"
    assert {name: len(ids) for name, ids in known.items()} == {
        "mine": 13 if env else 12,
        shown: 1 if numbered else 13,
        **({} if env else {"mine-held-out": 1}),
    }
    settings = validate(EvaluateConfig, values["evaluate"], "evaluate")
    assert (settings.env, settings.recording.dataset) == ((env, "none") if env else ("none", "mine-held-out"))
    assert settings.recording.rewards in {"none", *values["relabel"]}
    left_out = load_card("mine", project / "configs" / "datasets").leave_out
    assert left_out is None if env else left_out not in (None, (12,)), "no demonstration is held out"
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert {"evaluate", "report"} <= set(stages)
    for path in stages["prepare"]["deps"]:
        assert (project / path).exists()
    assert init(command) == 1
    assert "params.yaml: is there; name another --folder" in capsys.readouterr().err
    if numbered:
        for name in ("params.yaml", "dvc.yaml", "configs"):
            (shutil.rmtree if name == "configs" else Path.unlink)(project / name)
        assert init(command) == 1
        assert "mine-demonstrations: is there; name another --folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_project_of_init_runs_to_its_report_without_an_environment(here: Path, recorded: Path) -> None:
    shutil.copy(recorded, here / "mine.hdf5")
    assert init(["mine.hdf5", "--demonstrations", "12", "--folder", "project"]) == 0
    project = here / "project"
    values = yaml.safe_load((project / "params.yaml").read_text())
    for section in ("pretrain", "learn"):
        for entry in values[section].values():
            if "training" in entry:
                entry["training"] = {"updates": 20, "batch_size": 16, "compile": False}
    values["evaluate"]["recording"]["fitted_q"] = {"gamma": 0.5, "hidden": [8], "training": {"updates": 200}}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, check=True)
    done = run("run", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recording mine-held-out: 1 replica, 1 episode" in done.stdout
    scores = json.loads((project / "artifacts" / "report" / "metrics.json").read_text())
    assert set(scores) == {"weighted", "bc", "random"}
    for found in scores.values():
        assert found["action_error"] is not None
        assert found["fitted_q"] is not None
        assert found["recording_seen"] is False
        assert found["return_mean"] is None
    assert (project / "artifacts" / "report" / "index.html").is_file()


def test_the_project_of_init_is_the_example_without_its_recorder() -> None:
    root = Path(__file__).parents[1]
    ours = yaml.safe_load((root / "configs" / "project" / "dvc.yaml").read_text())
    example = yaml.safe_load((root / "examples" / "own_data" / "dvc.yaml").read_text())
    del example["stages"]["record"]
    own = {"recordings", "room.py"}
    for stage in example["stages"].values():
        for part in (stage, stage.get("do", {})):
            if "deps" in part:
                part["deps"] = [dep for dep in part["deps"] if dep not in own]
    assert ours == example


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dynarep", *arguments], capture_output=True, text=True, cwd=cwd)


def test_the_command_knows_its_programs(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == [
        "init", "describe", "score", "run", "status", "report"
    ]  # fmt: skip
    assert run(cwd=tmp_path).stdout == done.stdout
    wrong = run("train", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: dynarep: found 'train', expected one of init, describe, score, run, status, report\n"
    )  # fmt: skip
    described = run("describe", "nowhere", cwd=tmp_path)
    assert described.returncode == 1
    assert described.stderr.startswith("error: nowhere: no such file or folder")
    status = run("status", cwd=tmp_path)
    assert status.returncode == 2
    assert re.search(r"dvc.yaml: no such file; expected the project's pipeline", status.stderr)


def test_run_names_every_wrong_entry_before_anything_is_trained(tmp_path: Path) -> None:
    values = {
        "seed": 0,
        "replicas": 1,
        "pretrain": {"raw": {"kind": "identity", "dataset": "d", "latent": 3}},
        "learn": {
            "fine": {"kind": "random", "dataset": "d", "demonstrations": "d"},
            "slip": {"kind": "bc", "dataset": "d", "demonstrations": "d", "hiden": [8], "training": {"updates": 5}},
            "bare": {"kind": "bc", "dataset": "d", "demonstrations": "d"},
        },
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = run("run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("error: run: params.yaml: pretrain.raw.latent: unknown key; identity knows ")
    assert lines[1].startswith("error: run: params.yaml: learn.slip.hiden: unknown key; bc knows ")
    assert lines[2] == "error: run: params.yaml: learn.bare.training: missing; bc is trained"
    (tmp_path / "params.yaml").write_text("pretrian: {}")
    assert "pretrian" in run("run", cwd=tmp_path).stderr


LIGHT = """
import runpy, sys
for command in ("init", "describe", "score", "status", "report"):
    sys.argv = ["dynarep", command, "--help"]
    try:
        runpy.run_module("dynarep", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        assert stop.code == 0, command
    heavy = {"torch", "numpy", "yaml", "h5py", "dvc", "pydantic", "lightning"} & set(sys.modules)
    allowed = {"yaml", "pydantic", "numpy"} if command in ("status", "report") else set()
    assert heavy <= allowed, (command, heavy)
"""


def test_help_is_light(tmp_path: Path) -> None:
    """What the stages' programs import for --help is held by test_imports."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--demonstrations" in done.stdout
    for command in ("init", "describe", "score", "status"):
        assert f"usage: dynarep {command} " in done.stdout
