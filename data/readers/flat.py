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

Formats that keep episodes apart hand over one part per episode, in the same terms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, eq=False)
class Part:
    """Some of ``COLUMNS`` as a file holds them, not checked yet. The last row ends an episode.

    Args:
        where: the file, and the place in it, for messages.
        columns: N rows each.
    """

    where: str
    columns: Mapping[str, np.ndarray]


def read_columns(
    where: Path | str, found: Collection[str], load: Callable[[str], object], names: Sequence[str] = COLUMNS
) -> dict[str, np.ndarray]:
    """Load those of ``names`` that a file has.

    Args:
        where: the file, for messages.
        found: names in the file.
        load: reads one of them.
        names: columns to look for.

    Raises:
        DataError: if a column cannot be read or is no numeric array.
    """
    return {name: read_array(where, name, partial(load, name)) for name in names if name in found}


def read_array(where: Path | str, name: str, load: Callable[[], object]) -> np.ndarray:
    """One array of numbers.

    Raises:
        DataError: if it cannot be read or is something else.
    """
    try:
        values = load()
    except Exception as error:  # OSError, RuntimeError, zlib.error, BadZipFile, ... by the damage
        raise DataError(f"{where}: {name}: cannot be read, the file may be truncated or damaged: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        kind = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(f"{where}: {name}: found {kind}, expected an array of numbers")
    return values


def joined(arrays: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Named arrays of (N, d) or (N,) numbers side by side, in the order given, (N, sum of all d).

    Raises:
        DataError: if one has another number of axes or of rows.
    """
    columns = []
    for name, values in arrays.items():
        if values.ndim not in (1, 2):
            raise DataError(f"{where}: {name}: found shape {values.shape}, expected (rows, numbers) or (rows,)")
        columns.append(values[:, None] if values.ndim == 1 else values)
        if len(values) != len(columns[0]):
            raise DataError(
                f"{where}: {name}: found {len(values)} rows, expected {len(columns[0])} as in {next(iter(arrays))}"
            )
    return np.concatenate(columns, axis=1)


def flags(values: np.ndarray, where: str, name: str) -> np.ndarray:
    """0 and 1 of any number type as bool.

    Raises:
        DataError: if there is another value.
    """
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        raise DataError(f"{where}: {name}: found {values[tuple(wrong[0])]} in row {wrong[0][0]}, expected 0 or 1")
    return values.astype(bool)


def marks(done: np.ndarray | None, rows: int, where: str, name: str, card: DatasetCard) -> dict[str, np.ndarray]:
    """``terminals`` and ``timeouts`` of one whole episode in a format that leaves open what its done flag means.

    Args:
        done: flag of each row, None if the file has none: then the episode is truncated.
        rows: of the episode.
        where: for messages.
        name: of the flag.
        card: its ``dones`` says how to read the flag: ``terminated`` or ``truncated``.

    Raises:
        DataError: if the card does not say it, the flags are no flags, or a terminal state has a successor.
    """
    last = np.arange(rows) == rows - 1
    if done is None:
        if card.dones is not None:
            raise DataError(f"{where}: {name}: missing, but the card {card.name} sets dones: {card.dones}")
        return {"terminals": np.zeros(rows, bool), "timeouts": last}
    if card.dones is None:
        raise DataError(
            f"{where}: {name}: this format does not say whether the flag means a terminal state or the end of the "
            f"recording; set dones: terminated or dones: truncated in the card {card.name}"
        )
    if done.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{where}: {name}: found shape {done.shape}, expected ({rows},)")
    terminal = flags(done, where, name).reshape(rows) & (card.dones == "terminated")
    if terminal[:-1].any():
        raise DataError(
            f"{where}: {name}: found 1 in row {int(np.argmax(terminal))} of {rows}, but the episode goes on, so it is no "
            f"terminal state; set dones: truncated in the card {card.name}"
        )
    return {"terminals": last & terminal, "timeouts": last & ~terminal}


def cut(parts: Sequence[Part], card: DatasetCard, required: Collection[str] = ()) -> Iterator[Episode]:
    """Check flat arrays as a whole, then yield their episodes.

    Args:
        parts: in recorded order.
        card: gives the ids and the action bounds.
        required: columns that the format demands, beside ``observations``, ``terminals`` and either ``timeouts`` or
            ``next_observations``, without which ends of episodes would go unnoticed.

    Raises:
        DataError: naming file, field, row, found and expected.
    """
    pieces: list[tuple[Mapping[str, np.ndarray], int, int]] = []
    for part in parts:
        _check_presence(part.columns, part.where, required)
        columns = _checked(part.columns, part.where)
        if "actions" in columns:
            check_bounds(columns["actions"], part.where, card)
        bounds = _bounds(columns)
        if "next_observations" not in columns:
            short = [start for start, stop in bounds if stop - start < 2]
            if short:
                rows = ", ".join(map(str, short[:5])) + ", ..." * (len(short) > 5)
                raise DataError(
                    f"{part.where}: {len(short)} of {len(bounds)} episodes have a single row (rows {rows}), no "
                    "transition without next_observations; expected at least 2 rows per episode"
                )
        pieces += [(columns, start, stop) for start, stop in bounds]
    return (_episode(columns, start, stop, f"{card.name}-{i:06d}") for i, (columns, start, stop) in enumerate(pieces))


def _check_presence(columns: Mapping[str, np.ndarray], where: str, required: Collection[str]) -> None:
    found = ", ".join(columns) or "none of " + ", ".join(COLUMNS)
    for name in ("observations", "terminals", *required):
        if name not in columns:
            raise DataError(f"{where}: {name}: missing; found {found}")
    if "timeouts" not in columns and "next_observations" not in columns:
        raise DataError(
            f"{where}: timeouts: missing; found {found}; expected timeouts or next_observations, "
            "else episodes cut off by a limit would run into each other"
        )


def _checked(columns: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Shapes agree, flags are 0 or 1, numbers are finite as float32."""
    rows = len(columns["observations"]) if columns["observations"].ndim else 0
    if rows == 0:
        raise DataError(
            f"{where}: observations: found shape {columns['observations'].shape}, expected at least one row"
        )
    checked = {}
    for name, values in columns.items():
        ndim = FLOAT_COLUMNS.get(name, 1)
        if values.ndim != ndim or 0 in values.shape[1:]:
            expected = "(rows, numbers)" if ndim == 2 else "(rows,)"
            raise DataError(f"{where}: {name}: found shape {values.shape}, expected {expected}")
        if len(values) != rows:
            raise DataError(f"{where}: {name}: found {len(values)} rows, expected {rows} as in observations")
        if name in FLAG_COLUMNS:
            checked[name] = flags(values, where, name)
            continue
        with np.errstate(over="ignore"):
            checked[name] = values.astype(np.float32)
        finite = np.isfinite(checked[name]).reshape(rows, -1).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise DataError(f"{where}: {name}: found {values[row]} in row {row}, expected finite numbers (float32)")
    if "next_observations" in checked and checked["next_observations"].shape != checked["observations"].shape:
        shapes = [checked[name].shape for name in ("next_observations", "observations")]
        raise DataError(f"{where}: next_observations: found shape {shapes[0]}, expected {shapes[1]} as observations")
    return checked


def check_bounds(actions: np.ndarray, where: str, card: DatasetCard) -> None:
    """Actions (N, action_dim) lie within the card's bounds, up to rounding.

    Raises:
        DataError: if not, or if the card has bounds for another number of components.
    """
    low, high = card.action_bounds(actions.shape[1])
    outside = (actions < np.subtract(low, BOUND_TOLERANCE)) | (actions > np.add(high, BOUND_TOLERANCE))
    if outside.any():
        row, axis = np.argwhere(outside)[0]
        raise DataError(
            f"{where}: actions: found {actions[row, axis]} in row {row}, component {axis}, expected a number in "
            f"[{low[axis]}, {high[axis]}] ({int(outside.any(1).sum())} rows are outside; the card {card.name} sets "
            "action_low and action_high)"
        )


def _bounds(columns: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """First row and one past the last row of each episode."""
    ends = columns["terminals"].copy()
    if "timeouts" in columns:
        ends |= columns["timeouts"]
    if "next_observations" in columns:
        ends[:-1] |= gaps(columns)
    ends[-1] = True
    stops = np.flatnonzero(ends) + 1
    return list(zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True))


def gaps(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows whose ``next_observations`` are not the next row's ``observations``, (N - 1,) bool."""
    difference = np.abs(columns["next_observations"][:-1] - columns["observations"][1:]).max(1)
    return np.asarray(difference > STATE_TOLERANCE)


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
