"""Parquet tables."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynarep.data.schema import DataError


def can_write() -> bool:
    """Whether the package for it is there."""
    return find_spec("pyarrow") is not None


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length.

    Raises:
        DataError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: parquet needs the package pyarrow: pip install 'dynarep[parquet]'") from None
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
