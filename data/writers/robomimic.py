"""robomimic's HDF5: a copy of such a file with new rewards and a filter key, or a file made of the episodes.

In a copy nothing is left out: the kept demonstrations are those of ``mask/dynarep``, which robomimic trains on with
``train.hdf5_filter_key = "dynarep"``. A file made of episodes holds the kept ones only, with one array ``obs/state`` each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dynarep.data.folders import whole_file
from dynarep.data.readers.hdf5 import opened
from dynarep.data.readers.robomimic import demonstrations
from dynarep.data.schema import DataError
from dynarep.data.writers import Labelled, Recording, number_of

KEY = "dynarep"
"""Name of the subset."""


def path_of(place: str) -> Path:
    """The file."""
    return Path(place)


def check(recording: Recording) -> None:
    """Every dataset can be written."""


def write(recording: Recording, kept: Sequence[Labelled], path: Path, about: Mapping[str, Any]) -> None:
    """Write the file."""
    with whole_file(path) as new:
        if recording.is_of("robomimic"):
            assert recording.source is not None
            names = _copy(recording.source, kept, new)
        else:
            names = _make(recording, kept, new)
        with h5py.File(new, "r+") as file:
            file.require_group("mask")
            if KEY in file["mask"]:
                del file["mask"][KEY]
            file["mask"][KEY] = np.array(names, dtype="S")
            file["data"].attrs["dynarep"] = json.dumps(dict(about))


def _copy(source: Path, kept: Sequence[Labelled], new: Path) -> list[str]:
    """The recording with rewards of the kept demonstrations; a last row without a transition gets 0."""
    shutil.copyfile(source, new)
    with opened(source) as file:
        names = demonstrations(source, file)
    labels = {number_of(label.episode): label for label in kept}
    with h5py.File(new, "r+") as file:
        for number, label in sorted(labels.items()):
            demo = file["data"][names[number]]
            rows = len(demo["actions"])
            if rows - len(label.rewards) not in (0, 1):
                raise DataError(
                    f"{source}: /data/{names[number]}: found {rows} rows, expected {len(label.rewards)} or one more as in "
                    f"{label.episode}"
                )
            if "rewards" in demo:
                del demo["rewards"]
            demo["rewards"] = np.pad(label.rewards, (0, rows - len(label.rewards))).astype(np.float64)
    return [names[number] for number in sorted(labels)]


def _make(recording: Recording, kept: Sequence[Labelled], new: Path) -> list[str]:
    env = {"env_name": recording.dataset.env or recording.dataset.name, "type": 2, "env_kwargs": {}}
    names = []
    with h5py.File(new, "w") as file:
        data = file.create_group("data")
        for i, (episode, label) in enumerate(recording.episodes(kept)):
            demo = data.create_group(f"demo_{i}")
            names.append(f"demo_{i}")
            demo.attrs["num_samples"] = episode.length
            demo["obs/state"], demo["next_obs/state"] = episode.current, episode.successors
            demo["actions"] = episode.actions
            demo["rewards"] = label.rewards.astype(np.float64)
            demo["dones"] = (np.arange(episode.length) == episode.length - 1).astype(np.int64)
        data.attrs["total"] = sum(demo.attrs["num_samples"] for demo in data.values())
        data.attrs["env_args"] = json.dumps(env)
    return names
