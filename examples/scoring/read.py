"""What LeRobot, Minari, d3rlpy and robomimic find in the datasets that `dynarep score` wrote. Needs these packages."""

import h5py
import numpy as np


def lerobot():
    """The filtered dataset by LeRobot's reader, the progress by its sample weighting."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    try:
        from lerobot.rewards.sarm.rabc import RABCWeights  # 0.6
    except ImportError:
        from lerobot.utils.rabc import RABCWeights  # 0.4

    dataset = LeRobotDataset("me/arm", root="written/arm")
    first, last = dataset[0], dataset[len(dataset) - 1]
    print(
        f"LeRobot: {dataset.num_episodes} episodes, {dataset.num_frames} frames, last of episode {int(last['episode_index'])}"
    )
    print(f"  image {tuple(first['observation.images.top'].shape)}, task {first['task']!r}")
    weights = RABCWeights("scores/arm/sarm_progress.parquet", chunk_size=10, device=torch.device("cpu"))
    episodes = weights.df["episode_index"].to_numpy()
    rows = [weights.compute_batch_weights({"index": np.flatnonzero(episodes == n)})[1] for n in range(24)]
    key = "mean_weight" if "mean_weight" in rows[0] else "raw_mean_weight"
    for kind, name in enumerate(("clean", "waits", "stops halfway", "wanders")):
        print(f"  RA-BC weight of {name}: {np.mean([row[key] for row in rows[kind::4]]):.2f}")


def minari():
    """The dataset by Minari's loader."""
    import minari

    dataset = minari.load_dataset("arm/fetch-kept-v0")
    returns = [episode.rewards.sum() for episode in dataset.iterate_episodes()]
    spread = f"returns {min(returns):.1f} to {max(returns):.1f}"
    print(f"Minari: {dataset.total_episodes} episodes, {dataset.total_steps} steps, {spread}")


def d3rlpy():
    """The HDF5 file as d3rlpy's dataset."""
    import d3rlpy

    with h5py.File("written/arm-d4rl.hdf5") as file:
        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        dataset = d3rlpy.dataset.MDPDataset(**{name: file[name][()].astype(np.float32) for name in names})
    returns = [episode.compute_return() for episode in dataset.episodes]
    print(f"d3rlpy: {len(dataset.episodes)} episodes, returns {min(returns):.1f} to {max(returns):.1f}")


def robomimic():
    """The copy with its filter key by robomimic's dataset."""
    import robomimic.utils.obs_utils as utils
    from robomimic.utils.dataset import SequenceDataset

    utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["position", "gripper"], "rgb": []}})
    dataset = SequenceDataset(
        "written/arm.hdf5",
        obs_keys=("position", "gripper"),
        dataset_keys=("actions", "rewards", "dones"),
        filter_by_attribute="dynarep",
        hdf5_cache_mode=None,
    )
    print(
        f"robomimic: {dataset.n_demos} demonstrations, {len(dataset)} steps, first reward {dataset[0]['rewards'][0]:.2f}"
    )


if __name__ == "__main__":
    for check in (lerobot, minari, d3rlpy, robomimic):
        try:
            check()
        except ImportError as error:
            print(f"{check.__name__}: not tried, {error}")
