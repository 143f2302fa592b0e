"""LeRobot: the progress of every frame for its sample weighting, and a version-3 dataset without the other episodes.

``sarm_progress.parquet`` is what LeRobot's RA-BC (reward-aligned behaviour cloning) looks for in a dataset: a row per
frame. The weight of a frame follows from the difference of progress over an action chunk.

A filtered dataset is a copy at the level of files. Rows of frames and episodes are dropped and numbered anew. Statistics
are aggregated from those of the episodes. Videos stay as they are: an episode names its stretch of a video by timestamps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.data.folders import whole_folder
from dynarep.data.readers import lerobot as reader
from dynarep.data.readers.parquet import read_table
from dynarep.data.schema import DataError
from dynarep.data.writers import Labelled, Recording, number_of
from dynarep.data.writers.table import write_table

PROGRESS = "sarm_progress.parquet"
"""The name that LeRobot looks for."""


def path_of(place: str) -> Path:
    """The folder."""
    return Path(place)


def check(recording: Recording) -> None:
    """Only a LeRobot dataset becomes one: others lack tasks, frame rates and cameras.

    Raises:
        DataError: if the recording is none, or not of version 3.
    """
    if not recording.is_of("lerobot"):
        raise DataError(
            f"lerobot: found a recording of format {recording.card.format}, expected a LeRobot dataset; write another format"
        )
    assert recording.source is not None
    version = reader.info(recording.source)["codebase_version"]
    if not version.startswith("v3."):
        raise DataError(
            f"{recording.source}: codebase_version: found {version}, expected v3.x to write a filtered dataset"
        )


def progress_table(source: Path, progress: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A row per frame of a LeRobot dataset: ``index``, ``episode_index``, ``frame_index``, ``progress_sparse`` in [0, 1].

    Frames of episodes that are not known have NaN, which LeRobot gives its fallback weight.

    Args:
        source: the dataset.
        progress: (frames,) by episode id.

    Raises:
        DataError: if an episode has another number of frames.
    """
    names = ("index", "episode_index", "frame_index")
    tables = [read_table(file, names) for file in reader.data_files(source)]
    frames = {name: np.concatenate([table[name].reshape(-1) for table in tables]) for name in names}
    values = np.full(len(frames["index"]), np.nan, np.float32)
    for episode, found in progress.items():
        rows = np.flatnonzero(frames["episode_index"] == number_of(episode))
        if len(rows) != len(found):
            raise DataError(f"{source}: {episode}: found {len(rows)} frames, expected {len(found)}")
        values[rows] = found[frames["frame_index"][rows]]
    return {**frames, "progress_sparse": values}


def write(recording: Recording, kept: Sequence[Labelled], path: Path, about: Mapping[str, Any]) -> None:
    """Write the filtered dataset with its progress file.

    Raises:
        DataError: if a file is not as LeRobot writes it.
    """
    source = recording.source
    assert source is not None
    numbers = {number: new for new, number in enumerate(sorted(number_of(label.episode) for label in kept))}
    info = reader.info(source)
    with whole_folder(path) as new:
        _copy_others(source, new)
        rows = _episodes(source, new, numbers)
        for file in reader.data_files(source):
            _frames(file, new / file.relative_to(source), numbers, rows)
        frames = sum(row["length"] for row in rows.values())
        changed = {"total_episodes": len(rows), "total_frames": frames, "splits": {"train": f"0:{len(rows)}"}}
        _write_json(new / "meta" / "info.json", info | changed)
        _write_json(new / "meta" / "stats.json", aggregated(list(rows.values())))
        _write_json(new / "meta" / "dynarep.json", dict(about))
        renamed = {f"{recording.card.name}-{numbers[number_of(label.episode)]:06d}": label.progress for label in kept}
        write_table(new / PROGRESS, progress_table(new, renamed))


def _copy_others(source: Path, new: Path) -> None:
    """All but frames, episodes and what is made anew; videos as links to the same content, where the disk can."""
    for file in sorted(source.rglob("*")):
        place = file.relative_to(source)
        made = (
            place.parts[0] == "data"
            or place.parts[:2] == ("meta", "episodes")
            or file.name.endswith("_progress.parquet")
        )
        if not file.is_file() or made or place.as_posix() in ("meta/info.json", "meta/stats.json"):
            continue
        (new / place).parent.mkdir(parents=True, exist_ok=True)
        try:
            if place.parts[0] != "videos":
                raise OSError
            os.link(file.resolve(), new / place)
        except OSError:
            shutil.copyfile(file, new / place)


def _episodes(source: Path, new: Path, numbers: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    """Write the rows of ``meta/episodes`` that are kept, numbered anew; they are returned by their old numbers."""
    import pyarrow
    import pyarrow.parquet

    found: dict[int, dict[str, Any]] = {}
    first = 0
    for file in reader.episode_files(source):
        table = pyarrow.parquet.read_table(file)
        rows = [row for row in table.to_pylist() if row["episode_index"] in numbers]
        for row in rows:
            number = row["episode_index"]
            shifts = {"episode_index": numbers[number] - number, "index": first - row["dataset_from_index"]}
            row["episode_index"] = numbers[number]
            row["dataset_from_index"], row["dataset_to_index"] = first, first + row["length"]
            for column, shift in shifts.items():
                for key in ("min", "max", "mean", *(name for name in _quantiles(row, column))):
                    name = f"stats/{column}/{key}"
                    if row.get(name) is not None:
                        row[name] = [value + shift for value in row[name]]
            first += row["length"]
            found[number] = row
        if rows:
            place = new / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), place)
    if missing := sorted(set(numbers) - set(found)):
        raise DataError(f"{source / 'meta' / 'episodes'}: found no episode {missing[0]}")
    return found


def _quantiles(row: Mapping[str, Any], column: str) -> list[str]:
    """Names of the quantiles that an episode has of a column, ``q01`` and the like."""
    prefix = f"stats/{column}/q"
    return [f"q{key.removeprefix(prefix)}" for key in row if key.startswith(prefix)]


def _frames(file: Path, place: Path, numbers: Mapping[int, int], rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the frames of one file that are kept, numbered anew; none where none is kept."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    episodes = table["episode_index"].to_numpy()
    table = table.filter(pyarrow.array(np.isin(episodes, list(numbers))))
    if not len(table):
        return
    old, frame = table["episode_index"].to_numpy(), table["frame_index"].to_numpy()
    columns = {
        "episode_index": np.array([numbers[number] for number in old]),
        "index": np.array([rows[number]["dataset_from_index"] for number in old]) + frame,
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        table = table.set_column(at, field, pyarrow.array(values, field.type))
    place.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, place)


def aggregated(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``meta/stats.json`` of episodes, from the columns ``stats/<feature>/<statistic>`` of their rows.

    Means and deviations are exact, by counts. A quantile of many episodes does not follow from theirs: the lowest of the
    lower ones and the highest of the upper ones are taken, as LeRobot does.
    """
    features = dict.fromkeys(key.split("/", 2)[1] for key in rows[0] if key.startswith("stats/"))
    return {feature: _aggregated(rows, feature) for feature in features}


def _aggregated(rows: Sequence[Mapping[str, Any]], feature: str) -> dict[str, Any]:
    def column(key: str) -> np.ndarray:
        return np.array([row[f"stats/{feature}/{key}"] for row in rows], np.float64)

    mean, std, count = column("mean"), column("std"), column("count")
    weight = count.reshape(len(rows), *(1,) * (mean.ndim - 1)) / count.sum()
    total = (weight * mean).sum(0)
    variance = (weight * (std**2 + (mean - total) ** 2)).sum(0)
    found = {"min": column("min").min(0), "max": column("max").max(0), "mean": total, "std": np.sqrt(variance)}
    for key in _quantiles(rows[0], feature):
        found[key] = column(key).min(0) if int(key[1:]) <= 50 else column(key).max(0)
    return {key: values.tolist() for key, values in found.items()} | {"count": [int(count.sum())]}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")
