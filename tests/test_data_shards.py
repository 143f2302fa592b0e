"""Prepared datasets and reward columns on disk: exact, whole, and refused where they are damaged."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save, save_file

from dynarep.data.columns import read_latents
from dynarep.data.schema import DataError, Episode, Spec
from dynarep.data.shards import (
    SCHEMA_VERSION,
    Dataset,
    load_dataset,
    open_dataset,
    read_index,
    read_rewards,
    write_dataset,
    write_rewards,
)
from dynarep.data.stream import ShardFiles

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
        (json.dumps({**index, "schema_version": 0}), f"found 0, expected {SCHEMA_VERSION}; prepare it again"),
        (
            json.dumps({**index, "schema_version": SCHEMA_VERSION - 1}),
            f"found {SCHEMA_VERSION - 1}, expected {SCHEMA_VERSION}; prepare it again",
        ),
        (json.dumps({**index, "schema_version": 99}), f"found 99, expected {SCHEMA_VERSION}; update dynarep"),
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
    assert files == ["about.json", *(f"shard-{i:06d}.safetensors" for i in range(3))]


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
    with pytest.raises(DataError, match="found rewards of robot with fingerprint None"):
        read_rewards(tmp_path / "otr", dataset)
    file.write_bytes(content[:-3])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        read_rewards(tmp_path / "otr", dataset)
    file.unlink()
    with pytest.raises(DataError, match="misses episode robot-000001"):
        read_rewards(tmp_path / "otr", dataset)
    with pytest.raises(DataError, match="found no rewards"):
        read_rewards(tmp_path / "nothing", dataset)


def test_columns_carry_a_hash(dataset: Dataset, tmp_path: Path) -> None:
    rewards = {e.id: np.ones(e.length, np.float32) for e in dataset.episodes}
    for name in ("otr", "again"):
        write_rewards(tmp_path / name, dataset, rewards)
    folder = tmp_path / "otr" / "rewards"
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "rewards" / path.name).read_bytes()
    file, about = folder / "shard-000001.safetensors", folder / "about.json"
    whole, text = file.read_bytes(), about.read_text()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{file}: found sha256 \w{{64}}, expected \w{{64}} as in about.json"):
        read_rewards(tmp_path / "otr", dataset)
    file.write_bytes(whole)
    about.unlink()
    with pytest.raises(DataError, match=r"found sha256 \w{64}, expected None as in about.json; make rewards again"):
        read_rewards(tmp_path / "otr", dataset)
    for wrong in ("[]", '{"sha256": 5}', "{", "[" * 10**5):
        about.write_text(wrong)
        with pytest.raises(DataError, match=r"about.json: (found no mapping|not valid JSON)"):
            read_rewards(tmp_path / "otr", dataset)
    about.write_text(text)
    (folder / "shard-000009.safetensors").write_bytes(whole)
    with pytest.raises(DataError, match="found episode robot-000001 in an earlier file too"):
        read_rewards(tmp_path / "otr", dataset)


def test_rewards_beyond_float32_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    rewards = {e.id: np.full(e.length, 1e39) for e in dataset.episodes}
    with pytest.raises(DataError, match=r"found a number that is not finite in transition 0, expected float32"):
        write_rewards(tmp_path / "otr", dataset, rewards)


def test_a_full_disk_is_named(make_episode: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "robot", several(make_episode, [3]))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("webdataset.TarWriter.write", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'robot'}'")):
        write(tmp_path / "robot", several(make_episode, [4]))
    assert load_dataset(tmp_path / "robot").fingerprint == before.fingerprint


def edited(value: Any, *keys: Any) -> Callable[[Any], None]:
    """A change of an index: the entry at these keys becomes ``value``; ``...`` removes it."""

    def edit(index: Any) -> None:
        for key in keys[:-1]:
            index = index[key]
        if value is ...:
            del index[keys[-1]]
        else:
            index[keys[-1]] = value

    return edit


SHARDS_0 = ("shards", 0)
WRONG_INDICES = {
    "version: text": (
        edited(str(SCHEMA_VERSION), "schema_version"),
        f"schema_version: found '{SCHEMA_VERSION}', expected {SCHEMA_VERSION}",
    ),
    "version: float": (
        edited(float(SCHEMA_VERSION), "schema_version"),
        f"schema_version: found {SCHEMA_VERSION}.0, expected {SCHEMA_VERSION}",
    ),
    "name": (edited("../../x", "name"), "name: found '../../x'"),
    "env": (edited(5, "env"), "env: found 5"),
    "unknown": (edited(5, "more"), "more: found an unknown key"),
    "spec: unknown": (edited(5, "spec", "more"), "spec.more: found an unknown key"),
    "spec: text": (edited("3", "spec", "observation_dim"), "spec.observation_dim: found '3'"),
    "spec: true": (edited(True, "spec", "observation_dim"), "spec.observation_dim: found True"),
    "spec: missing": (edited(..., "spec", "action_dim"), "spec.action_dim: found "),
    "spec: wide": (edited(10**9, "spec", "observation_dim"), "expected no more than are stored"),
    "spec: width": (edited(4, "spec", "observation_dim"), "statistics: found numbers"),
    "spec: bounds": (edited([-1.0], "spec", "action_low"), "spec: found bounds for 1 and 2 actions, expected 2"),
    "spec: order": (edited([2.0, 2.0], "spec", "action_low"), "expected low < high"),
    "spec: rewards": (edited(False, "spec", "has_rewards"), "statistics: found numbers"),
    "shards: none": (edited([], "shards"), "shards: found []"),
    "shards: number": (edited([1], "shards"), "shards.0: found 1"),
    "shards: file": (edited("/etc/passwd", *SHARDS_0, "file"), "shards.0.file: found '/etc/passwd'"),
    "shards: bytes": (edited("5", *SHARDS_0, "bytes"), "shards.0.bytes: found '5'"),
    "shards: hash": (edited("A" * 64, *SHARDS_0, "sha256"), "shards.0.sha256: found 'AAA"),
    "shards: ids": (edited(["../x"], *SHARDS_0, "episodes"), "shards.0.episodes.0: found '../x'"),
    "shards: id of another": (
        edited(["robot-000001"], *SHARDS_0, "episodes"),
        "shard-000001.tar: found episode robot-000001, as in shard-000000.tar, expected each episode once",
    ),
    "shards: steps": (edited([3.0], *SHARDS_0, "steps"), "shards.0.steps.0: found 3.0"),
    "shards: huge": (edited([10**20], *SHARDS_0, "steps"), "expected no more than are stored"),
    "shards: lengths": (edited([1, 2], *SHARDS_0, "steps"), "found 1 episodes and 2 lengths"),
    "transitions": (edited(8, "transitions"), "transitions: found 8, expected 12, the sum of all steps"),
    "fingerprint": (edited("", "fingerprint"), "fingerprint: found ''"),
    "statistics": (edited({}, "statistics"), "statistics: found numbers {}, expected {'observation_mean': 3"),
    "statistics: short": (edited([0.0], "statistics", "action_mean"), "statistics: found numbers"),
    "statistics: negative": (edited([-1.0] * 3, "statistics", "observation_std"), "found the deviation -1.0"),
    "statistics: huge": (edited([1e999] * 3, "statistics", "observation_std"), "not valid JSON: found Infinity"),
    "returns": (edited([1.0], "returns"), "returns: found 1, expected 3"),
    "returns: missing": (edited(None, "returns"), "returns: found None, expected 3"),
    "provenance": (edited([], "provenance"), "provenance: found []"),
    "location": (edited("", "location"), "location: found ''"),
    "a shard twice": (lambda index: index["shards"].append(index["shards"][0]), "found it twice, expected each shard"),
}


@pytest.mark.parametrize("case", WRONG_INDICES)
def test_an_index_that_contradicts_itself_is_refused(dataset: Dataset, case: str) -> None:
    edit, message = WRONG_INDICES[case]
    path = dataset.folder / "index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))
    for read in (read_index, open_dataset, load_dataset):
        with pytest.raises(DataError, match=re.escape(message)) as error:
            read(dataset.folder)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("fingerprint", lambda _: "0" * 64, r"fingerprint: found 0{64}, expected \w{64} as its episodes have"),
        (
            "statistics",
            lambda s: {**s, "observation_mean": [*s["observation_mean"][:2], s["observation_mean"][2] + 1e-6]},
            "statistics: observation_mean: found .* for column 2, expected",
        ),
        ("statistics", lambda s: {**s, "reward_std": [2 * s["reward_std"][0]]}, "reward_std: found .* for column 0"),
        ("spec", lambda s: {**s, "action_high": [0.1, 1.0]}, r"actions: found .*, expected a number in \[-1.0, 0.1\]"),
        ("spec", lambda s: {**s, "action_high": [3.0, 3.0]}, "fingerprint: found"),
    ],
)
def test_what_an_index_says_of_all_episodes_is_recomputed(
    dataset: Dataset, key: str, change: Callable[[Any], Any], message: str
) -> None:
    path = dataset.folder / "index.json"
    index = json.loads(path.read_text())
    index[key] = change(index[key])
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        load_dataset(dataset.folder)


def test_text_that_is_no_index_is_refused(dataset: Dataset) -> None:
    path = dataset.folder / "index.json"
    text = path.read_text()
    for content, message in (
        (b"", "not valid JSON"),
        (b"\xff{}", "not valid JSON: 'utf-8' codec"),
        (text.encode("utf-16"), "not valid JSON: 'utf-8' codec"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema_version": ' + b"2" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"schema_version": NaN}', "not valid JSON: found NaN"),
        (text.replace('"name"', '"env": null, "name"').encode(), "not valid JSON: found the key 'env' twice"),
        (b"null", "schema_version: found None"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path}: .*{message}"):
            read_index(dataset.folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{path}: cannot be read: found a pipe"):
        read_index(dataset.folder)


def packed(members: list[tuple[str | tarfile.TarInfo, bytes | None]], mode: Any = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if content is not None:
                info.size = len(content)
            tar.addfile(info, None if content is None else io.BytesIO(content))
    return stream.getvalue()


def special(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


MEMBER = "robot-000001.safetensors"


def wrong_shards(episode: Episode) -> dict[str, tuple[bytes, str]]:
    """Tars in place of a shard with one episode, and what is said about them."""
    arrays = {"observations": episode.observations, "actions": episode.actions, "rewards": episode.rewards}
    arrays |= {"terminated": np.array(False), "truncated": np.array(True)}
    good = save(arrays)  # type: ignore[arg-type]
    huge = special(MEMBER, tarfile.REGTYPE, size=1 << 40)
    back = bytearray(special(MEMBER, tarfile.REGTYPE).tobuf(tarfile.GNU_FORMAT))
    back[124:136] = b"\xff" * 12
    back[148:156] = b"%06o\0 " % (sum(back[:148]) + 256 + sum(back[156:512]))

    def changed(**values: Any) -> bytes:
        kept = {name: values.get(name, array) for name, array in {**arrays, **values}.items()}
        return packed([(MEMBER, save({name: array for name, array in kept.items() if array is not None}))])

    def raw(header: bytes, size: int | None = None) -> bytes:
        return packed([(MEMBER, (len(header) if size is None else size).to_bytes(8, "little") + header)])

    return {
        "link": (packed([(special(MEMBER, tarfile.SYMTYPE, "/etc/passwd"), None)]), "found a link, folder or device"),
        "hard link": (packed([("x", good), (special(MEMBER, tarfile.LNKTYPE, "x"), None)]), "many|a link"),
        "device": (packed([(special(MEMBER, tarfile.CHRTYPE), None)]), "found a link, folder or device"),
        "folder": (packed([(special("d", tarfile.DIRTYPE), None), (MEMBER, good)]), "found a link, folder or device"),
        "twice": (packed([(MEMBER, good)] * 2), "found a member too many"),
        "elsewhere": (packed([(f"../{MEMBER}", good)]), "does not hold the episodes"),
        "no suffix": (packed([("robot-000001", good)]), "does not hold the episodes"),
        "hidden": (packed([("__x__", b"1"), (MEMBER, good)]), "found a member too many"),
        "none": (packed([]), "does not hold the episodes"),
        "compressed": (packed([(MEMBER, good)], "w:gz"), "not a readable tar"),
        "beyond the end": (huge.tobuf() + bytes(2048), "beyond the end|not a readable tar"),
        "backwards": (bytes(back) + bytes(2048), "beyond the end|not a readable tar"),
        "text": (b"no tar" * 500, "not a readable tar"),
        "no safetensors": (packed([(MEMBER, b"xyz")]), "not a readable safetensors file"),
        "deep": (raw(b'{"a":' + b"[" * 50_000), "not a readable safetensors file"),
        "endless": (raw(b"{}", 2**63 - 1), "not a readable safetensors file"),
        "no observations": (changed(observations=None), "found no observations, expected arrays"),
        "unknown": (changed(more=np.zeros(1)), "found the unknown 'more'"),
        "double": (changed(observations=episode.observations.astype(np.float64)), "found float64 array"),
        "flag missing": (changed(terminated=None), "terminated: found nothing, expected a truth value"),
        "flag of numbers": (changed(terminated=np.array(7)), "terminated: found int64 of shape"),
        "flags": (changed(terminated=np.zeros(4, bool)), r"terminated: found bool of shape \(4,\)"),
        "nan": (changed(rewards=np.full(4, np.nan, np.float32)), "rewards: found nan in row 0"),
        "wide": (changed(observations=np.zeros((5, 9), np.float32)), "observation_dim: found 9, expected 3"),
        "no actions": (changed(actions=None), "action_dim: found 0, expected 2"),
        "no rewards": (changed(rewards=None), "has_rewards: found False, expected True"),
        "bounds": (changed(actions=np.full((4, 2), 9, np.float32)), "actions: found 9.0 in row 0, component 0"),
        "length": (
            changed(
                observations=np.zeros((6, 3), np.float32),
                actions=np.zeros((5, 2), np.float32),
                rewards=np.zeros(5, np.float32),
            ),
            "found 5 transitions, expected 4 as in index.json",
        ),
    }


def test_shards_that_hold_something_else_are_refused(dataset: Dataset) -> None:
    """Their size and hash are those of the index."""
    shard, path = dataset.folder / "shard-000001.tar", dataset.folder / "index.json"
    original = path.read_text()
    for case, (content, message) in wrong_shards(dataset.episodes[1]).items():
        index = json.loads(original)
        index["shards"][1] |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        shard.write_bytes(content)
        path.write_text(json.dumps(index))
        with pytest.raises(DataError, match=message) as error:
            load_dataset(dataset.folder)
        assert str(shard) in str(error.value), case
        with pytest.raises(DataError, match=message) as error:
            streamed(dataset.folder)
        assert str(shard) in str(error.value), case


def test_a_shard_is_a_file(dataset: Dataset) -> None:
    shard = dataset.folder / "shard-000001.tar"
    shard.unlink()
    os.mkfifo(shard)
    for read in (load_dataset, streamed):
        with pytest.raises(DataError, match=f"{shard}: cannot be read: found a pipe"):
            read(dataset.folder)
    shard.unlink()
    shard.symlink_to("/dev/zero")
    for read in (load_dataset, streamed):
        with pytest.raises(DataError, match=f"{shard}: cannot be read: found a pipe, device"):
            read(dataset.folder)


def streamed(folder: Path) -> Any:
    with ShardFiles(open_dataset(folder)) as files:
        files.hold({1})
        return files.read(1, 0)


def test_columns_are_not_written_beside_other_content(dataset: Dataset, make_episode: Make) -> None:
    write(dataset.folder, several(make_episode, [3, 4, 6]), shard_bytes=1)
    with pytest.raises(DataError, match="the dataset has changed since it was read"):
        write_rewards(dataset.folder.parent, dataset, {e.id: np.zeros(e.length) for e in dataset.episodes})


def test_a_dataset_of_schema_version_3_is_what_it_was() -> None:
    """Written by the code of that version, with columns beside it; datasets of older versions are prepared again."""
    folder = Path(__file__).parent / "data" / f"datasets-v{SCHEMA_VERSION}"
    dataset = load_dataset(folder / "golden")
    assert dataset.fingerprint == "4432d61faa32400e361e794f581d3741bca26750de20c8b2cf907d2ecc3d6516"
    assert [(e.id, e.length, e.terminated) for e in dataset.episodes] == [
        ("golden-000000", 3, True),
        ("golden-000001", 4, False),
        ("golden-000002", 5, False),
    ]
    rewards, latents = read_rewards(folder / "columns", dataset), read_latents(folder / "columns", dataset)
    for episode in dataset.episodes:
        np.testing.assert_array_equal(rewards[episode.id], np.stack([episode.rewards, 2 * episode.rewards]))
        np.testing.assert_array_equal(latents[episode.id], 2 * episode.observations)
