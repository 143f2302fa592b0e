"""Flat arrays over all steps of a recording, as D4RL stores them, cut into episodes.

Row i holds the state s_i, the action taken in it, its reward, and whether the step ended the episode::

    row               0     1     2     3     4     5     6
    observations      s0    s1    s2    s0'   s1'   s0''  s1''
    terminals         0     0     1     0     0     0     0       entered a terminal state: terminated
    timeouts          0     0     0     0     1     0     0       stopped by a limit: truncated, no terminal
    episode           |---- 0 ----|     |-- 1 --|   |-- 2 --|     the last one has no mark: truncated

With ``next_observations`` an episode of n rows has n transitions; ends that nobody marked are found where
``next_observations[i]`` is not ``observations[i + 1]``, and are truncations. Without, the successor of an episode's
last row is unknown, so n rows give n - 1 transitions and the last row supplies the final state only; if the episode
terminated, its last remaining transition carries ``terminated``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.schema import DataError, Episode

FLOAT_COLUMNS = {"observations": 2, "next_observations": 2, "actions": 2, "rewards": 1}
FLAG_COLUMNS = ("terminals", "timeouts")
COLUMNS = (*FLOAT_COLUMNS, *FLAG_COLUMNS)

STATE_TOLERANCE = 1e-6
"""Largest difference between a successor and the next row's state within an episode."""
BOUND_TOLERANCE = 1e-6
"""How far an action may exceed its bound by rounding."""


def read_columns(path: Path, found: Collection[str], load: Callable[[str], object]) -> dict[str, np.ndarray]:
    """Load those of ``COLUMNS`` that a file has.

    Args:
        path: of the file, for messages.
        found: names in the file.
        load: reads one of them.

    Raises:
        DataError: if a column cannot be read or is no numeric array.
    """
    columns = {}
    for name in COLUMNS:
        if name not in found:
            continue
        try:
            values = load(name)
        except Exception as error:  # OSError, RuntimeError, zlib.error, BadZipFile, ... by the damage
            raise DataError(f"{path}: {name}: cannot be read, the file may be truncated or damaged: {error}") from error
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
            kind = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
            raise DataError(f"{path}: {name}: found {kind}, expected an array of numbers")
        columns[name] = values
    return columns


def cut(
    columns: Mapping[str, np.ndarray], path: Path, card: DatasetCard, required: Collection[str]
) -> Iterator[Episode]:
    """Check flat arrays as a whole, then yield their episodes.

    Args:
        columns: some of ``COLUMNS``; N rows each.
        path: of the file, for messages.
        card: gives the ids and the action bounds.
        required: columns that the format demands, beside ``observations``, ``terminals`` and either ``timeouts`` or
            ``next_observations``, without which ends of episodes would go unnoticed.

    Raises:
        DataError: naming file, field, row, found and expected.
    """
    _check_presence(columns, path, required)
    columns = _checked(columns, path)
    _check_bounds(columns.get("actions"), path, card)
    bounds = _bounds(columns)
    if "next_observations" not in columns:
        short = [start for start, stop in bounds if stop - start < 2]
        if short:
            rows = ", ".join(map(str, short[:5])) + ", ..." * (len(short) > 5)
            raise DataError(
                f"{path}: {len(short)} of {len(bounds)} episodes have a single row (rows {rows}), no transition "
                "without next_observations; expected at least 2 rows per episode"
            )
    return (_episode(columns, start, stop, f"{card.name}-{i:06d}") for i, (start, stop) in enumerate(bounds))


def _check_presence(columns: Mapping[str, np.ndarray], path: Path, required: Collection[str]) -> None:
    found = ", ".join(columns) or "none of " + ", ".join(COLUMNS)
    for name in ("observations", "terminals", *required):
        if name not in columns:
            raise DataError(f"{path}: {name}: missing; found {found}")
    if "timeouts" not in columns and "next_observations" not in columns:
        raise DataError(
            f"{path}: timeouts: missing; found {found}; expected timeouts or next_observations, "
            "else episodes cut off by a limit would run into each other"
        )


def _checked(columns: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Shapes agree, flags are 0 or 1, numbers are finite as float32."""
    rows = len(columns["observations"]) if columns["observations"].ndim else 0
    if rows == 0:
        raise DataError(f"{path}: observations: found shape {columns['observations'].shape}, expected at least one row")
    checked = {}
    for name, values in columns.items():
        ndim = FLOAT_COLUMNS.get(name, 1)
        if values.ndim != ndim or 0 in values.shape[1:]:
            expected = "(rows, numbers)" if ndim == 2 else "(rows,)"
            raise DataError(f"{path}: {name}: found shape {values.shape}, expected {expected}")
        if len(values) != rows:
            raise DataError(f"{path}: {name}: found {len(values)} rows, expected {rows} as in observations")
        if name in FLAG_COLUMNS:
            wrong = np.flatnonzero((values != 0) & (values != 1))
            if len(wrong):
                raise DataError(f"{path}: {name}: found {values[wrong[0]]} in row {wrong[0]}, expected 0 or 1")
            checked[name] = values.astype(bool)
            continue
        with np.errstate(over="ignore"):
            checked[name] = values.astype(np.float32)
        finite = np.isfinite(checked[name]).reshape(rows, -1).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise DataError(f"{path}: {name}: found {values[row]} in row {row}, expected finite numbers (float32)")
    if "next_observations" in checked and checked["next_observations"].shape != checked["observations"].shape:
        shapes = [checked[name].shape for name in ("next_observations", "observations")]
        raise DataError(f"{path}: next_observations: found shape {shapes[0]}, expected {shapes[1]} as observations")
    return checked


def _check_bounds(actions: np.ndarray | None, path: Path, card: DatasetCard) -> None:
    if actions is None:
        return
    low, high = card.action_bounds(actions.shape[1])
    outside = (actions < np.subtract(low, BOUND_TOLERANCE)) | (actions > np.add(high, BOUND_TOLERANCE))
    if outside.any():
        row, axis = np.argwhere(outside)[0]
        raise DataError(
            f"{path}: actions: found {actions[row, axis]} in row {row}, component {axis}, expected a number in "
            f"[{low[axis]}, {high[axis]}] ({int(outside.any(1).sum())} rows are outside; the card {card.name} sets "
            "action_low and action_high)"
        )


def _bounds(columns: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """First row and one past the last row of each episode."""
    ends = columns["terminals"].copy()
    if "timeouts" in columns:
        ends |= columns["timeouts"]
    if "next_observations" in columns:
        gap = np.abs(columns["next_observations"][:-1] - columns["observations"][1:]).max(1)
        ends[:-1] |= gap > STATE_TOLERANCE
    ends[-1] = True
    stops = np.flatnonzero(ends) + 1
    return list(zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True))


def _episode(columns: Mapping[str, np.ndarray], start: int, stop: int, name: str) -> Episode:
    observations = columns["observations"][start:stop]
    steps = stop
    if "next_observations" in columns:
        observations = np.concatenate([observations, columns["next_observations"][stop - 1 : stop]])
    else:
        steps = stop - 1
    terminated = bool(columns["terminals"][stop - 1])
    timeout = "timeouts" in columns and bool(columns["timeouts"][stop - 1])
    return Episode(
        id=name,
        observations=observations.copy(),
        actions=columns["actions"][start:steps].copy() if "actions" in columns else None,
        rewards=columns["rewards"][start:steps].copy() if "rewards" in columns else None,
        terminated=terminated,
        truncated=timeout or not terminated,
    )
