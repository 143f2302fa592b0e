"""The format of a recording by what is in it, and the keys of a card that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynarep.data.readers import lerobot, minari
from dynarep.data.readers.arrays import files, opened_archive
from dynarep.data.readers.flat import COLUMNS
from dynarep.data.readers.hdf5 import array, array_names, opened
from dynarep.data.readers.lerobot import vectors
from dynarep.data.readers.robomimic import demonstration, demonstrations, subsets
from dynarep.data.schema import DataError


def guess(path: Path) -> dict[str, Any]:
    """Keys of a card for a recording, except ``path`` and bounds: ``format``, ``observations``, ``dones``.

    Where a format leaves a choice of observations, all that are vectors are taken. Where it leaves open what its done
    flag means, it is taken to be the end of the recording.

    Raises:
        DataError: if there is no such file, it cannot be read, or it is in none of the formats.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        return _folder(path)
    kinds = {".npz": _archive, ".parquet": _table, ".hdf5": _hdf5, ".h5": _hdf5, ".npy": _motion}
    if path.suffix not in kinds:
        raise DataError(f"{path}: found a file {path.suffix or 'without suffix'}, expected one of {', '.join(kinds)}")
    return kinds[path.suffix](path)


def filter_keys(path: Path) -> dict[str, int]:
    """How many demonstrations each subset of a robomimic file has.

    Raises:
        DataError: if one names a demonstration that is not there.
    """
    with opened(path) as file:
        return {name: len(members) for name, members in subsets(path, file).items()}


def _folder(path: Path) -> dict[str, Any]:
    if (path / "index.json").is_file():
        return {"format": "prepared"}
    if (path / "meta" / "info.json").is_file():
        features = lerobot.info(path)["features"]
        states = [name for name in vectors(features) if name.startswith("observation")]
        chosen = {} if lerobot.STATE[0] in states else {"observations": states}
        return {"format": "lerobot", **chosen, **({"dones": "truncated"} if "next.done" in features else {})}
    if (path / "data" / "metadata.json").is_file():
        main = minari.files(path)[0]
        with opened(main) as file:
            if "episode_0" not in file:
                raise DataError(f"{main}: episode_0: missing; found {', '.join(list(file)[:5]) or 'nothing'}")
            episode = minari.episode_group(file, main, "episode_0")
            return {"format": "minari", **_vectors(episode, "observations", array_names(episode), str(main))}
    if files(path):
        return {"format": "arrays"}
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise DataError(
        f"{path}: found {found}; expected a LeRobot dataset (meta/info.json), a Minari dataset (data/metadata.json), "
        "a prepared dataset (index.json) or arrays (observations.npy, ...)"
    )


def _archive(path: Path) -> dict[str, Any]:
    """OGBench's files have ``terminals`` as their only marks, or ``valids``."""
    with opened_archive(path) as archive:
        names = set(archive.files)
    if "observations" not in names:
        raise DataError(f"{path}: observations: missing; found {', '.join(sorted(names)) or 'nothing'}")
    if not {*COLUMNS[1:]} & names:
        return {"format": "arrays", "observations_only": True}
    only_terminals = not {"timeouts", "next_observations"} & names
    return {"format": "ogbench" if "valids" in names or (only_terminals and "actions" in names) else "arrays"}


def _motion(path: Path) -> dict[str, Any]:
    return {"format": "arrays", "observations_only": True}


def _table(path: Path) -> dict[str, Any]:
    return {"format": "arrays"}


def _hdf5(path: Path) -> dict[str, Any]:
    with opened(path) as file:
        names = list(file)
        if "data" in names:
            demo = demonstration(path, file, next(iter(demonstrations(path, file).values())))
            dones = {"dones": "truncated"} if "dones" in demo else {}
            return {"format": "robomimic", **_vectors(demo, "obs", array_names(demo), f"{path}: {demo.name}"), **dones}
        if "observations" in names:
            only_terminals = "terminals" in names and not {"timeouts", "next_observations"} & set(names)
            return {"format": "d4rl", **({"dones": "truncated"} if only_terminals else {})}
        if "episode_0" in names:
            raise DataError(f"{path}: a file of a Minari dataset; name the folder of the dataset, {path.parents[1]}")
    raise DataError(
        f"{path}: found {', '.join(names[:5]) or 'nothing'}; expected D4RL's arrays ({', '.join(COLUMNS[:3])}, ...) or "
        "robomimic's groups data/demo_0, data/demo_1, ..."
    )


def _vectors(episode: Any, group: str, names: list[str], where: str) -> dict[str, Any]:
    """``observations``: the arrays in a group of an episode that are numbers or vectors; nothing if it is one array."""
    inside = [name.removeprefix(f"{group}/") for name in names if name.startswith(f"{group}/")]
    chosen = [name for name in inside if array(episode[group], name, where).ndim in (1, 2)]
    return {"observations": chosen} if chosen else {}
