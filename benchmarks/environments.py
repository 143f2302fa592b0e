"""A Hopper that does not end when it falls, so that every episode of a measurement has the same length."""

import gymnasium

gymnasium.register(
    "EndlessHopper-v0",
    entry_point="gymnasium.envs.mujoco.hopper_v4:HopperEnv",
    kwargs={"terminate_when_unhealthy": False},
    max_episode_steps=1_000_000,
)
