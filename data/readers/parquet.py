"""Columns of parquet tables as arrays."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.configs.params import open_file
from dynarep.data.readers.flat import check_expansion
from dynarep.data.schema import DataError

BYTES = 8
"""Of a number, at most."""


def read_table(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the named columns that a parquet file has.

    Args:
        path: of the file.
        names: of columns: numbers give (rows,), lists of equally many numbers (rows, numbers).

    Raises:
        DataError: if pyarrow is not installed, the file is no readable table, or a column has empty cells or lists of
            different lengths.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: parquet needs the package pyarrow: pip install 'dynarep[parquet]'") from None
    try:
        with open_file(path) as content, pyarrow.parquet.ParquetFile(content) as file:
            _check_expansion(path, file.metadata, names)
            table = file.read([name for name in file.schema_arrow.names if name in names])
    except DataError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError of names that are no text
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    return {name: _array(table[name], f"{path}: {name}") for name in table.column_names if name in names}


def _check_expansion(path: Path, metadata: Any, names: Collection[str]) -> None:
    """No column claims more numbers than its compressed bytes can explain."""
    claimed: dict[str, int] = {}
    stored: dict[str, int] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            for name in names:
                if f"{chunk.path_in_schema}.".startswith(f"{name}."):
                    claimed[name] = claimed.get(name, 0) + BYTES * chunk.num_values
                    stored[name] = stored.get(name, 0) + chunk.total_compressed_size
    for name, size in claimed.items():
        check_expansion(f"{path}: {name}", size, stored[name])


def _array(column: Any, where: str) -> np.ndarray:
    """A pyarrow column as array."""
    import pyarrow.compute

    if column.null_count:
        raise DataError(f"{where}: found {column.null_count} empty cells, expected a value in every row")
    types = pyarrow.types
    if not (types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)):
        return np.asarray(column.to_numpy())
    widths = np.unique(pyarrow.compute.list_value_length(column).to_numpy())
    if len(widths) > 1:
        raise DataError(
            f"{where}: found lists of {widths[0]} to {widths[-1]} numbers, expected equally many in each row"
        )
    numbers = pyarrow.compute.list_flatten(column)
    if numbers.null_count:
        raise DataError(f"{where}: found {numbers.null_count} empty cells, expected numbers")
    return np.asarray(numbers.to_numpy()).reshape(len(column), -1 if len(column) else 0)
