"""Datasets written back with new rewards, and without the episodes that are not worth keeping, in the formats of other tools.

A module per format has ``write(recording, kept, path, about)``, and ``check(recording)``, which says what it cannot write
before anything is computed. Where the recording is of the same format, what else lies in it stays: images, simulator
states, tasks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import Dataset

FORMATS = ("d4rl", "robomimic", "minari", "lerobot")


class Labelled(Protocol):
    """An episode of T transitions with rewards (T,), the progress (T + 1,) of its states, and a score."""

    @property
    def episode(self) -> str:
        """Its id."""

    @property
    def rewards(self) -> np.ndarray:
        """Of each transition."""

    @property
    def progress(self) -> np.ndarray:
        """Of each state."""

    @property
    def score(self) -> float:
        """In [0, 1]."""


@dataclass(frozen=True)
class Recording:
    """A prepared dataset and where it comes from.

    Args:
        dataset: its episodes.
        source: the recording that holds them row for row; None for mixtures and selections of steps.
        card: that read it.
    """

    dataset: Dataset
    source: Path | None
    card: DatasetCard

    def is_of(self, kind: str) -> bool:
        """Whether it is a recording of this format."""
        return self.source is not None and self.card.format == kind

    def episodes(self, kept: Sequence[Labelled]) -> list[tuple[Episode, Labelled]]:
        """Those episodes that are kept, in recorded order, with their labels."""
        labels = {label.episode: label for label in kept}
        return [(episode, labels[episode.id]) for episode in self.dataset.episodes if episode.id in labels]


def number_of(episode: str) -> int:
    """The number of an episode in its recording, by its id; -1 if the id has none."""
    found = re.search(r"-(\d+)$", episode)
    return int(found.group(1)) if found else -1


def _module(kind: str) -> ModuleType:
    return import_module(f"{__name__}.{kind}")


def check_place(recording: Recording, kind: str, place: str, *, overwrite: bool) -> None:
    """A dataset can be written, and nothing lies where it belongs, unless it may be replaced.

    Args:
        recording: to write.
        kind: one of ``FORMATS``.
        place: a file, a folder, or for ``minari`` an id.
        overwrite: whether what is there may be replaced.

    Raises:
        DataError: if not.
    """
    module = _module(kind)
    path: Path = module.path_of(place)
    source = recording.source
    if os.path.lexists(path) and not overwrite:
        raise DataError(f"{path}: is there; name another place, or say --overwrite")
    if source is not None and path.resolve() == source.resolve():
        raise DataError(f"{path}: is the recording itself, expected another place to write to")
    if recording.dataset.spec.action_dim == 0:
        raise DataError(f"{recording.dataset.name}: actions: found none, expected some to write")
    module.check(recording)


def write(
    recording: Recording, kept: Sequence[Labelled], kind: str, place: str, about: Mapping[str, Any], *, overwrite: bool
) -> Path:
    """Write the kept episodes with their rewards, complete or not at all.

    Args:
        recording: the episodes come from.
        kept: labels of the episodes to write.
        kind: one of ``FORMATS``.
        place: as in ``check_place``.
        about: plain values that say how the rewards were made, kept in the dataset.
        overwrite: whether what is there may be replaced.

    Returns:
        The file or folder.

    Raises:
        DataError: as ``check_place``, or if the recording does not hold what its episodes say.
    """
    check_place(recording, kind, place, overwrite=overwrite)
    module = _module(kind)
    path: Path = module.path_of(place)
    module.write(recording, kept, path, about)
    return path
