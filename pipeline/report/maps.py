"""Maps: dots in a plane, coloured by a value in classes of equal size, with lines over them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.html import figure

CLASSES = 7
"""Colours of a map, ``--ramp-0`` and following in the page's style."""

WIDTH, HEIGHT, EDGE = 320, 240, 6
TALLEST = 400

Points = NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """How points lie in a map.

    Args:
        low: corner of what is shown, (2,).
        span: of what is shown, (2,).
        height: of the map, for a width of ``WIDTH``.
    """

    low: NDArray[np.float64]
    span: NDArray[np.float64]
    height: int = HEIGHT

    @classmethod
    def around(cls, *points: Points, equal: bool = False) -> Frame:
        """The frame that holds some points.

        Args:
            points: (N, 2) each.
            equal: both axes have one scale, unless that would make a ribbon of the map.
        """
        everything = np.concatenate(points).astype(np.float64)
        low, span = everything.min(0), np.ptp(everything, axis=0)
        span = np.where(span > 0, span, 1.0)
        height = (WIDTH - 2 * EDGE) * span[1] / span[0] + 2 * EDGE
        return cls(low, span, round(height)) if equal and 80 <= height <= TALLEST else cls(low, span)

    def place(self, points: Points) -> NDArray[np.float64]:
        """Places (N, 2) in the picture, whose second axis points down."""
        places = (points - self.low) / self.span * (WIDTH - 2 * EDGE, self.height - 2 * EDGE) + EDGE
        places[:, 1] = self.height - places[:, 1]
        return np.asarray(places)

    def line(self, points: Points, style: str) -> str:
        """A line through some points."""
        places = self.place(points)
        moved = np.abs(np.diff(np.round(places, 1), axis=0)).sum(1) > 0
        shown = places[np.concatenate([[True], moved])]
        return f'<path class="line {style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in shown)}"/>'

    def ring(self, point: Points, style: str) -> str:
        """A ring around a point."""
        ((x, y),) = self.place(np.asarray(point)[None])
        return f'<circle class="ring {style}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'

    def dots(self, points: Points, style: str) -> str:
        """Dots of one colour."""
        places = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in self.place(points))
        return f'<path class="{style}" d="{places}"/>'


def coloured_map(
    frame: Frame, points: Points, values: NDArray[Any], title: str, about: str = "", *, over: str = ""
) -> str:
    """A figure of points, coloured by their values.

    Args:
        frame: how they lie.
        points: (N, 2).
        values: (N,).
        title: what the colours tell.
        about: a further line.
        over: what is drawn over the points.
    """
    edges = np.quantile(values, np.linspace(0, 1, CLASSES + 1))
    classes = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, CLASSES - 1)
    dots = "".join(frame.dots(points[classes == number], f"ramp-{number}") for number in range(CLASSES))
    low, high = (_number(edge) for edge in (edges[0], edges[-1]))
    label = f"Map of {len(points)} states: {title} from {low} to {high}" + (f"; {about}" if about else "")
    swatches = "".join(f'<i class="ramp-{number}"></i>' for number in range(CLASSES))
    legend = f'<span class="ramp">{low} {swatches} {high}</span>'
    below = f"<b>{escape(title)}</b> {legend}" + (f"<br>{escape(about)}" if about else "")
    return figure(drawing(frame, label, dots + over), below)


def drawing(frame: Frame, label: str, content: str) -> str:
    """A map as an element of the page."""
    return (
        f'<svg class="map" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {frame.height}">{content}</svg>'
    )


def _number(value: float) -> str:
    return f"{value + 0.0:,.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.2g}"
