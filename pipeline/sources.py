"""Where a pretraining stage draws from: a dataset in memory, or a stream of one that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from dynarep.configs.params import Field, config
from dynarep.data.resident import TransitionTable
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, ShardedDataset
from dynarep.data.split import held_out, held_out_ids
from dynarep.data.stream import EpisodeBuffer, Transform, read_some


@config
class StreamConfig:
    """How to read a dataset that does not fit in memory, see ``docs/streaming.md``."""

    buffer_steps: int = Field(gt=0)
    """Transitions in memory; a dataset that has no more is read once and kept."""
    reuse: float = Field(default=1.0, gt=0)
    """How often a transition is drawn, on average and by each replica, before another one takes its place."""
    shuffle_shards: int = Field(default=16, gt=0)
    """Shards, from all over the dataset, whose episodes are shuffled together."""
    cache: bool = True
    """Keep downloaded shards in the cache folder."""


class SourceError(ValueError):
    """A source cannot go on; what was trained until then is kept. The message names what and where."""


class Source(Protocol):
    """Episodes as a table that may change from update to update; to be closed."""

    @property
    def table(self) -> TransitionTable:
        """What to draw from at the moment; there after ``advance``."""

    def advance(self, update: int, policy: Any = None) -> None:
        """Have ``table`` hold what belongs to an update, counted from 0 and never going back.

        Args:
            update: number of updates made.
            policy: what acts where a source grows by steps in an environment.
        """

    def state(self) -> dict[str, Any]:
        """What a resumed training has to restore; nothing where the update says it all."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``."""

    def episodes(self) -> Iterable[Episode]:
        """Episodes that stand for the whole dataset."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Resident:
    """A source that never changes.

    Args:
        table: to draw from.
        episodes: of the whole dataset.
    """

    def __init__(self, table: TransitionTable, episodes: list[Episode]) -> None:
        self.table = table
        self._episodes = episodes

    def advance(self, update: int, policy: Any = None) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def episodes(self) -> list[Episode]:
        """All episodes of the dataset."""
        return self._episodes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_source(
    dataset: Dataset | ShardedDataset,
    stream: StreamConfig | None,
    *,
    seed: int,
    draws: int,
    transform: Transform = list,
    device: torch.device,
    ids: Collection[str] | None = None,
    part: int = 0,
    parts: int = 1,
) -> Source:
    """All episodes of a dataset, or some, to draw from.

    Args:
        dataset: in memory if ``stream`` is None, else its index.
        stream: how to read it.
        seed: of the order in which a stream is read.
        draws: transitions that one replica draws per update, over all processes.
        transform: applied to all episodes.
        device: of the table.
        ids: of the episodes, all by default.
        part: of the ``parts`` that processes read of a stream, see ``EpisodeOrder``.
        parts: number of processes.

    Raises:
        DataError: if an episode is longer than the buffer of the stream.
    """
    if isinstance(dataset, Dataset):
        episodes = [episode for episode in dataset.episodes if ids is None or episode.id in ids]
        return Resident(TransitionTable.from_episodes(transform(episodes), device=device), dataset.episodes)
    assert stream is not None
    return EpisodeBuffer(
        dataset,
        steps=stream.buffer_steps,
        steps_per_update=draws / parts / stream.reuse,  # the processes share the draws
        seed=seed,
        shuffle_shards=stream.shuffle_shards,
        cache=stream.cache,
        transform=transform,
        device=device,
        ids=ids,
        part=part,
        parts=parts,
    )


def open_split(
    dataset: Dataset | ShardedDataset,
    stream: StreamConfig | None,
    *,
    fraction: float,
    seed: int,
    draws: int,
    transform: Transform = list,
    device: torch.device,
    part: int = 0,
    parts: int = 1,
) -> tuple[Source, list[Episode]]:
    """Episodes to draw from, and episodes to measure on, none of them in both.

    Args:
        dataset: in memory if ``stream`` is None, else its index.
        stream: how to read it.
        fraction: share of the episodes that are not drawn from. Of a stream only some of them are read, about as large a
            share of the buffer.
        seed: of the split and the order.
        draws: transitions that one replica draws per update, over all processes.
        transform: applied to all episodes.
        device: of the table.
        part: of the ``parts`` that processes read of a stream.
        parts: number of processes.

    Raises:
        DataError: if an episode is longer than the buffer of the stream, or a shard cannot be used.
    """
    reading: dict[str, Any] = {"seed": seed, "draws": draws, "transform": transform, "device": device}
    reading |= {"part": part, "parts": parts}
    if isinstance(dataset, Dataset):
        fit, kept = held_out(dataset.episodes, fraction, seed)
        return open_source(dataset, None, ids={episode.id for episode in fit}, **reading), transform(kept)
    assert stream is not None
    every = [name for shard in dataset.shards for name in shard.episodes]
    chosen = held_out_ids(every, fraction, seed)
    source = open_source(dataset, stream, ids=set(every) - chosen, **reading)
    total = sum(sum(shard.steps) for shard in dataset.shards)
    limit = total if total <= stream.buffer_steps else round(fraction * stream.buffer_steps)
    options: dict[str, Any] = {"seed": seed, "shuffle_shards": stream.shuffle_shards, "cache": stream.cache}
    kept = read_some(dataset, ids=chosen, steps=limit, **options) if chosen else []
    return source, transform(kept)
