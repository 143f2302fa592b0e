"""robomimic's HDF5 layout: ``data/demo_<i>/`` with ``obs/<key>``, ``next_obs/<key>``, ``actions``, ``rewards``, ``dones``.

The traps: observations are a choice of named arrays, so the card names them; ``dones`` marks success, the end of the
demonstration or both, depending on how the file was made, so the card says how to read it; without ``next_obs`` the
state after the last action is not known; demonstrations are numbered, and ``demo_10`` comes after ``demo_9``. A file can
name subsets of them, ``mask/train`` and the like, robomimic's filter keys; the card's ``subset`` chooses one.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.readers.flat import Part, marks, numbered, whole
from dynarep.data.readers.hdf5 import array, check_stored, chosen, opened
from dynarep.data.schema import DataError


def load(path: Path, card: DatasetCard) -> list[Part]:
    """One part for each demonstration, by its number; of a subset, those that it names.

    Raises:
        DataError: if the file is damaged or has no demonstrations, or not the card's subset.
    """
    with opened(path) as file:
        names = demonstrations(path, file)
        wanted = set(names.values())
        if card.subset is not None:
            known = subsets(path, file)
            if card.subset not in known:
                raise DataError(
                    f"{path}: mask/{card.subset}: missing, but the card {card.name} sets subset: {card.subset}; found "
                    f"{', '.join(known) or 'no subsets'}"
                )
            wanted = set(known[card.subset])
        return [
            whole(f"{path}: /data/{name}", name, partial(_columns, file, path, name, card), number)
            for number, name in names.items()
            if name in wanted
        ]


def subsets(path: Path, file: h5py.File) -> dict[str, list[str]]:
    """Names of the demonstrations in each ``mask/<subset>``.

    Raises:
        DataError: if one names a demonstration that is not there.
    """
    masks = file.get("mask")
    names = list(demonstrations(path, file).values())
    found = {}
    for key in masks if isinstance(masks, h5py.Group) else ():
        values = masks.get(key)
        if not isinstance(values, h5py.Dataset):
            continue
        where = f"{path}: mask/{key}"
        check_stored(values, where, "SO", "names of demonstrations")
        texts = [
            name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in np.ravel(values[()])
        ]
        for name, count in Counter(texts).items():
            if name not in names or count > 1:
                times = f" {count} times" if name in names else ""
                raise DataError(f"{where}: found {name!r:.100}{times}, expected names of groups in data, each once")
        found[key] = texts
    return found


def demonstrations(path: Path, file: h5py.File) -> dict[int, str]:
    """Names of the groups ``data/demo_<i>`` by their numbers, in order; robosuite counts from 1, and some may be deleted.

    Raises:
        DataError: if there are none, or one has another name.
    """
    data = file.get("data")
    names = list(data) if isinstance(data, h5py.Group) else []
    wrong = [name for name in names if not (name.startswith("demo_") and name[5:].isdecimal())]
    if wrong or not names:
        found = ", ".join(map(repr, wrong or file)) or "nothing"
        raise DataError(f"{path}: found {found}, expected groups data/demo_0, data/demo_1, ...")
    return numbered(names, "demo_", f"{path}: data")


def demonstration(path: Path, file: h5py.File, name: str) -> h5py.Group:
    """One of the groups ``data/demo_<i>``.

    Raises:
        DataError: if it cannot be opened, for instance because it is a link that leads nowhere.
    """
    demo = file["data"].get(name)
    if not isinstance(demo, h5py.Group):
        raise DataError(
            f"{path}: /data/{name}: found {_kind(file['data'], name)}, expected a group with obs and actions"
        )
    return demo


def _kind(parent: h5py.Group, name: str) -> str:
    """What lies under a name, in words."""
    link = parent.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return f"a link to {link.path} in the file {link.filename}, which leads nowhere"
    return "something else"


def _columns(file: h5py.File, path: Path, name: str, card: DatasetCard) -> dict[str, np.ndarray]:
    demo = demonstration(path, file, name)
    where = f"{path}: {demo.name}"
    if not isinstance(demo.get("obs"), h5py.Group):
        raise DataError(
            f"{where}: obs: missing; found {', '.join(demo) or 'nothing'}; from raw robosuite files robomimic's "
            "dataset_states_to_obs.py extracts observations"
        )
    columns = {name: array(demo, name, where) for name in ("actions", "rewards") if name in demo}
    columns["observations"] = chosen(demo, "obs", where, card)
    rows = len(columns["observations"])
    samples = demo.attrs.get("num_samples", rows)
    if not isinstance(samples, int | np.integer) or samples != rows:
        raise DataError(f"{where}: obs: found {rows} rows, expected {samples!s:.100} by num_samples")
    if "next_obs" in demo:
        columns["next_observations"] = chosen(demo, "next_obs", where, card)
    dones = array(demo, "dones", where) if "dones" in demo else None
    return columns | marks(dones, rows, where, "dones", card)
