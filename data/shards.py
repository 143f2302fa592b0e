"""Prepared datasets on disk: tars of whole episodes with an index, and columns of rewards beside them.

A dataset is a folder of ``shard-000000.tar``, ... in WebDataset's layout, one ``<episode id>.safetensors`` per episode,
and ``index.json``; see ``docs/data-format.md``. A folder appears complete or not at all.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

SCHEMA_VERSION = 2
"""Raised whenever what is written, or how sources are read, changes: older datasets are then prepared again."""

SHARD_BYTES = 100_000_000
ARRAYS = ("observations", "next_observations", "actions", "rewards")
FLAGS = ("terminated", "truncated")
INDEX_KEYS = ("name", "env", "spec", "transitions", "fingerprint", "statistics", "returns", "shards", "provenance")
FINGERPRINT = "dataset_fingerprint"
SHARD_FILE = re.compile(r"shard-[0-9]+\.tar")
SHA256 = re.compile("[0-9a-f]{64}")

Bounds = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetInfo:
    """What the index of a prepared dataset says about its episodes as a whole.

    Args:
        name: of its card.
        folder: where its index lies.
        spec: what its episodes have in common.
        env: Gymnasium id of the environment, if known.
        fingerprint: hash of the episodes and the spec, independent of where and in how many shards they lie.
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
    statistics: dict[str, list[float]]
    returns: list[float] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(DatasetInfo):
    """A prepared dataset in memory.

    Args:
        episodes: in the dataset's order.
    """

    episodes: list[Episode]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar of whole episodes, as the index lists it.

    Args:
        file: its name.
        bytes: its size.
        sha256: of its content, in hexadecimal.
        episodes: ids, in the order of the tar.
        steps: transitions of each episode.

    Raises:
        DataError: if it cannot be a shard.
    """

    file: str
    bytes: int
    sha256: str
    episodes: tuple[str, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not SHARD_FILE.fullmatch(self.file) or not SHA256.fullmatch(self.sha256):
            raise DataError(
                f"index.json: shards: found file {self.file!r} with sha256 {self.sha256!r}, expected shard-000000.tar and "
                "the like with 64 hexadecimal digits; prepare the dataset again"
            )
        if len(self.episodes) != len(self.steps) or min(self.steps, default=0) < 1:
            raise DataError(
                f"index.json: {self.file}: found {len(self.episodes)} episodes and {len(self.steps)} lengths, expected one "
                "length of at least 1 for each; prepare the dataset again"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardedDataset(DatasetInfo):
    """A prepared dataset of which only the index is in memory.

    Args:
        location: folder or URL of the shards.
        shards: in the dataset's order.
    """

    location: Path | str
    shards: tuple[Shard, ...]


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
            steps: list[int] = []
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
                    steps.append(episode.length)
                    sums.append(episode.return_)
                    transitions += episode.length
                    episode = next(source, None)
            shards.append({"file": file.name, **_measure(file), "episodes": ids, "steps": steps})
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
        return parse_index(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the dataset {folder.name} is not prepared") from None


def parse_index(content: bytes, where: str) -> dict[str, Any]:
    """The index of a prepared dataset from the bytes of ``index.json``.

    Args:
        content: of the file.
        where: it was read from, for messages.

    Raises:
        DataError: if it is unreadable, incomplete or of another schema version.
    """
    try:
        index = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    version = index.get("schema_version") if isinstance(index, dict) else None
    if version != SCHEMA_VERSION:
        advice = "update dynarep" if isinstance(version, int) and version > SCHEMA_VERSION else "prepare it again"
        raise DataError(f"{where}: schema_version: found {version}, expected {SCHEMA_VERSION}; {advice}")
    missing = [key for key in INDEX_KEYS if key not in index]
    if missing:
        raise DataError(f"{where}: missing {', '.join(missing)}; prepare the dataset again")
    return dict(index)


def open_dataset(folder: Path) -> ShardedDataset:
    """A prepared dataset by its index alone; no shard is read.

    Raises:
        DataError: if the index is not usable.
    """
    index = read_index(folder)
    place = index.get("location", ".")
    return open_index(index, folder, place if "://" in place else folder / place)


def open_index(index: Mapping[str, Any], folder: Path, location: Path | str) -> ShardedDataset:
    """A dataset by the content of its index.

    Args:
        index: from ``read_index`` or ``parse_index``.
        folder: where the index lies.
        location: folder or URL of the shards.
    """
    bounds = {key: tuple(index["spec"][key]) for key in ("action_low", "action_high")}
    lists = ("episodes", "steps")
    return ShardedDataset(
        **{key: index[key] for key in ("name", "env", "fingerprint", "statistics", "returns")},
        folder=folder,
        spec=Spec(**{**index["spec"], **bounds}),
        location=location,
        shards=tuple(Shard(**{**shard, **{key: tuple(shard[key]) for key in lists}}) for shard in index["shards"]),
    )


def load_dataset(folder: Path) -> Dataset:
    """Read a prepared dataset into memory, every shard checked against its recorded size and hash.

    Raises:
        DataError: if the index is not usable, or a shard is missing, truncated or changed.
    """
    return load_shards(open_dataset(folder))


def load_shards(dataset: ShardedDataset) -> Dataset:
    """Read all episodes of a dataset into memory, every shard checked against its recorded size and hash.

    Raises:
        DataError: if a shard is missing, truncated or changed, or cannot be had.
    """
    episodes: list[Episode] = []
    for shard in dataset.shards:
        path = shard_path(dataset, shard)
        found = list(_read_shard(path, shard))
        check_members(path, shard, [episode.id for episode in found], [episode.length for episode in found])
        episodes += found
    fields = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(DatasetInfo)}
    return Dataset(**fields, episodes=episodes)


def shard_path(dataset: ShardedDataset, shard: Shard) -> Path:
    """A shard as a local file; one at a URL is downloaded once and kept in the cache."""
    if isinstance(dataset.location, Path):
        return dataset.location / shard.file
    from dynarep.data.download import cache_folder
    from dynarep.data.remote import fetch_shard

    return fetch_shard(dataset.location, shard, cache_folder() / "shards")


def _read_shard(path: Path, shard: Shard) -> Iterator[Episode]:
    from webdataset.tariterators import tar_file_iterator

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise missing_shard(path) from None
    check_content(path, shard, len(content), lambda: sha256(content).hexdigest())
    for member in tar_file_iterator(io.BytesIO(content)):
        yield read_episode(member["fname"], member["data"])


def missing_shard(place: Path | str) -> DataError:
    """The error for a shard that is not where it should be."""
    return DataError(f"{place}: no such file, but index.json lists it; prepare the dataset again")


def check_content(place: Path | str, shard: Shard, size: int, digest: Callable[[], str]) -> None:
    """A shard is the one that the index lists.

    Args:
        place: of the shard, for messages.
        shard: as listed.
        size: bytes found.
        digest: gives the SHA-256 found; not called if the size is wrong.

    Raises:
        DataError: if it is not.
    """
    if size != shard.bytes:
        raise DataError(f"{place}: found {size} bytes, expected {shard.bytes}; prepare the dataset again")
    if (found := digest()) != shard.sha256:
        raise DataError(f"{place}: found sha256 {found}, expected {shard.sha256}; prepare the dataset again")


def check_members(place: Path | str, shard: Shard, ids: Sequence[str], steps: Sequence[int] | None = None) -> None:
    """A shard holds the episodes that the index lists for it, of these lengths.

    Raises:
        DataError: if it does not.
    """
    if tuple(ids) != shard.episodes or (steps is not None and tuple(steps) != shard.steps):
        raise DataError(f"{place}: does not hold the episodes that index.json lists for it; prepare the dataset again")


def read_episode(member: str, content: bytes) -> Episode:
    """An episode from a member of a shard.

    Args:
        member: its name, ``<episode id>.safetensors``.
        content: of the member.

    Raises:
        DataError: if an array is not as an episode needs it.
    """
    arrays = load(content)
    return Episode(
        id=member.removesuffix(".safetensors"),
        observations=arrays["observations"],
        next_observations=arrays.get("next_observations"),
        actions=arrays.get("actions"),
        rewards=arrays.get("rewards"),
        terminated=bool(arrays["terminated"]),
        truncated=bool(arrays["truncated"]),
    )


def parts(dataset: Dataset, steps: int = 10_000) -> dict[str, list[Episode]]:
    """The episodes of a dataset as pieces of work: runs of at least ``steps`` steps within a shard, or what is left of it.

    Returns:
        The pieces by name (shard, first and last episode), all of them in the dataset's order.
    """
    episodes = {episode.id: episode for episode in dataset.episodes}
    found: dict[str, list[Episode]] = {}
    for shard in read_index(dataset.folder)["shards"]:
        rest = [episodes[name] for name in shard["episodes"]]
        while rest:
            ends = np.cumsum([episode.length for episode in rest])
            size = int(np.searchsorted(ends, steps)) + 1
            piece, rest = rest[:size], rest[size:]
            found[f"{Path(shard['file']).stem}, {piece[0].id} to {piece[-1].id}"] = piece
    return found


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
            # a single key, because safetensors orders several at random, so that equal rewards would be unequal files
            save_file(columns, file, metadata={FINGERPRINT: dataset.fingerprint})


def read_columns(folder: Path, kind: str, dataset: DatasetInfo) -> dict[str, np.ndarray]:
    """Columns that lie beside a dataset's shards, ``<folder>/<kind>/*.safetensors``, per episode id.

    Raises:
        DataError: if there are none, or a file is damaged or belongs to other content.
    """
    files = sorted((folder / kind).glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder / kind}: found no {kind}")
    columns: dict[str, np.ndarray] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                columns.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a readable safetensors file: {error}") from error
        if metadata.get(FINGERPRINT) != dataset.fingerprint:
            raise DataError(
                f"{path}: found {kind} of {metadata.get('dataset', 'a dataset')} with fingerprint {metadata.get(FINGERPRINT)}, "
                f"expected those of {dataset.name} with fingerprint {dataset.fingerprint}"
            )
    return columns


def read_rewards(folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Rewards written by ``write_rewards`` for exactly this dataset, per episode id in the dataset's order.

    Raises:
        DataError: if there are none, a file is damaged or belongs to other content, or an episode is missing or has
            another length.
    """
    rewards = read_columns(folder, "rewards", dataset)
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
