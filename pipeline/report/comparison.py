"""This run beside another: scores with the interval of their difference, and what was different."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.html import NBSP, as_text, figure, flatten, note, table
from dynarep.pipeline.report.inputs import (
    RANDOM,
    MissingInputError,
    ReportError,
    episode_returns,
    models,
    read_json,
    read_returns,
    read_scores,
)
from dynarep.pipeline.report.plots import BLUE, ORANGE, canvas, svg
from dynarep.pipeline.playing.scores import (
    bootstrap_interval,
    difference_interval,
    interquartile_mean,
    normalised_score,
    ranking,
)


def comparison_section(artifacts: Path, other: Path) -> str:
    """Scores and differences.

    Args:
        artifacts: of this run.
        other: those of the other run, or as many of its folders as there are; ``evaluate`` must be among them.

    Raises:
        ReportError: if the other run has no scores, or played in another environment.
    """
    try:
        other_raw = read_returns(other)
    except MissingInputError as missing:
        raise ReportError(
            f"report.compare: {missing.path}: no such file; expected the artifacts of another run, with evaluate/returns.json"
        ) from None
    raw = read_returns(artifacts)
    if raw["env"] != other_raw["env"] or raw["reference"] != other_raw["reference"]:
        raise ReportError(f"report.compare: {other} was evaluated in {other_raw['env']}, this run in {raw['env']}")
    theirs = read_scores(other)
    names = [name for name in ranking(read_scores(artifacts)) if name in theirs and name != RANDOM]
    ours = {name: _values(artifacts, raw, name) for name in names}
    others = {name: _values(other, other_raw, name) for name in names}
    about = f"<p>This run beside <b>{escape(other.name if other.name != 'artifacts' else other.parent.name)}</b>."
    if not names:
        return about + "</p>" + note("the two runs have no policy in common") + _differences(artifacts, other)
    what = "normalised score" if raw["reference"] else "return"
    return (
        f"{about} {escape(_verdict(ours, others))}</p>\n"
        + _score_table(ours, others, what)
        + _score_figure(ours, others, what)
        + _differences(artifacts, other)
    )


Values = dict[str, NDArray[np.float64]]


def _values(artifacts: Path, raw: dict[str, Any], name: str) -> NDArray[np.float64]:
    values = episode_returns(artifacts, raw, name)
    return normalised_score(values, raw["reference"]) if raw["reference"] else values


def _reading(low: float, high: float) -> str:
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def _verdict(ours: Values, others: Values) -> str:
    readings = [_reading(*difference_interval(ours[name], others[name])) for name in ours]
    counts = {reading: readings.count(reading) for reading in ("higher", "lower", "not told apart")}
    return (
        f"Of {len(readings)} policies that both have, {counts['higher']} score higher here, {counts['lower']} lower, "
        f"{counts['not told apart']} are not told apart."
    )


def _score_table(ours: Values, others: Values, what: str) -> str:
    header = [("policy", "name"), ("this run", "number"), ("other run", "number")]
    header += [(f"difference [95{NBSP}%]", "number"), ("reading", "text")]
    rows = []
    for name, values in ours.items():
        low, high = difference_interval(values, others[name])
        this, that = interquartile_mean(values), interquartile_mean(others[name])
        difference = f"{this - that:+,.1f} [{low:+,.1f}, {high:+,.1f}]"
        rows.append([name, f"{this:,.1f}", f"{that:,.1f}", difference, _reading(low, high)])
    return table(f"Interquartile mean of the {what} in both runs", header, rows)


def _score_figure(ours: Values, others: Values, what: str) -> str:
    drawn = canvas(4.4, 0.9 + 0.36 * len(ours))
    axes = drawn.subplots()
    described = []
    for row, name in enumerate(reversed(ours)):
        for values, offset, colour, marker, label in (
            (ours[name], 0.13, BLUE, "o", "this run"),
            (others[name], -0.13, ORANGE, "D", "other run"),
        ):
            axes.plot(bootstrap_interval(values), [row + offset] * 2, color=colour, linewidth=2)
            mean = interquartile_mean(values)
            axes.plot([mean], [row + offset], marker, color=colour, markersize=5, label=label if row == 0 else None)
        described.append(f"{name} {interquartile_mean(ours[name]):.1f} and {interquartile_mean(others[name]):.1f}")
    axes.set_yticks(range(len(ours)), list(reversed(ours)))
    axes.set_ylim(-0.6, len(ours) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(what)
    drawn.legend(loc="outside upper left", ncols=2)
    label = f"Interquartile mean of the {what} in this run and the other: {', '.join(reversed(described))}"
    return figure(svg(drawn, label), f"Interquartile means and 95{NBSP}% intervals.")


def _differences(artifacts: Path, other: Path) -> str:
    """What is not the same in parameters, data, revisions and metrics of the stages and models that both have."""
    ours: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for folder in [*models(artifacts), "relabel"]:
        if (artifacts / folder / "metadata.json").is_file() and (other / folder / "metadata.json").is_file():
            ours |= _facts(artifacts, folder)
            theirs |= _facts(other, folder)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if not keys:
        return note("no parameter, dataset, revision or metric differs in what both runs hold")
    rows = [[key, ours.get(key, "–"), theirs.get(key, "–")] for key in keys]
    header = [("key", "name"), ("this run", "value"), ("other run", "value")]
    return "<h3>What was different</h3>\n" + table("Values that differ between the runs", header, rows)


def _facts(artifacts: Path, folder: str) -> dict[str, str]:
    metadata = read_json(artifacts / folder / "metadata.json")
    found = flatten(metadata.get("params", {})) + flatten({"dataset": metadata.get("datasets", {})})
    found += [(f"{folder}: {key}", as_text(metadata.get(key))) for key in ("version", "revision")]
    path = artifacts / folder / "metrics.json"
    if path.is_file():
        found += [(f"{folder}: {key}", value) for key, value in flatten(read_json(path))]
    return dict(found)
