"""A Gaussian policy squashed by tanh, on observations standardised by what it has seen: what soft actor-critic makes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dynarep.configs.params import config
from dynarep.pipeline.nn.models import ActingModel
from dynarep.pipeline.nn.networks import MLP, ActionScale, RunningNormaliser

LOG_STD = (-5.0, 2.0)
"""Range of the logarithm of the deviation before tanh."""


@config
class SquashedGaussianArchitecture:
    """Architecture of ``SquashedGaussian``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]


def squashed_log_prob(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Log density of a = tanh(u), u = mean + exp(log_std) noise, summed over the action: (R, B, act_dim) -> (R, B).

    log N(u) - sum log(1 - tanh(u)^2), with log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)).
    """
    u = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return (normal - 2.0 * (math.log(2.0) - u - nn.functional.softplus(-2.0 * u))).sum(-1)


class SquashedGaussian(ActingModel):
    """tanh of a Gaussian, scaled to the action bounds; it acts by tanh of the mean, and samples while it learns."""

    kind = "squashed_gaussian"
    Architecture = SquashedGaussianArchitecture
    architecture: SquashedGaussianArchitecture
    shared = ("low", "high")
    normaliser: RunningNormaliser

    def __init__(self, architecture: SquashedGaussianArchitecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.normaliser = RunningNormaliser(a.replicas, a.observation_dim)
        sizes = a.observation_dim, *a.hidden, 2 * len(a.action_low)
        self.network = MLP(
            (a.replicas,), sizes, hidden_activation="silu", normed=True, hidden_gain=1.0, final_gain=1e-3
        )
        self.scale = ActionScale(a.action_low, a.action_high)
        self.register_buffer("low", self.scale.low.clone())
        self.register_buffer("high", self.scale.high.clone())

    def distribution(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before tanh of (R or 1, B, obs_dim): two of (R, B, act_dim)."""
        mean, log_std = self.network(self.normaliser(observations)).chunk(2, -1)
        low, high = LOG_STD
        return mean, low + 0.5 * (high - low) * (1.0 + torch.tanh(log_std))

    def sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] from standard normal ``noise`` (R, B, act_dim), and their log density (R, B)."""
        mean, log_std = self.distribution(observations)
        return torch.tanh(mean + log_std.exp() * noise), squashed_log_prob(mean, log_std, noise)

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.scale.inverse(torch.tanh(self.distribution(observations)[0]))
