"""Soft actor-critic on the environment's own reward, from nothing or from a dataset with rewards.

Haarnoja, Zhou, Abbeel, Levine, ICML 2018, arXiv 1801.01290. Equations, networks and deviations:
``dynarep.pipeline.soft_actor_critic``. With a dataset, its transitions fill the replay before the first step (offline to
online), with the rewards of an entry of ``relabel``; the environment's rewards are scaled as those are.
"""

from __future__ import annotations

from typing import Any

from dynarep.configs.params import config
from dynarep.pipeline.method import Needs
from dynarep.pipeline.soft_actor_critic import SoftActorCritic, SoftActorCriticConfig


@config
class SACConfig(SoftActorCriticConfig):
    """Hyper-parameters of SAC."""


class SAC(SoftActorCritic):
    """Soft actor-critic on the reward that comes with each step."""

    kind = "sac"
    Config = SACConfig

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """An environment; a dataset comes with rewards."""
        return Needs(
            actions=("dataset",),
            rewards=True,
            environment=c.environment,
            without=("dataset", "demonstrations", "rewards"),
        )

    @classmethod
    def saw(cls, c: Any, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Rewards."""
        began = data if rewards is None else f"{data} with the rewards {rewards}"
        return {"expert": "nothing", "other": f"{began}, then the true reward of its own steps"}
