"""What state the pipeline is in: which stages are fresh, and in words why the others are not.

DVC decides; what it found is put into words, with the checkpoints of trainings that were stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynarep.configs.params import ParamsError, read_file, read_yaml
from dynarep.pipeline.stored import JSON_BYTES

State = Literal["fresh", "stale", "interrupted", "running", "broken", "never run"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of ``dvc.yaml``.

    Args:
        name: of the stage.
        state: ``never run``: DVC knows of no run; ``broken``: its output is missing or not what the stage wrote;
            ``interrupted``: a training that was stopped waits; ``running``: DVC runs it now; ``stale``: what it was made
            from is not what is there now; ``fresh``: none of these.
        reasons: why it is not fresh, the most telling first.
    """

    name: str
    state: State
    reasons: tuple[str, ...] = ()


def pipeline_status(project: Path) -> list[StageStatus]:
    """The state of every stage, in the order of ``dvc.yaml``. Nothing is run or written outside of DVC's own folder.

    Args:
        project: the folder of ``dvc.yaml``.

    Raises:
        ParamsError: if DVC cannot read the project; the message is DVC's.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    project = project.resolve()
    path = project / "dvc.yaml"
    if not path.is_file():
        raise ParamsError(f"{path}: no such file; expected the project's pipeline")
    in_git = any((folder / ".git").exists() for folder in (project, *project.parents))
    try:
        with chdir(project), Repo(Repo.find_root(), config=None if in_git else {"core": {"no_scm": True}}) as repo:
            return _statuses(repo, project)
    except (DvcException, SCMError) as error:
        raise ParamsError(f"{path}: {error}") from error


def _statuses(repo: Any, project: Path) -> list[StageStatus]:
    order = list(read_yaml(project / "dvc.yaml").get("stages") or ())
    lock = project / "dvc.lock"
    ran = read_yaml(lock).get("stages") or {} if lock.is_file() else {}
    stages = [stage for stage in repo.index.stages if Path(stage.path) == project / "dvc.yaml"]
    stages.sort(key=lambda stage: order.index(stage.name.partition("@")[0]))
    with repo.lock:
        found = {stage.name: _changes(stage) for stage in stages}
    differences: dict[str, Any] = {}
    if any("changed outs" in changes for changes in found.values()):
        differences = repo.data_status(granular=True).get("uncommitted", {})
    statuses = {
        stage.name: _status(stage, found[stage.name], stage.name in ran, differences, project) for stage in stages
    }
    missing = {stage.name: _missing_dependencies(found[stage.name]) for stage in stages}
    return [_after(stage, statuses, missing[stage.name], repo.index.graph) for stage in stages]


def checkpoints_of(project: Path, stage: str) -> Path:
    """Where trainings of a stage that were stopped wait: ``learn@bc`` in ``checkpoints/learn/bc``."""
    return project.joinpath(".dynarep", "checkpoints", *stage.split("@"))


def _missing_dependencies(changes: Mapping[str, Any]) -> set[str]:
    return {name for name, change in changes.get("changed deps", {}).items() if change == "deleted"}


def _changes(stage: Any) -> dict[str, Any]:
    """DVC's status of a stage as one mapping; ``busy`` while DVC runs it, or one before it."""
    from dvc.lock import LockError

    try:
        parts: list[Any] = next(iter(stage.status().values()), [])
    except LockError:
        return {"busy": True}
    changes: dict[str, Any] = {}
    for part in parts:
        changes |= part if isinstance(part, dict) else {part: True}
    return changes


def _status(
    stage: Any, changes: Mapping[str, Any], ran: bool, differences: Mapping[str, list[str]], project: Path
) -> StageStatus:
    """What is known of a stage by itself.

    Args:
        stage: DVC's.
        changes: DVC's status of it.
        ran: whether ``dvc.lock`` has it.
        differences: files of outputs that are not as the stage wrote them, by kind of difference.
        project: the folder of ``dvc.yaml``.
    """
    if "busy" in changes:
        return StageStatus(stage.name, "running")
    waiting = _checkpoints(checkpoints_of(project, stage.name)) if changes else []
    if not ran:
        made = [str(out) for out in stage.outs if out.exists]
        unknown = (f"DVC does not know what made {' and '.join(made)}",) if made else ()
        return StageStatus(stage.name, "interrupted" if waiting else "never run", (*waiting, *unknown))

    missing, uncached = _outputs(changes.get("changed outs", {}), differences)
    reasons = [*_parameters(stage), *_dependencies(stage, changes.get("changed deps", {}))]
    reasons += ["its command changed"] if "changed command" in changes else []
    reasons += ["it is told to run always"] if "always changed" in changes else []
    reasons += uncached
    state: State = "interrupted" if waiting else "broken" if missing else "stale" if reasons else "fresh"
    return StageStatus(stage.name, state, (*waiting, *missing, *reasons))


def _after(stage: Any, statuses: Mapping[str, StageStatus], missing: set[str], graph: Any) -> StageStatus:
    """The status of a stage with that of the stages before it: what builds on a stage that will run is not fresh.

    That a dependency is missing which such a stage will make is no reason of its own.
    """
    own = statuses[stage.name]
    before = [other for other in _ancestors(stage, graph) if statuses[other.name].state != "fresh"]
    made = [f"{out}" for other in before for out in other.outs]
    coming = {_dependency_text(name, "deleted") for name in missing if any(name.startswith(out) for out in made)}
    reasons = tuple(reason for reason in own.reasons if reason not in coming)
    if not before or own.state not in ("fresh", "stale", "running"):
        return StageStatus(own.name, own.state, reasons)
    direct = {other.name for other in graph.successors(stage)}
    names = [other.name for other in before if other.name in direct] or [before[0].name]
    return StageStatus(own.name, "stale", (*reasons, f"builds on {' and '.join(sorted(names))}"))


def _ancestors(stage: Any, graph: Any) -> list[Any]:
    """All stages that a stage builds on, the nearest first."""
    found: dict[Any, None] = {}
    level = [stage]
    while level:
        level = [other for one in level for other in graph.successors(one) if other not in found]
        found |= dict.fromkeys(level)
    return list(found)


def _checkpoints(folder: Path) -> list[str]:
    """Of each unfinished training that waits there, at which update of how many it is."""
    paths = sorted(folder.rglob("*.ckpt"))
    if not paths:
        return []
    from dynarep.pipeline.training.checkpoint import read_checkpoint

    texts, done = [], 0
    for path in paths:
        try:
            kept = read_checkpoint(path)
            name, update, total = kept["name"], kept["updates"], kept["total"]
        except Exception:
            texts.append(f"{path.name} is damaged and will be made anew")
            continue
        if update < total:
            texts.append(f"{name} waits at update {update:,} of {total:,}")
        done += update >= total
    finished = [f"{done} of its trainings {'is' if done == 1 else 'are'} done"] if done else []
    return texts + finished


def _outputs(changed: Mapping[str, str], differences: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    """What is wrong with outputs, and what DVC alone misses of them."""
    wrong, uncached = [], []
    for name, change in changed.items():
        if change == "not in cache":
            if Path(name).exists():
                uncached.append(f"{name} is not in DVC's cache (dvc commit puts it there)")
            else:
                wrong.append(f"{name} is missing, in DVC's cache too (dvc pull may have it)")
        elif change == "deleted":
            wrong.append(f"{name} is missing (dvc checkout brings it back)")
        else:
            files = [
                text
                for kind in ("deleted", "modified", "added")
                for file in differences.get(kind, ())
                if file.startswith(f"{name}/") and (text := _difference(Path(file), kind))
            ]
            wrong += files or [f"{name} is not what the stage wrote"]
            wrong[-1] += " (dvc checkout brings back what the stage wrote)"
    return wrong, uncached


def _difference(path: Path, kind: str) -> str:
    """What is wrong with a file of an output; empty for a folder whose files say it."""
    if kind == "deleted":
        return f"{path} is missing"
    if path.is_dir():
        return ""
    if kind == "added":
        return f"{path} was put there"
    try:
        if path.suffix == ".json":
            json.loads(read_file(path, JSON_BYTES))
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "numpy") as file:
                file.keys()
    except Exception as error:
        return f"{path} does not load: {error}"
    return f"{path} was changed"


def _parameters(stage: Any) -> list[str]:
    """Old and new value of every parameter that differs from those of the last run."""
    texts = []
    for dependency in stage.deps:
        if not hasattr(dependency, "read_params"):
            continue
        old, new = _flat(dependency.hash_info.value or {}), _flat(dependency.read_params(flatten=False))
        for name in dict.fromkeys((*new, *old)):
            if name not in new:
                texts.append(f"{name} is gone, was {_text(old[name])}")
            elif name not in old:
                texts.append(f"{name} is new, {_text(new[name])}")
            elif old[name] != new[name]:
                texts.append(f"{name} is {_text(new[name])}, was {_text(old[name])}")
    return texts


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _dependencies(stage: Any, changed: Mapping[str, str]) -> Iterable[str]:
    """Files and folders that differ, parameters apart."""
    params = {str(dependency) for dependency in stage.deps if hasattr(dependency, "read_params")}
    return [_dependency_text(name, change) for name, change in changed.items() if name not in params]


def _dependency_text(name: str, change: str) -> str:
    words = {"modified": "changed", "deleted": "is missing", "new": "is new"}
    return f"{name} {words.get(change, change)}"
