"""Your own arrays: D4RL's flat arrays as ``.npz`` archive, folder of ``.npy`` files or parquet table.

``observations``, ``terminals`` and ``timeouts`` or ``next_observations`` are needed; ``actions`` and ``rewards`` can.
A motion, one episode of states alone, needs ``observations`` only: an array without any marks under a card with
``observations_only``, also as a single ``.npy`` file. See ``docs/data-format.md``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from dynarep.configs.params import open_file
from dynarep.data.card import DatasetCard
from dynarep.data.readers.flat import COLUMNS, Part, check_expansion, read_array, read_columns
from dynarep.data.schema import DataError


def load(path: Path, card: DatasetCard) -> list[Part]:
    """The arrays, unchecked; pickled objects are not loaded.

    Raises:
        DataError: if a file cannot be read.
    """
    if path.is_dir():
        found = [file.stem for file in files(path)]
        columns = read_columns(path, found, lambda name: _read_npy(path / f"{name}.npy"))
    elif path.suffix == ".parquet":
        from dynarep.data.readers.parquet import read_table

        table = read_table(path, COLUMNS)
        columns = read_columns(path, table, table.__getitem__)
    elif path.suffix == ".npy" and card.observations_only:
        columns = {"observations": read_array(path, "observations", lambda: _read_npy(path))}
    else:
        columns = read_archive(path)
    if card.observations_only and list(columns) == ["observations"]:
        columns |= _one_episode(columns["observations"])
    return [Part(str(path), columns)]


def _one_episode(observations: np.ndarray) -> dict[str, np.ndarray]:
    """Marks of an episode that stops after its last row."""
    rows = len(observations) if observations.ndim else 0
    return {"terminals": np.zeros(rows, bool), "timeouts": np.arange(rows) == rows - 1}


def files(path: Path) -> list[Path]:
    """The files that are read: of a folder, those named like a column."""
    return [file for name in COLUMNS if os.path.lexists(file := path / f"{name}.npy")] if path.is_dir() else [path]


def read_archive(path: Path, names: Sequence[str] = COLUMNS) -> dict[str, np.ndarray]:
    """Those of the named arrays that an ``.npz`` archive has.

    Raises:
        DataError: if it is no archive, or an array cannot be read.
    """
    with opened_archive(path) as archive:
        return read_columns(path, archive.files, archive.__getitem__, names)


@contextmanager
def opened_archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An ``.npz`` archive for reading, whose arrays have names of their own and claim no more than is stored.

    Raises:
        DataError: if it is none.
    """
    with ExitStack() as stack:
        try:
            archive = np.load(stack.enter_context(open_file(path)), allow_pickle=False)
            stack.enter_context(archive if isinstance(archive, np.lib.npyio.NpzFile) else nullcontext())
        except OSError as error:
            raise DataError(f"{path}: not a readable .npz archive: {error.strerror or error}") from error
        except Exception as error:  # EOFError, ValueError and zipfile.BadZipFile, depending on the damage
            raise DataError(f"{path}: not a readable .npz archive: {error}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(
                f"{path}: found a single array, expected an .npz archive of named arrays, a folder with observations.npy, "
                "terminals.npy, ..., or for a motion observations_only: true in the card and a file named .npy"
            )
        found = Counter(archive.files)
        if twice := [name for name, count in found.items() if count > 1]:
            raise DataError(f"{path}: {twice[0]}: found {found[twice[0]]} arrays of this name, expected one")
        assert archive.zip is not None
        for member in archive.zip.infolist():
            check_expansion(f"{path}: {member.filename}", member.file_size, member.compress_size)
        yield archive


def _read_npy(path: Path) -> np.ndarray:
    with open_file(path) as file:
        return np.asarray(np.load(file, allow_pickle=False))
