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
from typing import Any

import numpy as np

from benchmarks.grid import Job, cells, load_preset
from benchmarks.scores import WORK, prepare_datasets, run_jobs, set_up

EVERY = 20


def median_cost(job: Job, work: Path) -> float:
    """Median cost of a step for the label of a relabel job."""
    import torch

    from dynarep.configs.params import validate
    from dynarep.data.shards import load_dataset
    from dynarep.pipeline.training.loop import Run
    from dynarep.pipeline.relabel import RelabelConfig, relabel, spaces_of
    from dynarep.pipeline.spaces import load_space

    section = validate(RelabelConfig, job.params["relabel"], job.name)
    method: Any
    ((name, method),) = section.methods.items()
    artifacts = set_up(job, work) / "artifacts"
    dataset, demonstrations = (
        load_dataset(artifacts / "shards" / n) for n in (section.dataset, section.demonstrations)
    )
    device = torch.device("cpu")
    spaces = {space: load_space(space, dataset, artifacts, device) for space in spaces_of(method)}
    returns = None if dataset.returns is None else dataset.returns[::EVERY]
    part = replace(dataset, episodes=dataset.episodes[::EVERY], returns=returns)
    temperature: float = method.method.temperature
    while True:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder)
            run = Run(name, job.params["seed"], job.params["replicas"], output, output / "checkpoints")
            c = replace(method, method=replace(method.method, temperature=temperature))
            rewards = relabel(name, c, part, demonstrations, spaces, device, run).rewards
        share = float(np.median(np.concatenate([r.ravel() for r in rewards.values()]))) / c.method.scale
        if share < 1e-3:
            temperature /= 30.0
        elif share > 0.99:
            temperature *= 30.0
        else:
            return -math.log(share) / temperature


def main() -> None:
    """Print one line for each label of a preset: median cost and 1 over it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temperatures", description="Temperatures of labels.")
    parser.add_argument("--preset", required=True, help="a file of benchmarks/presets, without .yaml")
    parser.add_argument("--recordings", type=Path, help="folder of the recordings that the preset's cards name")
    options = parser.parse_args()
    preset = load_preset(options.preset)
    grid = cells(preset, prepare_datasets(preset, options.recordings, WORK))
    jobs = {job.name: job for cell in grid for job in cell.job.chain().values() if job.stage.startswith("pretrain")}
    if run_jobs(jobs, WORK, len(os.sched_getaffinity(0)), lambda name: None):
        sys.exit(1)
    shown = set()
    for cell in grid:
        job = next((job for job in cell.job.chain().values() if job.stage == "relabel"), None)
        if job is not None and job.params["relabel"]["methods"] and job.name not in shown:
            shown.add(job.name)
            cost = median_cost(job, WORK)
            print(f"{cell.method}: median cost {cost:.3g}, temperature {1.0 / cost:.2g}", flush=True)


if __name__ == "__main__":
    main()
