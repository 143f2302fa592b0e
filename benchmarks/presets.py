"""Presets of score grids: params files with many entries, laid out as projects of DVC.

A preset is a params file with three more keys. ``extends`` names a preset that it is laid over. ``cards`` are dataset cards
beside those of ``configs/datasets``. ``settings`` are what the grid is run in: each has ``cards`` of its own and values that
differ from the preset's, and is a project of its own. ``defaults`` are the keys that all entries of a section, or of a kind,
have in common.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dynarep.configs.params import read_yaml
from dynarep.pipeline.registry import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PRESETS = Path(__file__).parent / "presets"
WORK = ROOT / ".dynarep" / "scores"


@dataclass(frozen=True)
class Setting:
    """A params file and the cards of its datasets, by name."""

    params: dict[str, Any]
    cards: dict[str, dict[str, Any]]


def load_preset(name: str) -> dict[str, Any]:
    """Read ``benchmarks/presets/<name>.yaml``, laid over the preset that its ``extends`` names, if any.

    Raises:
        ValueError: if there is no such preset.
    """
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"unknown preset {name!r}; {PRESETS} has {', '.join(known)}")
    values = read_yaml(PRESETS / f"{name}.yaml")
    values.pop("anchors", None)  # where YAML anchors are defined
    base = load_preset(values.pop("extends")) if "extends" in values else {}
    found: dict[str, Any] = merged(base, values)
    return found


def merged(base: Any, changes: Any) -> Any:
    """``base`` with ``changes`` laid over it: mappings key by key, everything else replaced."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: merged(base.get(key), value) for key, value in changes.items()}}


def settings_of(preset: dict[str, Any]) -> dict[str, Setting]:
    """The settings of a preset, by name; entries have their defaults inside."""
    shared = {key: value for key, value in preset.items() if key not in ("description", "settings")}
    found = {}
    for name, changes in preset.get("settings", {}).items():
        params = merged(shared, changes)
        cards, defaults = params.pop("cards", {}), params.pop("defaults", {})
        for section in ROOMS:
            params[section] = {
                entry: merged(merged(defaults.get(section, {}), defaults.get(values.get("kind"), {})), values)
                for entry, values in params.get(section, {}).items()
            }
        found[name] = Setting({**params, "report": {"compare": None}}, cards)
    return found


def lay_out(setting: Setting, folder: Path, recordings: Path | None) -> None:
    """Make a project of a setting: its params file and cards, the stages of this repository, and a DVC repository.

    Stages depend on data, entries and artifacts, but not on code: a change of the code alone does not make hours of training
    stale. All projects below one folder share a cache, so that what they have in common is computed once.

    Args:
        setting: what is run.
        folder: of the project, made if it is not there.
        recordings: folder of the recordings that cards name as ``recordings/<file>``.

    Raises:
        ValueError: if a card needs ``recordings`` and there is none.
    """
    cards = folder / "configs" / "datasets"
    shutil.rmtree(cards, ignore_errors=True)
    shutil.copytree(ROOT / "configs" / "datasets", cards)
    files = [card["path"] for card in setting.cards.values() if card.get("path", "").startswith("recordings/")]
    if files and recordings is None:
        raise ValueError(f"cards name {', '.join(files)}: needs --recordings")
    links = {"data": ROOT / "data", **({} if recordings is None else {"recordings": recordings.resolve()})}
    for name, target in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    for name, card in setting.cards.items():
        (cards / f"{name}.yaml").write_text(yaml.safe_dump(card))
    graph = read_yaml(ROOT / "dvc.yaml")
    for stage in graph["stages"].values():
        body = stage.get("do", stage)
        body["deps"] = [path for path in body.get("deps", []) if path.startswith(("artifacts/", "configs/datasets"))]
    graph["stages"]["prepare"]["deps"] += files
    (folder / "params.yaml").write_text(yaml.safe_dump(setting.params, sort_keys=False))
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    if not (folder / ".dvc").exists():
        dvc(folder, "init", "--quiet", "--no-scm", check=True)
        dvc(folder, "config", "cache.dir", "../../.cache", check=True)


def dvc(folder: Path, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run DVC in a project, with this interpreter for its stages; what it says is kept."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=check
    )
