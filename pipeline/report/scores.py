"""The scores: every policy, best first, between a random one and the demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.pipeline.report.html import NBSP, figure, or_missing, table
from dynarep.pipeline.report.inputs import (
    RANDOM,
    MissingInputError,
    episode_returns,
    policy_metadata,
    read_returns,
    saw,
)
from dynarep.pipeline.report.plots import BLUE, GREY, INK, canvas, svg
from dynarep.pipeline.playing.scores import (
    OPTIONAL_SCORES,
    bootstrap_interval,
    interquartile_mean,
    normalised_score,
    ranking,
)

Scores = Mapping[str, Mapping[str, Any]]
DEMONSTRATIONS = "demonstrations"
REFERENCES = (DEMONSTRATIONS, RANDOM)


def scores_section(artifacts: Path, scores: Scores) -> str:
    """Table, what its columns mean, and a plot of all episodes."""
    names = ranking(scores)
    seen = {name: saw(artifacts, name) for name in names}
    kinds = list(dict.fromkeys(kind for texts in seen.values() for kind in texts))
    optional = {
        key: title for key, title in OPTIONAL_SCORES.items() if any(score[key] is not None for score in scores.values())
    }
    header = [
        ("policy", "name"),
        ("return", "number"),
        (f"normalised IQM [95{NBSP}%]", "number"),
        ("expert fraction", "number"),
        *((title, "number") for title in optional.values()),
        ("length", "number"),
        ("method", "text"),
        *((f"saw: {kind}", "text") for kind in kinds),
    ]
    rows = [
        [
            name,
            f"{scores[name]['return_mean']:,.1f}",
            score_text(scores[name]),
            "–" if scores[name]["expert_fraction"] is None else f"{scores[name]['expert_fraction']:.2f}",
            *("–" if scores[name][key] is None else f"{scores[name][key]:.2f}" for key in optional),
            f"{scores[name]['length_mean']:,.0f}",
            _method(policy_metadata(artifacts, name), name),
            *(seen[name].get(kind, "–") for kind in kinds),
        ]
        for name in names
    ]
    expert = _demonstrations(artifacts, len(header))
    muted = [number for number, name in enumerate([*[DEMONSTRATIONS] * len(expert), *names]) if name in REFERENCES]
    shown = table("Scores of all policies, best first", header, [*expert, *rows], muted=muted)
    return shown + _legend(optional) + or_missing(_episodes_figure, artifacts, names)


def _method(metadata: Mapping[str, Any], name: str) -> str:
    """How a policy was made, as its metadata tells."""
    if "learner" in metadata:
        return f"{metadata['learner']} on {metadata['rewards']} rewards"
    policies = metadata.get("params", {}).get("imitate", {}).get("policies", {})
    return str(policies.get(name, {}).get("kind", "–"))


def _demonstrations(artifacts: Path, columns: int) -> list[list[str]]:
    """The row of the demonstrations that most policies are compared with; none if their return is not known."""
    try:
        raw = read_returns(artifacts)
    except MissingInputError:
        return []
    returns = [value for value in raw.get("demonstrations", {}).values() if value is not None]
    if not returns:
        return []
    mean = max(set(returns), key=returns.count)
    reference = raw["reference"]
    normalised = f"{float(normalised_score(mean, reference)):.1f}" if reference else "–"
    return [[DEMONSTRATIONS, f"{mean:,.1f}", normalised, "1.00", *["–"] * (columns - 4)]]


def has_interval(score: Mapping[str, Any]) -> bool:
    """Whether there were episodes to resample, without which the bounds say nothing."""
    return score["normalised_iqm"] is not None and score["episodes"] > 1


def score_text(score: Mapping[str, Any]) -> str:
    """Normalised score with its interval, where there are any."""
    if score["normalised_iqm"] is None:
        return "–"
    iqm = f"{score['normalised_iqm']:.1f}"
    return f"{iqm} [{score['normalised_low']:.1f}, {score['normalised_high']:.1f}]" if has_interval(score) else iqm


def _legend(optional: Mapping[str, str]) -> str:
    success = " Success rate: share of episodes that reach their goal." if "success_rate" in optional else ""
    motion = (
        " Distance to the motion: root of the transport cost between the states of an episode and the motion's, mean over "
        "episodes."
        if "motion_distance" in optional
        else ""
    )
    return (
        '<p class="note">Normalised IQM: interquartile mean of D4RL\'s normalised score over all replicas and episodes, with '
        f"a 95{NBSP}% bootstrap interval that resamples replicas and then episodes within each. Expert fraction: mean "
        f"return, from a random policy (0) to the demonstrations (1).{success}{motion}</p>\n"
    )


def _episodes_figure(artifacts: Path, names: Sequence[str]) -> str:
    raw = read_returns(artifacts)
    reference = raw["reference"]
    drawn = canvas(4.4, 0.75 + 0.3 * len(names))
    axes = drawn.subplots()
    jitter = np.random.default_rng(0)
    described = []
    for row, name in enumerate(reversed(names)):
        values = episode_returns(artifacts, raw, name)
        values = normalised_score(values, reference) if reference else values
        iqm, (low, high) = interquartile_mean(values), bootstrap_interval(values)
        heights = row + jitter.uniform(-0.22, 0.22, values.size)
        colour = GREY if name == RANDOM else BLUE
        axes.scatter(values.ravel(), heights, s=7, color=colour, alpha=0.45, linewidths=0, rasterized=values.size > 200)
        axes.plot([low, high], [row, row], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot([iqm], [row], marker="o", color=INK, markersize=5)
        described.append(f"{name} {iqm:.1f}")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    what = "normalised score" if reference else "return"
    axes.set_xlabel(what)
    return figure(
        svg(drawn, f"Interquartile mean of the {what}: {', '.join(reversed(described))}"),
        f"Small dots: single episodes. Large dot and bar: interquartile mean and 95{NBSP}% interval.",
    )
