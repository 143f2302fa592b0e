"""Plots as SVG inside the page.

Text and axes take the page's colours, so that they follow its theme; the colours of the data are of middle lightness, the
same in light and dark, and apart for colour-blind readers, too.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#3d85c6", "#cf6f1a", "#838b99"

INK, RULE = "#010203", "#040506"
"""Stand-ins for colours of the page, which ``svg`` puts in their place."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
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
METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def canvas(width: float, height: float) -> Figure:
    """An empty figure of some inches; 3.6 fill a phone's width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def svg(figure: Figure, label: str) -> str:
    """A figure as an ``<svg>`` element with a text for readers who do not see it; the same figure gives the same text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):  # ids must not meet those of another figure
        figure.savefig(buffer, format="svg", metadata=METADATA, dpi=160)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    drawn = re.sub(r"<style.*?</style>|<!--.*?-->|(?<=<g) id=\"[^\"]*\"", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"\n\s*", "\n", drawn).replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
    width, height = figure.get_size_inches() * 72
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{1.3 * width / 72 * 96:.0f}px">{drawn}'
    )


def shade() -> LinearSegmentedColormap:
    """From nothing to blue, on any background."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shade", [BLUE + "00", BLUE + "ff"])


def pool(matrix: NDArray[Any], most: int) -> NDArray[Any]:
    """Means over blocks, so that no axis is longer than ``most``."""
    for axis, size in enumerate(matrix.shape):
        if size > most:
            edges = np.linspace(0, size, most + 1).astype(int)
            sums = np.add.reduceat(matrix, edges[:-1], axis=axis, dtype=np.float64)
            widths = np.diff(edges).reshape([-1 if i == axis else 1 for i in range(matrix.ndim)])
            matrix = sums / widths
    return matrix
