"""Pictures of the README and of the pages on the representations, each for light and dark pages.

    python -m benchmarks.pictures docs/pictures [first_run scores ...]

``first_run`` and ``scores`` are drawn from stored results. The others train both representations on the small processes of the
tests, where the true answer is known: ``ratio`` and ``occupancy`` on a chain of states, ``distance`` and ``coupling`` on a point
in a corridor around a block.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tables import last, normalised, read_cells
from dynarep.data.prepare import write_episodes
from dynarep.data.shards import load_dataset
from dynarep.pipeline.artifacts.pretrained import PretrainedDynamics, PretrainedIntent
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.factorisation import expert_weights
from dynarep.pipeline.methods.rewards import ailot
from dynarep.pipeline.playing.scores import bootstrap_interval, interquartile_mean
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.training.run import Run
from tests.synthetic import Chain, Corridor, record

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

THEMES = {
    "light": {"page": "#ffffff", "text": "#24292f", "faint": "#8c959f", "ours": "#0b6e99", "other": "#c2571a"},
    "dark": {"page": "#161b22", "text": "#e6edf3", "faint": "#7d8590", "ours": "#58b6e0", "other": "#f0883e"},
}
Theme = dict[str, str]
Numbers = NDArray[np.float64]

CHAIN = Chain(5)
CORRIDOR = Corridor()
CORRIDOR.speed, CORRIDOR.noise = 0.15, 0.005
RESULTS = Path(__file__).parent / "results"
DRAWERS: dict[str, Callable[[Theme], Figure]] = {}


def picture(draw: Callable[[Theme], Figure]) -> Callable[[Theme], Figure]:
    """Enter a function among the pictures under its own name."""
    DRAWERS[draw.__name__] = draw
    return draw


SHOWN = {
    "repr_value_dice_top3": "data found by φ, μ: ReprValueDICE",
    "occupancy_top3": "data found by φ, μ: cloned",
    "ailot_top3": "data found by ψ, states alone: cloned",
    "otr_top3": "data found by raw states: cloned",
    "repr_value_dice_cloning": "ReprValueDICE with a cloning term",
    "value_dice_cloning": "ValueDICE with a cloning term",
    "bc": "the demonstration: cloned",
}
"""Methods from the top, each with a label; all of them ran in both settings."""


@picture
def scores(theme: Theme) -> Figure:
    """Interquartile means and intervals on the mixed recording, with one demonstration and with every 20th transition."""
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 2.9), sharey=True, layout="constrained")
    settings = {"one demonstration": ("hopper", "mixed"), "50 transitions of it": ("low-data", "every-20th")}
    places = np.arange(len(SHOWN))[::-1]
    for axes, (title, (preset, setting)) in zip(panels, settings.items(), strict=True):
        cells = {cell["method"]: cell for cell in read_cells(preset) if cell["setting"] == setting}
        for place, method in zip(places, SHOWN, strict=True):
            values = normalised(cells[method], last(cells[method]))
            low, high = bootstrap_interval(values)
            colour = theme["ours"] if method.split("_")[0] in ("repr", "occupancy", "ailot") else theme["other"]
            axes.plot([low, high], [place, place], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
            axes.plot(interquartile_mean(values), place, "o", color=colour, markersize=6)
        expert = normalised(cells["bc"], np.array(cells["bc"]["demonstrations_return"]))
        axes.axvline(float(expert), color=theme["text"], linewidth=1, linestyle="--")
        axes.text(float(expert) - 2, len(SHOWN) - 0.45, "the expert", ha="right", va="bottom", fontsize=8)
        axes.set_title(title, fontsize=10, pad=14)
        axes.set(xlim=(-3, 120), ylim=(-0.6, len(SHOWN) - 0.4), yticks=places, yticklabels=SHOWN.values())
        axes.set_xlabel("normalised score (0: random policy)", fontsize=9)
        axes.grid(axis="x", alpha=0.25)
    return figure


FIRST_RUN = {
    "metric": "temporal metric: chooses and acts",
    "metric_label": "temporal metric chooses, observations act",
    "standardised": "standardised states",
    "raw": "raw states",
    "length": "length of an episode",
    "bc": "the demonstration: cloned",
    "random": "random actions",
}
"""Policies of the default run from the top, each with a label."""


@picture
def first_run(theme: Theme) -> Figure:
    """Success rates and intervals of the default run, from ``benchmarks/results/first-run.json``, a copy of its metrics."""
    found = json.loads((RESULTS / "first-run.json").read_text())
    figure, axes = plt.subplots(figsize=(7.4, 2.6), layout="constrained")
    for place, name in enumerate(reversed(FIRST_RUN)):
        score = found[name]
        colour = theme["ours"] if name.startswith("metric") else theme["faint"]
        axes.barh(place, score["success_rate"], 0.62, color=colour)
        axes.plot([score["success_low"], score["success_high"]], [place, place], color=theme["text"], linewidth=1.4)
        axes.text(1.02, place, f"{score['success_rate']:.2f}", va="center", color=theme["text"])
    axes.set_yticks(range(len(FIRST_RUN)), list(reversed(FIRST_RUN.values())))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of episodes that reach the goal, 95 % interval")
    return figure


@cache
def chain_encoder() -> Any:
    """The encoder φ, μ of random episodes in the chain that start in state 0."""
    rng = np.random.default_rng(0)
    episodes = CHAIN.episodes("chain", rng, lambda s, g: g.uniform(-1, 1, len(s)), count=400, steps=20, start=0)
    contrastive = {"kind": "contrastive", "hidden": [64], "feature_dim": 32, "learning_rate": 5e-3}
    return PretrainedDynamics(_trained(episodes, {**contrastive, "training": {"updates": 2000, "batch_size": 128}}))


def chain_noise() -> Numbers:
    """p_n, the distribution of next states in the data of ``chain_encoder``, (n,)."""
    still = np.zeros(CHAIN.states)
    noise: Numbers = CHAIN.visits(still, 20, 0) @ CHAIN.kernel(still)
    return noise


@picture
def ratio(theme: Theme) -> Figure:
    """P(s'|s, a) / p_n(s') of the chain for one action everywhere, true and learned."""
    action, states = 0.8, np.eye(CHAIN.states, dtype=np.float32)
    true = CHAIN.kernel(np.full(CHAIN.states, action)) / chain_noise()
    learned = chain_encoder().ratio(states[:, None], np.array([action], np.float32), states[None])
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 3.3), layout="constrained")
    names = ("true: P(s'|s, a) / pₙ(s')", "learned: φ(s, a)ᵀ μ(s')")
    for axes, values, name in zip(panels, (true, learned), names, strict=True):
        axes.pcolormesh(values, cmap="viridis", vmin=0, vmax=max(true.max(), learned.max()))
        for (s, following), value in np.ndenumerate(values):
            colour = "black" if value > 0.6 * true.max() else "white"
            axes.text(following + 0.5, s + 0.5, f"{value:.2f}", color=colour, ha="center", va="center", fontsize=9)
        middle = np.arange(CHAIN.states) + 0.5
        axes.set(aspect="equal", xticks=middle, yticks=middle, xticklabels=range(5), yticklabels=range(5))
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("next state s'", fontsize=9)
        axes.tick_params(length=0)
    panels[0].set_ylabel(f"state s, action a = {action}", fontsize=9)
    return figure


@picture
def occupancy(theme: Theme) -> Figure:
    """How often an expert who stays around state 3 is where, relative to the data: true, and from phi and mu alone."""
    rng, steps = np.random.default_rng(1), 20
    policy = CHAIN.towards(3)
    expert = CHAIN.episodes("expert", rng, lambda s, _: policy[s], count=5, steps=steps, start=0)
    encoder, noise = chain_encoder(), chain_noise()
    phi = np.concatenate([encoder(episode.current, episode.actions) for episode in expert])
    weights = expert_weights(torch.from_numpy(phi)[None], 1.0)[0].numpy()
    with torch.no_grad():
        mu = encoder.model.mu(torch.eye(CHAIN.states)[None])[0].numpy()
    true = CHAIN.visits(policy, steps, 0) @ CHAIN.kernel(policy) / noise
    figure, axes = plt.subplots(figsize=(7.4, 2.6), layout="constrained")
    places = np.arange(CHAIN.states)
    axes.bar(places - 0.2, true, 0.38, color=theme["faint"], label="true: how often the expert comes to s' / pₙ(s')")
    axes.bar(places + 0.2, mu @ weights, 0.38, color=theme["ours"], label="μ(s')ᵀ θ, θ the mean of φ over 5 episodes")
    axes.axhline(1, color=theme["text"], linewidth=1, linestyle="--")
    axes.set(xticks=places, ylim=(0, 1.35 * true.max()))
    axes.set_xlabel("state s'", fontsize=9)
    axes.set_ylabel("ratio", fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=theme["text"])
    return figure


@cache
def corridor_encoder() -> Any:
    """The encoder ψ of wandering episodes in the corridor."""
    episodes = record("walk", *CORRIDOR.wander(np.random.default_rng(0), 150, 120))
    icvf = {"kind": "icvf", "hidden": [64], "latent_dim": 32, "gamma": 0.97, "learning_rate": 2e-3, "target_rate": 0.05}
    return PretrainedIntent(_trained(episodes, {**icvf, "training": {"updates": 3000, "batch_size": 128}}))


@picture
def distance(theme: Theme) -> Figure:
    """Maps of the distance from the left end: in coordinates and in psi, beside the shortest way."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 61), np.linspace(-1, 1, 121))
    grid = np.stack([x, y], -1)
    start = CORRIDOR.left_end
    maps = {
        "straight line": np.linalg.norm(grid - start, axis=-1),
        "distance of ψ": np.sqrt(corridor_encoder().distance(grid, start)),
        "the way around": CORRIDOR.geodesic(grid, start),
    }
    figure, panels = plt.subplots(1, 4, figsize=(8.6, 3.3), layout="constrained", width_ratios=[1, 1, 1, 1.5])
    for axes, (name, values) in zip(panels, maps.items(), strict=False):
        shown = np.where(CORRIDOR.free(grid), values, np.nan)
        axes.imshow(shown, origin="lower", extent=(-0.5, 0.5, -1, 1), cmap="viridis_r")
        axes.contour(x, y, shown, levels=8, colors="black", linewidths=0.4, alpha=0.6)
        axes.plot(*start, "o", color="white", markeredgecolor="black", markersize=6)
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=9)
    rng = np.random.default_rng(1)
    p, q = CORRIDOR.points(rng, 400), CORRIDOR.points(rng, 400)
    way = CORRIDOR.geodesic(p, q) / CORRIDOR.speed
    panels[3].scatter(
        way, corridor_encoder().distance(p, q), s=5, color=theme["ours"], label="ψ, squared", linewidths=0
    )
    panels[3].set_xlabel("shortest way in full steps", fontsize=9)
    panels[3].set_title("400 pairs of points: squared distance of ψ", fontsize=9)
    return figure


@picture
def coupling(theme: Theme) -> Figure:
    """Transport between two episodes and an expert's, and AILOT's reward at each step."""
    rng = np.random.default_rng(2)
    steps, noise = 36, np.array(0.05)
    expert, _ = CORRIDOR.travel(rng, CORRIDOR.left_end[None], CORRIDOR.right_end, steps, noise)
    followed, _ = CORRIDOR.travel(rng, CORRIDOR.left_end[None] + 0.08, CORRIDOR.right_end, steps, 6 * noise)
    lost, _ = CORRIDOR.travel(rng, CORRIDOR.left_end[None] + 0.08, np.array([-0.4, -0.2]), steps, 2 * noise)
    encoder = corridor_encoder()
    embed = [torch.from_numpy(encoder(points)) for points in (followed, lost, expert)]
    lengths = torch.tensor([steps + 1])
    config = ailot.AILOTConfig(temperature=0.05)
    figure, panels = plt.subplots(1, 3, figsize=(8.6, 3.3), layout="constrained", width_ratios=[1, 1, 1.9])
    for axes, points, psi, name, key in (
        (panels[0], followed, embed[0], "follows the expert", "ours"),
        (panels[1], lost, embed[1], "stays behind", "other"),
    ):
        labels = ailot.label(psi, lengths, embed[2], lengths, encoder.model.calibration, config)
        mass = labels.transport.coupling[0] * (steps + 1)
        i, j = np.nonzero(mass.numpy() > 0.05)
        lines = np.stack([points[0][i], expert[0][j]], 1)
        axes.add_collection(LineCollection(list(lines), colors=theme["faint"], alpha=mass[i, j].numpy(), linewidths=1))
        axes.add_patch(Rectangle((-0.15, -1), 0.3, 1.4, color=theme["faint"], alpha=0.3, linewidth=0))
        axes.plot(*expert[0].T, "o-", color=theme["text"], markersize=3, linewidth=1, label="expert")
        axes.plot(*points[0].T, "o-", color=theme[key], markersize=3, linewidth=1)
        axes.set(xlim=(-0.5, 0.5), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
        axes.set_title(name, fontsize=9, color=theme[key])
        panels[2].plot(labels.rewards[0], "o-", color=theme[key], markersize=4, label=name)
    panels[2].set(ylim=(0, 1.05 * config.scale), xlabel="step")
    panels[2].set_title("reward of each step", fontsize=9)
    panels[2].legend(frameon=False, fontsize=9, labelcolor=theme["text"])
    return figure


def _trained(episodes: list[Any], values: dict[str, Any]) -> Any:
    """The encoder of an entry of ``pretrain`` from episodes."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_episodes(folder / "data", episodes)
        (folder / "run").mkdir()
        run = Run("picture", 0, 1, folder / "run", folder / "checkpoints")
        entry = parse_entry("pretrain", "picture", {**values, "dataset": "data"})
        return pretrain(entry, load_dataset(folder / "data"), run).encoder


def save(name: str, folder: Path) -> None:
    """Write ``<name>-light.svg`` and ``<name>-dark.svg``."""
    for theme, colours in THEMES.items():
        settings: Any = {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "font.family": "sans-serif",
            "grid.color": colours["faint"],
            "svg.fonttype": "none",
            "svg.hashsalt": name,
        }
        for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
            settings[key] = colours["text"]
        for key in ("figure.facecolor", "axes.facecolor", "savefig.facecolor"):
            settings[key] = colours["page"]
        with plt.rc_context(settings):
            figure = DRAWERS[name](colours)
            figure.savefig(folder / f"{name}-{theme}.svg", metadata={"Date": None}, dpi=150)
            plt.close(figure)


if __name__ == "__main__":
    target, *chosen = sys.argv[1:]
    torch.set_num_threads(1)
    for each in chosen or DRAWERS:
        save(each, Path(target))
