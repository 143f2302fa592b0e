"""Prepared datasets on disk: tars of whole episodes with an index, and columns of rewards beside them.

A dataset is a folder of ``shard-000000.tar``, ... in WebDataset's layout, one ``<episode id>.safetensors`` per episode,
and ``index.json``; see ``docs/data-format.md``. A folder appears complete or not at all.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from dynarep.data.folders import whole_folder
from dynarep.data.schema import NAME, DataError, Episode, Spec
from dynarep.data.statistics import Moments

SCHEMA_VERSION = 1
"""Raised whenever what is written, or how sources are read, changes: older datasets are then prepared again."""

SHARD_BYTES = 100_000_000
ARRAYS = ("observations", "next_observations", "actions", "rewards")
FLAGS = ("terminated", "truncated")
INDEX_KEYS = ("name", "env", "spec", "transitions", "fingerprint", "statistics", "returns", "shards", "provenance")
FINGERPRINT = "dataset_fingerprint"

Bounds = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A prepared dataset in memory.

    Args:
        name: of its card.
        folder: where it lies.
        spec: what its episodes have in common.
        env: Gymnasium id of the environment, if known.
        fingerprint: hash of the episodes and the spec, independent of where and in how many shards they lie.
        episodes: in the dataset's order.
        statistics: per column ``observation_mean`` and ``observation_std`` over the states s_t, with actions
            ``action_mean`` and ``action_std``, with rewards ``reward_mean`` and ``reward_std``; floats.
        returns: return of each whole episode before subsampling; kept where ``observations_only`` dropped the rewards.
            None if the source has no rewards.
    """

    name: str
    folder: Path
    spec: Spec
    env: str | None
    fingerprint: str
    episodes: list[Episode]
    statistics: dict[str, list[float]]
    returns: list[float] | None


def write_dataset(
    folder: Path,
    name: str,
    episodes: Iterable[Episode],
    *,
    provenance: dict[str, Any],
    env: str | None,
    bounds: Bounds,
    returns: Sequence[float] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a dataset as a whole, in place of what was there.

    Args:
        folder: becomes the dataset.
        name: of the dataset.
        episodes: at least one, unique ids, equal dimensions; consumed one at a time.
        provenance: JSON, stored as it is.
        env: Gymnasium id.
        bounds: lower and upper action bounds, action_dim numbers each; ignored without actions.
        returns: one per episode; by default the sums of the rewards, if there are any.
        shard_bytes: a shard is closed when it has grown beyond this.

    Raises:
        DataError: if there is no episode, two share an id, or they differ in dimensions or in having rewards.
    """
    from webdataset import TarWriter

    if not NAME.fullmatch(name):
        raise DataError(f"dataset name: found {name!r}, expected at most 80 letters, digits, '-' and '_'")
    content = sha256()
    spec: Spec | None = None
    moments = {"observation": Moments(), "action": Moments(), "reward": Moments()}
    shards: list[dict[str, Any]] = []
    sums: list[float | None] = []
    seen: set[str] = set()
    transitions = 0
    with whole_folder(folder) as new:
        source = iter(episodes)
        episode = next(source, None)
        while episode is not None:
            file = new / f"shard-{len(shards):06d}.tar"
            ids: list[str] = []
            size = 0
            with file.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
                while episode is not None and size < shard_bytes:
                    found = _spec(episode, bounds)
                    spec = spec or found
                    _check_member(name, episode, found, spec, seen)
                    sample = _sample(episode)
                    content.update(episode.id.encode())
                    for key, values in sample.items():
                        content.update(f" {key} {values.shape} ".encode() + values.tobytes())
                    size += tar.write({"__key__": episode.id, "safetensors": save(sample)})
                    columns = {"observation": episode.current, "action": episode.actions, "reward": episode.rewards}
                    for key, column in columns.items():
                        if column is not None:
                            moments[key].add(column)
                    ids.append(episode.id)
                    sums.append(episode.return_)
                    transitions += episode.length
                    episode = next(source, None)
            shards.append({"file": file.name, **_measure(file), "episodes": ids})
        if spec is None:
            raise DataError(f"dataset {name}: found no episodes, expected at least one")
        if returns is None and spec.has_rewards:
            returns = [value for value in sums if value is not None]
        if returns is not None and len(returns) != len(sums):
            raise DataError(
                f"dataset {name}: returns: found {len(returns)}, expected one for each of {len(sums)} episodes"
            )
        content.update(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode())
        index = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "env": env,
            "spec": dataclasses.asdict(spec),
            "transitions": transitions,
            "fingerprint": content.hexdigest(),
            "statistics": {
                f"{key}_{moment}": getattr(moments[key], moment)
                for key in moments
                if moments[key].count
                for moment in ("mean", "std")
            },
            "returns": None if returns is None else list(returns),
            "shards": shards,
            "provenance": provenance,
        }
        (new / "index.json").write_text(json.dumps(index, indent=1, allow_nan=False) + "\n")


def _sample(episode: Episode) -> dict[str, np.ndarray]:
    arrays = {name: getattr(episode, name) for name in ARRAYS}
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items() if values is not None}
    return {**arrays, **{name: np.array(getattr(episode, name)) for name in FLAGS}}


def _spec(episode: Episode, bounds: Bounds) -> Spec:
    action_dim = 0 if episode.actions is None else episode.actions.shape[1]
    low, high = (tuple(map(float, bound)) if action_dim else () for bound in bounds)
    if not len(low) == len(high) == action_dim:
        raise DataError(
            f"episode {episode.id}: actions: found {action_dim} numbers, but bounds for {len(low)} and {len(high)}"
        )
    return Spec(
        observation_dim=episode.observations.shape[1],
        action_dim=action_dim,
        action_low=low,
        action_high=high,
        has_rewards=episode.rewards is not None,
    )


def _check_member(name: str, episode: Episode, found: Spec, expected: Spec, seen: set[str]) -> None:
    if episode.id in seen:
        raise DataError(f"dataset {name}: episode {episode.id} occurs twice")
    seen.add(episode.id)
    for field in dataclasses.fields(Spec):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if a != b:
            raise DataError(f"dataset {name}: episode {episode.id}: {field.name}: found {a}, expected {b} as before it")


def _measure(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared dataset, see ``docs/data-format.md``.

    Raises:
        DataError: if it is missing, unreadable, incomplete or of another schema version.
    """
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the dataset {folder.name} is not prepared") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    version = index.get("schema_version") if isinstance(index, dict) else None
    if version != SCHEMA_VERSION:
        advice = "update dynarep" if isinstance(version, int) and version > SCHEMA_VERSION else "prepare it again"
        raise DataError(f"{path}: schema_version: found {version}, expected {SCHEMA_VERSION}; {advice}")
    missing = [key for key in INDEX_KEYS if key not in index]
    if missing:
        raise DataError(f"{path}: missing {', '.join(missing)}; prepare the dataset again")
    return dict(index)


def load_dataset(folder: Path) -> Dataset:
    """Read a prepared dataset into memory, every shard checked against its recorded size and hash.

    Raises:
        DataError: if the index is not usable, or a shard is missing, truncated or changed.
    """
    index = read_index(folder)
    episodes: list[Episode] = []
    for shard in index["shards"]:
        found = list(_read_shard(folder / shard["file"], shard))
        if [episode.id for episode in found] != shard["episodes"]:
            raise DataError(f"{folder / shard['file']}: does not hold the episodes that index.json lists for it")
        episodes += found
    bounds = {key: tuple(index["spec"][key]) for key in ("action_low", "action_high")}
    return Dataset(
        name=index["name"],
        folder=folder,
        spec=Spec(**{**index["spec"], **bounds}),
        env=index["env"],
        fingerprint=index["fingerprint"],
        episodes=episodes,
        statistics=index["statistics"],
        returns=index["returns"],
    )


def _read_shard(path: Path, shard: Mapping[str, Any]) -> Iterator[Episode]:
    from webdataset.tariterators import tar_file_iterator

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, but index.json lists it; prepare the dataset again") from None
    if len(content) != shard["bytes"]:
        raise DataError(f"{path}: found {len(content)} bytes, expected {shard['bytes']}; prepare the dataset again")
    digest = sha256(content).hexdigest()
    if digest != shard["sha256"]:
        raise DataError(f"{path}: found sha256 {digest}, expected {shard['sha256']}; prepare the dataset again")
    for member in tar_file_iterator(io.BytesIO(content)):
        arrays = load(member["data"])
        yield Episode(
            id=member["fname"].removesuffix(".safetensors"),
            observations=arrays["observations"],
            next_observations=arrays.get("next_observations"),
            actions=arrays.get("actions"),
            rewards=arrays.get("rewards"),
            terminated=bool(arrays["terminated"]),
            truncated=bool(arrays["truncated"]),
        )


def write_rewards(folder: Path, dataset: Dataset, rewards: Mapping[str, np.ndarray]) -> None:
    """Write rewards of a dataset's transitions as ``<folder>/rewards/<shard>.safetensors``, one file per shard.

    Args:
        folder: receives the folder ``rewards``, as a whole, in place of one that was there.
        dataset: the rewards belong to its episodes, and to no other content.
        rewards: per episode id float32 (T,), or (R, T) for R replicas, the same R for all.

    Raises:
        DataError: if an episode is missing or unknown, or an array has a wrong shape or is not finite.
    """
    shards = read_index(dataset.folder)["shards"]
    _check_rewards(f"rewards of {dataset.name}", dataset, rewards)
    with whole_folder(folder / "rewards") as new:
        for shard in shards:
            columns = {name: np.ascontiguousarray(rewards[name], np.float32) for name in shard["episodes"]}
            file = new / f"{Path(shard['file']).stem}.safetensors"
            save_file(columns, file, metadata={FINGERPRINT: dataset.fingerprint, "dataset": dataset.name})


def read_rewards(folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Rewards written by ``write_rewards`` for exactly this dataset, per episode id in the dataset's order.

    Raises:
        DataError: if there are none, a file is damaged or belongs to other content, or an episode is missing or has
            another length.
    """
    files = sorted((folder / "rewards").glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder / 'rewards'}: found no rewards")
    rewards: dict[str, np.ndarray] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a readable safetensors file: {error}") from error
        if metadata.get(FINGERPRINT) != dataset.fingerprint:
            raise DataError(
                f"{path}: found rewards of {metadata.get('dataset')} with fingerprint {metadata.get(FINGERPRINT)}, "
                f"expected those of {dataset.name} with fingerprint {dataset.fingerprint}"
            )
        rewards.update(columns)
    _check_rewards(str(folder / "rewards"), dataset, rewards)
    return {episode.id: rewards[episode.id] for episode in dataset.episodes}


def _check_rewards(where: str, dataset: Dataset, rewards: Mapping[str, np.ndarray]) -> None:
    lengths = {episode.id: episode.length for episode in dataset.episodes}
    for fault, ids in (
        ("misses", lengths.keys() - rewards.keys()),
        ("has the unknown", rewards.keys() - lengths.keys()),
    ):
        if ids:
            raise DataError(f"{where}: {fault} episode {min(ids)} ({len(ids)} in total)")
    leading = np.shape(next(iter(rewards.values())))[:-1]
    for name, length in lengths.items():
        shape = np.shape(rewards[name])
        if len(shape) not in (1, 2) or shape != (*leading, length):
            raise DataError(f"{where}: episode {name}: found shape {shape}, expected {(*leading, length)}")
        if not np.isfinite(rewards[name]).all():
            column = int(np.argwhere(~np.isfinite(rewards[name]))[0, -1])
            raise DataError(f"{where}: episode {name}: found a number that is not finite in transition {column}")
