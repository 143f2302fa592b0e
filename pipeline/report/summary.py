"""The first screen: how good it is, the headline table with controls, a picture where states lie in a plane, the run in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.playing.scores import difference_interval, interquartile_mean
from dynarep.pipeline.playing.summary import MOTION, headline
from dynarep.pipeline.report.html import NBSP, listing
from dynarep.pipeline.report.inputs import (
    LENGTH_KIND,
    NONE,
    UNLEARNED_KINDS,
    Artifacts,
    MissingInputError,
    Scored,
    controls,
    saw,
)
from dynarep.pipeline.report.plane import plane_pictures
from dynarep.pipeline.report.representation import read_distances
from dynarep.pipeline.report.scores import headline_table, named
from dynarep.pipeline.report.stages import dataset_text
from dynarep.pipeline.tables import count, number_text

FEW_REPLICAS = 5

Sentence = Callable[[Artifacts, Scored], str]


def summary(artifacts: Artifacts, scored: Scored) -> str:
    """HTML; a sentence whose input is missing is left out."""
    table = headline_table(artifacts, scored)
    pictures = plane_pictures(artifacts, scored)
    right = f'<div class="side">{pictures or table}</div>\n'
    rest = (
        _paragraph("How sure that is", [_certainty], artifacts, scored)
        + _paragraph("What was learned", [_representations, _policies], artifacts, scored)
        + _paragraph("What the labels and spaces say", [_relabelling, _distance], artifacts, scored)
    )
    left = f"<div>{table}</div>\n" if pictures else ""
    lead = _paragraph("How good it is", [_best, _learned], artifacts, scored)
    return f'<div class="first"><div>{lead}</div>\n{left}{right}<div>{rest}</div></div>\n'


def _paragraph(title: str, makers: Sequence[Sentence], artifacts: Artifacts, scored: Scored) -> str:
    sentences = []
    for make in makers:
        try:
            sentences.append(make(artifacts, scored))
        except MissingInputError:
            continue
    text = " ".join(filter(None, sentences))
    return f'<p class="lead"><b>{title}.</b> {escape(text)}</p>\n' if text else ""


def _representations(artifacts: Artifacts, scored: Scored) -> str:
    sources: dict[str, list[str]] = {}
    for name in artifacts.names("pretrain"):
        kind = artifacts.kind("pretrain", name)
        if kind not in UNLEARNED_KINDS:
            datasets = [
                dataset_text(artifacts, dataset) for dataset in artifacts.metadata("pretrain", name).get("datasets", {})
            ]
            sources.setdefault(listing(datasets) if datasets else "unnamed data", []).append(named(name, kind))
    phrases = [f"{listing(what)} from {source}" for source, what in sources.items()]
    return f"Representations: {'; '.join(phrases)}." if phrases else ""


def _policies(artifacts: Artifacts, scored: Scored) -> str:
    kinds: dict[str, int] = {}
    for name in artifacts.names("learn"):
        kinds[artifacts.kind("learn", name)] = kinds.get(artifacts.kind("learn", name), 0) + 1
    against = [
        artifacts.metadata("relabel", name).get("demonstrations")
        for name in artifacts.names("relabel")
        if artifacts.settings("relabel", name).get("space") not in (None, NONE)
    ]
    shown = [dataset_text(artifacts, str(name)) for name in dict.fromkeys(against) if name]
    if not kinds:
        return ""
    learned = "Policies: " + listing([f"{number} of kind {kind}" for kind, number in sorted(kinds.items())])
    return learned + (f"; labels come from comparison with {listing(shown)}." if shown else ".")


def _best(artifacts: Artifacts, scored: Scored) -> str:
    scores, names = scored.scores, scored.learned
    best = scores[names[0]]
    place = f"{names[0]} is the best of {len(names)} policies" if len(names) > 1 else f"{names[0]} was evaluated"
    column = headline(scores)
    score = (
        ""
        if column is MOTION
        else f", {column.title} {_interval(best, column.value, column.low, column.high, column.form)}"
    )
    over = f"over {count(best['replicas'], 'replica')} and {count(best['episodes'], 'episode')} of each"
    if best["return_mean"] is None:
        text = f"On the recording {best['recording']}, {place}: {over}{score}. No environment was asked for."
    else:
        mean = number_text(best["return_mean"], ",.0f")
        text = f"On {best['env']}, {place}: {over}, mean return {mean}{score}."
    if best["expert_fraction"] is not None:
        percent = f"{number_text(100 * best['expert_fraction'], '.0f')}{NBSP}%"
        text += f" That is {percent} of the way from a random policy to the demonstrations."
    expert = saw(artifacts, scored.entry(names[0])).get("expert")
    if expert:
        text += f" Of the expert it saw: {expert}."
    return text


def _interval(score: Mapping[str, Any], value: str, low: str, high: str, form: str) -> str:
    text = number_text(score[value], form)
    if score[low] is None:
        return text
    return f"{text} (95{NBSP}% interval {number_text(score[low], form)} to {number_text(score[high], form)})"


def _learned(artifacts: Artifacts, scored: Scored) -> str:
    """The best policy with a learned space beside the best control."""
    with_space = [name for name in scored.learned if scored.lineage(name).learned]
    without = controls(scored)
    if not with_space or not without:
        return ""
    name, control = with_space[0], without[0]
    difference, (low, high) = _difference(scored, name, control)
    reading = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
    span = f"{number_text(difference, '+,.1f')}, 95{NBSP}% interval {number_text(low, '+,.1f')} to {number_text(high, '+,.1f')}"
    return (
        f"The best policy with a learned space, {name}, is {reading} the best control, {control} "
        f"(difference of the {_unit(scored)}, paired by episode seed where both have the same episodes: {span})."
    )


def _values(scored: Scored, name: str) -> NDArray[np.float64]:
    """What the order is told by, the more the better."""
    return -scored.values(name, "distances") if headline(scored.scores) is MOTION else scored.headline_values(name)


def _unit(scored: Scored) -> str:
    return "distance to the motion, reversed" if headline(scored.scores) is MOTION else scored.unit


def _difference(scored: Scored, name: str, other: str) -> tuple[float, tuple[float, float]]:
    """Difference of the interquartile means, and its interval; all policies play the same episodes."""
    values, others = _values(scored, name), _values(scored, other)
    interval = difference_interval(values, others, paired=values.shape == others.shape)
    return interquartile_mean(values) - interquartile_mean(others), interval


def _relabelling(artifacts: Artifacts, scored: Scored) -> str:
    found, length = [], ""
    for name in artifacts.names("relabel"):
        spearman = artifacts.optional("relabel", name, "metrics.json").get("spearman_true_return")
        if spearman is not None:
            found.append(f"{number_text(spearman, '.2f')} ({name})")
            if artifacts.kind("relabel", name) == LENGTH_KIND:
                length = f" {name} is the length of the episode, the control."
    if not found:
        return ""
    return f"Labels order the episodes as the true returns do with a rank correlation of {', '.join(found)}.{length}"


def _distance(artifacts: Artifacts, scored: Scored) -> str:
    phrases, raw = [], ""
    for name in artifacts.names("pretrain"):
        if artifacts.kind("pretrain", name) in UNLEARNED_KINDS:
            continue
        if not (artifacts.folder("pretrain", name) / "distance.tsv").exists():
            continue
        distances = read_distances(artifacts, name)
        own = next(iter(distances.values()))
        if "raw" in distances and len(distances) > 1:
            last = distances["raw"]
            raw = (
                f"{times(last['mean'][-1])} between raw states; {last['k'][-1]:.0f}-fold would be proportional to time"
            )
            phrases.append(f"{times(own['mean'][-1])} in {name}")
    if not phrases:
        return ""
    return f"Over the longest time that is compared, squared distance grows {', '.join(phrases)} and {raw}."


def times(factor: float) -> str:
    """A factor in words, with tenths where they say something."""
    return f"{factor:,.{0 if factor >= 100 else 1}f}-fold"


def _certainty(artifacts: Artifacts, scored: Scored) -> str:
    names = scored.learned
    best = scored.scores[names[0]]
    sentences = [_rivals(scored, names)] if len(names) > 1 else []
    if best["replicas"] == 1:
        sentences.append("There is one replica, so the intervals say nothing of other training seeds.")
    elif best["replicas"] < FEW_REPLICAS:
        sentences.append(f"{best['replicas']} replicas say little about other training seeds.")
    return " ".join(sentences)


def _rivals(scored: Scored, names: Sequence[str]) -> str:
    """All that the evaluation cannot tell from the best."""
    if _values(scored, names[0]).size < 2:
        return "One episode has no interval, so no two policies are told apart."
    open_ = [name for name in names[1:] if _difference(scored, names[0], name)[1][0] <= 0]
    if not open_:
        return f"{names[0]} is told apart from all others, by differences over the same episode seeds."
    shown = listing(open_ if len(open_) <= 4 else [*open_[:3], f"{len(open_) - 3} more"])
    return f"By differences over the same episode seeds, {names[0]} is not told apart from {shown}."
