"""Uniform random actions, the policy that every other one is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.nn.models import ActingModel
from dynarep.pipeline.nn.networks import Normaliser


@config
class UniformArchitecture:
    """Architecture of ``Uniform``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]


class Uniform(ActingModel):
    """Uniform actions within the bounds; every block of episodes draws from a stream of its own."""

    kind = "uniform"
    Architecture = UniformArchitecture
    architecture: UniformArchitecture

    def __init__(self, architecture: UniformArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.normaliser = Normaliser.identity(architecture.observation_dim)
        self.register_buffer("low", torch.tensor(architecture.action_low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(architecture.action_high, dtype=torch.float32))
        self.reset((0,))

    def reset(self, seed: tuple[int, ...]) -> None:
        """Begin a stream."""
        self.generator = np.random.default_rng(seed)

    def act(self, observations: Tensor) -> Tensor:
        """Draw (R, B, act_dim) actions for (R or 1, B, obs_dim) observations."""
        shape = (self.replicas, observations.shape[1], len(self.low))
        return torch.from_numpy(self.generator.uniform(self.low.numpy(), self.high.numpy(), shape))
