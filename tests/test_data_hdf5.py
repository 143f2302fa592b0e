"""HDF5 files that name what they do not hold, or claim more than they hold, in every format that is HDF5."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dynarep.data.card import make_card
from dynarep.data.describe import describe
from dynarep.data.readers import read
from dynarep.data.schema import DataError, Episode

ROWS = 6
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(ROWS + 1, 3))
COLUMNS = {
    "d4rl": {
        "observations": STATES[:-1],
        "next_observations": STATES[1:],
        "actions": np.zeros((ROWS, 2)),
        "rewards": RNG.normal(size=ROWS),
        "terminals": np.zeros(ROWS),
    },
    "robomimic": {
        "data/demo_0/obs/a": RNG.normal(size=(ROWS, 3)),
        "data/demo_0/actions": np.zeros((ROWS, 2)),
        "data/demo_0/rewards": RNG.normal(size=ROWS),
    },
    "minari": {
        "episode_0/observations": RNG.normal(size=(ROWS + 1, 3)),
        "episode_0/actions": np.zeros((ROWS, 2)),
        "episode_0/rewards": RNG.normal(size=ROWS),
        "episode_0/terminations": np.zeros(ROWS),
        "episode_0/truncations": np.eye(ROWS)[-1],
    },
}
"""Format -> its arrays."""
FORMATS = {name: next(key for key in columns if key.endswith("rewards")) for name, columns in COLUMNS.items()}
"""Format -> the array that is exchanged."""
KEYS = {"d4rl": {}, "robomimic": {"observations": ["a"]}, "minari": {}}


def recording(folder: Path, kind: str, change: Callable[[h5py.File, str], object] | None) -> tuple[Path, Path]:
    """Path of a recording, and its HDF5 file, in which ``change`` puts something else in place of the rewards."""
    path = file = folder / f"{kind}.hdf5"
    if kind == "minari":
        path = folder / kind
        (path / "data").mkdir(parents=True)
        (path / "data" / "metadata.json").write_text(json.dumps({"total_episodes": 1, "total_steps": ROWS}))
        file = path / "data" / "main_data.hdf5"
    with h5py.File(file, "w") as handle:
        for name, values in COLUMNS[kind].items():
            if change is None or name != FORMATS[kind]:
                handle[name] = values
        if change is not None:
            change(handle, FORMATS[kind])
    return path, file


def episodes(path: Path, kind: str) -> list[Episode]:
    return list(read(path, make_card("x", {"path": str(path), "format": kind, **KEYS[kind]}, "x")))


def link(target: Any) -> Callable[[h5py.File, str], object]:
    return lambda file, name: file.__setitem__(name, target)


def group_of_another_file(file: h5py.File, name: str) -> None:
    """In place of the group that the array is in, where there is one."""
    place = name.rpartition("/")[0]
    if place:
        del file[place]
    file[place or name] = h5py.ExternalLink("other.hdf5", place or name)


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((ROWS,), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "rewards", (ROWS,))
    file.create_virtual_dataset(name, layout)


def unwritten(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (ROWS,), "f4", chunks=(2,))[:2] = 1


def compressed(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (4 * 10**8,), "u1", chunks=(10**8,), compression="gzip", compression_opts=1)
    for start in range(0, 4 * 10**8, 10**8):
        file[name][start : start + 10**8] = np.zeros(10**8, "u1")


DAMAGE: dict[str, tuple[Callable[[h5py.File, str], object], str]] = {
    "link to another file": (link(h5py.ExternalLink("other.hdf5", "/x")), "found a link to another file, other.hdf5"),
    "link to a device": (link(h5py.ExternalLink("/dev/zero", "/x")), "found a link to another file, /dev/zero"),
    "group of another file": (group_of_another_file, "found a link to another file, other.hdf5"),
    "link to nothing": (link(h5py.SoftLink("/gone")), "found a link to /gone, which is not there"),
    "link to itself": (lambda f, name: f.__setitem__(name, h5py.SoftLink(f"/{name}")), "which is not there"),
    "external storage": (
        lambda f, name: f.create_dataset(name, (ROWS,), "u1", external=[("/etc/passwd", 0, ROWS)]),
        "rewards: found numbers stored in /etc/passwd, expected them in the file itself",
    ),
    "virtual": (virtual, "rewards: found a virtual dataset"),
    "unwritten chunks": (unwritten, r"rewards: found 1 of 3 chunks for shape (6,); the others were never written"),
    "claims": (
        lambda f, name: f.create_dataset(name, (3 * 10**8,), "f4", chunks=(1024,)),
        "rewards: found 0 of 292,969 chunks for shape (300000000,)",
    ),
    "claims much": (
        lambda f, name: f.create_dataset(name, (2**62,), "f4", chunks=(1024,)),
        "rewards: found 0 of 4,503,599,627,370,496 chunks",
    ),
    "not written": (
        lambda f, name: f.create_dataset(name, (10**9,), "f4"),
        "rewards: found 0 bytes stored, expected 4,000,000,000 for shape (1000000000,)",
    ),
    "texts": (link(np.array([b"a"] * ROWS)), "rewards: found |S1 array, expected an array of numbers"),
    "structures": (link(np.zeros(ROWS, [("a", "f4")])), "array, expected an array of numbers"),
    "lists": (lambda f, name: f.create_dataset(name, (ROWS,), h5py.vlen_dtype("f4")), "expected an array of numbers"),
    "nothing": (link(h5py.Empty("f4")), "rewards: found no numbers, expected an array"),
    "a type": (link(np.dtype("f4")), "rewards: found Datatype, expected an array of numbers"),
    "a group": (lambda f, name: f.create_group(name), "rewards: found Group, expected an array of numbers"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", DAMAGE)
def test_what_a_file_does_not_hold_is_refused(tmp_path: Path, case: str, kind: str) -> None:
    change, message = DAMAGE[case]
    path, file = recording(tmp_path, kind, change)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        episodes(path, kind)
    assert str(error.value).startswith(f"{file}: ") or str(error.value).startswith(f"{path}: ")
    try:
        text, accepted = describe(str(path), tmp_path)
    except DataError as refusal:
        text, accepted = str(refusal), False
    assert not accepted
    assert message in text


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_stored_in_other_ways_is_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "plain").mkdir()
    plain = episodes(recording(tmp_path / "plain", kind, None)[0], kind)
    values = COLUMNS[kind][FORMATS[kind]].astype("f4")

    def soft(file: h5py.File, name: str) -> None:
        file["spare"] = values
        file[name] = h5py.SoftLink("/spare")

    for i, change in enumerate(
        (
            lambda f, name: f.create_dataset(name, data=values, chunks=(4,), compression="gzip", shuffle=True),
            lambda f, name: f.create_dataset(name, data=values.astype(">f8")),
            lambda f, name: f.create_dataset(name, data=values, maxshape=(None,)),
            soft,
        )
    ):
        (tmp_path / str(i)).mkdir()
        found = episodes(recording(tmp_path / str(i), kind, change)[0], kind)
        for a, b in zip(found, plain, strict=True):
            np.testing.assert_array_equal(a.rewards, b.rewards)


@pytest.mark.slow
def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path, _ = recording(tmp_path, "d4rl", compressed)
    with pytest.raises(
        DataError, match=r"rewards: found [\d,]+ bytes stored for shape \(400000000,\), expected at least"
    ):
        episodes(path, "d4rl")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.hdf5")
    (tmp_path / "zero.hdf5").symlink_to("/dev/zero")
    for name in ("fifo.hdf5", "zero.hdf5"):
        with pytest.raises(DataError, match=f"{tmp_path / name}: .*found a pipe, device or socket, expected a file"):
            episodes(tmp_path / name, "d4rl")


def test_metadata_is_strict_json(tmp_path: Path) -> None:
    path, _ = recording(tmp_path, "minari", None)
    file = path / "data" / "metadata.json"
    for content, message in (
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"total_steps": NaN}', "not valid JSON: found NaN"),
        (b'{"total_steps": 6, "total_steps": 6}', "found the key 'total_steps' twice"),
        (b'{"total_steps": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"[]", "found list, expected a JSON object"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"{file}: .*{message}"):
            episodes(path, "minari")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=f"{file}: cannot be read, so this is no Minari dataset: found a pipe"):
        episodes(path, "minari")
