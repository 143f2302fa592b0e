"""Recordings of many layouts, right and wrong, through both readers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import assert_same

from dynarep.data.card import DatasetCard
from dynarep.data.readers import read
from dynarep.data.schema import DataError, Episode

Columns = dict[str, np.ndarray]
Write = Callable[[Path, Columns], Path]


def write_hdf5(folder: Path, columns: Columns) -> Path:
    path = folder / "recording.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
        file["infos/qpos"] = np.zeros(3)
    return path


def write_npz(folder: Path, columns: Columns) -> Path:
    path = folder / "recording.npz"
    np.savez(path, **columns)
    return path


FORMATS: dict[str, Write] = {"d4rl": write_hdf5, "arrays": write_npz}


def card(kind: str, **fields: Any) -> DatasetCard:
    return DatasetCard(name="robot", path="recording", format=kind, **fields)  # type: ignore[arg-type]


def recording(lengths: list[int], ends: list[str], *, successors: bool, seed: int = 0) -> tuple[Columns, list[Episode]]:
    """Flat arrays of rows per episode and how each ends, and the episodes that a reader must find in them."""
    rng = np.random.default_rng(seed)
    parts: list[Columns] = []
    episodes = []
    for i, (rows, end) in enumerate(zip(lengths, ends, strict=True)):
        states = rng.normal(size=(rows + 1, 3)).astype(np.float32)
        marks = np.arange(rows) == rows - 1
        part = {
            "observations": states[:-1],
            "next_observations": states[1:],
            "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
            "rewards": rng.normal(size=rows).astype(np.float32),
            "terminals": marks & (end in ("terminal", "both")),
            "timeouts": marks & (end in ("timeout", "both")),
        }
        parts.append(part)
        steps = rows if successors else rows - 1
        episodes.append(
            Episode(
                id=f"robot-{i:06d}",
                observations=states[: steps + 1],
                actions=part["actions"][:steps],
                rewards=part["rewards"][:steps],
                terminated=end in ("terminal", "both"),
                truncated=end != "terminal",
            )
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not successors:
        del columns["next_observations"]
    return columns, episodes


@dataclass(frozen=True)
class Layout:
    lengths: list[int]
    ends: list[str]
    successors: bool


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    successors = draw(st.booleans())
    lengths = draw(st.lists(st.integers(1 if successors else 2, 6), min_size=1, max_size=8))
    marked = st.sampled_from(["terminal", "timeout", "both"])
    inner = st.sampled_from(["terminal", "timeout", "both", "unmarked"]) if successors else marked
    last = st.sampled_from(["terminal", "timeout", "both", "unmarked"])
    return Layout(lengths, [*(draw(inner) for _ in lengths[1:]), draw(last)], successors)


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=60)
@given(layout=layouts(), seed=st.integers(0, 99))
def test_any_layout_is_cut_into_its_episodes(
    tmp_path_factory: pytest.TempPathFactory, kind: str, layout: Layout, seed: int
) -> None:
    columns, expected = recording(layout.lengths, layout.ends, successors=layout.successors, seed=seed)
    path = FORMATS[kind](tmp_path_factory.mktemp("layout"), columns)
    goes_on = sum(layout.lengths) - len(layout.lengths)
    if layout.ends[:-1].count("unmarked") > goes_on:  # more rows without a mark are ends than are none
        with pytest.raises(DataError, match="next_observations: found another state in"):
            read(path, card(kind))
    else:
        assert_same(list(read(path, card(kind))), expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_without_timeouts_ends_are_found_by_the_successors(tmp_path: Path, kind: str) -> None:
    columns, expected = recording([4, 1, 3], ["unmarked", "terminal", "unmarked"], successors=True)
    del columns["timeouts"]
    assert_same(list(read(FORMATS[kind](tmp_path, columns), card(kind))), expected)


@pytest.mark.parametrize(("gap", "episodes"), [(0.9e-6, 1), (3e-6, 2)])
def test_a_gap_between_states_ends_an_episode(tmp_path: Path, gap: float, episodes: int) -> None:
    states = np.zeros((5, 3), np.float32)
    columns = {
        "observations": states[:-1].copy(),
        "next_observations": states[1:].copy(),
        "terminals": np.zeros(4, bool),
    }
    columns["next_observations"][1, 2] = gap
    found = list(read(write_npz(tmp_path, columns), card("arrays")))
    assert len(found) == episodes
    assert all(e.truncated and not e.terminated for e in found)


def test_a_timeout_is_no_terminal_and_the_last_row_without_successor_is_a_state_only(tmp_path: Path) -> None:
    columns = {
        "observations": np.arange(5, dtype=np.float32)[:, None],
        "actions": np.arange(5, dtype=np.float32)[:, None] / 10,
        "rewards": np.ones(5, np.float32),
        "terminals": np.array([0, 0, 1, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1], bool),
    }
    first, second = read(write_hdf5(tmp_path, columns), card("d4rl"))
    assert (first.length, first.terminated, first.truncated) == (2, True, False)
    assert first.observations[:, 0].tolist() == [0, 1, 2]
    assert first.actions is not None
    np.testing.assert_array_equal(first.actions, columns["actions"][:2])
    assert first.return_ == 2.0
    assert (second.length, second.terminated, second.truncated) == (1, False, True)
    assert second.observations[:, 0].tolist() == [3, 4]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_other_number_types_become_float32(tmp_path: Path, kind: str, dtype: type) -> None:
    columns, _ = recording([3], ["timeout"], successors=True)
    for name in ("observations", "next_observations", "actions", "rewards"):
        columns[name] = columns[name].astype(dtype)
    columns["terminals"] = columns["terminals"].astype(dtype)
    columns["next_observations"][:-1] = columns["observations"][1:]
    (episode,) = read(FORMATS[kind](tmp_path, columns), card(kind))
    assert episode.observations.dtype == np.float32
    np.testing.assert_array_equal(episode.current, columns["observations"].astype(np.float32))


def test_arrays_may_lack_actions_and_rewards(tmp_path: Path) -> None:
    columns, expected = recording([3, 4], ["timeout", "terminal"], successors=True)
    del columns["actions"], columns["rewards"]
    found = list(read(write_npz(tmp_path, columns), card("arrays")))
    assert all(e.actions is None and e.rewards is None for e in found)
    assert [e.length for e in found] == [e.length for e in expected]


def change(name: str, values: Any) -> Callable[[Columns], None]:
    return lambda columns: columns.__setitem__(name, values)


def put(name: str, row: int, value: float) -> Callable[[Columns], None]:
    return lambda columns: columns[name].__setitem__(row, value)


def drop(*names: str) -> Callable[[Columns], None]:
    def apply(columns: Columns) -> None:
        for name in names:
            del columns[name]

    return apply


WRONG: list[tuple[Callable[[Columns], None], str]] = [
    (drop("observations"), "observations: missing; found next_observations, actions"),
    (drop("terminals"), "terminals: missing; found observations"),
    (drop("timeouts", "next_observations"), "timeouts: missing; found observations, actions, rewards, terminals"),
    (change("observations", np.zeros(7, np.float32)), "observations: found shape (7,), expected (rows, numbers)"),
    (
        change("observations", np.zeros((7, 0), np.float32)),
        "observations: found shape (7, 0), expected (rows, numbers)",
    ),
    (
        change("observations", np.zeros((0, 3), np.float32)),
        "observations: found shape (0, 3), expected at least one row",
    ),
    (change("observations", np.zeros((7, 2), np.float32)), "next_observations: found shape (7, 3), expected (7, 2)"),
    (change("actions", np.zeros((6, 2), np.float32)), "actions: found 6 rows, expected 7 as in observations"),
    (change("actions", np.zeros(7, np.float32)), "actions: found shape (7,), expected (rows, numbers)"),
    (change("rewards", np.zeros((7, 1), np.float32)), "rewards: found shape (7, 1), expected (rows,)"),
    (change("rewards", np.zeros(8, np.float32)), "rewards: found 8 rows, expected 7 as in observations"),
    (change("terminals", np.zeros((7, 1), bool)), "terminals: found shape (7, 1), expected (rows,)"),
    (change("timeouts", np.zeros(6, bool)), "timeouts: found 6 rows, expected 7 as in observations"),
    (change("terminals", np.full(7, 0.5)), "terminals: found 0.5 in row 0, expected 0 or 1"),
    (put("observations", 3, np.nan), "found nan in row 3, component 0, expected finite numbers"),
    (put("next_observations", 6, np.inf), "next_observations: found inf in row 6, component 0, expected finite"),
    (put("rewards", 5, -np.inf), "rewards: found -inf in row 5, expected finite"),
    (change("rewards", np.full(7, 1e39)), "rewards: found 1e+39 in row 0, expected finite numbers (float32)"),
    (put("actions", 4, 1.25), "actions: found 1.25 in row 4, component 0, expected a number in [-1.0, 1.0] (1 rows"),
    (put("actions", 2, -1.00001), "in row 2, component 0, expected a number in [-1.0, 1.0]"),
    (change("rewards", np.array(["a"] * 7, dtype="S1")), "rewards: found |S1 array, expected an array of numbers"),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_arrays_are_refused_by_file_and_field(
    tmp_path: Path, kind: str, spoil: Callable[[Columns], None], message: str
) -> None:
    columns, _ = recording([3, 4], ["timeout", "terminal"], successors=True)
    spoil(columns)
    path = FORMATS[kind](tmp_path, columns)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path, card(kind))
    assert str(path) in str(caught.value)


def test_d4rl_files_need_actions_but_no_rewards(tmp_path: Path) -> None:
    columns, expected = recording([3], ["timeout"], successors=True)
    del columns["rewards"]
    assert_same(list(read(write_hdf5(tmp_path, columns), card("d4rl"))), [replace(expected[0], rewards=None)])
    del columns["actions"]
    with pytest.raises(DataError, match="actions: missing; found observations"):
        read(write_hdf5(tmp_path, columns), card("d4rl"))


def test_a_group_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recording.hdf5"
    with h5py.File(path, "w") as file:
        file["observations/front"] = np.zeros((4, 3))
    with pytest.raises(DataError, match="observations: found Group, expected an array of numbers"):
        read(path, card("d4rl"))


def test_rounding_beyond_a_bound_is_let_through_and_bounds_come_from_the_card(tmp_path: Path) -> None:
    columns, _ = recording([3], ["timeout"], successors=True)
    columns["actions"][1] = np.float32(1 + 5e-7)
    path = write_npz(tmp_path, columns)
    assert len(list(read(path, card("arrays")))) == 1
    columns["actions"][1] = [0.5, 3.0]
    path = write_npz(tmp_path, columns)
    assert len(list(read(path, card("arrays", action_high=(1.0, 3.0))))) == 1
    with pytest.raises(DataError, match=r"found 3.0 in row 1, component 1, expected a number in \[-1.0, 2.0\]"):
        read(path, card("arrays", action_high=2.0))
    with pytest.raises(DataError, match="card robot: action_low: found 3 numbers, expected 2"):
        read(path, card("arrays", action_low=(-1.0, -1.0, -1.0)))
    with pytest.raises(DataError, match="expected low < high"):
        read(path, card("arrays", action_low=1.0))


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_that_are_no_transition_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    columns, _ = recording([3, 4], ["timeout", "timeout"], successors=False)
    columns["timeouts"][[3, 5]] = True  # rows 0-2, 3, 4-5, 6
    found = read(FORMATS[kind](tmp_path, columns), card(kind))
    assert found.notes.left_out == dict.fromkeys(("robot-000001", "robot-000003"), "a single row, no transition")
    kept = list(found)
    assert [(e.id, e.length) for e in kept] == [("robot-000000", 2), ("robot-000002", 1)]
    np.testing.assert_array_equal(kept[1].observations, columns["observations"][4:6])
    columns["timeouts"][:] = True
    with pytest.raises(DataError, match="found no episode to keep, 7 are left out; robot-000000: a single row"):
        read(FORMATS[kind](tmp_path, columns), card(kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_missing_empty_truncated_and_foreign_files_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="no such file, named as path by the dataset card robot"):
        read(tmp_path / "nothing", card(kind))
    columns, _ = recording([50, 50], ["timeout", "terminal"], successors=True)
    path = FORMATS[kind](tmp_path, columns)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-200], b"not a recording" * 100, bytes(len(whole))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(str(path))):
            read(path, card(kind))


def test_damage_inside_a_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    columns, _ = recording([500], ["timeout"], successors=True)
    archive = write_npz(tmp_path, columns)
    content = bytearray(archive.read_bytes())
    content[1000] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="observations: cannot be read, the file may be truncated or damaged"):
        read(archive, card("arrays"))
    path = tmp_path / "compressed.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, compression="gzip", fletcher32=True)
        offset = file["observations"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 50] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="observations: cannot be read, the file may be truncated or damaged"):
        read(path, card("d4rl"))


def test_a_single_array_and_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recording.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"found a single array, expected an [.]npz archive"):
        read(path, card("arrays"))
    np.savez(path, observations=np.array([[1.0], None], dtype=object))
    with pytest.raises(DataError, match="observations: cannot be read"):
        read(path, card("arrays"))
