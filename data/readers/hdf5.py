"""D4RL's HDF5 layout: flat arrays ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``, ...

The traps: a timeout is no terminal; ``next_observations`` exists in some files only; some recordings end episodes
without any mark. ``flat`` deals with them. Everything else in a file (``infos/*``, ``metadata/*``) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from dynarep.data.card import DatasetCard
from dynarep.data.readers.flat import cut, read_columns
from dynarep.data.schema import DataError, Episode


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Episodes of a D4RL file.

    Raises:
        DataError: if the file is damaged, ``observations``, ``actions``, ``rewards`` or ``terminals`` or both of
            ``timeouts`` and ``next_observations`` are missing, or an array is not as ``flat.cut`` describes.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file: {error}") from error

    def load(name: str) -> Any:
        entry = file[name]
        return entry[()] if isinstance(entry, h5py.Dataset) else entry

    with file:
        columns = read_columns(path, list(file), load)
    return cut(columns, path, card, required=("actions", "rewards"))
