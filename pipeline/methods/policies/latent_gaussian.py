"""A tanh-Gaussian policy of the latents of a world model, on observations standardised by what it has seen."""

from __future__ import annotations

from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.nn.models import ActingModel
from dynarep.pipeline.nn.networks import ActionScale, RunningNormaliser
from dynarep.pipeline.nn.world_model import PolicyPrior, latent_network


@config
class LatentGaussianArchitecture:
    """Architecture of ``LatentGaussian``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]
    latent_dim: int
    policy_hidden: tuple[int, ...]


class LatentGaussian(ActingModel):
    """z = h(s), and tanh of a Gaussian of z, scaled to the action bounds; it acts by tanh of the mean."""

    kind = "latent_gaussian"
    Architecture = LatentGaussianArchitecture
    architecture: LatentGaussianArchitecture
    shared = ("low", "high")
    normaliser: RunningNormaliser

    def __init__(self, architecture: LatentGaussianArchitecture) -> None:
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

    def sample(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions within the bounds, from standard normal ``noise`` (R, B, act_dim): (R, B, act_dim)."""
        return self.scale.inverse(self.prior(self.latents(observations), noise)[0])

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.scale.inverse(self.prior.mode(self.latents(observations)))
