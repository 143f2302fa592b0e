"""What policies of the latents of a world model share: an encoder, a policy prior, and the statistics of what was seen."""

from __future__ import annotations

from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.nn.models import ActingModel
from dynarep.pipeline.nn.networks import ActionScale, RunningNormaliser
from dynarep.pipeline.nn.world_model import PolicyPrior, latent_network


@config
class LatentPolicyArchitecture:
    """Architecture of a ``LatentPolicy``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]
    latent_dim: int
    policy_hidden: tuple[int, ...]


class LatentPolicy(ActingModel):
    """z = h(s), and tanh of a Gaussian of z, scaled to the action bounds; it acts by tanh of the mean.

    Args:
        architecture: sizes and bounds.
    """

    shared = ("low", "high")
    architecture: LatentPolicyArchitecture
    normaliser: RunningNormaliser

    def __init__(self, architecture: LatentPolicyArchitecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.normaliser = RunningNormaliser(a.replicas, a.observation_dim)
        self.encoder = latent_network((a.replicas,), (a.observation_dim, *a.hidden, a.latent_dim))
        self.prior = PolicyPrior(a.replicas, a.latent_dim, len(a.action_low), a.policy_hidden)
        self.scale = ActionScale(a.action_low, a.action_high)
        self.register_buffer("low", self.scale.low.clone())
        self.register_buffer("high", self.scale.high.clone())

    def latents(self, observations: Tensor) -> Tensor:
        """h(s) of (R or 1, B, obs_dim): (R, B, latent_dim)."""
        return self.encoder(self.normaliser(observations))  # type: ignore[no-any-return]

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions to try within the bounds, from standard normal ``noise`` (R, B, act_dim): (R, B, act_dim)."""
        return self.scale.inverse(self.prior(self.latents(observations), noise)[0])

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.scale.inverse(self.prior.mode(self.latents(observations)))
