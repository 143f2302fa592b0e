r"""Following a demonstration: by progress along it where it leads somewhere, by staying near it where it repeats itself.

Our own. Progress says which way to go. In a gait every state stands at many steps of the demonstration, so progress says nothing
there; how long an episode stays near the demonstration tells good from bad.

| here | what |
|---|---|
| share of expert states that come again: at most k steps away, more than 2 k steps of travel later | ``repeats`` |
| r_t of ``progress`` with lookahead k, where that share is ``REPEATED`` at most | ``steps_to_go.progress`` |
| else r_t = sum_i exp(-d(s_i, e) / tau) / m for all steps of an episode | ``Follow.against``, ``search.Search`` |

d is the distance to the nearest expert state, tau its median over the dataset, m the length of the demonstration. A reward that
is the same for all steps of an episode judges episodes; ``weighted_bc`` then compares whole episodes. Travel, the sum of the
distances from step to step, stands for time, so that a demonstration that holds still, at its end for instance, repeats nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.labelling import Compared, Comparison, Judgement
from dynarep.pipeline.search import Search, SearchConfig
from dynarep.pipeline.steps_to_go import progress, step_lengths

NEARNESS = SearchConfig(scale=1.0, temperature=None, power=1, units="raw")
"""exp(-d / tau), tau the median of d."""

REPEATED = 0.5
"""Share of a demonstration's states that it comes back to, above which progress along it says little."""


@config
class FollowConfig:
    """Hyper-parameters of following."""

    lookahead: int = Field(default=10, ge=1)
    """k: steps over which progress is measured; and within which a demonstration meets its own states again."""


def repeats(expert: Tensor, steps: int) -> Tensor:
    """Share of a demonstration's states that it comes back to: within ``steps`` by distance, more than twice as many by travel.

    Args:
        expert: points (R, m, d).
        steps: k.

    Returns:
        (R,), in [0, 1].

    Raises:
        ValueError: as ``steps_to_go.step_lengths``.
    """
    units = step_lengths(expert, torch.full((len(expert),), expert.shape[1]))
    shares = []
    for x, unit in zip(expert, units, strict=True):
        travel = torch.cat([x.new_zeros(1), x.diff(dim=0).norm(dim=1).cumsum(0)])
        later = (travel - travel.unsqueeze(1)).abs() > 2 * steps * unit
        again = (torch.cdist(x, x) <= steps * unit) & later
        shares.append(again.any(1).float().mean())
    return torch.stack(shares)


class Follow(Comparison):
    """Rewards by progress along the demonstration, or by nearness of whole episodes to it."""

    kind = "follow"
    Config = FollowConfig

    def __init__(self, c: FollowConfig, world: Judgement) -> None:
        super().__init__(c, world)
        self.repeats = torch.cat([repeats(expert, c.lookahead) for expert in self.embedded_experts]).mean().item()
        self.nearest = Search(NEARNESS, world) if self.repeats > REPEATED else None

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Progress of each step, or nearness of each episode."""
        repeated = {"repeats": torch.full((len(agent),), self.repeats)}
        if self.nearest is None:
            found = progress(agent, agent_lengths, expert, expert_lengths, self.config.lookahead)
            return Compared(found.rewards, found.metrics | repeated, found.coupling)
        found = self.nearest.against(agent, agent_lengths, expert, expert_lengths, calibration)
        near = found.rewards.sum(1) / expert_lengths
        inside = torch.arange(agent.shape[1], device=agent.device) < agent_lengths.unsqueeze(1)
        return Compared(near.unsqueeze(1) * inside, {"nearness": near} | repeated, found.coupling)
