"""JSON and tab-separated tables as the stages write them: equal values give equal bytes. And numbers for readers."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with a final newline; floats keep eight digits, those that are not finite become null."""
    path.write_text(json.dumps(_plain(value), indent=2) + "\n")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of equal keys as tab-separated values with a header; no rows give an empty file.

    A number that is not finite becomes an empty field.
    """
    with path.open("w", newline="") as file:
        if not rows:
            return
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _finite(value) for key, value in row.items()} for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = _finite(value)
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def count(number: int, noun: str) -> str:
    """A number of things, in the plural where there are several."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


MORE_DIGITS = 2
"""How many digits ``digits_apart`` adds at most."""


def number_text(value: float, form: str) -> str:
    """A number in a format such as ``,.1f`` or ``+.2f``; what reads as zero has no sign."""
    text = format(value, form)
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def digits_apart(values: Iterable[float | None], digits: int) -> list[int]:
    """How many digits behind the point each number of a column needs to read differently from all that are not equal to it.

    Args:
        values: a column; those that are None or not finite get ``digits``.
        digits: the least number; with ``MORE_DIGITS`` more, what is still the same to a reader gets ``digits``, too.
    """
    column = list(values)
    found = [digits] * len(column)
    waiting = {value for value in column if value is not None and math.isfinite(value)}
    for more in range(digits, digits + MORE_DIGITS + 1):
        texts = Counter(number_text(value, f".{more}f") for value in waiting)
        apart = {value for value in waiting if texts[number_text(value, f".{more}f")] == 1}
        found = [more if value in apart else known for value, known in zip(column, found, strict=True)]
        waiting -= apart
    return found
