"""Learning curves of every model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.html import details, or_missing
from dynarep.pipeline.report.inputs import models, numbers, read_table
from dynarep.pipeline.report.plots import BLUE, canvas, svg

POINTS = 150
"""Of a curve, at most."""


def curves_section(artifacts: Path) -> str:
    """All metrics of all models, those of policies folded away."""
    return "".join(or_missing(_curves, artifacts, model) for model in models(artifacts))


def _curves(artifacts: Path, model: str) -> str:
    path = artifacts / model / "curves.tsv"
    table = read_table(path, "update")
    update = numbers(path, "update", table.pop("update"))
    panels = []
    for metric, texts in table.items():
        values = numbers(path, metric, texts)
        known = np.isfinite(values)
        if known.any():
            panels.append(_curve(model, metric, thin(update[known]), thin(values[known])))
    length = f"{update[-1]:,.0f} updates" if len(update) else "no updates"
    return details(model, length, f'<div class="curves">{"".join(panels)}</div>', opened="/" not in model)


def _curve(model: str, metric: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    drawn = canvas(2.3, 1.5)
    axes = drawn.subplots()
    axes.plot(x, y, color=BLUE, linewidth=1.1)
    axes.set_title(metric.replace("_", " "), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=4)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    return svg(drawn, f"{metric} of {model} over updates: from {y[0]:.3g} to {y[-1]:.3g}")


def thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over blocks of equal size, so that at most ``POINTS`` are left."""
    blocks = np.array_split(values, min(len(values), POINTS))
    return np.array([block.mean() for block in blocks])
