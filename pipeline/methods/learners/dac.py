"""DAC: imitation while acting by a discriminator of the agent's steps and the demonstrations.

Kostrikov, Agrawal, Dwibedi, Levine, Tompson, "Discriminator-Actor-Critic", ICLR 2019, arXiv 1809.02925; penalty: Gulrajani et
al. 2017, arXiv 1704.00028. Settings: those of the baselines in the code of Noise-Guided Transport (arXiv 2509.26294).

| source | here |
|---|---|
| -E_expert log D - E_agent log(1 - D), D = sigmoid(d) | ``binary_loss`` |
| E_agent d - E_expert d (W-DAC) | ``wasserstein_loss`` |
| 10 E (||grad d|| - 1)^2 between the two | ``functional.gradient_penalty`` |
| r = log D - log(1 - D) = d | ``DAC.reward_of`` |

Deviations: no absorbing states; TD3 is soft actor-critic here; a point of the replay is mixed with a point of the
demonstrations in their order, which is as good as a random one, because the replay's are drawn at random.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dynarep.configs.params import Field, config
from dynarep.pipeline.method import World
from dynarep.pipeline.nn.functional import Losses, gradient_penalty
from dynarep.pipeline.nn.spectral import SpectralMLP
from dynarep.pipeline.online_imitation import OnlineImitationConfig, PointReward


@config
class DACConfig(OnlineImitationConfig):
    """Hyper-parameters of DAC."""

    reward_hidden: tuple[int, ...] = (128, 128, 128)
    reward_rate: float = Field(default=5e-5, gt=0)
    gradient_penalty: float = Field(default=10.0, ge=0)
    divergence: Literal["binary", "wasserstein"] = "binary"


def binary_loss(expert: Tensor, agent: Tensor) -> Tensor:
    """-E_expert log sigmoid(d) - E_agent log(1 - sigmoid(d)): (R, B'), (R, B) -> (R,)."""
    return softplus(-expert).mean(-1) + softplus(agent).mean(-1)


def wasserstein_loss(expert: Tensor, agent: Tensor) -> Tensor:
    """E_agent d - E_expert d: (R, B'), (R, B) -> (R,)."""
    return agent.mean(-1) - expert.mean(-1)


class DAC(PointReward):
    """Soft actor-critic on the logit of a discriminator."""

    kind = "dac"
    Config = DACConfig
    shown = ("episode_return", "reward_loss")

    def __init__(self, c: DACConfig, world: World) -> None:
        super().__init__(c, world)
        self.discriminator = SpectralMLP(world.replicas, (self.space.dim, *c.reward_hidden, 1), normalise=False)

    def reward_of(self, points: Tensor) -> Tensor:
        """The logit d."""
        return self.discriminator(points).squeeze(-1)  # type: ignore[no-any-return]

    def reward_loss(self, expert: Tensor, agent: Tensor) -> Losses:
        """The loss of the discriminator and its penalty."""
        c = self.config
        logits = self.reward_of(torch.cat([expert, agent], 1))
        d_expert, d_agent = logits[:, : expert.shape[1]], logits[:, expert.shape[1] :]
        told_apart = (binary_loss if c.divergence == "binary" else wasserstein_loss)(d_expert, d_agent)
        size = agent.shape[1]
        other = expert.repeat(1, math.ceil(size / expert.shape[1]), 1)[:, :size]
        between = torch.lerp(other, agent, torch.rand(*agent.shape[:2], 1, device=agent.device))
        penalty = gradient_penalty(
            lambda x, rest: self.reward_of(torch.cat([x, rest], -1)), between[..., :1], between[..., 1:]
        )
        return Losses(
            told_apart + c.gradient_penalty * penalty,
            {
                "reward_loss": told_apart.detach(),
                "expert_logit": d_expert.detach().mean(-1),
                "agent_logit": d_agent.detach().mean(-1),
            },
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Also the discriminator, at a rate of its own."""
        own = {"params": list(self.discriminator.parameters()), "lr": self.config.reward_rate}
        return [*super().parameter_groups(), own]
