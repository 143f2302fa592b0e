"""Environments whose observations are latents of an intent encoder."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from dynarep.pipeline.artifacts.storage import ArtifactError
from dynarep.pipeline.artifacts.pretrained import PretrainedEncoder, PretrainedIntent


class EncodeObservation(
    gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[Any]],
    gym.utils.RecordConstructorArgs,
):
    """psi(s) in place of s: observations (latent_dim,) float32.

    Args:
        env: its observations are vectors of the size that the encoder reads.
        encoder: of intents.

    Raises:
        ArtifactError: if the encoder is not one of intents, or does not fit the environment's observations.
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
    """The encoder, if it is one of intents and reads observations of ``space``.

    Raises:
        ArtifactError: if not.
    """
    if not isinstance(encoder, PretrainedIntent):
        raise ArtifactError(
            f"{encoder.source}: found {type(encoder).__name__}, expected PretrainedIntent, which reads states"
        )
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ArtifactError(
            f"{encoder.source}: found the observation space {space}, expected a Box of one axis; "
            "gymnasium.wrappers.FlattenObservation makes one"
        )
    encoder.check("the environment", space.shape[0], 0)
    return encoder
