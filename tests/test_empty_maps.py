"""A params file whose maps hold no entries goes through every stage that is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dynarep.data.schema import Episode
from dynarep.pipeline.playing.summary import gather, summarise
from dynarep.pipeline.run import Stage, stage_main

LEARN = {"dataset": "walk", "demonstrations": "walk"}
CLONE = {**LEARN, "kind": "bc", "hidden": [8], "training": {"updates": 4, "batch_size": 8}}
EVALUATE = {"env": "InvertedPendulum-v4", "episodes": 1, "max_steps": 5, "workers": 1}


@pytest.fixture
def project(tmp_path: Path, make_episode: Callable[..., Episode]) -> Path:
    episodes = [make_episode(20, seed=i, observation_dim=4, action_dim=1) for i in range(3)]
    columns = {
        "observations": [e.current for e in episodes],
        "actions": [e.actions for e in episodes],
        "rewards": [e.rewards for e in episodes],
        "terminals": [np.zeros(20, bool)] * 3,
        "timeouts": [np.arange(20) == 19] * 3,
    }
    np.savez(tmp_path / "walk.npz", **{name: np.concatenate(parts) for name, parts in columns.items()})
    cards = tmp_path / "configs" / "datasets"
    cards.mkdir(parents=True)
    bounds = {"action_low": [-3.0], "action_high": [3.0]}
    (cards / "walk.yaml").write_text(yaml.safe_dump({"path": "walk.npz", "format": "arrays", **bounds}))
    return tmp_path


def run(project: Path, section: str, name: str = "") -> None:
    import_module(f"dynarep.stages.{section}").main(Stage(section, project / "params.yaml", name))


@pytest.mark.parametrize("empty", [{}, None])
def test_policies_that_need_neither_encoder_nor_label(project: Path, empty: Any) -> None:
    learn = {"bc": CLONE, "random": {**LEARN, "kind": "random"}}
    values = {"seed": 0, "replicas": 2, "pretrain": empty, "relabel": empty, "learn": learn, "evaluate": EVALUATE}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    run(project, "prepare")
    for name in learn:
        run(project, "learn", name)
        run(project, "evaluate", name)
    run(project, "demonstrate")
    scores = summarise(gather(project / "artifacts"))
    assert set(scores) == set(learn)
    assert sorted(path.name for path in (project / "artifacts").iterdir()) == [
        "demonstrate",
        "evaluate",
        "learn",
        "shards",
    ]


def test_labels_alone(project: Path) -> None:
    """No policy: the labels are made, and what they are worth is told."""
    values = {"seed": 0, "replicas": 2, "relabel": {"true": {**LEARN, "kind": "recorded"}}, "learn": {}}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    run(project, "prepare")
    run(project, "relabel", "true")
    folder = project / "artifacts" / "relabel" / "true"
    assert json.loads((folder / "metrics.json").read_text())["spearman_true_return"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="there are no scores to report"):
        gather(project / "artifacts")


@pytest.mark.parametrize("section", ["pretrain", "relabel", "learn"])
def test_an_entry_of_an_empty_map_is_one_line(project: Path, section: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump({"seed": 0, section: {}}))
    stage = import_module(f"dynarep.stages.{section}")
    with pytest.raises(SystemExit) as stop:
        stage_main(section, stage.main, ["x", "--params", str(project / "params.yaml")], entries=True)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{section}: no entry 'x'; found none")
