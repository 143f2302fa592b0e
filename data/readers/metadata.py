"""JSON files that folders of recordings have beside the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynarep.data.schema import DataError


def read_json(file: Path, kind: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        file: to read.
        kind: of dataset that must have it, for messages.

    Raises:
        DataError: if it is missing or no JSON object.
    """
    try:
        values = json.loads(file.read_text())
    except OSError as error:
        raise DataError(f"{file}: cannot be read, so this is no {kind} dataset: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{file}: found {type(values).__name__}, expected a JSON object")
    return values
