"""Temperatures for labels of very different costs, by one rule: 1 over the median cost of a step of the data.

    python -m benchmarks.temperatures --preset labels --recordings <folder>

Labels are r = alpha exp(-tau cost). Costs differ by orders of magnitude between spaces and between ways of matching, and
no reward of the data is needed to bring them together: with this tau the median step of the arbitrary data gets alpha / e.
The preset's values were set with it, rounded to two digits; a twentieth of the episodes is looked at.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.presets import WORK, lay_out, load_preset, settings_of
from benchmarks.scores import graph_of, needed, run_stages

EVERY = 20


def median_cost(params: Path, label: str) -> float:
    """Median cost of a step for an entry of ``relabel``, whose encoder has been made."""
    from dynarep.pipeline.relabel import relabel
    from dynarep.pipeline.run import Stage

    stage = Stage("relabel", params, label)
    entry = stage.read_entry()
    dataset, demonstrations = stage.dataset(entry.inputs.dataset), stage.dataset(entry.inputs.demonstrations)
    encoder = stage.encoder(entry.inputs.space, f"{entry.where}.space", dataset.spec.observation_dim)
    returns = None if dataset.returns is None else dataset.returns[::EVERY]
    part = replace(dataset, episodes=dataset.episodes[::EVERY], returns=returns)
    temperature: float = entry.config.temperature
    while True:
        with tempfile.TemporaryDirectory() as folder:
            run = replace(stage.run(Path(folder), shared=False), checkpoints=Path(folder) / "checkpoints", logs_in=None)
            tried = replace(entry, config=replace(entry.config, temperature=temperature))
            rewards = relabel(tried, part, demonstrations, encoder, run).rewards
        share = float(np.median(np.concatenate([r.ravel() for r in rewards.values()]))) / entry.config.scale
        if share < 1e-3:
            temperature /= 30.0
        elif share > 0.99:
            temperature *= 30.0
        else:
            return -math.log(share) / temperature


def main(arguments: list[str] | None = None) -> None:
    """Print one line for each label of a preset that has a temperature: median cost and 1 over it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temperatures", description="Temperatures of labels.")
    parser.add_argument("--preset", required=True, help="a file of benchmarks/presets, without .yaml")
    parser.add_argument("--recordings", type=Path, help="folder of the recordings that the preset's cards name")
    options = parser.parse_args(arguments)
    for name, setting in settings_of(load_preset(options.preset)).items():
        folder = WORK / options.preset / name
        lay_out(setting, folder, options.recordings)
        graph = graph_of(folder)
        labels = [label for label, entry in setting.params["relabel"].items() if "temperature" in entry]
        encoders = {stage for label in labels for stage in graph[f"relabel@{label}"]}
        if run_stages(folder, needed(graph, encoders), len(os.sched_getaffinity(0)), lambda stage: None):
            sys.exit(1)
        for label in labels:
            cost = median_cost(folder / "params.yaml", label)
            print(f"{name}/{label}: median cost {cost:.3g}, temperature {1.0 / cost:.2g}", flush=True)


if __name__ == "__main__":
    main()
