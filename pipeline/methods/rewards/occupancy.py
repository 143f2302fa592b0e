r"""Rewards from the expert's occupancy ratio, which the dynamics representation gives in closed form.

Follows from the factorisation of Ma, Dai, Ren, Wang, Li, "Offline Imitation Learning upon Arbitrary Demonstrations by
Pre-Training Dynamics Representations", 2025, arXiv 2508.14383, where it is the third term of Q for the learned policy:

    d^pi(s') = (1 - gamma) rho(s') + gamma E_{d^pi} P(s'|s, a) = p_n(s') (mu(s')^T theta + (1 - gamma) rho(s') / p_n(s')),
    theta = gamma E_{d^pi} phi(s, a).

For the expert itself theta is an average over the demonstrations, so nothing is trained here. With rho = p_n, as in the
paper, and p_n the states of the data, the reward is the DICE reward log d^E / p_n, shifted to be 0 where the expert never
comes:

| equation | here |
|---|---|
| theta_E = gamma E_{d^E} phi(s, a) | ``factorisation.expert_weights`` |
| r(s, a, s') = alpha (log(max(mu(s')^T theta_E, 0) + 1 - gamma) - log(1 - gamma)) | ``factorisation.occupancy_reward`` |

The shift makes the reward of an absorbing state after a fall 0, which is what an algorithm without absorbing states assumes.

Own choices, not in the paper: the ratio as a reward for offline reinforcement learning in place of the offline game; the
average over the demonstrated transitions is not discounted, as everywhere in this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.schema import Episode
from dynarep.pipeline.factorisation import expert_weights, occupancy_reward
from dynarep.pipeline.labelling import Judgement, Labelled, Reward


@config
class OccupancyConfig:
    """Hyper-parameters of the occupancy reward."""

    scale: float = Field(default=1.0, gt=0)
    """alpha."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    """Discount of the occupancy; 1 - gamma is the least ratio that is told apart from none."""


class Occupancy(Reward):
    """The expert's occupancy ratio at the state that each transition leads to."""

    kind = "occupancy"
    Config = OccupancyConfig
    reads = ("phi", "mu")

    def __init__(self, c: OccupancyConfig, world: Judgement) -> None:
        super().__init__()
        self.config, self.device, self.experts = c, world.device, len(world.experts)
        self.mu = world.spaces["mu"]
        embed = world.embedding("phi")
        with torch.no_grad():
            self.weights = expert_weights(torch.cat([embed(expert) for expert in world.experts], 1), c.gamma)

    @classmethod
    def build(cls, c: OccupancyConfig, world: Judgement) -> Occupancy:  # type: ignore[override]
        """With the demonstrations of a world."""
        return cls(c, world)

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) per episode id."""
        found = {}
        for episode in episodes:
            mu_next = self.mu.embed(torch.from_numpy(episode.successors).to(self.device), None)
            rewards = occupancy_reward(mu_next, self.weights, self.config.gamma, self.config.scale)
            if not rewards.isfinite().all():
                raise ValueError(f"episode {episode.id}: its occupancy ratios are not finite")
            found[episode.id] = rewards.cpu().numpy()
        return found, {}

    def summary(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """How many replicas and demonstrations there are."""
        return {"replicas": len(self.weights), "experts": self.experts}
