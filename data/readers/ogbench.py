"""OGBench's ``.npz`` files: flat arrays ``observations``, ``actions``, ``terminals``.

The trap: ``terminals`` marks the last row of a trajectory, which no task ended, so it is D4RL's ``timeouts``; that row
holds the final state, and its action leads nowhere. Files saved from ``load_dataset`` are read too: with
``next_observations``, or in compact form, where ``terminals`` marks the last two rows and ``valids`` is 0 in the last.
``rewards`` are used where there are any; simulator states (``qpos``, ``qvel``, ...) are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.readers.arrays import read_archive
from dynarep.data.readers.flat import COLUMNS, Part, cut, flags
from dynarep.data.schema import DataError, Episode


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Episodes of an OGBench file, all of them truncated.

    Raises:
        DataError: if the file is damaged, ``observations``, ``actions`` or ``terminals`` are missing, or an array is not
            as ``flat.cut`` describes.
    """
    return cut(load(path, card), card, required=("actions",))


def load(path: Path, card: DatasetCard) -> list[Part]:
    """The arrays in D4RL's terms, not checked beyond the ends."""
    where = str(path)
    columns = read_archive(path, (*COLUMNS, "valids"))
    if "timeouts" in columns:
        raise DataError(f"{where}: timeouts: OGBench's files have none; found {', '.join(columns)}; try format: arrays")
    valids = columns.pop("valids", None)
    if "terminals" in columns:
        ends = flags(columns["terminals"], where, "terminals")
        if valids is not None:
            if valids.shape != ends.shape:
                raise DataError(f"{where}: valids: found shape {valids.shape}, expected {ends.shape} as terminals")
            ends &= ~flags(valids, where, "valids")
        columns |= {"terminals": np.zeros_like(ends), "timeouts": ends}
    return [Part(where, columns)]
