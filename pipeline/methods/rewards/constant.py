"""One for every step, so that the return of an episode is its length: the control that every label is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynarep.configs.params import config
from dynarep.data.schema import Episode
from dynarep.pipeline.labelling import Judgement, Labelled, Reward


@config
class ConstantConfig:
    """Nothing to choose."""


class Constant(Reward):
    """The same reward everywhere."""

    kind = "constant"
    Config = ConstantConfig

    @classmethod
    def build(cls, c: ConstantConfig, world: Judgement) -> Constant:  # type: ignore[override]
        """For any dataset."""
        return cls()

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (1, T) per episode id."""
        return {e.id: np.ones((1, e.length), np.float32) for e in episodes}, {}
