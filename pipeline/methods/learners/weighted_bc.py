r"""Weighted cloning of single transitions: behaviour cloning in proportion to exp of a label, without a critic.

Peng, Kumar, Zhang, Levine, "Advantage-Weighted Regression", 2019, arXiv 1910.00177, with the label, or its discounted sum over
the rest of the episode, in place of the advantage.

| here | what |
|---|---|
| G_t = sum_k gamma^k r_{t+k} within the episode; r_t itself with gamma = 0 | ``nn.functional.suffix_returns`` |
| w_t = exp(beta (min(G_t, q) - q) / std G), q the quantile 1 - 1 / b of G | ``cloning_weights`` |
| -E_w log pi(a|s) | ``cloning.Cloning.losses`` on transitions drawn in proportion to w |

A whole episode need not be good for a part of it to be worth cloning, so this also works on play data, in which episodes are no
units. G is divided by its deviation over all transitions, so the unit of the rewards does not matter. At least a share 1 / b of
the transitions has the largest weight, so none weighs more than b times the mean.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.resident import Batch
from dynarep.pipeline.cloning import Cloning, CloningConfig
from dynarep.pipeline.method import Needs, Sources
from dynarep.pipeline.nn.functional import suffix_returns


@config
class WeightedBCConfig(CloningConfig):
    """Hyper-parameters of weighted cloning."""

    temperature: float = Field(default=5.0, gt=0)
    """beta."""
    gamma: float = Field(default=0.99, ge=0, lt=1)
    """Discount of the sum over the rest of the episode; 0 takes the reward of the transition alone."""
    max_weight: float = Field(default=1000.0, gt=1)
    """b: bound on the weight of a transition, in units of the mean weight."""


def cloning_weights(returns: Tensor, temperature: float, max_weight: float) -> Tensor:
    """exp(beta (min(G, q) - q) / std G) with at least N / b values of G at q or above: (R, N) -> (R, N), in units of their mean.

    Raises:
        ValueError: if all returns of a replica are equal.
    """
    returns = returns.double()
    std = returns.std(1, keepdim=True)
    if not (std > 0).all():
        raise ValueError("rewards: found the same for every transition, which leaves no weights")
    most = returns.topk(max(1, math.ceil(returns.shape[1] / max_weight)), 1).values[:, -1:]
    weight = torch.exp(temperature * (returns.minimum(most) - most) / std)
    return weight / weight.mean(1, keepdim=True)


class WeightedBC(Cloning):
    """Clones all transitions, in proportion to their weights."""

    kind = "weighted_bc"
    Config = WeightedBCConfig

    @classmethod
    def needs(cls, c: WeightedBCConfig) -> Needs:
        """Rewards to weigh by, and actions to clone."""
        return Needs(actions=("dataset",), optional_encoder=True, rewards=True)

    def prepare(self, sources: Sources) -> None:
        """Weigh every transition."""
        c, lengths = self.config, sources.table("dataset").lengths.tolist()
        self.weights = cloning_weights(suffix_returns(sources.rewards, lengths, c.gamma), c.temperature, c.max_weight)
        self.cumulative = self.weights.cumsum(1)

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Transitions in proportion to their weights."""
        table, c = sources.table("dataset"), self.cumulative
        shape = (sources.replicas, sources.batch_size)
        u = torch.rand(shape, generator=generator, device=c.device, dtype=torch.float64) * c[:, -1:]
        return table.gather(torch.searchsorted(c, u, right=True).clamp(max=len(table) - 1))

    def facts(self) -> dict[str, Any]:
        """The effective share of the data that is cloned, 1 where all weights are equal."""
        share = self.weights.mean(1).square() / self.weights.square().mean(1)
        return {"effective_share": share.tolist()}
