"""Writers of recordings in every format that has a reader, small and after the formats' own layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode

Columns = dict[str, np.ndarray]
Write = Callable[[Path, Sequence[Episode]], Path]

ENVIRONMENT = "Hopper-v5"
"""What those formats record that know of an environment."""


def rows(episode: Episode, *, successors: bool) -> Columns:
    """Rows of one episode in D4RL's terms; without successors the final state is a row with an empty action."""
    assert episode.actions is not None
    assert episode.rewards is not None
    count = episode.length if successors else episode.length + 1
    last = np.arange(count) == count - 1
    padding = [(0, count - episode.length)]
    columns = {
        "observations": episode.observations[:count],
        "actions": np.pad(episode.actions, [*padding, (0, 0)]),
        "rewards": np.pad(episode.rewards, padding),
        "terminals": last & episode.terminated,
        "timeouts": last & episode.truncated,
    }
    return columns | ({"next_observations": episode.observations[1:]} if successors else {})


def flat(episodes: Sequence[Episode], *, successors: bool) -> Columns:
    """All rows after one another."""
    parts = [rows(episode, successors=successors) for episode in episodes]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_d4rl(folder: Path, episodes: Sequence[Episode], *, successors: bool = True) -> Path:
    path = folder / "recording.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in flat(episodes, successors=successors).items():
            file[name] = values
        file["infos/qpos"] = np.zeros(3)
        file["metadata/algorithm"] = "SAC"
    return path


def write_npz(folder: Path, episodes: Sequence[Episode], *, successors: bool = True) -> Path:
    path = folder / "recording.npz"
    np.savez_compressed(path, **flat(episodes, successors=successors))  # type: ignore[arg-type]
    return path


def write_npy(folder: Path, episodes: Sequence[Episode], *, successors: bool = True) -> Path:
    path = folder / "recording"
    path.mkdir()
    for name, values in flat(episodes, successors=successors).items():
        np.save(path / f"{name}.npy", values)
    np.save(path / "notes.npy", np.zeros(2))
    return path


def write_table(path: Path, columns: Columns) -> Path:
    """A parquet table; vectors become lists, as pandas and Hugging Face's datasets write them."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = {name: list(values) if values.ndim > 1 else values for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


def write_parquet(folder: Path, episodes: Sequence[Episode], *, successors: bool = True) -> Path:
    return write_table(folder / "recording.parquet", flat(episodes, successors=successors))


def write_ogbench(folder: Path, episodes: Sequence[Episode], *, form: str = "file") -> Path:
    """As downloaded, or what OGBench's ``load_dataset`` makes of it: ``regular`` or ``compact``."""
    columns = flat(episodes, successors=form == "regular")
    ends = columns.pop("timeouts").astype(np.float32)
    columns["terminals"] = ends
    if form == "compact":
        columns["valids"] = 1 - ends
        columns["terminals"] = np.minimum(ends + np.append(ends[1:], 1), 1).astype(np.float32)
    columns["qpos"] = np.zeros((len(ends), 4))
    path = folder / "maze-navigate-v0.npz"
    np.savez_compressed(path, **columns)  # type: ignore[arg-type]
    return path


def write_robomimic(folder: Path, episodes: Sequence[Episode], *, successors: bool = True) -> Path:
    """Observations as arrays ``eef_pos`` (all columns but the last), ``gripper`` (the last one), and an image."""
    path = folder / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for i, episode in enumerate(episodes):
            columns = rows(episode, successors=successors)
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(columns["rewards"])
            for name, column in {"obs": "observations", "next_obs": "next_observations"}.items():
                if column in columns:
                    demo[f"{name}/eef_pos"] = columns[column][:, :-1]
                    demo[f"{name}/gripper"] = columns[column][:, -1]
                    demo[f"{name}/agentview_image"] = np.zeros((len(columns[column]), 4, 4, 3), np.uint8)
            demo["actions"] = columns["actions"].astype(np.float64)
            demo["rewards"] = columns["rewards"]
            demo["dones"] = columns["terminals"].astype(np.int64)
            demo["states"] = np.zeros((len(columns["rewards"]), 7))
        data.attrs["total"] = sum(len(demo["rewards"]) for demo in data.values())
    return path


def write_lerobot(folder: Path, episodes: Sequence[Episode]) -> Path:
    """Two episodes per file, two files per chunk."""
    path = folder / "lerobot"
    features = {
        "observation.state": {"dtype": "float32", "shape": [episodes[0].observations.shape[1]], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "observation.images.top": {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
    } | {
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    }
    frame = 0
    for first in range(0, len(episodes), 2):
        parts, described = [], []
        chunk, number = divmod(first // 2, 2)
        for i in range(first, min(first + 2, len(episodes))):
            columns = rows(episodes[i], successors=False)
            length = len(columns["rewards"])
            parts.append(
                {
                    "observation.state": columns["observations"],
                    "action": columns["actions"],
                    "next.reward": columns["rewards"],
                    "next.done": columns["terminals"],
                    "timestamp": np.arange(length, dtype=np.float32) / 30,
                    "frame_index": np.arange(length),
                    "episode_index": np.full(length, i),
                    "index": np.arange(frame, frame + length),
                    "task_index": np.zeros(length, np.int64),
                }
            )
            described.append((i, length, frame, frame + length))
            frame += length
        file = f"chunk-{chunk:03d}/file-{number:03d}.parquet"
        write_table(path / "data" / file, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        names = ("episode_index", "length", "dataset_from_index", "dataset_to_index")
        table = {name: np.array(values) for name, values in zip(names, zip(*described, strict=True), strict=True)}
        write_table(path / "meta" / "episodes" / file, table)
    info = {
        "codebase_version": "v3.0",
        "total_episodes": len(episodes),
        "total_frames": frame,
        "fps": 30,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": features,
    }
    (path / "meta" / "info.json").write_text(json.dumps(info))
    return path


def write_lerobot_v2(folder: Path, episodes: Sequence[Episode]) -> Path:
    """The same in version 2.1: a file per episode, and their lengths in lines of JSON."""
    import pyarrow.parquet

    path = write_lerobot(folder, episodes)
    tables = [pyarrow.parquet.read_table(file) for file in sorted((path / "data").rglob("*.parquet"))]
    frames = pyarrow.concat_tables(tables)
    shutil.rmtree(path / "data")
    shutil.rmtree(path / "meta" / "episodes")
    lines = []
    for number, episode in enumerate(episodes):
        part = frames.filter(pyarrow.compute.equal(frames["episode_index"], number))
        file = path / "data" / f"chunk-{number // 4:03d}" / f"episode_{number:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(part, file)
        lines.append(json.dumps({"episode_index": number, "tasks": ["pick"], "length": len(part)}))
        assert len(part) == episode.length + 1
    (path / "meta" / "episodes.jsonl").write_text("".join(f"{line}\n" for line in lines))
    info = json.loads((path / "meta" / "info.json").read_text())
    (path / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    return path


def write_minari(folder: Path, episodes: Sequence[Episode], *, dictionary: bool = False) -> Path:
    """The folder of a Minari dataset; observations as one array or as a dictionary."""
    path = folder / "hopper" / "test-v0"
    data = path / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            columns = rows(episode, successors=True)
            group = file.create_group(f"episode_{i}", track_order=True)
            group.attrs.update({"id": i, "total_steps": episode.length})
            if dictionary:
                group["observations/achieved_goal"] = np.zeros((episode.length + 1, 2))
                group["observations/observation"] = episode.observations[:, :2]
                group["observations/extra/goal"] = episode.observations[:, 2:]
            else:
                group["observations"] = episode.observations
            group["actions"] = columns["actions"]
            group["rewards"] = columns["rewards"].astype(np.float64)
            group["terminations"] = columns["terminals"]
            group["truncations"] = columns["timeouts"]
    metadata = {
        "dataset_id": "hopper/test-v0",
        "data_format": "hdf5",
        "total_episodes": len(episodes),
        "total_steps": sum(episode.length for episode in episodes),
        "minari_version": "0.5.3",
        "env_spec": json.dumps({"id": ENVIRONMENT, "order_enforce": True, "kwargs": {}}),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))
    return path


def write_prepared(folder: Path, episodes: Sequence[Episode]) -> Path:
    path = folder / "recorded"
    write_episodes(path, (replace(e, id=f"mine-{i}") for i, e in enumerate(episodes)), env=ENVIRONMENT)
    return path


def assert_same(found: Sequence[Episode], expected: Sequence[Episode]) -> None:
    """Equal in ids, ends and, to the bit and type, all arrays."""
    assert [e.id for e in found] == [e.id for e in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.id, a.terminated, a.truncated) == (b.id, b.terminated, b.truncated)
        for name in ("observations", "next_observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=f"{a.id} {name}", strict=True)
