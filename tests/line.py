"""A point on a line, as a Gymnasium environment whose best action is known, that ends, breaks or lies where it is told to."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

STEPS = 20


class Line(gymnasium.Env[Any, Any]):
    """x moves by half the action and pays 1 - x^2 after each step; the best action is -2x within [-1, 1].

    Args:
        terminal: a distance from 0 beyond which the episode is over.
        breaks_at: the step of all episodes at which the environment raises.
        infinite_at: the step of all episodes at which the reward is not finite.
        unit: the largest action, of the same effect whatever it is.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(
        self,
        terminal: float | None = None,
        breaks_at: int | None = None,
        infinite_at: int | None = None,
        unit: float = 1.0,
    ) -> None:
        self.action_space, self.unit = gymnasium.spaces.Box(-unit, unit, (1,), np.float32), unit
        self.terminal, self.breaks_at, self.infinite_at = terminal, breaks_at, infinite_at
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-1.0, 1.0))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.count == self.breaks_at:
            raise RuntimeError("the motor is too hot")
        self.x += 0.5 * float(action[0]) / self.unit
        reward = np.inf if self.count == self.infinite_at else 1.0 - self.x**2
        self.count += 1
        over = self.terminal is not None and abs(self.x) > self.terminal
        return self._seen(), reward, over, False, {}

    def _seen(self) -> Any:
        return np.array([self.x, 1.0])


gymnasium.register("Line-v0", "tests.line:Line", max_episode_steps=STEPS)
gymnasium.register("Endless-v0", "tests.line:Line")
