"""What is shipped: models that are built from an architecture and nothing else, known by their kind.

A model class lives beside the method that trains it, in ``pipeline/methods/<room>/<kind>.py``, and registers itself. All
replicas are stored, with the replica axis in front; calls use the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from dynarep.pipeline.nn.networks import MLP

Room = Literal["encoders", "policies"]

MODELS: dict[tuple[str, str], type[Model]] = {}
"""Model classes by room and kind; ``dynarep.pipeline.registry`` fills it."""


class Architecture(Protocol):
    """What every architecture holds; each model has a frozen dataclass of its own."""

    @property
    def replicas(self) -> int: ...  # noqa: D102
    @property
    def observation_dim(self) -> int: ...  # noqa: D102


class Model(nn.Module):
    """A model that ``config.json`` and ``model.safetensors`` are enough to rebuild.

    Class attributes:
        room: where its kind belongs.
        kind: name of its file; empty for a base class.
        Architecture: its frozen configuration, the one argument of the constructor.
        shared: entries of the state that replicas share; all others have the replicas in front.
        free: fields of the architecture in which a model that a training starts from may differ.
    """

    room: ClassVar[Room]
    kind: ClassVar[str] = ""
    Architecture: ClassVar[type]
    shared: ClassVar[tuple[str, ...]] = ("normaliser.mean", "normaliser.std")
    free: ClassVar[tuple[str, ...]] = ()
    architecture: Any
    normaliser: nn.Module

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__dict__.get("kind"):
            MODELS[cls.room, cls.kind] = cls

    def inputs(self) -> tuple[Tensor, ...]:
        """Two rows of zeros for each argument of ``forward``."""
        return (torch.zeros(2, self.architecture.observation_dim),)

    def networks(self) -> dict[str, MLP]:
        """The networks that can be trained further, by name."""
        return {name: part for name, part in self.named_children() if isinstance(part, MLP)}

    def is_shared(self, name: str) -> bool:
        """Whether replicas share an entry of the state."""
        return name in self.shared

    def architecture_for(self, replicas: int) -> Any:
        """The same architecture with another number of replicas."""
        return dataclasses.replace(self.architecture, replicas=replicas)

    def replica_rows(self, replicas: Sequence[int]) -> Self:
        """A frozen copy of some replicas, in this order; one may come several times."""
        rows = list(replicas)
        state = {name: tensor if self.is_shared(name) else tensor[rows] for name, tensor in self.state_dict().items()}
        chosen = type(self)(self.architecture_for(len(rows)))
        chosen.load_state_dict(state)
        chosen.eval().requires_grad_(False)
        return chosen


class Encoder(Model):
    """A representation: points of states, or of states and actions, in one or several spaces.

    Class attributes:
        spaces: names of its spaces, the first one by default; a name says whether ``embed`` reads actions.
        reads_actions: those of the spaces whose points need an action.
        in_steps: those whose distance is a number of steps without calibration.
    """

    room = "encoders"
    spaces: ClassVar[tuple[str, ...]] = ("psi",)
    reads_actions: ClassVar[tuple[str, ...]] = ()
    in_steps: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> tuple[str, ...]:
        """Those of the spaces whose points labels may compare: all."""
        return self.spaces

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """Points of every replica: (R or 1, B, obs_dim), (R or 1, B, act_dim) or None -> (R, B, d)."""
        raise NotImplementedError

    def latent_dim(self) -> int:
        """Numbers in a point of the first space."""
        raise NotImplementedError

    def calibration_of(self, space: str) -> Tensor | None:
        """The scale (R,) that makes the squared distance of one step 1, where the encoder carries it."""
        return None

    def with_bit(self, observations: Tensor) -> Tensor:
        """Observations as the normaliser reads them."""
        return observations


class ActingModel(Model):
    """A policy: it answers observations with actions within bounds, and may keep a state over an episode."""

    room = "policies"
    shared: ClassVar[tuple[str, ...]] = ("normaliser.mean", "normaliser.std", "low", "high")
    low: Tensor
    high: Tensor

    @property
    def replicas(self) -> int:
        """Number of independently trained policies."""
        return int(self.architecture.replicas)

    def reset(self, seed: tuple[int, ...]) -> None:
        """Begin a block of episodes; policies without a state and without noise do nothing."""

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        raise NotImplementedError

    def forward(self, observation: Tensor) -> Tensor:
        """Actions of the first replica: (B, obs_dim) -> (B, act_dim)."""
        return self.act(observation[None])[0]
