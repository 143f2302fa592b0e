"""JSON and tab-separated tables as the stages write them: equal values give equal bytes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with a final newline; floats keep eight digits, those that are not finite become null."""
    path.write_text(json.dumps(_plain(value), indent=2) + "\n")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of equal keys as tab-separated values with a header; no rows give an empty file."""
    with path.open("w", newline="") as file:
        if not rows:
            return
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
