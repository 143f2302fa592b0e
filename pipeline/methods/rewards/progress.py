r"""Progress along a demonstration: by how many steps the way through it becomes shorter, per step.

Our own; the idea of steps to go as a value is that of potential-based shaping (Ng, Harada, Russell, ICML 1999).

| here | what |
|---|---|
| j(s) = argmin_j d(s, e_j) | ``search.nearest_steps`` |
| V(s) = (m - 1 - j(s)) + d(s, e_j) / u, u the median step of the demonstration in the space | ``steps_to_go.steps_to_go`` |
| r_t = (V(s_t) - V(s_{t+k})) / k, clipped to [-1, 1] | ``steps_to_go.progress`` |

The steps that are left on the demonstration, and the distance to it: V leads around walls where d counts steps
(``temporal_metric``), because the demonstration has gone around them. Differences over one step drown in action noise, hence k.
No step makes the way shorter by more than one. A larger difference is a jump of j between parts of the demonstration that are
equally near, which says nothing of the step and would outweigh all that do, so r is clipped.
In a gait that repeats itself j is ambiguous; ``follow`` finds that out and looks at nearness there. A demonstration that ends
where its goal begins lets j saturate around the goal: record some steps more.
"""

from __future__ import annotations

from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.labelling import Compared, Comparison
from dynarep.pipeline.steps_to_go import progress


@config
class ProgressConfig:
    """Hyper-parameters of progress."""

    lookahead: int = Field(default=10, ge=1)
    """k: steps over which progress is measured; at the end of an episode those that are left, still divided by k."""


class Progress(Comparison):
    """Rewards by progress along the demonstration."""

    kind = "progress"
    Config = ProgressConfig

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Differences of the steps to go."""
        return progress(agent, agent_lengths, expert, expert_lengths, self.config.lookahead)
