"""What the JSON files beside weights hold, as far as other stages and the report read them: types and ranges by file name.

Keys that nobody reads are left alone, so that an older or newer file of the same form is read, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dynarep.configs.params import FLOAT_MAX, NAME, EnvironmentId, Name
from dynarep.data.folders import parse_json, read_content

JSON_BYTES = 1 << 28
"""Largest file that is read."""

Finite = Annotated[float, Field(ge=-FLOAT_MAX, le=FLOAT_MAX, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Table = Annotated[list[Annotated[list[Finite | None], Field(min_length=1)]], Field(min_length=1)]
Policy = Annotated[str, Field(pattern=f"^(?:{NAME.pattern})(?:@[0-9]+)?$")]
"""Name of a policy, or of a snapshot of it."""

_stored = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))


@_stored
class Played:
    """Numbers of one policy, (replicas, episodes) each; null where one is not known.

    ``returns`` to ``distances`` are of episodes in an environment, ``errors`` and ``fitted_q`` of those of a recording.
    """

    returns: list[Annotated[list[Finite], Field(min_length=1)]] | None = Field(default=None, min_length=1)
    lengths: list[list[Annotated[int, Field(ge=1)]]] | None = None
    successes: Table | None = None
    distances: Table | None = None
    errors: Table | None = None
    fitted_q: Table | None = None
    seen: bool | None = None

    def __post_init__(self) -> None:
        if self.returns is None and self.errors is None:
            raise ValueError("returns, errors: found neither, expected episodes of an environment or of a recording")
        for keys in (("returns", "lengths", "successes", "distances"), ("errors", "fitted_q")):
            first = getattr(self, keys[0])
            shape = [] if first is None else [len(row) for row in first]
            for key in keys:
                table = getattr(self, key)
                if table is None and (first is None or key != "lengths"):
                    continue
                found = [] if table is None else [len(row) for row in table]
                if found != shape or len(set(shape)) > 1:
                    raise ValueError(
                        f"{key}: found rows of {found} numbers, expected equally many in all rows and tables"
                    )


@_stored
class Recording:
    """The recording that policies were judged on."""

    dataset: Name
    own: Finite | None


@_stored
class Returns:
    """``returns.json`` of an evaluation."""

    env: EnvironmentId
    env_options: dict[str, Any]
    seed: Count | None
    plane: list[Count] | None = Field(default=None, min_length=2, max_length=2)
    max_steps: Count | None
    action_repeat: Count | None = None
    reference: list[Finite] | None = Field(min_length=2, max_length=2)
    recording: Recording | None = None
    versions: dict[str, str]
    policies: dict[Policy, Played] = Field(min_length=1)

    def __post_init__(self) -> None:
        if self.reference is not None and not self.reference[0] < self.reference[1]:
            raise ValueError(f"reference: found {self.reference}, expected the larger number second")


@_stored
class Clip:
    """``clip.json`` of a film, or of the reason why there is none."""

    seconds_per_frame: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    notice: str = ""
    file: Annotated[str, Field(pattern=f"^(?:{NAME.pattern})(?:@[0-9]+)?\\.webp$")] | None = None
    frames: Annotated[int, Field(ge=1)] | None = None
    steps: Count | None = None
    reward: Finite | None = None
    ended: bool | None = None
    dataset: str | None = None
    episode: str | None = None


@_stored
class Training:
    """Of an entry, as far as the report shows it."""

    updates: Count | None = None


@_stored
class Entry:
    """An entry of a params file, as far as the report reads it."""

    training: Training | None = None


Entries = dict[str, Entry | None] | None


@_stored
class Params:
    """Of a params file, what an artifact was made by."""

    pretrain: Entries = None
    relabel: Entries = None
    learn: Entries = None


@_stored
class Metadata:
    """``metadata.json`` of an artifact."""

    stage: str | None = None
    kind: str | None = None
    params: Params = Field(default_factory=Params)
    datasets: dict[str, str] = Field(default_factory=dict)
    version: str | None = None
    dataset: str | None = None
    demonstrations: str | None = None
    rewards: str | None = None
    saw: dict[str, str] = Field(default_factory=dict)


@_stored
class Metrics:
    """``metrics.json``."""

    spearman_true_return: Finite | None = None
    remarks: list[str] = Field(default_factory=list)
    action_resolution: dict[str, Finite] = Field(default_factory=dict)


@_stored
class Demonstrations:
    """``metrics.json`` of the demonstrations."""

    dataset: Name
    returns: list[Finite] | None = Field(min_length=1)


@_stored
class Config:
    """``config.json`` of a model."""

    kind: str
    sha256: str


@_stored
class IndexedShard:
    """A shard in an index."""

    episodes: list[str]


@_stored
class Provenance:
    """What a dataset was made from."""

    cards: dict[str, dict[str, Any]] = Field(default_factory=dict)


@_stored
class Index:
    """``index.json`` of a prepared dataset, without what ``dynarep.data.shards`` checks before it is used."""

    transitions: Count
    shards: list[IndexedShard] = Field(min_length=1)
    env: EnvironmentId | None
    returns: list[Finite] | None
    provenance: Provenance


FORMS: dict[str, type] = {  # by file, or by folder and file
    "returns.json": Returns,
    "clip.json": Clip,
    "metadata.json": Metadata,
    "metrics.json": Metrics,
    "demonstrate/metrics.json": Demonstrations,
    "config.json": Config,
    "index.json": Index,
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a file of ``FORMS`` has its form.

    Raises:
        ValueError: if the file is missing, no regular file, too large, or holds something else; it names file and field.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    content = read_content(path, JSON_BYTES)
    values = parse_json(content, path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    form = FORMS.get(f"{path.parent.name}/{path.name}", FORMS.get(path.name))
    if form is not None:
        try:
            TypeAdapter(form).validate_json(content, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            if problem["type"] == "missing":
                raise ValueError(f"{path}: no {place!r}") from None
            raise ValueError(f"{path}: {place}: found {problem['input']!r:.200}: {problem['msg']}") from None
    return values
