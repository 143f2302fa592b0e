"""Policies of Stable-Baselines3 that read latents of an encoder of states; needs ``dynarep[sb3]``."""

from __future__ import annotations

from typing import Any

from gymnasium.spaces import Space
from torch import Tensor

try:
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ImportError:
    raise ImportError(
        "dynarep.pipeline.integrations.stable_baselines3 needs stable_baselines3: pip install 'dynarep[sb3]'"
    ) from None

from dynarep.pipeline.artifacts.pretrained import load_encoder
from dynarep.pipeline.integrations.gymnasium import intent_for


class EncoderExtractor(BaseFeaturesExtractor):
    """Points of states as features.

    Give it to an algorithm as ``policy_kwargs={"features_extractor_class": EncoderExtractor, "features_extractor_kwargs": ...}``.
    Do not normalise observations in the environment: the encoder reads them raw.

    Args:
        observation_space: of the environment; a Box of the encoder's observations.
        encoder: where the encoder is, as ``load_encoder`` takes it. A saved policy keeps this name and its weights.
        trainable: train psi with the policy.
        replica: which of the artifact's replicas.

    Raises:
        ArtifactError: if the encoder cannot be loaded, reads actions, or does not fit the observations.
    """

    def __init__(
        self, observation_space: Space[Any], encoder: str, *, trainable: bool = False, replica: int = 0
    ) -> None:
        loaded = intent_for(load_encoder(encoder, replica=replica, trainable=trainable), observation_space)
        super().__init__(observation_space, features_dim=loaded.latent_dim)
        self.encoder = loaded

    def forward(self, observations: Tensor) -> Tensor:
        """psi: (B, observation_dim) -> (B, latent_dim)."""
        return self.encoder(observations)  # type: ignore[no-any-return]
