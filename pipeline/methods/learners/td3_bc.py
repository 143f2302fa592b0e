"""TD3+BC: offline reinforcement learning by TD3 whose actor is also drawn to the recorded actions.

Fujimoto, Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021, arXiv 2106.06860; TD3 is Fujimoto,
van Hoof, Meger, ICML 2018, arXiv 1802.09477. Two additions of ReBRAC are options, both off by default: Tarasov, Kurenkov,
Nikulin, Kolesnikov, "Revisiting the Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2023, arXiv 2305.09836.

| paper | here |
|---|---|
| a~ = clip(pi_target(s') + clip(noise, -c, c), -1, 1) | ``smoothed_action`` |
| y = r + gamma (1 - terminated) (min_i Q_target,i(s', a~) - beta_2 |a~ - a'|^2) | ``td_target`` |
| L_Q = sum_i E (y - Q_i(s, a))^2 | ``critic_loss`` |
| L_pi = E (pi(s) - a)^2 - lambda E Q_1(s, pi(s)), lambda = alpha / E |Q_1| | ``actor_loss`` |
| an update of actor and targets for every second one of the critics | ``TD3BC.delayed`` |

a' is the action that was recorded after (s, a). The term with beta_2 (``critic_penalty``) and LayerNorm in the critics
(``layer_norm``) are ReBRAC's. Its beta_1, the weight of the cloning term, is 1 / (alpha action_dim) here, because it sums
that term over the action's components where TD3+BC averages.

lambda is taken over Q_1(s, pi(s)) as in the authors' code; the paper writes Q(s, a).

Deviations: actor and critics share one backward pass, so that the actor meets the critics before this update, not after
it; the bounds of actions are mapped to -1 and 1, the published ones, so that critics, noise and the cloning term do not
depend on the units of the dataset; LayerNorm has no affine parameters; where no a' was recorded, at the end of an
episode, there is no penalty.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarep.configs.params import Field, Widths, config
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.nn.functional import Losses, polyak
from dynarep.pipeline.nn.networks import MLP

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable


@config
class TD3BCConfig:
    """Hyper-parameters of TD3+BC; the defaults are the published ones."""

    hidden: Widths = (256, 256)
    gamma: float = Field(default=0.99, gt=0, lt=1)
    alpha: float = Field(default=2.5, ge=0)
    """Weight of Q beside the cloning term; 0 clones."""
    noise: float = Field(default=0.2, ge=0)
    """Standard deviation of the noise on target actions, where the action range is [-1, 1]."""
    noise_clip: float = Field(default=0.5, ge=0)
    policy_delay: int = Field(default=2, ge=1)
    """Updates of the critics for each one of the actor and of the target networks."""
    target_rate: float = Field(default=0.005, gt=0, le=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    layer_norm: bool = False
    """LayerNorm in the critics, as in ReBRAC."""
    critic_penalty: float = Field(default=0.0, ge=0)
    """beta_2 of ReBRAC, in units of the reward."""
    beside: bool = False
    """With an encoder, read the observation beside its latents."""


@dataclass(frozen=True)
class SARSABatch:
    """Transitions with rewards, each field (R, B, ...)."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    """1 where the transition ended the episode by the MDP's own rule, else 0."""
    next_observations: Tensor
    next_actions: Tensor | None = None
    """The action recorded after the transition, NaN where there is none; needed for ``critic_penalty`` alone."""


def next_actions(table: TransitionTable) -> Tensor:
    """The action that was recorded after each row of a table, NaN at the end of an episode: (N, action_dim).

    Raises:
        ValueError: if transitions do not follow each other, which leaves the next action unknown.
    """
    row = torch.arange(len(table), device=table.last.device)
    following = torch.minimum(row + 1, table.last)
    apart = (table.observations[following] != table.next_observations).any(-1) & (row != table.last)
    if apart.any():
        raise ValueError(
            f"critic_penalty: found a value above 0, but row {int(apart.nonzero()[0])} of the dataset does not lead to the "
            "row that follows it; expected 0"
        )
    return torch.where((row == table.last).unsqueeze(-1), torch.nan, table.gather(following).actions)


def smoothed_action(unit_action: Tensor, noise: Tensor, clip: float) -> Tensor:
    """The target policy's action with clipped noise, kept in [-1, 1]: (R, B, act_dim), (R, B, act_dim) -> the same."""
    return (unit_action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def td_target(reward: Tensor, discount: Tensor, next_q: Tensor, penalty: Tensor | float = 0.0) -> Tensor:
    """The target r + gamma (1 - terminated) (min_i Q_i(s', a~) - penalty): next_q (R, 2, B), others (R, B) -> (R, B)."""
    return reward + discount * (next_q.amin(1) - penalty)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Sum over both critics of E (y - Q_i)^2: (R, 2, B), (R, B) -> (R,)."""
    return (target.unsqueeze(1) - q).square().mean(-1).sum(1)


def actor_loss(q: Tensor, squared_error: Tensor, alpha: float) -> Tensor:
    """E (pi(s) - a)^2 - lambda E Q_1(s, pi(s)), lambda = alpha / E |Q_1| a constant: (R, B), (R, B) -> (R,)."""
    return squared_error.mean(-1) - alpha * q.mean(-1) / q.detach().abs().mean(-1)


class TD3BC(Learner):
    """Learner of two Qs and a deterministic policy."""

    kind = "td3_bc"
    Config = TD3BCConfig
    shown = ("q", "squared_error")

    def __init__(self, c: TD3BCConfig, policy: Policy) -> None:
        super().__init__()
        self.config, self.policy = c, policy
        self._count(0)
        replicas, action_dim, dim = policy.architecture.replicas, len(policy.architecture.action_low), policy.width
        self.critic = MLP((replicas, 2), (dim + action_dim, *c.hidden, 1), layer_norm=c.layer_norm)
        self.target_actor = deepcopy(self.policy.network).requires_grad_(False)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)

    def get_extra_state(self) -> Tensor:
        """The number of updates so far: a part of the state that no device has to be asked for."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Any) -> None:
        """Go on counting from a saved number."""
        self._count(int(state))

    def _count(self, updates: int) -> None:
        """Set the number of updates, and whether the next one leaves actor and targets alone.

        ``delayed`` is kept because compiled code is specialised to what it reads: to two values, not to every count.
        """
        self.updates = updates
        self.delayed = (updates + 1) % self.config.policy_delay != 0

    @classmethod
    def needs(cls, c: TD3BCConfig) -> Needs:
        """Rewarded transitions with actions."""
        return Needs(actions=("dataset",), optional_encoder=True, rewards=True)

    @classmethod
    def build(cls, c: TD3BCConfig, world: World) -> TD3BC:
        """For the observations and actions of a world."""
        return cls(c, Policy.build(world, c.hidden, beside=c.beside))

    def prepare(self, sources: Sources) -> None:
        """Find the action that was recorded after each transition, where the penalty needs it."""
        if self.config.critic_penalty > 0:
            self.following = next_actions(sources.table("dataset"))

    def batch(self, sources: Sources, generator: torch.Generator) -> SARSABatch:
        """Uniform transitions with their rewards, and the next actions where they are needed."""
        table = sources.table("dataset")
        index = sources.rows(len(table), generator)
        b = table.gather(index)
        following = self.following[index] if self.config.critic_penalty > 0 else None
        rewards = sources.rewards.gather(1, index)
        return SARSABatch(b.observations, b.actions, rewards, b.terminated, b.next_observations, following)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Critics and actor at one constant rate."""
        return [
            {"params": [*self.critic.parameters(), *self.policy.network.parameters()], "lr": self.config.learning_rate}
        ]

    def losses(self, batch: SARSABatch) -> Losses:
        """L_Q, and L_pi where the actor is not delayed; without it the optimiser passes the actor over.

        The metric ``squared_error`` is the cloning term, ``q`` the critics' value of the recorded actions, and ``next_q``
        that of the target policy in the states that follow.

        Raises:
            ValueError: if there is a penalty, but no next actions.
        """
        c = self.config
        s, s_next = self.policy.features(batch.observations), self.policy.features(batch.next_observations)
        recorded = self.policy.unit(batch.actions)
        with torch.no_grad():
            noise = c.noise * torch.randn_like(recorded)
            next_action = smoothed_action(torch.tanh(self.target_actor(s_next)), noise, c.noise_clip)
            next_q = self.target_critic(_pair(s_next, next_action)).squeeze(-1)
            penalty = self._penalty(next_action, batch.next_actions)
            target = td_target(batch.rewards, c.gamma * (1.0 - batch.terminated), next_q, penalty)
        q = self.critic(_pair(s, recorded)).squeeze(-1)
        loss_q = loss = critic_loss(q, target)

        with torch.set_grad_enabled(not self.delayed):
            action = torch.tanh(self.policy.network(s))
            squared_error = (action - recorded).square().mean(-1)
        if not self.delayed:
            constant = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            q_policy = torch.func.functional_call(self.critic, constant, _pair(s, action)).squeeze(-1)[:, 0]
            loss = loss + actor_loss(q_policy, squared_error, c.alpha)
        return Losses(
            loss,
            {
                "critic_loss": loss_q.detach(),
                "squared_error": squared_error.detach().mean(-1),
                "q": q.detach().mean((1, 2)),
                "next_q": next_q.amin(1).mean(-1),
            },
        )

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the targets, unless they are delayed."""
        if not self.delayed:
            polyak(self.target_critic.parameters(), self.critic.parameters(), self.config.target_rate)
            polyak(self.target_actor.parameters(), self.policy.network.parameters(), self.config.target_rate)
        self._count(self.updates + 1)

    def export(self) -> Policy:
        """The policy of every replica."""
        return deepcopy(self.policy)

    def _penalty(self, unit_action: Tensor, recorded: Tensor | None) -> Tensor | float:
        """beta_2 |a~ - a'|^2, (R, B)."""
        if self.config.critic_penalty == 0.0:
            return 0.0
        if recorded is None:
            raise ValueError("TD3BC: critic_penalty needs next_actions, the batch has none")
        distance = (unit_action - self.policy.unit(recorded)).square().sum(-1)
        penalty: Tensor = self.config.critic_penalty * torch.where(distance.isnan(), 0.0, distance)
        return penalty


def _pair(observations: Tensor, actions: Tensor) -> Tensor:
    return torch.cat([observations, actions], -1).unsqueeze(1)
