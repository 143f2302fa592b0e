"""What a person names on the command line: a card, a recording without one, or a published dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.data import d4rl
from dynarep.data.card import DatasetCard, card_names, load_card, make_card
from dynarep.data.readers import load, locate, minari
from dynarep.data.readers.flat import BOUND_TOLERANCE, Part
from dynarep.data.readers.guess import guess
from dynarep.data.schema import DataError
from dynarep.data.shards import read_index


@dataclass(frozen=True)
class CardTarget:
    """A card.

    Args:
        name: of the card.
        cards: folder where it lies.
        project: relative paths in it start here.
    """

    name: str
    cards: Path
    project: Path

    @property
    def card(self) -> DatasetCard:
        """The card."""
        return load_card(self.name, self.cards)


@dataclass(frozen=True)
class RecordingTarget:
    """A recording for which a card is proposed.

    Args:
        name: of the card.
        values: its keys.
        path: of the recording.
        parts: its arrays before they are checked.
    """

    name: str
    values: dict[str, Any]
    path: Path
    parts: Sequence[Part]

    @property
    def card(self) -> DatasetCard:
        """The card."""
        return make_card(self.name, self.values, self.name)


def find_target(target: str, project: Path) -> CardTarget | RecordingTarget:
    """What a name stands for.

    Args:
        target: name of a card in ``<project>/configs/datasets``, a card's file, a recording's file or folder, or the name of
            a published dataset, a Minari id or one of D4RL's, which is downloaded if it is not there.
        project: the folder that holds ``configs/``.

    Raises:
        DataError: if it stands for nothing, or for a recording that is too damaged to say what it holds.
    """
    cards = project / "configs" / "datasets"
    file = Path(target)
    if file.suffix in (".yaml", ".yml"):
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        cards = file.parent
        if cards.resolve().parts[-2:] == ("configs", "datasets"):
            project = cards.resolve().parents[1]
        return CardTarget(file.stem, cards, project)
    if target in card_names(cards):
        return CardTarget(target, cards, project)
    if file.exists():
        return _recording(file, project)
    published = _published(target)
    if published is not None:
        try:
            path = locate(make_card("mine", published, target), project)
        except DataError as error:
            raise DataError(
                f"{target}: no such file or folder, and no card in {cards}; taken for a published dataset: {error}"
            ) from error
        return _recording(path, project, published)
    known = ", ".join(card_names(cards)) or "none"
    raise DataError(f"{target}: no such file or folder, and no card in {cards}; cards there: {known}")


def episode_numbers(words: Sequence[str]) -> list[int] | None:
    """Numbers of episodes, of which one that is not there may be negative; None where the words name something else."""
    return list(map(int, words)) if all(re.fullmatch(r"-?[0-9]+", word) for word in words) else None


def _published(target: str) -> dict[str, Any] | None:
    """Keys of a card for a published dataset, None if it is not named like one."""
    if target in d4rl.URLS:
        return {"dataset": target, "format": "d4rl"}
    return {"dataset": target, "format": "minari"} if minari.ID.fullmatch(target) else None


def _recording(path: Path, project: Path, published: dict[str, Any] | None = None) -> RecordingTarget:
    keys = guess(path)
    place = path.resolve()
    root = project.resolve()
    source = published or {"path": str(place.relative_to(root) if place.is_relative_to(root) else place)}
    base = published["dataset"] if published else place.stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", base).strip("-_")[:80] or "mine"
    values = {**source, **keys}
    parts = load(path, make_card(name, values, name))
    return RecordingTarget(name, values | _bounds(path, values["format"], parts), path, parts)


def _bounds(path: Path, kind: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Action bounds for a card: nothing if -1 and 1 will do, else those found, rounded outwards."""
    if kind == "prepared":
        bounds = {key: read_index(path)["spec"][key] for key in ("action_low", "action_high")}
        return bounds if set(bounds["action_low"]) - {-1.0} or set(bounds["action_high"]) - {1.0} else {}
    actions = [part.columns["actions"].astype(np.float64) for part in parts if "actions" in part.columns]
    if not actions or any(a.ndim != 2 or a.shape[1:] != actions[0].shape[1:] or not len(a) for a in actions):
        return {}
    low, high = (reduce([reduce(a) for a in actions]) for reduce in (np.fmin.reduce, np.fmax.reduce))
    inside = (low >= -1 - BOUND_TOLERANCE).all() and (high <= 1 + BOUND_TOLERANCE).all()
    if inside or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return {}
    low, high = np.floor(low * 100) / 100, np.ceil(high * 100) / 100
    return {"action_low": np.minimum(low, -1).tolist(), "action_high": np.maximum(high, 1).tolist()}
