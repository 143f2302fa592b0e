"""How well a space knows the way: distances beside shortest paths and elapsed steps, and choices with and without noise.

    python -m benchmarks.distances --preset spaces --recordings <folder> [--settings <regex>] [--spaces <regex>] [--replicas <n>]

For the entries of a preset's ``pretrain``, replica by replica, three tables of ``benchmarks/results/distances.json``:

- ``paths``, of every setting with a ``plane``, whose first two numbers are positions. The shortest paths are those of the
  recording itself: positions are counted into cells, two cells are neighbours where a recorded step goes from one to the other,
  and a way is as long as the cells' middles are apart, in mean steps of the recording. Encoders read whole observations, so
  irrelevant numbers are in their way. Rank correlation of distance and path over pairs of states, over all of them and over
  those at most ``NEAR`` steps apart; and the area under the curve (AUC) of telling pairs across a wall, near in a line and more
  than ``FAR`` steps apart, from pairs at most ``NEAR`` steps apart.
- ``linearity``, of every other setting: on episodes that no encoder was trained on, rank correlation of distance and elapsed
  steps within episodes, up to ``HORIZON``, and R^2 of distance and of squared distance.
- ``noise``, of every setting ``<name>_<noise>`` that stands beside a setting ``<name>``: the share ``SHARE`` of best episodes
  under each label of kind ``nearest``. How much of what is chosen with the added numbers is chosen without them, in transitions,
  and the mean true return of both choices where there is one.

What is measured anew takes the place of what was stored of that table, setting and space.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
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
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, read_rewards
from dynarep.data.split import held_out
from dynarep.pipeline.cloning import best_episodes
from dynarep.pipeline.measures import distances_over_time
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.run import Stage

NEAR, FAR = 60, 100
"""Steps up to which a pair counts as near, and from which as far."""
CELL = 6.0
"""Width of a cell in mean steps of the recording."""
STATES = 400
"""States whose distances to each other are looked at."""
HORIZON = 30
"""Most elapsed steps of a pair."""
SHARE = 0.03
"""Of the transitions, in the best episodes."""

Array = NDArray[np.float64]
Found = dict[str, list[float]]
"""Numbers of each replica, by measure."""


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


def linearity(squared: Array, steps: Array) -> dict[str, float]:
    """Rank correlation and R^2 of distances (n,), given as squares, and elapsed steps (n,)."""
    distance = np.sqrt(squared)
    return {
        "spearman": float(spearmanr(distance, steps).statistic),
        "r_squared": float(np.corrcoef(distance, steps)[0, 1] ** 2),
        "r_squared_of_squares": float(np.corrcoef(squared, steps)[0, 1] ** 2),
    }


def overlap(noisy: Array, clean: Array, lengths: list[int], share: float = SHARE) -> float:
    """Transitions in the best episodes under both of two returns (E,), as a share of those in the larger choice."""
    chosen, others = (set(best_episodes(returns.tolist(), lengths, share)) for returns in (noisy, clean))

    def size(episodes: set[int]) -> int:
        return sum(lengths[episode] for episode in episodes)

    return size(chosen & others) / max(size(chosen), size(others))


def collected(rows: list[dict[str, float]]) -> Found:
    """Numbers of replicas, by measure."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def paths_of(dataset: Dataset, encoder: Encoder) -> Found:
    """Agreement with the shortest paths of a recording, of each replica."""
    paths = [np.asarray(episode.current[:, :2], dtype=np.float64) for episode in dataset.episodes]
    states = np.concatenate([episode.current for episode in dataset.episodes])
    step = float(np.mean([np.linalg.norm(np.diff(path, axis=0), axis=1).mean() for path in paths]))
    chosen = np.random.default_rng(0).choice(len(states), STATES, replace=False)
    positions = states[chosen, :2].astype(np.float64)
    pairs = np.triu_indices(STATES, 1)
    steps = shortest_paths(paths, positions, CELL * step)[pairs] / step
    straight = np.linalg.norm(positions[pairs[0]] - positions[pairs[1]], axis=1) / step
    with torch.no_grad():
        points = encoder.embed(torch.from_numpy(states[chosen])[None]).double().numpy()
    distances = (np.linalg.norm(replica[pairs[0]] - replica[pairs[1]], axis=1) for replica in points)
    return collected([agreement(distance, steps, straight) for distance in distances])


def linearity_of(episodes: list[Episode], encoder: Encoder) -> Found:
    """Agreement with elapsed steps, of each replica."""
    rows = []
    for replica in range(encoder.architecture.replicas):
        one = encoder.replica_rows([replica])
        steps, squared = distances_over_time(episodes, one.embed)
        near = steps <= HORIZON
        rows.append(linearity(squared[near].astype(np.float64), steps[near].astype(np.float64)))
    return collected(rows)


def choices(stage: Stage, dataset: Dataset, label: str) -> Array:
    """Returns of each episode under a label, (R, E)."""
    rewards = read_rewards(stage.artifacts / "relabel" / label, dataset)
    return np.stack([rewards[episode.id].sum(-1, dtype=np.float64) for episode in dataset.episodes], -1)


def noise_of(noisy: Stage, clean: Stage, name: str, label: str) -> Found:
    """Overlap of the choices with and without added numbers, of each replica, and their mean true returns."""
    dataset, without = noisy.dataset(name), clean.dataset(name)
    if [e.id for e in dataset.episodes] != [e.id for e in without.episodes]:
        raise ValueError(f"{noisy.params} and {clean.params}: {name}: found other episodes")
    lengths = [episode.length for episode in dataset.episodes]
    rows = []
    for own, other in zip(choices(noisy, dataset, label), choices(clean, without, label), strict=True):
        row = {"overlap": overlap(own, other, lengths)}
        if dataset.returns is not None:
            for key, returns in (("return", own), ("return_without", other)):
                chosen = best_episodes(returns.tolist(), lengths, SHARE)
                row[key] = float(np.mean([dataset.returns[episode] for episode in chosen]))
        rows.append(row)
    return collected(rows)


def labels_of(setting: Setting, spaces: Mapping[str, Any]) -> dict[str, str]:
    """The labels of kind ``nearest``, by the space that they compare in."""
    entries = setting.params["relabel"].items()
    return {entry["space"]: name for name, entry in entries if entry["kind"] == "nearest" and entry["space"] in spaces}


class Store:
    """The results file, written after each number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: dict[str, dict[str, dict[str, Found]]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, table: str, setting: str, space: str, found: Found) -> None:
        """Store and print what was measured of a space."""
        self.tables.setdefault(table, {}).setdefault(setting, {})[space] = found
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.tables, indent=1) + "\n")
        temporary.replace(self.path)
        print(table, setting, space, *(f"{key} {np.mean(values):.3f}" for key, values in found.items()), flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distances", description="Distances beside the truth.")
    parser.add_argument("--preset", required=True, help="a file of benchmarks/presets, without .yaml")
    parser.add_argument("--recordings", type=Path, help="folder of the recordings that the preset's cards name")
    parser.add_argument("--settings", default="", help="only settings that match this regular expression as a whole")
    parser.add_argument("--spaces", default="", help="only entries of pretrain that match this one as a whole")
    parser.add_argument("--replicas", type=int, help="in place of the preset's number, in projects of their own")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="stages at once")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure the encoders of a preset, and store it; exit status 1 if a stage failed or nothing matches."""
    options = parse(arguments)
    preset = settings_of(load_preset(options.preset))
    settings = {name: s for name, s in preset.items() if re.fullmatch(options.settings or ".*", name)}
    if not settings:
        sys.exit(f"error: --settings: {options.settings!r} matches none of {', '.join(preset)}")
    folders = WORK / options.preset
    if options.replicas is not None:
        folders = WORK / f"{options.preset}-{options.replicas}"
        settings = {n: Setting({**s.params, "replicas": options.replicas}, s.cards) for n, s in settings.items()}
    compared = {name for name in settings if name.rpartition("_")[0] in settings}
    store = Store(RESULTS / "distances.json")
    stages: dict[str, Stage] = {}
    for name, setting in settings.items():
        folder = folders / name
        spaces = {s: e for s, e in setting.params["pretrain"].items() if re.fullmatch(options.spaces or ".*", s)}
        if not spaces:
            sys.exit(f"error: --spaces: {options.spaces!r} matches none of {', '.join(setting.params['pretrain'])}")
        beside = name in compared or any(noisy.rpartition("_")[0] == name for noisy in compared)
        labels = labels_of(setting, spaces) if beside else {}
        lay_out(setting, folder, options.recordings)
        targets = [f"pretrain@{space}" for space in spaces] + [f"relabel@{label}" for label in labels.values()]
        if run_stages(folder, needed(graph_of(folder), targets), options.workers, lambda stage: None):
            sys.exit(1)
        stages[name] = Stage("pretrain", folder / "params.yaml")
        for space, entry in spaces.items():
            stage = Stage("pretrain", folder / "params.yaml", space)
            dataset = stage.dataset(entry["dataset"])
            encoder = stage.encoder(space, f"pretrain.{space}", dataset.spec.observation_dim)
            assert encoder is not None
            if encoder.spaces[0] in encoder.reads_actions:
                continue
            if setting.params["evaluate"].get("plane") is not None:
                store.add("paths", name, space, paths_of(dataset, encoder))
            else:
                inputs, seed = stage.read_entry().inputs, stage.run_config().seed
                _, kept = held_out(dataset.episodes, inputs.held_out, seed)
                store.add("linearity", name, space, linearity_of(kept, encoder))
    for name in filter(compared.__contains__, settings):
        for space, label in labels_of(settings[name], settings[name].params["pretrain"]).items():
            if re.fullmatch(options.spaces or ".*", space):
                dataset_name = settings[name].params["relabel"][label]["dataset"]
                found = noise_of(stages[name], stages[name.rpartition("_")[0]], dataset_name, label)
                store.add("noise", name, space, found)


if __name__ == "__main__":
    main()
