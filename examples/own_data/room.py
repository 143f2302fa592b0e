"""A point in a room with a wall: the environment of this example, to be replaced by your own."""

from typing import Any

import gymnasium
import numpy as np

GOAL = np.array([0.7, -0.7])
WALL, TOP = 0.1, 0.4  # half its width, and where it ends; it stands on the floor at x = 0
SPEED, NOISE = 0.1, 0.01


def step(points: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where points (N, 2) go; what would lead into the wall slides along it."""
    after = np.clip(points + SPEED * np.clip(actions, -1, 1) + NOISE * rng.normal(size=points.shape), -1, 1)
    slide_y, slide_x = np.stack([points[:, 0], after[:, 1]], -1), np.stack([after[:, 0], points[:, 1]], -1)
    result = points
    for candidate in (slide_x, slide_y, after):
        result = np.where(inside(candidate)[:, None], result, candidate)
    return result


def inside(points: np.ndarray) -> np.ndarray:
    """Whether points (..., 2) are inside the wall."""
    return (np.abs(points[..., 0]) < WALL) & (points[..., 1] < TOP)


class PointRoom(gymnasium.Env[np.ndarray, np.ndarray]):
    """Go from the lower left to the lower right: -1 per step until the goal is reached, at most 100 steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.point = self.np_random.uniform(-0.1, 0.1, (1, 2)) + [-0.7, -0.7]
        return self.point[0].astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.point = step(self.point, action[None], self.np_random)
        reached = bool(np.linalg.norm(self.point[0] - GOAL) < 0.15)
        return self.point[0].astype(np.float32), -1.0, reached, False, {"success": reached}


gymnasium.register("PointRoom-v0", PointRoom, max_episode_steps=100)
