r"""Following a demonstration: by progress along it where it leads somewhere, by staying near it where it repeats itself.

Our own. Progress says which way to go. In a gait every state stands at many steps of the demonstration, so progress says nothing
there; how long an episode stays near the demonstration tells good from bad.

| here | what |
|---|---|
| share of expert states with another at most k steps away by distance and more than 2 k by time | ``repeats`` |
| r_t of ``progress`` with lookahead k, where the demonstrations repeat themselves by half at most | ``Follow.against`` |
| else r_t = sum_i exp(-d(s_i, e) / tau) / m for all steps of an episode | ``Follow.against``, of ``nearest`` |

d is the distance to the nearest expert state, tau its median over the dataset, m the length of the demonstration. A reward that is
the same for all steps of an episode judges episodes; ``weighted_bc`` then compares episodes, not transitions of similar states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarep.pipeline.labelling import Compared, Judgement
from dynarep.pipeline.methods.rewards.nearest import Nearest
from dynarep.pipeline.methods.rewards.progress import Progress, ProgressConfig, step_lengths
from dynarep.pipeline.search import SearchConfig

NEARNESS = SearchConfig(scale=1.0, temperature=None, power=1, units="raw")
"""exp(-d / tau), tau the median of d."""


def repeats(expert: Tensor, steps: int) -> Tensor:
    """Share of a demonstration's states that it comes back to: within ``steps`` by distance, more than twice as many by time.

    Args:
        expert: points (R, m, d).
        steps: k.

    Returns:
        (R,), in [0, 1].

    Raises:
        ValueError: as ``progress.step_lengths``.
    """
    time = torch.arange(expert.shape[1], device=expert.device)
    soon = (time - time.unsqueeze(1)).abs() <= 2 * steps
    others = torch.cdist(expert, expert).masked_fill(soon, torch.inf).amin(2)
    unit = step_lengths(expert, torch.full((len(expert),), expert.shape[1]))
    return (others <= steps * unit.unsqueeze(1)).float().mean(1)


class Follow(Progress):
    """Rewards by progress along the demonstration, or by nearness of whole episodes to it."""

    kind = "follow"

    def __init__(self, c: ProgressConfig, world: Judgement) -> None:
        super().__init__(c, world)
        self.repeats = torch.cat([repeats(expert, c.lookahead) for expert in self.embedded_experts]).mean().item()
        self.nearest = Nearest(NEARNESS, world) if self.repeats > 0.5 else None

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Progress of each step, or nearness of each episode."""
        if self.nearest is None:
            found = super().against(agent, agent_lengths, expert, expert_lengths, calibration)
        else:
            found = self.nearest.against(agent, agent_lengths, expert, expert_lengths, calibration)
            near = found.rewards.sum(1) / expert_lengths
            inside = torch.arange(agent.shape[1], device=agent.device) < agent_lengths.unsqueeze(1)
            found = Compared(near.unsqueeze(1) * inside, {"nearness": near}, found.coupling)
        return Compared(
            found.rewards, {**found.metrics, "repeats": torch.full((len(agent),), self.repeats)}, found.coupling
        )
