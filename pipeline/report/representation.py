"""The intent space: distance against the number of steps, and a map of states."""

from __future__ import annotations

from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.html import figure, note, or_missing
from dynarep.pipeline.report.inputs import ReportError, numbers, read_arrays, read_table
from dynarep.pipeline.report.plots import BLUE, GREY, ORANGE, canvas, svg

CLASSES = 7
"""Colours of a map, ``--ramp-0`` and following in the page's style."""

MAP_WIDTH, MAP_HEIGHT = 320, 240
LABELS = {"psi": ("intent space ψ", BLUE, "-"), "raw": ("raw states", ORANGE, "-.")}


def representation_section(artifacts: Path) -> str:
    """Distance and map."""
    return or_missing(_distance, artifacts) + "<h3>Map of held-out states</h3>\n" + or_missing(_map, artifacts)


def read_distances(artifacts: Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Per space ``k``, ``mean``, ``low`` and ``high``, by growing k."""
    path = artifacts / "pretrain_intent" / "distance.tsv"
    columns = ("k", "mean", "low", "high")
    rows = read_table(path, "space", *columns)
    values = {column: numbers(path, column, rows[column]) for column in columns}
    spaces = np.array(rows["space"])
    if not len(spaces):
        raise ReportError(f"{path}: no rows")
    order = np.argsort(values["k"], kind="stable")
    return {
        str(space): {column: values[column][order][spaces[order] == space] for column in columns}
        for space in dict.fromkeys(rows["space"])
    }


def _distance(artifacts: Path) -> str:
    from matplotlib.ticker import LogLocator, NullLocator

    distances = read_distances(artifacts)
    drawn = canvas(4.4, 3.0)
    axes = drawn.subplots()
    described = []
    for space, values in distances.items():
        label, colour, line = LABELS.get(space, (space, GREY, ":"))
        if space in LABELS:
            axes.fill_between(values["k"], values["low"], values["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(values["k"], values["mean"], color=colour, linestyle=line, label=label)
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
    return figure(
        svg(drawn, f"Squared distance between states k steps apart against k: {'; '.join(described)}"),
        "Mean squared distance of held-out states k steps apart on one trajectory, 1 at k = 1; the bands hold the 10th to "
        "the 90th percentile.",
    )


def _map(artifacts: Path) -> str:
    path = artifacts / "pretrain_intent" / "latents.npz"
    stored = read_arrays(path, "latents", "episode", "step", "return")
    latents, episode, step = stored["latents"], stored["episode"], stored["step"]
    if not len(latents) == len(episode) == len(step):
        raise ReportError(f"{path}: {len(latents)} latents, {len(episode)} episodes and {len(step)} steps")
    colourings = {"step of the episode": step.astype(float), "return of the episode": stored["return"][episode]}
    projections = {"PCA": _pca}
    missing = ""
    if find_spec("umap") is None:
        missing = note("UMAP is not installed, the map is PCA's alone: pip install 'dynarep[umap]'")
    else:
        projections["UMAP"] = _umap
    panels = ""
    for name, project in projections.items():
        points, about = project(latents)
        panels += "".join(
            _panel(points, values, f"{name}, {what}", about)
            for what, values in colourings.items()
            if np.isfinite(values).all()
        )
    caption = (
        f'<p class="note">{len(latents):,} states of {len(stored["return"])} held-out episodes, as ψ of the first replica '
        "sees them. Colours divide them into classes of equal size.</p>\n"
    )
    return f'<div class="panels pairs">{panels}</div>{caption}{missing}'


def _pca(latents: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Projection (N, 2) onto the two directions of largest variance, and how much they hold."""
    centred = latents.astype(np.float64) - latents.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    share = 100 * sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny)
    points = centred @ directions[:2].T
    return points * np.sign(
        points[np.abs(points).argmax(0), [0, 1]]
    ), f"{share[0]:.0f} % and {share[1]:.0f} % of variance"


def _umap(latents: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """A projection (N, 2) that keeps neighbours together."""
    from umap import UMAP

    return UMAP(random_state=0, n_jobs=1).fit_transform(latents), "neighbours stay together, distances mean little"


def _panel(points: NDArray[np.float64], values: NDArray[np.float64], title: str, about: str) -> str:
    edges = np.quantile(values, np.linspace(0, 1, CLASSES + 1))
    classes = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, CLASSES - 1)
    span = np.ptp(points, axis=0)
    places = (points - points.min(0)) / np.where(span > 0, span, 1) * (MAP_WIDTH - 12, MAP_HEIGHT - 12) + 6
    places[:, 1] = MAP_HEIGHT - places[:, 1]
    dots = "".join(f'<path class="ramp-{number}" d="{_dots(places[classes == number])}"/>' for number in range(CLASSES))
    label = f"Map of {len(points)} states: {title} from {edges[0]:,.0f} to {edges[-1]:,.0f}; {about}"
    drawn = (
        f'<svg class="map" role="img" aria-label="{escape(label)}" viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}">{dots}</svg>'
    )
    swatches = "".join(f'<i class="ramp-{number}"></i>' for number in range(CLASSES))
    legend = f'<span class="ramp">{edges[0]:,.0f} {swatches} {edges[-1]:,.0f}</span>'
    return figure(drawn, f"<b>{escape(title)}</b> {legend}<br>{escape(about)}")


def _dots(places: NDArray[np.float64]) -> str:
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
