"""JSON files that folders of recordings have beside the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynarep.configs.params import read_file
from dynarep.data.folders import parse_json
from dynarep.data.schema import DataError

JSON_BYTES = 1 << 26
"""Largest file that is read."""


def read_json(file: Path, kind: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        file: to read.
        kind: of dataset that must have it, for messages.

    Raises:
        DataError: if it is missing or no JSON object.
    """
    try:
        content = read_file(file, JSON_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read, so this is no {kind} dataset: {error.strerror}") from None
    values = parse_json(content, file)
    if not isinstance(values, dict):
        raise DataError(f"{file}: found {type(values).__name__}, expected a JSON object")
    return values
