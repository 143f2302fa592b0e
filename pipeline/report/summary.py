"""The run in a few sentences: what was learned from what, how good it is, how sure that is, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from dynarep.pipeline.report.html import NBSP, count, duration, listing
from dynarep.pipeline.report.inputs import (
    POLICY_STAGES,
    RANDOM,
    MissingInputError,
    read_json,
    saw,
)
from dynarep.pipeline.report.representation import read_distances
from dynarep.pipeline.report.scores import Scores, has_interval
from dynarep.pipeline.report.stages import STAGES, dataset_text
from dynarep.pipeline.playing.scores import ranking

FEW_REPLICAS = 5
PRETRAINED = {"pretrain_dynamics": "dynamics (φ and μ)", "pretrain_intent": "intent (ψ)"}


def summary(artifacts: Path, scores: Scores) -> str:
    """Paragraphs of HTML; a sentence whose input is missing is left out."""
    paragraphs = {
        "What was learned": [_representations, _policies],
        "How good it is": [lambda artifacts: _best(artifacts, scores), _relabelling, _distance],
        "How sure that is": [lambda artifacts: _certainty(scores)],
        "What it took": [_cost],
    }
    html = ""
    for title, makers in paragraphs.items():
        sentences = []
        for make in makers:
            try:
                sentences.append(make(artifacts))
            except MissingInputError:
                continue
        if any(sentences):
            html += f'<p class="lead"><b>{title}.</b> {escape(" ".join(filter(None, sentences)))}</p>\n'
    return html


def _representations(artifacts: Path) -> str:
    sources: dict[str, list[str]] = {}
    for stage, what in PRETRAINED.items():
        path = artifacts / stage / "metadata.json"
        if path.is_file():
            datasets = [dataset_text(artifacts, name) for name in read_json(path).get("datasets", {})]
            sources.setdefault(listing(datasets) if datasets else "unnamed data", []).append(what)
    phrases = [f"of {listing(what)} from {source}" for source, what in sources.items()]
    return f"Representations {'; '.join(phrases)}." if phrases else ""


def _policies(artifacts: Path) -> str:
    titles = {"imitate": "by imitation", "offline_rl": "by learning from new or true rewards"}
    trained = {stage: len(list((artifacts / stage).glob("*/config.json"))) for stage in POLICY_STAGES}
    phrases = [f"{number} {titles[stage]}" for stage, number in trained.items() if number]
    labels = artifacts / "relabel" / "metadata.json"
    against = read_json(labels).get("demonstrations") if labels.is_file() else None
    if not phrases:
        return ""
    learned = f"Policies: {listing(phrases)}"
    return learned + (
        f"; new rewards come from comparison with {dataset_text(artifacts, against)}." if against else "."
    )


def _best(artifacts: Path, scores: Scores) -> str:
    names = [name for name in ranking(scores) if name != RANDOM]
    best = scores[names[0]]
    place = f"{names[0]} is the best of {len(names)} policies" if len(names) > 1 else f"{names[0]} was evaluated"
    text = (
        f"On {best['env']}, {place}: over {count(best['replicas'], 'replica')} and "
        f"{count(best['episodes'], 'episode')} of each, its mean return is {best['return_mean']:,.0f}{_normalised(best)}."
    )
    if best["expert_fraction"] is not None:
        percent = f"{100 * best['expert_fraction']:.0f}{NBSP}%"
        text += f" That is {percent} of the way from a random policy to the demonstrations."
    expert = saw(artifacts, names[0]).get("expert")
    if expert:
        text += f" Of the expert it saw: {expert}."
    if RANDOM in scores:
        text += f" A uniform random policy has a mean return of {scores[RANDOM]['return_mean']:,.0f}."
    return text


def _normalised(score: Mapping[str, Any]) -> str:
    if score["normalised_iqm"] is None:
        return ""
    text = f" and the interquartile mean of its normalised score {score['normalised_iqm']:.1f}"
    if has_interval(score):
        text += f" (95{NBSP}% interval {score['normalised_low']:.1f} to {score['normalised_high']:.1f})"
    return text


def _relabelling(artifacts: Path) -> str:
    methods = read_json(artifacts / "relabel" / "metrics.json")
    found = [
        f"{values['spearman_true_return']:.2f} ({method})"
        for method, values in methods.items()
        if isinstance(values, dict) and values.get("spearman_true_return") is not None
    ]
    if not found:
        return ""
    return (
        f"Relabelled returns order the episodes as the true returns do with a rank correlation of {', '.join(found)}."
    )


def _distance(artifacts: Path) -> str:
    distances = read_distances(artifacts)
    if not {"psi", "raw"} <= set(distances):
        return ""
    psi, raw = distances["psi"], distances["raw"]
    return (
        f"From 1 to {psi['k'][-1]:.0f} steps apart, squared distance grows {psi['mean'][-1]:.1f}-fold in the intent "
        f"space and {raw['mean'][-1]:.1f}-fold between raw states; {psi['k'][-1]:.0f}-fold would be proportional to time."
    )


def _certainty(scores: Scores) -> str:
    names = [name for name in ranking(scores) if name != RANDOM]
    best = scores[names[0]]
    sentences = [_rivals(scores, names)] if len(names) > 1 else []
    if best["replicas"] == 1:
        sentences.append("There is one replica, so the intervals say nothing of other training seeds.")
    elif best["replicas"] < FEW_REPLICAS:
        sentences.append(f"{best['replicas']} replicas say little about other training seeds.")
    return " ".join(sentences)


def _rivals(scores: Scores, names: list[str]) -> str:
    """The next best policy, and all that the evaluation cannot tell from the best."""
    best, second = scores[names[0]], scores[names[1]]
    if best["normalised_iqm"] is None or second["normalised_iqm"] is None:
        return f"The next, {names[1]}, has a mean return of {second['return_mean']:,.0f}."
    text = f"The next, {names[1]}, scores {second['normalised_iqm']:.1f}"
    if not has_interval(best):
        return f"{text}. One episode each has no interval."
    near = [name for name in names[1:] if (scores[name]["normalised_high"] or 0) >= best["normalised_low"]]
    if not near:
        return f"{text}; their intervals do not overlap."
    return (
        f"{text}. The intervals of {listing(near)} overlap with that of {names[0]}, so which of them is better is open."
    )


def _cost(artifacts: Path) -> str:
    found = {stage: artifacts / stage / "timing.json" for stage in STAGES if (artifacts / stage).is_dir()}
    if not all(path.is_file() for path in found.values()):
        return ""
    seconds = {stage: float(read_json(path)["seconds"]) for stage, path in found.items()}
    longest = max(seconds, key=lambda stage: seconds[stage])
    return (
        f"After prepare, the stages took {duration(sum(seconds.values()))} in all; the longest, {longest}, "
        f"{duration(seconds[longest])}."
    )
