"""The score benchmark: presets, cells and their identity, resuming, failures, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import grid, scores, tables
from dynarep.configs.params import ParamsError, validate

PARAMS = {
    "seed": 0,
    "replicas": 2,
    "pretrain_intent": {"training": {"updates": 5}},
    "offline_rl": {"training": {"updates": 5}},
    "evaluate": {"env": "Hopper-v4"},
}


def preset(**changes: Any) -> grid.Preset:
    values = {
        "params": PARAMS,
        "settings": {"one": {"dataset": "a", "demonstrations": "e", "states": "es"}},
        "methods": {
            "bc": {"imitate": {"kind": "bc"}},
            "repr": {"imitate": {"kind": "repr_value_dice"}},
            "ailot": {"relabel": {"kind": "ailot"}, "offline_rl": {}},
            "otr": {"relabel": {"kind": "otr"}, "offline_rl": {}},
            "true": {"offline_rl": {}},
        },
    }
    return validate(grid.Preset, {**values, **changes}, "test")


CONTENT = {"a": "1", "b": "2", "e": "3", "es": "4"}


def chains(p: grid.Preset, content: dict[str, str] = CONTENT) -> dict[str, list[grid.Job]]:
    return {str(cell): list(cell.job.chain().values()) for cell in grid.cells(p, content)}


@pytest.mark.parametrize("path", sorted(grid.PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_read(path: Path) -> None:
    if path.stem in ("base", "common"):
        with pytest.raises(ParamsError, match="settings: missing"):
            grid.load_preset(path.stem)
        return
    p = grid.load_preset(path.stem)
    names = {name: name for name in grid.datasets(p)}
    assert grid.cells(p, names)


def test_every_stage_of_every_preset_has_parameters_that_its_stage_reads() -> None:
    from dynarep.pipeline.playing.evaluate import EvaluateConfig
    from dynarep.pipeline.imitate import ImitateConfig
    from dynarep.pipeline.offline_rl import OfflineRLConfig
    from dynarep.pipeline.pretrain_dynamics import PretrainDynamicsConfig
    from dynarep.pipeline.pretrain_intent import PretrainIntentConfig
    from dynarep.pipeline.relabel import RelabelConfig

    kinds: dict[str, type] = {
        "evaluate": EvaluateConfig,
        "imitate": ImitateConfig,
        "offline_rl": OfflineRLConfig,
        "pretrain_dynamics": PretrainDynamicsConfig,
        "pretrain_intent": PretrainIntentConfig,
        "relabel": RelabelConfig,
    }
    for path in grid.PRESETS.glob("*.yaml"):
        if path.stem in ("base", "common"):
            continue
        p = grid.load_preset(path.stem)
        for cell in grid.cells(p, {}):
            for job in cell.job.chain().values():
                validate(kinds[job.stage], job.params[job.stage], f"{path.stem}: {cell}: {job.stage}")


def test_a_cell_runs_the_stages_that_its_method_needs() -> None:
    stages = {name: [job.stage for job in jobs] for name, jobs in chains(preset()).items()}
    assert stages == {
        "one/bc": ["imitate", "evaluate"],
        "one/repr": ["pretrain_dynamics", "imitate", "evaluate"],
        "one/ailot": ["pretrain_intent", "relabel", "offline_rl", "evaluate"],
        "one/otr": ["relabel", "offline_rl", "evaluate"],
        "one/true": ["relabel", "offline_rl", "evaluate"],
    }


def test_sections_name_the_settings_data() -> None:
    jobs = {job.stage: job.params[job.stage] for job in chains(preset())["one/ailot"]}
    assert jobs["pretrain_intent"]["dataset"] == "a"
    assert (jobs["relabel"]["dataset"], jobs["relabel"]["demonstrations"]) == ("a", "es")
    assert jobs["offline_rl"]["policies"] == {"policy": {"rewards": "label"}}
    jobs = {job.stage: job.params[job.stage] for job in chains(preset())["one/repr"]}
    assert jobs["pretrain_dynamics"]["noise"]["dataset"] == "a"
    assert (jobs["imitate"]["dataset"], jobs["imitate"]["demonstrations"]) == ("a", "e")
    assert chains(preset())["one/true"][1].params["offline_rl"]["policies"] == {"policy": {"rewards": "true"}}


def test_a_change_makes_just_what_depends_on_it_another_job() -> None:
    before = chains(preset())
    params = {**PARAMS, "pretrain_intent": {"training": {"updates": 6}}}
    after = chains(preset(params=params))
    changed = {name: [a.key != b.key for a, b in zip(after[name], before[name], strict=True)] for name in before}
    assert changed["one/ailot"] == [True, True, True, True]
    assert not any(any(flags) for name, flags in changed.items() if name != "one/ailot")


def test_another_content_of_a_dataset_makes_its_readers_another_job() -> None:
    before, after = chains(preset()), chains(preset(), {**CONTENT, "es": "5"})
    keys = {name: [a.key != b.key for a, b in zip(after[name], before[name], strict=True)] for name in before}
    assert keys["one/bc"] == [False, False]
    assert keys["one/ailot"] == [False, True, True, True]


def test_shared_jobs_are_one() -> None:
    jobs = chains(
        preset(
            methods={
                name: {"relabel": {"kind": "ailot", "method": {"lookahead": k}}, "offline_rl": {}}
                for name, k in (("a", 0), ("b", 2), ("like_a", 0))
            }
        )
    )
    assert jobs["one/a"][0].key == jobs["one/b"][0].key
    assert jobs["one/a"][1].key != jobs["one/b"][1].key
    assert [job.key for job in jobs["one/a"]] == [job.key for job in jobs["one/like_a"]]


def test_refusals_name_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "PRESETS", tmp_path)
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        grid.load_preset("x")
    (tmp_path / "x.yaml").write_text("params: {seed: 0, replicas: 1, evaluate: {}}\nsettings: {}\nmethods: {m: {}}\n")
    with pytest.raises(ParamsError, match=r"methods\.m.*both or none of imitate and offline_rl"):
        grid.load_preset("x")
    (tmp_path / "x.yaml").write_text(
        "params: {seed: 0, replicas: 1, evaluate: {}}\nsettings: {}\n"
        "methods: {m: {imitate: {kind: bc}, settings: [nowhere]}}\n"
    )
    with pytest.raises(ValueError, match=r"methods\.m\.settings: found \['nowhere'\]"):
        grid.load_preset("x")


def cell_of(setting: str, method: str, returns: dict[str, list[list[float]]], **changes: Any) -> dict[str, Any]:
    return {
        "setting": setting,
        "method": method,
        "key": "k",
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


def test_store_keeps_what_is_there_and_knows_its_cells(tmp_path: Path) -> None:
    path = tmp_path / "results" / "p.json"
    scores.Store(path, "about").add(cell_of("s", "m", {"last": [[1.0]]}))
    store = scores.Store(path, "about")
    store.add(cell_of("s", "n", {"last": [[2.0]]}))
    stored = json.loads(path.read_text())
    assert [cell["method"] for cell in stored["cells"]] == ["m", "n"]
    assert stored["description"] == "about"
    job = grid.Job("evaluate", {}, (), "k")
    data = grid.Setting(dataset="a", demonstrations="e", states="es")
    assert store.has(grid.Cell("s", "m", data, job))
    assert not store.has(grid.Cell("s", "m", data, grid.Job("evaluate", {}, (), "other")))
    assert not store.has(grid.Cell("s", "x", data, job))


def test_results_page_shows_the_stored_results() -> None:
    path = Path(__file__).parents[1] / "docs" / "results.md"
    text = path.read_text()
    assert tables.refreshed(text) == text, "python -m benchmarks.tables docs/results.md"


def test_jobs_run_once_in_order_and_a_failure_stops_what_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    ran: list[str] = []

    def run_job(stage: str, folder: Path, threads: int) -> float:
        ran.append(folder.name)
        if folder.name.startswith("relabel"):
            raise ValueError("broken")
        return 1.0

    monkeypatch.setattr(scores, "run_job", run_job)
    monkeypatch.setattr(scores, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    jobs = {name: job for cell in grid.cells(preset(), CONTENT) for name, job in cell.job.chain().items()}
    done: list[str] = []
    failed = scores.run_jobs(jobs, tmp_path, 1, done.append)
    assert stages(done) == ["imitate", "evaluate", "pretrain_dynamics", "imitate", "evaluate", "pretrain_intent"]
    assert set(stages(failed)) == {"relabel"}
    assert "broken" in capsys.readouterr().err
    assert [name for name in ran if not name.startswith("relabel")] == done
    assert (tmp_path / "jobs" / done[0] / "artifacts" / "shards").is_symlink()
    ran.clear()
    again: list[str] = []
    scores.run_jobs(jobs, tmp_path, 1, again.append)
    assert sorted(again) == sorted(done)
    assert set(stages(ran)) == {"relabel"}


def stages(names: list[str]) -> list[str]:
    return [name.rpartition("-")[0] for name in names]


def test_a_reduced_grid_gives_the_order_that_the_full_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score benchmark itself at toy size: the label finds the episodes worth cloning among mostly bad ones."""
    monkeypatch.setattr(scores, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scores, "WORK", tmp_path / "work")
    with pytest.raises(SystemExit) as stop:
        scores.main(["--preset", "reduced"])
    assert stop.value.code == 0
    stored = json.loads((tmp_path / "results" / "reduced.json").read_text())["cells"]
    score = {cell["method"]: float(tables.normalised(cell, tables.last(cell)).mean()) for cell in stored}
    assert score["bc"] > 30.0
    assert score["bc_arbitrary"] < 20.0
    assert score["occupancy_top3"] > 2.0 * score["bc_arbitrary"]
    with pytest.raises(SystemExit):
        scores.main(["--preset", "reduced", "--table"])
    (tmp_path / "work").rename(tmp_path / "forgotten")
    with pytest.raises(SystemExit) as stop:
        scores.main(["--preset", "reduced"])
    assert stop.value.code == 0
    assert not (tmp_path / "work" / "jobs").exists()
