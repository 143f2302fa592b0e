"""Fitted Q evaluation: the value of a policy from recorded transitions, without an environment.

Le, Voloshin and Yue 2019, Batch Policy Learning under Constraints, arXiv 1903.08738.

| equation | function |
|---|---|
| y = r + gamma Q_{k-1}(s', pi(s')) | `targets` |
| Q_k = argmin_Q E (Q(s, a) - y)^2 | `FittedQ.losses` |
| V(pi) = E Q_K(s_0, pi(s_0)) | `FittedQ.start_values` |

Deviations:

- Q_k is not fitted to the end. It makes ``refresh`` gradient updates, from where Q_{k-1} is, on batches of the recording.
- Q_0 is the mean return-to-go of the recording instead of 0. What is left of Q_0 after K iterations is gamma^K of its error.
- Targets are held within the values that the recorded rewards allow, so that a network that extrapolates cannot diverge.
- Hidden layers are normalised, which holds extrapolation down as well (Ball et al. 2023, arXiv 2302.02948).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.data.resident import TransitionTable
from dynarep.pipeline.method import Sources
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.networks import MLP, ActionScale, Normaliser
from dynarep.pipeline.training.config import TrainingConfig

LEFT = 0.05
"""Largest share of the error of Q_0 that may be left at the end."""


@config
class FittedQConfig:
    """Settings of fitted Q evaluation."""

    gamma: float = Field(default=0.99, ge=0, lt=1)
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = Field(default=3e-4, gt=0)
    refresh: int = Field(default=20, ge=1)
    """Updates from Q_{k-1} to Q_k."""
    training: TrainingConfig = TrainingConfig(updates=10000)

    def __post_init__(self) -> None:
        iterations = self.training.updates // self.refresh
        left = self.gamma**iterations
        if left > LEFT:
            raise ValueError(
                f"found gamma {self.gamma:g} and {iterations} iterations (training.updates / refresh), which leave "
                f"{left:.0%} of the error of the start, expected at most {LEFT:.0%}: make more updates, or lower gamma or refresh"
            )

    def smoke(self) -> FittedQConfig:
        """A few small updates, to see that everything fits together."""
        return replace(self, gamma=min(self.gamma, 0.5), refresh=1, training=self.training.smoke())


@dataclass(frozen=True)
class StepBatch:
    """Transitions (R, B, ...) with what the policy does in the next states."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    next_observations: Tensor
    next_actions: Tensor


def targets(rewards: Tensor, terminated: Tensor, next_values: Tensor, gamma: float, low: float, high: float) -> Tensor:
    """What Q_k is fitted to: r + gamma (1 - terminated) Q_{k-1}(s', pi(s')), within ``low`` and ``high``; all (R, B)."""
    return (rewards + gamma * (1.0 - terminated) * next_values).clamp(low, high)


def attainable(rewards: Tensor, terminates: bool, gamma: float) -> tuple[float, float]:
    """The least and the largest discounted sum of rewards like these; 0 is among them where episodes terminate."""
    low, high = float(rewards.min()), float(rewards.max())
    endless = 1.0 / (1.0 - gamma)
    if terminates:
        return min(low, low * endless), max(high, high * endless)
    return low * endless, high * endless


class FittedQ(nn.Module):
    """Q of R policies, replica r that of policy r, each trained from a start of its own.

    Args:
        c: settings.
        table: recorded transitions, on the training device.
        rewards: (R, N) of its transitions, on the same device.
        next_actions: (R, N, act_dim), what each policy does in their next states.
        bounds: of the actions.
        start: mean and deviation (R, 1) of the recording's discounted returns-to-go, where Q begins and in which it is measured.
        terminates: whether some episodes end in a terminal state.
    """

    centre: Tensor
    scale: Tensor
    updates: Tensor

    def __init__(
        self,
        c: FittedQConfig,
        table: TransitionTable,
        rewards: Tensor,
        next_actions: Tensor,
        bounds: tuple[tuple[float, ...], tuple[float, ...]],
        start: tuple[Tensor, Tensor],
        terminates: bool,
    ) -> None:
        super().__init__()
        self.config, self.rewards, self.next_actions = c, rewards, next_actions
        self.register_buffer("centre", start[0].float())
        self.register_buffer("scale", torch.where(start[1] > 0, start[1], 1.0).float())
        self.limits = attainable(rewards, terminates, c.gamma)
        states = table.observations
        self.normaliser = Normaliser(states.mean(0), states.std(0, correction=0))
        self.unit = ActionScale(*bounds)
        sizes = table.observation_dim + table.action_dim, *c.hidden, 1
        self.network = MLP((len(rewards),), sizes, layer_norm=True, final_gain=0.01)
        self.previous = deepcopy(self.network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def values(self, network: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of observations (R, B, obs_dim) and actions (R, B, act_dim): (R, B)."""
        read = torch.cat([self.normaliser(observations), self.unit(actions)], -1)
        return self.centre + self.scale * network(read).squeeze(-1)  # type: ignore[no-any-return]

    def batch(self, sources: Sources, generator: torch.Generator) -> StepBatch:
        """Uniform transitions."""
        table = sources.table("dataset")
        index = sources.rows(len(table), generator)
        b = table.gather(index)
        rewards = self.rewards.gather(1, index)
        nexts = self.next_actions.gather(1, index[..., None].expand(-1, -1, self.next_actions.shape[-1]))
        return StepBatch(b.observations, b.actions, rewards, b.terminated, b.next_observations, nexts)

    def losses(self, batch: StepBatch) -> Losses:
        """Squared distance to the targets, in units of the recording's returns."""
        with torch.no_grad():
            following = self.values(self.previous, batch.next_observations, batch.next_actions)
            wanted = targets(batch.rewards, batch.terminated, following, self.config.gamma, *self.limits)
        found = self.values(self.network, batch.observations, batch.actions)
        loss = ((found - wanted) / self.scale).square().mean(-1)
        return Losses(loss, {"value": found.detach().mean(-1)})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One rate."""
        return [{"params": [*self.network.parameters()], "lr": self.config.learning_rate}]

    @torch.no_grad()
    def after_update(self) -> None:
        """Every ``refresh`` updates the targets become those of the network as it is."""
        self.updates += 1
        fresh = self.updates % self.config.refresh == 0
        for old, new in zip(self.previous.parameters(), self.network.parameters(), strict=True):
            old.copy_(torch.where(fresh, new, old))

    @torch.no_grad()
    def start_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """V(s_0) = Q_K(s_0, pi(s_0)), of observations (E, obs_dim) and actions (R, E, act_dim): (R, E)."""
        return self.values(self.network, observations.expand(len(actions), -1, -1), actions)
