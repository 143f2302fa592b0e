"""Recordings as people really have them: flags that end nothing, rows of other precision, episodes with faults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import layouts
import numpy as np
import pytest
import yaml
from test_data_formats import card, episodes

from dynarep.data.describe import describe
from dynarep.data.prepare import prepare
from dynarep.data.readers import read
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, read_index

Columns = dict[str, np.ndarray]
ROWS = 60


def maze(*, successors: bool = False, visits: Callable[[np.ndarray], np.ndarray] = lambda near: near) -> Columns:
    """Four episodes of 60 rows in D4RL's AntMaze layout; three reach the goal after 45 rows and stay there."""
    rng = np.random.default_rng(0)
    goal = np.array([0.0, 8.0])
    states = rng.normal(size=(4, ROWS + 1, 29)) * 0.1
    for episode, share in enumerate((1.0, 1.0, 1.0, 0.5)):
        path = np.minimum(np.arange(ROWS + 1) / 44, 1)[:, None] * goal * share
        states[episode, :, :2] = path + rng.normal(size=(ROWS + 1, 2)) * 0.02
    states = states.astype(np.float32)
    observations = states[:, :-1].reshape(-1, 29)
    near = np.linalg.norm(observations[1:, :2] - goal, axis=1) <= 0.5
    flags = visits(np.append(near, False)).astype(np.float32)
    columns = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (4 * ROWS, 8)).astype(np.float32),
        "rewards": flags,
        "terminals": flags,
        "timeouts": np.arange(4 * ROWS) % ROWS == ROWS - 1,
    }
    return columns | ({"next_observations": states[:, 1:].reshape(-1, 29)} if successors else {})


def write_hdf5(folder: Path, columns: Columns) -> Path:
    path = folder / "recording.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path


def write_npz(folder: Path, columns: Columns) -> Path:
    path = folder / "recording.npz"
    np.savez(path, **columns)  # type: ignore[arg-type]
    return path


def flat(successors: bool = True, count: int = 6, rows: int = 100) -> Columns:
    """Episodes of equal length, marked by ``timeouts``, in float64."""
    rng = np.random.default_rng(1)
    states = rng.normal(size=(count, rows + 1, 3)).cumsum(1) * 0.1
    columns = {
        "observations": states[:, :-1].reshape(-1, 3),
        "actions": rng.uniform(-1, 1, (count * rows, 2)),
        "rewards": rng.normal(size=count * rows),
        "terminals": np.zeros(count * rows),
        "timeouts": np.arange(count * rows) % rows == rows - 1,
    }
    return columns | ({"next_observations": states[:, 1:].reshape(-1, 3)} if successors else {})


def prepared(folder: Path, path: Path, kind: str, **keys: Any) -> Path:
    """The dataset of a card for this recording."""
    cards = folder / "configs" / "datasets"
    cards.mkdir(parents=True, exist_ok=True)
    (cards / "robot.yaml").write_text(yaml.safe_dump({"path": str(path), "format": kind, **keys}))
    prepare(["robot"], cards=cards, root=folder, out=folder / "shards")
    return folder / "shards" / "robot"


def flicker(near: np.ndarray) -> np.ndarray:
    """The goal is left for a step now and then, so that some flags stand alone."""
    rows = np.arange(len(near))
    return near & (rows % 6 != 0) & (rows % 6 != 2)


@pytest.mark.parametrize("visits", [lambda near: near, flicker], ids=["steady", "flickering"])
@pytest.mark.parametrize("successors", [False, True])
def test_a_flag_repeated_while_the_state_goes_on_is_no_end(
    tmp_path: Path, successors: bool, visits: Callable[[np.ndarray], np.ndarray]
) -> None:
    columns = maze(successors=successors, visits=visits)
    found = read(write_hdf5(tmp_path, columns), card("d4rl"))
    assert found.notes.inside == columns["terminals"].sum() > 30
    assert found.notes.left_out == {}
    kept = list(found)
    assert [e.length for e in kept] == [ROWS - (not successors)] * 4
    assert not any(e.terminated for e in kept)
    assert kept[0].return_ == columns["rewards"][: ROWS - (not successors)].sum()
    kept = list(read(write_hdf5(tmp_path, columns), card("d4rl", dones="terminated")))
    assert [e.length for e in kept] == [ROWS - (not successors)] * 4
    if visits is not flicker and not successors:
        assert [e.terminated for e in kept] == [True, True, True, False]


def test_episodes_of_one_step_each_stay_what_they_are(tmp_path: Path) -> None:
    columns = flat(count=1, rows=5)
    columns |= {"observations": np.zeros((5, 1)), "next_observations": np.zeros((5, 1)), "terminals": np.ones(5)}
    found = list(read(write_npz(tmp_path, columns), card("arrays")))
    assert [(e.length, e.terminated) for e in found] == [(1, True)] * 5


def test_repeated_flags_are_counted_where_one_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_hdf5(tmp_path, maze())
    count = int(maze()["terminals"].sum())
    text, accepted = describe(str(path), tmp_path)
    assert accepted
    assert f"{count} rows with a terminal flag after which the episode goes on, as in AntMaze near the goal" in text
    for end in (" -> shards/robot", ", fresh"):
        folder = prepared(tmp_path, path, "d4rl")
        line = capsys.readouterr().out.strip()
        assert line == f"robot: 4 episodes, 236 steps, {count} terminals inside episodes are no ends{end}"
    assert read_index(folder)["provenance"]["terminals_inside"] == count


def test_a_terminal_row_after_a_terminal_row_elsewhere_is_an_episode_without_a_transition(tmp_path: Path) -> None:
    columns = flat(successors=False)
    columns["terminals"][[99, 199, 299, 300]] = 1
    columns["timeouts"][:] = False
    columns["timeouts"][[399, 499, 599]] = True
    columns["observations"][300] += 50  # far from the rows before and after
    found = read(write_npz(tmp_path, columns), card("arrays"))
    assert found.notes.left_out == {"robot-000003": "a single row, no transition"}
    kept = list(found)
    assert [e.length for e in kept] == [99, 99, 99, 98, 99, 99]
    assert [e.terminated for e in kept] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("kind", ["d4rl", "ogbench", "robomimic", "lerobot"])
def test_a_row_that_is_no_transition_does_not_refuse_the_others(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [49] * 199
    lengths.insert(100, 0)
    rng = np.random.default_rng(0)
    made = [
        {
            "observations": rng.normal(size=(n + 1, 4)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (n + 1, 2)).astype(np.float32),
            "rewards": np.zeros(n + 1, np.float32),
            "terminals": np.zeros(n + 1, bool),
            "timeouts": np.arange(n + 1) == n,
        }
        for n in lengths
    ]
    together = {name: np.concatenate([part[name] for part in made]) for name in made[0]}
    keys: dict[str, Any] = {}
    if kind == "d4rl":
        path = write_hdf5(tmp_path, together)
    elif kind == "ogbench":
        together["terminals"] = together.pop("timeouts")
        path = write_npz(tmp_path, together)
    elif kind == "robomimic":
        path = tmp_path / "demos.hdf5"
        keys = {"observations": ["eef"], "dones": "truncated"}
        with h5py.File(path, "w") as file:
            for i, part in enumerate(made):
                file[f"data/demo_{i}/obs/eef"] = part["observations"]
                file[f"data/demo_{i}/actions"] = part["actions"]
                file[f"data/demo_{i}/dones"] = part["timeouts"]
    else:
        pytest.importorskip("pyarrow")
        whole = [
            Episode(id="e", observations=p["observations"], actions=p["actions"][:-1], rewards=p["rewards"][:-1],
                    terminated=False, truncated=True)
            for p in made if len(p["observations"]) > 1
        ]  # fmt: skip
        path = layouts.write_lerobot(tmp_path, [*whole[:99], *whole[98:]])
        keys = {"dones": "truncated"}
        shorten(path, 99)
    folder = prepared(tmp_path, path, kind, **keys)
    assert ", 1 left out -> " in capsys.readouterr().out
    dataset = load_dataset(folder)
    assert [e.length for e in dataset.episodes] == [49] * 199
    (name,) = read_index(folder)["provenance"]["left_out"]
    assert name == ("robot-000099" if kind == "lerobot" else "robot-000100")
    text, accepted = describe(str(path), tmp_path)
    assert accepted
    assert f"left out      1 episode: a single row, no transition ({path.stem}-" in text


def shorten(path: Path, number: int) -> None:
    """Leave one frame of an episode of a LeRobot dataset."""
    import pyarrow.parquet

    for folder in ("data", "meta/episodes"):
        for file in (path / folder).glob("*/*.parquet"):
            table = pyarrow.parquet.read_table(file)
            column = table["episode_index"].to_numpy()
            if number not in column:
                continue
            if folder == "data":
                table = table.filter((column != number) | (table["frame_index"].to_numpy() == 0))
            else:
                length = np.where(column == number, 1, table["length"].to_numpy())
                table = table.set_column(table.column_names.index("length"), "length", [length])
            pyarrow.parquet.write_table(table, file)


def test_episodes_are_left_out_by_number_name_and_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = layouts.write_robomimic(tmp_path, episodes(["timeout"] * 6, [4, 3, 5, 2, 6, 3]))
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/gripper"][1] = np.nan
        actions = file["data/demo_4/actions"][()]
        del file["data/demo_4/actions"]
        file["data/demo_4/actions"] = np.concatenate([actions, actions[:2] * 100])
    keys: dict[str, Any] = {"observations": ["eef_pos", "gripper"], "dones": "truncated"}
    with pytest.raises(DataError, match=r"demo_1: observations: found .* in row 1, component \d, expected finite"):
        read(path, card("robomimic", **keys))
    text, accepted = describe(str(path), tmp_path)
    assert not accepted
    assert "leave_out: faulty in the card would leave out 2 episodes and keep 4." in text
    folder = prepared(tmp_path, path, "robomimic", **keys, leave_out=["faulty", 0, "demo_5"])
    assert "robot: 2 episodes, 7 steps, 4 left out" in capsys.readouterr().out
    assert [e.id for e in load_dataset(folder).episodes] == ["robot-000002", "robot-000003"]
    left_out = read_index(folder)["provenance"]["left_out"]
    assert list(left_out) == ["robot-000000", "robot-000001", "robot-000004", "robot-000005"]
    assert left_out["robot-000000"] == left_out["robot-000005"] == "named in leave_out"
    assert re.match(
        r"observations: found nan in row 1, component \d, expected finite numbers", left_out["robot-000001"]
    )
    assert left_out["robot-000004"] == "actions: found 8 rows, expected 6 as in observations"
    assert len(list(read(path, card("robomimic", **keys, leave_out=["robot-000001", 4])))) == 4
    with pytest.raises(DataError, match="leave_out: found 17, expected numbers of episodes, 0 to 5 or their names"):
        read(path, card("robomimic", **keys, leave_out=["faulty", 17]))


def test_minari_episodes_of_as_many_states_as_actions_can_be_left_out(tmp_path: Path) -> None:
    path = layouts.write_minari(tmp_path, episodes(["timeout"] * 3, [4, 3, 5]))
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        states = file["episode_1/observations"][()]
        del file["episode_1/observations"]
        file["episode_1/observations"] = states[:-1]
    with pytest.raises(DataError, match="episode_1: observations: found 3 rows, expected 4 for 3 rewards"):
        read(path, card("minari"))
    found = read(path, card("minari", leave_out="faulty"))
    assert found.notes.left_out == {"robot-000001": "observations: found 3 rows, expected 4 for 3 rewards"}
    assert [e.length for e in found] == [4, 5]


def test_faulty_rows_of_flat_arrays_cost_their_episode(tmp_path: Path) -> None:
    columns = flat()
    columns["observations"][150, 1] = np.nan
    columns["actions"][120] = 1e9
    columns["rewards"][399] = np.inf
    path = write_npz(tmp_path, columns)
    found = read(path, card("arrays", leave_out="faulty"))
    assert list(found.notes.left_out) == ["robot-000001", "robot-000003"]
    assert [e.id for e in found] == [f"robot-{i:06d}" for i in (0, 2, 4, 5)]
    columns["observations"][:] = np.nan
    with pytest.raises(DataError, match="in row 0, component 0, expected finite numbers"):
        read(write_npz(tmp_path, columns), card("arrays", leave_out="faulty"))


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda c: {"observations": c["observations"].astype(np.float16)}, 6),
        (lambda c: {"next_observations": c["next_observations"].astype(np.float16)}, 6),
        (lambda c: {"observations": c["observations"].astype(np.float32) * np.float32(1e5),
                    "next_observations": (c["next_observations"] * 1e5)}, 6),
        (lambda c: {"next_observations": c["next_observations"] + 1e-5}, None),
        (lambda c: {"next_observations": c["next_observations"] * 1000}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("marked", [True, False])
def test_precision_makes_no_ends(
    tmp_path: Path, change: Callable[[Columns], Columns], count: int | None, marked: bool
) -> None:
    columns = flat()
    columns |= change(columns)
    if not marked:
        del columns["timeouts"]
    path = write_npz(tmp_path, columns)
    if count is not None:
        assert [e.length for e in read(path, card("arrays"))] == [100] * count
        return
    largest = np.abs(columns["next_observations"][:-1] - columns["observations"][1:])
    largest = (largest[columns["timeouts"][:-1] == 0] if marked else largest).max()
    with pytest.raises(DataError, match="expected the same state in most rows") as caught:
        read(path, card("arrays"))
    (found,) = re.findall(r"by up to (\S+) ", str(caught.value))
    assert float(found) == pytest.approx(largest, rel=2e-2)
    assert "It would be refused" in describe(str(path), tmp_path)[0]


def test_successors_off_by_rounding_never_cut_formats_that_keep_episodes_apart(tmp_path: Path) -> None:
    made = episodes(["timeout"] * 5, [11, 12, 13, 20, 21])
    path = layouts.write_robomimic(tmp_path, made)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["next_obs/eef_pos"][...] += 1e-3
    keys: dict[str, Any] = {"observations": ["eef_pos", "gripper"], "dones": "truncated"}
    assert [e.length for e in read(path, card("robomimic", **keys))] == [11, 12, 13, 20, 21]
    text, _ = describe(str(path), tmp_path)
    assert "differ by up to 0.001 within episodes. The format keeps episodes apart, so they stay whole" in text


def robosuite(folder: Path, *, successors: bool = True, off: float = 0.0, extra: int = 0, scale: float = 1.0) -> Path:
    """A file as robomimic's dataset_states_to_obs.py writes it from robosuite's: numbered from 1, one was deleted since."""
    path, rng = folder / "lift.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for i in [1, 2, 10, 11, 3]:
            rows, states = 10 + i, rng.normal(size=(11 + i, 3))
            demo, last = data.create_group(f"demo_{i}"), np.arange(rows) == rows - 1
            demo.attrs["num_samples"] = rows
            demo["actions"] = rng.uniform(-1, 1, (rows + extra, 7)) * scale
            demo["rewards"], demo["dones"] = last.astype(float), last.astype(int)
            demo["states"], demo["actions_abs"] = rng.normal(size=(rows, 32)), 3 * demo["actions"][()]
            demo["obs/eef_pos"], demo["obs/agentview_image"] = states[:-1], np.zeros((rows, 8, 8, 3), np.uint8)
            if successors:
                demo["next_obs/eef_pos"] = states[1:] + off * rng.normal(size=(rows, 3))
        file["mask/train"] = np.array([b"demo_1", b"demo_10"])
    return path


@pytest.mark.parametrize("options", [{}, {"off": 1e-5}, {"successors": False}])
def test_a_robomimic_file_as_its_scripts_write_it_is_never_cut_inside(tmp_path: Path, options: dict[str, Any]) -> None:
    """robomimic #48, #216, #38, mimicgen #6, robocasa #124."""
    path = robosuite(tmp_path, **options)
    keys: dict[str, Any] = {"observations": ["eef_pos"], "dones": "terminated"}
    found = {e.id: (e.length, e.terminated) for e in read(path, card("robomimic", **keys))}
    less = 0 if options.get("successors", True) else 1
    assert found == {f"robot-{i:06d}": (10 + i - less, True) for i in (1, 2, 3, 10, 11)}
    assert [e.id for e in read(path, card("robomimic", **keys, subset="train"))] == ["robot-000001", "robot-000010"]
    assert len(list(read(path, card("robomimic", **keys, leave_out=["demo_10", 1])))) == 3
    text, accepted = describe(str(path), tmp_path)
    assert accepted
    assert "episodes      5" in text


def test_a_robomimic_file_with_too_many_or_too_large_actions_is_refused(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"observations": ["eef_pos"], "dones": "terminated"}
    with pytest.raises(DataError, match="demo_1: actions: found 16 rows, expected 11 as in observations"):
        read(robosuite(tmp_path, extra=5), card("robomimic", **keys))
    with pytest.raises(DataError, match=r"actions: found .* outside"):
        read(robosuite(tmp_path, scale=1.79), card("robomimic", **keys))


def test_a_minari_episode_is_one_whatever_its_flags_say(tmp_path: Path) -> None:
    path = layouts.write_minari(tmp_path, episodes(["terminal"], [6]))
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/terminations"][2] = True
    found = read(path, card("minari"))
    assert found.notes.inside == 1
    assert [(e.length, e.terminated) for e in found] == [(6, True)]


@pytest.mark.parametrize("kind", ["d4rl", "arrays"])
@pytest.mark.parametrize("dones", ["terminated", "truncated"])
def test_terminals_can_mark_all_ends(tmp_path: Path, kind: str, dones: str) -> None:
    columns = flat(successors=False)
    columns["terminals"] = columns.pop("timeouts").astype(np.float64)
    path = (write_hdf5 if kind == "d4rl" else write_npz)(tmp_path, columns)
    with pytest.raises(
        DataError, match="if terminals mark the end of every episode, set dones: terminated or dones: trunc"
    ):
        read(path, card(kind))
    found = list(read(path, card(kind, dones=dones)))
    assert [(e.length, e.terminated, e.truncated) for e in found] == [
        (99, dones == "terminated", dones == "truncated")
    ] * 6
    if kind == "d4rl":
        text, accepted = describe(str(path), tmp_path)
        assert accepted
        assert "dones: truncated" in text


@pytest.mark.parametrize("successors", [False, True])
def test_masks_of_ogbench_say_where_the_task_is_over(tmp_path: Path, successors: bool) -> None:
    columns = flat(successors=successors)
    columns["terminals"] = columns.pop("timeouts").astype(np.float32)
    columns["masks"] = np.ones(600, np.float32)
    columns["masks"][[30, 31, 199, 299, 298, 450]] = 0
    found = read(write_npz(tmp_path, columns), card("ogbench"))
    assert found.notes.inside == (4 if successors else 3)  # row 298 leads into the final state of row 299
    kept = list(found)
    assert [e.length for e in kept] == [100 if successors else 99] * 6
    assert [e.terminated for e in kept] == [False, True, True, False, False, False]
    columns["masks"][0] = 0.5
    with pytest.raises(DataError, match=r"masks: found 0.5 in row 0, expected 0 or 1"):
        read(write_npz(tmp_path, columns), card("ogbench"))


def test_a_subset_of_a_robomimic_file_is_read_by_its_filter_key(tmp_path: Path) -> None:
    path = layouts.write_robomimic(tmp_path, episodes(["timeout"] * 4, [4, 3, 5, 2]))
    keys: dict[str, Any] = {"observations": ["eef_pos"], "dones": "truncated"}
    with pytest.raises(DataError, match="mask/train: missing, but the card robot sets subset: train; found no subsets"):
        read(path, card("robomimic", **keys, subset="train"))
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_3", b"demo_1"])
        file["mask/valid"] = np.array([b"demo_0"])
    found = list(read(path, card("robomimic", **keys, subset="train")))
    assert [(e.id, e.length) for e in found] == [("robot-000001", 3), ("robot-000003", 2)]
    assert len(list(read(path, card("robomimic", **keys)))) == 4
    assert (
        "subset: one of the file's own choices of demonstrations, train (2), valid (1)"
        in describe(str(path), tmp_path)[0]
    )
    with pytest.raises(DataError, match="found train, valid"):
        read(path, card("robomimic", **keys, subset="test"))
    with h5py.File(path, "a") as file:
        file["mask/broken"] = np.array([b"demo_9"])
    with pytest.raises(DataError, match="mask/broken: found 'demo_9', expected names of groups in data, each once"):
        read(path, card("robomimic", **keys, subset="train"))


def test_a_link_that_leads_nowhere_names_file_and_group(tmp_path: Path) -> None:
    path = layouts.write_robomimic(tmp_path, episodes(["timeout"] * 2))
    with h5py.File(path, "a") as file:
        file["data/demo_2"] = h5py.ExternalLink("gone.hdf5", "/data/demo_2")
    keys: dict[str, Any] = {"observations": ["eef_pos"], "dones": "truncated"}
    where = re.escape(f"{path}: data/demo_2: ")
    message = f"^{where}found a link to another file, gone.hdf5; copy the data into this file$"
    for options in ({}, {"leave_out": "faulty"}):
        with pytest.raises(DataError, match=message):
            read(path, card("robomimic", **keys, **options))
    with h5py.File(path, "a") as file:
        del file["data/demo_2"]
        file["data/demo_2"] = h5py.SoftLink("/data/demo_9")
    with pytest.raises(DataError, match=f"^{where}found a link to /data/demo_9, which is not there$"):
        read(path, card("robomimic", **keys))
    with h5py.File(path, "a") as file:
        del file["data/demo_2"]
    assert len(list(read(path, card("robomimic", **keys)))) == 2


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    """Whatever pyarrow raises: its own errors, OSError, or ValueError for a name that is no text."""
    pytest.importorskip("pyarrow")
    path = layouts.write_parquet(tmp_path, episodes(["timeout"] * 2))
    content = path.read_bytes()
    assert content.count(b"rewards") > 1
    for damaged in (content[: len(content) // 2], b"", content.replace(b"rewards", b"\xffewards")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: not a readable parquet file: "):
            read(path, card("arrays"))


def late(columns: Columns) -> None:
    """Timeouts one row late, in the first row of the next episode."""
    columns["observations"] *= 0.01
    columns["observations"] += np.repeat(np.arange(6), 100)[:, None] * 10
    columns["timeouts"] = np.roll(columns["timeouts"], 1)


def clock(columns: Columns) -> None:
    columns["observations"] = np.c_[columns["observations"], 1.7e9 + np.arange(600)]


def choices(columns: Columns) -> None:
    columns["actions"] = np.random.default_rng(0).integers(0, 2, (600, 1))


def one_hot(columns: Columns) -> None:
    columns["actions"] = np.eye(4)[np.random.default_rng(0).integers(0, 4, 600)]


def still(columns: Columns) -> None:
    columns["observations"][:, 2] = 1.5


@pytest.mark.parametrize(
    ("spoil", "remark"),
    [
        (late, r"[56] episodes with a jump of up to [\d,]+ median steps inside.*as if timeouts came one row late"),
        (clock, r"float32 merges values in observations, column 3: 99% of the changes"),
        (choices, "Actions look discrete: 2 whole numbers, from 0 to 1"),
        (one_hot, "Actions look discrete: a choice among 4, one-hot"),
        (still, "Constant in observations: column 2. What a model makes of a value that it never saw is open"),
        (lambda columns: None, None),
    ],
)
def test_describe_says_what_looks_wrong(tmp_path: Path, spoil: Callable[[Columns], Any], remark: str | None) -> None:
    columns = flat(successors=False)
    spoil(columns)
    text, accepted = describe(
        str(write_npz(tmp_path, columns)),
        tmp_path,
    )
    assert accepted
    for words in ("median steps inside", "merges values", "look discrete", "Constant in observations"):
        assert (words in text) == (remark is not None and bool(re.search(words, remark)))
    assert remark is None or re.search(remark, text)


def test_describe_takes_a_minari_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    layouts.write_minari(tmp_path, episodes(["terminal", "timeout"]))
    text, accepted = describe("hopper/test-v0", tmp_path)
    assert accepted
    assert "episodes      2" in text
    assert "configs/datasets/hopper-test-v0.yaml:\n\n  dataset: hopper/test-v0\n  format: minari" in text

    def fetch(card: Any) -> Path:
        raise DataError(f"dataset {card.dataset}: Minari cannot download it")

    monkeypatch.setattr("dynarep.data.readers.minari.fetch", fetch)
    with pytest.raises(
        DataError, match=r"no such file or folder, and no card in .* published dataset: dataset hopper/oth"
    ):
        describe("hopper/other-v0", tmp_path)
