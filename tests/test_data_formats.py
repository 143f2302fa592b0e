"""The same episodes in every format, and what each format's reader refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import layouts
import numpy as np
import pytest
import yaml
from layouts import assert_same

from dynarep.data.card import DatasetCard, make_card
from dynarep.data.prepare import prepare, write_episodes
from dynarep.data.readers import environment, read
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, read_index


@dataclass(frozen=True)
class Format:
    """A way to write episodes, the card that reads them, and what it cannot tell apart."""

    name: str
    write: layouts.Write
    keys: dict[str, Any] = field(default_factory=dict)
    terminals: bool = True
    both: bool = True
    package: str | None = None


STATES = {"observations": ["eef_pos", "gripper"], "dones": "terminated"}
FORMATS = {
    "d4rl": Format("d4rl", layouts.write_d4rl),
    "d4rl without successors": Format("d4rl", partial(layouts.write_d4rl, successors=False)),
    "npz": Format("arrays", layouts.write_npz),
    "npz without successors": Format("arrays", partial(layouts.write_npz, successors=False)),
    "npy": Format("arrays", layouts.write_npy),
    "parquet": Format("arrays", layouts.write_parquet, package="pyarrow"),
    "ogbench": Format("ogbench", layouts.write_ogbench, terminals=False),
    "ogbench regular": Format("ogbench", partial(layouts.write_ogbench, form="regular"), terminals=False),
    "ogbench compact": Format("ogbench", partial(layouts.write_ogbench, form="compact"), terminals=False),
    "robomimic": Format("robomimic", layouts.write_robomimic, STATES, both=False),
    "robomimic without successors": Format(
        "robomimic", partial(layouts.write_robomimic, successors=False), STATES, both=False
    ),
    "lerobot": Format("lerobot", layouts.write_lerobot, {"dones": "terminated"}, both=False, package="pyarrow"),
    "lerobot 2": Format("lerobot", layouts.write_lerobot_v2, {"dones": "terminated"}, both=False, package="pyarrow"),
    "minari": Format("minari", layouts.write_minari),
    "minari dictionary": Format(
        "minari", partial(layouts.write_minari, dictionary=True), {"observations": ["observation", "extra/goal"]}
    ),
    "prepared": Format("prepared", layouts.write_prepared),
}


@pytest.fixture(params=FORMATS)
def layout(request: pytest.FixtureRequest) -> Format:
    chosen = FORMATS[request.param]
    if chosen.package:
        pytest.importorskip(chosen.package)
    return chosen


def card(kind: str, **keys: Any) -> DatasetCard:
    return make_card("robot", {"path": "recording", "format": kind, **keys}, "card")


def episodes(ends: Sequence[str], lengths: Sequence[int] = (4, 1, 3, 6, 2, 5, 1, 3, 2, 4, 2)) -> list[Episode]:
    """Episodes of 3 numbers and 2 actions, ended by a ``terminal``, a ``timeout`` or both."""
    rng = np.random.default_rng(0)
    return [
        Episode(
            id=f"robot-{i:06d}",
            observations=rng.normal(size=(length + 1, 3)).astype(np.float32),
            actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rewards=rng.normal(size=length).astype(np.float32),
            terminated=end != "timeout",
            truncated=end != "terminal",
        )
        for i, (end, length) in enumerate(zip(ends, lengths, strict=False))
    ]


def test_the_same_episodes_come_back_from_every_format(tmp_path: Path, layout: Format) -> None:
    ends = ["terminal", "timeout", "both", "timeout", "terminal", "terminal", "timeout"] + ["timeout", "both"] * 2
    if not layout.both:
        ends = ["terminal" if end == "both" else end for end in ends]
    if not layout.terminals:
        ends = ["timeout"] * len(ends)
    expected = episodes(ends)
    path = layout.write(tmp_path, expected)
    assert_same(list(read(path, card(layout.name, **layout.keys))), expected)


@pytest.mark.parametrize("end", ["terminal", "timeout"])
def test_a_single_transition_comes_back_from_every_format(tmp_path: Path, layout: Format, end: str) -> None:
    expected = episodes([end if layout.terminals else "timeout"], [1])
    path = layout.write(tmp_path, expected)
    assert_same(list(read(path, card(layout.name, **layout.keys))), expected)


def test_actions_out_of_bounds_and_missing_recordings_are_refused_in_every_format(
    tmp_path: Path, layout: Format
) -> None:
    with pytest.raises(DataError, match="nothing: no such file, named as path by the dataset card robot"):
        read(tmp_path / "nothing", card(layout.name, **layout.keys))
    path = layout.write(tmp_path, episodes(["timeout"] * 3))
    with pytest.raises(DataError, match=r"actions: found .* expected a number in \[-1.0, 0.01\]"):
        read(path, card(layout.name, **layout.keys, action_high=0.01))


def test_a_folder_in_place_of_a_file_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a folder, expected a file for format: robomimic"):
        read(tmp_path, card("robomimic"))
    (tmp_path / "data.hdf5").write_bytes(b"")
    with pytest.raises(DataError, match=r"data.hdf5: found a file, expected a folder for format: minari"):
        read(tmp_path / "data.hdf5", card("minari"))


def test_every_file_of_a_folder_counts_as_source(
    tmp_path: Path, layout: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    path = layout.write(tmp_path, episodes(["timeout"] * 5))
    cards, out = tmp_path / "configs", tmp_path / "shards"
    cards.mkdir()
    values = {"path": str(path), "format": layout.name, **layout.keys}
    (cards / "robot.yaml").write_text(yaml.safe_dump(values))
    for fresh in (False, True):
        prepare(["robot"], cards=cards, root=tmp_path, out=out)
        assert ("fresh" in capsys.readouterr().out) == fresh
    sources = read_index(out / "robot")["provenance"]["sources"]
    for key in sources:
        assert Path(key).is_file()
    if path.is_file():
        assert set(sources) == {str(path)}
    elif layout.name == "lerobot":
        assert {Path(key).relative_to(path).parts[0] for key in sources} == {"data", "meta"}
        assert len(sources) == 7
    elif layout.name == "arrays":
        assert len(sources) == 6
    else:
        assert len(sources) == 2
    expected = layouts.ENVIRONMENT if layout.name in ("minari", "prepared") else None
    assert environment(path, card(layout.name, **layout.keys)) == expected
    assert load_dataset(out / "robot").env == expected


def test_a_changed_file_in_a_folder_makes_a_dataset_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = layouts.write_npy(tmp_path, episodes(["timeout"] * 3))
    cards = tmp_path / "configs"
    cards.mkdir()
    (cards / "robot.yaml").write_text(yaml.safe_dump({"path": "recording", "format": "arrays"}))

    def fresh() -> bool:
        prepare(["robot"], cards=cards, root=tmp_path, out=tmp_path / "shards")
        return "fresh" in capsys.readouterr().out

    assert [fresh(), fresh()] == [False, True]
    np.save(path / "notes.npy", np.ones(3))
    assert fresh()
    np.save(path / "rewards.npy", np.zeros(8, np.float32))
    assert [fresh(), fresh()] == [False, True]


def with_dones(folder: Path, values: Sequence[int]) -> Path:
    path = layouts.write_robomimic(folder, episodes(["timeout"], [4]))
    with h5py.File(path, "a") as file:
        file["data/demo_0/dones"][...] = values
    return path


def test_dones_mean_what_the_card_says(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"observations": ["eef_pos"]}
    path = with_dones(tmp_path, [0, 0, 1, 1])
    (episode,) = read(path, card("robomimic", **keys, dones="truncated"))
    assert (episode.length, episode.terminated, episode.truncated) == (4, False, True)
    with pytest.raises(DataError, match="demo_0: dones: found 1 in row 2 of 4, but the episode goes on"):
        read(path, card("robomimic", **keys, dones="terminated"))
    with pytest.raises(
        DataError, match=r"dones: this format does not say .* set dones: terminated or dones: truncated"
    ):
        read(path, card("robomimic", **keys))
    with_dones(tmp_path, [0, 0, 0, 2])
    with pytest.raises(DataError, match="demo_0: dones: found 2 in row 3, expected 0 or 1"):
        read(path, card("robomimic", **keys, dones="terminated"))
    with h5py.File(path, "a") as file:
        del file["data/demo_0/dones"]
    (episode,) = read(path, card("robomimic", **keys))
    assert episode.truncated
    with pytest.raises(DataError, match="dones: missing, but the card robot sets dones: terminated"):
        read(path, card("robomimic", **keys, dones="terminated"))


def put(name: str, values: Any) -> Callable[[Path], None]:
    """Replace an array of an HDF5 file, or delete it."""

    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]
            if values is not None:
                file[name] = values

    return apply


@pytest.mark.parametrize(
    ("spoil", "keys", "message"),
    [
        (None, {}, "demo_0: obs: the card robot names no observations; expected a list of some of agentview_image, eef"),
        (None, {"observations": ["eef"]}, "obs: found no eef; expected a list of some of agentview_image, eef_pos"),
        (None, {"observations": ["agentview_image"]}, "obs/agentview_image: found shape (4, 4, 4, 3), expected (rows, num"),
        (put("data/demo_0/obs", None), STATES, "demo_0: obs: missing; found actions, dones, next_obs"),
        (put("data/demo_0/actions", None), STATES, "demo_0: actions: missing"),
        (put("data/demo_1/actions", np.zeros((2, 2))), STATES, "demo_1: actions: found 2 rows, expected 1 as in obs"),
        (put("data/demo_1/obs/gripper", np.zeros(2)), STATES, "demo_1: obs/gripper: found 2 rows, expected 1 as in obs/e"),
        (put("data", None), STATES, "expected groups data/demo_0, data/demo_1, ..."),
    ],
)  # fmt: skip
def test_wrong_robomimic_files_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None] | None, keys: dict[str, Any], message: str
) -> None:
    path = layouts.write_robomimic(tmp_path, episodes(["terminal", "timeout"]))
    if spoil:
        spoil(path)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path, card("robomimic", **keys))
    assert str(path) in str(caught.value)


def test_demonstrations_with_missing_rows_are_refused(tmp_path: Path) -> None:
    path = layouts.write_robomimic(tmp_path, episodes(["terminal"]))
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["num_samples"] = 9
    with pytest.raises(DataError, match="demo_0: obs: found 4 rows, expected 9 by num_samples"):
        read(path, card("robomimic", **STATES))


def describe_as(**values: Any) -> Callable[[Path], None]:
    """Change ``metadata.json`` of a Minari dataset."""

    def apply(path: Path) -> None:
        file = path / "data" / "metadata.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return apply


def inside(apply: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: apply(path / "data" / "main_data.hdf5")


@pytest.mark.parametrize(
    ("spoil", "keys", "message"),
    [
        (describe_as(total_episodes=9), {}, "total_episodes: found 3, expected 9 as in metadata.json; if the dataset was"),
        (describe_as(total_steps=9), {}, "total_steps: found 8, expected 9 as in metadata.json"),
        (describe_as(data_format="arrow"), {}, "data_format: found arrow, expected hdf5"),
        (lambda path: (path / "data" / "metadata.json").write_text("{"), {}, "metadata.json: not valid JSON"),
        (lambda path: (path / "data" / "metadata.json").unlink(), {}, "so this is no Minari dataset: No such file"),
        (lambda path: (path / "data" / "main_data.hdf5").write_text(""), {}, "not a readable HDF5 file"),
        (inside(put("episode_1/rewards", None)), {}, "episode_1: rewards: missing; found"),
        (inside(put("episode_1/rewards", np.zeros(3))), {}, "episode_1: observations: found 2 rows, expected 4 for 3 rew"),
        (inside(put("episode_2/observations", np.zeros((4, 2)))), {}, None),
        (None, {"observations": ["observation"]}, "found one array, but the card robot names entries"),
    ],
)  # fmt: skip
def test_wrong_minari_datasets_are_refused(
    tmp_path: Path, spoil: Callable[[Path], Any] | None, keys: dict[str, Any], message: str | None
) -> None:
    path = layouts.write_minari(tmp_path, episodes(["terminal", "timeout", "timeout"]))
    if spoil:
        spoil(path)
    if message is None:  # whether episodes agree in size is checked where they are written
        cards = tmp_path / "configs"
        cards.mkdir()
        (cards / "robot.yaml").write_text(yaml.safe_dump({"path": str(path), "format": "minari"}))
        with pytest.raises(DataError, match="episode robot-000002: observation_dim: found 2, expected 3"):
            prepare(["robot"], cards=cards, root=tmp_path, out=tmp_path / "shards")
        return
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path, card("minari", **keys))
    assert str(path) in str(caught.value)


def test_a_spec_that_names_no_environment_is_refused(tmp_path: Path) -> None:
    path = layouts.write_minari(tmp_path, episodes(["terminal"]))
    describe_as(env_spec="{}")(path)
    with pytest.raises(
        DataError, match=r"env_spec: found '\{\}', expected JSON text of an object with the id of an environment"
    ):
        environment(path, card("minari"))
    describe_as(env_spec=None)(path)
    assert environment(path, card("minari")) is None


def test_minari_reads_by_id_what_minari_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    import gymnasium

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    expected = episodes(["terminal", "timeout", "both"])
    space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    minari.create_dataset_from_buffers(
        "hopper/test-v0",
        [
            minari.data_collector.EpisodeBuffer(
                observations=list(e.observations),
                actions=list(e.actions),  # type: ignore[arg-type]
                rewards=list(e.rewards),  # type: ignore[arg-type]
                terminations=[False] * (e.length - 1) + [e.terminated],
                truncations=[False] * (e.length - 1) + [e.truncated],
                infos={},
            )
            for e in expected
        ],
        env="Pendulum-v1",
        observation_space=space,
        action_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        data_format="hdf5",
    )
    cards, out = tmp_path / "configs", tmp_path / "shards"
    cards.mkdir()
    (cards / "robot.yaml").write_text(yaml.safe_dump({"dataset": "hopper/test-v0", "format": "minari"}))
    prepare(["robot"], cards=cards, root=tmp_path, out=out)
    dataset = load_dataset(out / "robot")
    assert dataset.env == "Pendulum-v1"
    assert_same(dataset.episodes, expected)


def test_a_failing_minari_download_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def fail(name: str) -> None:
        raise ValueError(f"Couldn't find any version for dataset {name}")

    monkeypatch.setattr(minari, "download_dataset", fail)
    cards = tmp_path / "configs"
    cards.mkdir()
    (cards / "robot.yaml").write_text(yaml.safe_dump({"dataset": "hopper/none-v0", "format": "minari"}))
    with pytest.raises(DataError, match="card robot: dataset hopper/none-v0: Minari cannot download it: Couldn't find"):
        prepare(["robot"], cards=cards, root=tmp_path, out=tmp_path / "shards")


def change_info(**values: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "meta" / "info.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return apply


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"episode_index": 0, "length": 2}\n{"episode_index": 1}\n',
            "episodes.jsonl: line 2: length: found None, expected",
        ),
        ('{"episode_index": 0, "length": 2}\n[', "episodes.jsonl: line 2: not valid JSON"),
        ('{"episode_index": 0, "length": 7}\n', "found 11 frames, expected 7 as in meta/episodes"),
    ],
)
def test_wrong_lists_of_episodes_of_older_lerobot_datasets_are_refused(
    tmp_path: Path, lines: str, message: str
) -> None:
    pytest.importorskip("pyarrow")
    path = layouts.write_lerobot_v2(tmp_path, episodes(["terminal", "timeout", "timeout"]))
    (path / "meta" / "episodes.jsonl").write_text(lines)
    with pytest.raises(DataError, match=re.escape(message)):
        read(path, card("lerobot", dones="terminated"))


def change_table(name: str, **columns: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path / name)
        for key, values in columns.items():
            index = table.column_names.index(key)
            table = table.remove_column(index) if values is None else table.set_column(index, key, [values])
        pyarrow.parquet.write_table(table, path / name)

    return apply


FIRST = "chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    ("spoil", "keys", "message"),
    [
        (change_info(codebase_version="v1.6"), {}, "codebase_version: found v1.6, expected v2.x or v3.x"),
        (change_info(features={"action": {"dtype": "float32"}}), {}, "observation.state: found nothing, expected a column"),
        (change_info(features=["action"]), {}, "features: found list, expected a description of each column"),
        (None, {"observations": ["observation.images.top"]}, "observation.images.top: found video, expected a column of n"),
        (None, {"dones": None}, "episode 0: next.done: this format does not say"),
        (lambda path: (path / "meta" / "info.json").unlink(), {}, "so this is no LeRobot dataset: No such file"),
        (lambda path: (path / "meta" / "info.json").write_text("["), {}, "info.json: not valid JSON"),
        (lambda path: (path / "data" / "chunk-000" / "file-001.parquet").unlink(), {}, "found 7 frames, expected 11 as in"),
        (lambda path: (path / "data" / FIRST).write_bytes(b"PAR1"), {}, "file-000.parquet: not a readable parquet file"),
        (lambda path: (path / "meta" / "episodes" / FIRST).unlink(), {}, "expected episodes 0, 1, ... of at least one frame"),
        (change_table(f"data/{FIRST}", action=None), {}, "action: missing"),
        (change_table(f"data/{FIRST}", frame_index=list(range(7))), {}, "frame_index: found 5 in row 5, expected 0 by meta"),
        (change_table(f"data/{FIRST}", action=[[0.0, 0.0]] * 6 + [None]), {}, "action: found 1 empty cells, expected"),
        (change_table(f"data/{FIRST}", action=[[0.0, 0.0]] * 6 + [[0.0]]), {}, "action: found lists of 1 to 2 numbers"),
        (change_table(f"data/{FIRST}", action=["a"] * 7), {}, "action: found object array, expected an array of numbers"),
    ],
)  # fmt: skip
def test_wrong_lerobot_datasets_are_refused(
    tmp_path: Path, spoil: Callable[[Path], Any] | None, keys: dict[str, Any], message: str
) -> None:
    pytest.importorskip("pyarrow")
    path = layouts.write_lerobot(tmp_path, episodes(["terminal", "timeout", "timeout"]))
    if spoil:
        spoil(path)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path, card("lerobot", **{"dones": "terminated", **keys}))
    assert str(path) in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "recording.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"parquet needs the package pyarrow: pip install 'dynarep\[parquet\]'"):
        read(tmp_path / "recording.parquet", card("arrays"))
    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.setitem(sys.modules, "minari.storage", None)
    cards = tmp_path / "configs"
    cards.mkdir()
    (cards / "robot.yaml").write_text(yaml.safe_dump({"dataset": "hopper/test-v0", "format": "minari"}))
    with pytest.raises(DataError, match=r"Minari ids need the package minari: pip install 'dynarep\[minari\]'"):
        prepare(["robot"], cards=cards, root=tmp_path, out=tmp_path / "shards")


def test_wrong_ogbench_files_are_refused(tmp_path: Path) -> None:
    path = layouts.write_ogbench(tmp_path, episodes(["timeout"] * 2))
    with np.load(path) as archive:
        columns = dict(archive)
    for change, message in (
        ({"terminals": None}, "terminals: missing; found observations"),
        ({"actions": None}, "actions: missing; found observations"),
        ({"terminals": np.full(7, 0.5)}, "terminals: found 0.5 in row 0, expected 0 or 1"),
        ({"valids": np.ones(3)}, "valids: found shape (3,), expected (7,) as terminals"),
        (
            {"timeouts": np.zeros(7)},
            "timeouts: OGBench's files have none; found observations, actions, rewards, terminals",
        ),
        (
            {"observations": np.zeros((7, 8, 8, 3), np.uint8)},
            "observations: found shape (7, 8, 8, 3), expected (rows, num",
        ),
    ):
        np.savez(path, **{name: values for name, values in {**columns, **change}.items() if values is not None})
        with pytest.raises(DataError, match=re.escape(message)):
            read(path, card("ogbench"))


def test_a_folder_without_arrays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="observations: missing; found none of observations, next_observations"):
        read(tmp_path, card("arrays"))


def test_episodes_from_python_are_checked_and_become_a_dataset(tmp_path: Path) -> None:
    made = episodes(["terminal", "timeout"])
    write_episodes(tmp_path / "mine", iter(made), env="Hopper-v5", action_high=(1.0, 2.0))
    dataset = load_dataset(tmp_path / "mine")
    assert_same(dataset.episodes, made)
    assert (dataset.env, dataset.spec.action_high) == ("Hopper-v5", (1.0, 2.0))
    with pytest.raises(DataError, match="found no episodes, expected at least one"):
        write_episodes(tmp_path / "none", [])
    with pytest.raises(DataError, match=r"robot-000000: actions: found .* expected a number in \[-1.0, 0.0\]"):
        write_episodes(tmp_path / "mine", made, action_high=0.0)
    with pytest.raises(DataError, match="episode robot-000000 occurs twice"):
        write_episodes(tmp_path / "mine", [*made, made[0]])
    with pytest.raises(DataError, match="action_high: found 3 numbers, expected 2"):
        write_episodes(tmp_path / "mine", made, action_high=(1.0, 1.0, 1.0))
    assert_same(load_dataset(tmp_path / "mine").episodes, made)
    states = [replace(episode, actions=None, rewards=None) for episode in made]
    write_episodes(tmp_path / "states", states)
    assert load_dataset(tmp_path / "states").spec.action_dim == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "x", "format": "ogbench", "dones": "terminated"}, "dones: only for format d4rl and arrays and robomimic"),
        ({"path": "x", "format": "prepared", "leave_out": "faulty"}, "leave_out: only for format d4rl and arrays"),
        ({"path": "x", "format": "minari", "subset": "train"}, "subset: only for format robomimic, this card has minari"),
        ({"from": "x", "leave_out": [3]}, "leave_out: only for format d4rl and arrays and"),
        ({"path": "x", "format": "arrays", "observations": ["a"]}, "observations: only for format robomimic and minari"),
        ({"dataset": "x", "format": "arrays"}, "dataset: only for format d4rl and minari, this card has arrays"),
        ({"dataset": "x"}, "dataset and format: found only one of them, expected both"),
        ({"dataset": "x", "path": "y", "format": "d4rl"}, "found path and dataset, expected exactly one of path, dataset"),
        ({"path": "x", "format": "d4rl", "mirrors": ["u"]}, "mirrors: only for a dataset given by name"),
        ({"dataset": "x", "format": "d4rl", "sha256": "abc"}, "sha256: found 'abc'"),
    ],
)  # fmt: skip
def test_keys_belong_to_formats(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make_card("robot", values, "card")
