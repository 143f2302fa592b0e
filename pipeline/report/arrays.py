"""The npz files that the report reads: which arrays each of them holds, and of what shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.configs.params import FLOAT_MAX
from dynarep.data.readers.arrays import opened_archive
from dynarep.data.schema import DataError
from dynarep.pipeline.report.inputs import MissingInputError, ReportError

NUMBERS, INTEGERS, TEXT = "fiu", "iu", "U"
"""NumPy's kinds of types."""

WORDS = {NUMBERS: "numbers within float32", INTEGERS: "integers", TEXT: "text"}


@dataclass(frozen=True)
class Array:
    """What an array of a file is.

    Args:
        axes: their names, separated by blanks; axes of one name are equally long, and none is empty.
        kinds: of its type.
        optional: whether a file may lack it.
        gaps: whether a number that nobody knows may be NaN.
    """

    axes: str = ""
    kinds: str = NUMBERS
    optional: bool = False
    gaps: bool = False


LATENTS = {
    "latents": Array("states latents"),
    "observations": Array("states numbers", optional=True),
    "episode": Array("states", INTEGERS),
    "step": Array("states"),
    "return": Array("episodes", gaps=True),
}
"""``latents.npz`` of an encoder."""

PATHS = {"observations": Array("steps numbers"), "replica": Array("steps", INTEGERS)}
"""``paths.npz`` of an evaluation."""

EXAMPLE = {
    "rewards": Array("steps"),
    "true_rewards": Array("steps", optional=True),
    "coupling": Array("steps expert_steps", optional=True),
    "agent": Array(kinds=TEXT),
    "expert": Array(kinds=TEXT, optional=True),
}
"""An example of a label."""


def read_arrays(path: Path, form: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Those arrays of an npz file that are in a form.

    Raises:
        MissingInputError: if there is no file.
        ReportError: if it is damaged, or an array is missing or another than the form says.
    """
    if not path.exists():
        raise MissingInputError(path)
    try:
        with opened_archive(path) as archive:
            names = archive.files
            found = {name: archive[name] for name in form if name in names}
    except DataError as error:
        raise ReportError(str(error)) from None
    except Exception as error:  # ValueError, OSError, BadZipFile, zlib.error, ... by the damage
        raise ReportError(f"{path}: cannot be read, the file may be truncated or damaged: {error}") from None
    sizes: dict[str, int] = {}
    for name, array in form.items():
        if name in found:
            _check(f"{path}: {name}", found[name], array, sizes)
        elif not array.optional:
            raise ReportError(f"{path}: no array {name!r}; found {', '.join(names)}")
    return found


def _check(where: str, values: NDArray[Any], array: Array, sizes: dict[str, int]) -> None:
    """Refuse values that are not as said; ``sizes`` are those of the axes, which grow by those of this array."""
    if values.dtype.kind not in array.kinds:
        raise ReportError(f"{where}: found {values.dtype}, expected {WORDS[array.kinds]}")
    axes = array.axes.split()
    expected = ", ".join(f"{sizes[axis]} {axis}" if axis in sizes else axis for axis in axes)
    if len(axes) != values.ndim or any(
        not n or sizes.setdefault(a, n) != n for a, n in zip(axes, values.shape, strict=True)
    ):
        raise ReportError(f"{where}: found shape {values.shape}, expected ({expected})")
    if array.kinds == NUMBERS:
        known = values[~np.isnan(values)] if array.gaps else values
        if not (np.abs(known.astype(np.float64)) <= FLOAT_MAX).all():
            raise ReportError(
                f"{where}: found {values.dtype} that are not finite or too large, expected {WORDS[NUMBERS]}"
            )
