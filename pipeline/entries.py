"""What a params file says: maps of named entries, each of one kind, with its inputs by name and all its settings inside.

    pretrain: {intent: {kind: icvf, dataset: hopper, initial: none, hidden: [128], training: {updates: 6000}}, ...}
    relabel:  {ailot: {kind: ailot, dataset: hopper, demonstrations: expert, space: intent, temperature: 0.05}, ...}
    learn:    {iql_ailot: {kind: iql, dataset: hopper, demonstrations: expert, encoder: none, rewards: ailot, ...}, ...}

An entry's keys are the inputs and settings that all entries of its section share, and the hyper-parameters of its kind.
``none`` stands for an input that an entry does without. The section ``defaults`` holds YAML anchors and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from dynarep.configs.params import Field, Name, ParamsError, check_name, check_sections, config, read_yaml, validate
from dynarep.pipeline.method import Method
from dynarep.pipeline.registry import ROOMS, check_kind, find_method
from dynarep.pipeline.sources import StreamConfig
from dynarep.pipeline.training.config import TrainingConfig

NONE = "none"
"""Stands for an input that an entry does without."""

SHARED = ("seed", "replicas", "trainer", "cluster", "defaults")
SECTIONS = (*SHARED, *ROOMS, "evaluate", "report")
"""All that a params file may hold at its top."""

MOVED = {
    "pretrain_dynamics": "pretrain.<name>: {kind: contrastive, dataset, initial: none, noise: next, ..., training}; the keys "
    "of its method stand beside them, encoder: <source> is an entry {kind: artifact, source}",
    "pretrain_intent": "pretrain.<name>: {kind: icvf, dataset, initial: none, ..., training}; the keys of its method stand "
    "beside them, encoder: <source> is an entry {kind: artifact, source}",
    "imitate": "learn.<policy>: {kind, dataset, demonstrations, encoder: none, rewards: none, ..., training}; repr_smodice is "
    "smodice with an encoder, bc with top is top_bc on rewards of kind recorded",
    "offline_rl": "learn.<policy>: {kind: iql | td3_bc | top_bc, rewards: <entry of relabel>, ..., training}; rewards: true "
    "is an entry of relabel of kind recorded",
    "engine": "cluster: {kind, address, workers, retries}",
}
"""Sections of older params files, and how each is written now."""

Inputs = TypeVar("Inputs")


@config
class PretrainInputs:
    """What all entries of ``pretrain`` share."""

    dataset: Name
    initial: Name = NONE
    """Another entry of ``pretrain`` of the same architecture, where the training starts."""
    source: str | None = None
    """The same for an artifact made elsewhere: a path, ``dvc://...`` or ``hf://...``; kind ``artifact`` hands it on."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of episodes kept for the metrics."""
    stream: StreamConfig | None = None
    """For a dataset larger than memory; by default all of it is in memory."""
    training: TrainingConfig | None = None

    def __post_init__(self) -> None:
        if self.initial != NONE and self.source is not None:
            raise ValueError(f"initial, source: found {self.initial} and {self.source}, expected one of them")


@config
class RelabelInputs:
    """What all entries of ``relabel`` share."""

    dataset: Name
    demonstrations: Name
    space: Name = NONE
    """An entry of ``pretrain``: the encoder in whose space steps are compared."""
    points: str | None = None
    """Which of the encoder's spaces, such as ``phi`` or ``mu``; null: its first one."""
    examples: int = Field(default=6, ge=1)
    """Episodes that are kept for the report."""
    training: TrainingConfig | None = None


@config
class LearnInputs:
    """What all entries of ``learn`` share."""

    dataset: Name
    demonstrations: Name
    encoder: Name = NONE
    """An entry of ``pretrain`` that the method reads."""
    rewards: Name = NONE
    """An entry of ``relabel``."""
    reward_scale: Literal["return_range", "none"] = "return_range"
    """``return_range`` multiplies rewards by 1000 / (largest - smallest episode return), as OTR does."""
    reward_bias: float = 0.0
    """Added after scaling; AntMaze is published with -2 for OTR's rewards and -1 for its own."""
    training: TrainingConfig | None = None


INPUTS: dict[str, type] = {"pretrain": PretrainInputs, "relabel": RelabelInputs, "learn": LearnInputs}


@dataclass(frozen=True)
class Entry(Generic[Inputs]):
    """One entry of a params file.

    Args:
        section: ``pretrain``, ``relabel`` or ``learn``.
        name: of the entry.
        kind: of its method.
        method: the class.
        inputs: what entries of the section share.
        config: hyper-parameters of the kind.
    """

    section: str
    name: str
    kind: str
    method: type[Method]
    inputs: Inputs
    config: Any

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.section}.{self.name}"

    def smoke(self) -> Entry[Inputs]:
        """The same with every training shrunk to a few small updates."""
        return dataclasses.replace(self, inputs=_shrunk(self.inputs), config=_shrunk(self.config))


def _shrunk(values: Any) -> Any:
    found = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    trainings = {name: value.smoke() for name, value in found.items() if isinstance(value, TrainingConfig)}
    fewer = {"max_iterations": 3} if "max_iterations" in found else {}
    return dataclasses.replace(values, **trainings, **fewer)


def read_params(path: Path) -> dict[str, Any]:
    """A params file whose sections are all known.

    Raises:
        ParamsError: if it is no mapping, has a section of an older form, or one that nobody knows.
    """
    values = read_yaml(path)
    moved = [f"{path}: {key}: this section is written {MOVED[key]} now" for key in values if key in MOVED]
    if moved:
        raise ParamsError("\n".join([*moved, f"{path}: docs/params.md shows a whole file"]))
    check_sections(values, SECTIONS, path)
    return values


def section_of(values: Mapping[str, Any], section: str, where: str) -> dict[str, Any]:
    """A map of entries, none if the section is missing or empty.

    Raises:
        ParamsError: if it is no map, or a name cannot be that of a folder.
    """
    entries = values.get(section)
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise ParamsError(f"{where}: {section}: found {type(entries).__name__}, expected a map of entries by name")
    for name in entries:
        check_name(name, f"{where}: {section}", (NONE,))
    return entries


def read_entry(path: Path, section: str, name: str) -> Entry[Any]:
    """An entry of a params file.

    Raises:
        ParamsError: if there is none, or it is not as its section and kind expect.
    """
    entries = section_of(read_params(path), section, str(path))
    if name not in entries:
        raise ParamsError(f"{path}: {section}: no entry {name!r}; found {', '.join(entries) or 'none'}")
    return parse_entry(section, name, entries[name], f"{path}: {section}.{name}")


def parse_entry(section: str, name: str, values: Any, where: str = "") -> Entry[Any]:
    """An entry from plain values.

    Args:
        section: ``pretrain``, ``relabel`` or ``learn``.
        name: of the entry.
        values: its keys.
        where: for messages; section and name by default.

    Raises:
        ParamsError: as ``read_entry``.
    """
    where = where or f"{section}.{name}"
    if not isinstance(values, dict):
        raise ParamsError(f"{where}: found {type(values).__name__}, expected a map with kind")
    values = dict(values)
    method = find_method(ROOMS[section], values.pop("kind", None), f"{where}.kind")
    inputs_class = INPUTS[section]
    of_inputs = {field.name for field in dataclasses.fields(inputs_class)}
    of_method = {field.name for field in dataclasses.fields(method.Config)}
    unknown = set(values) - of_inputs - of_method
    if unknown:
        known = ", ".join(sorted(of_inputs | of_method))
        lines = (f"{where}.{key}: unknown key; {method.kind} knows {known}" for key in sorted(map(str, unknown)))
        raise ParamsError("\n".join(lines))
    inputs: Any = validate(inputs_class, {k: v for k, v in values.items() if k in of_inputs}, where)
    chosen: Any = validate(method.Config, {k: v for k, v in values.items() if k not in of_inputs}, where)
    if method.trains and inputs.training is None:
        raise ParamsError(f"{where}.training: missing; {method.kind} is trained")
    if not method.trains and inputs.training is not None:
        raise ParamsError(f"{where}.training: unknown key; {method.kind} is not trained")
    if section == "relabel" and inputs.training is not None and inputs.training.snapshots > 1:
        raise ParamsError(
            f"{where}.training.snapshots: found {inputs.training.snapshots}, expected 1: no model is kept"
        )
    if section == "learn":
        _check_learner(method, chosen, inputs, where)
    return Entry(section, name, method.kind, method, inputs, chosen)


def _check_learner(method: type[Method], c: Any, inputs: LearnInputs, where: str) -> None:
    needs = method.needs(c)
    for key in ("dataset", "demonstrations"):
        if getattr(inputs, key) == NONE and key not in needs.without:
            raise ParamsError(f"{where}.{key}: found none, expected a dataset; {method.kind} learns from it")
    for key in ("dataset", "demonstrations"):
        if getattr(inputs, key) != NONE and not getattr(needs, key):
            raise ParamsError(
                f"{where}.{key}: found {getattr(inputs, key)!r}, expected none; {method.kind} reads its own steps alone"
            )
    if "rewards" in needs.without and (inputs.rewards == NONE) != (inputs.dataset == NONE):
        raise ParamsError(
            f"{where}: found dataset {inputs.dataset!r} and rewards {inputs.rewards!r}, expected both or none; {method.kind} "
            "begins with the transitions of a dataset and their rewards, or with nothing"
        )
    if needs.rewards and inputs.rewards == NONE and "rewards" not in needs.without:
        raise ParamsError(
            f"{where}.rewards: found none, expected an entry of relabel; {method.kind} learns from rewards"
        )
    if not needs.rewards and inputs.rewards != NONE:
        raise ParamsError(f"{where}.rewards: found {inputs.rewards!r}, expected none; {method.kind} reads no rewards")
    if needs.encoder and not needs.optional_encoder and inputs.encoder == NONE:
        spaces = " and ".join(needs.encoder)
        raise ParamsError(
            f"{where}.encoder: found none, expected an entry of pretrain with {spaces}; {method.kind} reads it"
        )
    if not needs.encoder and not needs.optional_encoder and inputs.encoder != NONE:
        raise ParamsError(f"{where}.encoder: found {inputs.encoder!r}, expected none; {method.kind} reads no encoder")


def check_entries(path: Path) -> list[str]:
    """What is wrong in a params file, a line for each thing: sections, kinds, keys and values of all entries, and names.

    Stages find the same when their turn comes, which for a policy is after what it needs has been trained.
    """
    try:
        values = read_params(path)
        check_kinds(values, str(path))
        check_references(values, str(path))
    except ParamsError as error:
        return str(error).splitlines()
    problems = []
    for section in ROOMS:
        for name, entry in section_of(values, section, str(path)).items():
            try:
                parse_entry(section, name, entry, f"{path}: {section}.{name}")
            except ParamsError as error:
                problems += str(error).splitlines()
    return problems


def check_kinds(values: Mapping[str, Any], where: str) -> None:
    """Refuse a params file one of whose entries has an unknown kind, before DVC looks for the file of that kind.

    Raises:
        ParamsError: that starts with ``where`` and names the entry and all kinds.
    """
    for section, room in ROOMS.items():
        for name, entry in section_of(values, section, where).items():
            if "kind" in entry:  # DVC refuses a file without
                check_kind(room, entry["kind"], f"{where}: {section}.{name}.kind")


REFERENCES = {
    "pretrain": {"initial": "pretrain"},
    "relabel": {"space": "pretrain"},
    "learn": {"encoder": "pretrain", "rewards": "relabel"},
}
"""Keys of each section's entries that name an entry, and of which section."""


def check_references(values: Mapping[str, Any], where: str) -> None:
    """Refuse a params file one of whose entries names an entry that is not there, before DVC looks for its folder.

    Raises:
        ParamsError: that starts with ``where`` and names the key and all entries.
    """
    for section, keys in REFERENCES.items():
        for name, entry in section_of(values, section, where).items():
            for key, other in keys.items():
                found, known = entry.get(key, NONE), section_of(values, other, where)
                if found != NONE and found not in known:
                    names = ", ".join((NONE, *known))
                    raise ParamsError(
                        f"{where}: {section}.{name}.{key}: found {found!r}, expected an entry of {other}: {names}"
                    )


def datasets_of(values: Mapping[str, Any], where: str = "params") -> dict[str, str]:
    """Every dataset that a params file names, with the key that names it first.

    Raises:
        ParamsError: if a section is no map of entries, or what stands for a dataset is no name; starts with ``where``.
    """
    named: dict[str, Any] = {}
    for section in ROOMS:
        for name, entry in section_of(values, section, where).items():
            for key in ("dataset", "demonstrations"):
                if not isinstance(entry, dict):
                    raise ParamsError(f"{where}: {section}.{name}: found {entry!r:.200}, expected a map with kind")
                named[f"{section}.{name}.{key}"] = entry.get(key, NONE)
    evaluate = values.get("evaluate")
    if isinstance(evaluate, dict):
        for key in ("demonstrations", "motion.dataset", "recording.dataset"):
            part, _, last = key.rpartition(".")
            holder = evaluate.get(part) if part else evaluate
            dataset = holder.get(last) if isinstance(holder, dict) else None
            named[f"evaluate.{key}"] = NONE if dataset is None else dataset
    found: dict[str, str] = {}
    for key, dataset in named.items():
        if check_name(dataset, f"{where}: {key}") != NONE:
            found.setdefault(dataset, key)
    return found
