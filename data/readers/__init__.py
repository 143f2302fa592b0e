"""One module per file format, each with ``read(path, card) -> Iterator[Episode]``, owns the traps of its format."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dynarep.data.schema import DataError

if TYPE_CHECKING:
    from dynarep.data.card import DatasetCard
    from dynarep.data.schema import Episode

MODULES = {"d4rl": "hdf5", "arrays": "arrays"}
"""Format of a card -> module of this package."""


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Episodes of a recording, in recorded order, with the ids ``<card name>-000000``, ``-000001``, ...

    Args:
        path: the recording.
        card: its ``format`` chooses the reader; name and action bounds are used too.

    Raises:
        DataError: if the file is missing, damaged or not as its format says; nothing has been yielded then.
    """
    if card.format is None:
        raise DataError(f"card {card.name} has no format, so no recording of its own to read")
    if not path.is_file():
        raise DataError(f"{path}: no such file, named as path by the dataset card {card.name}")
    episodes: Iterator[Episode] = import_module(f"{__name__}.{MODULES[card.format]}").read(path, card)
    return episodes
