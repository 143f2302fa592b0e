"""The report: one self-contained HTML page made of what the stages left behind.

Plots are SVG images inside the page. Their text and axes follow the reader's light or dark setting; the colours of the
data are of middle lightness and the same in both.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.params import config
from dynarep.pipeline.scores import (
    OPTIONAL_SCORES,
    bootstrap_interval,
    interquartile_mean,
    normalised_score,
    ranking,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"
POLICY_STAGES = ("imitate", "offline_rl")
BLUE, ORANGE, GREY = "#3d85c6", "#dd7f2c", "#8b93a1"

# Stand-ins for the colours that follow the reader's setting, and the style that resolves them inside each image.
INK, RULE = "#010203", "#040506"
SVG_STYLE = """<style>
svg { --ink: #1d2330; --rule: #c9ced8; }
@media (prefers-color-scheme: dark) { svg { --ink: #e4e7ee; --rule: #3d4453; } }
text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif !important; }
</style>"""
PLOT_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynarep",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
}
SCORE_FIELDS = (
    *("env", "episodes", "replicas", "return_mean", "length_mean"),
    *("normalised_iqm", "normalised_low", "normalised_high", "expert_fraction"),
    *OPTIONAL_SCORES,
)
COUPLING_PIXELS = 300
CURVE_POINTS = 250


class ReportError(ValueError):
    """There is nothing to report, or an input is damaged; the message names the file."""


class _MissingInputError(Exception):
    """A part of the page lacks this file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


@config
class ReportConfig:
    """Settings of the report.

    Args:
        title: heading of the page.
    """

    title: str = "dynarep report"


def build_report(settings: ReportConfig, artifacts: Path) -> str:
    """Make the page.

    Args:
        settings: of the report.
        artifacts: root of the stages' folders.

    Returns:
        HTML that needs no other file. A part whose input is missing says so.

    Raises:
        ReportError: if there are no scores, or an input is damaged.
    """
    import matplotlib

    scores = _read_scores(artifacts)
    sections: dict[str, Callable[[Path], str]] = {
        "Scores": partial(_scores_section, scores=scores),
        "Distance in the intent space": _distance_section,
        "Coupling of an episode with the expert": _coupling_section,
        "Relabelled and true returns": _relabelling_section,
        "Representations": _representations_section,
        "Learning curves": _curves_section,
        "Provenance": _provenance_section,
    }
    anchors = {title: title.split()[0].lower() for title in sections}
    with matplotlib.rc_context(PLOT_STYLE):  # type: ignore[arg-type]
        body = "\n".join(
            f'<section id="{anchors[title]}"><h2>{title}</h2>\n{_or_missing(make, artifacts)}</section>'
            for title, make in sections.items()
        )
    template = Template(files("dynarep.pipeline").joinpath("report_template.html").read_text())
    return template.substitute(
        title=escape(settings.title),
        summary=_summary(artifacts, scores),
        contents="".join(f'<a href="#{anchor}">{title}</a>' for title, anchor in anchors.items()),
        sections=body,
    )


# Inputs


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise _MissingInputError(path) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ReportError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _read_table(path: Path, *columns: str) -> dict[str, list[str]]:
    """Columns of a TSV file with a header, among them ``columns``."""
    header, *rows = list(csv.reader(io.StringIO(_read_text(path)), delimiter="\t")) or [[]]
    missing = [column for column in columns if column not in header]
    if missing:
        raise ReportError(f"{path}: no column {missing[0]!r}; found {', '.join(header) or 'nothing'}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ReportError(f"{path}, line {number}: {len(row)} fields, expected {len(header)}")
    return {column: [row[i] for row in rows] for i, column in enumerate(header)}


def _numbers(path: Path, column: str, texts: Iterable[str]) -> NDArray[np.float64]:
    """The column as numbers; an empty field is NaN."""
    try:
        return np.array([float(text) if text else math.nan for text in texts])
    except ValueError as error:
        raise ReportError(f"{path}, column {column!r}: {error}") from None


def _read_scores(artifacts: Path) -> dict[str, dict[str, Any]]:
    path = artifacts / "evaluate" / "metrics.json"
    try:
        scores = _read_json(path)
    except _MissingInputError:
        raise ReportError(f"{path}: no such file; there are no scores to report") from None
    if not set(scores) - {RANDOM}:
        raise ReportError(f"{path}: holds no score of a policy")
    for name, score in scores.items():
        for field in SCORE_FIELDS:
            if field not in score:
                raise ReportError(f"{path}: {name} has no {field!r}")
    return scores


def _read_returns(artifacts: Path) -> dict[str, Any]:
    path = artifacts / "evaluate" / "returns.json"
    raw = _read_json(path)
    for field in ("env", "seed", "reference", "versions", "policies"):
        if field not in raw:
            raise ReportError(f"{path}: no {field!r}")
    return raw


def _models(artifacts: Path) -> list[str]:
    """Folders of all trained models, relative to ``artifacts``."""
    policies = [path.parent for stage in POLICY_STAGES for path in sorted((artifacts / stage).glob("*/config.json"))]
    return ["pretrain_dynamics", "pretrain_intent", *(str(folder.relative_to(artifacts)) for folder in policies)]


def _saw(artifacts: Path, policy: str) -> dict[str, str]:
    """What a policy was trained on, in words, by kind of data."""
    for stage in POLICY_STAGES:
        path = artifacts / stage / policy / "metadata.json"
        if path.exists():
            return {str(kind): str(text) for kind, text in _read_json(path).get("saw", {}).items()}
    return {}


# Pieces of HTML


def _or_missing(make: Callable[..., str], artifacts: Path, *arguments: Any) -> str:
    try:
        return make(artifacts, *arguments)
    except _MissingInputError as missing:
        return _missing_note(artifacts, missing.path)


def _missing_note(artifacts: Path, path: Path, what: str = "") -> str:
    return f'<p class="missing">not available: {escape(what + str(path.relative_to(artifacts.parent)))}</p>\n'


def _image(figure: Figure, alt: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=160)
    svg = buffer.getvalue().replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
    start = svg.index("<svg")
    after_tag = svg.index(">", start) + 1
    data = base64.b64encode((svg[start:after_tag] + SVG_STYLE + svg[after_tag:]).encode()).decode()
    width, height = figure.get_size_inches() * 96
    return f'<img alt="{escape(alt)}" width="{width:.0f}" height="{height:.0f}" src="data:image/svg+xml;base64,{data}">'


def _figure(figure: Figure, alt: str, caption: str = "") -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{_image(figure, alt)}{below}</figure>\n"


def _canvas(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _table(header: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], *, muted: Iterable[int] = ()) -> str:
    """A table of escaped cells; ``header`` holds (title, class of the column's cells)."""
    head = "".join(f'<th class="{kind}">{escape(title)}</th>' for title, kind in header)
    body = "".join(
        f"<tr{' class=reference' if i in set(muted) else ''}>"
        + "".join(f'<td class="{kind}">{escape(cell)}</td>' for (_, kind), cell in zip(header, row, strict=True))
        + "</tr>\n"
        for i, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _flatten(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted key, text) pairs."""
    if isinstance(values, dict):
        return [
            pair for key, value in values.items() for pair in _flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, list) and not any(isinstance(value, dict | list) for value in values):
        return [(prefix, ", ".join(map(_text, values)))]
    return [(prefix, _text(values))]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _has_interval(score: Mapping[str, Any]) -> bool:
    """Whether there were episodes to resample, without which the bounds say nothing."""
    return score["normalised_iqm"] is not None and score["episodes"] > 1


def _score_text(score: Mapping[str, Any]) -> str:
    if score["normalised_iqm"] is None:
        return "–"
    text = f"{score['normalised_iqm']:.1f}"
    return f"{text} [{score['normalised_low']:.1f}, {score['normalised_high']:.1f}]" if _has_interval(score) else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Summary


def _summary(artifacts: Path, scores: Mapping[str, Mapping[str, Any]]) -> str:
    sentences = [_best_sentences(artifacts, scores)]
    for make in (_relabelling_sentence, _distance_sentence):
        try:
            sentences.append(make(artifacts))
        except _MissingInputError:
            continue
    return escape(" ".join(filter(None, sentences)))


def _best_sentences(artifacts: Path, scores: Mapping[str, Mapping[str, Any]]) -> str:
    names = [name for name in ranking(scores) if name != RANDOM]
    best = scores[names[0]]
    place = f"{names[0]} is the best of {len(names)} policies" if len(names) > 1 else f"{names[0]} was evaluated"
    text = (
        f"On {best['env']}, {place}: over {_count(best['replicas'], 'replica')} "
        f"and {_count(best['episodes'], 'episode')} of each, its mean return is {best['return_mean']:,.0f}"
    )
    if best["normalised_iqm"] is not None:
        text += f" and the interquartile mean of its normalised score {best['normalised_iqm']:.1f}"
        if _has_interval(best):
            text += f" (95\u00a0% interval {best['normalised_low']:.1f} to {best['normalised_high']:.1f})"
    text += "."
    if best["expert_fraction"] is not None:
        percent = f"{100 * best['expert_fraction']:.0f}\u00a0%"
        text += f" That is {percent} of the way from a random policy to the demonstrations."
    expert = _saw(artifacts, names[0]).get("expert")
    if expert:
        text += f" Of the expert it saw: {expert}."
    if len(names) > 1:
        second = scores[names[1]]
        if best["normalised_iqm"] is not None and second["normalised_iqm"] is not None:
            text += f" The next, {names[1]}, scores {second['normalised_iqm']:.1f}"
            if _has_interval(best):
                apart = second["normalised_high"] < best["normalised_low"]
                text += f"; their intervals {'do not overlap' if apart else 'overlap'}"
            text += "."
        else:
            text += f" The next, {names[1]}, has a mean return of {second['return_mean']:,.0f}."
    if RANDOM in scores:
        text += f" A uniform random policy has a mean return of {scores[RANDOM]['return_mean']:,.0f}."
    return text


def _relabelling_sentence(artifacts: Path) -> str:
    methods = _read_json(artifacts / "relabel" / "metrics.json")
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


def _distance_sentence(artifacts: Path) -> str:
    distances = _read_distances(artifacts)
    last = {space: (values["k"][-1], values["mean"][-1]) for space, values in distances.items()}
    if set(last) != {"psi", "raw"}:
        return ""
    return (
        f"From 1 to {last['psi'][0]:.0f} steps apart, squared distance grows {last['psi'][1]:.1f}-fold in the intent "
        f"space and {last['raw'][1]:.1f}-fold between raw states."
    )


# Sections


def _scores_section(artifacts: Path, scores: Mapping[str, Mapping[str, Any]]) -> str:
    names = ranking(scores)
    saw = {name: _saw(artifacts, name) for name in names}
    kinds = list(dict.fromkeys(kind for texts in saw.values() for kind in texts))
    optional = {
        key: title for key, title in OPTIONAL_SCORES.items() if any(score[key] is not None for score in scores.values())
    }
    header = [
        ("policy", "name"),
        ("return", "number"),
        ("normalised IQM", "number"),
        ("expert fraction", "number"),
        *((title, "number") for title in optional.values()),
        ("length", "number"),
        *((f"saw: {kind}", "text") for kind in kinds),
    ]
    rows = [
        [
            name,
            f"{scores[name]['return_mean']:,.1f}",
            _score_text(scores[name]),
            "–" if scores[name]["expert_fraction"] is None else f"{scores[name]['expert_fraction']:.2f}",
            *("–" if scores[name][key] is None else f"{scores[name][key]:.2f}" for key in optional),
            f"{scores[name]['length_mean']:,.0f}",
            *(saw[name].get(kind, "–") for kind in kinds),
        ]
        for name in names
    ]
    table = _table(header, rows, muted=[i for i, name in enumerate(names) if name == RANDOM])
    note = (
        '<p class="note">Normalised IQM: interquartile mean of D4RL\'s normalised score over all replicas and '
        "episodes, with a 95\u00a0% bootstrap interval that resamples replicas and then episodes within each. Expert "
        "fraction: mean return, from a random policy (0) to the "
        "demonstrations (1)."
        + (" Success rate: share of episodes that reach their goal." if "success_rate" in optional else "")
        + (
            " Distance to the motion: root of the transport cost between the states of an episode and the motion's, mean "
            "over episodes."
            if "motion_distance" in optional
            else ""
        )
        + "</p>\n"
    )
    return table + note + _or_missing(_scores_figure, artifacts, names)


def _scores_figure(artifacts: Path, names: Sequence[str]) -> str:
    raw = _read_returns(artifacts)
    reference = raw["reference"]
    figure = _canvas(5.2, 0.75 + 0.36 * len(names))
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    described = []
    for row, name in enumerate(reversed(names)):
        if name not in raw["policies"]:
            raise ReportError(f"{artifacts}/evaluate: metrics.json scores {name!r}, returns.json does not have it")
        values = np.array(raw["policies"][name]["returns"], dtype=np.float64)
        values = normalised_score(values, reference) if reference else values
        iqm, (low, high) = interquartile_mean(values), bootstrap_interval(values)
        colour = GREY if name == RANDOM else BLUE
        heights = row + jitter.uniform(-0.22, 0.22, values.size)
        axes.scatter(values.ravel(), heights, s=7, color=colour, alpha=0.45, linewidths=0, rasterized=True)
        axes.plot([low, high], [row, row], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot([iqm], [row], marker="o", color=INK, markersize=5)
        described.append(f"{name} {iqm:.1f}")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("normalised score" if reference else "return")
    return _figure(
        figure,
        f"Interquartile mean of the {'normalised score' if reference else 'return'}: {', '.join(reversed(described))}",
        "Small dots: single episodes. Large dot and bar: interquartile mean and 95\u00a0% interval.",
    )


def _read_distances(artifacts: Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    path = artifacts / "pretrain_intent" / "distance.tsv"
    columns = ("k", "mean", "low", "high")
    table = _read_table(path, "space", *columns)
    numbers = {column: _numbers(path, column, table[column]) for column in columns}
    spaces = np.array(table["space"])
    if not len(spaces):
        raise ReportError(f"{path}: no rows")
    order = np.argsort(numbers["k"], kind="stable")
    return {
        str(space): {column: numbers[column][order][spaces[order] == space] for column in columns}
        for space in dict.fromkeys(table["space"])
    }


def _distance_section(artifacts: Path) -> str:
    from matplotlib.ticker import LogLocator, NullLocator

    distances = _read_distances(artifacts)
    figure = _canvas(5.0, 3.2)
    axes = figure.subplots()
    labels = {"psi": ("intent space ψ", BLUE), "raw": ("raw states", ORANGE)}
    described = []
    for space, values in distances.items():
        label, colour = labels.get(space, (space, GREY))
        axes.fill_between(values["k"], values["low"], values["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(values["k"], values["mean"], color=colour, label=label)
        described.append(f"{label} reaches {values['mean'][-1]:.3g} at k = {values['k'][-1]:.0f}")
    longest = max(values["k"][-1] for values in distances.values())
    axes.plot([1, longest], [1, longest], color=GREY, linestyle="--", linewidth=1, label="proportional to k")
    for set_scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("steps apart, k")
    axes.set_ylabel("relative squared distance")
    axes.legend()
    return _figure(
        figure,
        f"Squared distance between states k steps apart against k: {'; '.join(described)}",
        "Mean squared distance of states k steps apart on one trajectory, 1 at k = 1; the bands hold the 10th to the "
        "90th percentile.",
    )


def _coupling_section(artifacts: Path) -> str:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    examples = sorted(
        (artifacts / "relabel").glob("*/example.npz"), key=lambda path: (path.parent.name != "ailot", path)
    )
    if not examples:
        raise _MissingInputError(artifacts / "relabel" / "*" / "example.npz")
    path = examples[0]
    try:
        with np.load(path, allow_pickle=False) as stored:
            example = dict(stored)
    except (OSError, ValueError, BadZipFile) as error:
        raise ReportError(f"{path}: not a readable npz file: {error}") from None
    missing = {"coupling", "rewards", "agent", "expert"} - set(example)
    if missing:
        raise ReportError(f"{path}: no array {min(missing)!r}; found {', '.join(example)}")
    coupling, rewards, true_rewards = example["coupling"], example["rewards"], example.get("true_rewards")
    agent, expert = str(example["agent"]), str(example["expert"])
    agent_steps, expert_steps = coupling.shape
    strips = [("relabelled", rewards, BLUE)] + ([("true", true_rewards, ORANGE)] if true_rewards is not None else [])
    for name, values, _ in strips:
        if values.shape != (agent_steps,):
            raise ReportError(f"{path}: {name} rewards have shape {values.shape}, the coupling {coupling.shape}")
    figure = _canvas(5.2, 3.4 + 0.95 * len(strips))
    top, *below = np.atleast_1d(
        figure.subplots(1 + len(strips), 1, sharex=True, height_ratios=[3.2] + [0.9] * len(strips))
    )
    transparent_to_blue = LinearSegmentedColormap.from_list("mass", [BLUE + "00", BLUE + "ff"])
    top.imshow(
        _pool(coupling, COUPLING_PIXELS).T,
        extent=(0, agent_steps, 0, expert_steps),
        origin="lower",
        aspect="auto",
        cmap=transparent_to_blue,
        norm=PowerNorm(0.5),
        interpolation="nearest",
    )
    top.grid(visible=False)
    top.set_ylabel("expert's step")
    for axes, (name, values, colour) in zip(below, strips, strict=True):
        axes.plot(np.arange(agent_steps) + 0.5, values, color=colour, linewidth=1)
        axes.set_ylabel(f"{name}\nreward")
    below[-1].set_xlabel("agent's step")
    below[-1].set_xlim(0, agent_steps)
    return _figure(
        figure,
        f"Coupling of {agent_steps} agent steps with {expert_steps} expert steps, the agent's rewards below",
        f"Steps of agent episode <b>{escape(agent)}</b> as {escape(path.parent.name)} matches them with expert episode "
        f"<b>{escape(expert)}</b>: the darker or brighter the blue, the more mass. Below, the rewards that the agent's "
        f"steps get{', and their true rewards' if true_rewards is not None else ''}.",
    )


def _pool(matrix: NDArray[Any], most: int) -> NDArray[Any]:
    """Means over blocks, so that no axis is longer than ``most``."""
    for axis, size in enumerate(matrix.shape):
        if size > most:
            edges = np.linspace(0, size, most + 1).astype(int)
            sums = np.add.reduceat(matrix, edges[:-1], axis=axis)
            matrix = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return matrix


def _relabelling_section(artifacts: Path) -> str:
    paths = sorted((artifacts / "relabel").glob("*/returns.tsv"))
    if not paths:
        raise _MissingInputError(artifacts / "relabel" / "*" / "returns.tsv")
    metrics_path = artifacts / "relabel" / "metrics.json"
    missing = ""
    try:
        metrics = _read_json(metrics_path)
    except _MissingInputError:
        metrics = {}
        missing = _missing_note(artifacts, metrics_path)
    panels = "".join(_returns_panel(artifacts, path, metrics.get(path.parent.name, {})) for path in paths)
    return f'<p>One dot per episode.</p><div class="panels">{panels}</div>{missing}'


def _returns_panel(artifacts: Path, path: Path, metrics: Mapping[str, Any]) -> str:
    table = _read_table(path, "relabelled")
    relabelled = _numbers(path, "relabelled", table["relabelled"])
    true = _numbers(path, "true", table["true"]) if "true" in table else np.full(len(relabelled), math.nan)
    method = path.parent.name
    if not np.isfinite(true).any():
        return _missing_note(artifacts, path, "true returns in ")
    spearman = metrics.get("spearman_true_return")
    title = method if spearman is None else f"{method}, Spearman {spearman:.2f}"
    figure = _canvas(3.6, 2.7)
    axes = figure.subplots()
    axes.scatter(true, relabelled, s=9, color=BLUE, alpha=0.5, linewidths=0, rasterized=True)
    axes.set_title(title)
    axes.set_xlabel("true return")
    axes.set_ylabel("relabelled return")
    return _figure(figure, f"Relabelled against true return of {len(true)} episodes: {title}")


def _representations_section(artifacts: Path) -> str:
    titles = {"pretrain_dynamics": "Dynamics: φ(s, a) and μ(s′)", "pretrain_intent": "Intent: ψ(s)"}

    def table(artifacts: Path, stage: str) -> str:
        rows = _flatten(_read_json(artifacts / stage / "metrics.json"))
        return _table([("metric", "name"), ("value", "value")], rows)

    tables = "".join(
        f"<div><h3>{title}</h3>\n{_or_missing(table, artifacts, stage)}</div>" for stage, title in titles.items()
    )
    return f'<div class="panels">{tables}</div>'


def _curves_section(artifacts: Path) -> str:
    return "".join(_or_missing(_curves, artifacts, model) for model in _models(artifacts))


def _curves(artifacts: Path, model: str) -> str:
    path = artifacts / model / "curves.tsv"
    table = _read_table(path, "update")
    update = _numbers(path, "update", table.pop("update"))
    panels = []
    for metric, texts in table.items():
        values = _numbers(path, metric, texts)
        known = np.isfinite(values)
        if not known.any():
            continue
        x, y = _thin(update[known]), _thin(values[known])
        figure = _canvas(2.3, 1.5)
        axes = figure.subplots()
        axes.plot(x, y, color=BLUE, linewidth=1.1)
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=4)
        axes.xaxis.set_major_formatter(lambda value, position: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        panels.append(_image(figure, f"{metric} of {model} over updates: from {y[0]:.3g} to {y[-1]:.3g}"))
    length = f"{update[-1]:,.0f} updates" if len(update) else "no updates"
    return (
        f"<details open><summary>{escape(model)} <span>{length}</span></summary>\n"
        f'<div class="curves">{"".join(panels)}</div></details>\n'
    )


def _thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over blocks of equal size, so that at most ``CURVE_POINTS`` are left."""
    blocks = np.array_split(values, min(len(values), CURVE_POINTS))
    return np.array([block.mean() for block in blocks])


def _provenance_section(artifacts: Path) -> str:
    rows: list[list[str]] = []

    def describe(artifacts: Path, model: str) -> str:
        metadata = _read_json(artifacts / model / "metadata.json")
        datasets = ", ".join(metadata.get("datasets", {}))
        rows.append([model, _text(metadata.get("version")), _text(metadata.get("revision")), datasets])
        table = _table([("key", "name"), ("value", "value")], _flatten(metadata))
        title = f"{escape(model)} <span>all parameters and fingerprints</span>"
        return f"<details><summary>{title}</summary>{table}</details>\n"

    details = "".join(_or_missing(describe, artifacts, model) for model in _models(artifacts))
    header = [("model", "name"), ("version", "value"), ("git revision", "value"), ("datasets", "text")]
    return (_table(header, rows) if rows else "") + _or_missing(_simulator, artifacts) + details


def _simulator(artifacts: Path) -> str:
    raw = _read_returns(artifacts)
    versions = ", ".join(f"{package} {number}" for package, number in raw["versions"].items())
    return f"<p>Evaluated on {escape(raw['env'])} from seed {raw['seed']} with {escape(versions)}.</p>\n"
