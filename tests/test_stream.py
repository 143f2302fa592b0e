"""Streams: the order of episodes, what is in the buffer when, goals in it, resuming, and shards that are not as indexed."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks import streaming
from dynarep.data import stream
from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import TransitionTable
from dynarep.data.sampling import goal_and_intent, uniform
from dynarep.data.schema import DataError, Episode, Spec
from dynarep.data.shard import Shard
from dynarep.data.shards import ShardedDataset, load_dataset, open_dataset, write_dataset
from dynarep.data.split import held_out_ids
from dynarep.data.stream import EpisodeBuffer, EpisodeOrder, read_some, spread_rounds
from dynarep.pipeline.entries import Entry
from dynarep.pipeline.methods.encoders.contrastive import DynamicsConfig
from dynarep.pipeline.methods.encoders.icvf import ICVFConfig
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.sources import StreamConfig
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import training_device
from dynarep.pipeline.training.run import Run
from tests.entries import entry

torch.set_num_threads(1)

SPEC = Spec(observation_dim=3, action_dim=1, action_low=(-1.0,), action_high=(1.0,), has_rewards=False)


def index(shards: list[list[int]]) -> ShardedDataset:
    """The index of a dataset that nobody wrote: the lengths of the episodes of each shard."""
    names = (f"e-{i:06d}" for i in itertools.count())
    return ShardedDataset(
        name="robot",
        folder=Path("robot"),
        location=Path("robot"),
        spec=SPEC,
        env=None,
        fingerprint="",
        statistics={},
        returns=None,
        shards=tuple(
            Shard(
                file=f"shard-{i:06d}.tar",
                bytes=0,
                sha256="0" * 64,
                episodes=tuple(next(names) for _ in steps),
                steps=tuple(steps),
            )
            for i, steps in enumerate(shards)
        ),
    )


def numbered(lengths: list[int], *, terminated: bool = False) -> list[Episode]:
    """Episodes whose observations say which episode and step they are."""
    return [
        Episode(
            id=f"e-{i:06d}",
            observations=np.stack([np.full(t + 1, i), np.arange(t + 1), np.sin(np.arange(t + 1))], 1).astype(
                np.float32
            ),
            actions=np.linspace(-1, 1, t, dtype=np.float32)[:, None],
            terminated=terminated,
            truncated=not terminated,
        )
        for i, t in enumerate(lengths)
    ]


def written(folder: Path, lengths: list[int], *, shard_bytes: int = 1, **options: Any) -> ShardedDataset:
    """``numbered`` episodes in shards, one in each by default."""
    episodes = numbered(lengths, **options)
    bounds = ((-1.0,), (1.0,))
    write_dataset(folder, "robot", episodes, provenance={}, env=None, bounds=bounds, shard_bytes=shard_bytes)
    return open_dataset(folder)


shards_of_steps = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(shards=shards_of_steps, size=st.integers(1, 5), parts=st.integers(1, 6), seed=st.integers(0, 99))
def test_every_epoch_deals_each_episode_once_to_one_part(
    shards: list[list[int]], size: int, parts: int, seed: int
) -> None:
    dataset = index(shards)
    orders = [EpisodeOrder(dataset, seed=seed, shuffle_shards=size, part=p, parts=parts) for p in range(parts)]
    share: Counter[int] = Counter()
    for epoch in range(4):
        dealt = [[i for members in order.epoch(epoch) for i in members.tolist()] for order in orders]
        assert sorted(itertools.chain(*dealt)) == list(range(len(orders[0].ids)))
        for part, (order, numbers) in enumerate(zip(orders, dealt, strict=True)):
            share[part] += len(set(order.shard[numbers].tolist())) if len(shards) >= parts else len(numbers)
    assert max(share.values()) - min(share[p] for p in range(parts)) <= 1, "no part is favoured in the long run"


def test_the_order_follows_from_the_seed() -> None:
    dataset = index([[1] * 5] * 9)

    def order(**options: int) -> list[int]:
        found = EpisodeOrder(dataset, **{"seed": 0, "shuffle_shards": 4, **options})
        return [int(i) for epoch in range(2) for members in found.epoch(epoch) for i in members]

    assert order() == order()
    assert order() != order(seed=1)
    assert order()[:45] != order()[45:], "another epoch, another order"


@pytest.mark.parametrize(("count", "size"), [(20, 16), (64, 16), (65, 16), (7, 1), (3, 16)])
def test_rounds_are_spread_over_the_dataset(count: int, size: int) -> None:
    rounds = spread_rounds(np.arange(count), size, np.random.default_rng(0))
    assert len(rounds) == math.ceil(count / size)
    assert sorted(itertools.chain(*rounds)) == list(range(count))
    for members in rounds:
        assert len(members) <= size
        gaps = np.diff([-1, *members, count])
        assert gaps.max() <= 2 * len(rounds), "no gap longer than two runs of neighbours"


class Dealt(IterableDataset[str]):
    """An epoch of ids, dealt over ranks and the workers of a loader."""

    def __init__(self, dataset: ShardedDataset, rank: int, ranks: int) -> None:
        self.dataset, self.rank, self.ranks = dataset, rank, ranks

    def __iter__(self) -> Iterator[str]:
        worker = get_worker_info()
        id_, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part, parts = self.rank * workers + id_, self.ranks * workers
        order = EpisodeOrder(self.dataset, seed=3, shuffle_shards=2, part=part, parts=parts)
        return (order.ids[i] for members in order.epoch(0) for i in members)


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_ranks_and_workers_of_a_loader_share_without_duplicates(shards: int) -> None:
    dataset = index([[2, 5, 1, 3]] * shards)
    found = [name for rank in range(2) for name in DataLoader(Dealt(dataset, rank, 2), batch_size=None, num_workers=2)]
    assert len(found) == 4 * shards
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("shards", [[[4] * 3], [[9], [1], [1]], [[1] * 40, [2], [3], [4], [5]]])
def test_parts_with_uneven_shards_never_come_to_an_end(shards: list[list[int]]) -> None:
    """Fewer shards than parts, and shards of very different sizes: each part goes on, all see everything."""
    seen: list[Counter[str]] = []
    for part in range(2):
        order = EpisodeOrder(index(shards), seed=0, shuffle_shards=2, part=part, parts=2)
        sequence = stream._Sequence(order)
        names: Counter[str] = Counter()
        previous = 0
        for end in range(30, 3000, 10):
            start, stop = sequence.window(30, end)
            assert 0 <= start < stop
            names.update(order.ids[i] for i in sequence.slice(max(previous, start), stop))
            previous = stop
        seen.append(names)
    total = sum(seen, Counter())
    assert len(total) == sum(map(len, shards))
    assert max(total.values()) < 1.35 * min(total.values()), "no episode is favoured in the long run"


def content(buffer: EpisodeBuffer) -> list[tuple[int, int]]:
    """Number and length of the episodes in a table, which must be whole and in one piece."""
    table, found, start = buffer.table, [], 0
    for length in table.lengths.tolist():
        rows = table.gather(torch.arange(start, start + length))
        number = int(rows.observations[0, 0])
        assert rows.observations[:, 0].eq(number).all()
        assert rows.observations[:, 1].tolist() == list(range(length))
        assert rows.next_observations[:, 1].tolist() == list(range(1, length + 1))
        assert table.first[start : start + length].eq(start).all()
        assert table.last[start : start + length].eq(start + length - 1).all()
        found.append((number, length))
        start += length
    assert start == len(table)
    return found


@pytest.mark.parametrize("absorbing", [False, True])
@pytest.mark.parametrize(("steps", "per_update"), [(60, 1.0), (60, 7.5), (30, 1000.0), (200, 3.0)])
def test_the_buffer_holds_whole_episodes_in_order(
    tmp_path: Path, steps: int, per_update: float, absorbing: bool
) -> None:
    lengths = [1 + (7 * i) % 23 for i in range(40)]
    dataset = written(tmp_path / "robot", lengths, terminated=True, shard_bytes=1500)
    assert len(dataset.shards) > 8
    transform = with_absorbing_states if absorbing else list
    options: dict[str, Any] = {"steps": steps, "steps_per_update": per_update, "seed": 5, "shuffle_shards": 3}
    order = EpisodeOrder(dataset, seed=5, shuffle_shards=3)
    sequence = [i for epoch in range(30) for members in order.epoch(epoch) for i in members.tolist()]
    bits = with_absorbing_states(numbered(lengths, terminated=True))
    position = 0
    last: list[int] = []
    with EpisodeBuffer(dataset, transform=transform, **options) as buffer:
        for update in range(100):
            buffer.advance(update)
            if absorbing:
                numbers = [int(e.observations[0, 0]) for e in buffer.episodes()]
                expected = TransitionTable.from_episodes([bits[i] for i in numbers])
                assert torch.equal(buffer.table.packed, expected.packed)
            else:
                numbers = [number for number, _ in content(buffer)]
            if numbers != last:
                while sequence[position : position + len(numbers)] != numbers:
                    position += 1
                last = numbers
            held = [lengths[i] for i in numbers]
            assert sum(held) <= steps
            assert sum(held) + lengths[sequence[position - 1]] > steps or position == 0 or max(lengths) > steps / 2
    turnover = 100 * min(per_update, steps / 2)
    assert sum(lengths[i] for i in sequence[:position]) == pytest.approx(turnover, abs=steps)


@pytest.mark.parametrize("update", [0, 1, 37, 90, 333])
def test_the_buffer_is_the_same_whether_it_went_there_or_jumped(tmp_path: Path, update: int) -> None:
    dataset = written(tmp_path / "robot", [1 + (5 * i) % 11 for i in range(30)])
    options: dict[str, Any] = {"steps": 40, "steps_per_update": 2.0, "seed": 1, "shuffle_shards": 4}
    with EpisodeBuffer(dataset, **options) as walked, EpisodeBuffer(dataset, **options) as jumped:
        for u in range(update + 1):
            walked.advance(u)
        jumped.advance(update)
        assert torch.equal(walked.table.packed, jumped.table.packed)
        assert torch.equal(walked.table.last, jumped.table.last)
        with pytest.raises(ValueError, match="update: found -5"):
            walked.advance(-5)


def test_a_dataset_that_fits_is_the_resident_table(tmp_path: Path) -> None:
    dataset = written(tmp_path / "robot", [5, 3, 8], shard_bytes=10**6)
    with EpisodeBuffer(dataset, steps=16, steps_per_update=4.0, seed=0) as buffer:
        for update in (0, 1000):
            buffer.advance(update)
            resident = TransitionTable.from_episodes(load_dataset(tmp_path / "robot").episodes)
            assert torch.equal(buffer.table.packed, resident.packed)
            assert torch.equal(buffer.table.last, resident.last)
        found = list(buffer.episodes())
    assert [(e.id, e.length, e.truncated) for e in found] == [
        ("e-000000", 5, True),
        ("e-000001", 3, True),
        ("e-000002", 8, True),
    ]
    np.testing.assert_array_equal(found[2].successors, numbered([1, 1, 8])[2].successors)


def test_an_episode_longer_than_the_buffer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"stream.buffer_steps: found 9, but episode e-000001 of robot has 12 trans.*least"
    ):
        EpisodeBuffer(index([[3], [12, 4]]), steps=9, steps_per_update=1.0, seed=0)


def test_each_transition_is_drawn_as_often_as_asked(tmp_path: Path) -> None:
    """Over two epochs of a stream every transition is drawn equally often, and ``reuse`` times per epoch."""
    lengths = [4 + (3 * i) % 9 for i in range(50)]
    dataset, batch, reuse = written(tmp_path / "robot", lengths), 32, 4.0
    total, draws = sum(lengths), Counter[int]()
    generator = torch.Generator().manual_seed(0)
    updates = int(40 * total * reuse / batch)
    with EpisodeBuffer(dataset, steps=100, steps_per_update=batch / reuse, seed=2, shuffle_shards=8) as buffer:
        for update in range(updates):
            buffer.advance(update)
            rows = uniform(len(buffer.table), (batch,), generator, "cpu")
            draws.update(buffer.table.observations_at(rows)[:, 0].int().tolist())
    rates = np.array([draws[i] / t for i, t in enumerate(lengths)]) / 40
    assert rates.mean() == pytest.approx(reuse, rel=0.02)
    assert rates.std() < 0.15 * reuse, "no episode is favoured"


def test_goals_keep_their_mixture_and_their_episodes_in_a_moving_buffer(tmp_path: Path) -> None:
    """Shares of current, later and random goals within 4 standard errors of what is configured."""
    lengths = [20 + (7 * i) % 31 for i in range(60)]
    dataset = written(tmp_path / "robot", lengths, shard_bytes=20_000)
    mixture = {"p_random": 0.3, "p_trajectory": 0.5, "p_current": 0.2}
    generator = torch.Generator().manual_seed(0)
    kinds, expected, same, portions = np.zeros(3), np.zeros(3), 0, set()
    expected_same = 0.0
    draws, updates = 256, 400
    with EpisodeBuffer(dataset, steps=500, steps_per_update=40.0, seed=0, shuffle_shards=4) as buffer:
        for update in range(updates):
            buffer.advance(update)
            table = buffer.table
            portions.add(tuple(table.lengths.tolist()))
            i = uniform(len(table), (draws,), generator, "cpu")
            g, z = goal_and_intent(i, table.last[i], len(table), **mixture, p_same=0.5, generator=generator)
            assert g.max() < len(table)
            states, goals = table.observations_at(i), table.observations_at(z)
            current, within = z == i, (states[:, 0] == goals[:, 0]) & (goals[:, 1] > states[:, 1])
            kinds += [current.sum(), within.sum(), (~current & ~within).sum()]
            # P(round(u * ahead) = 0) is 1 / (2 ahead), and a random goal hits anything by chance
            ahead = (table.last[i] - i).double()
            stays = torch.where(ahead > 0, 0.5 / ahead, 1.0)
            n = len(table)
            p = torch.stack([0.2 + 0.5 * stays + 0.3 / n, 0.5 * (1 - stays) + 0.3 * ahead / n]).sum(1).numpy()
            expected += [*p, draws - p.sum()]
            same += int((g == z).sum())
            interior, end = (ahead - 1).clamp(min=0), (ahead > 0).double()
            later = (
                interior * (0.5 / ahead.clamp(min=1) + 0.3 / n) ** 2 + end * (0.25 / ahead.clamp(min=1) + 0.3 / n) ** 2
            )
            chance = (0.2 + 0.5 * stays + 0.3 / n) ** 2 + later + (n - 1 - ahead) * (0.3 / n) ** 2
            expected_same += float((0.5 + 0.5 * chance).sum())
    assert len(portions) > 50, "the buffer moved"
    total = draws * updates
    for found, mean in zip([*kinds, same], [*expected, expected_same], strict=True):
        assert abs(found - mean) < 4 * math.sqrt(mean * (1 - mean / total)), (kinds, expected, same, expected_same)


def test_a_mixture_keeps_its_proportions(tmp_path: Path) -> None:
    """Two parts after one another, as ``mix`` writes them: exact over an epoch, and near at any time."""
    lengths = [10] * 300
    dataset = written(tmp_path / "robot", lengths, shard_bytes=5000)  # the first 90 episodes are one part
    order = EpisodeOrder(dataset, seed=0, shuffle_shards=16)
    assert sum(int((members < 90).sum()) for members in order.epoch(5)) == 90
    shares = []
    with EpisodeBuffer(dataset, steps=600, steps_per_update=20.0, seed=0) as buffer:
        for update in range(300):
            buffer.advance(update)
            shares.append(float((buffer.table.observations[:, 0] < 90).double().mean()))
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02)
    assert np.std(shares) < 0.06
    assert 0.1 < min(shares) < max(shares) < 0.5


def test_some_episodes_to_measure_on_come_from_few_shards(tmp_path: Path) -> None:
    dataset = written(tmp_path / "robot", [6] * 40, shard_bytes=9000)
    ids = {f"e-{i:06d}" for i in range(0, 40, 3)}
    for seed, steps in itertools.product((0, 1), (1, 6, 30)):
        found = read_some(dataset, ids=ids, steps=steps, seed=seed, shuffle_shards=2)
        assert len(found) == max(1, steps // 6)
        assert {episode.id for episode in found} <= ids
        assert [episode.id for episode in found] == sorted(episode.id for episode in found)
    assert len(read_some(dataset, ids=ids, steps=10**6, seed=0, shuffle_shards=2)) == len(ids)


def walk(buffer: EpisodeBuffer, updates: Iterable[int]) -> None:
    for update in updates:
        buffer.advance(update)


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def damage_changed(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[1000] ^= 1
    path.write_bytes(changed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"no such file, but index.json lists it; prepare"),
        (damage_truncated, r"found \d+ bytes, expected \d+; prepare"),
        (damage_changed, r"found sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; prepare"),
    ],
)
@pytest.mark.parametrize("after", [0, 40])
def test_a_shard_that_is_not_as_indexed_is_named(tmp_path: Path, damage: Any, message: str, after: int) -> None:
    """Before the first reading, and, the shard having been read once, in a later epoch."""
    dataset = written(tmp_path / "robot", [5] * 12)
    bad = tmp_path / "robot" / dataset.shards[7].file
    with EpisodeBuffer(dataset, steps=10, steps_per_update=2.0, seed=0, shuffle_shards=2) as buffer:
        walk(buffer, range(after))
        damage(bad)
        with pytest.raises(DataError, match=f"{bad}: {message}"):
            walk(buffer, range(after, 300))


def test_a_shard_that_changes_while_it_is_open_is_named(tmp_path: Path) -> None:
    dataset = written(tmp_path / "robot", [50] * 6, shard_bytes=10**6)
    file = tmp_path / "robot" / dataset.shards[0].file
    with stream.ShardFiles(dataset) as files:
        files.hold({0})
        assert files.read(0, 2).id == "e-000002"
        with file.open("r+b") as handle:
            handle.truncate(2000)
        with pytest.raises(
            DataError, match=rf"{file}: e-000005.safetensors: found 0 bytes, expected \d+; .*has changed"
        ):
            files.read(0, 5)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "robot", [5, 6], shard_bytes=10**6)
    path = tmp_path / "robot" / "index.json"
    original = json.loads(path.read_text())
    for key, value in (("episodes", ["e-000000", "e-000009"]), ("steps", [5, 7])):
        changed = json.loads(path.read_text())
        changed["shards"][0] = {**original["shards"][0], key: value}
        changed["transitions"] = sum(changed["shards"][0]["steps"])
        path.write_text(json.dumps(changed))
        with (
            pytest.raises(DataError, match=r"shard-000000.tar.*(does not hold the episodes|found 6 tr.*expected 7)"),
            EpisodeBuffer(open_dataset(path.parent), steps=100, steps_per_update=1.0, seed=0) as buffer,
        ):
            buffer.advance(0)
        with pytest.raises(DataError, match=r"does not hold the episodes|found 6 transitions, expected 7"):
            load_dataset(path.parent)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("file", "../../elsewhere.tar", r"shards.0.file: found '../../elsewhere.tar': .*shard-"),
        ("sha256", "../" * 9, r"shards.0.sha256: found .* should match pattern .*64"),
        ("steps", [5], "found 2 episodes and 1 lengths"),
        ("steps", [5, 0], r"shards.0.steps.1: found 0: .*greater than or equal to 1"),
    ],
)
def test_an_index_that_no_dataset_has_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    written(tmp_path / "robot", [5, 6], shard_bytes=10**6)
    path = tmp_path / "robot" / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0][key] = value
    path.write_text(json.dumps(index))
    for read in (open_dataset, load_dataset):
        with pytest.raises(DataError, match=message):
            read(path.parent)


TRAINING = TrainingConfig(updates=44, batch_size=16, updates_per_chunk=7, checkpoint_every=14, compile=False)
STREAM = StreamConfig(buffer_steps=120, shuffle_shards=3, reuse=2.0)
INPUTS: dict[str, Any] = {"dataset": "robot", "held_out": 0.2, "stream": STREAM, "training": TRAINING}
INTENT = entry("pretrain", "icvf", ICVFConfig(hidden=(8,), latent_dim=4), **INPUTS)
DYNAMICS = entry("pretrain", "contrastive", DynamicsConfig(hidden=(8,), feature_dim=4), **INPUTS)
BIT = replace(DYNAMICS, config=replace(DYNAMICS.config, absorbing=True))


def changed(c: Entry[Any], **inputs: Any) -> Entry[Any]:
    """The entry with other inputs."""
    return replace(c, inputs=replace(c.inputs, **inputs))


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "robot"
    written(folder, [10 + (7 * i) % 31 for i in range(40)], shard_bytes=8000, terminated=True)
    return folder


def learn(folder: Path, robot: Path, c: Entry[Any]) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights and metrics of either encoder."""
    output = folder / "output"
    output.mkdir(parents=True)
    run = Run("stage", 0, 2, output, folder / "checkpoints")
    dataset: Any = load_dataset(robot) if c.inputs.stream is None else open_dataset(robot)
    try:
        made = pretrain(c, dataset, run)
    finally:
        output.rename(folder / f"output-{len(list(folder.iterdir()))}")
    return made.encoder.state_dict(), made.measured.metrics


@pytest.mark.parametrize(
    "config",
    [INTENT, DYNAMICS, BIT],
    ids=["intent", "dynamics", "bit"],
)
def test_a_resumed_stream_is_the_uninterrupted_one_to_the_bit(
    tmp_path: Path, robot: Path, config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after update 33, in the middle of an epoch, of a chunk and of the buffer's way."""
    whole, metrics = learn(tmp_path / "a", robot, config)
    advance = EpisodeBuffer.advance

    def failing(self: EpisodeBuffer, update: int, policy: Any = None) -> None:
        if update == 33:
            raise RuntimeError("stopped")
        advance(self, update, policy)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeBuffer, "advance", failing)
        with pytest.raises(RuntimeError, match="stopped"):
            learn(tmp_path / "b", robot, config)
    resumed, again = learn(tmp_path / "b", robot, config)
    assert "resuming at update" in capsys.readouterr().err
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert again == metrics
    chunked, _ = learn(tmp_path / "c", robot, changed(config, training=replace(TRAINING, updates_per_chunk=20)))
    assert all(torch.equal(whole[name], chunked[name]) for name in whole), "chunks change nothing"


@pytest.mark.parametrize("config", [INTENT, DYNAMICS], ids=["intent", "dynamics"])
def test_a_stream_that_fits_trains_the_resident_model_to_the_bit(tmp_path: Path, robot: Path, config: Any) -> None:
    streamed, _ = learn(tmp_path / "a", robot, changed(config, stream=replace(STREAM, buffer_steps=10**6)))
    resident, _ = learn(tmp_path / "b", robot, changed(config, stream=None))
    same = {name for name in resident if torch.equal(streamed[name], resident[name])}
    if config is INTENT:
        assert same >= resident.keys() - {"calibration"}
    other, _ = learn(tmp_path / "c", robot, config)
    assert not all(torch.equal(other[name], resident[name]) for name in resident)


@pytest.mark.parametrize("states", ["current", "next"])
@pytest.mark.parametrize("streamed", [False, True])
def test_noise_states_come_from_the_dataset(
    tmp_path: Path, robot: Path, states: Any, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory from all of it, of a stream from what is in the buffer, never a held-out episode; transitions never are."""
    chosen = {int(name[2:]) for name in held_out_ids([f"e-{i:06d}" for i in range(40)], 0.2, 0)}
    seen: set[int] = set()
    steps: set[int] = set()

    def draw_only(learner: Any, sources: Any, batch: Any, training: Any, *, source: Any, **_: Any) -> None:
        generator = torch.Generator(training_device()).manual_seed(0)
        for update in range(300):
            source.advance(update)
            drawn = batch(sources, generator)
            assert not chosen & set(drawn.observations[..., 0].int().unique().tolist())
            steps.update(drawn.noise[..., 1].int().unique().tolist())
            seen.update(drawn.noise[..., 0].int().unique().tolist())

    monkeypatch.setattr("dynarep.pipeline.training.loop.train", draw_only)
    c = replace(DYNAMICS, config=replace(DYNAMICS.config, noise=states))
    c = changed(c, training=replace(TRAINING, updates=300), stream=STREAM if streamed else None)
    dataset: Any = open_dataset(robot) if streamed else load_dataset(robot)
    pretrain(c, dataset, Run("stage", 0, 2, tmp_path, tmp_path))
    assert seen == (set(range(40)) - chosen if streamed else set(range(40)))
    assert min(steps) == (0 if states == "current" else 1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and reads memory as Linux does")
@pytest.mark.parametrize("stage", ["pretrain_dynamics", "pretrain_intent"])
def test_a_dataset_ten_times_the_memory_limit(stage: str) -> None:
    """All of it is read within the limit, by which loading it fails."""
    streamed, loaded = streaming.memory(
        limit=64_000_000, factor=10.2, buffer_steps=30_000, updates=2000, stages=(stage,)
    )
    assert streamed["bytes"] > 10 * 64_000_000
    assert streamed["end"], streamed
    assert streamed["grown"] < 64_000_000
    assert not loaded["end"]
    assert "Memory" in loaded["error"] or "memory" in loaded["error"]


@pytest.mark.slow
def test_batches_of_a_stream_are_mixed() -> None:
    """On data that change along the dataset; in recorded order the same buffer gives batches that hardly change."""
    rows = {(row["steps"], row["what"]): row for row in streaming.mixing(transitions=200_000, updates=2000, seeds=1)}
    assert abs(rows[250, "resident table"]["drift"][0]) < 0.1
    assert rows[250, "10%, in recorded order"]["drift"][0] > 0.9
    assert rows[25, "10%, in recorded order"]["drift"][0] > 0.9
    assert rows[25, "stream, 10%"]["drift"][0] < 0.4
    assert rows[250, "stream, 50%"]["drift"][0] < 0.6


def test_episodes_of_a_stream_are_those_of_the_spec(tmp_path: Path) -> None:
    """The hashes are right, the index is consistent, but it describes other episodes."""
    dataset = written(tmp_path / "robot", [5, 6], shard_bytes=10**6)
    for change, message in (
        ({"observation_dim": 2}, "observation_dim: found 3, expected 2 as in index.json"),
        ({"action_dim": 2, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}, "action_dim: found 1, expected 2"),
        ({"has_rewards": True}, "has_rewards: found False, expected True"),
        ({"action_low": (-0.5,)}, r"actions: found -1.0 in row 0, component 0, expected a number in \[-0.5, 1.0\]"),
    ):
        other = replace(dataset, spec=replace(dataset.spec, **change))
        with stream.ShardFiles(other) as files:
            files.hold({0})
            with pytest.raises(DataError, match=f"shard-000000.tar: episode e-000000: {message}"):
                files.read(0, 0)
