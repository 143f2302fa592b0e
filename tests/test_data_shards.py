"""Prepared datasets and reward columns on disk: exact, whole, and refused where they are damaged."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save_file

from dynarep.data.schema import DataError, Episode, Spec
from dynarep.data.shards import (
    SCHEMA_VERSION,
    Dataset,
    load_dataset,
    read_index,
    read_rewards,
    write_dataset,
    write_rewards,
)

Make = Callable[..., Episode]
BOUNDS = ((-1.0, -1.0), (1.0, 1.0))


def write(folder: Path, episodes: list[Episode], **options: Any) -> Dataset:
    fields: dict[str, Any] = {"provenance": {}, "env": "Hopper-v4", "bounds": BOUNDS, **options}
    write_dataset(folder, "robot", episodes, **fields)
    return load_dataset(folder)


def several(make: Make, lengths: list[int], **fields: Any) -> list[Episode]:
    return [make(length, f"robot-{i:06d}", seed=i, **fields) for i, length in enumerate(lengths)]


def assert_same(found: list[Episode], expected: list[Episode]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.id, a.terminated, a.truncated) == (b.id, b.terminated, b.truncated)
        for name in ("observations", "next_observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    separate=st.booleans(),
    action_dim=st.integers(0, 2),
    rewarded=st.booleans(),
    terminated=st.booleans(),
    shard_bytes=st.sampled_from([1, 20_000, 10**8]),
)
def test_a_dataset_comes_back_exactly(
    make_episode: Make,
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    separate: bool,
    action_dim: int,
    rewarded: bool,
    terminated: bool,
    shard_bytes: int,
) -> None:
    fields = {"separate": separate, "action_dim": action_dim, "terminated": terminated, "truncated": not terminated}
    episodes = several(make_episode, lengths, **fields, **({} if rewarded else {"rewards": None}))
    bounds = ((-1.0,) * action_dim, (2.0,) * action_dim)
    folder = tmp_path_factory.mktemp("shards") / "robot"
    dataset = write(folder, episodes, bounds=bounds, shard_bytes=shard_bytes)
    assert_same(dataset.episodes, episodes)
    assert dataset.spec == Spec(
        observation_dim=3, action_dim=action_dim, action_low=bounds[0], action_high=bounds[1], has_rewards=rewarded
    )
    assert (dataset.name, dataset.folder, dataset.env) == ("robot", folder, "Hopper-v4")
    assert dataset.returns == ([e.return_ for e in episodes] if rewarded else None)
    assert len(list(folder.glob("*.tar"))) == (len(episodes) if shard_bytes == 1 else len(read_index(folder)["shards"]))
    columns = {"observation": [e.current for e in episodes]}
    if action_dim:
        columns["action"] = [e.actions for e in episodes if e.actions is not None]
    if rewarded:
        columns["reward"] = [e.rewards[:, None] for e in episodes if e.rewards is not None]
    assert set(dataset.statistics) == {f"{key}_{moment}" for key in columns for moment in ("mean", "std")}
    for key, parts in columns.items():
        values = np.concatenate(parts).astype(np.float64)
        np.testing.assert_allclose(dataset.statistics[f"{key}_mean"], values.mean(0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(dataset.statistics[f"{key}_std"], values.std(0), rtol=1e-10, atol=1e-12)


def test_statistics_survive_a_mean_far_larger_than_the_deviation(make_episode: Make, tmp_path: Path) -> None:
    offset = np.float32(4e6)
    episodes = [replace(e, observations=e.observations + offset) for e in several(make_episode, [50] * 20)]
    values = np.concatenate([e.current for e in episodes]).astype(np.float64)
    statistics = write(tmp_path / "robot", episodes).statistics
    np.testing.assert_allclose(statistics["observation_std"], values.std(0), rtol=1e-9)


def test_writing_twice_gives_the_same_bytes(make_episode: Make, tmp_path: Path) -> None:
    episodes = several(make_episode, [3, 4])
    for name in ("a", "b"):
        write(tmp_path / name, episodes)
    for file in ("index.json", "shard-000000.tar"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_fingerprint_is_that_of_the_content(make_episode: Make, tmp_path: Path) -> None:
    episodes = several(make_episode, [3, 4])

    def fingerprint(*changed: Episode, **options: Any) -> str:
        return write(tmp_path / "robot", list(changed) or episodes, **options).fingerprint

    original = fingerprint()
    assert fingerprint(shard_bytes=1) == original
    assert fingerprint(provenance={"from": "elsewhere"}) == original
    first, second = episodes
    nudged = first.observations.copy()
    nudged[2, 1] = np.nextafter(nudged[2, 1], np.float32(9))
    others = [
        fingerprint(second, first),
        fingerprint(first),
        fingerprint(replace(first, observations=nudged), second),
        fingerprint(replace(first, terminated=True), second),
        fingerprint(replace(first, id="robot-9"), second),
        fingerprint(replace(first, rewards=None), replace(second, rewards=None)),
        fingerprint(bounds=((-2.0, -1.0), (1.0, 1.0))),
    ]
    assert len({original, *others}) == 1 + len(others)


def test_shards_are_ordinary_tars_that_webdataset_reads(make_episode: Make, tmp_path: Path) -> None:
    import webdataset

    episodes = several(make_episode, [3, 4, 5])
    write(tmp_path / "robot", episodes, shard_bytes=1)
    shards = sorted(map(str, (tmp_path / "robot").glob("*.tar")))
    assert [Path(shard).name for shard in shards] == [f"shard-{i:06d}.tar" for i in range(3)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [e.id for e in episodes]
    np.testing.assert_array_equal(load(samples[1]["safetensors"])["actions"], episodes[1].actions)
    with tarfile.open(shards[0]) as tar:
        assert tar.getnames() == ["robot-000000.safetensors"]


def test_members_must_agree_and_be_unique(make_episode: Make, tmp_path: Path) -> None:
    episodes = several(make_episode, [3, 4])
    for fields, message in (
        ({"observation_dim": 4}, "episode robot-9: observation_dim: found 4, expected 3"),
        ({"rewards": None}, "episode robot-9: has_rewards: found False, expected True"),
        ({"action_dim": 0}, "episode robot-9: action_dim: found 0, expected 2"),
        ({"action_dim": 1}, "episode robot-9: actions: found 1 numbers, but bounds for 2 and 2"),
    ):
        with pytest.raises(DataError, match=message):
            write(tmp_path / "robot", [*episodes, make_episode(2, "robot-9", **fields)])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="episode robot-000001 occurs twice"):
        write(tmp_path / "robot", [*episodes, episodes[1]])
    with pytest.raises(DataError, match="found no episodes, expected at least one"):
        write(tmp_path / "robot", [])
    with pytest.raises(DataError, match="returns: found 1, expected one for each of 2 episodes"):
        write(tmp_path / "robot", episodes, returns=[1.0])
    with pytest.raises(DataError, match="dataset name: found 'a/b'"):
        write_dataset(tmp_path / "robot", "a/b", episodes, provenance={}, env=None, bounds=BOUNDS)
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_survives_a_failed_rewrite(make_episode: Make, tmp_path: Path) -> None:
    episodes = several(make_episode, [3, 4])
    before = write(tmp_path / "robot", episodes)

    def interrupted() -> Iterator[Episode]:
        yield episodes[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "robot", "robot", interrupted(), provenance={}, env=None, bounds=BOUNDS)
    assert load_dataset(tmp_path / "robot").fingerprint == before.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["robot"]


def test_what_was_written_survives_a_failed_exchange(
    make_episode: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = several(make_episode, [3, 4])
    before = write(tmp_path / "robot", episodes)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == ".robot.new":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "robot", episodes[:1])
    assert load_dataset(tmp_path / "robot").fingerprint == before.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["robot"]


def test_a_rewrite_recovers_from_a_kill_at_any_point(make_episode: Make, tmp_path: Path) -> None:
    episodes = several(make_episode, [3, 4])
    write(tmp_path / "robot", episodes)
    (tmp_path / ".robot.new").mkdir()
    (tmp_path / ".robot.new" / "shard-000007.tar").write_bytes(b"half")
    (tmp_path / "robot").rename(tmp_path / ".robot.old")
    assert_same(write(tmp_path / "robot", episodes[:1]).episodes, episodes[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["robot"]
    assert sorted(path.name for path in (tmp_path / "robot").iterdir()) == ["index.json", "shard-000000.tar"]


def test_damaged_shards_are_refused(make_episode: Make, tmp_path: Path) -> None:
    folder = tmp_path / "robot"
    write(folder, several(make_episode, [3, 4, 5]), shard_bytes=1)
    shard = folder / "shard-000001.tar"
    whole = shard.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content, message in (
        (whole[:-512], f"found {len(whole) - 512} bytes, expected {len(whole)}"),
        (b"", "found 0 bytes"),
        (bytes(changed), "found sha256 "),
        ((folder / "shard-000000.tar").read_bytes(), "found sha256 "),
    ):
        shard.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(f"{shard}: {message}")):
            load_dataset(folder)
    shard.unlink()
    with pytest.raises(DataError, match=re.escape(f"{shard}: no such file, but index.json lists it")):
        load_dataset(folder)


def test_an_unusable_index_is_refused(make_episode: Make, tmp_path: Path) -> None:
    folder = tmp_path / "robot"
    with pytest.raises(DataError, match=r"index.json: no such file; the dataset robot is not prepared"):
        load_dataset(folder)
    write(folder, several(make_episode, [3]))
    index = json.loads((folder / "index.json").read_text())
    without = {key: value for key, value in index.items() if key != "returns"}
    for content, message in (
        ('{"schema_ver', "not valid JSON"),
        ("[1]", f"schema_version: found None, expected {SCHEMA_VERSION}; prepare it again"),
        (json.dumps({**index, "schema_version": 0}), "found 0, expected 2; prepare it again"),
        (json.dumps({**index, "schema_version": 99}), "found 99, expected 2; update dynarep"),
        (json.dumps(without), "missing returns; prepare the dataset again"),
    ):
        (folder / "index.json").write_text(content)
        with pytest.raises(DataError, match=message):
            load_dataset(folder)
    index["shards"][0]["episodes"][0] = "robot-5"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"does not hold the episodes that index.json lists"):
        load_dataset(folder)


@pytest.fixture
def dataset(make_episode: Make, tmp_path: Path) -> Dataset:
    return write(tmp_path / "robot", several(make_episode, [3, 4, 5]), shard_bytes=1)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_rewards_come_back_exactly_and_in_order(dataset: Dataset, tmp_path: Path, leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    rewards = {e.id: rng.normal(size=(*leading, e.length)).astype(np.float32) for e in reversed(dataset.episodes)}
    write_rewards(tmp_path / "otr", dataset, rewards)
    found = read_rewards(tmp_path / "otr", dataset)
    assert list(found) == [e.id for e in dataset.episodes]
    for name, values in rewards.items():
        np.testing.assert_array_equal(found[name], values, strict=True)
    files = sorted(path.name for path in (tmp_path / "otr" / "rewards").iterdir())
    assert files == [f"shard-{i:06d}.safetensors" for i in range(3)]


def test_rewards_must_fit_their_dataset(dataset: Dataset, tmp_path: Path) -> None:
    good = {e.id: np.zeros(e.length, np.float32) for e in dataset.episodes}
    first = dataset.episodes[0].id
    for wrong, message in (
        ({name: values for name, values in good.items() if name != first}, f"misses episode {first} \\(1 in total\\)"),
        ({**good, "robot-9": np.zeros(3)}, "has the unknown episode robot-9"),
        ({**good, first: np.zeros(9)}, r"robot-000000: found shape \(9,\), expected \(3,\)"),
        ({**good, "robot-000001": np.zeros((2, 4))}, r"robot-000001: found shape \(2, 4\), expected \(4,\)"),
        ({e.id: np.zeros((1, 1, e.length)) for e in dataset.episodes}, r"found shape \(1, 1, 3\)"),
        ({**good, first: np.array([0, np.nan, 0])}, "robot-000000: found a number that is not finite in transition 1"),
    ):
        with pytest.raises(DataError, match=message):
            write_rewards(tmp_path / "otr", dataset, wrong)
        assert not (tmp_path / "otr").exists()


def test_rewards_of_other_content_and_damaged_ones_are_refused(
    dataset: Dataset, make_episode: Make, tmp_path: Path
) -> None:
    write_rewards(tmp_path / "otr", dataset, {e.id: np.zeros(e.length, np.float32) for e in dataset.episodes})
    other = write(tmp_path / "other", several(make_episode, [3, 4, 6]))
    with pytest.raises(DataError, match=f"expected those of robot with fingerprint {other.fingerprint}"):
        read_rewards(tmp_path / "otr", other)
    file = tmp_path / "otr" / "rewards" / "shard-000001.safetensors"
    columns, content = load_file(file), file.read_bytes()
    save_file(
        {name: values[:-1] for name, values in columns.items()}, file, {"dataset_fingerprint": dataset.fingerprint}
    )
    with pytest.raises(DataError, match=r"robot-000001: found shape \(3,\), expected \(4,\)"):
        read_rewards(tmp_path / "otr", dataset)
    save_file(columns, file)
    with pytest.raises(DataError, match="found rewards of a dataset with fingerprint None"):
        read_rewards(tmp_path / "otr", dataset)
    file.write_bytes(content[:-3])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        read_rewards(tmp_path / "otr", dataset)
    file.unlink()
    with pytest.raises(DataError, match="misses episode robot-000001"):
        read_rewards(tmp_path / "otr", dataset)
    with pytest.raises(DataError, match="found no rewards"):
        read_rewards(tmp_path / "nothing", dataset)
