"""Learning curves of everything that was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.html import details, note
from dynarep.pipeline.report.inputs import Artifacts, models, numbers, read_table
from dynarep.pipeline.report.plots import BLUE, canvas, svg

POINTS = 150
"""Of a curve, at most."""

RISING = {
    "icvf": "The loss of an ICVF may rise while it learns: it is measured against targets that its own slowly moving copy makes, "
    "and these grow with the values. Judge it by the distances and the map of its space.",
    "iql": "The losses of values and critics are measured against targets that move with them; they need not fall.",
    "td3_bc": "The critic's loss is measured against targets that move with it; it need not fall.",
}
"""What a reader should know of the losses of a kind."""


def curves_section(artifacts: Artifacts) -> str:
    """All metrics of all models, those of policies folded away."""
    shown = "".join(_model(artifacts, section, name) for section, name in models(artifacts))
    return shown or note("nothing was trained that left curves.tsv")


def _model(artifacts: Artifacts, section: str, name: str) -> str:
    """Curves of an entry, and of its phases."""
    folder = artifacts.folder(section, name)
    paths = [path for path in (folder / "curves.tsv", *sorted(folder.glob("*/curves.tsv"))) if path.exists()]
    if not paths:
        trained = artifacts.settings(section, name).get("training") is not None
        return note(f"not available: {artifacts.relative(folder / 'curves.tsv')}") if trained else ""
    about = RISING.get(artifacts.kind(section, name), "")
    content = f'<p class="note">{about}</p>' if about else ""
    longest = 0.0
    for path in paths:
        panels, last = _curves(path, path.parent.relative_to(artifacts.root).as_posix())
        longest = max(longest, last)
        title = "" if len(paths) == 1 else f"<h4>{path.parent.name if path.parent != folder else 'last phase'}</h4>"
        content += f'{title}<div class="curves">{panels}</div>'
    length = f"{longest:,.0f} updates" if longest else "no updates"
    return details(f"{section}/{name}", length, content, opened=section == "pretrain")


def _curves(path: Path, model: str) -> tuple[str, float]:
    """Panels, and the last update."""
    table = read_table(path, "update")
    update = numbers(path, "update", table.pop("update"), gaps=False)
    panels = []
    for metric, texts in table.items():
        values = numbers(path, metric, texts)
        known = np.isfinite(values)
        if known.any():
            panels.append(_curve(model, metric, thin(update[known]), thin(values[known])))
    return "".join(panels), float(update[-1])


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
