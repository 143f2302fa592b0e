"""Your own arrays: an ``.npz`` archive with D4RL's flat arrays, see ``docs/data-format.md``.

``observations``, ``terminals`` and ``timeouts`` or ``next_observations`` are needed; ``actions`` and ``rewards`` can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.readers.flat import cut, read_columns
from dynarep.data.schema import DataError, Episode


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Episodes of an ``.npz`` archive; pickled objects are not loaded.

    Raises:
        DataError: if the file is no readable archive, a required array is missing, or one is not as ``flat.cut``
            describes.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # EOFError, ValueError, OSError and zipfile.BadZipFile, depending on the damage
        raise DataError(f"{path}: not a readable .npz archive: {error}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: found a single array, expected an .npz archive of named arrays")
    with archive:
        columns = read_columns(path, archive.files, archive.__getitem__)
    return cut(columns, path, card, required=())
