"""This run beside another: scores with the interval of their difference, and what was different."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.playing.scores import bootstrap_interval, difference_interval, interquartile_mean
from dynarep.pipeline.playing.summary import SAME_KEYS
from dynarep.pipeline.report.html import NBSP, as_text, beside, figure, flatten, note, table
from dynarep.pipeline.report.inputs import Artifacts, ReportError, Scored, models, read_json, read_scores
from dynarep.pipeline.report.plots import BLUE, ORANGE, canvas, svg
from dynarep.pipeline.tables import digits_apart, number_text

READINGS = ("higher", "lower", "not told apart", "same weights")


def comparison_section(artifacts: Artifacts, scored: Scored, other: Artifacts) -> str:
    """Scores and differences.

    Args:
        artifacts: of this run.
        scored: the scores of this run.
        other: artifacts of the other run, or as many of its folders as there are; ``evaluate`` must be among them.

    Raises:
        ReportError: if the other run has no scores, or played in another environment.
    """
    try:
        theirs = read_scores(other)
    except ReportError as error:
        raise ReportError(f"report.compare: {error}; expected the artifacts of another run") from None
    if any(scored.raw[key] != theirs.raw[key] for key in ("env", "reference")):
        raise ReportError(
            f"report.compare: {other.root} was evaluated in {theirs.raw['env']}, this run in {scored.raw['env']}"
        )
    names = [name for name in scored.learned if name in theirs.scores]
    pairs = [Pair(name, scored, theirs) for name in names]
    place = other.root.name if other.root.name != "artifacts" else other.root.parent.name
    about = f"<p>This run beside <b>{escape(place)}</b>."
    if not pairs:
        return about + "</p>" + note("the two runs have no policy in common") + _differences(artifacts, other)
    return (
        f"{about} {escape(_verdict(pairs))}</p>\n"
        + beside(_score_table(pairs, scored.unit) + _pairing(pairs), _score_figure(pairs, scored.unit))
        + _differences(artifacts, other)
    )


class Pair:
    """A policy in both runs.

    Args:
        name: of the policy.
        ours: scores of this run.
        theirs: scores of the other.
    """

    def __init__(self, name: str, ours: Scored, theirs: Scored) -> None:
        self.name = name
        self.ours: NDArray[np.float64] = ours.headline_values(name)
        self.theirs: NDArray[np.float64] = theirs.headline_values(name)
        self.paired = self.ours.shape == self.theirs.shape and all(
            ours.raw[key] == theirs.raw[key] for key in SAME_KEYS
        )
        self.difference = interquartile_mean(self.ours) - interquartile_mean(self.theirs)
        self.interval = difference_interval(self.ours, self.theirs, paired=self.paired)
        digests = {scored.artifacts.weights("learn", scored.entry(name)) for scored in (ours, theirs)}
        self.same = name == ours.entry(name) and len(digests) == 1 and "" not in digests

    @property
    def reading(self) -> str:
        """One of ``READINGS``."""
        low, high = self.interval
        if low > 0 or high < 0:
            return "higher" if low > 0 else "lower"
        return "same weights" if self.same else "not told apart"


def _verdict(pairs: list[Pair]) -> str:
    readings = [pair.reading for pair in pairs]
    higher, lower, open_, same = (readings.count(reading) for reading in READINGS)
    text = f"Of {len(pairs)} policies that both have, {higher} score higher here, {lower} lower, {open_} are not told apart"
    return f"{text}, {same} {'has' if same == 1 else 'have'} the same weights." if same else f"{text}."


def _pairing(pairs: list[Pair]) -> str:
    paired, apart = ([pair.name for pair in pairs if pair.paired == wanted] for wanted in (True, False))
    text = "Differences are paired by episode seed and replica, so what both runs share cancels out."
    if not paired:
        text = "Differences are not paired: the runs have other seeds, or other numbers of episodes or replicas."
    elif apart:
        text += f" Those of {', '.join(apart)} are not: the numbers of episodes or replicas differ."
    changed = [pair.name for pair in pairs if pair.same and pair.difference != 0]
    if changed:
        text += f" {', '.join(changed)} scored differently with the same weights: the evaluation is not the same."
    return f'<p class="note">{escape(text)}</p>'


def _score_table(pairs: list[Pair], unit: str) -> str:
    header = [("policy", "name"), ("this run", "number"), ("other run", "number")]
    header += [(f"difference [95{NBSP}%]", "number"), ("reading", "text"), ("interval", "text"), ("weights", "text")]
    centres = [interquartile_mean(values) for pair in pairs for values in (pair.ours, pair.theirs)]
    wanted = digits_apart(centres, 1)
    rows = []
    for pair, digits in zip(pairs, map(max, wanted[::2], wanted[1::2]), strict=True):
        this, that = (number_text(interquartile_mean(values), f",.{digits}f") for values in (pair.ours, pair.theirs))
        low, high = (number_text(bound, f"+,.{digits}f") for bound in pair.interval)
        difference = f"{number_text(pair.difference, f'+,.{digits}f')} [{low}, {high}]"
        kind, same = "paired" if pair.paired else "unpaired", "same" if pair.same else "–"
        rows.append([pair.name, this, that, difference, pair.reading, kind, same])
    return table(f"Interquartile mean of the {unit} in both runs", header, rows)


def _score_figure(pairs: list[Pair], unit: str) -> str:
    drawn = canvas(4.8, 0.9 + 0.34 * len(pairs))
    axes = drawn.subplots()
    described = []
    for row, pair in enumerate(reversed(pairs)):
        for values, offset, colour, marker, label in (
            (pair.ours, 0.13, BLUE, "o", "this run"),
            (pair.theirs, -0.13, ORANGE, "D", "other run"),
        ):
            axes.plot(bootstrap_interval(values), [row + offset] * 2, color=colour, linewidth=2)
            mean = interquartile_mean(values)
            axes.plot([mean], [row + offset], marker, color=colour, markersize=5, label=label if row == 0 else None)
        centres = (number_text(interquartile_mean(values), ".1f") for values in (pair.ours, pair.theirs))
        described.append(f"{pair.name} {' and '.join(centres)}")
    axes.set_yticks(range(len(pairs)), [pair.name for pair in reversed(pairs)])
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    drawn.legend(loc="outside upper left", ncols=2)
    label = f"Interquartile mean of the {unit} in this run and the other: {', '.join(reversed(described))}"
    return figure(svg(drawn, label), f"Interquartile means and 95{NBSP}% intervals of each run.")


def _differences(artifacts: Artifacts, other: Artifacts) -> str:
    """What is not the same in parameters, data, weights and metrics of the entries that both runs have."""
    both = [model for model in models(artifacts) if model in set(models(other))]
    ours, theirs = (_all_facts(run, both) for run in (artifacts, other))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if not keys:
        return note("no parameter, dataset, weight or metric differs in what both runs hold")
    rows = [[key, ours.get(key, "–"), theirs.get(key, "–")] for key in keys]
    header = [("key", "name"), ("this run", "value"), ("other run", "value")]
    return "<h3>What was different</h3>\n" + table("Values that differ between the runs", header, rows)


def _all_facts(artifacts: Artifacts, entries: list[tuple[str, str]]) -> dict[str, str]:
    """Facts of all entries; where they do not agree on one, all that they say."""
    found: dict[str, list[str]] = {}
    for section, name in entries:
        for key, text in _facts(artifacts, section, name).items():
            known = found.setdefault(key, [])
            if text not in known:
                known.append(text)
    return {key: ", ".join(texts) for key, texts in found.items()}


def _facts(artifacts: Artifacts, section: str, name: str) -> dict[str, str]:
    metadata = artifacts.metadata(section, name)
    found = flatten(metadata.get("params", {})) + flatten({"dataset": metadata.get("datasets", {})})
    found.append((f"{section}/{name}: version", as_text(metadata.get("version"))))
    weights = artifacts.weights(section, name)
    if weights:
        found.append((f"{section}/{name}: weights", weights[:12]))
    path = artifacts.folder(section, name) / "metrics.json"
    if path.exists():
        found += [(f"{section}/{name}: {key}", value) for key, value in flatten(read_json(path))]
    return dict(found)
