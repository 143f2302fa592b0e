"""Dataset cards, what they make of recordings, and what the prepare stage leaves alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dynarep.configs.params import ParamsError
from dynarep.data.card import card_names, load_card
from dynarep.data.prepare import prepare
from dynarep.data.schema import DataError
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline.entries import datasets_of, read_entry
from dynarep.stages import prepare as stage

ROOT = Path(__file__).parents[1]


class Project:
    """A folder with cards and recordings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cards = root / "configs" / "datasets"
        self.out = root / "artifacts" / "shards"
        self.cards.mkdir(parents=True)

    def card(self, name: str, **values: Any) -> None:
        (self.cards / f"{name}.yaml").write_text(yaml.safe_dump(values))

    def record(
        self, name: str, returns: list[float], *, drop: tuple[str, ...] = (), dim: int = 3, seed: int = 0
    ) -> None:
        """Episodes of 4, 5, 6, ... transitions with the given returns, all but the first truncated."""
        rng = np.random.default_rng(seed)
        columns: dict[str, list[np.ndarray]] = {}
        for i, total in enumerate(returns):
            rows = 4 + i
            states = rng.normal(size=(rows + 1, dim)).astype(np.float32)
            last = np.arange(rows) == rows - 1
            part = {
                "observations": states[:-1],
                "next_observations": states[1:],
                "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
                "rewards": last * np.float32(total),
                "terminals": last & (i == 0),
            }
            for key, values in part.items():
                columns.setdefault(key, []).append(values)
        path = self.root / "data" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **{key: np.concatenate(values) for key, values in columns.items() if key not in drop})

    def recorded(self, name: str, returns: list[float], *, card: dict[str, Any] | None = None, **options: Any) -> None:
        self.record(name, returns, **options)
        self.card(name, path=f"data/{name}.npz", format="arrays", **(card or {}))

    def prepare(self, *names: str) -> Dataset:
        prepare(names, cards=self.cards, root=self.root, out=self.out)
        return load_dataset(self.out / names[0])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    result = Project(tmp_path)
    result.recorded("walk", [3.0, 9.0, 1.0, 7.0], card={"env": "Hopper-v4"})
    return result


def ids(dataset: Dataset) -> list[str]:
    return [episode.id for episode in dataset.episodes]


def test_a_recording_is_prepared_as_it_is(project: Project) -> None:
    dataset = project.prepare("walk")
    assert ids(dataset) == [f"walk-{i:06d}" for i in range(4)]
    assert [e.length for e in dataset.episodes] == [4, 5, 6, 7]
    assert dataset.returns == [3.0, 9.0, 1.0, 7.0]
    assert dataset.env == "Hopper-v4"
    assert dataset.spec.action_low == (-1.0, -1.0)
    assert [e.terminated for e in dataset.episodes] == [True, False, False, False]


def test_top_keeps_the_best_in_recorded_order(project: Project) -> None:
    project.card("best", **{"from": "walk", "top": 2})
    dataset = project.prepare("best")
    assert ids(dataset) == ["walk-000001", "walk-000003"]
    assert dataset.returns == [9.0, 7.0]
    assert dataset.env == "Hopper-v4"
    assert not (project.out / "walk").exists(), "the base card is read from its source, not prepared"
    project.card("best", **{"from": "walk", "top": 5})
    with pytest.raises(DataError, match="card best: top: found 5, expected at most 4"):
        project.prepare("best")


def test_top_needs_rewards(project: Project) -> None:
    project.recorded("silent", [0.0, 0.0], drop=("rewards",))
    project.card("best", **{"from": "silent", "top": 1})
    with pytest.raises(DataError, match="card best: top: 1 chooses by return, but the episodes have no rewards"):
        project.prepare("best")


def test_observations_only_keeps_the_returns(project: Project) -> None:
    project.card("states", **{"from": "walk", "observations_only": True})
    project.card("best", **{"from": "states", "top": 1})
    dataset = project.prepare("states")
    assert (dataset.spec.action_dim, dataset.spec.action_low, dataset.spec.has_rewards) == (0, (), False)
    assert dataset.returns == [3.0, 9.0, 1.0, 7.0]
    assert all(e.actions is None and e.rewards is None for e in dataset.episodes)
    assert set(dataset.statistics) == {"observation_mean", "observation_std"}
    assert ids(project.prepare("best")) == ["walk-000001"]


def test_stride_comes_after_top_and_returns_are_of_whole_episodes(project: Project) -> None:
    whole = project.prepare("walk")
    project.card("sparse", **{"from": "walk", "top": 2, "stride": 3})
    dataset = project.prepare("sparse")
    assert [e.length for e in dataset.episodes] == [2, 3]
    assert dataset.returns == [9.0, 7.0]
    np.testing.assert_array_equal(dataset.episodes[0].current, whole.episodes[1].current[[0, 3]])
    np.testing.assert_array_equal(dataset.episodes[0].successors, whole.episodes[1].successors[[0, 3]])


def test_a_stride_may_begin_anywhere_which_the_episode_decides(project: Project) -> None:
    project.recorded("run", [1.0] * 30, card={"env": "Hopper-v4"})
    whole = project.prepare("run")
    project.card("sparse", **{"from": "run", "stride": 2, "stride_offset": "random"})
    dataset = project.prepare("sparse")
    starts = []
    for episode, complete in zip(dataset.episodes, whole.episodes, strict=True):
        starts.append(0 if np.array_equal(episode.current[0], complete.current[0]) else 1)
        np.testing.assert_array_equal(episode.current, complete.current[starts[-1] :: 2])
        np.testing.assert_array_equal(episode.successors, complete.successors[starts[-1] :: 2])
    assert 5 < sum(starts) < 25
    assert [e.length for e in project.prepare("sparse").episodes] == [e.length for e in dataset.episodes]


def test_a_mixture_joins_whole_and_partial_datasets(project: Project) -> None:
    project.recorded("run", [2.0] * 8, seed=1, card={"env": "Hopper-v4"})
    project.card("both", mix=["walk", {"name": "run", "fraction": 0.5}])
    dataset = project.prepare("both", "walk", "run")
    names = ids(dataset)
    assert names[:4] == [f"walk-{i:06d}" for i in range(4)]
    assert len(names) == 8
    assert names[4:] == sorted(names[4:])
    assert dataset.returns == [3.0, 9.0, 1.0, 7.0, 2.0, 2.0, 2.0, 2.0]
    assert dataset.env == "Hopper-v4"
    project.card("again", mix=[{"name": "run", "fraction": 0.5}])
    assert ids(project.prepare("again")) == names[4:]
    project.card("little", mix=[{"name": "run", "fraction": 0.01}])
    assert len(project.prepare("little").episodes) == 1


def test_members_of_a_mixture_must_fit(project: Project) -> None:
    env = {"env": "Hopper-v4"}
    project.recorded("wide", [1.0], dim=4, seed=1, card=env)
    project.recorded("strong", [1.0], seed=2, card={**env, "action_high": 2.0})
    project.recorded("passive", [1.0], seed=3, drop=("actions",), card=env)
    project.recorded("foreign", [1.0], seed=4, card={"env": "Walker2d-v4"})
    for name, message in (
        ("wide", "card both: observation_dim: found 4 in wide and 3 in walk, expected the same"),
        (
            "strong",
            "card both: action bounds: found ((-1.0, -1.0), (2.0, 2.0)) in strong and ((-1.0, -1.0), (1.0, 1.0))",
        ),
        ("passive", "card both: action_dim: found 0 in passive and 2 in walk"),
        (
            "foreign",
            "card both: env: found Walker2d-v4 in foreign and Hopper-v4 in walk, expected the same; or set env",
        ),
    ):
        project.card("both", mix=["walk", name])
        with pytest.raises(DataError, match=re.escape(message)):
            project.prepare("both")
    project.card("best", **{"from": "walk", "top": 1})
    project.card("both", mix=["walk", "best"])
    with pytest.raises(DataError, match="card both: mix: best and walk share episode walk-000001"):
        project.prepare("both")
    project.card("both", mix=["walk", "foreign"], env="Hopper-v5")
    assert project.prepare("both").env == "Hopper-v5"
    project.card("both", mix=["walk", "passive"], observations_only=True)
    assert len(project.prepare("both").episodes) == 5


def test_a_mixture_has_rewards_only_if_every_member_has(project: Project) -> None:
    project.recorded("silent", [1.0], seed=1, drop=("rewards",), card={"env": "Hopper-v4"})
    project.card("both", mix=["walk", "silent"])
    dataset = project.prepare("both")
    assert not dataset.spec.has_rewards
    assert dataset.returns is None
    assert dataset.spec.action_dim == 2


def test_fresh_datasets_are_left_alone_and_stale_ones_rebuilt(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.card("best", **{"from": "walk", "top": 1})

    def lines() -> list[str]:
        project.prepare("walk", "best")
        return capsys.readouterr().out.splitlines()

    fresh = ["walk: 4 episodes, 22 steps, fresh", "best: 1 episode, 5 steps, fresh"]
    built = ["walk: 4 episodes, 22 steps -> artifacts/shards/walk", "best: 1 episode, 5 steps -> artifacts/shards/best"]
    assert lines() == built
    stamp = (project.out / "walk" / "index.json").stat().st_mtime_ns
    assert lines() == fresh
    assert (project.out / "walk" / "index.json").stat().st_mtime_ns == stamp
    project.card("best", description="words change nothing", **{"from": "walk", "top": 1})
    assert lines() == fresh
    project.card("best", **{"from": "walk", "top": 1, "env": "Hopper-v5"})
    assert lines() == [fresh[0], built[1]]
    project.card("walk", path="data/walk.npz", format="arrays", env="Hopper-v4", action_high=2.0)
    assert lines() == built
    project.record("walk", [3.0, 9.0, 1.0, 8.0])
    assert lines() == built
    shard = project.out / "walk" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert lines() == [built[0], fresh[1]]
    shard.unlink()
    assert lines() == [built[0], fresh[1]]
    (project.out / "best" / "index.json").write_text("{")
    assert lines() == [fresh[0], built[1]]
    assert lines() == fresh


def test_a_failed_preparation_keeps_what_was_there(project: Project) -> None:
    before = project.prepare("walk").fingerprint
    (project.root / "data" / "walk.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"walk\.npz: not a readable \.npz archive"):
        project.prepare("walk")
    assert load_dataset(project.out / "walk").fingerprint == before
    (project.root / "data" / "walk.npz").unlink()
    with pytest.raises(DataError, match=r"walk\.npz: cannot be read, named as path by a dataset card: No such file"):
        project.prepare("walk")


def test_all_cards_are_checked_before_anything_is_written(project: Project) -> None:
    with pytest.raises(DataError, match=r"unknown dataset 'wlak'; .* has walk"):
        project.prepare("walk", "wlak")
    assert not project.out.exists()


def test_references_of_cards_are_checked(project: Project) -> None:
    project.card("a", **{"from": "b"})
    with pytest.raises(DataError, match=r"a\.yaml: unknown dataset 'b'; .* has a, walk"):
        project.prepare("a")
    project.card("b", mix=["walk", "a"])
    with pytest.raises(DataError, match="refer to each other in a circle: a -> b -> a"):
        project.prepare("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: x\n", "path and format: found only one of them, expected both"),
        ("format: d4rl\nfrom: walk\n", "path and format: found only one of them"),
        ("path: x\nformat: csv\n", "format: found 'csv': Input should be 'd4rl', 'arrays', 'ogbench'"),
        ("env: Hopper-v4\n", "found no source, expected exactly one of path, dataset, shards, mix and from"),
        (
            "from: walk\nmix: [walk]\n",
            "found mix and from, expected exactly one of path, dataset, shards, mix and from",
        ),
        ("from: walk\ntopp: 1\n", "topp: unknown key, expected one of description, path, dataset, format, mirrors"),
        ("base: walk\n", "base: unknown key"),
        ("name: x\nfrom: walk\n", "name: unknown key; a card is named by its file"),
        ("from: walk\ntop: 0\n", "top: found 0: Input should be greater than 0"),
        ("from: walk\nstride: two\n", "stride: found 'two'"),
        ("from: walk\nstride_offset: random\n", "stride_offset: found 'random' without stride, expected both"),
        ("from: walk\naction_low: -2\n", "action_low, action_high: only a card with path or dataset sets bounds"),
        ("mix: []\n", "mix: found []"),
        ("mix: [{name: walk, fraction: 1.5}]\n", "mix.0.fraction: found 1.5: Input should be less than or equal to 1"),
        ("mix: [{name: walk, share: 0.5}]\n", "mix.0.share: unknown key, expected one of name, fraction"),
        ("- walk\n", "found list, expected a mapping"),
        ("", "found NoneType, expected a mapping"),
        ("from: [walk\n", "not valid YAML"),
    ],
)
def test_wrong_cards_are_refused_by_file_and_key(project: Project, text: str, message: str) -> None:
    path = project.cards / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_card("wrong", project.cards)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_card_is_named_like_a_file(project: Project) -> None:
    project.card("walk.v2", **{"from": "walk"})
    with pytest.raises(DataError, match=r"name: found 'walk.v2', expected at most 80 letters"):
        load_card("walk.v2", project.cards)


def test_every_shipped_card_loads() -> None:
    folder = ROOT / "configs" / "datasets"
    names = card_names(folder)
    assert {"hopper-arbitrary", "hopper-expert", "hopper-expert-1", "hopper-expert-1-states"} <= set(names)
    for name in names:
        for member in load_card(name, folder).members:
            assert member.name in names


def write_params(project: Project, **sections: Any) -> Path:
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump({"seed": 0, **sections}))
    return path


def run_stage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", "--params", str(path)])
    stage.stage_main("prepare", stage.main)


def test_the_stage_prepares_what_the_others_name(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("best", "states", "noise", "unused"):
        project.card(name, **{"from": "walk", "top": 1, "observations_only": name == "states"})
    for name in ("shown", "moved"):
        project.card(name, **{"from": "walk", "top": 2})
    path = write_params(
        project,
        defaults={"pretrain": {"dataset": "unused"}},
        pretrain={"a": {"kind": "identity", "dataset": "walk", "initial": "none"}, "b": {"dataset": "noise"}},
        relabel={"a": {"kind": "progress", "dataset": "walk", "demonstrations": "states", "space": "a"}},
        learn={
            "bc": {"dataset": "none", "demonstrations": "best"},
            "random": {"dataset": "walk", "demonstrations": "none"},
        },
        evaluate={"episodes": 3, "demonstrations": "shown", "motion": {"dataset": "moved", "space": "a"}},
    )
    run_stage(path, monkeypatch)
    assert sorted(folder.name for folder in project.out.iterdir()) == [
        *("best", "moved", "noise", "none", "shown", "states", "walk"),
    ]
    assert [file.name for file in (project.out / "none").iterdir()] == ["nothing"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pretrain": {"a": {"dataset": "wlak"}}}, "pretrain.a.dataset: found 'wlak', expected one of walk"),
        (
            {"pretrain": {"a": {"dataset": "walk"}, "b": {"dataset": "wlak"}}, "learn": {"bc": {"dataset": "wlak"}}},
            "pretrain.b.dataset: found 'wlak', expected one of walk",
        ),
        (
            {"relabel": {"a": {"demonstrations": "wlak"}}},
            "relabel.a.demonstrations: found 'wlak', expected one of walk",
        ),
        ({"learn": {"a": {"dataset": None}}}, "learn.a.dataset: found None, expected a name of"),
        ({"learn": {"a": {"demonstrations": ["walk"]}}}, "learn.a.demonstrations: found ['walk'], expected a name"),
        ({"evaluate": {"demonstrations": "wlak"}}, "evaluate.demonstrations: found 'wlak', expected one of walk"),
        ({"evaluate": {"demonstrations": {"a": 1}}}, "evaluate.demonstrations: found {'a': 1}, expected a name"),
        ({"evaluate": {"motion": {"dataset": "wlak"}}}, "evaluate.motion.dataset: found 'wlak', expected one of walk"),
        ({"pretrain": "walk"}, "pretrain: found str, expected a map of entries by name"),
    ],
)
def test_an_unknown_dataset_is_one_line_with_the_known_ones(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    message: str,
) -> None:
    path = write_params(project, **sections)
    with pytest.raises(SystemExit) as exit_:
        run_stage(path, monkeypatch)
    assert exit_.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: {message}" in line
    assert not project.out.exists()


@pytest.mark.parametrize(
    ("section", "kind", "keys"),
    [
        ("pretrain", "identity", ("dataset",)),
        ("relabel", "constant", ("dataset", "demonstrations")),
        ("learn", "random", ("dataset", "demonstrations")),
    ],
)
def test_an_entry_without_its_dataset_is_one_line(
    project: Project, section: str, kind: str, keys: tuple[str, ...]
) -> None:
    whole = {"kind": kind, **dict.fromkeys(keys, "walk")}
    path = write_params(project, **{section: {"a": whole}})
    assert read_entry(path, section, "a").inputs.dataset == "walk"
    for key in keys:
        write_params(project, **{section: {"a": {k: value for k, value in whole.items() if k != key}}})
        with pytest.raises(ParamsError) as error:
            read_entry(path, section, "a")
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"{path}: {section}.a.{key}: missing")


def test_the_light_path_imports_nothing_heavy() -> None:
    code = (
        "import sys, dynarep.data, dynarep.stages.prepare, dynarep.data.card, dynarep.data.prepare, dynarep.data.shards\n"
        "heavy = {'torch', 'lightning', 'h5py', 'webdataset', 'gymnasium', 'matplotlib'} & set(sys.modules)\n"
        "print(*heavy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_every_dataset_key_of_the_shipped_params_is_prepared() -> None:
    """A ``dataset`` or ``demonstrations`` that a stage reads but prepare does not know would be missing at run time."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    del values["defaults"]
    expected: dict[str, str] = {}

    def renamed(found: Any, prefix: str = "") -> Any:
        """A copy in which every key names a dataset of its own, so that none hides behind another."""
        if not isinstance(found, dict):
            return found
        copy = {key: renamed(value, f"{prefix}{key}.") for key, value in found.items()}
        for key in {"dataset", "demonstrations"} & copy.keys():
            copy[key] = f"dataset-{len(expected)}"
            expected[copy[key]] = f"{prefix}{key}"
        return copy

    assert datasets_of(renamed(values)) == expected
    assert {key.partition(".")[0] for key in expected.values()} == {"pretrain", "relabel", "learn", "evaluate"}
    assert datasets_of(values).keys() <= set(card_names(ROOT / "configs" / "datasets"))
