"""Choosing episodes by the hash of their id: the same on every machine and independent of their order."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from dynarep.data.schema import Episode


def hashed_choice(ids: Sequence[str], count: int, seed: int) -> set[str]:
    """``count`` of the ids, those whose hash with ``seed`` is smallest."""
    return set(sorted(ids, key=lambda name: sha256(f"{seed}/{name}".encode()).digest())[:count])


def held_out(episodes: Sequence[Episode], fraction: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Split whole episodes into those to learn from and those to measure on.

    Args:
        episodes: with unique ids.
        fraction: share of the episodes to hold out, in (0, 1), rounded to whole episodes.
        seed: another seed holds out others.

    Returns:
        (train, held out), each in the given order. Of two or more episodes neither part is empty; a single episode is
        for training.

    Raises:
        ValueError: if ``fraction`` is not in (0, 1).
    """
    chosen = held_out_ids([episode.id for episode in episodes], fraction, seed)
    return [e for e in episodes if e.id not in chosen], [e for e in episodes if e.id in chosen]


def held_out_ids(ids: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The ids of the episodes that ``held_out`` holds out.

    Raises:
        ValueError: if ``fraction`` is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held-out fraction: found {fraction}, expected a number in (0, 1)")
    count = min(max(round(fraction * len(ids)), 1), len(ids) - 1) if ids else 0
    return hashed_choice(ids, count, seed)
