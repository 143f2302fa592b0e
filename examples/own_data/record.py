"""Stands for your own recordings: two .npz archives of flat arrays, as docs/data-format.md describes them."""

from pathlib import Path

import gymnasium
import numpy as np
import room

COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def heading(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Actions (N, 2) that lead from points to targets, over the wall where it is between them."""
    side, beyond = np.where(points[:, 0] < 0, -0.3, 0.3), points[:, 0] * targets[:, 0] < 0
    over = np.where(points[:, 1] < 0.5, side, -side)
    aim = np.where(beyond[:, None], np.stack([over, np.full(len(points), 0.6)], -1), targets)
    actions = (aim - points) / room.SPEED
    return actions / np.maximum(1.0, np.abs(actions).max(-1, keepdims=True))


def travel(count: int, steps: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Episodes that go from one corner to another, more or less straight, and stay there; ended by the clock alone."""
    corners = np.array([[-0.4, -0.8], [-0.4, 0.8], [0.4, 0.8], [0.4, -0.8]])
    first = rng.integers(4, size=count)
    last = (first + rng.integers(1, 4, size=count)) % 4
    points, targets = (corners[chosen] + rng.uniform(-0.1, 0.1, (count, 2)) for chosen in (first, last))
    noise, rows = rng.uniform(0, 0.5, (count, 1)), []
    for t in range(steps):
        actions = np.clip(heading(points, targets) + noise * rng.normal(size=points.shape), -1, 1)
        after = room.step(points, actions, rng)
        ends = np.full((2, count), [[False], [t == steps - 1]])
        rows.append((points, actions, room.at_goal(after) - 1.0, *ends, after))
        points = after
    columns = {name: np.stack(column, 1) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def solve(count: int) -> list[dict[str, np.ndarray]]:
    """Episodes of the task."""
    env, episodes = gymnasium.make("room:PointRoom-v0"), []
    for seed in range(count):
        observation, _ = env.reset(seed=seed)
        rows, ended = [], False
        while not ended:
            action = heading(observation[None], room.GOAL[None])[0].astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated, following))
            observation, ended = following, terminated or truncated
        episodes.append({name: np.array(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)})
    return episodes


def main() -> None:
    """Write recordings/arbitrary.npz and recordings/expert.npz."""
    Path("recordings").mkdir(exist_ok=True)
    for name, episodes in (("arbitrary", travel(300, 40, np.random.default_rng(0))), ("expert", solve(1))):
        arrays = {column: np.concatenate([episode[column] for episode in episodes]) for column in COLUMNS}
        np.savez(f"recordings/{name}.npz", **arrays)
        print(f"recordings/{name}.npz: {len(episodes)} episodes, {len(arrays['rewards']):,} steps")


if __name__ == "__main__":
    main()
