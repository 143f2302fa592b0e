"""The spaces: distance against the number of steps, and a map of states, for every encoder."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.arrays import LATENTS, read_arrays
from dynarep.pipeline.report.html import figure, listing, note, or_missing, table
from dynarep.pipeline.report.inputs import (
    UNLEARNED_KINDS,
    Artifacts,
    MissingInputError,
    ReportError,
    numbers,
    read_table,
)
from dynarep.pipeline.report.maps import Frame, coloured_map
from dynarep.pipeline.report.plots import BLUE, GREY, ORANGE, canvas, svg
from dynarep.pipeline.report.scores import named
from dynarep.pipeline.tables import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCES = {"raw": ("raw states", ORANGE, "-."), "standardised": ("standardised states", GREY, ":")}
"""Curves that stand beside those of an encoder's own spaces."""


def spaces_section(artifacts: Artifacts) -> str:
    """Distance and maps of every encoder that has them."""
    names = artifacts.names("pretrain")
    if not names:
        raise MissingInputError(artifacts.root / "pretrain" / "*" / "metadata.json")
    files = ("distance.tsv", "latents.npz")
    shown = [name for name in names if any((artifacts.folder("pretrain", name) / file).exists() for file in files)]
    rest = [named(name, artifacts.kind("pretrain", name)) for name in names if name not in shown]
    html = "".join(_space(artifacts, name) for name in shown) + _actions(artifacts, names)
    if rest:
        html += note(f"no distances and no map are kept of {listing(rest)}")
    if find_spec("umap") is None and shown:
        html += note("UMAP is not installed, the maps are PCA's alone: pip install 'dynarep[umap]'")
    return html


def _actions(artifacts: Artifacts, names: Sequence[str]) -> str:
    """How well each encoder of dynamics tells actions apart."""
    found = {name: artifacts.optional("pretrain", name, "metrics.json").get("action_resolution") for name in names}
    shown = {name: values for name, values in found.items() if values}
    if not shown:
        return ""
    sigmas = list(dict.fromkeys(sigma for values in shown.values() for sigma in values))
    rows = [
        [
            named(name, artifacts.kind("pretrain", name)),
            *(number_text(values[sigma], ".2f") if sigma in values else "-" for sigma in sigmas),
        ]
        for name, values in shown.items()
    ]
    header = [("encoder", "name"), *((f"noise {sigma}", "number") for sigma in sigmas)]
    caption = (
        "How often the recorded action is told from the same action with noise, on held-out transitions: 0.5 by chance. "
        "The noise is its deviation where the bounds of actions are -1 and 1."
    )
    return table(caption, header, rows)


def _space(artifacts: Artifacts, name: str) -> str:
    title = named(name, artifacts.kind("pretrain", name))
    parts = or_missing(_distance, artifacts, name) + or_missing(_maps, artifacts, name)
    if (artifacts.folder("pretrain", name) / "model_error.tsv").exists():
        parts += _model_error(artifacts, name)
    if (artifacts.folder("pretrain", name) / "value.tsv").exists():
        parts += _value(artifacts, name)
    return f'<h3>{escape(title)}</h3>\n<div class="panels">{parts}</div>\n'


def read_distances(artifacts: Artifacts, name: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Per space ``k``, ``mean``, ``low`` and ``high``, by growing k."""
    path = artifacts.folder("pretrain", name) / "distance.tsv"
    columns = ("k", "mean", "low", "high")
    rows = read_table(path, "space", *columns)
    values = {column: numbers(path, column, rows[column], gaps=column != "k") for column in columns}
    spaces = np.array(rows["space"])
    order = np.argsort(values["k"], kind="stable")
    return {
        str(space): {column: values[column][order][spaces[order] == space] for column in columns}
        for space in dict.fromkeys(rows["space"])
    }


def _log_scales(axes: Axes) -> None:
    """Both axes logarithmic, with ticks that read as numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    for set_scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _series(artifacts: Artifacts, name: str, table: str, *columns: str) -> list[NDArray[np.float64]]:
    """Columns of a table of numbers beside an encoder."""
    path = artifacts.folder("pretrain", name) / table
    rows = read_table(path, *columns)
    return [numbers(path, column, rows[column], gaps=column != "k") for column in columns]


def _distance(artifacts: Artifacts, name: str) -> str:
    distances = read_distances(artifacts, name)
    drawn = canvas(4.0, 3.0)
    axes = drawn.subplots()
    described = []
    for space, values in distances.items():
        label, colour, line = REFERENCES.get(space, (f"{name}: {space}", BLUE, "-"))
        axes.fill_between(values["k"], values["low"], values["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(values["k"], values["mean"], color=colour, linestyle=line, label=label)
        described.append(f"{label} reaches {values['mean'][-1]:.3g} at k = {values['k'][-1]:.0f}")
    longest = max(values["k"][-1] for values in distances.values())
    axes.plot([1, longest], [1, longest], color=GREY, linestyle="--", linewidth=1, label="proportional to k")
    _log_scales(axes)
    axes.set_xlabel("steps apart, k")
    axes.set_ylabel("relative squared distance")
    axes.legend()
    return figure(
        svg(drawn, f"Squared distance between states k steps apart against k, {name}: {'; '.join(described)}"),
        "Mean squared distance of held-out states k steps apart on one trajectory, 1 at k = 1; the bands hold the 10th to "
        "the 90th percentile.",
    )


def _model_error(artifacts: Artifacts, name: str) -> str:
    """Error of a world model against the number of steps it looks ahead."""
    steps, error, staying = _series(artifacts, name, "model_error.tsv", "k", "error", "staying")
    drawn = canvas(4.0, 3.0)
    axes = drawn.subplots()
    axes.plot(steps, error, color=BLUE, marker=".", label="model")
    axes.plot(steps, staying, color=ORANGE, linestyle="-.", label="no change")
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1, label="mean latent")
    _log_scales(axes)
    axes.set_xlabel("steps ahead, k")
    axes.set_ylabel("squared error / variance")
    axes.legend()
    return figure(
        svg(drawn, f"Error of the model {name} against steps ahead: {error[-1]:.3g} at k = {steps[-1]:.0f}"),
        "Mean squared error of latents predicted k steps ahead on held-out episodes, over the variance of the latents; "
        "also that of predicting no change.",
    )


def _value(artifacts: Artifacts, name: str) -> str:
    """What a goal-conditioned value says of a number of steps."""
    steps, value, ideal = _series(artifacts, name, "value.tsv", "k", "value", "ideal")
    drawn = canvas(4.0, 3.0)
    axes = drawn.subplots()
    axes.plot(steps, value, color=BLUE, marker=".", label=f"{name}: -V")
    axes.plot(steps, ideal, color=GREY, linestyle="--", linewidth=1, label="no shorter way")
    axes.set_xlabel("steps before the goal, k")
    axes.set_ylabel("discounted steps")
    axes.legend()
    return figure(
        svg(drawn, f"Negated value of {name} against steps before the goal: {value[-1]:.3g} at k = {steps[-1]:.0f}"),
        "Mean of -V(s, g, g), g the held-out state k steps after s; beside it the discounted number of k steps.",
    )


def _maps(artifacts: Artifacts, name: str) -> str:
    path = artifacts.folder("pretrain", name) / "latents.npz"
    stored = read_arrays(path, LATENTS)
    latents, episode, returns = stored["latents"], stored["episode"], stored["return"]
    if not 0 <= episode.min() <= episode.max() < len(returns):
        raise ReportError(
            f"{path}: episode: found {episode.min()} to {episode.max()}, expected 0 to {len(returns) - 1}"
        )
    colourings = {"step of the episode": stored["step"].astype(float), "return of the episode": returns[episode]}
    projections = {"PCA": _pca}
    if find_spec("umap") is not None and artifacts.kind("pretrain", name) not in UNLEARNED_KINDS:
        projections["UMAP"] = _umap
    panels = ""
    for method, project in projections.items():
        points, about = project(latents)
        about = f"{len(latents):,} states of {len(returns)} held-out episodes, first replica; {about}"
        frame = Frame.around(points)
        panels += "".join(
            coloured_map(frame, points, values, f"{method} of {name}, {what}", about)
            for what, values in colourings.items()
            if np.isfinite(values).all()
        )
    return panels


def _pca(latents: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Projection (N, 2) onto the two directions of largest variance, and how much they hold."""
    centred = latents - latents.mean(0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    share = 100 * sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny)
    points = centred @ directions[:2].T
    if points.shape[1] < 2:
        points, share = np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), np.pad(share, (0, 2 - len(share)))
    signs = np.sign(points[np.abs(points).argmax(0), [0, 1]])
    return points * np.where(signs == 0, 1, signs), f"{share[0]:.0f} % and {share[1]:.0f} % of variance"


def _umap(latents: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """A projection (N, 2) that keeps neighbours together."""
    from umap import UMAP

    return UMAP(random_state=0, n_jobs=1).fit_transform(latents), "neighbours stay together, distances mean little"
