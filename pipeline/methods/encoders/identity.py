"""Raw states as a representation, so that they stand beside learned ones on the same terms."""

from __future__ import annotations

from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.method import EncoderMethod, World
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import Normaliser


@config
class IdentityConfig:
    """Nothing to choose."""


@config
class StatesArchitecture:
    """Architecture of ``States``."""

    replicas: int
    observation_dim: int


class States(Encoder):
    """Observations as they are."""

    kind = "identity"
    Architecture = StatesArchitecture
    spaces = ("states",)
    architecture: StatesArchitecture

    def __init__(self, architecture: StatesArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.normaliser = Normaliser.identity(architecture.observation_dim)

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """The observations, (1, B, obs_dim): all replicas are one."""
        return observations

    def forward(self, observation: Tensor) -> Tensor:
        """The observation, (B, obs_dim)."""
        return self.embed(observation[None])[0]

    def latent_dim(self) -> int:
        """Numbers in an observation."""
        return self.architecture.observation_dim


class Identity(EncoderMethod):
    """Makes ``States``; nothing is learned."""

    kind = "identity"
    Config = IdentityConfig
    trains = False

    def __init__(self, world: World) -> None:
        super().__init__()
        self.model = States(StatesArchitecture(replicas=1, observation_dim=world.observation_dim))

    @classmethod
    def build(cls, c: IdentityConfig, world: World) -> Identity:
        """For the observations of a world."""
        return cls(world)

    def export(self) -> States:
        """The observations."""
        return self.model
