"""D4RL's flat arrays in an HDF5 file, as CORL, d3rlpy and others read them.

A row per transition with ``next_observations``, so that no tool has to guess the successor of an episode's last row. The
number of each row's episode and its score lie in ``infos``. What else lay in a file of this format is not copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dynarep.data.folders import whole_file
from dynarep.data.writers import Labelled, Recording, number_of


def path_of(place: str) -> Path:
    """The file."""
    return Path(place)


def check(recording: Recording) -> None:
    """Every dataset can be written."""


def write(recording: Recording, kept: Sequence[Labelled], path: Path, about: Mapping[str, Any]) -> None:
    """Write the file."""
    parts = []
    for episode, label in recording.episodes(kept):
        last = np.arange(episode.length) == episode.length - 1
        parts.append(
            {
                "observations": episode.current,
                "actions": episode.actions,
                "rewards": label.rewards,
                "next_observations": episode.successors,
                "terminals": last & episode.terminated,
                "timeouts": last & (episode.truncated and not episode.terminated),
                "infos/episode": np.full(episode.length, number_of(episode.id)),
                "infos/score": np.full(episode.length, label.score, np.float32),
            }
        )
    with whole_file(path) as new, h5py.File(new, "w") as file:
        for name in parts[0]:
            file.create_dataset(name, data=np.concatenate([part[name] for part in parts]), compression="gzip")
        file.attrs["dynarep"] = json.dumps(dict(about))
