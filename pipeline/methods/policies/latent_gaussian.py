"""A tanh-Gaussian policy of the latents of a world model, on observations standardised by what it has seen."""

from __future__ import annotations

from dynarep.configs.params import config
from dynarep.pipeline.nn.latent_policy import LatentPolicy, LatentPolicyArchitecture


@config
class LatentGaussianArchitecture(LatentPolicyArchitecture):
    """Architecture of ``LatentGaussian``."""


class LatentGaussian(LatentPolicy):
    """A policy of latents that does not plan."""

    kind = "latent_gaussian"
    Architecture = LatentGaussianArchitecture
