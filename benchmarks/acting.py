"""Soft actor-critic side by side with Stable-Baselines3's: steps per second of a training, collection included.

One update for each step of Hopper-v4, networks of 256x256, batches of 256. Steps of all replicas count. A group of
``benchmarks.throughput``.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import Contender, Group, Work

ENV = "Hopper-v4"
WARM_UP = 256
"""Random steps, as many updates before the clock starts, compiling included; not below a batch."""


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
