"""An arm that fetches something, recorded by LeRobot, Minari and in robomimic's layout; half of the demonstrations are poor.

Needs lerobot, minari and h5py. Writes `recorded/`, and for Minari the dataset `arm/fetch-v0`.
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np

WAY = np.array(
    [[0, 0, 1, 0], [0.6, 0.1, 0.6, 0], [0.6, 0.6, 0.1, 0], [0.6, 0.6, 0.1, 1], [0, 0.5, 0.8, 1], [-0.5, 0.5, 0.2, 1]]
)
"""Position and gripper: over it, down to it, grip it, lift it, away with it."""
KINDS = ("clean", "waits", "stops halfway", "wanders")


def follow(points, rng):
    """States along straight lines between points, with the noise of a sensor."""
    states = [points[0]]
    for here, there in zip(points[:-1], points[1:], strict=True):
        steps = int(np.ceil(np.abs(there - here).max() / 0.05))
        states += [here + (there - here) * i / steps for i in range(1, steps + 1)]
    return np.array(states) + rng.normal(0, 0.003, (len(states), 4))


def episode(kind, rng):
    """States of one demonstration."""
    if kind == "wanders":
        return follow(np.concatenate([WAY[:1], rng.uniform(-1, 1, (5, 4)) * [1, 1, 1, 0]]), rng)
    states = follow(WAY + np.concatenate([rng.normal(0, 0.05, (len(WAY), 3)), np.zeros((len(WAY), 1))], 1), rng)
    if kind == "stops halfway":
        return states[: len(states) // 2]
    if kind == "waits":
        at = int(rng.integers(10, len(states) - 10))
        return np.concatenate([states[:at], states[at] + rng.normal(0, 0.003, (40, 4)), states[at:]])
    return states


def write_lerobot(path, episodes):
    """By LeRobot itself."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    feature = {"dtype": "float32", "shape": (4,), "names": None}
    image = {"dtype": "image", "shape": (16, 16, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": feature, "action": feature, "observation.images.top": image}
    dataset = LeRobotDataset.create("me/arm", fps=10, root=path, features=features, use_videos=False)
    for states in episodes:
        for here, there in zip(states, np.concatenate([states[1:], states[-1:]]), strict=True):
            picture = np.full((16, 16, 3), 255 * here[3] * 0.5, np.uint8)
            frame = {"observation.state": here, "action": there - here, "observation.images.top": picture}
            dataset.add_frame({**frame, "task": "fetch"})
        dataset.save_episode()
    dataset.finalize()


def write_minari(episodes):
    """By Minari itself."""
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for states in episodes:
        steps = len(states) - 1
        ends = {"terminations": [False] * steps, "truncations": [i == steps - 1 for i in range(steps)]}
        actions = np.diff(states, axis=0)
        buffers.append(EpisodeBuffer(observations=states, actions=actions, rewards=[0.0] * steps, **ends))
    space, action = Box(-np.inf, np.inf, (4,), np.float32), Box(-1, 1, (4,), np.float32)
    minari.create_dataset_from_buffers("arm/fetch-v0", buffers, observation_space=space, action_space=action)


def write_robomimic(path, episodes):
    """In its layout: position and gripper apart."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Arm", "type": 2, "env_kwargs": {}})
        for number, states in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(states) - 1
            for group, rows in {"obs": states[:-1], "next_obs": states[1:]}.items():
                demo[f"{group}/position"], demo[f"{group}/gripper"] = rows[:, :3], rows[:, 3:]
            demo["actions"] = np.diff(states, axis=0)
            demo["rewards"] = np.zeros(len(states) - 1)
            demo["dones"] = (np.arange(len(states) - 1) == len(states) - 2).astype(int)
        data.attrs["total"] = sum(len(states) - 1 for states in episodes)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    episodes = [episode(KINDS[i % 4], rng).astype(np.float32) for i in range(24)]
    shutil.rmtree("recorded", ignore_errors=True)
    Path("recorded").mkdir()
    write_robomimic(Path("recorded/arm.hdf5"), episodes)
    write_lerobot(Path("recorded/arm"), episodes)
    write_minari(episodes)
    print(f"{len(episodes)} demonstrations of {', '.join(KINDS)}, in turn")
