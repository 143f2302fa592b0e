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


def dual_objective(
    initial: Tensor,
    bellman_expert: Tensor,
    gamma: float,
    *,
    bellman_replay: Tensor | None = None,
    replay_ratio: float = 0.0,
) -> Tensor:
    r"""The Donsker-Varadhan dual of -KL(d^pi || d^exp) after the Bellman change of variables (Kostrikov et al. 2020).

    J(pi, Q) = (1 - gamma) E_{s0, a0~pi} Q(s0, a0) + log E_{d^exp} exp(gamma Q(s', a'~pi) - Q(s, a)),
    minimised over Q and maximised over pi; at the inner optimum J = -KL(d^pi || d^exp).

    With ``replay_ratio`` alpha > 0 both distributions are mixed with the replay occupancy d^B,
    J = log E_{(1-alpha) d^exp + alpha d^B} exp(bellman) + (1-alpha)(1-gamma) E Q(s0, a0) - alpha E_{d^B} bellman,
    whose optimum is -KL of the two mixtures.

    Args:
        initial: Q(s0, a0), (R, B).
        bellman_expert: gamma Q(s', a') - Q(s, a) on expert transitions, (R, B).
        gamma: discount in (0, 1).
        bellman_replay: the same on replay transitions, (R, B'); needed where ``replay_ratio`` > 0.
        replay_ratio: alpha in [0, 1).

    Returns:
        (R,), one objective per replica.
    """
    if bellman_replay is None and replay_ratio != 0.0:
        raise ValueError(f"replay_ratio is {replay_ratio}, but there are no replay transitions")
    linear = (1.0 - replay_ratio) * (1.0 - gamma) * initial.mean(-1)
    if bellman_replay is None:
        return linear + log_mean_exp(bellman_expert)
    n, m = bellman_expert.shape[-1], bellman_replay.shape[-1]
    weights = torch.cat([initial.new_full((n,), (1.0 - replay_ratio) / n), initial.new_full((m,), replay_ratio / m)])
    nonlinear = log_mean_exp(torch.cat([bellman_expert, bellman_replay], -1), weights.log())
    return linear + nonlinear - replay_ratio * bellman_replay.mean(-1)


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
