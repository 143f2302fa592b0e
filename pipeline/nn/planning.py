"""Planning in a world model: model-predictive path integral control around a policy prior, as TD-MPC2 does it.

Williams, Aldrich, Theodorou, 2015, arXiv 1509.01149; Hansen, Su, Wang, "TD-MPC2", ICLR 2024, arXiv 2310.16828, and its code.

| paper and published code | here |
|---|---|
| G = sum_{t<H} gamma^t r(z_t, a_t) + gamma^H V(z_H), z_{t+1} = d(z_t, a_t) | ``imagined_return`` |
| m, s: moments of the elites' actions, weighted by exp(tau (G - max G)) | ``weighted_elites`` |
| draw actions from N(m, s^2), keep the elites, repeat | ``plan`` |
| act with the first action of an elite, drawn by its weight | ``Plan.first`` |

The model is given as functions of latents (R, N, d) and actions (R, N, act_dim) of R replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynarep.configs.params import Field, config

Function = Callable[[Tensor, Tensor], Tensor]


@config
class PlanningConfig:
    """How to plan; the defaults are the published ones."""

    horizon: int = Field(default=3, gt=0)
    iterations: int = Field(default=6, gt=0)
    """Published with two more for actions of at least 20 numbers."""
    samples: int = Field(default=512, gt=0)
    """Sequences of actions in each iteration, those of the prior included."""
    elites: int = Field(default=64, gt=0)
    prior_samples: int = Field(default=24, ge=0)
    """Sequences that the policy prior proposes."""
    min_std: float = Field(default=0.05, gt=0)
    max_std: float = Field(default=2.0, gt=0)
    temperature: float = Field(default=0.5, gt=0)
    """tau: multiplies returns in the weight of an elite."""

    def __post_init__(self) -> None:
        if self.elites > self.samples:
            raise ValueError(f"elites: found {self.elites}, expected at most samples, {self.samples}")
        if self.prior_samples > self.samples:
            raise ValueError(f"prior_samples: found {self.prior_samples}, expected at most samples, {self.samples}")
        if self.min_std > self.max_std:
            raise ValueError(f"min_std: found {self.min_std}, expected at most max_std, {self.max_std}")


@dataclass(frozen=True)
class Plan:
    """What was planned for B latents of R replicas.

    Args:
        mean: m, (R, B, H, act_dim).
        std: s, (R, B, H, act_dim).
        elites: the best sequences of the last iteration, (R, B, E, H, act_dim).
        weights: of the elites, (R, B, E), with the sum 1.
    """

    mean: Tensor
    std: Tensor
    elites: Tensor
    weights: Tensor

    def first(self, generator: torch.Generator) -> Tensor:
        """First action of an elite that is drawn by its weight, (R, B, act_dim)."""
        chosen = torch.multinomial(self.weights.flatten(0, 1), 1, generator=generator)
        return self.elites[:, :, :, 0].take_along_dim(chosen.view(*self.weights.shape[:2], 1, 1), 2).squeeze(2)

    @property
    def shifted(self) -> Tensor:
        """The mean one step later, 0 at its end: where the plan of the next state starts."""
        return torch.cat([self.mean[:, :, 1:], torch.zeros_like(self.mean[:, :, :1])], 2)


def imagined_return(
    dynamics: Function,
    reward: Function,
    value: Callable[[Tensor], Tensor],
    start: Tensor,
    actions: Tensor,
    discount: float,
) -> Tensor:
    """sum_{t<H} gamma^t r(z_t, a_t) + gamma^H V(z_H).

    Args:
        dynamics: (R, N, d), (R, N, act_dim) -> (R, N, d).
        reward: (R, N, d), (R, N, act_dim) -> (R, N).
        value: (R, N, d) -> (R, N), such as the value of the prior's action.
        start: z_0, (R, N, d).
        actions: (R, N, H, act_dim).
        discount: gamma.

    Returns:
        (R, N).
    """
    latents, total, weight = start, torch.zeros_like(start[..., 0]), 1.0
    for action in actions.unbind(2):
        total = total + weight * reward(latents, action)
        latents, weight = dynamics(latents, action), weight * discount
    return total + weight * value(latents)


def weighted_elites(returns: Tensor, actions: Tensor, c: PlanningConfig) -> Plan:
    """The elites of N sequences and the moments of their actions: (R, B, N), (R, B, N, H, act_dim).

    A return that is not a number counts as 0, as in the published code.
    """
    best, which = returns.nan_to_num(0.0).topk(c.elites, dim=-1)
    elites = actions.take_along_dim(which[..., None, None], 2)
    weights = (c.temperature * (best - best[..., :1])).softmax(-1)
    spread = weights[..., None, None]
    mean = (spread * elites).sum(2)
    std = (spread * (elites - mean.unsqueeze(2)).square()).sum(2).sqrt().clamp(c.min_std, c.max_std)
    return Plan(mean, std, elites, weights)


@torch.no_grad()
def plan(
    c: PlanningConfig,
    dynamics: Function,
    reward: Function,
    value: Callable[[Tensor], Tensor],
    start: Tensor,
    action_dim: int,
    discount: float,
    generator: torch.Generator,
    prior: Callable[[Tensor], Tensor] | None = None,
    mean: Tensor | None = None,
) -> Plan:
    """Plan from B latents of R replicas at once.

    Args:
        c: how.
        dynamics: see ``imagined_return``; so are ``reward`` and ``value``.
        reward: of a latent and an action.
        value: of the last latent.
        start: (R, B, d).
        action_dim: numbers in an action, each in [-1, 1].
        discount: gamma.
        generator: on the device of ``start``.
        prior: draws an action (R, N, act_dim) for each of (R, N, d); needed where ``prior_samples`` is not 0.
        mean: where to start, (R, B, H, act_dim), such as ``shifted`` of the last state's plan; zeros by default.

    Returns:
        The plan after the last iteration.
    """
    replicas, states, width = start.shape
    form = (replicas, states, c.samples, c.horizon, action_dim)

    def repeated(count: int) -> Tensor:
        return start.unsqueeze(2).expand(-1, -1, count, -1).reshape(replicas, -1, width)

    proposed = start.new_empty(replicas, states, 0, c.horizon, action_dim)
    if c.prior_samples:
        assert prior is not None, "prior_samples is not 0"
        latents, steps = repeated(c.prior_samples), []
        for _ in range(c.horizon):
            steps.append(prior(latents))
            latents = dynamics(latents, steps[-1])
        proposed = torch.stack(steps, 2).view(replicas, states, c.prior_samples, c.horizon, action_dim)
    mean = start.new_zeros(replicas, states, c.horizon, action_dim) if mean is None else mean
    found = Plan(mean, torch.full_like(mean, c.max_std), proposed, proposed)
    latents = repeated(c.samples)
    for _ in range(c.iterations):
        noise = torch.randn(form, generator=generator, device=start.device, dtype=start.dtype)[:, :, c.prior_samples :]
        drawn = (found.mean.unsqueeze(2) + found.std.unsqueeze(2) * noise).clamp(-1.0, 1.0)
        actions = torch.cat([proposed, drawn], 2)
        returns = imagined_return(dynamics, reward, value, latents, actions.flatten(1, 2), discount)
        found = weighted_elites(returns.view(replicas, states, c.samples), actions, c)
    return found
