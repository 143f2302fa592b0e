r"""TD-MPC2: a world model, values and a policy of its latents, from the environment's own reward.

Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", ICLR 2024, arXiv 2310.16828, and its code.
World model, values, policy and deviations: ``dynarep.pipeline.latent_actor_critic``.

| paper and published code | here |
|---|---|
| 0.1 sum_t rho^t CE(R(z_t, a_t), r_t) / H, r_t in 101 bins of symlog | ``reward_loss`` |
| y_t of the recorded r_t | ``TDMPC2.reward_losses`` |
| the policy climbs the mean of two Qs | ``TDMPC2.climbed`` |

It is published with planning: ``planning: {}``. Without, the reward is still learned, because it shapes the latents.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from dynarep.configs.params import config
from dynarep.pipeline.latent_actor_critic import LatentActorCritic, LatentActorCriticConfig, LatentBatch
from dynarep.pipeline.method import Needs
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.world_model import RewardHead, expected_value, value_loss


@config
class TDMPC2Config(LatentActorCriticConfig):
    """Hyper-parameters of TD-MPC2; the defaults are those of the published size of 5 million weights, without planning."""


def reward_loss(logits: Tensor, rewards: Tensor, within: Tensor, decay: float) -> Tensor:
    """sum_t rho^t E w_t CE(two-hot r_t, R) / H.

    Args:
        logits: of the head, (R, B, H, BINS).
        rewards: r_t, (R, B, H).
        within: w_t, (R, B, H).
        decay: rho.

    Returns:
        (R,).
    """
    return value_loss(logits.unsqueeze(1), rewards, within, decay)


class TDMPC2(LatentActorCritic):
    """The reward is the recorded one; a head learns it with the model."""

    kind = "td_mpc2"
    Config = TDMPC2Config

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """An environment, and perhaps a world model to start from."""
        return Needs(
            encoder=("z", "next"),
            optional_encoder=True,
            environment=c.environment,
            without=("dataset", "demonstrations"),
            dataset=False,
            demonstrations=False,
        )

    @classmethod
    def saw(cls, c: Any, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """The true reward."""
        return {"expert": "nothing", "other": "the true reward of its own steps"}

    def reward_losses(self, points: Tensor, batch: LatentBatch) -> tuple[Losses, Tensor]:
        """The loss of the head at points (R, B, H, D), and the recorded rewards, (R, B, H)."""
        w = batch.windows
        rewards = cast(Tensor, w.rewards)
        logits = cast(RewardHead, self.policy.reward).logits(points.flatten(1, 2)).view(*rewards.shape, -1)
        loss = reward_loss(logits, rewards, w.within, self.config.decay)
        missed = ((expected_value(logits.detach()) - rewards).abs() * w.within).sum((-1, -2)) / w.within.sum((-1, -2))
        return Losses(
            loss, {"reward_loss": loss.detach(), "reward_error": missed, "reward": rewards.mean((-1, -2))}
        ), rewards

    def climbed(self, values: Tensor) -> Tensor:
        """The mean of two Qs (R, 2, ...): (R, ...)."""
        return values.mean(1)
