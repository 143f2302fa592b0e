"""Cloning a policy that is a Gaussian or a mixture of them, and choosing what to clone: what several learners share.

| source | here |
|---|---|
| -E log pi(a|s) (Pomerleau 1991) | ``Cloning.losses`` |
| pi(a|s) = sum_k w_k(s) N(a; tanh(f_k(s)), sigma) (Bishop 1994) | ``Policy.log_prob``, with ``components`` |
| %BC: the episodes of highest return with X % of the timesteps (Chen et al. 2021, arXiv 2106.01345) | ``best_episodes`` |

The actor is IQL's: a Gaussian with mean tanh(f(s)) and a free log-std in [-5, 2] over actions mapped to [-1, 1], so that
cloning and offline reinforcement learning differ in the weight of each sample alone, and the unit of actions does not matter.
With an encoder the network reads its latents in place of the observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.pipeline.method import Learner, World
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.nn.functional import Losses


@config
class CloningConfig:
    """Hyper-parameters of cloning."""

    hidden: Widths = (256, 256)
    learning_rate: float = Field(default=3e-4, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of hidden activations."""
    beside: bool = False
    """With an encoder, read the observation beside its latents."""
    layer_norm: bool = False
    """LayerNorm after each hidden layer of the actor."""
    components: int = Field(default=1, ge=1, le=100)
    """Gaussians of the actor; more than one where the data do different things in the same state, whose mean nobody did."""


class Demonstrations(Protocol):
    """A batch of state-action pairs, (R, B, ...)."""

    observations: Tensor
    actions: Tensor


def best_episodes(returns: Sequence[float], lengths: Sequence[int], share: float) -> list[int]:
    """The episodes of highest return that fit into a share of all transitions (%BC of Chen et al. 2021).

    Episodes are taken from the best on until the next one would exceed the share, at least one; of two with the same
    return the earlier one comes first.

    Args:
        returns: of each episode.
        lengths: transitions of each episode.
        share: of the transitions, in (0, 1].

    Returns:
        Indices of the chosen episodes, ascending.
    """
    limit = share * sum(lengths)
    chosen: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: -returns[i]):
        total += lengths[i]
        if chosen and total > limit:
            break
        chosen.append(i)
    return sorted(chosen)


def best_rows(rewards: Tensor, lengths: Sequence[int], share: float) -> list[Tensor]:
    """Rows of a table of episodes that belong to the best ones of each replica.

    Args:
        rewards: of all transitions in order, (R, N).
        lengths: transitions of each episode, N in total.
        share: of the transitions, in (0, 1].

    Returns:
        R tensors of int64 on the device of ``rewards``.
    """
    rows = torch.split(torch.arange(sum(lengths), device=rewards.device), list(lengths))
    returns = torch.stack([part.double().sum(-1) for part in torch.split(rewards, list(lengths), -1)], -1)
    return [torch.cat([rows[i] for i in best_episodes(replica, lengths, share)]) for replica in returns.tolist()]


class Cloning(Learner):
    """Learner of a Gaussian policy by maximum likelihood."""

    Config: ClassVar[type] = CloningConfig
    shown = ("loss", "squared_error")

    def __init__(self, c: CloningConfig, policy: Policy) -> None:
        super().__init__()
        self.config, self.policy = c, policy
        policy.network.dropout = c.dropout
        shape = policy.architecture.replicas, 1, len(policy.architecture.action_low)
        self.log_std = nn.Parameter(torch.full(shape, policy.first_log_std))

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """For the observations and actions of a world."""
        form: dict[str, Any] = {"beside": c.beside, "layer_norm": c.layer_norm, "components": c.components}
        return cls(c, Policy.build(world, c.hidden, **form))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The actor with cosine decay."""
        parameters = [*self.policy.network.parameters(), self.log_std]
        return [{"params": parameters, "lr": self.config.learning_rate, "cosine": True}]

    def losses(self, batch: Demonstrations) -> Losses:
        """-E log pi(a|s)."""
        output, actions = self.policy.mean(batch.observations), self.policy.unit(batch.actions)
        error = (self.policy.mode(output.detach()) - actions).square().mean((-1, -2))
        log_prob = self.policy.log_prob(output, actions, self.log_std.clamp(-5.0, 2.0))
        return Losses(-log_prob.mean(-1), {"squared_error": error})

    def export(self) -> Policy:
        """The policy of every replica."""
        return deepcopy(self.policy)
