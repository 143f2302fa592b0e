"""The score benchmark: presets, settings, stages in order, resuming, failures, tables."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import distances, presets, scores, tables, throughput
from dynarep.configs.params import validate
from dynarep.pipeline.entries import datasets_of, parse_entry, read_params, section_of
from dynarep.pipeline.playing.play import EvaluateConfig
from dynarep.pipeline.registry import ROOMS

ROOT = Path(__file__).parents[1]
WHOLE = sorted((ROOT / "configs" / "presets").glob("*.yaml"))
GRIDS = [path.stem for path in sorted(presets.PRESETS.glob("*.yaml"))]


def check(values: dict[str, Any], cards: set[str], where: str) -> None:
    """All entries are as their kinds expect, and name what is there."""
    names = {section: {"none", *section_of(values, section, where)} for section in ROOMS}
    for section in ROOMS:
        for name, entry in section_of(values, section, where).items():
            inputs = parse_entry(section, name, entry, f"{where}: {section}.{name}").inputs
            for key, room in (
                ("initial", "pretrain"),
                ("space", "pretrain"),
                ("encoder", "pretrain"),
                ("rewards", "relabel"),
            ):
                assert getattr(inputs, key, "none") in names[room], f"{where}: {section}.{name}.{key}"
    settings = validate(EvaluateConfig, values["evaluate"], f"{where}: evaluate")
    assert {*datasets_of(values), settings.demonstrations} <= cards, where
    assert {"demonstrations", "motion"} <= set(values["evaluate"]), "dvc.yaml reads them"


def embedded_cards() -> set[str]:
    return {path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")}


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_every_params_file_is_read(path: Path) -> None:
    check(read_params(path), embedded_cards(), path.stem)


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_is_read(name: str) -> None:
    for title, setting in presets.settings_of(presets.load_preset(name)).items():
        check(setting.params, embedded_cards() | set(setting.cards), f"{name}/{title}")


def test_every_stored_result_has_its_entry() -> None:
    gone = {"ablation-repr": {"label_noise_expert"}}  # p_n is of the data that are trained on now
    for path in tables.RESULTS.glob("*.json"):
        if path.stem in GRIDS:
            settings = presets.settings_of(presets.load_preset(path.stem))
            for cell in tables.read_cells(path.stem):
                assert cell["method"] in {*settings[cell["setting"]].params["learn"], *gone.get(path.stem, ())}


def test_every_command_of_the_results_page_chooses_methods() -> None:
    page = (ROOT / "docs" / "results.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ +python -m benchmarks\.scores (.+)$", page, re.M)
    assert len(commands) >= 8
    for command in commands:
        options = scores.parse(shlex.split(command))
        settings = presets.settings_of(presets.load_preset(options.preset))
        assert any(scores.chosen(settings, options.entries).values()), command


def test_defaults_are_of_sections_and_kinds_and_a_setting_changes_them() -> None:
    preset = {
        "seed": 0,
        "cards": {"expert": {"from": "all", "top": 1}},
        "defaults": {"learn": {"dataset": "data"}, "iql": {"hidden": [8], "training": {"updates": 5, "batch_size": 2}}},
        "learn": {"a": {"kind": "iql", "training": {"updates": 6}}, "b": {"kind": "bc"}},
        "settings": {
            "one": {"cards": {"data": {"path": "x"}}},
            "two": {"seed": 1, "defaults": {"iql": {"hidden": [9]}}},
        },
    }
    found = presets.settings_of(preset)
    assert found["one"].params["learn"] == {
        "a": {"dataset": "data", "hidden": [8], "training": {"updates": 6, "batch_size": 2}, "kind": "iql"},
        "b": {"dataset": "data", "kind": "bc"},
    }
    assert set(found["one"].cards) == {"expert", "data"}
    assert set(found["two"].cards) == {"expert"}
    assert (found["one"].params["seed"], found["two"].params["seed"]) == (0, 1)
    assert found["two"].params["learn"]["a"]["hidden"] == [9]


def test_refusals_name_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        presets.load_preset("x")
    needs = presets.Setting({}, {"data": {"path": "recordings/a.hdf5"}})
    with pytest.raises(ValueError, match=r"recordings/a\.hdf5: needs --recordings"):
        presets.lay_out(needs, tmp_path, None)
    with pytest.raises(SystemExit, match="'nothing' matches no method of embedded"):
        scores.main(["--preset", "reduced", "--entries", "nothing"])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of shell commands, b and c from a, d from both, each of which counts its runs."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    folder = tmp_path / "preset" / "setting"
    folder.mkdir(parents=True)
    reads = {"a": ["in"], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    stages = {
        name: {"cmd": f"cat {' '.join(deps)} > {name} && echo run >> runs-{name}", "deps": deps, "outs": [name]}
        for name, deps in reads.items()
    }
    (folder / "in").write_text("1")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    presets.dvc(folder, "init", "--quiet", "--no-scm", check=True)
    return folder


def test_stages_run_after_what_they_depend_on_and_once(project: Path) -> None:
    graph = scores.graph_of(project)
    assert graph == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}}
    assert set(scores.needed(graph, ["c"])) == {"a", "c"}
    for _ in range(2):
        done: list[str] = []
        assert scores.run_stages(project, graph, 2, done.append) == []
        assert sorted(done) == list("abcd")
        assert (done[0], done[-1]) == ("a", "d")
    assert (project / "d").read_text() == "11"
    assert {name: (project / f"runs-{name}").read_text() for name in "abcd"} == dict.fromkeys("abcd", "run\n")


def test_a_failure_stops_what_depends_on_it_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    graph["stages"]["b"]["cmd"] = "echo 'error: broken'; exit 1"
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    done: list[str] = []
    assert scores.run_stages(project, scores.graph_of(project), 2, done.append) == ["b"]
    assert done == ["a", "c"]
    assert "b failed: error: broken" in capsys.readouterr().err
    assert not (project / "d").exists()


def test_a_grid_depends_on_no_code(tmp_path: Path) -> None:
    preset = presets.load_preset("hopper")
    (tmp_path / "recordings").mkdir()
    presets.lay_out(presets.settings_of(preset)["mixed"], tmp_path / "p" / "mixed", tmp_path / "recordings")
    folder = tmp_path / "p" / "mixed"
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    deps = [path for stage in stages.values() for path in stage.get("do", stage)["deps"]]
    assert {path for path in deps if not path.startswith("artifacts/")} == {
        "configs/datasets",
        "recordings/hopper-mixed.hdf5",
        "recordings/hopper-expert.hdf5",
    }
    assert yaml.safe_load((folder / "configs" / "datasets" / "expert.yaml").read_text()) == {
        "from": "every-expert",
        "top": 1,
    }
    graph = scores.graph_of(folder)
    assert set(scores.needed(graph, ["evaluate@repr_value_dice"])) == {
        *("none", "prepare", "pretrain@dynamics", "learn@repr_value_dice", "evaluate@repr_value_dice")
    }
    true = {"relabel@recorded", "evaluate@true_top3", "learn@true_top3"}
    assert set(scores.needed(graph, ["evaluate@true_top3"])) == {"none", "prepare", *true}


def cell_of(setting: str, method: str, returns: dict[str, list[list[float]]], **changes: Any) -> dict[str, Any]:
    return {
        "setting": setting,
        "method": method,
        "key": "k",
        "params": {},
        "env": "Unknown-v0",
        "returns": returns,
        "demonstrations_return": 100.0,
        "random_return": 0.0,
        "budget": {"updates": 10, "batch_size": 2, "transitions": 1234, "seconds": {"imitate": 1.0, "evaluate": 2.0}},
        **changes,
    }


def test_best_takes_the_best_snapshot_of_each_replica() -> None:
    cell = cell_of("s", "m", {"last": [[1.0, 3.0], [9.0, 9.0]], "5": [[4.0, 4.0], [0.0, 0.0]]})
    np.testing.assert_array_equal(tables.best(cell), [[4.0, 4.0], [9.0, 9.0]])
    np.testing.assert_array_equal(tables.last(cell), [[1.0, 3.0], [9.0, 9.0]])


def test_table_has_score_interval_budget_and_total() -> None:
    cells = [
        cell_of("s", "low", {"last": [[10.0, 10.0]]}),
        cell_of("s", "high", {"last": [[50.0, 50.0]], "5": [[60.0, 60.0]]}),
        cell_of("t", "high", {"last": [[70.0, 70.0]]}),
    ]
    text = tables.score_table(cells)
    assert "| high | 50.0 [50.0, 50.0] | 60.0 [60.0, 60.0] | 0.50 | 1 x 2 | 10 x 2 | 1,234 | 3 |" in text
    assert text.index("| high |") < text.index("| low |")
    assert "**total over 2 settings**" in text
    assert text.count("| high | 60.0 [60.0, 60.0] |") == 1
    assert "**t**" not in tables.score_table(cells, ["s"])


def test_grid_has_success_rates_expert_fractions_and_what_all_settings_say() -> None:
    learned = {"pretrain.m": {"kind": "temporal_metric"}}
    cells = [
        cell_of("maze", "raw_top", {"last": [[-9.0, -9.0]]}, successes=[[0.0, 1.0]]),
        cell_of("maze", "metric_top", {"last": [[-9.0, -9.0]]}, successes=[[1.0, 1.0]], params=learned),
        cell_of("hopper", "raw_top", {"last": [[20.0, 20.0]]}, successes=[[math.nan, math.nan]]),
        cell_of("hopper", "metric_top", {"last": [[60.0, 60.0]]}, successes=[[math.nan, math.nan]], params=learned),
        cell_of("hopper", "bc", {"last": [[70.0, 70.0]]}),
    ]
    lines = tables.grid(cells).splitlines()
    assert lines[0] == "| method | maze | hopper | all | P(better) |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| **metric_top**", "| raw_top", "| bc"]
    assert "| 0.60 [0.60, 0.60] |" in lines[2]
    assert lines[2].startswith("| **metric_top** | 1.00 [")
    assert lines[2].endswith("| 0.88 |"), "of 2 x 2 pairs half are won and half tie in the maze, all are won in hopper"
    assert lines[3].startswith("| raw_top | 0.50 [")
    assert lines[4] == "| bc | - | 0.70 [0.70, 0.70] | - | - |"


def test_matrix_has_a_row_per_label_and_a_column_per_space() -> None:
    labels = {"spearman_true_return": 0.5}
    cells = [
        cell_of("s", "near_raw_iql", {"last": [[10.0, 10.0]]}, labels=labels),
        cell_of("s", "near_psi_iql", {"last": [[20.0, 20.0]]}, labels={"spearman_true_return": None}),
        cell_of("s", "far_psi_iql", {"last": [[30.0, 30.0]]}, labels=labels),
        cell_of("s", "far_psi_top3", {"last": [[90.0, 90.0]]}, labels=labels),
    ]
    assert tables.matrix(cells, "iql").splitlines() == [
        "| label | raw | psi |",
        "|---|---|---|",
        "| near | 10.0 [10.0, 10.0; 0.50] | 20.0 [20.0, 20.0; -] |",
        "| far |  | 30.0 [30.0, 30.0; 0.50] |",
    ]


def test_paths_go_around_a_wall() -> None:
    """Out, across and back: the two ends are two apart in a line, and 22 along the way that was recorded."""
    out = np.stack([np.arange(11.0), np.zeros(11)], 1)
    way = np.concatenate([out, [[10.0, 1.0]], out[::-1] + np.array([0.0, 2.0])]) + 0.5
    found = distances.shortest_paths([way], way[[0, 5, 22]], 1.0)
    np.testing.assert_allclose(found, [[0, 5, 22], [5, 0, 17], [22, 17, 0]])


def test_agreement_with_paths_by_hand() -> None:
    steps, straight = np.array([10.0, 50.0, 150.0, 300.0, np.inf]), np.array([10.0, 50.0, 20.0, 40.0, 10.0])
    knows = distances.agreement(np.array([1.0, 2.0, 3.0, 4.0, 9.0]), steps, straight)
    assert knows == pytest.approx({"spearman": 1.0, "spearman_near": 1.0, "auc": 1.0})
    assert distances.agreement(straight, steps, straight)["auc"] == pytest.approx(2.5 / 6)


def test_linearity_by_hand() -> None:
    steps = np.array([1.0, 2.0, 3.0, 4.0])
    assert distances.linearity(steps**2, steps) == pytest.approx(
        {"spearman": 1.0, "r_squared": 1.0, "r_squared_of_squares": np.corrcoef(steps**2, steps)[0, 1] ** 2}
    )
    assert distances.linearity(steps, steps)["r_squared_of_squares"] == pytest.approx(1.0)
    assert distances.linearity(np.array([1.0, 4.0, 1.0, 4.0]), steps)["spearman"] < 0.5


def test_overlap_of_choices_by_hand() -> None:
    lengths = [30, 10, 10, 50]
    clean = np.array([3.0, 2.0, 1.0, 0.0])  # 40 % are episodes 0 and 1
    assert distances.overlap(clean, clean, lengths, 0.4) == 1.0
    assert distances.overlap(np.array([3.0, 1.0, 2.0, 0.0]), clean, lengths, 0.4) == pytest.approx(30 / 40)
    assert distances.overlap(np.array([0.0, 1.0, 2.0, 0.0]), clean, lengths, 0.1) == 0.0


def test_distances_store_and_table(tmp_path: Path) -> None:
    path = tmp_path / "distances.json"
    store = distances.Store(path)
    store.add("noise", "hopper_white", "raw", {"overlap": [0.25]})
    store.add("noise", "hopper_white", "metric", {"overlap": [1.0, 0.8], "return": [3000.0, 3100.0]})
    distances.Store(path).add("paths", "maze", "raw", {"spearman": [0.5], "spearman_near": [0.25], "auc": [0.75]})
    stored = json.loads(path.read_text())
    assert tables.distances_table("noise", stored["noise"]).splitlines()[2:] == [
        "| hopper_white | metric | 0.900 [0.800, 1.000] | 3,050 [3,000, 3,100] | - |",
        "| hopper_white | raw | 0.250 [0.250, 0.250] | - | - |",
    ]
    assert tables.distances_table("paths", stored["paths"]).splitlines()[2:] == [
        "| maze | raw | 0.500 [0.500, 0.500] | 0.250 [0.250, 0.250] | 0.750 [0.750, 0.750] |"
    ]


def test_store_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "results" / "p.json"
    scores.Store(path, "about").add(cell_of("s", "m", {"last": [[1.0]]}))
    store = scores.Store(path, "about")
    store.add(cell_of("s", "n", {"last": [[2.0]]}))
    store.add(cell_of("s", "m", {"last": [[3.0]]}))
    stored = json.loads(path.read_text())
    assert [(cell["method"], cell["returns"]["last"]) for cell in stored["cells"]] == [("m", [[3.0]]), ("n", [[2.0]])]
    assert stored["description"] == "about"


def test_results_page_shows_the_stored_results() -> None:
    path = Path(__file__).parents[1] / "docs" / "results.md"
    text = path.read_text()
    assert tables.refreshed(text) == text, "python -m benchmarks.tables docs/results.md"


def reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: str, changes: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Cells of the reduced grid with other values, run as its command does it."""
    monkeypatch.setattr(scores, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scores, "WORK", tmp_path / "work")
    preset = presets.merged(presets.load_preset("reduced"), changes)
    monkeypatch.setattr(scores, "load_preset", lambda name: preset)
    with pytest.raises(SystemExit) as stop:
        scores.main(["--preset", "reduced", "--entries", entries, "--workers", "2"])
    assert stop.value.code == 0
    return {cell["method"]: cell for cell in json.loads((tmp_path / "results" / "reduced.json").read_text())["cells"]}


@pytest.mark.slow
def test_the_recorded_reward_alone_is_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"updates": 20, "batch_size": 32, "updates_per_chunk": 10, "snapshots": 2}
    changes = {
        "defaults": {kind: {"hidden": [8], "training": tiny} for kind in ("iql", "top_bc")},
        "settings": {"embedded": {"cards": {"data": {"from": "hopper-tiny"}}}},
        "evaluate": {"episodes": 1, "max_steps": 20},
    }
    cells = reduced(tmp_path, monkeypatch, "true_(iql|top3)$", changes)
    assert set(cells) == {"true_iql", "true_top3"}
    for cell in cells.values():
        assert np.shape(cell["returns"]["last"]) == np.shape(cell["returns"]["10"]) == (2, 1)
        assert cell["labels"]["spearman_true_return"] == pytest.approx(1.0)
        assert cell["budget"]["updates"] == 20
        assert cell["budget"]["transitions"] > 1000
        assert cell["budget"]["seconds"]["learn/" + cell["method"]] > 0
        assert cell["demonstrations_return"] > 1000
        assert "relabel.recorded" in cell["params"]
    assert "| true_iql |" in tables.score_table(list(cells.values()))


@pytest.mark.slow
def test_a_reduced_grid_gives_the_order_that_the_full_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score benchmark itself at small size: the label finds the episodes worth cloning among mostly bad ones."""
    cells = reduced(tmp_path, monkeypatch, "", {})
    score = {name: float(tables.normalised(cell, tables.last(cell)).mean()) for name, cell in cells.items()}
    assert score["bc"] > 30.0
    assert score["bc_arbitrary"] < 20.0
    assert score["occupancy_top3"] > 2.0 * score["bc_arbitrary"]


@pytest.mark.slow
def test_the_tiny_params_file_runs_in_a_clone(tmp_path: Path) -> None:
    """``cp configs/presets/tiny.yaml params.yaml && dvc repro``, up to the policies' scores."""
    project = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    shutil.copy(ROOT / "configs" / "presets" / "tiny.yaml", project / "params.yaml")
    done = presets.dvc(project, "repro")
    assert done.returncode == 0, done.stdout
    policies = read_params(project / "params.yaml")["learn"]
    assert {path.parent.name for path in project.glob("artifacts/evaluate/*/returns.json")} == set(policies)


def test_the_page_of_speed_is_drawn_from_what_is_stored(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert tables.refreshed(text) == text
    tables.ratio_plot(tmp_path / "performance.svg")
    tables.growth_plot(tmp_path / "growth.svg")
    assert {path.name for path in tmp_path.iterdir()} == {"performance.svg", "growth.svg"}


def test_a_stopped_throughput_run_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    begun: dict[str, Any] = {
        "machine": {"cores": 2},
        "versions": {"torch": "2"},
        "repeats": 3,
        "scale": 1.0,
        "groups": [],
    }
    output = tmp_path / "throughput.json"
    output.write_text(json.dumps({**begun, "groups": [{"name": "first"}]}))
    assert throughput.resumed(output, begun)["groups"] == [{"name": "first"}]
    with pytest.raises(ValueError, match=r"machine: found .* 2}, expected .* 4}"):
        throughput.resumed(output, {**begun, "machine": {"cores": 4}})
    with pytest.raises(ValueError, match=r"scale: found 1.0, expected 0.1"):
        throughput.resumed(output, {**begun, "scale": 0.1})
