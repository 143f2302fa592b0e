"""Make the embedded recordings of the maze: a noisy navigator to random goals, and one demonstration of the way to the goal.

python data/embedded/record_maze.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.playing.maze import Maze, cell_distances

STEPS, EPISODE_STEPS, NOISE = 60_000, 100, 0.7
"""Of the play data: transitions in all, transitions of an episode, deviation of the noise on each action."""

ARRIVED = 0.25
"""Distance to the middle of a cell, along each axis, at which the navigator has arrived."""

AFTER = 10
"""Steps that the demonstration goes on at its goal, so that its last states are not those of entering it."""

Row = dict[str, Any]


def towards(maze: Maze, distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """The action towards the middle of the neighbouring cell that is nearest to a goal."""
    x, y = np.round(maze.position).astype(int)
    cells = [(x, y), (x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
    target = min(cells, key=lambda cell: float(distances[cell[1], cell[0]]))
    action: NDArray[np.float64] = np.clip((np.array(target) - maze.position) / maze.speed, -1.0, 1.0)
    return action


def play(maze: Maze, seed: int) -> Iterator[Row]:
    """Episodes from random cells to one random goal after another; none is the answer."""
    rng = np.random.default_rng(seed)
    for _ in range(STEPS // EPISODE_STEPS):
        observation, _ = maze.reset(seed=int(rng.integers(2**31)), options={"cell": rng.choice(maze.free)})
        target = maze.position
        distances = np.zeros(maze.walls.shape)
        for t in range(EPISODE_STEPS):
            if t == 0 or np.abs(maze.position - target).max() < ARRIVED:
                target = rng.choice(maze.free)
                distances = cell_distances(maze.walls, (int(target[0]), int(target[1])))
            action = towards(maze, distances) + NOISE * rng.standard_normal(2)
            yield (row := step(maze, observation, action, ended=t == EPISODE_STEPS - 1))
            observation = row["next_observations"]


def demonstrate(maze: Maze, seed: int) -> Iterator[Row]:
    """One way from the start to the goal without noise."""
    observation, _ = maze.reset(seed=seed)
    distances = cell_distances(maze.walls, (int(maze.goal[0]), int(maze.goal[1])))
    left = AFTER
    while left:
        row = step(maze, observation, towards(maze, distances), ended=False)
        left -= row["rewards"] == 0.0
        yield {**row, "timeouts": left == 0}
        observation = row["next_observations"]


def step(maze: Maze, observation: NDArray[np.float32], action: NDArray[np.float64], *, ended: bool) -> Row:
    """One transition; the goal does not end an episode of a recording."""
    taken = np.clip(action, -1.0, 1.0).astype(np.float32)
    following, reward, _, _, _ = maze.step(taken)
    return {
        "observations": observation,
        "actions": taken,
        "rewards": reward,
        "terminals": False,
        "timeouts": ended,
        "next_observations": following,
    }


def write(path: Path, rows: list[Row]) -> None:
    """Write columns in D4RL's layout."""
    with h5py.File(path, "w") as file:
        for name in rows[0]:
            kind = bool if name in ("terminals", "timeouts") else np.float32
            values = np.array([row[name] for row in rows], kind)
            file.create_dataset(name, data=values, compression="gzip", shuffle=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the two files")
    out = parser.parse_args().out
    write(out / "maze-play.hdf5", list(play(Maze(), seed=0)))
    write(out / "maze-expert.hdf5", list(demonstrate(Maze(), seed=1)))
