r"""ValueDICE: imitation, offline or while acting, by the dual of KL(d^pi || d^exp), with a perceptron as the dual variable.

Kostrikov, Nachum, Tompson, "Imitation Learning via Off-Policy Distribution Matching", ICLR 2020, arXiv 1912.05032.

| paper | here |
|---|---|
| J(pi, Q), minimised over Q, maximised over pi, and its mixture with replay | ``dual_game.dual_objective`` |
| Q a perceptron (nu = -Q) | ``dual_game.PerceptronCritic`` |
| the updates of both players | ``dual_game.DualGame.losses``, which lists the deviations |
"""

from __future__ import annotations

from torch import nn

from dynarep.configs.params import config
from dynarep.pipeline.dual_game import DualGame, DualGameConfig, PerceptronCritic
from dynarep.pipeline.nn.models import Model
from dynarep.pipeline.nn.networks import Normaliser


@config
class ValueDICEConfig(DualGameConfig):
    """Hyper-parameters of ValueDICE; the defaults are the published ones."""


class ValueDICE(DualGame):
    """The dual game with a perceptron critic."""

    kind = "value_dice"
    Config = ValueDICEConfig

    @classmethod
    def saw(cls, c: ValueDICEConfig, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Both."""
        return {"expert": expert, "other": f"{data} without rewards"}

    def make_critic(self, normaliser: Normaliser, encoder: Model | None) -> nn.Module:
        """A perceptron."""
        if encoder is not None:
            raise ValueError("value_dice reads no encoder; repr_value_dice does")
        return PerceptronCritic(self.replicas, normaliser, len(self.low), self.config.hidden)
