"""Relabelled against true returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.pipeline.report.html import figure, missing_note
from dynarep.pipeline.report.inputs import MissingInputError, numbers, read_json, read_table
from dynarep.pipeline.report.plots import BLUE, canvas, svg

MANY = 1000
"""Dots from which on a picture is smaller than their list."""


def labels_section(artifacts: Path) -> str:
    """One panel per method."""
    paths = sorted((artifacts / "relabel").glob("*/returns.tsv"))
    if not paths:
        raise MissingInputError(artifacts / "relabel" / "*" / "returns.tsv")
    metrics_path = artifacts / "relabel" / "metrics.json"
    missing = ""
    try:
        metrics = read_json(metrics_path)
    except MissingInputError:
        metrics = {}
        missing = missing_note(artifacts, metrics_path)
    panels = "".join(_panel(artifacts, path, metrics.get(path.parent.name, {})) for path in paths)
    return f'<p class="note">One dot per episode.</p><div class="panels">{panels}</div>{missing}'


def _panel(artifacts: Path, path: Path, metrics: Mapping[str, Any]) -> str:
    table = read_table(path, "relabelled")
    relabelled = numbers(path, "relabelled", table["relabelled"])
    true = numbers(path, "true", table["true"]) if "true" in table else np.full(len(relabelled), math.nan)
    method = path.parent.name
    if not np.isfinite(true).any():
        return missing_note(artifacts, path, "true returns in ")
    spearman = metrics.get("spearman_true_return")
    title = method if spearman is None else f"{method}, Spearman {spearman:.2f}"
    drawn = canvas(3.6, 2.5)
    axes = drawn.subplots()
    axes.scatter(true, relabelled, s=9, color=BLUE, alpha=0.5, linewidths=0, rasterized=len(true) > MANY)
    axes.set_title(title)
    axes.set_xlabel("true return")
    axes.set_ylabel("relabelled return")
    return figure(svg(drawn, f"Relabelled against true return of {len(true)} episodes: {title}"))
