"""robomimic's HDF5 layout: ``data/demo_<i>/`` with ``obs/<key>``, ``next_obs/<key>``, ``actions``, ``rewards``, ``dones``.

The traps: observations are a choice of named arrays, so the card names them; ``dones`` marks success, the end of the
demonstration or both, depending on how the file was made, so the card says how to read it; without ``next_obs`` the
state after the last action is not known; demonstrations are numbered, and ``demo_10`` comes after ``demo_9``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py

from dynarep.data.card import DatasetCard
from dynarep.data.readers.flat import Part, cut, marks
from dynarep.data.readers.hdf5 import array, chosen, opened
from dynarep.data.schema import DataError, Episode


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Demonstrations of a robomimic file, by their number.

    Raises:
        DataError: if the file is damaged, the card names no observations or unknown ones, demonstrations miss
            ``actions`` or rows, ``dones`` is not as ``flat.marks`` or an array not as ``flat.cut`` describes.
    """
    return cut(load(path, card), card, required=("actions",))


def load(path: Path, card: DatasetCard) -> list[Part]:
    """One part for each demonstration."""
    with opened(path) as file:
        demos = demonstrations(path, file)
        return [_part(demo, f"{path}: {demo.name}", card) for demo in demos]


def demonstrations(path: Path, file: h5py.File) -> list[h5py.Group]:
    """The groups ``data/demo_<i>`` in order.

    Raises:
        DataError: if there are none, or one has another name.
    """
    data = file.get("data")
    names = list(data) if isinstance(data, h5py.Group) else []
    wrong = [name for name in names if not (name.startswith("demo_") and name[5:].isdecimal())]
    if wrong or not names:
        found = ", ".join(map(repr, wrong or file)) or "nothing"
        raise DataError(f"{path}: found {found}, expected groups data/demo_0, data/demo_1, ...")
    return [data[name] for name in sorted(names, key=lambda name: int(name[5:]))]


def _part(demo: h5py.Group, where: str, card: DatasetCard) -> Part:
    if not isinstance(demo.get("obs"), h5py.Group):
        raise DataError(
            f"{where}: obs: missing; found {', '.join(demo) or 'nothing'}; from raw robosuite files robomimic's "
            "dataset_states_to_obs.py extracts observations"
        )
    columns = {name: array(demo, name, where) for name in ("actions", "rewards") if name in demo}
    columns["observations"] = chosen(demo, "obs", where, card)
    rows = len(columns["observations"])
    samples = demo.attrs.get("num_samples", rows)
    if samples != rows:
        raise DataError(f"{where}: obs: found {rows} rows, expected {samples} by num_samples")
    if "next_obs" in demo:
        columns["next_observations"] = chosen(demo, "next_obs", where, card)
    dones = array(demo, "dones", where) if "dones" in demo else None
    return Part(where, columns | marks(dones, rows, where, "dones", card))
