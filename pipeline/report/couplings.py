"""Some episodes as the labels see them: steps coupled with the expert's, and the reward of every step."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.arrays import EXAMPLE, read_arrays
from dynarep.pipeline.report.html import data_uri, figure
from dynarep.pipeline.report.inputs import Artifacts, MissingInputError, ReportError
from dynarep.pipeline.report.plots import BLUE, canvas, pool, shade, svg

PIXELS = 200
"""Along an axis of a coupling; strips have three times as many."""

Example = Mapping[str, NDArray[Any]]


def couplings_section(artifacts: Artifacts) -> str:
    """One panel per episode, of which a slider shows one; without scripts all are shown."""
    episodes = _examples(artifacts)
    panels = "".join(
        f'<div class="item" data-label="{escape(_title(number + 1, len(episodes), labels))}">{_panel(labels)}</div>\n'
        for number, labels in enumerate(episodes)
    )
    slider = (
        '<p class="control"><label for="episode">Episode</label> '
        f'<input type="range" id="episode" min="1" max="{len(episodes)}" value="{len(episodes)}"> '
        '<output for="episode"></output></p>'
    )
    return (
        '<p class="note">Episodes of the dataset from low to high return. A coupling shows which of the expert\'s steps each '
        "step of the episode is matched with: the stronger the blue, the more mass. A strip shows the reward of each step, "
        "from the lowest (no colour) to the highest (blue) of its row.</p>\n"
        f'<div class="stepper">{slider}{panels}</div>'
    )


def _examples(artifacts: Artifacts) -> list[dict[str, Example]]:
    """Examples by entry of ``relabel``, one mapping per episode of a dataset; datasets one after another."""
    episodes: dict[tuple[str, str], dict[str, Example]] = {}
    order: dict[tuple[str, str], int] = {}
    for name in artifacts.names("relabel"):
        for path in sorted((artifacts.folder("relabel", name) / "examples").glob("*.npz")):
            if not path.stem.isdigit():
                raise ReportError(f"{path}: expected a number as the name of an example")
            example = read_arrays(path, EXAMPLE)
            if "coupling" in example and "expert" not in example:
                raise ReportError(f"{path}: no array 'expert'; found {', '.join(example)}")
            episode = str(artifacts.metadata("relabel", name).get("dataset", "")), str(example["agent"])
            episodes.setdefault(episode, {})[name] = example
            order.setdefault(episode, int(path.stem))
    if not episodes:
        raise MissingInputError(artifacts.root / "relabel" / "*" / "examples" / "*.npz")
    return [episodes[key] for key in sorted(episodes, key=lambda key: (key[0], order[key]))]


def _title(number: int, total: int, labels: Mapping[str, Example]) -> str:
    example = next(iter(labels.values()))
    title = f"{number} of {total}: {example['agent']}, {len(example['rewards']):,} steps"
    if "true_rewards" in example:
        title += f", true return {example['true_rewards'].sum(dtype=np.float64):,.0f}"
    return title


def _panel(labels: Mapping[str, Example]) -> str:
    couplings = "".join(_coupling(name, example) for name, example in labels.items() if "coupling" in example)
    example = next(iter(labels.values()))
    rows = {name: example["rewards"] for name, example in labels.items()}
    if "true_rewards" in example:
        rows["true"] = example["true_rewards"]
    return f'<div class="panels">{couplings}</div>{_strips(str(example["agent"]), rows)}'


def _coupling(name: str, example: Example) -> str:
    """The axes are those of TensorBoard's picture: the expert's steps to the right, the episode's upwards."""
    from matplotlib.colors import PowerNorm

    coupling = example["coupling"]
    agent_steps, expert_steps = coupling.shape
    mass = pool(coupling, PIXELS)
    drawn = canvas(3.6, 2.7)
    axes = drawn.subplots()
    axes.imshow(
        mass,
        extent=(0, expert_steps, 0, agent_steps),
        origin="lower",
        aspect="auto",
        cmap=shade(),
        norm=PowerNorm(0.4, vmin=0, vmax=_strongest(mass), clip=True),
        interpolation="none",
    )
    axes.grid(visible=False)
    axes.set_xlabel("step of the expert")
    axes.set_ylabel("step of the episode")
    label = (
        f"Coupling by {name} of {agent_steps} steps of {example['agent']} with {expert_steps} of {example['expert']}"
    )
    return figure(svg(drawn, label), f"<b>{escape(name)}</b> with expert episode {escape(str(example['expert']))}")


def _strongest(mass: NDArray[Any]) -> float:
    """The mass that is shown in full blue; a few entries have more."""
    positive = mass[mass > 0]
    return float(np.quantile(positive, 0.98)) if positive.size else 1.0


def _strips(agent: str, rows: Mapping[str, NDArray[Any]]) -> str:
    html = ""
    for name, values in rows.items():
        low, high = float(values.min()), float(values.max())
        alt = f"Rewards of the steps of {agent}, {name}: from {low:.3g} to {high:.3g}"
        html += f'<b>{escape(name)}</b><img alt="{escape(alt)}" src="{_strip(values)}"><span>{low:.3g} to {high:.3g}</span>\n'
    steps = len(next(iter(rows.values())))
    return f'<div class="strips">{html}<span class="steps"><span>step 0</span><span>{steps:,}</span></span></div>'


def _strip(values: NDArray[Any]) -> str:
    """A picture one pixel high, from clear at the lowest value to blue at the highest."""
    from PIL import Image

    pooled = pool(values[None].astype(np.float64), PIXELS * 3)
    span = np.ptp(pooled) or 1.0
    pixels = np.empty((*pooled.shape, 4), np.uint8)
    pixels[..., :3] = [int(BLUE[place : place + 2], 16) for place in (1, 3, 5)]
    pixels[..., 3] = np.round(255 * (pooled - pooled.min()) / span)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "image/png")
