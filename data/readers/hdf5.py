"""D4RL's HDF5 layout: flat arrays ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``, ...

The traps: a timeout is no terminal; ``next_observations`` exists in some files only; some recordings end episodes
without any mark. ``flat`` deals with them. Everything else in a file (``infos/*``, ``metadata/*``) is left alone. A
dataset given by its name comes from D4RL's server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dynarep.data import d4rl
from dynarep.data.card import DatasetCard
from dynarep.data.download import cache_folder, download
from dynarep.data.readers.flat import Part, cut, joined, read_array, read_columns
from dynarep.data.schema import NAME, DataError, Episode


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Episodes of a D4RL file.

    Raises:
        DataError: if the file is damaged, ``observations``, ``actions``, ``rewards`` or ``terminals`` or both of
            ``timeouts`` and ``next_observations`` are missing, or an array is not as ``flat.cut`` describes.
    """
    return cut(load(path, card), card, required=("actions", "rewards"))


def load(path: Path, card: DatasetCard) -> list[Part]:
    """The arrays of a D4RL file, unchecked."""
    with opened(path) as file:
        return [Part(str(path), read_columns(path, list(file), lambda name: _content(file[name])))]


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading.

    Raises:
        DataError: if it is none, or is truncated.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file: {error}") from error
    with file:
        yield file


def array(group: h5py.Group, name: str, where: str) -> np.ndarray:
    """One array of a group.

    Raises:
        DataError: if it is missing, cannot be read or is no array of numbers.
    """
    if name not in group:
        raise DataError(f"{where}: {name}: missing; found {', '.join(group) or 'nothing'}")
    return read_array(where, name, lambda: _content(group[name]))


def chosen(group: h5py.Group, name: str, where: str, card: DatasetCard) -> np.ndarray:
    """Those arrays of a group in a group that the card names as ``observations``, side by side, (N, numbers).

    Raises:
        DataError: if the card names none or others, or they cannot be joined.
    """
    found = array_names(group[name])
    missing = [key for key in card.observations or () if key not in found]
    if missing or not card.observations:
        problem = f"found no {', '.join(missing)}" if missing else f"the card {card.name} names no observations"
        raise DataError(f"{where}: {name}: {problem}; expected a list of some of {', '.join(found)}")
    return joined({f"{name}/{key}": array(group[name], key, where) for key in card.observations}, where)


def array_names(group: h5py.Group) -> list[str]:
    """Names of all arrays in a group and the groups within, sorted."""
    found: list[str] = []
    group.visititems(lambda name, entry: found.append(name) if isinstance(entry, h5py.Dataset) else None)
    return sorted(found)


def _content(entry: Any) -> Any:
    return entry[()] if isinstance(entry, h5py.Dataset) else entry


def local(name: str) -> Path | None:
    """The downloaded file of a D4RL dataset, None if it is not there."""
    path = _cached(name)
    return path if path.is_file() else None


def fetch(card: DatasetCard) -> Path:
    """The file of the D4RL dataset that a card gives by its name, downloaded if it is not there.

    Raises:
        DataError: if D4RL has no such dataset, or no server gives it.
    """
    assert card.dataset is not None
    path = _cached(card.dataset)

    def check(part: Path) -> None:
        with opened(part) as file:
            list(file)

    if not path.is_file():
        urls = [d4rl.url(card.dataset), *(card.mirrors or ())]
        download(urls, path, name=card.dataset, check=check, sha256=card.sha256)
    return path


def _cached(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise DataError(f"dataset: found {name!r}, expected a name of D4RL such as hopper-medium-v2")
    return cache_folder() / "d4rl" / f"{name}.hdf5"
