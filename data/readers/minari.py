"""Minari's layout: a folder with ``data/main_data.hdf5``, one group ``episode_<i>`` each, and ``data/metadata.json``.

The traps: an episode has one observation more than actions; observations can be a dictionary, then the card names some
of its entries; groups are numbered, and ``episode_10`` comes after ``episode_9``; a stopped download leaves a folder that
looks whole. The environment is read from the recorded spec as text, since specs of one Gymnasium version do not always
load in another.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dynarep.configs.params import ENVIRONMENT
from dynarep.data.card import DatasetCard
from dynarep.data.folders import parse_json
from dynarep.data.readers.flat import Part, numbered, whole
from dynarep.data.readers.hdf5 import array, chosen, opened
from dynarep.data.readers.metadata import read_json
from dynarep.data.schema import DataError

NAMES = {"actions": "actions", "rewards": "rewards", "terminals": "terminations", "timeouts": "truncations"}
"""Flat column -> array of an episode."""

ID = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*-v[0-9]+")
"""Of a dataset: name and version, in folders."""


def load(path: Path, card: DatasetCard) -> list[Part]:
    """One part for each episode, by its number.

    Raises:
        DataError: if a file is missing or damaged, or episodes or steps are fewer than the metadata says.
    """
    described = metadata(path)
    main = files(path)[0]
    with opened(main) as file:
        by_number = numbered((name for name in file if name.startswith("episode_")), "episode_", str(main))
        names = list(by_number.values())
        if missing := sorted(set(range(len(names))) - set(by_number)):
            raise DataError(f"{main}: found {names[-1]}, but no episode_{missing[0]}; expected episodes without a gap")
        parts = [whole(f"{main}: {name}", name, partial(_columns, file, main, name, card)) for name in names]
    counts = {"total_episodes": len(parts)}
    if not any(part.fault for part in parts):
        counts["total_steps"] = sum(len(part.columns["observations"]) for part in parts)
    for name, found in counts.items():
        expected = described.get(name, found)
        if type(expected) is not int:
            raise DataError(f"{files(path)[1]}: {name}: found {expected!r:.100}, expected a whole number")
        if found != expected or not parts:
            raise DataError(
                f"{main}: {name}: found {found}, expected {expected or 'at least one'} as in metadata.json; "
                "if the dataset was downloaded, delete its folder and download it again"
            )
    return parts


def files(path: Path) -> list[Path]:
    """The files that are read."""
    return [path / "data" / "main_data.hdf5", path / "data" / "metadata.json"]


def metadata(path: Path) -> dict[str, Any]:
    """``metadata.json`` of a dataset.

    Raises:
        DataError: if it is missing, no JSON object, or says that the data lie in another format than HDF5.
    """
    file = files(path)[1]
    values = read_json(file, "Minari")
    kind = values.get("data_format", "hdf5")
    if kind != "hdf5":
        raise DataError(f"{file}: data_format: found {kind}, expected hdf5")
    return values


def environment(path: Path) -> str | None:
    """Gymnasium id of the environment that was recorded, None if the dataset does not say.

    Raises:
        DataError: if the spec is not as Gymnasium writes it.
    """
    spec = metadata(path).get("env_spec")
    if spec is None:
        return None
    where = f"{files(path)[1]}: env_spec"
    values = parse_json(spec, where) if isinstance(spec, str) else spec
    name = values.get("id") if isinstance(values, dict) else None
    if not isinstance(name, str) or not ENVIRONMENT.fullmatch(name):
        raise DataError(f"{where}: found {spec!r:.200}, expected JSON text of an object with the id of an environment")
    return name


def local(name: str) -> Path | None:
    """Folder of a dataset where Minari keeps its own, None if it is not there; the package need not be.

    Raises:
        DataError: if the name is no id of a dataset.
    """
    if not ID.fullmatch(name):
        raise DataError(f"dataset: found {name!r}, expected an id of Minari such as mujoco/hopper/medium-v0")
    root = os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets"
    folder = Path(root).expanduser() / name
    return folder if (folder / "data").is_dir() else None


def fetch(card: DatasetCard) -> Path:
    """Folder of the dataset that a card gives by its Minari id, downloaded by Minari if it is not there.

    Raises:
        DataError: if it is not there and minari is not installed, or fails to download it.
    """
    assert card.dataset is not None
    folder = local(card.dataset)
    if folder is not None:
        return folder
    try:
        import minari
    except ImportError:
        raise DataError(
            f"card {card.name}: dataset {card.dataset}: Minari ids need the package minari: pip install 'dynarep[minari]'"
        ) from None
    try:
        minari.download_dataset(card.dataset)
    except Exception as error:  # of Minari and of the client of its server, without a common class
        raise DataError(f"card {card.name}: dataset {card.dataset}: Minari cannot download it: {error}") from error
    folder = local(card.dataset)
    if folder is None:
        raise DataError(f"card {card.name}: dataset {card.dataset}: Minari did not download it")
    return folder


def episode_group(file: h5py.File, main: Path, name: str) -> h5py.Group:
    """The group of one episode.

    Raises:
        DataError: if it cannot be opened, for instance because it is a link that leads nowhere.
    """
    episode = file.get(name)
    if not isinstance(episode, h5py.Group):
        link = file.get(name, getlink=True)
        found = "nothing" if link is None else "something else"
        if isinstance(link, h5py.ExternalLink):
            found = f"a link to {link.path} in the file {link.filename}, which leads nowhere"
        raise DataError(f"{main}: {name}: found {found}, expected the group of an episode")
    return episode


def _columns(file: h5py.File, main: Path, name: str, card: DatasetCard) -> dict[str, np.ndarray]:
    episode, where = episode_group(file, main, name), f"{main}: {name}"
    columns = {column: array(episode, name, where) for column, name in NAMES.items()}
    if isinstance(episode.get("observations"), h5py.Group):
        states = chosen(episode, "observations", where, card)
    else:
        states = array(episode, "observations", where)
        if card.observations is not None:
            raise DataError(
                f"{where}: observations: found one array, but the card {card.name} names entries of several"
            )
    steps = len(columns["rewards"])
    if len(states) != steps + 1:
        raise DataError(f"{where}: observations: found {len(states)} rows, expected {steps + 1} for {steps} rewards")
    return columns | {"observations": states[:-1], "next_observations": states[1:]}
