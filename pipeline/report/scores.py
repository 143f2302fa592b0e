"""The scores: every policy, best first, between a random one and the demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynarep.pipeline.playing.scores import bootstrap_interval, interquartile_mean, normalised_score
from dynarep.pipeline.playing.summary import (
    ABOVE_EXPERT,
    ACTION_ERROR,
    FITTED_Q,
    FRACTION,
    MISSING,
    MOTION,
    NORMALISED,
    RETURN,
    SUCCESS,
    Column,
    above_expert,
    columns,
    headline,
)
from dynarep.pipeline.report.html import NBSP, beside, figure, listing, note, table
from dynarep.pipeline.report.inputs import Artifacts, Lineage, Scored, saw
from dynarep.pipeline.report.plots import BLUE, GREY, INK, ORANGE, canvas, svg
from dynarep.pipeline.tables import digits_apart, number_text

DEMONSTRATIONS = "demonstrations"
FIRST = 10
"""Rows of the table on the first screen, beside references and the best of each control."""

LEGENDS = {
    RETURN: "Return IQM: interquartile mean of the return over all replicas and episodes.",
    NORMALISED: "Normalised IQM: interquartile mean of D4RL's normalised score over all replicas and episodes.",
    FRACTION: "Expert fraction: mean return, from a random policy (0) to the mean of the demonstrations (1).",
    SUCCESS: "Success rate: share of episodes that reach their goal.",
    FITTED_Q: "Fitted Q: what a policy is worth from the starts of a recording's episodes, by fitted Q evaluation on its "
    "transitions; mean discounted return over replicas and episodes.",
    ACTION_ERROR: "Action error: root mean square of the difference to the recorded actions, in units of half of their range.",
    MOTION: "Distance to the motion: root of the transport cost between the states of an episode and the motion's, mean over "
    "episodes.",
}


def scores_section(artifacts: Artifacts, scored: Scored) -> str:
    """Table, what its columns mean, and a plot of all episodes."""
    names = scored.order
    seen = {name: saw(artifacts, scored.entry(name)) for name in names}
    kinds = list(dict.fromkeys(kind for texts in seen.values() for kind in texts))
    shown = columns(scored.scores)
    texts = [column.texts(scored.scores) for column in shown]
    means = [scored.scores[name]["return_mean"] for name in names]
    played = all(mean is not None for mean in means)
    digits = dict(zip(names, digits_apart(means, 1), strict=True))
    header = [
        ("policy", "name"),
        *((_title(column), "number") for column in shown),
        *([("mean return", "number"), ("length", "number")] if played else []),
        ("method", "text"),
        ("label", "text"),
        ("space", "text"),
        ("role", "text"),
        *((f"saw: {kind}", "text") for kind in kinds),
    ]
    rows = [
        [
            name,
            *(text[name] for text in texts),
            *([number_text(scored.scores[name]["return_mean"], f",.{digits[name]}f")] if played else []),
            *([f"{scored.scores[name]['length_mean']:,.0f}"] if played else []),
            *lineage_texts(artifacts, scored.lineage(name)),
            *(seen[name].get(kind, MISSING) for kind in kinds),
        ]
        for name in names
    ]
    expert = [
        [*row, number_text(np.mean(scored.raw["demonstrations"]), ",.1f"), *[MISSING] * (len(header) - len(row) - 1)]
        for row in _demonstrations(scored, shown)
    ]
    muted = [number for number, name in enumerate(names, len(expert)) if name in scored.raw["random"]]
    shaded = [
        number for number, name in enumerate(names, len(expert)) if scored.lineage(name).role.startswith("control")
    ]
    shown_table = table(
        "Scores of all policies, best first",
        header,
        [*expert, *rows],
        muted=[*range(len(expert)), *muted],
        shaded=shaded,
    )
    return shown_table + beside(_legend(shown) + _far_above(scored), _episodes_figure(scored))


def headline_table(artifacts: Artifacts, scored: Scored) -> str:
    """The best policies, the best of each kind of control, demonstrations and chance, with the score that orders them."""
    column = headline(scored.scores)
    text, lineages = column.texts(scored.scores), {name: scored.lineage(name) for name in scored.order}
    wanted = set(scored.learned[:FIRST]) | set(scored.raw["random"][:1])
    for role in dict.fromkeys(lineage.role for lineage in lineages.values()):
        wanted.add(next(name for name in scored.order if lineages[name].role == role))
    names = [name for name in scored.order if name in wanted]
    rows = []
    for name in names:
        method, label, space, role = lineage_texts(artifacts, lineages[name])
        rows.append(
            [name, text[name], method, " in ".join(part for part in (label, space) if part != MISSING) or MISSING, role]
        )
    expert = [[*row, *[MISSING] * 3] for row in _demonstrations(scored, [column])]
    header = [
        ("policy", "name"),
        (_title(column), "number"),
        ("method", "text"),
        ("label and space", "text"),
        ("role", "text"),
    ]
    roles = [lineages[name].role for name in names]
    muted = [number for number, role in enumerate(roles, len(expert)) if role == "chance"]
    shaded = [number for number, role in enumerate(roles, len(expert)) if role.startswith("control")]
    rest = len(scored.order) - len(names)
    more = f'<p class="note">{rest} more in the <a href="#scores">table of all scores</a>.</p>' if rest else ""
    muted = [*range(len(expert)), *muted]
    return table("The best policies and the controls", header, [*expert, *rows], muted=muted, shaded=shaded) + more


def lineage_texts(artifacts: Artifacts, lineage: Lineage) -> tuple[str, str, str, str]:
    """Method, label, space and role of a policy, for a table."""
    label = named(lineage.label, lineage.label_kind)
    spaces = ", ".join(named(space, artifacts.kind("pretrain", space)) for space in lineage.spaces)
    return lineage.kind or MISSING, label or MISSING, spaces or MISSING, lineage.role or MISSING


def named(name: str, kind: str) -> str:
    """An entry with its kind, where that is not its name."""
    return name if not kind or kind == name else f"{name} ({kind})"


def _title(column: Column) -> str:
    return f"{column.title} [95{NBSP}%]" if column.low else column.title


def _demonstrations(scored: Scored, shown: Sequence[Column]) -> list[list[str]]:
    """The row of the demonstrations that the scores are compared with; none if they have none of them."""
    returns, reference = scored.raw["demonstrations"], scored.raw["reference"]
    if not returns:
        return []
    known = {RETURN: number_text(interquartile_mean(returns), ",.1f"), FRACTION: "1.00"}
    if reference:
        known[NORMALISED] = number_text(interquartile_mean(normalised_score(returns, reference)), ",.1f")
    if not any(column in known for column in shown):
        return []
    return [[DEMONSTRATIONS, *(known.get(column, MISSING) for column in shown)]]


def _legend(shown: Sequence[Column]) -> str:
    explained = " ".join(LEGENDS[column] for column in shown)
    return (
        f'<p class="note">{explained} In brackets: 95{NBSP}% intervals by a bootstrap that resamples replicas and then episodes '
        "within each; that of the expert fraction also resamples the demonstrations, and that of a success rate is at least "
        "Wilson's. A control is a policy in which no learned representation takes part.</p>\n"
    )


def _far_above(scored: Scored) -> str:
    far = above_expert(scored.scores)
    if not far:
        return ""
    verb = "is" if len(far) == 1 else "are"
    return note(
        f"{listing(far)} {verb} more than {ABOVE_EXPERT:g} times as far from chance as the demonstrations: these are not the "
        "best that can be done, so the expert fraction is no share of it."
    )


def _episodes_figure(scored: Scored) -> str:
    names = scored.order
    drawn = canvas(5.2, 0.75 + 0.27 * len(names))
    axes = drawn.subplots()
    jitter = np.random.default_rng(0)
    described = []
    values = {name: scored.headline_values(name) for name in names}
    centres = {name: interquartile_mean(values[name]) for name in names}
    digits = dict(zip(names, digits_apart(centres.values(), 1), strict=True))
    for row, name in enumerate(reversed(names)):
        low, high = bootstrap_interval(values[name])
        heights = row + jitter.uniform(-0.22, 0.22, values[name].size)
        role = scored.lineage(name).role
        colour = GREY if role == "chance" else ORANGE if role.startswith("control") else BLUE
        many = values[name].size > 200
        axes.scatter(values[name].ravel(), heights, s=7, color=colour, alpha=0.45, linewidths=0, rasterized=many)
        axes.plot([low, high], [row, row], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot([centres[name]], [row], marker="o", color=INK, markersize=5)
        described.append(f"{name} {number_text(centres[name], f'.{digits[name]}f')}")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(scored.unit)
    return figure(
        svg(drawn, f"Interquartile mean of the {scored.unit}: {', '.join(reversed(described))}"),
        f"Small dots: single episodes, those of controls orange. Large dot and bar: interquartile mean and 95{NBSP}% interval.",
    )
