"""What TensorBoard shows beside the curves of a training: latents and figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def board(logs: Path) -> Iterator[SummaryWriter]:
    """A writer of TensorBoard logs beside those of the training whose folder is ``output``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(logs)) as writer:
        yield writer


def add_latents(writer: SummaryWriter, tag: str, latents: NDArray[Any], columns: Mapping[str, Iterable[Any]]) -> None:
    """Show latents in TensorBoard's projector.

    Args:
        writer: from ``board``.
        tag: name of the space.
        latents: (N, latent_dim), written with four decimals.
        columns: what is known of each of the N, to colour and search by.
    """
    rows = [[str(value) for value in row] for row in zip(*columns.values(), strict=True)]
    points = np.asarray(latents, np.float64).round(4)
    writer.add_embedding(points, metadata=rows, metadata_header=list(columns), tag=tag)


def distance_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Squared distance against k for each space, with the range of the middle 80 %.

    Args:
        rows: ``space``, ``k``, ``mean``, ``low``, ``high``; distances in units of the first step.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="steps k", ylabel="squared distance, first step = 1", yscale="log")
    for space in dict.fromkeys(row["space"] for row in rows):
        k, mean, low, high = (
            [row[name] for row in rows if row["space"] == space] for name in ("k", "mean", "low", "high")
        )
        (line,) = axes.plot(k, mean, label=space)
        axes.fill_between(k, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.legend(frameon=False)
    return figure


def coupling_figure(coupling: NDArray[Any]) -> Figure:
    """The heat map of a coupling (Ta, Te) of an episode's steps and the expert's."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="step of the expert", ylabel="step of the episode")
    thin_lines = PowerNorm(0.4)
    image = axes.imshow(np.asarray(coupling), aspect="auto", origin="lower", norm=thin_lines)
    figure.colorbar(image, label="mass")
    return figure
