"""How well a space knows the way: distances of encoders beside the shortest paths in mazes.

    python -m benchmarks.distances --preset spaces --recordings <folder>

For every setting with a ``plane``, whose first two numbers are positions, and every entry of its ``pretrain``. The shortest
paths are those of the recording itself: positions are counted into cells, two cells are neighbours where a recorded step goes
from one to the other, and a way is as long as the cells' middles are apart, in mean steps of the recording. Encoders read whole
observations, so irrelevant numbers are in their way.

Written to ``benchmarks/results/distances.json``: rank correlation of distance and path over pairs of states, over all of them
and over those at most ``NEAR`` steps apart; and the area under the curve (AUC) of telling pairs across a wall, near in a line
and more than ``FAR`` steps apart, from pairs at most ``NEAR`` steps apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.stats import mannwhitneyu, spearmanr

from benchmarks.presets import WORK, Setting, lay_out, load_preset, settings_of
from benchmarks.scores import graph_of, needed, run_stages
from benchmarks.tables import RESULTS
from dynarep.data.shards import Dataset

NEAR, FAR = 60, 100
"""Steps up to which a pair counts as near, and from which as far."""
CELL = 6.0
"""Width of a cell in mean steps of the recording."""
STATES = 400
"""States whose distances to each other are looked at."""

Array = NDArray[np.float64]


def shortest_paths(paths: list[Array], chosen: Array, width: float) -> Array:
    """Lengths of the shortest ways between positions, along cells that recorded steps connect.

    Args:
        paths: positions (T, 2) of each episode, in order.
        chosen: positions (n, 2) among them.
        width: of a cell.

    Returns:
        (n, n) in units of the positions; infinite where no way was recorded.
    """
    cells, of_all = np.unique(np.floor(np.concatenate(paths) / width).astype(int), axis=0, return_inverse=True)
    visited = np.split(of_all.ravel(), np.cumsum([len(path) for path in paths])[:-1])
    a, b = (np.concatenate(part) for part in zip(*((v[:-1], v[1:]) for v in visited), strict=True))
    edges = np.unique(np.stack([a, b])[:, a != b], axis=1)
    lengths = np.linalg.norm(cells[edges[0]] - cells[edges[1]], axis=1) * width
    graph = coo_array((lengths, (edges[0], edges[1])), shape=(len(cells), len(cells))).tocsr()
    number = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    own = np.array([number[tuple(cell)] for cell in np.floor(chosen / width).astype(int).tolist()])
    found: Array = dijkstra(graph, directed=False, indices=own)[:, own]
    return found


def agreement(distance: Array, steps: Array, straight: Array) -> dict[str, float]:
    """Rank correlations and AUC over pairs.

    Args:
        distance: in the space, (n,).
        steps: of the shortest path, (n,).
        straight: distance in a line in steps, (n,).
    """
    reached = np.isfinite(steps)
    near, across = reached & (steps <= NEAR), (straight <= NEAR) & (steps > FAR)
    wins = mannwhitneyu(distance[across], distance[near]).statistic / (across.sum() * near.sum())
    return {
        "spearman": float(spearmanr(distance[reached], steps[reached]).statistic),
        "spearman_near": float(spearmanr(distance[near], steps[near]).statistic),
        "auc": float(wins),
    }


def of_setting(folder: Path, setting: Setting) -> dict[str, dict[str, list[float]]]:
    """Agreement of each encoder of a setting whose encoders have been made, replica by replica."""
    from dynarep.pipeline.run import Stage

    found: dict[str, dict[str, list[float]]] = {}
    for name, entry in setting.params["pretrain"].items():
        stage = Stage("pretrain", folder / "params.yaml", name)
        dataset: Dataset = stage.dataset(entry["dataset"])
        encoder = stage.encoder(name, f"pretrain.{name}", dataset.spec.observation_dim)
        assert encoder is not None
        if encoder.spaces[0] in encoder.reads_actions:
            continue
        paths = [np.asarray(episode.current[:, :2], dtype=np.float64) for episode in dataset.episodes]
        states = np.concatenate([episode.current for episode in dataset.episodes])
        step = float(np.mean([np.linalg.norm(np.diff(path, axis=0), axis=1).mean() for path in paths]))
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(states), STATES, replace=False)
        positions = states[chosen, :2].astype(np.float64)
        pairs = np.triu_indices(STATES, 1)
        steps = shortest_paths(paths, positions, CELL * step)[pairs] / step
        straight = np.linalg.norm(positions[pairs[0]] - positions[pairs[1]], axis=1) / step
        with torch.no_grad():
            points = encoder.embed(torch.from_numpy(states[chosen])[None]).double().numpy()
        for replica in points:
            distance = np.linalg.norm(replica[pairs[0]] - replica[pairs[1]], axis=1)
            for key, value in agreement(distance, steps, straight).items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure the encoders of a preset's mazes, and store it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distances", description="Distances beside paths.")
    parser.add_argument("--preset", required=True, help="a file of benchmarks/presets, without .yaml")
    parser.add_argument("--recordings", type=Path, help="folder of the recordings that the preset's cards name")
    options = parser.parse_args(arguments)
    measured: dict[str, Any] = {}
    for name, setting in settings_of(load_preset(options.preset)).items():
        if setting.params["evaluate"].get("plane") is None:
            continue
        folder = WORK / options.preset / name
        lay_out(setting, folder, options.recordings)
        encoders = [f"pretrain@{entry}" for entry in setting.params["pretrain"]]
        if run_stages(folder, needed(graph_of(folder), encoders), len(os.sched_getaffinity(0)), lambda stage: None):
            sys.exit(1)
        measured[name] = of_setting(folder, setting)
        for space, values in measured[name].items():
            numbers = "  ".join(f"{key} {np.mean(value):.3f}" for key, value in values.items())
            print(f"{name}/{space}: {numbers}", flush=True)
    (RESULTS / "distances.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
