"""Datasets larger than memory: a table of some whole episodes on the training device that moves on through the shards.

What is in the table after how many updates follows from the index and the seed alone, so a run that is resumed, and every
one of several processes, knows without having read anything where it is. See ``docs/streaming.md``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from dynarep.data.download import cache_folder
from dynarep.data.remote import fetch_shard
from dynarep.data.resident import TransitionTable
from dynarep.data.schema import DataError, Episode, Spec
from dynarep.data.shard import check_content
from dynarep.data.shards import ShardedDataset, open_shard, read_episode, shard_members

PIECES = 32
"""Portions in which the content of a table is replaced."""
OPENERS = 4
"""Shards that are downloaded or checked at the same time."""
BLOCK = 1 << 12
"""Rows that are moved at a time."""

Transform = Callable[[list[Episode]], list[Episode]]


class ShardFiles:
    """The shards in use, as open local files whose size and SHA-256 are those of the index; to be closed.

    A shard is checked when it is opened for the first time, and again when its file has changed since.
    """

    def __init__(self, dataset: ShardedDataset, *, cache: bool = True) -> None:
        """Open nothing yet.

        Args:
            dataset: with its shards in a folder or at a URL.
            cache: keep downloads; else they take disk space only while they are in use.
        """
        self._dataset = dataset
        self._pool = ThreadPoolExecutor(OPENERS, thread_name_prefix="shards")
        self._open: dict[int, Future[_OpenShard]] = {}
        self._checked: dict[int, tuple[int, ...]] = {}
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._folder = cache_folder() / "shards"
        if not cache and not isinstance(dataset.location, Path):
            cache_folder().mkdir(parents=True, exist_ok=True)
            self._spool = tempfile.TemporaryDirectory(prefix="stream-", dir=cache_folder())
            self._folder = Path(self._spool.name)

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold(self, numbers: Collection[int]) -> None:
        """Begin to open the shards of these numbers that are not open, and close all others."""
        for number in self._open.keys() - set(numbers):
            future = self._open.pop(number)
            future.cancel()
            future.add_done_callback(_close)
        for number in numbers:
            if number not in self._open:
                self._open[number] = self._pool.submit(self._opened, number)

    def read(self, number: int, position: int) -> Episode:
        """An episode of a shard that is held, waiting for the shard if need be.

        Args:
            number: of the shard.
            position: of the episode in the shard.

        Raises:
            DataError: if the shard is missing, truncated or changed, or cannot be had.
        """
        return self._open[number].result().read(position)

    def close(self) -> None:
        """Close all files; downloads that nobody keeps are deleted."""
        self.hold(())
        self._pool.shutdown(cancel_futures=True)
        if self._spool is not None:
            self._spool.cleanup()

    def _opened(self, number: int) -> _OpenShard:
        dataset, shard = self._dataset, self._dataset.shards[number]
        if isinstance(dataset.location, Path):
            path = dataset.location / shard.file
            place: Path | str = path
        else:
            path = fetch_shard(dataset.location, shard, self._folder)
            place = f"{path}, of {dataset.location}"
        file = open_shard(path, place)
        if self._spool is not None:
            path.unlink()
        try:
            state = os.fstat(file.fileno())
            mark = (state.st_ino, state.st_size, state.st_mtime_ns)
            if self._checked.get(number) != mark:
                check_content(place, shard, state.st_size, lambda: file_digest(file, "sha256").hexdigest())
                self._checked[number] = mark
            members = shard_members(file, place, shard)
        except BaseException:
            file.close()
            raise
        return _OpenShard(place, file, members, shard.steps, dataset.spec)


class _OpenShard:
    """A checked shard and where its members lie: (name, offset, size)."""

    def __init__(
        self, place: Path | str, file: BinaryIO, members: list[tuple[str, int, int]], steps: Sequence[int], spec: Spec
    ) -> None:
        self.place, self.file, self.members, self.steps, self.spec = place, file, members, steps, spec

    def read(self, position: int) -> Episode:
        name, offset, size = self.members[position]
        try:
            content = os.pread(self.file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.place}: {name}: cannot be read: {error.strerror}") from None
        if len(content) != size:
            raise DataError(
                f"{self.place}: {name}: found {len(content)} bytes, expected {size}; the file has changed while it was "
                "in use"
            )
        return read_episode(self.place, name, content, self.spec, self.steps[position])


def _close(future: Future[_OpenShard]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().file.close()


class EpisodeOrder:
    """An endless order of a dataset's episodes, dealt out to several parts; it follows from the seed alone.

    An epoch shows every episode once, to one of the parts. Its shards come in rounds that are spread evenly over the
    dataset, so that each round has its share of whatever changes along the dataset; the episodes of a round are shuffled
    together. Parts have shards of their own, or, if there are fewer shards than parts, episodes of their own. The deal
    goes on from one epoch to the next, so that no part is favoured, and no part ever comes to an end.

    Attributes:
        ids: of the episodes, in the dataset's order.
        shard: (E,) number of each episode's shard.
        position: (E,) of each episode in its shard.
        steps: (E,) transitions of each episode.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        *,
        seed: int,
        shuffle_shards: int,
        ids: Collection[str] | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Read the index.

        Args:
            dataset: of which only the index is used.
            seed: of the order, the same for all parts.
            shuffle_shards: shards in a round of one part.
            ids: the episodes to show, at least one; all by default.
            part: number of this part, such as rank * workers + worker.
            parts: how many there are.

        Raises:
            ValueError: if ``part`` is not one of ``parts``.
        """
        if not 0 <= part < parts:
            raise ValueError(f"part: found {part}, expected a number from 0 to {parts - 1}")
        names = [name for shard in dataset.shards for name in shard.episodes]
        chosen = np.array([ids is None or name in ids for name in names], bool)
        counts = [len(shard.episodes) for shard in dataset.shards]
        self.ids = [name for name, keep in zip(names, chosen, strict=True) if keep]
        self.shard = np.repeat(np.arange(len(counts)), counts)[chosen]
        self.position = np.concatenate([np.arange(count) for count in counts])[chosen]
        self.steps = np.concatenate([shard.steps for shard in dataset.shards])[chosen]
        self._seed, self._size, self._part, self._parts = seed, shuffle_shards, part, parts

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """What this part sees in an epoch: numbers of episodes (n,), n >= 1, for each round."""
        rng = np.random.default_rng([self._seed, epoch])
        shards = np.unique(self.shard)
        by_shard = len(shards) >= self._parts
        rounds = spread_rounds(shards, self._size * self._parts if by_shard else self._size, rng)
        dealt = epoch * (len(shards) if by_shard else len(self.ids))
        found = []
        for members in rounds:
            episodes = rng.permutation(np.flatnonzero(np.isin(self.shard, members)))
            if by_shard:
                own = members[(dealt + np.arange(len(members))) % self._parts == self._part]
                mine = episodes[np.isin(self.shard[episodes], own)]
                dealt += len(members)
            else:
                mine = episodes[(dealt + np.arange(len(episodes))) % self._parts == self._part]
                dealt += len(episodes)
            if len(mine):
                found.append(mine)
        return found


def spread_rounds(shards: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal sorted numbers into as few rounds of at most ``size`` as possible, each spread evenly over all of them.

    Of every run of as many neighbours as there are rounds, each round gets one, at random. A shorter run, where the count
    does not come out even, is in the middle, so that rounds with and without one of it have the same mean.
    """
    count = -(-len(shards) // size)
    runs, rest = divmod(len(shards), count)
    lengths = [count] * (runs // 2) + [rest] + [count] * (runs - runs // 2)
    rounds: list[list[int]] = [[] for _ in range(count)]
    for run in np.split(shards, np.cumsum(lengths)[:-1]):
        for number, which in zip(run, rng.permutation(count), strict=False):
            rounds[which].append(number)
    return [np.array(numbers) for numbers in rounds]


class _Sequence:
    """The endless order as one sequence, of which a window is remembered: [``first``, ``first`` + len(``numbers``))."""

    def __init__(self, order: EpisodeOrder) -> None:
        self._order = order
        self._epoch = self._round = 0
        self.first = 0
        self.numbers = np.empty(0, np.int64)
        self.ends = np.empty(0, np.int64)
        """Transitions up to and with each episode, from the very beginning."""
        self.rounds = np.empty(0, np.int64)

    def window(self, steps: int, end: int) -> tuple[int, int]:
        """The last episodes [start, stop) that end at transition ``end`` or before and have at most ``steps`` together.

        ``end`` must be at least the length of the longest episode, and not become smaller from call to call.
        """
        longest = int(self._order.steps.max())
        while not len(self.ends) or self.ends[-1] <= end:
            self._extend()
            self._forget(self.first + int(np.searchsorted(self.ends, end - steps - longest)))
        stop = int(np.searchsorted(self.ends, end, side="right"))
        begins = self.ends - self._order.steps[self.numbers]
        return self.first + int(np.searchsorted(begins, self.ends[stop - 1] - steps)), self.first + stop

    def shards(self, start: int, stop: int) -> set[int]:
        """Shards of the rounds that the episodes [start, stop) belong to, and of the round after."""
        last = self.rounds[stop - 1 - self.first] + 1
        while self.rounds[-1] <= last:
            self._extend()
        rounds = (self.rounds >= self.rounds[start - self.first]) & (self.rounds <= last)
        return {int(number) for number in np.unique(self._order.shard[self.numbers[rounds]])}

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Numbers of the episodes [start, stop)."""
        return self.numbers[start - self.first : stop - self.first]

    def _extend(self) -> None:
        for numbers in self._order.epoch(self._epoch):
            before = self.ends[-1] if len(self.ends) else 0
            self.ends = np.concatenate([self.ends, before + np.cumsum(self._order.steps[numbers])])
            self.numbers = np.concatenate([self.numbers, numbers])
            self.rounds = np.concatenate([self.rounds, np.full(len(numbers), self._round)])
            self._round += 1
        self._epoch += 1

    def _forget(self, before: int) -> None:
        count = min(before - self.first, len(self.ends) - 1)
        if count > 0:
            self.numbers, self.ends, self.rounds = self.numbers[count:], self.ends[count:], self.rounds[count:]
            self.first += count


class EpisodeBuffer:
    """A transition table of as many whole episodes as fit, which are replaced one after another; to be closed.

    A dataset that fits as a whole is held as a whole, in its own order, and never replaced.

    Attributes:
        table: the episodes held at the moment, the oldest first; there after ``advance``.
    """

    table: TransitionTable

    def __init__(
        self,
        dataset: ShardedDataset,
        *,
        steps: int,
        steps_per_update: float,
        seed: int,
        shuffle_shards: int = 16,
        ids: Collection[str] | None = None,
        transform: Transform = list,
        part: int = 0,
        parts: int = 1,
        device: torch.device | str = "cpu",
        cache: bool = True,
    ) -> None:
        """Lay out the order; nothing is read yet.

        Args:
            dataset: where the episodes come from.
            steps: transitions held at most, before ``transform``.
            steps_per_update: transitions that are replaced per update.
            seed: of the order.
            shuffle_shards: shards whose episodes are shuffled together.
            ids: the episodes to show, at least one; all by default.
            transform: applied to episodes when they are read, such as ``with_absorbing_states``.
            part: see ``EpisodeOrder``.
            parts: see ``EpisodeOrder``.
            device: where the table lives.
            cache: keep downloaded shards.

        Raises:
            DataError: if an episode is longer than ``steps``.
        """
        self._order = order = EpisodeOrder(
            dataset, seed=seed, shuffle_shards=shuffle_shards, ids=ids, part=part, parts=parts
        )
        longest = int(order.steps.argmax())
        if order.steps[longest] > steps:
            raise DataError(
                f"stream.buffer_steps: found {steps}, but episode {order.ids[longest]} of {dataset.name} has "
                f"{order.steps[longest]} transitions; expected at least that many, better many times as many"
            )
        total = int(order.steps.sum())
        self._whole = total <= steps
        self._steps = total if self._whole else min(steps, max(int(order.steps[longest]), -(-total // parts)))
        self._interval = max(1, round(self._steps / PIECES / steps_per_update))
        self._advance = min(self._interval * steps_per_update, self._steps / 2)
        self._transform, self._device = transform, torch.device(device)
        self._files = ShardFiles(dataset, cache=cache)
        self._sequence = _Sequence(order)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="episodes")
        self._ahead: tuple[int, int, Future[TransitionTable]] | None = None
        self._portion: int | None = None
        self._start = self._stop = 0
        self._held: list[tuple[int, int]] = []
        """Number and rows of each episode in the table."""
        self._rows = torch.empty(0)

    def __enter__(self) -> EpisodeBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and close all files."""
        self._reader.shutdown(cancel_futures=True)
        self._files.close()

    def state(self) -> dict[str, object]:
        """Nothing: what is in the table follows from the update alone."""
        return {}

    def restore(self, state: dict[str, object]) -> None:
        """Do nothing."""

    def advance(self, update: int, policy: object = None) -> None:
        """Have ``table`` hold what belongs to an update, counted from 0 and never going back.

        Raises:
            DataError: if a shard is missing, truncated or changed, or cannot be had.
            ValueError: if it goes back.
        """
        portion = 0 if self._whole else update // self._interval
        if portion == self._portion:
            return
        if self._portion is not None and portion < self._portion:
            raise ValueError(f"update: found {update}, expected at least {self._portion * self._interval}")
        start, stop = self._window(portion)
        if self._portion is None or start >= self._stop:
            self._held, self._start, self._stop = [], start, start
        self._drop(start - self._start)
        for first, last in self._pieces(self._stop, stop):
            self._append(first, last, self._read(first, last))
        self._start, self._stop, self._portion = start, stop, portion
        lengths = torch.tensor([rows for _, rows in self._held])
        self.table = TransitionTable(
            self._rows[: int(lengths.sum())], lengths, observation_dim=self._dims[0], action_dim=self._dims[1]
        )
        if not self._whole and (following := self._window(portion + 1)[1]) > stop:
            self._ahead = stop, following, self._submit(stop, following)

    def episodes(self) -> Iterator[Episode]:
        """The episodes held, after ``transform``, with ``next_observations``."""
        table, start = self.table, 0
        for number, rows in self._held:
            batch = table.gather(torch.arange(start, start + rows, device=self._device))
            terminated = bool(batch.terminated[-1])
            yield Episode(
                id=self._order.ids[number],
                observations=batch.observations.cpu().numpy(),
                next_observations=batch.next_observations.cpu().numpy(),
                actions=batch.actions.cpu().numpy() if table.action_dim else None,
                rewards=None if batch.rewards is None else batch.rewards.cpu().numpy(),
                terminated=terminated,
                truncated=not terminated,
            )
            start += rows

    def _window(self, portion: int) -> tuple[int, int]:
        """The episodes [start, stop) of the order that are in the table."""
        if self._whole:
            return 0, len(self._order.ids)
        return self._sequence.window(self._steps, self._steps + int(portion * self._advance))

    def _numbers(self, first: int, last: int) -> np.ndarray:
        return np.arange(first, last) if self._whole else self._sequence.slice(first, last)

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Cut episodes [first, last) where a portion's worth of transitions has come together."""
        if self._ahead is not None and self._ahead[:2] == (first, last):
            yield first, last
            return
        begin, size = first, 0
        for i, steps in enumerate(self._order.steps[self._numbers(first, last)], first):
            size += steps
            if size >= self._steps / PIECES or i == last - 1:
                yield begin, i + 1
                begin, size = i + 1, 0

    def _read(self, first: int, last: int) -> TransitionTable:
        """The episodes [first, last), which a thread may have read already."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[:2] == (first, last):
                return ahead[2].result()
            ahead[2].cancel()
        return self._submit(first, last).result()

    def _submit(self, first: int, last: int) -> Future[TransitionTable]:
        numbers = self._numbers(first, last)
        shards = set(self._order.shard[numbers].tolist()) if self._whole else self._sequence.shards(first, last)
        return self._reader.submit(self._load, numbers, shards)

    def _load(self, numbers: np.ndarray, shards: set[int]) -> TransitionTable:
        self._files.hold(shards)
        episodes = [self._files.read(int(self._order.shard[i]), int(self._order.position[i])) for i in numbers]
        return TransitionTable.from_episodes(self._transform(episodes))

    def _drop(self, count: int) -> None:
        """Remove the oldest episodes and move the others up."""
        dropped, kept = (sum(rows for _, rows in part) for part in (self._held[:count], self._held[count:]))
        del self._held[:count]
        for start in range(0, kept if dropped else 0, BLOCK):
            stop = min(start + BLOCK, kept)
            self._rows[start:stop] = self._rows[start + dropped : stop + dropped].clone()

    def _append(self, first: int, last: int, piece: TransitionTable) -> None:
        self._dims = piece.observation_dim, piece.action_dim
        used = sum(rows for _, rows in self._held)
        needed = used + len(piece)
        if needed > len(self._rows):
            size = max(needed, self._steps, len(self._rows) * 5 // 4)
            rows = torch.empty((size, piece.packed.shape[1]), device=self._device)
            if used:
                rows[:used] = self._rows[:used]
            self._rows = rows
        self._rows[used:needed] = piece.packed.to(self._device)
        self._held += zip(self._numbers(first, last).tolist(), piece.lengths.tolist(), strict=True)


def read_some(
    dataset: ShardedDataset, *, ids: Collection[str], steps: int, seed: int, shuffle_shards: int, cache: bool = True
) -> list[Episode]:
    """Read randomly chosen ones of the episodes with these ids, in the dataset's order.

    They come from as few shards as possible.

    Args:
        dataset: where they come from.
        ids: to choose from, at least one.
        steps: transitions that the chosen ones have together at most; one episode is chosen in any case.
        seed: of the choice.
        shuffle_shards: shards in a round, see ``EpisodeOrder``.
        cache: keep downloaded shards.

    Raises:
        DataError: if a shard is missing, truncated or changed, or cannot be had.
    """
    order = EpisodeOrder(dataset, seed=seed, shuffle_shards=shuffle_shards, ids=ids)
    numbers = np.concatenate(order.epoch(0))
    numbers = np.sort(numbers[: max(1, int(np.searchsorted(np.cumsum(order.steps[numbers]), steps, side="right")))])
    episodes = []
    with ShardFiles(dataset, cache=cache) as files:
        for shard in np.unique(order.shard[numbers]).tolist():
            files.hold({shard})
            episodes += [files.read(shard, int(order.position[i])) for i in numbers if order.shard[i] == shard]
    return episodes
