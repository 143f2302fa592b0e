"""A point in a room with a wall: the environment of this example, to be replaced by your own."""

from typing import Any

import gymnasium
import numpy as np

WALLS = np.array([0.6, 1.0])  # the room: |x| and |y| at most
WALL, TOP = 0.1, 0.4  # of the wall that stands on the floor at x = 0: half its width, and where it ends
GOAL = np.array([0.4, -0.8])
SPEED, NOISE = 0.25, 0.02


def step(points: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where points (N, 2) go; what would lead into the wall slides along it."""
    move = SPEED * np.clip(actions, -1, 1) + NOISE * rng.normal(size=points.shape)
    after = np.clip(points + move, -WALLS, WALLS)
    slide_y, slide_x = np.stack([points[:, 0], after[:, 1]], -1), np.stack([after[:, 0], points[:, 1]], -1)
    result = points
    for candidate in (slide_x, slide_y, after):
        result = np.where(free(points, candidate)[:, None], candidate, result)
    return result


def at_goal(points: np.ndarray) -> np.ndarray:
    """Which of the points (..., 2) are at the goal."""
    return np.linalg.norm(points - GOAL, axis=-1) < 0.15


def free(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether the straight line between points (N, 2) misses the wall; that it is followed in small steps is enough."""
    along = np.linspace(0, 1, 11)[:, None, None]
    points = start + along * (end - start)
    return ~((np.abs(points[..., 0]) < WALL) & (points[..., 1] < TOP)).any(0)


class PointRoom(gymnasium.Env[np.ndarray, np.ndarray]):
    """Go from the lower left to the lower right and stay there: -1 per step that ends away from the goal, 40 steps."""

    observation_space = gymnasium.spaces.Box(-WALLS.astype(np.float32), WALLS.astype(np.float32))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start near the lower left corner."""
        super().reset(seed=seed)
        self.point = self.np_random.uniform([-0.5, -0.9], [-0.3, -0.7], (1, 2))
        return self.point[0].astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; ``info["success"]`` says whether the goal is reached."""
        self.point = step(self.point, action[None], self.np_random)
        reached = bool(at_goal(self.point)[0])
        return self.point[0].astype(np.float32), float(reached) - 1.0, False, False, {"success": reached}


gymnasium.register("PointRoom-v0", PointRoom, max_episode_steps=40)
