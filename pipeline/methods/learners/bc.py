"""Behaviour cloning: the policy that makes the recorded actions most likely (Pomerleau 1991).

| source | here |
|---|---|
| -E log pi(a|s) | ``cloning.Cloning.losses`` |
"""

from __future__ import annotations

from typing import Literal

import torch

from dynarep.configs.params import config
from dynarep.data.resident import Batch
from dynarep.pipeline.cloning import Cloning, CloningConfig
from dynarep.pipeline.method import Needs, Sources


@config
class BCConfig(CloningConfig):
    """Hyper-parameters of behaviour cloning."""

    data: Literal["demonstrations", "dataset"] = "demonstrations"
    """What is cloned."""


class BC(Cloning):
    """Clones all transitions of the demonstrations, or of the dataset."""

    kind = "bc"
    Config = BCConfig

    @classmethod
    def needs(cls, c: BCConfig) -> Needs:
        """The actions that are cloned."""
        return Needs(actions=(c.data,), optional_encoder=True)

    @classmethod
    def saw(cls, c: BCConfig, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """One of the two."""
        if c.data == "demonstrations":
            return {"expert": expert, "other": "nothing"}
        return {"expert": "nothing", "other": f"{data} without rewards"}

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Uniform transitions."""
        return sources.draw(self.config.data, generator)
