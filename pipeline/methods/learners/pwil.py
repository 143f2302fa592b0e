"""PWIL: imitation while acting by a greedy transport of each episode, step by step, to the demonstrations.

Dadashi, Hussenot, Geist, Pietquin, "Primal Wasserstein Imitation Learning", ICLR 2021, arXiv 2006.04678.

| paper | here |
|---|---|
| a step's mass 1 / T goes to the nearest atoms that have mass left, each 1 / D at the start of an episode | ``greedy_step`` |
| c = sum of moved mass times distance, in units of the demonstrations' deviation | ``greedy_step``, ``PWIL.prepare`` |
| r = alpha exp(-beta T / sqrt(d) c), d numbers in a point | ``greedy_reward`` |

The greedy coupling bounds the 1-Wasserstein distance from above. What a step is paid depends on the steps before it and on
nothing that is learned, so it is kept with the step.

Deviations: D4PG is soft actor-critic here; the replay does not begin with demonstrations; what is left of a step's mass where
no atom has any, after T steps, pays the largest distance.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.resident import Batch
from dynarep.pipeline.method import Needs, Sources
from dynarep.pipeline.online_imitation import OnlineImitation, OnlineImitationConfig


@config
class PWILConfig(OnlineImitationConfig):
    """Hyper-parameters of PWIL; the defaults are the published ones."""

    scale: float = Field(default=5.0, gt=0)
    """alpha: the reward where nothing is paid."""
    sharpness: float = Field(default=5.0, gt=0)
    """beta."""
    horizon: int = Field(default=1000, ge=1)
    """T: steps of the longest episode."""


def greedy_step(distance: Tensor, left: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """Move mass to the nearest atoms that have some left.

    Args:
        distance: to the atoms, (..., D).
        left: mass of the atoms, (..., D).
        mass: to be moved.

    Returns:
        What it costs (...), and what the atoms have left (..., D).
    """
    order = distance.argsort(-1)
    near, available = distance.gather(-1, order), left.gather(-1, order)
    before = available.cumsum(-1) - available
    moved = torch.minimum(available, (mass - before).clamp(min=0.0))
    unmoved = (mass - moved.sum(-1)).clamp(min=0.0)
    cost = (moved * near).sum(-1) + unmoved * near[..., -1]
    return cost, left.scatter(-1, order, available - moved)


def greedy_reward(cost: Tensor, dim: int, scale: float, sharpness: float, horizon: int) -> Tensor:
    """The reward alpha exp(-beta T / sqrt(d) c), elementwise."""
    return scale * torch.exp(-sharpness * horizon / math.sqrt(dim) * cost)


class PWIL(OnlineImitation):
    """Soft actor-critic on what the greedy transport of an episode costs."""

    kind = "pwil"
    Config = PWILConfig
    atoms: Tensor
    unit: Tensor
    left: Tensor

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """As all of its kind, but it pays steps as they come and no others."""
        return replace(super().needs(c), dataset=False)

    def prepare(self, sources: Sources) -> None:
        """Take the atoms from the demonstrations, in units of their deviation."""
        table = sources.table("demonstrations")
        rows = torch.arange(len(table), device=sources.device).expand(self.replicas, -1)
        points = self._points(table.gather(rows)).cpu()
        deviation = points.std(1, keepdim=True, correction=0)
        self.register_buffer("unit", torch.where(deviation > 0, deviation, 1.0))
        self.register_buffer("atoms", points / self.unit)
        shape = self.replicas, self.config.environment.environments, len(table)
        self.register_buffer("left", torch.full(shape, 1.0 / len(table)))

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """Pay steps, each environment's from what its episode has left."""
        c, count = self.config, self.atoms.shape[1]
        points = self._points(batch) / self.unit
        left = torch.where(starts.unsqueeze(-1) > 0, 1.0 / count, self.left)
        cost, left = greedy_step(torch.cdist(points, self.atoms), left, 1.0 / c.horizon)
        self.left.copy_(left)
        rewards = greedy_reward(cost, self.space.dim, c.scale, c.sharpness, c.horizon)
        return super().observe(replace(batch, rewards=rewards), starts)

    def _points(self, batch: Batch) -> Tensor:
        """Points that are not standardised, (R, B, D)."""
        return self.space.joined(batch, lambda x: x)
