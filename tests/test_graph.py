"""dvc.yaml says what each stage depends on; these tests hold it to what the stages read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from graph import BY_CONTENT, ROOMS, closure, file_of, imported, named, needed, read_dvc, written

from dynarep.pipeline.entries import INPUTS, NONE, datasets_of, parse_entry
from dynarep.pipeline.registry import kinds

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "relabel", "learn", "demonstrate", "evaluate", "report")


def test_imports_are_followed_through_functions_but_not_into_type_checking(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dynarep.data import card\n"
        "def f():\n    from dynarep.pipeline.nn import models\n    import dynarep.data.split\n"
    )
    assert imported(path) == {"dynarep.pipeline.nn", "dynarep.pipeline.nn.models", "dynarep.data.split"}
    assert file_of("dynarep.pipeline.nn.models") == "pipeline/nn/models.py"
    assert file_of("dynarep.pipeline.nn.models.Model") is None
    assert {"data/schema.py", "data/shards.py"} <= closure("data/shards.py")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_the_code_that_it_runs(stage: str) -> None:
    missing = needed(stage) - named(stage, read_dvc())
    assert not missing, f"python -m tests.graph writes them: {sorted(missing)}"
    assert len(needed(stage)) > 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_it_does_not_run(stage: str) -> None:
    unneeded = {path for path in named(stage, read_dvc()) - needed(stage) if (ROOT / path).read_text().strip()}
    assert not unneeded


def test_the_file_is_as_the_program_writes_it() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert written(text) == text


@pytest.mark.parametrize("section", ROOMS)
def test_an_entry_depends_on_the_file_of_its_kind_and_on_no_other(section: str) -> None:
    deps = read_dvc()["stages"][section]["do"]["deps"]
    room = f"pipeline/methods/{ROOMS[section]}"
    assert [dep for dep in deps if dep.startswith(room)] == [f"{room}/${{item.kind}}.py"]
    for kind in kinds(ROOMS[section]):
        others = {path for path in closure(f"{room}/{kind}.py") if path.startswith(f"{room}/")}
        assert others == {f"{room}/{kind}.py"}, kind


@pytest.mark.parametrize("section", ROOMS)
def test_an_entry_depends_on_every_input_that_it_can_name(section: str) -> None:
    """Keys that name datasets or entries stand in the deps, and nothing else does."""
    deps = " ".join(read_dvc()["stages"][section]["do"]["deps"])
    keys = {"pretrain": ("dataset", "initial"), "relabel": ("dataset", "demonstrations", "space")}
    keys["learn"] = ("dataset", "demonstrations", "encoder", "rewards")
    for key in keys[section]:
        assert f"${{item.{key}}}" in deps
    fields = set(INPUTS[section].__dataclass_fields__)
    inputs = {
        name for name in fields if name in ("dataset", "demonstrations", "initial", "space", "encoder", "rewards")
    }
    assert inputs == set(keys[section])


def test_models_are_dependencies_by_content() -> None:
    """What reads an artifact does not name the file of its kind; the artifact holds that file's digest."""
    for stage in ("relabel", "evaluate"):
        assert not {dep for dep in read_dvc()["stages"][stage]["do"]["deps"] if dep.rpartition("/")[0] in BY_CONTENT}


def test_a_params_file_names_its_datasets_once_for_prepare() -> None:
    values = {
        "pretrain": {"a": {"kind": "icvf", "dataset": "x", "initial": NONE}},
        "relabel": {"b": {"kind": "otr", "dataset": "x", "demonstrations": "y"}},
        "learn": {"c": {"kind": "bc", "dataset": "x", "demonstrations": NONE}},
        "evaluate": {
            "demonstrations": "w",
            "motion": {"dataset": "z", "space": NONE},
            "recording": {"dataset": "v", "rewards": NONE},
        },
    }
    assert list(datasets_of(values)) == ["x", "y", "w", "z", "v"]


def test_the_default_params_file_parses() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section in ROOMS:
        for name, entry in values[section].items():
            assert parse_entry(section, name, entry).kind == entry["kind"]


def whole_params() -> dict[str, dict[str, Any]]:
    """Every params file of the repository that describes a whole run, and those in the pages."""
    found: dict[str, str] = {}
    patterns = ("params.yaml", "configs/presets/*.yaml", "examples/*/params.yaml")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        found[path.relative_to(ROOT).as_posix()] = path.read_text()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.M | re.S)):
            found[f"{path.relative_to(ROOT).as_posix()}, block {number}"] = block
    whole = {
        name: text for name, text in found.items() if {"evaluate", "learn"} <= set(re.findall(r"^\w+", text, re.M))
    }
    return {name: yaml.safe_load(text) for name, text in whole.items()}


def test_params_files_hold_every_key_that_dvc_reads() -> None:
    """A key that dvc.yaml puts into a path has to be there, and so has one that an experiment sets, as report.compare."""
    wanted = {*re.findall(r"\$\{(evaluate[\w.]+)\}", (ROOT / "dvc.yaml").read_text()), "report.compare"}
    assert "evaluate.recording.dataset" in wanted
    files = whole_params()
    assert {"params.yaml", "docs/params.md, block 0"} <= set(files)
    for name, values in files.items():
        for key in wanted:
            value: Any = values
            for part in key.split("."):
                assert part in value, f"{name}: {key}"
                value = value[part]
