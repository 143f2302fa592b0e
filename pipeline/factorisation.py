r"""What follows from a factorised transition kernel, P(s'|s, a) = <phi(s, a), mu(s')> p_n(s'), whoever learned it.

Ma, Dai, Ren, Wang, Li, "Offline Imitation Learning upon Arbitrary Demonstrations by Pre-Training Dynamics
Representations", 2025, arXiv 2508.14383: the occupancy of a policy is linear in mu, with weights theta = gamma E_{d^pi} phi.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dynarep.pipeline.nn.networks import Normaliser


class Factorisation(Protocol):
    """An encoder with the spaces phi and mu."""

    architecture: Any
    normaliser: Normaliser

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """phi(s, a): (R or 1, B, obs_dim), (R or 1, B, act_dim) -> (R, B, k)."""

    def mu(self, observations: Tensor) -> Tensor:
        """mu(s'): (R or 1, B, obs_dim) -> (R, B, k)."""

    def with_bit(self, observations: Tensor) -> Tensor:
        """Observations as the normaliser reads them."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Whether phi and mu are trained."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""

    def parameters(self) -> Any:
        """Those of phi and mu."""


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
