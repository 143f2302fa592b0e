"""Stands for your own recordings: two .npz archives of flat arrays, as docs/data-format.md describes them."""

from pathlib import Path

import gymnasium
import numpy as np
import room

STEPS = 60
COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def wander(count: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Episodes from anywhere, in slowly turning directions, without a goal; terminal only by chance."""
    points = rng.uniform(-room.WALLS, room.WALLS, (4 * count, 2))
    points = points[room.free(points, points)][:count]
    angle = rng.uniform(0, 2 * np.pi, count)
    rows = []
    for _ in range(STEPS):
        angle = angle + 0.4 * rng.normal(size=count)
        actions = np.stack([np.cos(angle), np.sin(angle)], -1)
        after = room.step(points, actions, rng)
        angle = np.where(
            np.linalg.norm(after - points, axis=-1) < 0.6 * room.SPEED, rng.uniform(0, 2 * np.pi, count), angle
        )
        rows.append((points, actions, after))
        points = after
    observations, actions, after = (np.stack(column, 1) for column in zip(*rows, strict=True))
    last = np.arange(STEPS) == STEPS - 1
    fixed = {"rewards": np.full(STEPS, -1.0), "terminals": np.zeros(STEPS), "timeouts": last}
    return [
        {"observations": o, "actions": a, "next_observations": n, **fixed}
        for o, a, n in zip(observations, actions, after, strict=True)
    ]


def solve(count: int) -> list[dict[str, np.ndarray]]:
    """Episodes over the wall to the goal."""
    env, episodes = gymnasium.make("room:PointRoom-v0"), []
    for seed in range(count):
        observation, _ = env.reset(seed=seed)
        rows, over, ended = [], False, False
        while not ended:
            over = over or observation[0] > 0.2
            target = room.GOAL if over else np.array([0.3, 0.6]) if observation[1] > 0.45 else np.array([-0.3, 0.6])
            action = (target - observation) / room.SPEED
            action = (action / max(1.0, np.abs(action).max())).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated, following))
            observation, ended = following, terminated or truncated
        episodes.append({name: np.array(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)})
    return episodes


def main() -> None:
    """Write recordings/arbitrary.npz and recordings/expert.npz."""
    Path("recordings").mkdir(exist_ok=True)
    for name, episodes in (("arbitrary", wander(300, np.random.default_rng(0))), ("expert", solve(1))):
        arrays = {column: np.concatenate([episode[column] for episode in episodes]) for column in COLUMNS}
        np.savez(f"recordings/{name}.npz", **arrays)
        print(f"recordings/{name}.npz: {len(episodes)} episodes, {len(arrays['rewards']):,} steps")


if __name__ == "__main__":
    main()
