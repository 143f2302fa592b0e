"""Minari datasets, made by Minari itself, where it keeps its own.

Of a recording that is one, observations stay as they are, dictionaries too, and so do spaces and the environment's spec.
Others get a box without bounds. A new dataset is made in a folder of its own and moved when it is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.data.folders import whole_folder
from dynarep.data.schema import DataError
from dynarep.data.writers import Labelled, Recording, number_of

VARIABLE = "MINARI_DATASETS_PATH"
NAME = re.compile(r"(?:[A-Za-z0-9_.-]+/)*[A-Za-z0-9_.-]+-v[0-9]+")


def path_of(place: str) -> Path:
    """The folder of an id.

    Raises:
        DataError: if it is no id.
    """
    if not NAME.fullmatch(place):
        raise DataError(f"minari: found {place!r}, expected an id such as mine/pick-v0")
    return _root() / place


def _root() -> Path:
    return Path(os.environ.get(VARIABLE) or "~/.minari/datasets").expanduser()


def check(recording: Recording) -> None:
    """Minari is installed.

    Raises:
        DataError: if not.
    """
    try:
        import minari  # noqa: F401
    except ImportError:
        raise DataError("minari: needs the package minari: pip install 'dynarep[minari]'") from None


def write(recording: Recording, kept: Sequence[Labelled], path: Path, about: Mapping[str, Any]) -> None:
    """Have Minari make the dataset.

    Raises:
        DataError: if the recording does not hold the episodes.
    """
    name = path.relative_to(_root()).as_posix()
    with whole_folder(path) as new:
        own = new / "own"
        with _datasets_in(own):
            _make(recording, kept, name, about)
        for part in (own / name).iterdir():
            part.rename(new / part.name)
        shutil.rmtree(own)
    _namespace(name)


def _namespace(name: str) -> None:
    """Minari lists namespaces by a file in their folders."""
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = name.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)


@contextmanager
def _datasets_in(root: Path) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    root.mkdir()
    os.environ[VARIABLE] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _make(recording: Recording, kept: Sequence[Labelled], name: str, about: Mapping[str, Any]) -> None:
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    options: dict[str, Any] = {"algorithm_name": "dynarep", "description": f"Rewards by dynarep: {dict(about)}"}
    if recording.is_of("minari"):
        assert recording.source is not None
        source = minari.MinariDataset(recording.source / "data")
        spaces, env = (source.observation_space, source.action_space), source.env_spec
        buffers = list(_relabelled(source, kept))
    else:
        spec, env = recording.dataset.spec, None
        low, high = (np.array(bound, np.float32) for bound in (spec.action_low, spec.action_high))
        spaces = (Box(-np.inf, np.inf, (spec.observation_dim,), np.float32), Box(low, high, dtype=np.float32))
        buffers = []
        for number, (episode, label) in enumerate(recording.episodes(kept)):
            last = np.arange(episode.length) == episode.length - 1
            states = np.concatenate([episode.current, episode.successors[-1:]])
            buffers.append(
                EpisodeBuffer(
                    id=number,
                    observations=states,
                    actions=episode.actions,
                    rewards=label.rewards.tolist(),
                    terminations=(last & episode.terminated).tolist(),
                    truncations=(last & episode.truncated).tolist(),
                )
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on each piece of metadata that is not given
        made = minari.create_dataset_from_buffers(
            name, buffers, observation_space=spaces[0], action_space=spaces[1], **options
        )
    if env is not None:
        made.storage.update_metadata({"env_spec": env.to_json()})


def _relabelled(source: Any, kept: Sequence[Labelled]) -> Iterator[Any]:
    """Episodes of a Minari dataset with new rewards."""
    from minari.data_collector import EpisodeBuffer

    labels = {number_of(label.episode): label for label in kept}
    numbers = sorted(labels)
    for new, (number, episode) in enumerate(zip(numbers, source.iterate_episodes(numbers), strict=True)):
        label = labels[number]
        if len(episode) != len(label.rewards):
            raise DataError(
                f"{source.id}: episode {number}: found {len(episode)} steps, expected {len(label.rewards)} as in {label.episode}"
            )
        yield EpisodeBuffer(
            id=new,
            observations=episode.observations,
            actions=episode.actions,
            rewards=label.rewards.tolist(),
            terminations=episode.terminations.tolist(),
            truncations=episode.truncations.tolist(),
            infos=episode.infos,
        )
