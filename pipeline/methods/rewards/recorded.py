"""The reward that the dataset was recorded with, as a label like any other."""

from __future__ import annotations

from collections.abc import Sequence

from dynarep.configs.params import config
from dynarep.data.schema import Episode
from dynarep.pipeline.labelling import Judgement, Labelled, Reward


@config
class RecordedConfig:
    """Nothing to choose."""


class Recorded(Reward):
    """The dataset's own rewards, the same for all replicas."""

    kind = "recorded"
    Config = RecordedConfig

    @classmethod
    def build(cls, c: RecordedConfig, world: Judgement) -> Recorded:  # type: ignore[override]
        """For a dataset that has rewards."""
        if not world.dataset.spec.has_rewards:
            raise ValueError(f"dataset {world.dataset.name} has no rewards of its own")
        return cls()

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (1, T) per episode id."""
        return {e.id: e.rewards[None] for e in episodes if e.rewards is not None}, {}
