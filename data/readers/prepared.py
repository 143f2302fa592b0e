"""A prepared dataset as a recording: what ``prepare.write_episodes`` made of a Python iterator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dynarep.data.card import DatasetCard
from dynarep.data.readers.flat import check_bounds
from dynarep.data.schema import Episode
from dynarep.data.shards import load_dataset, read_index


def read(path: Path, card: DatasetCard) -> Iterator[Episode]:
    """Episodes of a prepared dataset, renamed after the card.

    Raises:
        DataError: if the dataset is damaged, or an action is outside the card's bounds.
    """
    episodes = load_dataset(path).episodes
    for episode in episodes:
        if episode.actions is not None:
            check_bounds(episode.actions, f"{path}: {episode.id}", card)
    return (replace(episode, id=f"{card.name}-{i:06d}") for i, episode in enumerate(episodes))


def files(path: Path) -> list[Path]:
    """The files that are read."""
    return [path / "index.json", *(path / shard["file"] for shard in read_index(path)["shards"])]


def environment(path: Path) -> str | None:
    """Gymnasium id of the environment, if known."""
    env = read_index(path)["env"]
    return None if env is None else str(env)
