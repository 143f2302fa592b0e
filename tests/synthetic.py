"""Small decision processes whose dynamics, occupancies and distances are known, and data recorded in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynarep.data.schema import Episode

Behaviour = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""States of E episodes, and a generator of random numbers, to actions (E,) or (E, 2) within [-1, 1]."""


def record(name: str, observations: np.ndarray, actions: np.ndarray) -> list[Episode]:
    """Truncated episodes ``name-0``, ``name-1``, ... from observations (E, T + 1, d) and actions (E, T, k)."""
    return [
        Episode(
            id=f"{name}-{i}",
            observations=states.astype(np.float32),
            actions=moves.astype(np.float32),
            terminated=False,
            truncated=True,
        )
        for i, (states, moves) in enumerate(zip(observations, actions, strict=True))
    ]


class Chain:
    """States in a row, seen as one-hot vectors; an action a in [-1, 1] says how likely the right neighbour follows.

    P(s + 1 | s, a) = (1 + grip sign_s a) / 2, else s - 1 follows, and both ends hold back. sign_s is 1 in even states and
    -1 in odd ones, so that one and the same action everywhere leads nowhere.

    Args:
        states: n.
        grip: how much the action decides, in (0, 1].
        gamma: discount.
    """

    def __init__(self, states: int, *, grip: float = 0.9, gamma: float = 0.9) -> None:
        self.states, self.grip, self.gamma = states, grip, gamma
        self.sign = np.where(np.arange(states) % 2 == 0, 1.0, -1.0)

    def kernel(self, actions: np.ndarray) -> np.ndarray:
        """P(s'|s, a_s) for one action per state (..., n): (..., n, n)."""
        right = (1.0 + self.grip * self.sign * actions) / 2.0
        s = np.arange(self.states)
        result = np.zeros((*actions.shape, self.states))
        result[..., s, np.minimum(s + 1, self.states - 1)] += right
        result[..., s, np.maximum(s - 1, 0)] += 1.0 - right
        return result

    def occupancy(self, actions: np.ndarray) -> np.ndarray:
        """Normalised discounted occupancy from uniform initial states, for mean actions per state (..., n): (..., n)."""
        system = np.eye(self.states) - self.gamma * np.swapaxes(self.kernel(actions), -1, -2)
        return np.linalg.solve(system, np.full((*actions.shape, 1), (1.0 - self.gamma) / self.states))[..., 0]

    def visits(self, actions: np.ndarray, steps: int, start: int) -> np.ndarray:
        """Distribution of a uniformly chosen one of the states s_0..s_{steps-1} from s_0 = ``start``: (n,)."""
        state, total = np.eye(self.states)[start], np.zeros(self.states)
        for _ in range(steps):
            total += state / steps
            state = state @ self.kernel(actions)
        return total

    def towards(self, target: int, strength: float = 0.8) -> np.ndarray:
        """Actions (n,) that drive to a state from both sides and do nothing in it."""
        return strength * self.sign * np.sign(target - np.arange(self.states))

    def episodes(
        self,
        name: str,
        rng: np.random.Generator,
        behaviour: Behaviour,
        *,
        count: int,
        steps: int,
        start: int | None = None,
    ) -> list[Episode]:
        """Episodes of ``steps`` transitions from ``start``, or from uniform initial states."""
        state = rng.integers(self.states, size=count) if start is None else np.full(count, start)
        states, actions = [state], []
        for _ in range(steps):
            action = behaviour(state, rng)
            right = rng.random(count) < (1.0 + self.grip * self.sign[state] * action) / 2.0
            state = np.clip(state + np.where(right, 1, -1), 0, self.states - 1)
            states.append(state)
            actions.append(action)
        return record(name, np.eye(self.states)[np.stack(states, 1)], np.stack(actions, 1)[..., None])


class Corridor:
    """A point in the box [-0.5, 0.5] x [-1, 1] around a block |x| < 0.15, y < 0.4: two arms that meet at the top.

    An action within the unit disc moves the point by half as much, with normal noise of 0.02; longer actions are
    cut to length 1. What would lead into the block moves along it. Points are close across the block and far around it.
    Arrays of points have shape (..., 2).
    """

    half_width, block, top, speed, noise = 0.5, 0.15, 0.4, 0.5, 0.02
    left_end, right_end = np.array([-0.35, -0.8]), np.array([0.35, -0.8])

    def free(self, p: np.ndarray) -> np.ndarray:
        """Whether points are outside the block: (...)."""
        return (np.abs(p[..., 0]) >= self.block) | (p[..., 1] >= self.top)

    def points(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform points outside the block, (count, 2)."""
        p = rng.uniform(-1.0, 1.0, (4 * count, 2)) * (self.half_width, 1.0)
        return p[self.free(p)][:count]

    def visible(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Whether the straight line between two points outside the block misses the block: (...)."""
        hit = np.zeros(np.broadcast_shapes(p.shape, q.shape)[:-1], bool)
        for side in (-self.block, self.block):
            across = (p[..., 0] - side) * (q[..., 0] - side) < 0
            dx = np.where(across, q[..., 0] - p[..., 0], 1.0)
            hit |= across & (p[..., 1] + (side - p[..., 0]) / dx * (q[..., 1] - p[..., 1]) < self.top)
        return ~hit

    def geodesic(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Length of the shortest way between points outside the block: straight, or over one or both corners: (...)."""
        left, right = np.array([-self.block, self.top]), np.array([self.block, self.top])
        best = self._straight(p, q)
        for first, last in ((left, left), (right, right), (left, right), (right, left)):
            way = self._straight(p, first) + np.linalg.norm(first - last) + self._straight(last, q)
            best = np.minimum(best, way)
        return best

    def _straight(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.where(self.visible(p, q), np.linalg.norm(p - q, axis=-1), np.inf)

    def step(self, p: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The next points."""
        length = np.maximum(1.0, np.linalg.norm(actions, axis=-1, keepdims=True))
        move = self.speed * actions / length + self.noise * rng.normal(size=p.shape)
        q = np.clip(p + move, (-self.half_width, -1.0), (self.half_width, 1.0))
        vertical, horizontal = np.stack([p[..., 0], q[..., 1]], -1), np.stack([q[..., 0], p[..., 1]], -1)
        result = p
        for candidate in (horizontal, vertical, q):
            possible = self.free(candidate) & self.visible(p, candidate)
            result = np.where(possible[..., None], candidate, result)
        return result

    def heading(self, p: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Actions along the shortest way from points (E, 2) to ``target``, which keep off the corners: (E, 2)."""
        x, y = self.block + 0.1, self.top + 0.15
        best, aim = self._straight(p, target), np.broadcast_to(target, p.shape)
        for corner in (np.array([-x, y]), np.array([x, y])):
            way = self._straight(p, corner) + self.geodesic(corner, target)
            nearer = (way < best - 1e-9) & (np.linalg.norm(p - corner, axis=-1) > 0.05)
            best, aim = np.where(nearer, way, best), np.where(nearer[:, None], corner, aim)
        action = (aim - p) / self.speed
        return action / np.maximum(1.0, np.linalg.norm(action, axis=-1, keepdims=True))

    def wander(self, rng: np.random.Generator, count: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Full steps in slowly turning directions, in a new one after a hindrance: (E, T + 1, 2), (E, T, 2)."""
        p, angle = self.points(rng, count), rng.uniform(0.0, 2.0 * np.pi, count)
        points, actions = [p], []
        for _ in range(steps):
            angle = angle + 0.4 * rng.normal(size=count)
            action = np.stack([np.cos(angle), np.sin(angle)], -1)
            q = self.step(p, action, rng)
            hindered = np.linalg.norm(q - p, axis=-1) < 0.7 * self.speed
            angle = np.where(hindered, rng.uniform(0.0, 2.0 * np.pi, count), angle)
            p = q
            points.append(p)
            actions.append(action)
        return np.stack(points, 1), np.stack(actions, 1)

    def travel(
        self, rng: np.random.Generator, start: np.ndarray, target: np.ndarray, steps: int, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """From points (E, 2) to targets (2,) or (E, 2), to stay there: (E, T + 1, 2), (E, T, 2).

        ``noise``, a number or (E, 1), is the deviation of what is added to both components of an action.
        """
        p = start
        points, actions = [p], []
        for _ in range(steps):
            action = self.heading(p, target) + noise * rng.normal(size=p.shape)
            action = action / np.maximum(1.0, np.linalg.norm(action, axis=-1, keepdims=True))
            p = self.step(p, action, rng)
            points.append(p)
            actions.append(action)
        return np.stack(points, 1), np.stack(actions, 1)
