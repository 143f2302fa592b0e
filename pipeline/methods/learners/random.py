"""Uniform random actions: the baseline of every table, an entry like any other."""

from __future__ import annotations

from dynarep.configs.params import config
from dynarep.pipeline.method import Learner, Needs, World
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture


@config
class RandomConfig:
    """Nothing to choose."""


class Random(Learner):
    """Makes ``Uniform``; nothing is learned."""

    kind = "random"
    Config = RandomConfig
    trains = False

    def __init__(self, world: World) -> None:
        super().__init__()
        self.model = Uniform(
            UniformArchitecture(
                replicas=1,
                observation_dim=world.observation_dim,
                action_low=world.action_low,
                action_high=world.action_high,
            )
        )

    @classmethod
    def needs(cls, c: RandomConfig) -> Needs:
        """Actions, for their bounds."""
        return Needs(actions=("dataset",))

    @classmethod
    def build(cls, c: RandomConfig, world: World) -> Random:
        """Within the bounds of a world."""
        return cls(world)

    @classmethod
    def saw(cls, c: RandomConfig, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Nothing."""
        return {"expert": "nothing", "other": "nothing"}

    def export(self) -> Uniform:
        """The policy."""
        return self.model
