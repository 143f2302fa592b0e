r"""CDRED: imitation while acting, by coupled distillation of random targets in the latents of a world model.

Li, Huang, Su, "Coupled Distributional Random Expert Distillation for World Model Online Imitation Learning", 2025,
arXiv 2505.02228, and its code. World model, values, policy and deviations: ``dynarep.pipeline.latent_actor_critic``.

| paper and published code | here |
|---|---|
| windows of H steps, half of the demonstrations and half of the replay | ``CDRED.roles`` |
| 0.1 sum_t rho^t (||f_E - g_k||^2 on the expert's (z_t, a_t) + ||f_B - g_k||^2 on the replay's) / (H D) | ``distillation_loss`` |
| r_t = -zeta b(f_E) + (1 - zeta) b(f_B) of (z_t, a_t), without gradient | ``coupled_reward`` |
| the policy climbs the smaller of two Qs | ``CDRED.climbed`` |

The demonstrations' actions are read by the model and the reward; the policy does not clone them. The fixed targets are part of
the state, which the published code forgets.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.latent_actor_critic import LatentActorCritic, LatentActorCriticConfig, LatentBatch
from dynarep.pipeline.method import Needs, Sources, World
from dynarep.pipeline.nn.distillation import CoupledDistillation, DistillationConfig
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.world_model import discounted


@config
class CDREDConfig(LatentActorCriticConfig):
    """Hyper-parameters of CDRED; the defaults are those of the published size of 5 million weights."""

    reward: DistillationConfig = DistillationConfig()


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


class CDRED(LatentActorCritic):
    """The reward is learned with the model from demonstrations and the replay, and asked anew about every window."""

    kind = "cdred"
    Config = CDREDConfig
    roles = ("demonstrations", "dataset")
    config: CDREDConfig

    def __init__(self, c: CDREDConfig, world: World) -> None:
        super().__init__(c, world, c.reward)

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
    def saw(cls, c: Any, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Demonstrations; of its own steps no reward."""
        return {"expert": expert, "other": "its own steps without rewards"}

    @property
    def distillation(self) -> CoupledDistillation:
        """Targets and predictors."""
        return cast(CoupledDistillation, self.policy.reward)

    def reward_batch(self, sources: Sources, generator: torch.Generator) -> Tensor:
        """The target k of each step, of f_E and of f_B, (R, B H, 2)."""
        c = self.config
        drawn = sources.rows(c.reward.targets, generator, times=2 * c.horizon)
        return drawn.view(sources.replicas, -1, 2)

    def reward_losses(self, points: Tensor, batch: LatentBatch) -> tuple[Losses, Tensor]:
        """The loss of both predictors at points (R, 2 B, H, D), and the rewards of this moment, (R, 2 B, H)."""
        distilled = self.distilled(points, batch)
        rewards = self.rewards(points)
        expert, agent = (x.mean((-1, -2)) for x in rewards.chunk(2, 1))
        metrics = {
            "expert_error": distilled[:, 0].detach(),
            "behaviour_error": distilled[:, 1].detach(),
            "expert_reward": expert,
            "agent_reward": agent,
        }
        return Losses(distilled.sum(1), metrics), rewards

    def distilled(self, points: Tensor, batch: LatentBatch) -> Tensor:
        """Loss of f_E on the expert's half of the points (R, 2 B, H, D) and of f_B on the other: (R, 2)."""
        halves = torch.stack(points.chunk(2, 1), 1).flatten(2, 3)
        errors = self.distillation.errors(halves[:, 0], halves[:, 1], batch.reward)
        within = torch.stack(batch.windows.within.chunk(2, 1), 1)
        return distillation_loss(errors.view_as(within), within, self.config.decay)

    @torch.no_grad()
    def rewards(self, points: Tensor) -> Tensor:
        """Rewards of this moment of points (R, 2 B, H, D): (R, 2 B, H)."""
        found: Tensor = self.distillation(points.flatten(1, 2))
        return found.view(points.shape[:3])

    def climbed(self, values: Tensor) -> Tensor:
        """The smaller of two Qs (R, 2, ...): (R, ...)."""
        return values.amin(1)
