"""Cloning of the best episodes: behaviour cloning of those of highest return under some rewards.

Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", NeurIPS 2021, arXiv 2106.01345 (%BC).

| paper | here |
|---|---|
| %BC: the episodes of highest return with X % of the timesteps | ``cloning.best_episodes`` |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.resident import Batch
from dynarep.data.sampling import uniform_of
from dynarep.pipeline.cloning import Cloning, CloningConfig, best_rows
from dynarep.pipeline.method import Needs, Sources

FEW_EPISODES = 5
"""Fewer chosen episodes than these say little about what a label ranks highest."""


@config
class TopBCConfig(CloningConfig):
    """Hyper-parameters of cloning the best episodes."""

    top: float = Field(default=0.1, gt=0, le=1)
    """Share of all transitions that the chosen episodes hold."""


class TopBC(Cloning):
    """Clones the episodes of highest return."""

    kind = "top_bc"
    Config = TopBCConfig

    @classmethod
    def needs(cls, c: TopBCConfig) -> Needs:
        """Rewards to rank by, and actions to clone."""
        return Needs(actions=("dataset",), optional_encoder=True, rewards=True)

    def prepare(self, sources: Sources) -> None:
        """Choose the episodes of each replica."""
        lengths = sources.table("dataset").lengths.tolist()
        self.chosen: list[Tensor] = best_rows(sources.rewards, lengths, self.config.top)
        ends = torch.tensor(lengths).cumsum(0)
        self.episodes = [len(set(torch.searchsorted(ends, rows.cpu(), right=True).tolist())) for rows in self.chosen]

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Uniform transitions of the chosen episodes."""
        return sources.table("dataset").gather(uniform_of(self.chosen, sources.batch_size, generator))

    def facts(self) -> dict[str, Any]:
        """How many transitions and episodes each replica chose."""
        few = min(self.episodes) < FEW_EPISODES
        warning = {"warning": f"top: {self.config.top} is {min(self.episodes)} episodes, fewer than {FEW_EPISODES}"}
        return {
            "chosen_transitions": [len(rows) for rows in self.chosen],
            "chosen_episodes": self.episodes,
            **(warning if few else {}),
        }
