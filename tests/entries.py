"""Entries of a params file as objects, and encoders that are closed forms, for tests of the library behind the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from dynarep.data.resident import observation_moments
from dynarep.data.shards import Dataset
from dynarep.pipeline.entries import INPUTS, Entry
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.identity import States, StatesArchitecture
from dynarep.pipeline.methods.encoders.standardise import StandardisedArchitecture, StandardisedStates
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import Normaliser
from dynarep.pipeline.playing.replay import Replay
from dynarep.pipeline.registry import ROOMS, find_method
from dynarep.pipeline.spaces import Space, space_of
from dynarep.pipeline.training.run import Run

CPU = torch.device("cpu")


NOTHING = Sources({}, replicas=2, batch_size=1, device=CPU)
"""For trainings whose batches come from elsewhere."""


@contextmanager
def unplugged(update: int) -> Iterator[None]:
    """Have a run that acts end without a word before an update, as where the machine is lost."""
    advance = Replay.advance

    def failing(self: Replay, now: int, policy: Any = None) -> None:
        if now == update:
            raise RuntimeError("pulled the plug")
        advance(self, now, policy)

    with patch.object(Replay, "advance", failing), pytest.raises(RuntimeError, match="pulled the plug"):
        yield


def entry(section: str, kind: str, config: Any = None, *, name: str = "name", **inputs: Any) -> Entry[Any]:
    """An entry of ``kind``; without a ``config`` with the defaults."""
    method = find_method(ROOMS[section], kind, "kind")
    needed = {"dataset": "data"} if section == "pretrain" else {"dataset": "data", "demonstrations": "data"}
    chosen = method.Config() if config is None else config
    return Entry(section, name, kind, method, INPUTS[section](**{**needed, **inputs}), chosen)


def raw(dataset: Dataset) -> Encoder:
    """States as they are."""
    return States(StatesArchitecture(replicas=1, observation_dim=dataset.spec.observation_dim))


def standardised(dataset: Dataset) -> Encoder:
    """States with mean 0 and deviation 1."""
    encoder = StandardisedStates(StandardisedArchitecture(replicas=1, observation_dim=dataset.spec.observation_dim))
    encoder.normaliser = Normaliser(*observation_moments(dataset))
    return encoder


def raw_space(dataset: Dataset) -> Space:
    """The space of ``raw``."""
    return space_of(raw(dataset), "states", dataset, CPU)


def a_run(folder: Path, name: str = "stage/name", replicas: int = 2) -> Run:
    """A run that writes into ``folder``/out."""
    (folder / "out").mkdir(parents=True)
    return Run(name, 0, replicas, folder / "out", folder / "checkpoints")


def drawn_by(sample: Callable[[torch.Generator], Any]) -> Callable[[Sources, torch.Generator], Any]:
    """Batches of a function that reads no sources."""

    def batch(sources: Sources, generator: torch.Generator) -> Any:
        return sample(generator)

    return batch
