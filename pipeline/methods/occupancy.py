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
| theta_E = gamma E_{d^E} phi(s, a) | ``expert_weights`` |
| r(s, a, s') = alpha (log(max(mu(s')^T theta_E, 0) + 1 - gamma) - log(1 - gamma)) | ``occupancy_reward`` |

The shift makes the reward of an absorbing state after a fall 0, which is what an algorithm without absorbing states assumes.

Own choices, not in the paper: the ratio as a reward for offline reinforcement learning in place of the offline game; the
average over the demonstrated transitions is not discounted, as everywhere in this project.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarep.configs.params import Field, config


@config
class OccupancyConfig:
    """Hyper-parameters of the occupancy reward."""

    scale: float = Field(default=1.0, gt=0)
    """alpha."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    """Discount of the occupancy; 1 - gamma is the least ratio that is told apart from none."""


def expert_weights(phi: Tensor, gamma: float) -> Tensor:
    """theta_E = gamma E phi over the demonstrated pairs: (R, N, k) -> (R, k)."""
    return gamma * phi.mean(1)


def occupancy_reward(mu_next: Tensor, weights: Tensor, gamma: float, scale: float) -> Tensor:
    """Log ratio above its floor, alpha log((max(mu^T theta_E, 0) + 1 - gamma) / (1 - gamma)).

    Args:
        mu_next: mu of the states that follow, (R, T, k).
        weights: theta_E, (R, k).
        gamma: discount.
        scale: alpha.

    Returns:
        (R, T), at least 0.
    """
    ratio = torch.bmm(mu_next, weights.unsqueeze(-1)).squeeze(-1).clamp(min=0.0)
    return scale * torch.log1p(ratio / (1.0 - gamma))
