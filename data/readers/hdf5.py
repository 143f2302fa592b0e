"""D4RL's HDF5 layout: flat arrays ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``, ...

The traps: a timeout is no terminal; ``next_observations`` exists in some files only; some recordings end episodes
without any mark. ``flat`` deals with them. Everything else in a file (``infos/*``, ``metadata/*``) is left alone. A
dataset given by its name comes from D4RL's server.

HDF5 lets a file name what it does not hold: links to other files, arrays stored elsewhere or made of others, chunks that
were never written and read as zeros. All of these are refused, here and in the other formats that are HDF5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dynarep.configs.params import NAME, open_file
from dynarep.data import d4rl
from dynarep.data.card import DatasetCard
from dynarep.data.download import cache_folder, download
from dynarep.data.readers.flat import COLUMNS, Part, check_expansion, cut, joined, read_array
from dynarep.data.schema import DataError, Episode


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
        return [Part(str(path), {name: array(file, name, str(path)) for name in COLUMNS if name in file})]


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading, which holds all that it names.

    Whatever a damaged file makes h5py raise while it is open becomes a ``DataError``, too.

    Raises:
        DataError: if it is none, is truncated or damaged, links to other files, or has a link that leads nowhere.
    """
    try:
        with open_file(path), h5py.File(path, "r") as file:
            _check_links(path, file)
            yield file
    except DataError:
        raise
    except Exception as error:  # of h5py, by the damage: OSError, RuntimeError, KeyError, ValueError, ...
        raise DataError(f"{path}: not a readable HDF5 file: {error}") from error


def _check_links(path: Path, file: h5py.File) -> None:
    """No link leads to another file or nowhere."""
    special: list[tuple[Any, int]] = []
    root = file["/"]  # to be held as long as its links
    links = root.id.links

    def visit(name: Any, info: Any) -> None:
        if info.type != h5py.h5l.TYPE_HARD:
            special.append((name, info.type))

    links.visit(visit, info=True)
    for name, kind in special:
        encoded = name if isinstance(name, bytes) else name.encode(errors="surrogateescape")
        target = links.get_val(encoded)
        where = f"{path}: {encoded.decode(errors='replace')}"
        if kind == h5py.h5l.TYPE_EXTERNAL:
            other = target[0].decode(errors="replace")
            raise DataError(f"{where}: found a link to another file, {other}; copy the data into this file")
        try:
            there = kind == h5py.h5l.TYPE_SOFT and h5py.h5o.exists_by_name(root.id, encoded)
        except (OSError, RuntimeError, KeyError, ValueError):  # of links in a circle
            there = False
        if not there:
            raise DataError(f"{where}: found a link to {target.decode(errors='replace')}, which is not there")


def array(group: h5py.Group, name: str, where: str) -> np.ndarray:
    """One array of a group.

    Raises:
        DataError: if it is missing, cannot be read, is no array of numbers, or is not stored in the file as a whole.
    """
    if name not in group:
        raise DataError(f"{where}: {name}: missing; found {', '.join(group) or 'nothing'}")
    entry = group[name]
    if isinstance(entry, h5py.Dataset):
        try:
            check_stored(entry, f"{where}: {name}")
        except DataError:
            raise
        except Exception as error:  # of h5py, by the damage
            raise DataError(f"{where}: {name}: cannot be read, the file may be damaged: {error}") from error
    return read_array(where, name, lambda: _content(entry))


def check_stored(entry: h5py.Dataset, where: str, kinds: str = "fiub", what: str = "numbers") -> None:
    """All of an array is in its file, and it claims no more than a compression can explain.

    Args:
        entry: the array.
        where: it is, for messages.
        kinds: of types that it may have, as NumPy's ``dtype.kind`` names them.
        what: they are, for messages.

    Raises:
        DataError: if not.
    """
    if entry.is_virtual:
        raise DataError(f"{where}: found a virtual dataset, made of others; expected the {what} themselves")
    if entry.external:
        raise DataError(f"{where}: found {what} stored in {entry.external[0][0]}, expected them in the file itself")
    if entry.dtype.kind not in kinds:
        raise DataError(f"{where}: found {entry.dtype} array, expected an array of {what}")
    if entry.shape is None:
        raise DataError(f"{where}: found no {what}, expected an array")
    claimed = math.prod(entry.shape) * entry.dtype.itemsize
    stored = entry.id.get_storage_size()
    end = entry.file.id.get_filesize()
    if stored > end:
        raise DataError(f"{where}: found {stored:,} bytes stored in a file of {end:,}; the file is damaged")
    if entry.chunks is None:
        if stored < claimed:
            raise DataError(f"{where}: found {stored:,} bytes stored, expected {claimed:,} for shape {entry.shape}")
        return
    written = entry.id.get_num_chunks()
    expected = math.prod(-(-size // chunk) for size, chunk in zip(entry.shape, entry.chunks, strict=True))
    if written != expected:
        raise DataError(
            f"{where}: found {written:,} of {expected:,} chunks for shape {entry.shape}; the others were never written"
        )
    check_expansion(f"{where} of shape {entry.shape}", claimed, stored)


def chosen(group: h5py.Group, name: str, where: str, card: DatasetCard) -> np.ndarray:
    """Those arrays of a group in a group that the card names as ``observations``, side by side, (N, numbers).

    Raises:
        DataError: if the card names none or others, or they cannot be joined.
    """
    found = array_names(group[name]) if isinstance(group[name], h5py.Group) else []
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
        DataError: if D4RL has no such dataset, no server gives it, or its file has changed since it was downloaded.
    """
    assert card.dataset is not None
    path = _cached(card.dataset)

    def check(part: Path) -> None:
        with opened(part) as file:
            list(file)

    urls = [] if path.is_file() else [d4rl.url(card.dataset), *(card.mirrors or ())]
    download(urls, path, name=card.dataset, check=check, sha256=card.sha256)
    return path


def _cached(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise DataError(f"dataset: found {name!r}, expected a name of D4RL such as hopper-medium-v2")
    return cache_folder() / "d4rl" / f"{name}.hdf5"
