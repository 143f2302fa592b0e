"""What ``describe`` says about recordings and cards, and the cards that it proposes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import yaml
from layouts import assert_same
from test_data_formats import FORMATS, Format, episodes

from dynarep.data import __main__ as program
from dynarep.data import d4rl
from dynarep.data.card import make_card
from dynarep.data.describe import describe
from dynarep.data.readers import read
from dynarep.data.schema import DataError

ENDS = ["timeout", "timeout", "terminal", "timeout"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ogbench regular"])
def test_the_proposed_card_reads_the_recording(tmp_path: Path, name: str) -> None:
    layout: Format = FORMATS[name]
    if layout.package:
        pytest.importorskip(layout.package)
    expected = episodes(ENDS if layout.terminals and "dones" not in layout.keys else ["timeout"] * 4)
    path = layout.write(tmp_path, expected)
    text, accepted = describe(str(path), tmp_path)
    assert accepted
    proposed = yaml.safe_load(text.partition(".yaml:\n")[2])
    assert proposed["format"] == layout.name
    assert proposed["path"] == str(path.relative_to(tmp_path))
    if name == "minari dictionary":
        assert proposed["observations"] == ["achieved_goal", "extra/goal", "observation"]
        proposed["observations"] = layout.keys["observations"]
    assert_same(list(read(path, make_card("robot", proposed, "proposed"))), expected)
    environment = layouts.ENVIRONMENT if layout.name in ("minari", "prepared") else "not known; set env in the card"
    for line in (
        "episodes      4", "steps         14", "actions       2 numbers, allowed from -1 to 1", f"environment   {environment}"
    ):  # fmt: skip
        assert line in text.splitlines()


def test_numbers_lengths_returns_and_ends(tmp_path: Path) -> None:
    text, _ = describe(str(layouts.write_d4rl(tmp_path, episodes(["terminal", "timeout", "both"]))), tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert ["length", "1", "3", "2.667", "4"] in lines
    for line in (
        "1  terminated: the last step", "1  truncated: the recording stopped", "1  both: a terminal state", "observations 2 ",
        "actions 1 ", "rewards ", "return ",
    ):  # fmt: skip
        assert line in text


def rows(count: int = 40) -> layouts.Columns:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(count + 1, 3)).astype(np.float32)
    return {
        "observations": states[:-1].copy(),
        "next_observations": states[1:].copy(),
        "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": np.zeros(count, bool),
        "timeouts": np.arange(1, count + 1) % 10 == 0,
    }


def put(name: str, index: Any, value: Any) -> Callable[[layouts.Columns], None]:
    return lambda columns: columns[name].__setitem__(index, value)


def repeat(columns: layouts.Columns) -> None:
    for values in columns.values():
        values[20:30] = values[:10]


def constant(columns: layouts.Columns) -> None:
    for name in ("observations", "next_observations"):
        columns[name][:, 1] = 3


@pytest.mark.parametrize(
    ("spoil", "remark"),
    [
        (lambda columns: None, "Nothing suspicious found."),
        (constant, "Constant in observations: column 1."),
        (put("actions", slice(None), 0), "Constant in actions: columns 0, 1."),
        (put("rewards", slice(None), -1), "All rewards are -1; no method can learn from them."),
        (put("timeouts", [9, 39], False), "1 episode without a mark at the end; taken as truncated."),
        (put("next_observations", [3, 5], 0), "2 episodes without a mark at the end; taken as truncated."),
        (repeat, "1 episode equal to an earlier one in all states and actions."),
        (repeat, "10 of 40 steps repeat an earlier one exactly"),
        (put("actions", 7, [1.5, -2]), "Actions beyond -1 and 1 in 1 of 40 steps, from -2 to 1.5; bounds belong into the card."),
        (put("terminals", slice(9, None, 10), True), "All 4 terminated episodes have exactly 10 steps, as if a time limit"),
        (put("terminals", [5, 9, 19, 29, 39], True), "Every episode ends in a terminal state."),
        (put("terminals", 10, True), "1 episode of a single step."),
        (lambda columns: columns.pop("next_observations"), "final state only, so 4 of 40 rows are no steps."),
    ],
)  # fmt: skip
def test_suspicious_things_are_remarked(tmp_path: Path, spoil: Callable[[layouts.Columns], Any], remark: str) -> None:
    columns = rows()
    spoil(columns)
    np.savez(tmp_path / "robot.npz", **columns)  # type: ignore[arg-type]
    text, accepted = describe(str(tmp_path / "robot.npz"), tmp_path)
    assert accepted
    assert remark in text


def test_bounds_are_proposed_where_actions_need_them(tmp_path: Path) -> None:
    columns = rows()
    columns["actions"][7] = [1.5, -2.004]
    np.savez(tmp_path / "robot.npz", **columns)  # type: ignore[arg-type]
    text, _ = describe(str(tmp_path / "robot.npz"), tmp_path)
    assert "action_low: [-1.0, -2.01]\n  action_high: [1.5, 1.0]" in text
    assert "# bounds as found, at least -1 and 1" in text
    made = episodes(["timeout"] * 2)
    path = tmp_path / "mine"
    layouts.write_episodes(path, made, action_low=-2.0, action_high=(2.0, 3.0))
    assert "action_low: [-2.0, -2.0]\n  action_high: [2.0, 3.0]" in describe(str(path), tmp_path)[0]


def test_a_recording_that_would_be_refused_shows_why(tmp_path: Path) -> None:
    columns = rows()
    columns["observations"][3:5, 1] = np.nan
    columns["actions"][0, 0] = np.inf
    np.savez(tmp_path / "robot.npz", **columns)  # type: ignore[arg-type]
    text, accepted = describe(str(tmp_path / "robot.npz"), tmp_path)
    assert not accepted
    assert "It would be refused:\n" in text
    assert "observations: found nan in row 3, component 1" in text
    table = {line.split()[0]: line.split()[-1] for line in text.partition("not finite\n")[2].splitlines()}
    assert (table["observations"], table["actions"], table["rewards"]) == ("2", "1", "0")
    del columns["timeouts"], columns["next_observations"], columns["actions"]
    np.savez(tmp_path / "robot.npz", **columns)  # type: ignore[arg-type]
    assert "timeouts: missing" in describe(str(tmp_path / "robot.npz"), tmp_path)[0]


def test_cards_are_described_by_name_and_by_file(tmp_path: Path) -> None:
    layouts.write_npz(tmp_path, episodes(ENDS))
    cards = tmp_path / "configs" / "datasets"
    cards.mkdir(parents=True)
    card = {"path": "recording.npz", "format": "arrays", "env": "Hopper-v4", "description": "Test."}
    (cards / "robot.yaml").write_text(yaml.safe_dump(card))
    (cards / "best.yaml").write_text(yaml.safe_dump({"from": "robot", "top": 1, "observations_only": True}))
    text, accepted = describe("robot", tmp_path)
    assert accepted
    assert text.startswith(
        "Card robot: Test.\n  env: Hopper-v4\n  format: arrays\n  path: recording.npz\n\nepisodes      4\n"
    )
    assert describe(str(cards / "robot.yaml"), Path("elsewhere")) == (text, True)
    best, _ = describe("best", tmp_path)
    assert "episodes      1\n" in best
    assert "actions       none\nrewards       none\nenvironment   Hopper-v4" in best
    (cards / "robot.yaml").write_text(yaml.safe_dump({**card, "action_high": 0.1}))
    text, accepted = describe("robot", tmp_path)
    assert not accepted
    assert "the card robot sets action_low and action_high" in text
    with pytest.raises(DataError, match=r"rob: no such file or folder, and no card in .*; cards there: best, robot"):
        describe("rob", tmp_path)


def test_returns_of_a_d4rl_dataset_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAREP_DATA", str(tmp_path))
    monkeypatch.setattr(d4rl, "reference", lambda name: (0.0, 2.0) if name == "hopper-medium-v2" else None)
    folder = tmp_path / "d4rl"
    folder.mkdir()
    layouts.write_d4rl(folder, episodes(["timeout"])).rename(folder / "hopper-medium-v2.hdf5")
    (tmp_path / "medium.yaml").write_text("dataset: hopper-medium-v2\nformat: d4rl\n")
    text, _ = describe(str(tmp_path / "medium.yaml"), tmp_path)
    values = {
        line.split("  ")[0]: float(line.split()[-1]) for line in text.splitlines() if re.match("return|D4RL", line)
    }
    assert values["D4RL score"] == pytest.approx(50 * values["return"], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.with_suffix(".csv").write_text("1"), "found a file .csv, expected one of .npz, .parquet, .hdf5"),
        (lambda path: path.mkdir(), "found nothing; expected a LeRobot dataset (meta/info.json), a Minari dataset"),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK"), "not a readable .npz archive"),
        (lambda path: np.savez(path.with_suffix(".npz"), states=np.zeros(3)), "observations: missing; found states"),
        (lambda path: path.with_suffix(".hdf5").write_bytes(b""), "not a readable HDF5 file"),
    ],
)  # fmt: skip
def test_files_of_no_known_format_are_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "robot")
    (path,) = tmp_path.iterdir()
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        describe(str(path), tmp_path)
    assert str(path) in str(caught.value)


def test_a_minari_dataset_without_episodes_is_refused(tmp_path: Path) -> None:
    path = layouts.write_minari(tmp_path, [])
    with pytest.raises(DataError, match=r"main_data.hdf5: episode_0: missing; found nothing"):
        describe(str(path), tmp_path)


def test_a_file_inside_a_minari_dataset_leads_to_its_folder(tmp_path: Path) -> None:
    path = layouts.write_minari(tmp_path, episodes(["timeout"]))
    with pytest.raises(DataError, match=f"a file of a Minari dataset; name the folder of the dataset, {path}"):
        describe(str(path / "data" / "main_data.hdf5"), tmp_path)


def test_the_program_prints_and_reports_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(target: str) -> int:
        monkeypatch.setattr(sys, "argv", ["data", "describe", target])
        return program.main()

    monkeypatch.chdir(tmp_path)
    layouts.write_npz(tmp_path, episodes(ENDS))
    assert run("recording.npz") == 0
    assert capsys.readouterr().out.startswith("recording.npz: looks like format arrays\n")
    assert run("nothing") == 1
    assert capsys.readouterr().err.startswith("error: nothing: no such file or folder, and no card in configs/datasets")
    columns = rows()
    columns["rewards"][0] = np.nan
    np.savez("recording.npz", **columns)  # type: ignore[arg-type]
    assert run("recording.npz") == 1
    assert "It would be refused" in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys\nsys.argv = ['data', 'describe', '--help']\nimport dynarep.data.__main__ as program\n"
        "try:\n    program.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'pydantic', 'h5py', 'yaml'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: dynarep describe" in done.stdout
