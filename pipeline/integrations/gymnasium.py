"""Environments whose observations are latents of an encoder of states, and policies that act in environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from dynarep.pipeline.artifacts.pretrained import (
    PretrainedEncoder,
    PretrainedIntent,
    PretrainedModel,
    PretrainedPolicy,
)
from dynarep.pipeline.artifacts.storage import ArtifactError

TOLERANCE = 1e-6
"""By how much actions may pass the bounds of an environment, as float32 does."""


class EncodeObservation(
    gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[Any]],
    gym.utils.RecordConstructorArgs,
):
    """psi(s) in place of s: observations (latent_dim,) float32.

    Args:
        env: its observations are vectors of the size that the encoder reads.
        encoder: of states.

    Raises:
        ArtifactError: if the encoder reads actions, or does not fit the environment's observations.
    """

    def __init__(self, env: gym.Env[NDArray[Any], Any], encoder: PretrainedEncoder) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, encoder=encoder)
        super().__init__(env)
        self.encoder = intent_for(encoder, env.observation_space)
        self.observation_space = Box(-np.inf, np.inf, (self.encoder.latent_dim,), np.float32)

    def observation(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """Psi of one observation."""
        return self.encoder(observation).astype(np.float32, copy=False)  # type: ignore[no-any-return]


def intent_for(encoder: PretrainedEncoder, space: Space[Any]) -> PretrainedIntent:
    """The encoder, if it is one of states and reads observations of ``space``.

    Raises:
        ArtifactError: if not.
    """
    if not isinstance(encoder, PretrainedIntent):
        raise ArtifactError(
            f"{encoder.source}: found {type(encoder).__name__}, expected PretrainedIntent, which reads states"
        )
    encoder.check("the environment", _vector(encoder, space), 0)
    return encoder


def check_policy(policy: PretrainedPolicy, env: gym.Env[Any, Any]) -> None:
    """See that a policy fits an environment: sizes of observations and actions, and bounds of actions.

    Args:
        policy: to act.
        env: to act in.

    Raises:
        ArtifactError: if it does not, with what was found and what was expected.
    """
    observations, actions = env.observation_space, env.action_space
    if not isinstance(actions, Box) or len(actions.shape) != 1:
        raise ArtifactError(f"{policy.source}: found the action space {actions}, expected a Box of one axis")
    policy.check("the environment", _vector(policy, observations), actions.shape[0])
    low, high = np.array(policy.spec.action_low), np.array(policy.spec.action_high)
    if (low < actions.low - TOLERANCE).any() or (high > actions.high + TOLERANCE).any():
        raise ArtifactError(
            f"{policy.source}: found the action space {actions}, expected one that holds the policy's actions, "
            f"{low.tolist()} to {high.tolist()}"
        )


def _vector(model: PretrainedModel[Any], space: Space[Any]) -> int:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ArtifactError(
            f"{model.source}: found the observation space {space}, expected a Box of one axis; "
            "gymnasium.wrappers.FlattenObservation makes one"
        )
    return int(space.shape[0])
