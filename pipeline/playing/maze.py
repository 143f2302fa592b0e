"""A point in a maze of walls: the task of the first run, small enough for thousands of steps per second and core.

Straight distances mislead in it, because the way to the goal leads around walls. ``dynarep.pipeline.playing.maze:Maze-v0`` is its
Gymnasium id.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

MAZE = (
    "#########",
    "#S#.....#",
    "#.#.#.#.#",
    "#.#.#.#.#",
    "#.#.###.#",
    "#...#G..#",
    "#.#######",
    "#.......#",
    "#########",
)
"""# is a wall, S the start, G the goal, . is free; a cell has side 1."""


class Maze(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """An action in [-1, 1]^2 moves the point by at most ``speed`` along each axis; walls stop it.

    The observation is the position, column and row in cells, (2,) float32. The reward is -1 per step and 0 in the step that
    reaches the goal, which terminates the episode.

    Args:
        maze: rows of characters, see ``MAZE``.
        speed: cells per step.
        radius: of the point.
        goal_radius: distance to the middle of the goal's cell that counts as reached.
        anywhere: start in a free cell drawn anew for each episode, not at S.
        render_mode: Gymnasium's; ``rgb_array`` draws the maze.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        maze: tuple[str, ...] = MAZE,
        *,
        speed: float = 0.1,
        radius: float = 0.2,
        goal_radius: float = 0.4,
        anywhere: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.walls = np.array([[cell == "#" for cell in row] for row in maze])
        cells = {cell: (x, y) for y, row in enumerate(maze) for x, cell in enumerate(row) if cell in "SG"}
        self.start, self.goal = np.array(cells["S"], float), np.array(cells["G"], float)
        self.free = [np.array((x, y), float) for y, x in np.argwhere(~self.walls)]
        self.speed, self.radius, self.goal_radius, self.anywhere = speed, radius, goal_radius, anywhere
        self.render_mode = render_mode
        rows, columns = self.walls.shape
        self.observation_space = Box(-0.5, max(rows, columns) - 0.5, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.position = self.start

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin in the start's cell, uniformly over where the point fits in it; ``options["cell"]`` names another cell."""
        super().reset(seed=seed)
        cell = self.free[self.np_random.integers(len(self.free))] if self.anywhere else self.start
        cell = np.asarray((options or {}).get("cell", cell), float)
        self.position = cell + self.np_random.uniform(self.radius - 0.5, 0.5 - self.radius, 2)
        return self.position.astype(np.float32), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move along one axis after the other, so that the point slides along walls."""
        move = np.clip(np.asarray(action, float), -1.0, 1.0) * self.speed
        for axis in (0, 1):
            ahead = self.position.copy()
            ahead[axis] += move[axis]
            if self.blocked(ahead):
                ahead[axis] = np.round(self.position[axis]) + np.sign(move[axis]) * (0.5 - self.radius - 1e-6)
            self.position = ahead
        success = bool(np.linalg.norm(self.position - self.goal) <= self.goal_radius)
        return self.position.astype(np.float32), 0.0 if success else -1.0, success, False, {"success": success}

    def blocked(self, position: NDArray[np.float64]) -> bool:
        """Whether a point there would overlap a wall."""
        columns, rows = ({round(float(p) - self.radius), round(float(p) + self.radius)} for p in position)
        return any(self.walls[row, column] for row in rows for column in columns)

    def render(self) -> NDArray[np.uint8]:
        """The maze from above, (240, 240, 3) where it is square: walls grey, the goal green, the point blue."""
        scale = 240 // max(self.walls.shape)
        picture = np.full((*self.walls.shape, 3), 255, np.uint8)
        picture[self.walls] = 90
        picture = picture.repeat(scale, 0).repeat(scale, 1)
        rows, columns = np.indices(picture.shape[:2])
        for (x, y), radius, colour in (
            (self.goal, self.goal_radius, (140, 200, 140)),
            (self.position, self.radius, (40, 90, 200)),
        ):
            centre = (np.array((x, y)) + 0.5) * scale
            inside = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= (radius * scale) ** 2
            picture[inside] = colour
        return picture


def cell_distances(walls: NDArray[np.bool_], goal: tuple[int, int]) -> NDArray[np.float64]:
    """Moves between neighbouring cells from every cell to ``goal``, (column, row); infinite behind walls."""
    distances = np.full(walls.shape, np.inf)
    distances[goal[1], goal[0]] = 0
    queue = [goal]
    for x, y in queue:
        for u, v in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if not walls[v, u] and np.isinf(distances[v, u]):
                distances[v, u] = distances[y, x] + 1
                queue.append((u, v))
    return distances


gymnasium.register("Maze-v0", entry_point="dynarep.pipeline.playing.maze:Maze", max_episode_steps=600)
