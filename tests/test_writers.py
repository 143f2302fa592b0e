"""Datasets written back: what our readers, and Minari's own, find in them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import layouts
import numpy as np
import pytest

from dynarep.data.card import DatasetCard, make_card
from dynarep.data.prepare import read_recording
from dynarep.data.readers import read
from dynarep.data.schema import DataError, Episode, Spec
from dynarep.data.shards import Dataset
from dynarep.data.writers import FORMATS, Recording, check_place, lerobot, number_of, write

ABOUT = {"made_by": "a test"}


@dataclass(frozen=True)
class Label:
    """Rewards, progress and a score."""

    episode: str
    rewards: np.ndarray
    progress: np.ndarray
    score: float


def episodes(lengths: Sequence[int] = (4, 3, 6, 2, 5)) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            id=f"robot-{i:06d}",
            observations=rng.normal(size=(length + 1, 3)).astype(np.float32),
            actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rewards=np.zeros(length, np.float32),
            terminated=i % 2 == 0,
            truncated=i % 2 == 1,
        )
        for i, length in enumerate(lengths)
    ]


def label(episode: Episode) -> Label:
    number = number_of(episode.id)
    line = np.linspace(0, 1, episode.length + 1, dtype=np.float32)
    return Label(episode.id, np.arange(episode.length, dtype=np.float32) + 10 * number, line, number / 10)


def recording(source: Path | None, card: DatasetCard, made: Sequence[Episode]) -> Recording:
    """Of a file, or without one."""
    found = list(made) if source is None else read_recording(source, card).episodes
    actions = 0 if found[0].actions is None else 2
    spec = Spec(
        observation_dim=3,
        action_dim=actions,
        action_low=(-1.0,) * actions,
        action_high=(1.0,) * actions,
        has_rewards=True,
    )
    dataset = Dataset(
        name="robot", folder=Path(), spec=spec, env=None, fingerprint="f", statistics={}, returns=None, episodes=found
    )
    return Recording(dataset, source, card)


def card(kind: str, **keys: Any) -> DatasetCard:
    return make_card("robot", {"path": "recording", "format": kind, **keys}, "card")


KEPT = [3, 0, 2]
"""In the order of scores; they are written in recorded order."""


def with_rewards(made: Sequence[Episode], numbers: Sequence[int]) -> list[Episode]:
    """What is expected to be read back."""
    return [
        replace(made[number], id=f"robot-{i:06d}", rewards=label(made[number]).rewards)
        for i, number in enumerate(sorted(numbers))
    ]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("d4rl", {}), ("robomimic", {"observations": ["state"], "dones": "terminated", "subset": "dynarep"})],
)
def test_episodes_are_read_back(tmp_path: Path, kind: str, keys: dict[str, Any]) -> None:
    made = episodes()
    if kind == "robomimic":  # its flag marks the end of the demonstration, whatever ended it
        made = [replace(episode, terminated=True, truncated=False) for episode in made]
    path = tmp_path / "deep" / "written.hdf5"
    mixture = make_card("robot", {"mix": ["a", "b"]}, "card")
    kept = [label(made[number]) for number in KEPT]
    assert write(recording(None, mixture, made), kept, kind, str(path), ABOUT, overwrite=False) == path
    layouts.assert_same(list(read(path, card(kind, **keys))), with_rewards(made, KEPT))
    assert [file.name for file in path.parent.iterdir()] == ["written.hdf5"]
    with h5py.File(path) as file:
        about = file.attrs["dynarep"] if kind == "d4rl" else file["data"].attrs["dynarep"]
        assert json.loads(about) == ABOUT
        if kind == "d4rl":
            assert file["infos/episode"][()].tolist() == [0] * 4 + [2] * 6 + [3] * 2
            np.testing.assert_allclose(file["infos/score"][[0, 4, 10]], [0, 0.2, 0.3], atol=1e-6)
        else:
            assert file["data"].attrs["total"] == 12
            assert json.loads(file["data"].attrs["env_args"])["env_name"] == "robot"


STATES = ["eef_pos", "gripper"]


@pytest.mark.parametrize("successors", [True, False])
def test_a_copy_of_a_robomimic_file_keeps_what_is_in_it(tmp_path: Path, successors: bool) -> None:
    made = episodes()
    source = layouts.write_robomimic(tmp_path, made, successors=successors)
    before = source.read_bytes()
    keys = {"observations": STATES, "dones": "terminated"}
    found = recording(source, card("robomimic", **keys), made)
    path = tmp_path / "written.hdf5"
    write(
        found,
        [label(found.dataset.episodes[number]) for number in KEPT],
        "robomimic",
        str(path),
        ABOUT,
        overwrite=False,
    )
    assert source.read_bytes() == before
    again = list(read(path, card("robomimic", **keys, subset="dynarep")))
    assert [episode.id for episode in again] == ["robot-000000", "robot-000002", "robot-000003"]
    for episode in again:
        assert episode.rewards is not None
        np.testing.assert_array_equal(episode.rewards, label(found.dataset.episodes[number_of(episode.id)]).rewards)
        np.testing.assert_array_equal(episode.observations, made[number_of(episode.id)].observations)
    with h5py.File(path) as file:
        assert file["data/demo_1/obs/agentview_image"].shape[1:] == (4, 4, 3)
        assert not file["data/demo_1/rewards"][()].any(), "left out, and left alone"
        assert len(file["data/demo_2/rewards"]) == len(file["data/demo_2/actions"])
        assert file["mask/dynarep"][()].tolist() == [b"demo_0", b"demo_2", b"demo_3"]


@pytest.mark.parametrize("old", [False, True])
def test_lerobots_progress_has_a_row_for_every_frame(tmp_path: Path, old: bool) -> None:
    pytest.importorskip("pyarrow")
    made = episodes()
    source = (layouts.write_lerobot_v2 if old else layouts.write_lerobot)(tmp_path, made)
    table = lerobot.progress_table(source, {e.id: label(e).progress for e in made if e.id != "robot-000001"})
    lengths = [episode.length + 1 for episode in made]
    assert list(table) == ["index", "episode_index", "frame_index", "progress_sparse"]
    assert table["index"].tolist() == list(range(sum(lengths)))
    assert table["episode_index"].tolist() == np.repeat(np.arange(5), lengths).tolist()
    values = np.split(table["progress_sparse"], np.cumsum(lengths)[:-1])
    assert np.isnan(values[1]).all(), "not known"
    for number in (0, 2, 3, 4):
        np.testing.assert_array_equal(values[number], label(made[number]).progress)
    with pytest.raises(DataError, match="robot-000002: found 7 frames, expected 3"):
        lerobot.progress_table(source, {"robot-000002": np.zeros(3)})


def test_a_lerobot_dataset_without_some_episodes_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    made = episodes()
    source = layouts.write_lerobot(tmp_path, made)
    (source / "videos" / "top").mkdir(parents=True)
    (source / "videos" / "top" / "file-000.mp4").write_bytes(b"frames")
    (source / "meta" / "tasks.parquet").write_bytes(b"tasks")
    (source / "sarm_progress.parquet").write_bytes(b"of other frames")
    keys = {"dones": "terminated"}
    found = recording(source, card("lerobot", **keys), made)
    path = tmp_path / "written"
    kept = [label(found.dataset.episodes[number]) for number in KEPT]
    write(found, kept, "lerobot", str(path), ABOUT, overwrite=False)
    expected = [replace(made[number], id=f"robot-{i:06d}") for i, number in enumerate(sorted(KEPT))]
    layouts.assert_same(list(read(path, card("lerobot", **keys))), expected)
    info = json.loads((path / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (3, 15, {"train": "0:3"})
    files = [pyarrow.parquet.read_table(file).to_pydict() for file in sorted((path / "data").rglob("*.parquet"))]
    assert [index for file in files for index in file["index"]] == list(range(15))
    lists = [pyarrow.parquet.read_table(file) for file in sorted((path / "meta" / "episodes").rglob("*.parquet"))]
    rows = [row for table in lists for row in table.to_pylist()]
    assert [(row["episode_index"], row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [
        (0, 0, 5), (1, 5, 12), (2, 12, 15)
    ]  # fmt: skip
    progress = pyarrow.parquet.read_table(path / "sarm_progress.parquet").to_pydict()
    assert progress["index"] == list(range(15))
    np.testing.assert_array_equal(progress["progress_sparse"][12:], label(made[3]).progress)
    assert (path / "videos" / "top" / "file-000.mp4").read_bytes() == b"frames"
    assert (path / "meta" / "tasks.parquet").read_bytes() == b"tasks"
    assert json.loads((path / "meta" / "dynarep.json").read_text()) == ABOUT


def test_statistics_of_episodes_are_those_of_their_frames() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 2)) for n in (5, 9, 2)]
    rows = [
        {
            "stats/x/min": part.min(0).tolist(), "stats/x/max": part.max(0).tolist(), "stats/x/mean": part.mean(0).tolist(),
            "stats/x/std": part.std(0).tolist(), "stats/x/count": [len(part)], "stats/x/q10": [-i, 0.0], "stats/x/q90": [i, 0.0],
        }
        for i, part in enumerate(parts)
    ]  # fmt: skip
    found, frames = lerobot.aggregated(rows)["x"], np.concatenate(parts)
    for key in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[key], getattr(frames, key)(0))
    assert (found["count"], found["q10"], found["q90"]) == ([16], [-2, 0.0], [2, 0.0])


@pytest.mark.parametrize("of", ["minari", "minari dictionary", "d4rl"])
def test_minaris_own_loader_reads_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    minari = pytest.importorskip("minari")
    made = episodes()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    if of == "d4rl":
        source, keys = layouts.write_d4rl(tmp_path, made), {}
    else:
        source, keys = minari_source(minari, made, dictionary="dictionary" in of), {}
        keys = {"observations": ["arm", "gripper"]} if "dictionary" in of else {}
    found = recording(source, card(of.split()[0], **keys), made)
    kept = [label(found.dataset.episodes[number]) for number in KEPT]
    path = write(found, kept, "minari", "mine/pick-v0", ABOUT, overwrite=False)
    assert path == tmp_path / "minari" / "mine" / "pick-v0"
    loaded = minari.load_dataset("mine/pick-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (3, 12)
    for number, episode in zip(sorted(KEPT), loaded.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(episode.rewards, label(made[number]).rewards)
        np.testing.assert_array_equal(episode.actions, made[number].actions)
        states = episode.observations
        if "dictionary" in of:
            states = np.concatenate([states["arm"], states["gripper"]], 1)
        np.testing.assert_array_equal(states, made[number].observations)
        assert (episode.terminations[-1], episode.truncations[-1]) == (made[number].terminated, made[number].truncated)
    assert "mine/pick-v0" in minari.list_local_datasets()
    layouts.assert_same(list(read(path, card("minari", **keys))), with_rewards(made, KEPT))


def minari_source(minari: Any, made: Sequence[Episode], *, dictionary: bool) -> Path:
    """A dataset made by Minari."""
    from gymnasium.spaces import Box, Dict
    from minari.data_collector import EpisodeBuffer

    def observed(states: np.ndarray) -> Any:
        return {"arm": states[:, :2], "gripper": states[:, 2:]} if dictionary else states

    sizes = {"arm": 2, "gripper": 1}
    box = {name: Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()}
    space = Dict(box) if dictionary else Box(-np.inf, np.inf, (3,), np.float32)
    buffers = []
    for episode in made:
        assert episode.actions is not None
        last = np.arange(episode.length) == episode.length - 1
        ends = {
            "terminations": (last & episode.terminated).tolist(),
            "truncations": (last & episode.truncated).tolist(),
        }
        rewards = [0.0] * episode.length
        buffers.append(
            EpisodeBuffer(observations=observed(episode.observations), actions=episode.actions, rewards=rewards, **ends)
        )
    minari.create_dataset_from_buffers(
        "own/source-v0", buffers, observation_space=space, action_space=Box(-1, 1, (2,), np.float32)
    )
    return Path(str(minari.load_dataset("own/source-v0").storage.data_path)).parent


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    made = episodes()
    source = layouts.write_d4rl(tmp_path, made)
    found = recording(source, card("d4rl"), made)
    path = tmp_path / "there.hdf5"
    path.write_text("mine")
    with pytest.raises(DataError, match=re.escape(f"{path}: is there; name another place, or say --overwrite")):
        check_place(found, "d4rl", str(path), overwrite=False)
    assert path.read_text() == "mine"
    write(found, [label(made[0])], "d4rl", str(path), ABOUT, overwrite=True)
    assert len(list(read(path, card("d4rl")))) == 1
    with pytest.raises(DataError, match="is the recording itself"):
        check_place(found, "d4rl", str(source), overwrite=True)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    made = episodes()
    source = layouts.write_robomimic(tmp_path, made)
    found = recording(source, card("robomimic", observations=STATES, dones="terminated"), made)
    wrong = replace(label(made[2]), rewards=np.zeros(2, np.float32))
    path = tmp_path / "written.hdf5"
    with pytest.raises(DataError, match=r"/data/demo_2: found 6 rows, expected 2 or one more as in robot-000002"):
        write(found, [wrong], "robomimic", str(path), ABOUT, overwrite=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["low_dim.hdf5"]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    made = [replace(episode, actions=None) for episode in episodes()]
    found = recording(None, make_card("robot", {"mix": ["a", "b"]}, "card"), made)
    place = "mine/pick-v0" if kind == "minari" else str(tmp_path / "out")
    with pytest.raises(DataError, match="robot: actions: found none, expected some to write"):
        check_place(found, kind, place, overwrite=False)
    if kind == "lerobot":
        with pytest.raises(DataError, match="lerobot: found a recording of format None, expected a LeRobot dataset"):
            check_place(recording(None, found.card, episodes()), kind, place, overwrite=False)
    if kind == "minari":
        with pytest.raises(DataError, match="minari: found 'pick', expected an id such as mine/pick-v0"):
            check_place(found, kind, "pick", overwrite=False)
