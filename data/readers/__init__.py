"""One module per file format owns the traps of its format.

A module has ``load(path, card) -> list[Part]``, the arrays in D4RL's terms, which ``flat.cut`` checks and cuts; or, where
that does not fit, ``read(path, card) -> Iterator[Episode]``. It can say more: ``files`` the files of a folder that are
read, ``environment`` the recorded environment, ``local`` and ``fetch`` the place of a dataset that a card gives by name.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dynarep.data.schema import DataError

if TYPE_CHECKING:
    from dynarep.data.card import DatasetCard
    from dynarep.data.readers.flat import Episodes, Part

MODULES = {
    "d4rl": "hdf5",
    "arrays": "arrays",
    "ogbench": "ogbench",
    "robomimic": "robomimic",
    "lerobot": "lerobot",
    "minari": "minari",
    "prepared": "prepared",
}
"""Format of a card -> module of this package."""

REQUIRED = {
    "d4rl": ("actions",),
    "ogbench": ("actions",),
    "robomimic": ("actions",),
    "lerobot": ("actions",),
    "minari": ("actions", "rewards"),
}
"""Format -> arrays without which a recording is not of this format, beside those that ``flat.cut`` needs."""

FOLDERS = ("lerobot", "minari", "prepared")
"""Formats that are folders; ``arrays`` can be one."""


def module(card: DatasetCard) -> ModuleType:
    """The module for a card's format.

    Raises:
        DataError: if the card has none.
    """
    if card.format is None:
        raise DataError(f"card {card.name} has no format, so no recording of its own to read")
    return import_module(f"{__name__}.{MODULES[card.format]}")


def read(path: Path, card: DatasetCard) -> Episodes:
    """Episodes of a recording, in recorded order, with the ids ``<card name>-000000``, ``-000001``, ...

    An episode without a transition is left out, and so are those that the card names; ``notes`` of the result counts them.

    Args:
        path: the recording.
        card: its ``format`` chooses the reader; name, action bounds and the keys of the format are used too.

    Raises:
        DataError: if the file is missing, damaged or not as its format says; nothing has been yielded then.
    """
    from dynarep.data.readers.flat import Episodes, cut

    reader = module(card)
    check_path(path, card)
    if hasattr(reader, "load"):
        return cut(reader.load(path, card), card, required=REQUIRED.get(str(card.format), ()))
    return Episodes(reader.read(path, card))


def load(path: Path, card: DatasetCard) -> list[Part]:
    """The arrays of a recording before they are checked; nothing for ``prepared``.

    Raises:
        DataError: if the file is missing or damaged, or lacks what its format is made of.
    """
    reader = module(card)
    check_path(path, card)
    return reader.load(path, card) if hasattr(reader, "load") else []


def check_path(path: Path, card: DatasetCard) -> None:
    """A recording is there, and a folder only where the format is one.

    Raises:
        DataError: if not.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file, named as path by the dataset card {card.name}")
    expected = "a folder" if card.format in FOLDERS else "a file"
    found = "a folder" if path.is_dir() else "a file"
    if found != expected and card.format != "arrays":
        raise DataError(f"{path}: found {found}, expected {expected} for format: {card.format}")


def locate(card: DatasetCard, root: Path) -> Path:
    """Where the recording of a card lies; one given by name is downloaded if it is not there.

    Args:
        card: with ``path`` or ``dataset``.
        root: relative paths start here.

    Raises:
        DataError: if it cannot be downloaded.
    """
    if card.path is not None:
        return root / card.path
    path: Path = module(card).fetch(card)
    return path


def source_files(path: Path, card: DatasetCard) -> list[Path]:
    """All files that reading a recording opens.

    Raises:
        DataError: if a folder is not as its format says.
    """
    reader = module(card)
    if not path.is_dir() or not hasattr(reader, "files"):
        return [path]
    found: list[Path] = reader.files(path)
    return found


def environment(path: Path, card: DatasetCard) -> str | None:
    """Gymnasium id of the environment that a recording names, if its format has one."""
    reader = module(card)
    return reader.environment(path) if hasattr(reader, "environment") else None
