"""LeRobot's v3 layout: ``meta/info.json``, ``meta/episodes/*/*.parquet`` and ``data/*/*.parquet`` with a row per frame.

Its v2 layouts are read, too: a file per episode, and ``meta/episodes.jsonl`` with their lengths.

Column ``action`` and the state columns that the card names, ``observation.state`` by default; ``next.reward`` and
``next.done`` where there are any. Videos and images are left alone. The traps: many episodes share a file; the state
after the last frame is not recorded; ``next.done`` does not say whether the task ended, so the card does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.folders import parse_json, read_content
from dynarep.data.readers.flat import Part, joined, marks, read_columns, whole
from dynarep.data.readers.metadata import JSON_BYTES, read_json
from dynarep.data.readers.parquet import read_table
from dynarep.data.schema import DataError

STATE = ("observation.state",)
"""Observations of a card that names none."""


def load(path: Path, card: DatasetCard) -> list[Part]:
    """One part for each episode.

    Raises:
        DataError: if a file is missing or damaged, the dataset is of another version, the card names columns that are
            no vectors of numbers, or frames do not agree with ``meta/episodes``.
    """
    features = info(path)["features"]
    states = card.observations or STATE
    for name in (*states, "action"):
        kind = features[name].get("dtype") if name in features else "nothing"
        if kind in ("nothing", "video", "image", "string"):
            known = ", ".join(key for key in vectors(features) if key != "action")
            raise DataError(
                f"{path / 'meta' / 'info.json'}: {name}: found {kind}, expected a column of numbers; "
                f"the card's observations can be {known or 'none of this dataset'}"
            )
    optional = tuple(name for name in ("next.reward", "next.done") if name in features)
    tables = [
        _columns(file, ("episode_index", "frame_index", *states, "action", *optional)) for file in data_files(path)
    ]
    try:
        frames = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    except ValueError as error:
        raise DataError(f"{path / 'data'}: the files hold vectors of different sizes: {error}") from None
    bounds = _bounds(path, frames)
    parts = []
    for number, (start, stop) in enumerate(bounds):
        where = f"{path}: episode {number}"
        rows = {name: values[start:stop] for name, values in frames.items()}
        parts.append(whole(where, f"episode_{number}", partial(_episode, rows, states, where, card)))
    return parts


def _episode(
    rows: dict[str, np.ndarray], states: Sequence[str], where: str, card: DatasetCard
) -> dict[str, np.ndarray]:
    """The columns of one episode."""
    columns = {
        "observations": joined({name: rows[name] for name in states}, where),
        "actions": joined({"action": rows["action"]}, where),
    }
    if "next.reward" in rows:
        columns["rewards"] = rows["next.reward"].reshape(-1)
    return columns | marks(rows.get("next.done"), len(rows["action"]), where, "next.done", card)


def files(path: Path) -> list[Path]:
    """The files that are read."""
    return [path / "meta" / "info.json", *episode_files(path), *data_files(path)]


def data_files(path: Path) -> list[Path]:
    """The parquet files of frames, in order."""
    old = _is_old(info(path))
    return _tables(path, "data", "chunk-*/episode_*.parquet" if old else "chunk-*/file-*.parquet")


def episode_files(path: Path) -> list[Path]:
    """The files that list the episodes, in order."""
    if _is_old(info(path)):
        return [path / "meta" / "episodes.jsonl"]
    return _tables(path, "meta/episodes", "chunk-*/file-*.parquet")


def _is_old(values: dict[str, Any]) -> bool:
    return str(values["codebase_version"]).startswith("v2.")


def info(path: Path) -> dict[str, Any]:
    """``meta/info.json`` of a dataset.

    Raises:
        DataError: if it is missing, no JSON object, or of another version than 2 or 3.
    """
    file = path / "meta" / "info.json"
    values = read_json(file, "LeRobot")
    version = values.get("codebase_version")
    if not str(version).startswith(("v2.", "v3.")):
        raise DataError(
            f"{file}: codebase_version: found {version}, expected v2.x or v3.x; LeRobot has a converter to v3.0"
        )
    features = values.get("features")
    if not isinstance(features, dict):
        raise DataError(f"{file}: features: found {type(features).__name__}, expected a description of each column")
    for name, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("shape") or [], list):
            raise DataError(
                f"{file}: features.{name}: found {feature!r:.200}, expected a description with dtype and a list shape"
            )
    return values


def vectors(features: dict[str, Any]) -> list[str]:
    """Names of the features that are one number or a vector of numbers, without LeRobot's own bookkeeping."""
    own = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    return [
        name
        for name, feature in features.items()
        if feature.get("dtype") not in ("video", "image", "string")
        and len(feature.get("shape") or ()) == 1
        and name not in own
        and not name.startswith("next.")
    ]


def _tables(path: Path, folder: str, pattern: str) -> list[Path]:
    """Parquet files such as ``<folder>/chunk-<i>/file-<j>.parquet`` by i, j."""
    found = (path / folder).glob(pattern)

    def numbers(file: Path) -> list[int]:
        return [int(re.split("[-_]", name, maxsplit=1)[1]) for name in (file.parent.name, file.stem)]

    try:
        tables = sorted(found, key=numbers)
    except ValueError:
        example = pattern.replace("*.", "000.").replace("*", "000")
        raise DataError(f"{path / folder}: found files that are not numbered like {example}") from None
    if not tables:
        raise DataError(f"{path / folder}: found no {pattern}")
    return tables


def _columns(file: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    table = read_table(file, names)
    columns = read_columns(file, table, table.__getitem__, names)
    for name in names:
        if name not in columns:
            raise DataError(f"{file}: {name}: missing")
    return columns


def _lines(file: Path) -> dict[str, np.ndarray]:
    """``episode_index`` and ``length`` of a version 2 list of episodes, a JSON object each line."""
    lines = read_content(file, JSON_BYTES).splitlines()
    rows = [parse_json(line, f"{file}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    columns = {}
    for name in ("episode_index", "length"):
        values = [row.get(name) if isinstance(row, dict) else None for row in rows]
        if wrong := [number for number, value in enumerate(values, 1) if type(value) is not int]:
            raise DataError(f"{file}: line {wrong[0]}: {name}: found {values[wrong[0] - 1]!r}, expected a whole number")
        columns[name] = np.array(values, np.int64)
    return columns


def _bounds(path: Path, frames: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """First row and one past the last row of each episode, as ``meta/episodes`` says, checked against the frames."""
    lists = episode_files(path)
    tables = [
        _lines(file) if file.suffix == ".jsonl" else _columns(file, ("episode_index", "length")) for file in lists
    ]
    episode, length = (np.concatenate([table[name] for table in tables]) for name in ("episode_index", "length"))
    where = path / "meta" / "episodes"
    for name, values in (("episode_index", episode), ("length", length)):
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise DataError(f"{where}: {name}: found {values.dtype} of shape {values.shape}, expected whole numbers")
    if not np.array_equal(episode, np.arange(len(episode))) or (length < 1).any():
        raise DataError(f"{where}: expected episodes 0, 1, ... of at least one frame each, in order")
    claimed, count = sum(length.tolist()), len(frames["episode_index"])
    if count != claimed:
        raise DataError(
            f"{path / 'data'}: found {count} frames, expected {claimed} as in meta/episodes; "
            "the copy or download may be incomplete"
        )
    for name, expected in {
        "episode_index": np.repeat(episode, length),
        "frame_index": np.concatenate([np.arange(n) for n in length]),
    }.items():
        found = frames[name].reshape(-1)
        if not np.array_equal(found, expected):
            row = int(np.argmax(found != expected))
            raise DataError(
                f"{path / 'data'}: {name}: found {found[row]} in row {row}, expected {expected[row]} by meta/episodes"
            )
    stops = np.cumsum(length).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))
