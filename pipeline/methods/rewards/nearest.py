"""Rewards from the distance to the nearest state of an expert's episode.

Lyu, Ma, Wan, Liu, Li, Lu, "SEABO: A Simple Search-Based Method for Offline Imitation Learning", ICLR 2024,
arXiv 2402.03807; also the Minimum-Distance Reward of Dong, Omori, Ross, "Is Optimal Transport Necessary for Inverse
Reinforcement Learning?", 2025, arXiv 2506.06793.

| paper and published code | here |
|---|---|
| d = the distance of (s, s') to the nearest expert pair, Euclidean | ``search.with_lookahead``, ``search.nearest_steps`` |
| r = alpha exp(-beta d / dim A), dim A the size of an action | ``search.distance_reward`` |

SEABO on states alone is ``{lookahead: 1, units: raw, power: 1, divide_by_action_dim: true, scale: 1, temperature: 0.5}``;
its code sets beta 5 for AntMaze and does not divide by dim A for Adroit. The defaults are the form that is comparable with
AILOT: r = alpha exp(-tau c d^2), c the calibration of the space. With the same lookahead k > 0, c d^2 is AILOT's cost C_ij,
and each step takes its cheapest expert step in place of the coupling; for k = 0 AILOT's cost is twice that.

Deviations: SEABO's default pairs hold the action too, these do not, because demonstrations need not have any; only the
nearest neighbour counts (SEABO's k = 1). Its pair of an episode's last step holds the state after it, here the last state
stands twice, as in AILOT. Several experts are searched as one pool, as in SEABO.
"""

from __future__ import annotations

from dynarep.pipeline.search import Search


class Nearest(Search):
    """Rewards from the nearest expert state."""

    kind = "nearest"
