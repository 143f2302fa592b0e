"""Recordings of OGBench's own experts: play towards random goals, and one demonstration of a task.

    python -m benchmarks.play pointmaze-large recordings

Writes ``pointmaze-large-play.hdf5`` and ``pointmaze-large-expert.hdf5`` in D4RL's layout. The experts are those of OGBench (Park,
Frans, Eysenbach, Levine, ICLR 2025): in a maze the way from cell to cell, in ``cube-single`` the rule that lifts the cube and
carries it. ``cube-single`` needs all of OGBench's packages (docs/environments.md).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Expert(Protocol):
    """Someone who knows the way."""

    def aim(self) -> None:
        """Choose a new goal."""

    def action(self, observation: Array, info: dict[str, Any]) -> Array:
        """The best action, (act_dim,)."""

    def arrived(self) -> bool:
        """Whether the goal is reached."""


class MazeExpert:
    """Walks from cell to cell along the shortest way."""

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped
        self.free = np.argwhere(self.env.maze_map == 0)

    def aim(self) -> None:
        """A free cell."""
        self.env.set_goal(goal_ij=tuple(self.env.np_random.choice(self.free)))

    def action(self, observation: Array, info: dict[str, Any]) -> Array:
        """A unit vector towards the next cell, in the last cell towards the goal."""
        here, goal = self.env.get_xy(), np.asarray(self.env.cur_goal_xy)
        same = self.env.xy_to_ij(here) == self.env.xy_to_ij(goal)
        way = (goal if same else self.env.get_oracle_subgoal(here, goal)[0]) - here
        return np.asarray(way / (np.linalg.norm(way) + 1e-6))

    def arrived(self) -> bool:
        """Whether the environment would say so."""
        return bool(self.env.compute_success())


class CubeExpert:
    """OGBench's rule without memory: above the cube, down, grasp, lift, carry, put down."""

    def __init__(self, env: Any) -> None:
        rules = import_module("ogbench.manipspace.oracles.markov.cube_markov")
        self.env, self.rule = env.unwrapped, rules.CubeMarkovOracle(env=env)
        self.rule.reset(None, None)

    def aim(self) -> None:
        """A place and a turn for the cube."""
        self.env.set_new_target(return_info=False)
        self.rule.reset(None, None)

    def action(self, observation: Array, info: dict[str, Any]) -> Array:
        """What the rule does for the target that the environment shows."""
        target = self.env._cube_target_mocap_ids[0]
        known = {"block": 0, "block_pos": self.env._data.mocap_pos[target], "block_yaw": np.zeros(1)}
        told = {f"privileged/target_{name}": value for name, value in known.items()}
        return np.asarray(self.rule.select_action(observation, told | info))

    def arrived(self) -> bool:
        """Whether the cube is there and the hand has left it, or the rule has given up."""
        return bool(self.rule.done)


EXPERTS: dict[str, Callable[[Any], Expert]] = {"pointmaze": MazeExpert, "cube": CubeExpert}


def record(
    env: Any, expert: Expert, episodes: int, steps: int, noise: float, seed: int, once: bool = False
) -> dict[str, NDArray[Any]]:
    """Episodes in D4RL's columns, with Gaussian noise in the actions; a new goal whenever one is reached.

    Args:
        env: with actions in [-1, 1].
        expert: acts in it.
        episodes: how many.
        steps: at most, of each; an episode ends earlier where the environment ends it.
        noise: deviation of the noise.
        seed: of the goals, the starts and the noise.
        once: end an episode where its first goal is reached.

    Returns:
        Column -> (N, ...).
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = defaultdict(list)
    for episode in range(episodes):
        np.random.seed(seed + episode)  # noqa: NPY002 -- the rule for cubes draws from it
        observation, info = env.reset(seed=seed + episode)
        for step in range(steps):
            action = expert.action(observation, info)
            action = np.clip(action + noise * rng.standard_normal(action.shape), -1, 1)
            after, reward, terminal, _, info = env.step(action)
            arrived = expert.arrived()
            last = terminal or step + 1 == steps or (once and arrived)
            row = (observation, action, reward, terminal, last and not terminal, after)
            for name, value in zip(COLUMNS, row, strict=True):
                columns[name].append(value)
            observation = after
            if last:
                break
            if arrived:
                expert.aim()
    kinds = {"terminals": np.bool_, "timeouts": np.bool_}
    return {name: np.asarray(values, kinds.get(name, np.float32)) for name, values in columns.items()}


COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def write(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    """One HDF5 file."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, compression="gzip")
    ends = columns["terminals"] | columns["timeouts"]
    print(f"{path}: {len(ends)} steps, {int(ends.sum())} episodes")


def main(argv: list[str] | None = None) -> None:
    """Record play and a demonstration."""
    import gymnasium

    import_module("ogbench")  # registers its environments
    parser = argparse.ArgumentParser(description="Record OGBench's experts.")
    parser.add_argument("task", help="pointmaze-medium, pointmaze-large, pointmaze-giant or cube-single")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    family = args.task.split("-")[0]
    if family not in EXPERTS:
        parser.error(f"task: found {args.task!r}, expected one of {', '.join(EXPERTS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    free: dict[str, Any] = {"pointmaze": {}, "cube": {"mode": "data_collection"}}[family]
    env = gymnasium.make(f"{args.task}-v0", terminate_at_goal=False, max_episode_steps=args.steps, **free)
    play = record(env, EXPERTS[family](env), args.episodes, args.steps, args.noise, args.seed)
    write(args.folder / f"{args.task}-play.hdf5", play)
    env = gymnasium.make(f"{args.task}-singletask-task1-v0")
    expert = record(env, EXPERTS[family](env), 1, args.steps, 0.0, args.seed, once=True)
    write(args.folder / f"{args.task}-expert.hdf5", expert)


if __name__ == "__main__":
    main()
