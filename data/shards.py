"""Prepared datasets on disk: tars of whole episodes with an index, and columns of rewards beside them.

A dataset is a folder of ``shard-000000.tar``, ... in WebDataset's layout, one ``<episode id>.safetensors`` per episode,
and ``index.json``; see ``docs/data-format.md``. A folder appears complete or not at all.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as schema
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from dynarep.configs.params import ENVIRONMENT, NAME, EnvironmentId, Name, open_file
from dynarep.data.folders import parse_json, read_content, whole_folder
from dynarep.data.schema import DataError, Episode, Spec
from dynarep.data.shard import INDEX_BYTES, SHA256, SHARD_FILE, Shard, check_content, missing_shard
from dynarep.data.statistics import Moments

SCHEMA_VERSION = 3
"""Raised whenever what is written, or how sources are read, changes: older datasets are then prepared again."""

SHARD_BYTES = 100_000_000
COLUMN_BYTES = 1 << 36
"""Largest file of columns that is read."""
ABOUT = "about.json"
"""The file beside columns that says what they belong to, and the SHA-256 of each of their files."""
BOUND_TOLERANCE = 1e-6
"""How far an action may exceed its bound by rounding, relative to bounds beyond 1."""
STATISTICS_TOLERANCE = 1e-9
"""Largest difference between recorded and recomputed statistics, relative to mean and deviation together."""
ARRAYS = ("observations", "next_observations", "actions", "rewards")
FLAGS = ("terminated", "truncated")
INDEX_KEYS = ("name", "env", "spec", "transitions", "fingerprint", "statistics", "returns", "shards", "provenance")
FINGERPRINT = "dataset_fingerprint"


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
    if env is not None and not ENVIRONMENT.fullmatch(env):
        raise DataError(f"dataset {name}: env: found {env!r:.200}, expected the id of a Gymnasium environment")
    spec: Spec | None = None
    summary = _Summary()
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
                    summary.add(episode, sample)
                    size += tar.write({"__key__": episode.id, "safetensors": save(sample)})
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
        index = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "env": env,
            "spec": dataclasses.asdict(spec),
            "transitions": transitions,
            "fingerprint": summary.fingerprint(spec),
            "statistics": summary.statistics(),
            "returns": None if returns is None else list(returns),
            "shards": shards,
            "provenance": provenance,
        }
        (new / "index.json").write_text(json.dumps(index, indent=1, allow_nan=False) + "\n")


class _Summary:
    """What follows from all episodes of a dataset, taken in one by one."""

    def __init__(self) -> None:
        self._content = sha256()
        self._moments = {"observation": Moments(), "action": Moments(), "reward": Moments()}

    def add(self, episode: Episode, sample: Mapping[str, np.ndarray]) -> None:
        """Take in an episode, and its arrays as ``_sample`` returns them."""
        self._content.update(episode.id.encode())
        for key, values in sample.items():
            self._content.update(f" {key} {values.shape} ".encode())
            self._content.update(values.data)
        columns = {"observation": episode.current, "action": episode.actions, "reward": episode.rewards}
        for key, column in columns.items():
            if column is not None:
                self._moments[key].add(column)

    def fingerprint(self, spec: Spec) -> str:
        """Hash of the episodes and their spec."""
        content = self._content.copy()
        content.update(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode())
        return content.hexdigest()

    def statistics(self) -> dict[str, list[float]]:
        """Moments by their names in the index."""
        return {
            f"{key}_{moment}": getattr(moments, moment)
            for key, moments in self._moments.items()
            if moments.count
            for moment in ("mean", "std")
        }


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
    _check_actions(f"dataset {name}", episode, expected)


def _check_actions(where: str, episode: Episode, spec: Spec) -> None:
    """Actions lie within the bounds, up to rounding."""
    if episode.actions is None:
        return
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    slack = [BOUND_TOLERANCE * np.maximum(1, np.abs(bound)) for bound in (low, high)]
    outside = (episode.actions < low - slack[0]) | (episode.actions > high + slack[1])
    if outside.any():
        row, axis = np.argwhere(outside)[0]
        raise DataError(
            f"{where}: episode {episode.id}: actions: found {episode.actions[row, axis]} in row {row}, component {axis}, "
            f"expected a number in [{low[axis]}, {high[axis]}]"
        )


def check_episode(where: Path | str, episode: Episode, spec: Spec) -> None:
    """An episode is one of a dataset with this spec.

    Args:
        where: it was read from, for messages.
        episode: to check.
        spec: of its dataset.

    Raises:
        DataError: if its dimensions or rewards are others, or an action is out of bounds.
    """
    form = {
        "observation_dim": episode.observations.shape[1],
        "action_dim": 0 if episode.actions is None else episode.actions.shape[1],
        "has_rewards": episode.rewards is not None,
    }
    for field, found in form.items():
        if found != getattr(spec, field):
            raise DataError(
                f"{where}: episode {episode.id}: {field}: found {found}, expected {getattr(spec, field)} as in "
                "index.json; prepare the dataset again"
            )
    _check_actions(str(where), episode, spec)


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
    if not path.exists():
        raise DataError(f"{path}: no such file; the dataset {folder.name} is not prepared")
    return parse_index(read_content(path, INDEX_BYTES), str(path))


def parse_index(content: bytes, where: str) -> dict[str, Any]:
    """The index of a prepared dataset from the bytes of ``index.json``.

    Args:
        content: of the file.
        where: it was read from, for messages.

    Raises:
        DataError: if it is unreadable, incomplete, contradicts itself or is of another schema version.
    """
    index = parse_json(content, where)
    version = index.get("schema_version") if isinstance(index, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        advice = "update dynarep" if isinstance(version, int) and version > SCHEMA_VERSION else "prepare it again"
        raise DataError(f"{where}: schema_version: found {version!r}, expected {SCHEMA_VERSION}; {advice}")
    missing = [key for key in INDEX_KEYS if key not in index]
    if missing:
        raise DataError(f"{where}: missing {', '.join(missing)}; prepare the dataset again")
    try:
        _check_index(TypeAdapter(_Index).validate_json(content, strict=True), where)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        found = "an unknown key" if "unexpected" in problem["type"] else f"{problem['input']!r:.200}"
        raise DataError(f"{where}: {key}: found {found}: {problem['msg']}; prepare the dataset again") from None
    return dict(index)


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_STRICT = ConfigDict(extra="forbid")


@schema(frozen=True, kw_only=True, config=_STRICT)
class _IndexedSpec:
    observation_dim: int = Field(ge=1)
    action_dim: int = Field(ge=0)
    action_low: list[_Finite]
    action_high: list[_Finite]
    has_rewards: bool


@schema(frozen=True, kw_only=True, config=_STRICT)
class _IndexedShard:
    file: str = Field(pattern=f"^(?:{SHARD_FILE.pattern})$")
    bytes: int = Field(ge=1, le=1 << 50)
    sha256: str = Field(pattern=f"^(?:{SHA256.pattern})$")
    episodes: list[Name] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=1)]]


@schema(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class _Provenance:
    cards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    terminals_inside: int = Field(0, ge=0)


@schema(frozen=True, kw_only=True, config=_STRICT)
class _Index:
    """``index.json``, see ``docs/data-format.md``."""

    schema_version: int
    name: Name
    env: EnvironmentId | None
    spec: _IndexedSpec
    transitions: int
    fingerprint: str = Field(pattern=f"^(?:{SHA256.pattern})$")
    statistics: dict[str, list[_Finite]]
    returns: list[_Finite] | None
    shards: list[_IndexedShard] = Field(min_length=1)
    provenance: _Provenance
    location: str = Field(".", min_length=1)


def _check_index(index: _Index, where: str) -> None:
    """The parts of an index agree with each other."""

    def require(holds: bool, key: str, found: object, expected: object) -> None:
        if not holds:
            raise DataError(f"{where}: {key}: found {found}, expected {expected}; prepare the dataset again")

    spec, files, owner = index.spec, set[str](), dict[str, str]()
    low, high, size = spec.action_low, spec.action_high, spec.action_dim
    require(len(low) == len(high) == size, "spec", f"bounds for {len(low)} and {len(high)} actions", size)
    require(all(a < b for a, b in zip(low, high, strict=True)), "spec", f"bounds {low} and {high}", "low < high")
    width = 4 * (spec.observation_dim + size + spec.has_rewards)
    for shard in index.shards:
        key = f"shards: {shard.file}"
        require(shard.file not in files, key, "it twice", "each shard once")
        files.add(shard.file)
        lengths = f"{len(shard.episodes)} episodes and {len(shard.steps)} lengths"
        require(len(shard.episodes) == len(shard.steps), key, lengths, "one length of at least 1 for each")
        for episode in shard.episodes:
            require(episode not in owner, key, f"episode {episode}, as in {owner.get(episode)}", "each episode once")
            owner[episode] = shard.file
        claimed = f"{sum(shard.steps):,} steps of {width} bytes in {shard.bytes:,} bytes"
        require(sum(shard.steps) * width <= shard.bytes, key, claimed, "no more than are stored")
    steps = sum(sum(shard.steps) for shard in index.shards)
    require(index.transitions == steps, "transitions", index.transitions, f"{steps}, the sum of all steps")
    sizes = {"observation": spec.observation_dim} | ({"action": size} if size else {})
    sizes |= {"reward": 1} if spec.has_rewards else {}
    expected = {f"{key}_{moment}": count for key, count in sizes.items() for moment in ("mean", "std")}
    found = {key: len(values) for key, values in index.statistics.items()}
    require(found == expected, "statistics", f"numbers {found}", expected)
    least = min(min(values) for key, values in index.statistics.items() if key.endswith("_std"))
    require(least >= 0, "statistics", f"the deviation {least}", "none below 0")
    count = None if index.returns is None else len(index.returns)
    require(count in ((len(owner),) if spec.has_rewards else (None, len(owner))), "returns", count, len(owner))


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
    summary = _Summary()
    for shard in dataset.shards:
        for episode in _read_shard(shard_path(dataset, shard), shard, dataset.spec):
            summary.add(episode, _sample(episode))
            episodes.append(episode)
    _check_summary(dataset, summary)
    fields = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(DatasetInfo)}
    return Dataset(**fields, episodes=episodes)


def first_episode(dataset: ShardedDataset) -> Episode:
    """The first episode of a dataset, its shard checked as a whole.

    Raises:
        DataError: as ``load_shards``.
    """
    return _read_shard(shard_path(dataset, dataset.shards[0]), dataset.shards[0], dataset.spec)[0]


def _check_summary(dataset: ShardedDataset, summary: _Summary) -> None:
    """What the index says about all episodes together is so."""
    where, advice = f"{dataset.location}: index.json", "as its episodes have; prepare the dataset again"
    if (fingerprint := summary.fingerprint(dataset.spec)) != dataset.fingerprint:
        raise DataError(f"{where}: fingerprint: found {dataset.fingerprint}, expected {fingerprint} {advice}")
    statistics = summary.statistics()
    for key, expected in statistics.items():
        name = key.rpartition("_")[0]
        scale = np.abs(statistics[f"{name}_mean"]) + statistics[f"{name}_std"]
        wrong = np.abs(np.subtract(dataset.statistics[key], expected)) > STATISTICS_TOLERANCE * scale
        if wrong.any():
            i = int(np.argmax(wrong))
            found = dataset.statistics[key][i]
            raise DataError(
                f"{where}: statistics: {key}: found {found} for column {i}, expected {expected[i]} {advice}"
            )


def shard_path(dataset: ShardedDataset, shard: Shard) -> Path:
    """A shard as a local file; one at a URL is downloaded once and kept in the cache."""
    if isinstance(dataset.location, Path):
        return dataset.location / shard.file
    from dynarep.data.download import cache_folder
    from dynarep.data.remote import fetch_shard

    return fetch_shard(dataset.location, shard, cache_folder() / "shards")


def _read_shard(path: Path, shard: Shard, spec: Spec) -> list[Episode]:
    with open_shard(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(shard.bytes) if size == shard.bytes else b""
    check_content(path, shard, size, lambda: sha256(content).hexdigest())
    return [
        read_episode(path, name, content[offset : offset + size], spec, steps)
        for (name, offset, size), steps in zip(
            shard_members(io.BytesIO(content), path, shard), shard.steps, strict=True
        )
    ]


def open_shard(path: Path, place: Path | str | None = None) -> io.BufferedReader:
    """Open the file of a shard.

    Args:
        path: of the file.
        place: of the shard, for messages; the file itself by default.

    Raises:
        DataError: if there is no file.
    """
    try:
        return open_file(path)
    except FileNotFoundError:
        raise missing_shard(place or path) from None
    except OSError as error:
        raise DataError(f"{place or path}: cannot be read: {error.strerror}") from None


def shard_members(file: BinaryIO, place: Path | str, shard: Shard) -> list[tuple[str, int, int]]:
    """Name, offset and size of each episode of a shard: plain files in a plain tar, in the order of the index.

    Args:
        file: of the shard, whose size and hash are checked.
        place: of the shard, for messages.
        shard: as the index lists it.

    Raises:
        DataError: if it is no such tar, or holds anything else.
    """
    found: list[tuple[str, int, int]] = []
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.sparse is not None:
                    raise DataError(f"{place}: {member.name}: found a link, folder or device, expected a file")
                if len(found) == len(shard.episodes) or not 0 <= member.size <= shard.bytes - member.offset_data:
                    break
                found.append((member.name, member.offset_data, member.size))
            else:
                check_members(place, shard, [name for name, _, _ in found])
                return found
    except DataError:
        raise
    except Exception as error:  # of tarfile, by the damage: TarError, ValueError, RecursionError, OverflowError, ...
        raise DataError(f"{place}: not a readable tar: {error}; prepare the dataset again") from error
    raise DataError(f"{place}: {member.name}: found a member too many or beyond the end; prepare the dataset again")


def check_members(place: Path | str, shard: Shard, names: Sequence[str]) -> None:
    """A shard holds the episodes that the index lists for it.

    Raises:
        DataError: if it does not.
    """
    if list(names) != [f"{episode}.safetensors" for episode in shard.episodes]:
        raise DataError(f"{place}: does not hold the episodes that index.json lists for it; prepare the dataset again")


def read_episode(place: Path | str, member: str, content: bytes, spec: Spec, steps: int) -> Episode:
    """An episode from a member of a shard.

    Args:
        place: of the shard, for messages.
        member: its name, ``<episode id>.safetensors``.
        content: of the member.
        spec: of the dataset.
        steps: transitions that the index lists for it.

    Raises:
        DataError: if it is no episode, or not one that the index describes.
    """
    where = f"{place}: {member}"
    try:
        arrays = load(content)
    except Exception as error:  # SafetensorError, KeyError for types that numpy lacks, ... by the damage
        raise DataError(f"{where}: not a readable safetensors file: {error}") from error
    unknown = [name for name in arrays if name not in (*ARRAYS, *FLAGS)]
    if unknown or "observations" not in arrays:
        found = f"the unknown {unknown[0]!r:.100}" if unknown else "no observations"
        raise DataError(f"{where}: found {found}, expected arrays {', '.join((*ARRAYS, *FLAGS))}")
    for name in FLAGS:
        if name not in arrays or arrays[name].dtype != np.bool_ or arrays[name].ndim:
            form = f"{arrays[name].dtype} of shape {arrays[name].shape}" if name in arrays else "nothing"
            raise DataError(f"{where}: {name}: found {form}, expected a truth value")
    try:
        episode = Episode(
            id=member.removesuffix(".safetensors"),
            **{name: arrays.get(name) for name in ARRAYS},  # type: ignore[arg-type]
            **{name: bool(arrays[name]) for name in FLAGS},  # type: ignore[arg-type]
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    check_episode(place, episode, spec)
    if episode.length != steps:
        raise DataError(
            f"{where}: found {episode.length} transitions, expected {steps} as in index.json; prepare the dataset again"
        )
    return episode


def parts(dataset: Dataset, steps: int = 10_000) -> dict[str, list[Episode]]:
    """The episodes of a dataset as pieces of work: runs of at least ``steps`` steps within a shard, or what is left of it.

    Returns:
        The pieces by name (shard, first and last episode), all of them in the dataset's order.
    """
    episodes = {episode.id: episode for episode in dataset.episodes}
    found: dict[str, list[Episode]] = {}
    for shard in listed_shards(dataset):
        rest = [episodes[name] for name in shard["episodes"]]
        while rest:
            ends = np.cumsum([episode.length for episode in rest])
            size = int(np.searchsorted(ends, steps)) + 1
            piece, rest = rest[:size], rest[size:]
            found[f"{Path(shard['file']).stem}, {piece[0].id} to {piece[-1].id}"] = piece
    return found


def listed_shards(dataset: DatasetInfo) -> list[dict[str, Any]]:
    """The shards of a dataset as its index lists them now.

    Raises:
        DataError: if the index is not usable, or is that of other content by now.
    """
    index = read_index(dataset.folder)
    if index["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"{dataset.folder / 'index.json'}: fingerprint: found {index['fingerprint']}, expected {dataset.fingerprint}; "
            "the dataset has changed since it was read"
        )
    return list(index["shards"])


def write_rewards(folder: Path, dataset: Dataset, rewards: Mapping[str, np.ndarray]) -> None:
    """Write rewards of a dataset's transitions as ``<folder>/rewards/<shard>.safetensors``, one file per shard.

    Args:
        folder: receives the folder ``rewards``, as a whole, in place of one that was there.
        dataset: the rewards belong to its episodes, and to no other content.
        rewards: per episode id float32 (T,), or (R, T) for R replicas, the same R for all.

    Raises:
        DataError: if an episode is missing or unknown, or an array has a wrong shape or is not finite.
    """
    with np.errstate(over="ignore"):
        rewards = {name: np.asarray(values).astype(np.float32) for name, values in rewards.items()}
    _check_rewards(f"rewards of {dataset.name}", dataset, rewards)
    with whole_folder(folder / "rewards") as new:
        write_columns(new, dataset, lambda names: {name: rewards[name] for name in names})


def write_columns(
    folder: Path, dataset: DatasetInfo, columns: Callable[[Sequence[str]], Mapping[str, np.ndarray]], **about: str
) -> None:
    """Write columns of a dataset, one file per shard, and ``about.json`` with the SHA-256 of each file.

    Args:
        folder: an existing one.
        dataset: the columns belong to its episodes, and to no other content.
        columns: of the episodes of a shard, by their ids.
        about: kept in ``about.json``.

    Raises:
        DataError: if the index is not usable, or the disk is full.
    """
    digests = {}
    for shard in listed_shards(dataset):
        file = folder / f"{Path(shard['file']).stem}.safetensors"
        arrays = {name: np.ascontiguousarray(values) for name, values in columns(shard["episodes"]).items()}
        try:
            # a single key, because safetensors orders several at random, so that equal columns would be unequal files
            save_file(arrays, file, metadata={FINGERPRINT: dataset.fingerprint})
        except SafetensorError as error:
            raise DataError(f"{folder.parent / file.name}: cannot be written: {error}") from None
        digests[file.name] = _measure(file)["sha256"]
    content = {"dataset": dataset.name, **about, "sha256": digests}
    (folder / ABOUT).write_text(json.dumps(content, indent=1) + "\n")


def read_columns(folder: Path, kind: str, dataset: DatasetInfo) -> tuple[dict[str, np.ndarray], Callable[[], None]]:
    """Columns that lie beside a dataset's shards, ``<folder>/<kind>/*.safetensors``, per episode id.

    Returns:
        The columns, and a check of the files' hashes, to be called when all that can be said more clearly is checked.

    Raises:
        DataError: if there are none, or a file is damaged or belongs to other content.
    """
    files = sorted((folder / kind).glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder / kind}: found no {kind}")
    place = folder / kind / ABOUT
    about = parse_json(read_content(place, INDEX_BYTES), place) if place.exists() else {}
    if not isinstance(about, dict) or not isinstance(about.get("sha256", {}), dict):
        raise DataError(f"{place}: found no mapping of files to their hashes")
    columns: dict[str, np.ndarray] = {}
    digests: dict[str, str] = {}
    for path in files:
        content = read_content(path, COLUMN_BYTES)
        digests[path.name] = sha256(content).hexdigest()
        try:
            found = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except Exception as error:  # SafetensorError, KeyError for types that numpy lacks, ... by the damage
            raise DataError(f"{path}: not a readable safetensors file: {error}") from error
        fingerprint = header.get("__metadata__", {}).get(FINGERPRINT)
        if fingerprint != dataset.fingerprint:
            raise DataError(
                f"{path}: found {kind} of {about.get('dataset', 'a dataset')} with fingerprint {fingerprint}, "
                f"expected those of {dataset.name} with fingerprint {dataset.fingerprint}"
            )
        if twice := columns.keys() & found.keys():
            raise DataError(f"{path}: found episode {min(twice)} in an earlier file too, expected it once")
        columns.update(found)

    def check() -> None:
        recorded = about.get("sha256", {})
        for name in sorted(digests.keys() | recorded.keys()):
            found, expected = digests.get(name), recorded.get(name)
            if found != expected:
                raise DataError(
                    f"{folder / kind / name}: found sha256 {found}, expected {expected} as in {ABOUT}; make {kind} again"
                )

    return columns, check


def read_rewards(folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Rewards written by ``write_rewards`` for exactly this dataset, per episode id in the dataset's order.

    Raises:
        DataError: if there are none, a file is damaged or belongs to other content, or an episode is missing or has
            another length.
    """
    rewards, check_digests = read_columns(folder, "rewards", dataset)
    _check_rewards(str(folder / "rewards"), dataset, rewards)
    check_digests()
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
        shape = rewards[name].shape
        if rewards[name].dtype != np.float32:
            raise DataError(f"{where}: episode {name}: found {rewards[name].dtype}, expected float32")
        if len(shape) not in (1, 2) or shape != (*leading, length):
            raise DataError(f"{where}: episode {name}: found shape {shape}, expected {(*leading, length)}")
        if not np.isfinite(rewards[name]).all():
            column = int(np.argwhere(~np.isfinite(rewards[name]))[0, -1])
            raise DataError(
                f"{where}: episode {name}: found a number that is not finite in transition {column}, expected float32"
            )
