"""Relabelled against true returns."""

from __future__ import annotations

import math

import numpy as np

from dynarep.pipeline.report.html import figure, missing_note, note, or_missing
from dynarep.pipeline.report.inputs import LENGTH_KIND, Artifacts, MissingInputError, numbers, read_json, read_table
from dynarep.pipeline.report.plots import BLUE, canvas, svg
from dynarep.pipeline.report.scores import named

MANY = 1000
"""Dots from which on a picture is smaller than their list."""


def labels_section(artifacts: Artifacts) -> str:
    """One panel per entry of ``relabel``."""
    names = artifacts.names("relabel")
    if not names:
        raise MissingInputError(artifacts.root / "relabel" / "*" / "returns.tsv")
    panels = "".join(or_missing(_panel, artifacts, name) for name in names)
    lengths = [name for name in names if artifacts.kind("relabel", name) == LENGTH_KIND]
    control = (
        f" {', '.join(lengths)}: the length of the episode, the control that every label must beat." if lengths else ""
    )
    return f'<p class="note">One dot per episode.{control}</p><div class="panels">{panels}</div>'


def _panel(artifacts: Artifacts, name: str) -> str:
    path = artifacts.folder("relabel", name) / "returns.tsv"
    table = read_table(path, "relabelled")
    relabelled = numbers(path, "relabelled", table["relabelled"])
    true = numbers(path, "true", table["true"]) if "true" in table else np.full(len(relabelled), math.nan)
    missing, spearman = "", None
    try:
        metrics = read_json(path.with_name("metrics.json"))
        spearman = metrics.get("spearman_true_return")
        missing = "".join(note(f"{name}: {remark}") for remark in metrics.get("remarks", []))
    except MissingInputError as gone:
        missing = missing_note(artifacts, gone.path)
    if not np.isfinite(true).any():
        return missing_note(artifacts, path, "true returns in ") + missing
    title = named(name, artifacts.kind("relabel", name))
    title += "" if spearman is None else f", Spearman {spearman:.2f}"
    drawn = canvas(3.6, 2.5)
    axes = drawn.subplots()
    axes.scatter(true, relabelled, s=9, color=BLUE, alpha=0.5, linewidths=0, rasterized=len(true) > MANY)
    axes.set_title(title)
    axes.set_xlabel("true return")
    axes.set_ylabel("relabelled return")
    return figure(svg(drawn, f"Relabelled against true return of {len(true)} episodes: {title}")) + missing
