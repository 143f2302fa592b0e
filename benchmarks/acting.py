"""Soft actor-critic side by side with Stable-Baselines3's: steps per second of a training, collection included.

    python -m benchmarks.acting

One update for each step of Hopper-v4, networks of 256x256, batches of 256. Steps of all replicas count. The contenders take
turns on one core; numbers are medians with the least and the largest. Writes ``benchmarks/results/acting.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS
from benchmarks.timing import Contender, Group, Work, compare, processor

ENV = "Hopper-v4"
WARM_UP = 300
"""Random steps and updates before the clock starts, compiling included."""


def ours(steps: int, replicas: int, *, compile_it: bool) -> Work:
    """Trainings by the stage's own function; what counts is after ``WARM_UP`` updates.

    Args:
        steps: of each replica that are timed.
        replicas: trained together.
        compile_it: whether losses and gradients are compiled.
    """
    from dynarep.pipeline.entries import parse_entry
    from dynarep.pipeline.learn import learn
    from dynarep.pipeline.playing.replay import Replay
    from dynarep.pipeline.training.run import Run

    training = {"updates": WARM_UP + steps + 1, "batch_size": 256, "updates_per_chunk": 250, "compile": compile_it}
    values = {
        "kind": "sac",
        "dataset": "none",
        "demonstrations": "none",
        "environment": {"env": ENV, "random_steps": WARM_UP},
        "training": {**training, "checkpoint_every": WARM_UP + steps + 1},
    }
    entry = parse_entry("learn", "sac", values)

    def work() -> tuple[float, float]:
        began: dict[int, float] = {}
        advance = Replay.advance

        def timed(self: Replay, update: int, policy: Any = None) -> None:
            began[update] = time.perf_counter()
            advance(self, update, policy)

        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "out").mkdir()
            run = Run("learn/sac", 0, replicas, Path(folder) / "out", Path(folder) / "checkpoints")
            kept, sys.stderr = sys.stderr, io.StringIO()
            Replay.advance = timed  # type: ignore[method-assign]
            try:
                learn(entry, None, None, None, None, run)
            finally:
                Replay.advance = advance  # type: ignore[method-assign]
                sys.stderr = kept
        return float(steps * replicas), began[WARM_UP + steps] - began[WARM_UP]

    return work


def stable_baselines3(steps: int) -> Work:
    """Stable-Baselines3's SAC with the same sizes; what counts is after ``WARM_UP`` updates."""
    from stable_baselines3 import SAC

    model = SAC(
        "MlpPolicy",
        ENV,
        batch_size=256,
        learning_starts=WARM_UP,
        train_freq=1,
        gradient_steps=1,
        buffer_size=500_000,
        policy_kwargs={"net_arch": [256, 256]},
        device="cpu",
        seed=0,
    )
    model.learn(2 * WARM_UP)

    def work() -> float:
        model.learn(steps, reset_num_timesteps=False)
        return float(steps)

    return work


def group(steps: int) -> Group:
    """All contenders, each with so many timed steps of a replica."""
    return Group(
        "SAC in Hopper-v4, 256x256, batch 256",
        "environment steps",
        [
            Contender("dynarep, 3 replicas", partial(ours, steps, 3, compile_it=True)),
            Contender("dynarep", partial(ours, steps, 1, compile_it=True)),
            Contender("dynarep, not compiled", partial(ours, steps, 1, compile_it=False)),
            Contender("Stable-Baselines3", partial(stable_baselines3, steps)),
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acting", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000, help="timed steps of each replica and turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "acting.json")
    options = parser.parse_args(arguments)
    timings = compare(group(options.steps), options.repeats)
    rows = [{"name": t.name, "rates": t.rates, "missing": t.missing} for t in timings]
    for timing in timings:
        if timing.missing is None:
            low, high = min(timing.rates), max(timing.rates)
            print(f"{timing.name:24} {timing.median:8.1f} steps/s  [{low:.1f}, {high:.1f}]")
        else:
            print(f"{timing.name:24} missing: {timing.missing}")
    options.output.write_text(json.dumps({"processor": processor(), "steps": options.steps, "timings": rows}, indent=1))


if __name__ == "__main__":
    main()
