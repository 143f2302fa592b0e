r"""CDRED: imitation while acting, by coupled distillation of random targets in the latents of a world model.

Li, Huang, Su, "Coupled Distributional Random Expert Distillation for World Model Online Imitation Learning", 2025,
arXiv 2505.02228, and its code; the world model of Hansen, Su, Wang, "TD-MPC2", ICLR 2024, arXiv 2310.16828.

| paper and published code | here |
|---|---|
| windows of H steps, half of the demonstrations and half of the replay | ``CDRED.batch`` |
| z_0 = h(s_0), z_{t+1} = d(z_t, a_t); 20 sum_t rho^t ||z_{t+1} - sg h(s_{t+1})||^2 / (H dim z) | ``consistency_loss`` |
| 0.1 sum_t rho^t (||f_E - g_k||^2 on the expert's (z_t, a_t) + ||f_B - g_k||^2 on the replay's) / (H D) | ``distillation_loss`` |
| r_t = -zeta b(f_E) + (1 - zeta) b(f_B) of (z_t, a_t), without gradient | ``coupled_reward`` |
| y_t = r_t + gamma min of two target Qs at (h(s_{t+1}), pi) | ``td_target`` |
| 0.1 sum_t rho^t sum_i CE(Q_i(z_t, a_t), y_t) / (H N) | ``value_loss`` |
| sum_t rho^t E (eta log pi - min of two Qs / S) / (H + 1), latents without gradient | ``policy_loss`` |

The demonstrations' actions are read by the model and the reward; the policy does not clone them. The fixed targets are part of
the state, which the published code forgets. With an ``encoder`` of kind ``world_model`` latents and dynamics start from those
that were pretrained on any recording.

Deviations: all losses share one backward pass, so the policy meets the model as it was before this update. The gradients of
encoder, of the rest of the model, and of the policy are clipped each for itself. Rates are constant. Observations are
standardised by what the replica has seen. There is one update per step, none before the first. The end of an episode has no
meaning for the values, as published, where no task ends early: have the environment go on, such as by
``terminate_when_unhealthy: false``.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.replay import ReplayTable
from dynarep.data.resident import Batch, Windows
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.methods.policies.latent_gaussian import LatentGaussian, LatentGaussianArchitecture
from dynarep.pipeline.nn.distillation import CoupledDistillation, DistillationConfig, coupled_reward
from dynarep.pipeline.nn.functional import Losses, polyak
from dynarep.pipeline.nn.world_model import (
    ValueEnsemble,
    consistency_loss,
    discounted,
    expected_value,
    latent_network,
    moved_scale,
    policy_loss,
    rollout,
    td_target,
    value_loss,
)
from dynarep.pipeline.playing.environments import CollectionConfig


@config
class CDREDConfig:
    """Hyper-parameters of CDRED; the defaults are those of the published size of 5 million weights."""

    environment: CollectionConfig
    """What it acts in, and how its steps are collected."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the encoder."""
    latent_dim: int = Field(default=512, gt=0)
    """Numbers in a latent, a multiple of 8."""
    head_hidden: tuple[int, ...] = (512, 512)
    """Widths of dynamics, values and policy."""
    values: int = Field(default=5, ge=2)
    """N: Qs, of which two are drawn for each target."""
    reward: DistillationConfig = DistillationConfig()
    horizon: int = Field(default=3, gt=0)
    """H: steps of a window."""
    decay: float = Field(default=0.5, gt=0, le=1)
    """rho: weight of a step against the one before it."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    """Published as (T / 5 - 1) / (T / 5) within [0.95, 0.995] for episodes of T steps."""
    consistency_weight: float = Field(default=20.0, gt=0)
    value_weight: float = Field(default=0.1, gt=0)
    reward_weight: float = Field(default=0.1, gt=0)
    entropy: float = Field(default=1e-4, ge=0)
    """eta."""
    target_rate: float = Field(default=0.01, gt=0, le=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    encoder_rate_scale: float = Field(default=0.3, gt=0)
    """Rate of the encoder, as a share of the others'."""
    clip: float = Field(default=20.0, gt=0)
    """Largest norm of a gradient."""


@dataclass(frozen=True)
class CoupledBatch:
    """Windows of the demonstrations (B of them) and of the replay (B more), and what is drawn for them.

    Args:
        windows: (R, 2 B, ...).
        targets: k of each step, of f_E and of f_B, (R, B H, 2).
        chosen: two Qs for the targets, and two for the policy, (2, 2).
        returns: (R,) true return of the last episodes, to be shown.
    """

    windows: Windows
    targets: Tensor
    chosen: Tensor
    returns: Tensor


def distillation_loss(errors: Tensor, within: Tensor, decay: float) -> Tensor:
    """Sum over both predictors of sum_t rho^t E w_t x_t / H.

    Args:
        errors: x_t, the mean squared error of each predictor on its own windows, (R, 2, B, H).
        within: w_t, (R, 2, B, H).
        decay: rho.

    Returns:
        (R, 2).
    """
    return discounted(errors * within, decay)


class CDRED(Learner):
    """World model, reward, values and policy in one training."""

    kind = "cdred"
    Config = CDREDConfig
    shown = ("episode_return", "consistency")
    watches_gradients = True
    value_scale: Tensor

    def __init__(self, c: CDREDConfig, world: World) -> None:
        super().__init__()
        self.config, self.knows_moments = c, False
        self.policy = LatentGaussian(
            LatentGaussianArchitecture(
                replicas=world.replicas,
                observation_dim=world.observation_dim,
                action_low=world.action_low,
                action_high=world.action_high,
                hidden=c.hidden,
                latent_dim=c.latent_dim,
                policy_hidden=c.head_hidden,
            )
        )
        point = c.latent_dim + world.action_dim
        self.dynamics = latent_network((world.replicas,), (point, *c.head_hidden, c.latent_dim))
        self.critic = ValueEnsemble(world.replicas, c.latent_dim, world.action_dim, c.head_hidden, c.values)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.target_critic.network.dropout = 0.0
        self.distillation = CoupledDistillation(world.replicas, point, c.reward)
        self.register_buffer("value_scale", torch.ones(world.replicas))
        if world.encoder is not None:
            self._start_from(world.encoder, world.replicas)

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """An environment, demonstrations with actions, and perhaps a world model to start from."""
        return Needs(
            actions=("demonstrations",),
            encoder=("z", "next"),
            optional_encoder=True,
            environment=c.environment,
            without=("dataset",),
            dataset=False,
        )

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """For the observations, actions and world model of a world."""
        return cls(c, world)

    @classmethod
    def saw(cls, c: Any, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Demonstrations; of its own steps no reward."""
        return {"expert": expert, "other": "its own steps without rewards"}

    def _start_from(self, encoder: Any, replicas: int) -> None:
        """Take encoder, dynamics and moments of a world model.

        Raises:
            ValueError: if its networks have other sizes.
        """
        c, a = self.config, encoder.architecture
        for field, wanted in (("hidden", c.hidden), ("latent_dim", c.latent_dim), ("dynamics_hidden", c.head_hidden)):
            if getattr(a, field) != wanted:
                raise ValueError(f"encoder: found {field} {getattr(a, field)}, expected {wanted} as of this entry")
        part = encoder.replica_rows(list(range(replicas)) if a.replicas > 1 else [0] * replicas)
        self.policy.encoder.load_state_dict(part.encoder.state_dict())
        self.dynamics.load_state_dict(part.dynamics.state_dict())
        known = self.policy.normaliser
        known.mean.copy_(part.normaliser.mean.expand_as(known.mean))
        known.variance.copy_((part.normaliser.std + 1e-3).square().expand_as(known.variance))
        self.knows_moments = True

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions to try, (R, E, act_dim) within the bounds."""
        return self.policy.sample(observations, noise)

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """Add the states of new steps to the statistics; the steps are kept as they are."""
        if not self.knows_moments:
            self.policy.normaliser.see(batch.observations)
        return batch

    def batch(self, sources: Sources, generator: torch.Generator) -> CoupledBatch:
        """Uniform windows of the demonstrations and as many of the replay."""
        c = self.config
        parts = []
        for role in ("demonstrations", "dataset"):
            table = sources.table(role)
            rows = table.random_rows(sources.replicas, sources.batch_size, generator)
            parts.append(table.windows(rows, c.horizon))
        names = ("start", "actions", "following", "within")
        windows = Windows(**{name: torch.cat([getattr(part, name) for part in parts], 1) for name in names})
        targets = sources.rows(c.reward.targets, generator, times=2 * c.horizon).view(sources.replicas, -1, 2)
        orders = torch.rand(2, c.values, generator=generator, device=sources.device).argsort(1)
        returns = cast(ReplayTable, sources.table("dataset")).returns.clone()
        return CoupledBatch(windows, targets, orders[:, :2], returns)

    def step(self, latents: Tensor, actions: Tensor) -> Tensor:
        """d(z, a) of (R, B, latent_dim) and actions in [-1, 1], (R, B, act_dim): (R, B, latent_dim)."""
        return self.dynamics(torch.cat([latents, actions], -1))  # type: ignore[no-any-return]

    def losses(self, batch: CoupledBatch) -> Losses:
        """The model's three losses and the policy's; the parameters of both are disjoint."""
        c, w = self.config, batch.windows
        actions = self.policy.scale(w.actions)
        start = self.policy.latents(w.start)
        with torch.no_grad():
            following = self.policy.latents(w.following.flatten(1, 2)).view(*w.within.shape, -1)
        rolled = rollout(self.step, start, actions)
        latents = torch.cat([start.unsqueeze(2), rolled], 2)
        points = torch.cat([latents[:, :, :-1], actions], -1)

        consistency = consistency_loss(rolled, following, w.within, c.decay)
        distilled = self.distilled(points, batch)
        rewards = self.rewards(points)
        values = self.value_losses(latents[:, :, :-1], actions, rewards, following, batch)
        policy, log_probs = self.policy_losses(latents.detach(), batch)
        expert, agent = (x.mean((-1, -2)) for x in rewards.chunk(2, 1))
        model = c.consistency_weight * consistency + c.reward_weight * distilled.sum(1) + c.value_weight * values
        return Losses(
            model + policy,
            {
                "episode_return": batch.returns,
                "consistency": consistency.detach(),
                "value_loss": values.detach(),
                "expert_error": distilled[:, 0].detach(),
                "behaviour_error": distilled[:, 1].detach(),
                "expert_reward": expert,
                "agent_reward": agent,
                "entropy": -log_probs.detach().mean((-1, -2)),
                "value_scale": self.value_scale.clone(),
            },
        )

    def distilled(self, points: Tensor, batch: CoupledBatch) -> Tensor:
        """Loss of f_E on the expert's half of the points (R, 2 B, H, D) and of f_B on the other: (R, 2)."""
        halves = torch.stack(points.chunk(2, 1), 1).flatten(2, 3)
        errors = self.distillation.errors(halves[:, 0], halves[:, 1], batch.targets)
        within = torch.stack(batch.windows.within.chunk(2, 1), 1)
        return distillation_loss(errors.view_as(within), within, self.config.decay)

    @torch.no_grad()
    def rewards(self, points: Tensor) -> Tensor:
        """Rewards of this moment of points (R, 2 B, H, D): (R, 2 B, H)."""
        c = self.config.reward
        found = coupled_reward(*self.distillation.predictions(points.flatten(1, 2)), c.share, c.coupling)
        return found.view(points.shape[:3])

    def value_losses(
        self, latents: Tensor, actions: Tensor, rewards: Tensor, following: Tensor, batch: CoupledBatch
    ) -> Tensor:
        """Loss of all Qs at (z_t, a_t): latents (R, 2 B, H, d), ``following`` h(s_{t+1}) likewise; (R,)."""
        c, shape = self.config, rewards.shape
        with torch.no_grad():
            after = following.flatten(1, 2)
            tried, _ = self.policy.prior(after, torch.randn(*after.shape[:2], actions.shape[-1], device=after.device))
            q = expected_value(self.target_critic(after, tried)).view(*shape[:1], -1, *shape[1:])
            targets = td_target(rewards, q, batch.chosen[0], c.gamma)
        logits = self.critic(latents.flatten(1, 2), actions.flatten(1, 2))
        logits = logits.view(*logits.shape[:2], *shape[1:], -1)
        return value_loss(logits, targets, batch.windows.within, c.decay)

    def policy_losses(self, latents: Tensor, batch: CoupledBatch) -> tuple[Tensor, Tensor]:
        """Loss of the policy at latents (R, 2 B, H + 1, d), (R,), and the log density of its actions; it moves S first."""
        c, w, shape = self.config, batch.windows, latents.shape[:3]
        flat = latents.flatten(1, 2)
        noise = torch.randn(*flat.shape[:2], w.actions.shape[-1], device=flat.device)
        tried, log_probs = self.policy.prior(flat, noise)
        constant = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        logits = torch.func.functional_call(self.critic, constant, (flat, tried))
        values = expected_value(logits)[:, batch.chosen[1]].amin(1).view(shape)
        self.value_scale.copy_(moved_scale(self.value_scale, values[:, :, 0].detach()))
        reached = torch.cat([torch.ones_like(w.within[..., :1]), w.within], -1)
        log_probs = log_probs.view(shape)
        return policy_loss(values, log_probs, reached, self.value_scale.clone(), c.entropy, c.decay), log_probs

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder, the rest of the model, and policy, each at its own constant rate."""
        c = self.config
        model = [*self.dynamics.parameters(), *self.critic.parameters(), *self.distillation.predictors.parameters()]
        return [
            {
                "params": list(self.policy.encoder.parameters()),
                "lr": c.encoder_rate_scale * c.learning_rate,
                "clip": c.clip,
            },
            {"params": model, "lr": c.learning_rate, "clip": c.clip},
            {"params": list(self.policy.prior.parameters()), "lr": c.learning_rate, "eps": 1e-5, "clip": c.clip},
        ]

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the target Qs."""
        polyak(self.target_critic.parameters(), self.critic.parameters(), self.config.target_rate)

    def export(self) -> LatentGaussian:
        """The policy of every replica, with the encoder that it reads."""
        return deepcopy(self.policy)
