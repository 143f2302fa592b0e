"""Rewards from the nearest expert state of the part of the demonstration that is due at the time.

The Segment-Matching Reward of Dong, Omori, Ross, "Is Optimal Transport Necessary for Inverse Reinforcement Learning?", 2025,
arXiv 2506.06793.

| paper | here |
|---|---|
| the nearest one among the expert states of the corresponding segment | ``segment_bounds``, ``search.nearest_steps`` |

Open: the abstract matches a state with the corresponding segment of the expert's trajectory. How many segments there are,
where they end and which function of the distance is taken is not known from it, so those are our own. Here both episodes are
cut into ``segments`` parts of equal duration, as fractions of each episode's own length; an expert step that two parts share
belongs to both, so no part is empty. One segment is ``nearest``; as many as there are steps compare steps of the same time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.search import Search, SearchConfig


@config
class SegmentConfig(SearchConfig):
    """Hyper-parameters of the reward from the nearest expert state of the corresponding segment."""

    segments: int = Field(default=10, ge=1)
    """Parts of equal duration into which both episodes are cut."""


def segment_bounds(agent_lengths: Tensor, expert_lengths: Tensor, size: int, segments: int) -> tuple[Tensor, Tensor]:
    """The expert's steps that correspond to each of the agent's.

    Step i of Ta is in part p = floor(i K / Ta) of K; the expert's steps whose time overlaps with its part p are
    floor(p Te / K) to ceil((p + 1) Te / K) - 1.

    Args:
        agent_lengths: Ta, (B,) int64.
        expert_lengths: Te, (B,) int64.
        size: n, steps of the agent with padding, which gets the last part.
        segments: K.

    Returns:
        The first of these steps and the one after the last: two (B, size) int64, 0 <= first < end <= Te.
    """
    steps = torch.arange(size, device=agent_lengths.device).minimum(agent_lengths.unsqueeze(1) - 1)
    part = steps * segments // agent_lengths.unsqueeze(1)
    length = expert_lengths.unsqueeze(1)
    return part * length // segments, -(-(part + 1) * length // segments)


class Segment(Search):
    """Rewards from the nearest expert state of the corresponding segment."""

    kind = "segment"
    Config = SegmentConfig

    def bounds(self, agent_lengths: Tensor, expert_lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The steps of the corresponding segment."""
        return segment_bounds(agent_lengths, expert_lengths, size, self.config.segments)
