"""What the report reads: JSON, tables and arrays of other stages, each fault named with its file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.playing.scores import OPTIONAL_SCORES

RANDOM = "random"
POLICY_STAGES = ("imitate", "offline_rl")
SCORE_FIELDS = (
    *("env", "episodes", "replicas", "return_mean", "length_mean"),
    *("normalised_iqm", "normalised_low", "normalised_high", "expert_fraction"),
    *OPTIONAL_SCORES,
)


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
    try:
        return path.read_text()
    except FileNotFoundError:
        raise MissingInputError(path) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ``read_text`` and ``ReportError`` otherwise."""
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ReportError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def read_table(path: Path, *columns: str) -> dict[str, list[str]]:
    """Columns of a TSV file with a header, among them ``columns``."""
    header, *rows = list(csv.reader(io.StringIO(read_text(path)), delimiter="\t")) or [[]]
    missing = [column for column in columns if column not in header]
    if missing:
        raise ReportError(f"{path}: no column {missing[0]!r}; found {', '.join(header) or 'nothing'}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ReportError(f"{path}, line {number}: {len(row)} fields, expected {len(header)}")
    return {column: [row[i] for row in rows] for i, column in enumerate(header)}


def numbers(path: Path, column: str, texts: Iterable[str]) -> NDArray[np.float64]:
    """The column as numbers; an empty field is NaN."""
    try:
        return np.array([float(text) if text else math.nan for text in texts])
    except ValueError as error:
        raise ReportError(f"{path}, column {column!r}: {error}") from None


def read_arrays(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file, among them ``names``."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except FileNotFoundError:
        raise MissingInputError(path) from None
    except (OSError, ValueError, BadZipFile) as error:
        raise ReportError(f"{path}: not a readable npz file: {error}") from None
    missing = set(names) - set(arrays)
    if missing:
        raise ReportError(f"{path}: no array {min(missing)!r}; found {', '.join(arrays)}")
    return arrays


def read_scores(artifacts: Path) -> dict[str, dict[str, Any]]:
    """Scores of all policies, as ``dynarep.pipeline.playing.evaluate.summarise`` makes them.

    Raises:
        ReportError: also if there are none.
    """
    path = artifacts / "evaluate" / "metrics.json"
    try:
        scores = read_json(path)
    except MissingInputError:
        raise ReportError(f"{path}: no such file; there are no scores to report") from None
    if not set(scores) - {RANDOM}:
        raise ReportError(f"{path}: holds no score of a policy")
    for name, score in scores.items():
        for field in SCORE_FIELDS:
            if field not in score:
                raise ReportError(f"{path}: {name} has no {field!r}")
    return scores


def read_returns(artifacts: Path) -> dict[str, Any]:
    """What the evaluation knows of every episode."""
    path = artifacts / "evaluate" / "returns.json"
    raw = read_json(path)
    for field in ("env", "seed", "reference", "versions", "policies"):
        if field not in raw:
            raise ReportError(f"{path}: no {field!r}")
    return raw


def episode_returns(artifacts: Path, raw: dict[str, Any], policy: str) -> NDArray[np.float64]:
    """Returns (R, E) of a policy."""
    if policy not in raw["policies"]:
        raise ReportError(f"{artifacts}/evaluate: metrics.json scores {policy!r}, returns.json does not have it")
    return np.array(raw["policies"][policy]["returns"], dtype=np.float64)


def models(artifacts: Path) -> list[str]:
    """Folders of all trained models, relative to ``artifacts``."""
    policies = [path.parent for stage in POLICY_STAGES for path in sorted((artifacts / stage).glob("*/config.json"))]
    return ["pretrain_dynamics", "pretrain_intent", *(str(folder.relative_to(artifacts)) for folder in policies)]


def policy_metadata(artifacts: Path, policy: str) -> dict[str, Any]:
    """What is stored with a policy; nothing if it has no file."""
    for stage in POLICY_STAGES:
        path = artifacts / stage / policy / "metadata.json"
        if path.exists():
            return read_json(path)
    return {}


def saw(artifacts: Path, policy: str) -> dict[str, str]:
    """What a policy was trained on, in words, by kind of data."""
    return {str(kind): str(text) for kind, text in policy_metadata(artifacts, policy).get("saw", {}).items()}
