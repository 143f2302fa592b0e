"""Make the embedded recordings: train Hopper policies, keep snapshots, roll them out.

    pip install -e ".[record]"
    python data/embedded/record.py --policies /tmp/policies            # both steps, about 10 minutes on 2 cores
    python data/embedded/record.py --policies /tmp/policies --train 0  # one training seed only

TRPO (sb3-contrib) is trained for 600,000 steps from two seeds; a snapshot is kept every 10,000 steps. The snapshots'
own mean returns sort them into weak, medium and strong, and each output file is a fixed recipe over those classes
(``RECIPES``). Files follow D4RL's HDF5 layout, see README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ENV_ID = "Hopper-v4"
TRAINING_SEEDS = (0, 1)
TOTAL_STEPS = 600_000
SNAPSHOT_EVERY = 10_000
CLASSES = {"weak": (150.0, 800.0), "medium": (800.0, 2200.0), "strong": (2600.0, np.inf)}
"""Mean return of a snapshot (deterministic actions) -> behaviour class, lower bound inclusive."""

# (behaviour class, transitions, standard deviation of Gaussian action noise drawn once per episode from [0, this])
RECIPES: dict[str, list[tuple[str, int, float]]] = {
    "hopper-arbitrary": [
        ("random", 5_000, 0.0),
        ("weak", 15_000, 0.3),
        ("medium", 31_000, 0.5),
        ("strong", 33_000, 0.6),
    ],
    "hopper-expert": [("expert", 5_000, 0.0)],
}

COLUMNS: dict[str, type] = {
    "observations": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "terminals": np.bool_,
    "timeouts": np.bool_,
    "next_observations": np.float32,
}

Policy = Callable[[np.ndarray], np.ndarray]


def train(seed: int, folder: Path) -> None:
    """Train TRPO on ``ENV_ID`` and write ``<folder>/trpo-<seed>-<steps>.{zip,pkl}`` every ``SNAPSHOT_EVERY`` steps."""
    import gymnasium as gym
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    torch.set_num_threads(1)
    env = VecNormalize(DummyVecEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(ENV_ID))] * 2), gamma=0.99)

    class Snapshot(BaseCallback):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.saved = 0

        def _on_step(self) -> bool:
            if self.num_timesteps // SNAPSHOT_EVERY > self.saved:
                self.saved = self.num_timesteps // SNAPSHOT_EVERY
                name = folder / f"trpo-{seed}-{self.saved * SNAPSHOT_EVERY:07d}"
                self.model.save(name.with_suffix(".zip"))
                env.save(str(name.with_suffix(".pkl")))
                print(name.name, flush=True)
            return True

    model = TRPO(
        "MlpPolicy",
        env,
        n_steps=1024,
        batch_size=128,
        learning_rate=1e-3,
        gamma=0.99,
        gae_lambda=0.95,
        cg_damping=0.1,
        cg_max_steps=25,
        n_critic_updates=20,
        sub_sampling_factor=1,
        seed=seed,
        device="cpu",
    )
    model.learn(TOTAL_STEPS, callback=Snapshot())


def load_policy(path: Path) -> Policy:
    """A snapshot as a function of the raw observation (11,) to the mean action (3,)."""
    import pickle

    from sb3_contrib import TRPO

    model = TRPO.load(path, device="cpu")
    with path.with_suffix(".pkl").open("rb") as file:
        statistics = pickle.load(file).obs_rms
    scale = np.sqrt(statistics.var + 1e-8)

    def act(observation: np.ndarray) -> np.ndarray:
        standardised = np.clip((observation - statistics.mean) / scale, -10.0, 10.0).astype(np.float32)
        return np.asarray(np.clip(model.predict(standardised, deterministic=True)[0], -1.0, 1.0), np.float32)

    return act


def episode(
    env: Any, policy: Policy | None, noise: float, rng: np.random.Generator, limit: int
) -> dict[str, np.ndarray]:
    """One episode of at most ``limit`` steps in D4RL's arrays; no policy means uniform random actions."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    terminated = truncated = False
    while not (terminated or truncated):
        if policy is None:
            action = rng.uniform(-1.0, 1.0, 3).astype(np.float32)
        else:
            action = np.clip(policy(observation) + noise * rng.standard_normal(3), -1.0, 1.0).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        truncated = (truncated or len(columns["rewards"]) + 1 >= limit) and not terminated
        for name, value in zip(COLUMNS, (observation, action, reward, terminated, truncated, following), strict=True):
            columns[name].append(value)
        observation = following
    return {name: np.asarray(values, dtype=COLUMNS[name]) for name, values in columns.items()}


def record(folder: Path, out: Path, seed: int = 0) -> None:
    """Sort the snapshots into classes and write every file of ``RECIPES`` and ``snapshots.json`` into ``out``."""
    import gymnasium as gym
    import mujoco

    rng = np.random.default_rng(seed)
    env = gym.make(ENV_ID)
    policies = {path.stem: load_policy(path) for path in sorted(folder.glob("*.zip"))}
    returns = {
        name: [float(episode(env, policy, 0.0, rng, 1000)["rewards"].sum()) for _ in range(3)]
        for name, policy in policies.items()
    }
    classes = {
        label: [name for name, r in returns.items() if low <= np.mean(r) < high]
        for label, (low, high) in CLASSES.items()
    }
    classes["expert"] = [max(returns, key=lambda name: min(returns[name]))]
    for file_name, recipe in RECIPES.items():
        episodes: list[dict[str, np.ndarray]] = []
        for label, transitions, noise in recipe:
            remaining = transitions
            while remaining > 0:
                policy = None if label == "random" else policies[classes[label][rng.integers(len(classes[label]))]]
                episodes.append(episode(env, policy, rng.uniform(0.0, noise), rng, min(remaining, 1000)))
                remaining -= len(episodes[-1]["rewards"])
        rng.shuffle(episodes)
        with h5py.File(out / f"{file_name}.hdf5", "w") as file:
            for name in COLUMNS:
                column = np.concatenate([e[name] for e in episodes])
                file.create_dataset(name, data=column, compression="gzip", compression_opts=9, shuffle=True)
            file.attrs["env"] = ENV_ID
        totals = [float(e["rewards"].sum()) for e in episodes]
        print(f"{file_name}: {len(episodes)} episodes, mean return {np.mean(totals):.0f}, best {max(totals):.0f}")
    versions = {"gymnasium": gym.__version__, "mujoco": mujoco.__version__, "numpy": np.__version__}
    summary = {"env": ENV_ID, "seed": seed, "versions": versions, "classes": classes, "returns": returns}
    (out / "snapshots.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=Path, required=True, help="folder for the trained snapshots")
    parser.add_argument("--train", type=int, help="only train this seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the recordings")
    arguments = parser.parse_args()
    arguments.policies.mkdir(parents=True, exist_ok=True)
    if arguments.train is not None:
        train(arguments.train, arguments.policies)
    else:
        for training_seed in TRAINING_SEEDS:
            if not list(arguments.policies.glob(f"trpo-{training_seed}-*.zip")):
                train(training_seed, arguments.policies)
        record(arguments.policies, arguments.out)
