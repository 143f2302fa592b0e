"""Score grids: a preset names settings (datasets) and methods; each pair is a cell, and a cell is a chain of stage runs.

Stage runs that several cells share (pretraining, labels) are one job. A job is a folder of its own, named by the hash of
everything that shapes its output; it holds a params file, links to its inputs and the output of one stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynarep.configs.params import Field, config, read_yaml, validate

PRESETS = Path(__file__).parent / "presets"

POLICY, LABEL = "policy", "label"
"""What the stages call a cell's policy and its rewards: not the method's name, so that methods share what they share."""

Section = dict[str, Any]


@config
class Setting:
    """Which data the methods of a cell see.

    Args:
        dataset: card of the arbitrary data.
        demonstrations: card of the demonstrations with actions.
        states: card of the demonstrations without actions.
        params: values that differ from the preset's, by section.
    """

    dataset: str
    demonstrations: str
    states: str
    params: dict[str, Section] = Field(default_factory=dict)


@config
class Method:
    """One row of the table: a policy of the stage ``imitate``, or a policy of ``offline_rl`` on rewards.

    Args:
        imitate: an entry of ``imitate.policies``.
        relabel: an entry of ``relabel.methods``; without it ``offline_rl`` learns from the true reward.
        offline_rl: an entry of ``offline_rl.policies`` without its ``rewards``.
        params: values that differ from the preset's, by section.
        demonstrations: ``states`` hides the expert's actions from a policy of ``imitate``, ``actions`` shows them to
            the labels; by default each stage sees what its method is about.
        settings: those in which it is run; all by default.
    """

    imitate: Section | None = None
    relabel: Section | None = None
    offline_rl: Section | None = None
    params: dict[str, Section] = Field(default_factory=dict)
    demonstrations: str | None = Field(default=None, pattern="^(states|actions)$")
    settings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.imitate is None) == (self.offline_rl is None):
            raise ValueError("found both or none of imitate and offline_rl, expected one")
        if self.relabel is not None and self.offline_rl is None:
            raise ValueError("relabel: labels need offline_rl to learn from them")


@config
class Preset:
    """A grid.

    Args:
        description: for people; printed above the table.
        cards: dataset cards beside those of ``configs/datasets``; ``{recordings}`` in a path stands for the folder
            given with ``--recordings``.
        params: sections of a params file, with ``seed`` and ``replicas``; dataset names are filled in.
        settings: by name.
        methods: by name.
    """

    description: str = ""
    cards: dict[str, Section] = Field(default_factory=dict)
    params: dict[str, Any]
    settings: dict[str, Setting]
    methods: dict[str, Method]

    def __post_init__(self) -> None:
        if {"seed", "replicas", "evaluate"} - set(self.params):
            raise ValueError(f"params: found {', '.join(self.params)}, expected seed, replicas and evaluate among them")


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    Args:
        stage: its name.
        params: the whole params file: seed, replicas and the stage's section.
        inputs: the jobs whose output it reads.
        key: hash of all that, of the datasets' content included.
    """

    stage: str
    params: Mapping[str, Any]
    inputs: tuple[Job, ...]
    key: str

    @property
    def name(self) -> str:
        """Folder of the job."""
        return f"{self.stage}-{self.key}"

    def chain(self) -> dict[str, Job]:
        """The job and all it needs, by name, in an order in which they can run."""
        jobs: dict[str, Job] = {}
        for job in self.inputs:
            jobs.update(job.chain())
        return {**jobs, self.name: self}


@dataclass(frozen=True)
class Cell:
    """A method in a setting; ``data`` is what the setting names, ``job`` the evaluation."""

    setting: str
    method: str
    data: Setting
    job: Job

    def __str__(self) -> str:
        return f"{self.setting}/{self.method}"


def load_preset(name: str) -> Preset:
    """Read ``benchmarks/presets/<name>.yaml``, laid over the preset that its ``extends`` names, if any.

    Raises:
        ParamsError: if a key or a value is not allowed.
        ValueError: if there is no such preset, or a method names a setting that is not there.
    """
    preset = validate(Preset, _read(name), str(PRESETS / f"{name}.yaml"))
    for method, spec in preset.methods.items():
        unknown = set(spec.settings or ()) - set(preset.settings)
        if unknown:
            where = f"{PRESETS / name}.yaml: methods.{method}.settings"
            raise ValueError(f"{where}: found {sorted(unknown)}, expected some of {', '.join(preset.settings)}")
    return preset


def _read(name: str) -> dict[str, Any]:
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"unknown preset {name!r}; {PRESETS} has {', '.join(known)}")
    values = read_yaml(PRESETS / f"{name}.yaml")
    values.pop("anchors", None)  # where YAML anchors are defined
    if "extends" not in values:
        return values
    merge: dict[str, Any] = merged(_read(values.pop("extends")), values)
    return merge


def merged(base: Any, changes: Any) -> Any:
    """``base`` with ``changes`` laid over it: mappings key by key, everything else replaced."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: merged(base.get(key), value) for key, value in changes.items()}}


def datasets(preset: Preset) -> list[str]:
    """Names of all cards that the cells read."""
    names: dict[str, None] = {}
    for setting in preset.settings.values():
        names.update(dict.fromkeys((setting.dataset, setting.demonstrations, setting.states)))
    sections = [preset.params, *(setting.params for setting in preset.settings.values())]
    sections += [method.params for method in preset.methods.values()]
    for params in sections:
        for stage in ("pretrain_dynamics", "pretrain_intent"):
            section = params.get(stage, {})
            names.update(dict.fromkeys(filter(None, (section.get("dataset"), section.get("noise", {}).get("dataset")))))
    return list(names)


def cells(preset: Preset, fingerprints: Mapping[str, str]) -> list[Cell]:
    """All cells, setting by setting.

    Args:
        preset: the grid.
        fingerprints: content of each dataset.
    """
    return [
        Cell(setting, method, preset.settings[setting], _evaluation(preset, setting, method, fingerprints))
        for setting in preset.settings
        for method, spec in preset.methods.items()
        if spec.settings is None or setting in spec.settings
    ]


def _evaluation(preset: Preset, setting: str, method: str, fingerprints: Mapping[str, str]) -> Job:
    data, spec = preset.settings[setting], preset.methods[method]
    params = merged(merged(preset.params, data.params), spec.params)
    shared = {key: params[key] for key in ("seed", "replicas")}

    def job(stage: str, section: Section, *inputs: Job) -> Job:
        content = {name: value for name, value in fingerprints.items() if f'"{name}"' in json.dumps(section)}
        identity = [stage, shared, section, [job.key for job in inputs], content]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        return Job(stage, {**shared, stage: section}, inputs, key)

    def pretraining(stage: str) -> Job:
        section = params.get(stage, {})
        if stage == "pretrain_dynamics":
            section = merged({"noise": {"dataset": data.dataset}}, section)
        return job(stage, {"dataset": data.dataset, **section})

    if spec.imitate is not None:
        needs = [pretraining("pretrain_dynamics")] if spec.imitate["kind"].startswith("repr_") else []
        shown = data.states if spec.demonstrations == "states" else data.demonstrations
        section = {"demonstrations": shown, "dataset": data.dataset, "policies": {POLICY: spec.imitate}}
        learned = job("imitate", section, *needs)
    else:
        needs, methods, rewards = [], {}, "true"
        if spec.relabel is not None:
            space = spec.relabel.get("space", DEFAULT_SPACE.get(spec.relabel["kind"], "raw"))
            needs = [pretraining(PRETRAINING[space])] if space in PRETRAINING else []
            methods, rewards = {LABEL: spec.relabel}, LABEL
        reads_actions = spec.demonstrations == "actions"
        shown = data.demonstrations if reads_actions else data.states
        labels = job("relabel", {"dataset": data.dataset, "demonstrations": shown, "methods": methods}, *needs)
        policy = {**(spec.offline_rl or {}), "rewards": rewards}
        others = LEARNERS - {policy.get("learner", "iql")}
        section = {key: value for key, value in params.get("offline_rl", {}).items() if key not in others}
        learned = job("offline_rl", {**section, "policies": {POLICY: policy}}, labels)
    return job("evaluate", {**params["evaluate"], "snapshots": True, "workers": 1}, learned)


LEARNERS = {"iql", "td3_bc", "top_bc"}
DEFAULT_SPACE = {"ailot": "intent", "occupancy": "phi"}
PRETRAINING = {"intent": "pretrain_intent", "phi": "pretrain_dynamics", "mu": "pretrain_dynamics"}
"""The stage that makes a space of the labels."""
