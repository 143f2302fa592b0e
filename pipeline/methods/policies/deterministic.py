"""A deterministic policy on standardised observations, which all learners here ship."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynarep.configs.params import config
from dynarep.pipeline.nn.models import ActingModel
from dynarep.pipeline.nn.networks import MLP, Normaliser


@config
class PolicyArchitecture:
    """Architecture of ``Policy``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]
    absorbing: bool = False


class Policy(ActingModel):
    """A deterministic policy: tanh of a perceptron, scaled to the action bounds."""

    kind = "deterministic"
    Architecture = PolicyArchitecture
    architecture: PolicyArchitecture

    def __init__(self, architecture: PolicyArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        inputs = a.observation_dim + a.absorbing
        self.normaliser = Normaliser.identity(inputs)
        self.network = MLP((a.replicas,), (inputs, *a.hidden, len(a.action_low)), final_gain=0.01)
        self.register_buffer("low", torch.tensor(a.action_low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(a.action_high, dtype=torch.float32))

    def mean(self, observations: Tensor) -> Tensor:
        """Network output before tanh: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        if self.architecture.absorbing and observations.shape[-1] == self.architecture.observation_dim:
            observations = nn.functional.pad(observations, (0, 1))
        return self.network(self.normaliser(observations))  # type: ignore[no-any-return]

    def rescale(self, unit_actions: Tensor) -> Tensor:
        """Map actions from [-1, 1] to the bounds."""
        return self.low + (unit_actions + 1.0) * 0.5 * (self.high - self.low)

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.rescale(torch.tanh(self.mean(observations)))
