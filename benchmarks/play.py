"""Recordings of experts that are programs: play towards random goals, and demonstrations of a task.

    python -m benchmarks.play pointmaze-large recordings

Writes ``pointmaze-large-play.hdf5`` and ``pointmaze-large-expert.hdf5`` in D4RL's layout. Most experts are those of OGBench
(Park, Frans, Eysenbach, Levine, ICLR 2025): in a maze the way from cell to cell, in ``cube-single`` the rule that lifts the cube
and carries it. ``cube-single`` needs all of OGBench's packages (docs/environments.md). ``pendulum`` is ``Pendulum-v1`` of
Gymnasium, swung up by its energy; it has no goals, so its play is the same with noise.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
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


class PendulumExpert:
    """Pumps energy until it is that of standing upright, and then holds the pendulum there (Astrom, Furuta, 2000)."""

    upright, near = 5.0, 0.9

    def __init__(self, env: Any) -> None:
        self.env = env

    def aim(self) -> None:
        """There is one goal."""

    def action(self, observation: Array, info: dict[str, Any]) -> Array:
        """A torque within [-2, 2]."""
        cosine, sine, speed = observation
        if cosine > self.near:
            return np.asarray([-12.0 * np.arctan2(sine, cosine) - 3.0 * speed]).clip(-2, 2)
        energy = speed**2 / 6 + self.upright * cosine
        return np.asarray([5.0 * np.sign(speed or 1.0) * (self.upright - energy)]).clip(-2, 2)

    def arrived(self) -> bool:
        """Never: it has to be held."""
        return False


EXPERTS: dict[str, Callable[[Any], Expert]] = {
    "pointmaze": MazeExpert,
    "cube": CubeExpert,
    "pendulum": PendulumExpert,
}


def record(
    env: Any, expert: Expert, episodes: int, steps: int, noise: float, seed: int, once: bool = False
) -> dict[str, NDArray[Any]]:
    """Episodes in D4RL's columns, with Gaussian noise in the actions; a new goal whenever one is reached.

    Args:
        env: where it acts.
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
            action = action + noise * rng.standard_normal(action.shape)
            action = np.clip(action, env.action_space.low, env.action_space.high)
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


def ogbench(task: str, steps: int, **free: Any) -> tuple[Any, Any]:
    """Environments of OGBench for play and for the task."""
    import gymnasium

    import_module("ogbench")  # registers its environments
    play = gymnasium.make(f"{task}-v0", terminate_at_goal=False, max_episode_steps=steps, **free)
    return play, gymnasium.make(f"{task}-singletask-task1-v0")


def pendulum(task: str, steps: int) -> tuple[Any, Any]:
    """Gymnasium's environment, twice."""
    import gymnasium

    return gymnasium.make("Pendulum-v1", max_episode_steps=steps), gymnasium.make("Pendulum-v1")


ENVIRONMENTS: dict[str, Callable[[str, int], tuple[Any, Any]]] = {
    "pointmaze": ogbench,
    "cube": partial(ogbench, mode="data_collection"),
    "pendulum": pendulum,
}


def main(argv: list[str] | None = None) -> None:
    """Record play and demonstrations."""
    parser = argparse.ArgumentParser(description="Record experts that are programs.")
    parser.add_argument("task", help="pointmaze-medium, pointmaze-large, pointmaze-giant, cube-single or pendulum")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--demonstrations", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    family = args.task.split("-")[0]
    if family not in EXPERTS:
        parser.error(f"task: found {args.task!r}, expected one of {', '.join(EXPERTS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    expert, (for_play, for_task) = EXPERTS[family], ENVIRONMENTS[family](args.task, args.steps)
    play = record(for_play, expert(for_play), args.episodes, args.steps, args.noise, args.seed)
    write(args.folder / f"{args.task}-play.hdf5", play)
    shown = record(for_task, expert(for_task), args.demonstrations, args.steps, 0.0, args.seed, once=True)
    write(args.folder / f"{args.task}-expert.hdf5", shown)


if __name__ == "__main__":
    main()
