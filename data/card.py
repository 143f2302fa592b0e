"""Dataset cards: small YAML files, ``configs/datasets/<name>.yaml``, that say where a dataset comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dynarep.data.schema import NAME, DataError


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Member:
    """A dataset in a mixture, and how much of it.

    Args:
        name: a card.
        fraction: share of its episodes, in (0, 1], chosen by the hash of their ids; at least one.
    """

    name: str
    fraction: float = Field(1.0, gt=0, le=1)


def _member(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DatasetCard:
    """One dataset. Exactly one of ``path`` (with ``format``), ``mix`` and ``from`` says where its episodes come from.

    Args:
        name: the file name of the card without ``.yaml``.
        description: for people.
        path: a recording; relative paths start at the project root, the folder that holds ``configs/``.
        format: ``d4rl`` (HDF5) or ``arrays`` (.npz).
        action_low: lower action bound, one number or one per component; -1 by default; only with ``path``.
        action_high: upper action bound, likewise; 1 by default.
        mix: other cards, whole or in part.
        base: ``from`` in YAML; another card.
        env: Gymnasium id of the environment, by default that of the card(s) this one is made of.
        top: keep the n episodes of highest return, in recorded order; needs rewards.
        stride: keep every n-th transition, after ``top``.
        observations_only: drop actions and rewards.
    """

    name: str
    description: str = ""
    path: str | None = None
    format: Literal["d4rl", "arrays"] | None = None
    action_low: float | tuple[float, ...] | None = None
    action_high: float | tuple[float, ...] | None = None
    mix: tuple[Annotated[Member, BeforeValidator(_member)], ...] | None = Field(None, min_length=1)
    base: str | None = Field(None, alias="from")
    env: str | None = None
    top: int | None = Field(None, gt=0)
    stride: int | None = Field(None, gt=0)
    observations_only: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: found {self.name!r}, expected at most 80 letters, digits, '-' and '_'")
        sources = {"path": self.path, "mix": self.mix, "from": self.base}
        given = [key for key, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'no source'}, expected exactly one of path, mix and from")
        if (self.path is None) != (self.format is None):
            raise ValueError("path and format: found only one of them, expected both")
        if self.path is None and (self.action_low is not None or self.action_high is not None):
            raise ValueError(f"action_low, action_high: only a card with path sets bounds, this one has {given[0]}")

    @property
    def members(self) -> tuple[Member, ...]:
        """The cards this one is made of; none if it reads a recording."""
        if self.base is not None:
            return (Member(name=self.base, fraction=1.0),)
        return self.mix or ()

    def action_bounds(self, action_dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lower and upper bound, ``action_dim`` numbers each.

        Raises:
            DataError: if the card gives another number of bounds, or a lower one that is not below the upper one.
        """
        bounds = []
        for key, value in (("action_low", self.action_low), ("action_high", self.action_high)):
            if value is None:
                value = -1.0 if key == "action_low" else 1.0
            numbers = value if isinstance(value, tuple) else (value,) * action_dim
            if len(numbers) != action_dim:
                raise DataError(f"card {self.name}: {key}: found {len(numbers)} numbers, expected {action_dim}")
            bounds.append(numbers)
        low, high = bounds
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise DataError(f"card {self.name}: found action_low {low} and action_high {high}, expected low < high")
        return low, high


def card_names(folder: Path) -> list[str]:
    """Names of the cards in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_card(name: str, folder: Path) -> DatasetCard:
    """Read ``<folder>/<name>.yaml``.

    Raises:
        DataError: if there is no such card (the message lists the known ones), it is not YAML, or a key or value is
            not allowed.
    """
    if name not in card_names(folder):
        raise DataError(f"unknown dataset {name!r}; {folder} has {', '.join(card_names(folder)) or 'no cards'}")
    path = folder / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: found {type(values).__name__}, expected a mapping")
    if "name" in values:
        raise DataError(f"{path}: name: unknown key; a card is named by its file")
    try:
        return TypeAdapter(DatasetCard).validate_python({**values, "name": name})
    except ValidationError as error:
        raise DataError("\n".join(f"{path}: {_problem(problem)}" for problem in error.errors())) from None


def _problem(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        kind = DatasetCard if len(problem["loc"]) == 1 else Member
        known = [field.name for field in dataclasses.fields(kind) if kind is Member or field.name != "name"]
        return f"{key}: unknown key, expected one of {', '.join(known).replace('base', 'from')}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{key}: found {problem['input']!r}: {problem['msg']}"
