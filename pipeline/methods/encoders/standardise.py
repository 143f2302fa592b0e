"""Standardised states as a representation: each number of an observation with mean 0 and deviation 1 over a dataset."""

from __future__ import annotations

from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.method import EncoderMethod, World
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import Normaliser


@config
class StandardiseConfig:
    """Nothing to choose."""


@config
class StandardisedArchitecture:
    """Architecture of ``StandardisedStates``."""

    replicas: int
    observation_dim: int


class StandardisedStates(Encoder):
    """Observations less their mean, divided by their deviation."""

    kind = "standardise"
    Architecture = StandardisedArchitecture
    spaces = ("states",)
    architecture: StandardisedArchitecture

    def __init__(self, architecture: StandardisedArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.normaliser = Normaliser.identity(architecture.observation_dim)

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """Standardised observations, (1, B, obs_dim): all replicas are one."""
        return self.normaliser(observations)  # type: ignore[no-any-return]

    def forward(self, observation: Tensor) -> Tensor:
        """The standardised observation, (B, obs_dim)."""
        return self.embed(observation[None])[0]

    def latent_dim(self) -> int:
        """Numbers in an observation."""
        return self.architecture.observation_dim


class Standardise(EncoderMethod):
    """Makes ``StandardisedStates`` of the moments of a dataset."""

    kind = "standardise"
    Config = StandardiseConfig
    trains = False

    def __init__(self, world: World) -> None:
        super().__init__()
        self.model = StandardisedStates(StandardisedArchitecture(replicas=1, observation_dim=world.observation_dim))
        self.model.normaliser = Normaliser(world.mean, world.std)

    @classmethod
    def build(cls, c: StandardiseConfig, world: World) -> Standardise:
        """With the moments of a world."""
        return cls(world)

    def export(self) -> StandardisedStates:
        """The standardised observations."""
        return self.model
