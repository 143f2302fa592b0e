"""Dataset cards: small YAML files, ``configs/datasets/<name>.yaml``, that say where a dataset comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dynarep.configs.params import NAME, EnvironmentId, ParamsError, read_yaml
from dynarep.data.schema import DataError

MOST_NOISE = 1 << 16
"""Numbers that can be appended to an observation."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Member:
    """A dataset in a mixture, and how much of it.

    Args:
        name: a card.
        fraction: share of its episodes, in (0, 1], chosen by the hash of their ids; at least one.
    """

    name: str
    fraction: float = Field(1.0, gt=0, le=1)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Noise:
    """Numbers appended to every observation that have nothing to do with the task, with mean 0.

    Args:
        kind: ``white``, drawn anew in every step, or ``ar1``, which remembers.
        dims: how many.
        rho: correlation of successive steps, for ``ar1``; 0.99 by default.
        deviation: of each number.
        seed: another seed draws other numbers.
    """

    kind: Literal["white", "ar1"]
    dims: int = Field(gt=0, le=MOST_NOISE)
    rho: float | None = Field(None, ge=0, lt=1)
    deviation: float = Field(1.0, gt=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0)

    def __post_init__(self) -> None:
        if self.kind == "white" and self.rho is not None:
            raise ValueError(f"noise.rho: found {self.rho} with kind white, expected it with kind ar1 only")

    @property
    def correlation(self) -> float:
        """Of successive steps."""
        if self.kind == "white":
            return 0.0
        return 0.99 if self.rho is None else self.rho


FORMAT_KEYS = {
    "dataset": ("d4rl", "minari"),
    "mirrors": ("d4rl",),
    "observations": ("robomimic", "minari", "lerobot"),
    "subset": ("robomimic",),
    "dones": ("d4rl", "arrays", "robomimic", "lerobot"),
    "leave_out": ("d4rl", "arrays", "ogbench", "robomimic", "lerobot", "minari"),
}
"""Keys that only some formats have."""


def _member(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _several(value: Any) -> Any:
    one = isinstance(value, int | str) and not isinstance(value, bool)
    return (value,) if one else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DatasetCard:
    """One dataset. Its source is exactly one of ``path`` and ``dataset`` (with ``format``), ``shards``, ``mix``, ``from``.

    Args:
        name: the file name of the card without ``.yaml``.
        description: for people.
        path: a recording; relative paths start at the project root, the folder that holds ``configs/``.
        dataset: a published dataset by its name, downloaded once; ``d4rl`` and ``minari`` have names.
        format: ``d4rl`` (HDF5), ``arrays`` (.npz, parquet, folder of .npy; .npy of one motion), ``ogbench`` (.npz),
            ``robomimic`` (HDF5),
            ``minari``, ``lerobot`` or ``prepared`` (folders).
        mirrors: other URLs of a D4RL dataset, tried in order after the official one.
        sha256: of the source, in hexadecimal; another content is refused. Of a recording's file; of a folder, that of the
            lines which ``sha256sum`` prints for the files that are read, by their sorted paths in it; of ``shards`` that of
            ``index.json``.
        observations: arrays that make up an observation, side by side in this order; ``robomimic`` and dictionaries in
            ``minari`` need it, ``lerobot`` takes ``observation.state`` by default.
        subset: a filter key of ``robomimic``, ``train`` for ``mask/train``; only its demonstrations are read.
        dones: what the done flag means that marks the end of every episode: a ``terminated`` task, or no more than that
            the recording ends, ``truncated``; ``robomimic`` and ``lerobot`` need it, ``d4rl`` and ``arrays`` without
            ``timeouts`` can have it for their ``terminals``.
        leave_out: episodes of the recording to leave out: numbers as in the ids, ids, names in the recording such as
            ``demo_3``, and ``faulty`` for all that cannot be read; one of them or several.
        action_low: lower action bound, one number or one per component; -1 by default; only with a recording.
        action_high: upper action bound, likewise; 1 by default.
        shards: a prepared dataset in a folder or at a URL, used where it lies; relative paths start at the project root.
        mix: other cards, whole or in part.
        base: ``from`` in YAML; another card.
        env: Gymnasium id of the environment, by default that of the card(s) this one is made of.
        max_return: leave out the episodes of a higher return; needs rewards.
        top: keep the n episodes of highest return, in recorded order, after ``max_return``; needs rewards.
        noise: numbers to append to every observation, after ``top``.
        stride: keep every n-th transition, after ``noise``.
        stride_offset: with ``random`` begin each episode at one of its first n transitions, which its id decides; else at the
            first.
        observations_only: drop actions and rewards; ``arrays`` of observations without any marks are one episode then.
    """

    name: str
    description: str = ""
    path: str | None = Field(None, min_length=1)
    dataset: str | None = Field(None, min_length=1)
    format: Literal["d4rl", "arrays", "ogbench", "robomimic", "minari", "lerobot", "prepared"] | None = None
    mirrors: tuple[str, ...] | None = Field(None, min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    observations: tuple[str, ...] | None = Field(None, min_length=1)
    subset: str | None = Field(None, min_length=1)
    dones: Literal["terminated", "truncated"] | None = None
    leave_out: Annotated[tuple[int | str, ...], BeforeValidator(_several)] | None = Field(None, min_length=1)
    action_low: float | tuple[float, ...] | None = None
    action_high: float | tuple[float, ...] | None = None
    shards: str | None = Field(None, min_length=1)
    mix: tuple[Annotated[Member, BeforeValidator(_member)], ...] | None = Field(None, min_length=1)
    base: str | None = Field(None, alias="from")
    env: EnvironmentId | None = None
    max_return: float | None = Field(None, allow_inf_nan=False)
    top: int | None = Field(None, gt=0)
    noise: Noise | None = None
    stride: int | None = Field(None, gt=0)
    stride_offset: Literal["random"] | None = None
    observations_only: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: found {self.name!r}, expected at most 80 letters, digits, '-' and '_'")
        sources = {"path": self.path, "dataset": self.dataset, "shards": self.shards, "mix": self.mix}
        sources["from"] = self.base
        given = [key for key, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"found {' and '.join(given) or 'no source'}, expected exactly one of path, dataset, shards, mix and from"
            )
        recorded = given[0] in ("path", "dataset")
        if recorded != (self.format is not None):
            raise ValueError(f"{given[0] if recorded else 'path'} and format: found only one of them, expected both")
        if not recorded and (self.action_low is not None or self.action_high is not None):
            raise ValueError(
                f"action_low, action_high: only a card with path or dataset sets bounds, this one has {given[0]}"
            )
        selects = any(value is not None for value in (self.max_return, self.top, self.noise, self.stride))
        if self.shards is not None and (selects or self.observations_only):
            raise ValueError(
                "max_return, top, noise, stride, observations_only: a card with shards takes them as they are; write a card "
                f"with from: {self.name} that selects, which copies what is selected"
            )
        for key, formats in FORMAT_KEYS.items():
            if getattr(self, key) is not None and self.format not in formats:
                raise ValueError(f"{key}: only for format {' and '.join(formats)}, this card has {self.format}")
        if self.stride is None and self.stride_offset is not None:
            raise ValueError(f"stride_offset: found {self.stride_offset!r} without stride, expected both")
        if self.members and self.sha256 is not None:
            raise ValueError(f"sha256: only for a source of its own, this card has {given[0]}")
        names = [member.name for member in self.members]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"mix: found {twice[0]} {names.count(twice[0])} times, expected each card once")
        if self.dataset is None and self.mirrors is not None:
            raise ValueError("mirrors: only for a dataset given by name, this card has path")

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
        values = read_yaml(path)
    except ParamsError as error:
        raise DataError(str(error)) from None
    if "name" in values:
        raise DataError(f"{path}: name: unknown key; a card is named by its file")
    return make_card(name, values, str(path))


def make_card(name: str, values: Mapping[str, Any], where: str) -> DatasetCard:
    """A card of these keys and values, as in YAML.

    Args:
        name: of the card.
        values: its keys, ``from`` for ``base``.
        where: for messages.

    Raises:
        DataError: if a key or value is not allowed.
    """
    try:
        return TypeAdapter(DatasetCard).validate_json(json.dumps({**values, "name": name}), strict=True)
    except ValidationError as error:
        raise DataError("\n".join(f"{where}: {_problem(problem)}" for problem in error.errors())) from None


def _problem(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        nested: type[Member] | type[Noise] = Noise if problem["loc"][0] == "noise" else Member
        kind = DatasetCard if len(problem["loc"]) == 1 else nested
        known = [field.name for field in dataclasses.fields(kind) if kind is Member or field.name != "name"]
        return f"{key}: unknown key, expected one of {', '.join(known).replace('base', 'from')}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{key}: found {problem['input']!r}: {problem['msg']}"
