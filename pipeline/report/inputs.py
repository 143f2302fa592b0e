"""What the report reads: JSON, tables and arrays of other stages, each fault named with its file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.configs.params import FLOAT_MAX, read_file
from dynarep.data.schema import DataError
from dynarep.data.shards import first_episode, open_dataset
from dynarep.pipeline import stored
from dynarep.pipeline.playing.scores import normalised_score, ranking
from dynarep.pipeline.playing.summary import (
    ACTION_ERROR,
    FITTED_Q,
    RANDOM_KIND,
    RECORDED,
    episode_table,
    gather,
    headline,
    summarise,
)

SECTIONS = ("pretrain", "relabel", "learn")
"""Sections of entries, in the order of the chain."""

LARGEST_BYTES = 1 << 28
"""Of a table or picture that is read."""

NONE = "none"
"""Stands for an input that an entry does without."""

UNLEARNED_KINDS = ("identity", "standardise")
"""Encoders that hand on the states as they are, or scaled."""

LENGTH_KIND, TRUE_KIND = "constant", "recorded"
"""Labels by which an episode is worth its length, and what the recording says."""

TRUE_LEARNER = "sac"
"""The learner that is paid by the environment itself."""


class ReportError(ValueError):
    """There is nothing to report, or an input is damaged; the message names the file."""


class MissingInputError(Exception):
    """A part of the page lacks this file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        MissingInputError: if there is none.
    """
    return read_bytes(path).decode()


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises:
        MissingInputError: if there is none.
        ReportError: if it is no regular file, or too large.
    """
    try:
        return read_file(path, LARGEST_BYTES)
    except FileNotFoundError:
        raise MissingInputError(path) from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ``MissingInputError`` and ``ReportError`` as ``read_bytes``, and if it has not the form of its name."""
    if not path.exists():
        raise MissingInputError(path)
    try:
        return stored.read_json(path)
    except ValueError as error:
        raise ReportError(str(error)) from None


def read_table(path: Path, *columns: str) -> dict[str, list[str]]:
    """Columns of a TSV file with a header, among them ``columns``."""
    try:
        header, *rows = list(csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"{path}: not a table: {error}") from None
    missing = [column for column in columns if column not in header]
    if missing:
        raise ReportError(f"{path}: no column {missing[0]!r}; found {', '.join(header) or 'nothing'}")
    if not rows:
        raise ReportError(f"{path}: found no rows, expected some below the header")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ReportError(f"{path}, line {number}: {len(row)} fields, expected {len(header)}")
    return {column: [row[i] for row in rows] for i, column in enumerate(header)}


def numbers(path: Path, column: str, texts: Sequence[str], *, gaps: bool = True) -> NDArray[np.float64]:
    """The column as numbers within float32; an empty field is NaN, where there may be ``gaps``."""
    try:
        found = np.array([float(text) if text or not gaps else math.nan for text in texts])
    except ValueError as error:
        raise ReportError(f"{path}, column {column!r}: {error}") from None
    for text, number in zip(texts, found, strict=True):
        if text and not abs(number) <= FLOAT_MAX:
            raise ReportError(f"{path}, column {column!r}: found {text:.50}, expected numbers within float32")
    return found


@dataclass(frozen=True)
class Artifacts:
    """What the stages left behind, by section and entry.

    Args:
        root: folder of the sections' folders.
        entries: by section, those of a params file, in its order; a section that is not named has all that lie there.
    """

    root: Path
    entries: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, values: Mapping[str, Any]) -> Artifacts:
        """Those of the entries of a params file."""
        return cls(root, {section: list(values[section]) for section in SECTIONS if values.get(section)})

    def folder(self, section: str, name: str) -> Path:
        """Where an entry's output lies."""
        return self.root / section / name

    def names(self, section: str) -> list[str]:
        """Entries of a section that were made."""
        found = sorted(path.parent.name for path in (self.root / section).glob("*/metadata.json"))
        return [name for name in self.entries.get(section, found) if name in found]

    def optional(self, section: str, name: str, file: str) -> dict[str, Any]:
        """A JSON object of an entry; empty if there is none."""
        try:
            return read_json(self.folder(section, name) / file)
        except MissingInputError:
            return {}

    @property
    def plane(self) -> list[int] | None:
        """The two numbers of an observation that are a position, as the evaluation was told; None where it was not."""
        for name in self.names("learn"):
            plane = self.optional("evaluate", name, "returns.json").get("plane")
            if plane is not None:
                return [int(number) for number in plane]
        return None

    def metadata(self, section: str, name: str) -> dict[str, Any]:
        """What is stored with an entry; empty if there is nothing."""
        return self.optional(section, name, "metadata.json")

    def settings(self, section: str, name: str) -> dict[str, Any]:
        """The entry as its params file had it."""
        entries = self.metadata(section, name).get("params", {}).get(section) or {}
        return entries.get(name) or {}

    def kind(self, section: str, name: str) -> str:
        """Kind of an entry, for an encoder that of the model that was made."""
        model = self.optional(section, name, "config.json") if section == "pretrain" else {}
        return str(
            model.get("kind")
            or self.metadata(section, name).get("kind")
            or self.settings(section, name).get("kind", "")
        )

    def weights(self, section: str, name: str) -> str:
        """Digest of a model's weights; empty if it is not known."""
        return str(self.optional(section, name, "config.json").get("sha256", ""))

    def states(self, dataset: str) -> NDArray[np.float32]:
        """States (T, obs_dim) of the first episode of a prepared dataset.

        Raises:
            MissingInputError: if they do not lie here.
            ReportError: if the dataset is damaged.
        """
        folder = self.root / "shards" / dataset
        if not (folder / "index.json").exists():
            raise MissingInputError(folder / "index.json")
        try:
            found = open_dataset(folder)
            if not isinstance(found.location, Path):
                raise MissingInputError(folder / found.shards[0].file)
            return first_episode(found).observations
        except DataError as error:
            raise ReportError(str(error)) from None

    def relative(self, path: Path) -> str:
        """How the page names a file."""
        return path.relative_to(self.root.parent).as_posix()


@dataclass(frozen=True)
class Scored:
    """What the evaluation knows of every episode, and what it is worth.

    Args:
        artifacts: where it lies.
        raw: as ``dynarep.pipeline.playing.summary.gather`` gives it.
        scores: by policy, as ``summarise`` makes them.
    """

    artifacts: Artifacts
    raw: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]]

    @property
    def order(self) -> list[str]:
        """All policies, best first."""
        return ranking(self.scores)

    @property
    def learned(self) -> list[str]:
        """Those that do not act at random, best first."""
        return [name for name in self.order if name not in self.raw["random"]]

    def values(self, policy: str, key: str = "returns") -> NDArray[np.float64]:
        """One number per replica and episode (R, E)."""
        return episode_table(self.raw["policies"][policy], key)

    def headline_values(self, policy: str) -> NDArray[np.float64]:
        """Of each episode, the more the better: normalised score, return without a reference, or what a recording says."""
        column = headline(self.scores)
        if column is FITTED_Q:
            return self.values(policy, "fitted_q")
        if column is ACTION_ERROR:
            return -self.values(policy, "errors")
        returns, reference = self.values(policy), self.raw["reference"]
        return normalised_score(returns, reference) if reference else returns

    @property
    def unit(self) -> str:
        """What ``headline_values`` are."""
        column = headline(self.scores)
        if column in RECORDED:
            return column.title if column is FITTED_Q else f"{column.title}, reversed"
        return "normalised score" if self.raw["reference"] else "return"

    def entry(self, policy: str) -> str:
        """The entry of ``learn`` behind a policy, which may be one of its snapshots."""
        return str(self.raw["entries"][policy])

    def lineage(self, policy: str) -> Lineage:
        """What a policy was made from."""
        return lineage(self.artifacts, self.entry(policy))


def read_scores(artifacts: Artifacts) -> Scored:
    """All scores.

    Raises:
        ReportError: if there are none, or a file is damaged.
    """
    try:
        raw = gather(artifacts.root, artifacts.entries.get("learn"))
        scored = Scored(artifacts, raw, summarise(raw))
    except ValueError as error:
        raise ReportError(str(error)) from None
    if not scored.learned:
        raise ReportError(f"{artifacts.root / 'evaluate'}: holds no score of a policy that does not act at random")
    return scored


@dataclass(frozen=True)
class Lineage:
    """What a policy was made from.

    Args:
        kind: of the learner.
        label: the entry of ``relabel`` that it learned from; empty without.
        label_kind: kind of that.
        spaces: entries of ``pretrain`` that the label or the learner read.
        learned: those of them that were learned, rather than raw or standardised states.
        random: whether it acts at random.
    """

    kind: str
    label: str = ""
    label_kind: str = ""
    spaces: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()
    random: bool = False

    @property
    def role(self) -> str:
        """What the row is there for, where it is not a method with a learned representation."""
        if self.random:
            return "chance"
        if self.learned or not self.kind:
            return ""
        if self.label_kind == LENGTH_KIND:
            return "control: length"
        if self.label_kind == TRUE_KIND or self.kind == TRUE_LEARNER:
            return "reference: true reward"
        return "control: no learned space"


def lineage(artifacts: Artifacts, entry: str) -> Lineage:
    """What the policy of an entry of ``learn`` was made from; empty where nothing is known of it."""
    kind, settings = artifacts.kind("learn", entry), artifacts.settings("learn", entry)
    label = str(artifacts.metadata("learn", entry).get("rewards") or settings.get("rewards") or NONE)
    label = "" if label == NONE else label
    named = [settings.get("encoder"), artifacts.settings("relabel", label).get("space") if label else None]
    spaces = tuple(dict.fromkeys(str(space) for space in named if space not in (None, NONE)))
    learned = tuple(space for space in spaces if artifacts.kind("pretrain", space) not in UNLEARNED_KINDS)
    return Lineage(kind, label, artifacts.kind("relabel", label) if label else "", spaces, learned, kind == RANDOM_KIND)


def controls(scored: Scored) -> list[str]:
    """Policies in which no learned representation takes part, and that do not act at random."""
    return [name for name in scored.learned if scored.lineage(name).role.startswith("control")]


def saw(artifacts: Artifacts, entry: str) -> dict[str, str]:
    """What a policy was trained on, in words, by kind of data."""
    return {str(kind): str(text) for kind, text in artifacts.metadata("learn", entry).get("saw", {}).items()}


def models(artifacts: Artifacts) -> list[tuple[str, str]]:
    """Section and name of everything that was made, in the order of the chain."""
    return [(section, name) for section in SECTIONS for name in artifacts.names(section)]
