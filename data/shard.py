"""A tar of whole episodes, as the index of a prepared dataset lists it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dynarep.data.schema import DataError

SHARD_FILE = re.compile(r"shard-[0-9]+\.tar")
SHA256 = re.compile("[0-9a-f]{64}")

INDEX_BYTES = 1 << 28
"""Largest index that is read, one of several million episodes."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar of whole episodes, as the index lists it.

    Args:
        file: its name.
        bytes: its size.
        sha256: of its content, in hexadecimal.
        episodes: ids, in the order of the tar.
        steps: transitions of each episode.

    Raises:
        DataError: if it cannot be a shard.
    """

    file: str
    bytes: int
    sha256: str
    episodes: tuple[str, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not SHARD_FILE.fullmatch(self.file) or not SHA256.fullmatch(self.sha256):
            raise DataError(
                f"index.json: shards: found file {self.file!r} with sha256 {self.sha256!r}, expected shard-000000.tar and "
                "the like with 64 hexadecimal digits; prepare the dataset again"
            )
        if len(self.episodes) != len(self.steps) or min(self.steps, default=0) < 1:
            raise DataError(
                f"index.json: {self.file}: found {len(self.episodes)} episodes and {len(self.steps)} lengths, expected one "
                "length of at least 1 for each; prepare the dataset again"
            )


def check_content(place: Path | str, shard: Shard, size: int, digest: Callable[[], str]) -> None:
    """A shard is the one that the index lists.

    Args:
        place: of the shard, for messages.
        shard: as listed.
        size: bytes found.
        digest: gives the SHA-256 found; not called if the size is wrong.

    Raises:
        DataError: if it is not.
    """
    if size != shard.bytes:
        raise DataError(f"{place}: found {size} bytes, expected {shard.bytes}; prepare the dataset again")
    if (found := digest()) != shard.sha256:
        raise DataError(f"{place}: found sha256 {found}, expected {shard.sha256}; prepare the dataset again")


def missing_shard(place: Path | str) -> DataError:
    """The error for a shard that is not where it should be."""
    return DataError(f"{place}: no such file, but index.json lists it; prepare the dataset again")
