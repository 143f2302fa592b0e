"""Episodes for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dynarep.data.schema import Episode


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    """An episode of random numbers: ``make_episode(length, id="e-0", seed=0, observation_dim=3, action_dim=2, ...)``.

    ``separate=True`` gives transitions that do not follow each other; other keywords replace fields of the episode.
    """

    def make(
        length: int,
        id: str = "e-0",  # noqa: A002
        *,
        seed: int = 0,
        observation_dim: int = 3,
        action_dim: int = 2,
        separate: bool = False,
        **fields: Any,
    ) -> Episode:
        rng = np.random.default_rng(seed)
        values: dict[str, Any] = {
            "observations": rng.normal(size=(length + (not separate), observation_dim)).astype(np.float32),
            "next_observations": rng.normal(size=(length, observation_dim)).astype(np.float32) if separate else None,
            "actions": rng.uniform(-1, 1, (length, action_dim)).astype(np.float32) if action_dim else None,
            "rewards": rng.normal(size=length).astype(np.float32),
            "terminated": False,
            "truncated": True,
        }
        return Episode(id=id, **{**values, **fields})

    return make
