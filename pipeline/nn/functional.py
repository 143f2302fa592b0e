"""Pure functions shared by methods: expectile regression, Polyak averaging, the DICE dual and its gradient penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """What one update minimises: ``loss`` (R,), one value per replica, and ``metrics``, each (R,), without gradients."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def expectile_loss(difference: Tensor, weight_sign: Tensor, expectile: float) -> Tensor:
    """Asymmetric square |tau - 1(sign < 0)| difference^2, elementwise.

    IQL (Kostrikov et al. 2021, eq. 5) uses the difference itself as ``weight_sign``; ICVF (Ghosh et al. 2023, eq. 6)
    uses the advantage of the intent.
    """
    return torch.where(weight_sign < 0, 1.0 - expectile, expectile) * difference.square()


@torch.no_grad()
def polyak(target: Iterable[Tensor], online: Iterable[Tensor], rate: float) -> None:
    """Move target parameters towards the online ones: target <- (1 - rate) target + rate online."""
    torch._foreach_lerp_(list(target), list(online), rate)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """The identity whose gradient is negated, so that one backward pass descends in Q and ascends in the policy."""
    return _ReverseGradient.apply(x)  # type: ignore[no-any-return,no-untyped-call]


def log_mean_exp(x: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Log E[exp x] over the last axis (..., N) -> (...), with normalised log weights (N,) or (..., N) if given."""
    if log_weight is None:
        return torch.logsumexp(x, -1) - math.log(x.shape[-1])
    return torch.logsumexp(x + log_weight, -1)


def gradient_penalty(critic: Callable[[Tensor, Tensor], Tensor], observations: Tensor, actions: Tensor) -> Tensor:
    """E (||grad_{s,a} Q(s, a)|| - 1)^2 at the given points (Gulrajani et al. 2017, eq. 3).

    Args:
        critic: maps (R, B, obs_dim), (R, B, act_dim) to (R, B).
        observations: (R, B, obs_dim), usually mixtures of two data sources.
        actions: (R, B, act_dim).

    Returns:
        (R,), differentiable in the critic's parameters.
    """
    observations, actions = observations.detach().requires_grad_(), actions.detach().requires_grad_()
    gradients = torch.autograd.grad(critic(observations, actions).sum(), (observations, actions), create_graph=True)
    norm: Tensor = torch.linalg.vector_norm(torch.cat(gradients, -1), dim=-1)
    return (norm - 1.0).square().mean(-1)


def gaussian_log_prob(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, summed over the action: (R, B, act_dim) -> (R, B)."""
    return (-0.5 * ((actions - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def effective_rank(features: Tensor) -> Tensor:
    """Exp of the entropy of the normalised singular values (Roy and Vetterli 2007) of features (..., N, k) -> (...)."""
    values = torch.linalg.svdvals(features)
    p = values / values.sum(-1, keepdim=True)
    return torch.exp(-torch.special.xlogy(p, p).sum(-1))


def return_range_scale(rewards_by_episode: Iterable[Tensor]) -> Tensor:
    """The factor 1000 / (largest - smallest episode return) for rewards (..., T) per episode: (...).

    Raises:
        ValueError: if all episodes have the same return.
    """
    returns = torch.stack([rewards.sum(-1) for rewards in rewards_by_episode], -1)
    spread = returns.amax(-1) - returns.amin(-1)
    if not (spread > 0).all():
        raise ValueError("all episodes have the same return, which leaves the scale of rewards undefined")
    return 1000.0 / spread


def suffix_returns(rewards: Tensor, lengths: list[int], gamma: float) -> Tensor:
    """Discounted sums over the rest of each episode: (R, N), N the sum of ``lengths`` -> (R, N)."""
    if gamma == 0:
        return rewards
    found = torch.empty_like(rewards, dtype=torch.float64)
    pieces = (torch.split(x, lengths, 1) for x in (rewards.double(), found))
    for values, out in zip(*pieces, strict=True):
        total = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
        for t in range(values.shape[1] - 1, -1, -1):
            total = values[:, t] + gamma * total
            out[:, t] = total
    return found
