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
terminated, its last remaining transition carries ``terminated``. A single row is no transition then and is left out.

A flag in ``terminals`` that is repeated while the state goes on says that a goal is reached, not that anything ended.

Formats that keep episodes apart hand over one part per episode, in the same terms; nothing is cut inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.schema import DataError, Episode, not_finite

FLOAT_COLUMNS = {"observations": 2, "next_observations": 2, "actions": 2, "rewards": 1}
FLAG_COLUMNS = ("terminals", "timeouts")
COLUMNS = (*FLOAT_COLUMNS, *FLAG_COLUMNS)

STATE_TOLERANCE = 1e-6
"""Largest difference between a successor and the next row's state within an episode, beside rounding."""
ROUNDING = 2.0
"""Largest difference by rounding, in units of the last place of the coarser type at the column's largest magnitude."""
JUMP = 3.0
"""A step is a jump to another episode if it is so many times as large as the largest known to be within one."""
BOUND_TOLERANCE = 1e-6
"""How far an action may exceed its bound by rounding."""

RATIO = 100
"""How far arrays beyond ``SMALL`` may be compressed."""
SMALL = 1 << 28
"""Bytes of an array that may be compressed as far as they like."""

NO_TRANSITION = "a single row, no transition"
BY_CARD = "named in leave_out"
"""Why an episode is left out, beside faults."""
FAULTY = "faulty"


@dataclass(frozen=True, eq=False)
class Part:
    """Some of ``COLUMNS`` as a file holds them, not checked yet. The last row ends an episode.

    Args:
        where: the file, and the place in it, for messages.
        columns: N rows each.
        name: of the episode, in formats that keep episodes apart: the part is this one episode.
        number: of the part's first episode, by default one more than that of the last before it.
        ends: (N,) bool, the rows that end an episode, where the format knows them all; None: they are to be found.
        fault: why the episode cannot be read; it has no columns then.
    """

    where: str
    columns: Mapping[str, np.ndarray]
    name: str | None = None
    number: int | None = None
    ends: np.ndarray | None = None
    fault: DataError | None = None


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What somebody should know of how a recording was read.

    Args:
        left_out: id of each episode that was left out, and why.
        inside: flags in ``terminals`` in rows after which the episode goes on.
        unmarked: ends that nobody marked.
        final: rows that are a final state only, without ``next_observations``.
        rows: of the recording.
        resimulated: largest difference between a row of ``next_observations`` and the next state in formats that keep
            episodes apart, where it is more than rounding; the states of the episode are taken then. Else 0.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    inside: int = 0
    unmarked: int = 0
    final: int = 0
    rows: int = 0
    resimulated: float = 0.0

    def __add__(self, other: Notes) -> Notes:
        return Notes(
            left_out={**self.left_out, **other.left_out},
            inside=self.inside + other.inside,
            unmarked=self.unmarked + other.unmarked,
            final=self.final + other.final,
            rows=self.rows + other.rows,
            resimulated=max(self.resimulated, other.resimulated),
        )


class Episodes(Iterator[Episode]):
    """The episodes of a recording, one after another, all checked before the first.

    Attributes:
        notes: how they were read.
    """

    def __init__(self, episodes: Iterable[Episode], notes: Notes | None = None) -> None:
        self._episodes = iter(episodes)
        self.notes = notes or Notes()

    def __next__(self) -> Episode:
        return next(self._episodes)


def whole(where: str, name: str, load: Callable[[], Mapping[str, np.ndarray]], number: int | None = None) -> Part:
    """A part that is one episode; a fault of its own is kept until it is known whether the card leaves it out.

    Args:
        where: the episode, for messages.
        name: of the episode in the recording.
        load: gives the columns.
        number: of the episode.
    """
    try:
        return Part(where, load(), name, number)
    except DataError as error:
        return Part(where, {}, name, number, fault=error)


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


def check_expansion(where: str, claimed: int, stored: int) -> None:
    """An array claims no more than a compression can explain.

    Args:
        where: it is, for messages.
        claimed: bytes in memory.
        stored: bytes in its file.

    Raises:
        DataError: if it claims more.
    """
    if claimed > SMALL and claimed > RATIO * stored:
        raise DataError(
            f"{where}: found {stored:,} bytes stored for {claimed:,} in memory, expected at least 1/{RATIO} of them"
        )


def numbered(names: Iterable[str], stem: str, where: str) -> dict[int, str]:
    """Names ``<stem>0``, ``<stem>1``, ... by their numbers, in order; other names are left out.

    Raises:
        DataError: if a number is written in another way, such as ``<stem>00``.
    """
    found = sorted((int(name[len(stem) :]), name) for name in names if name[len(stem) :].isdecimal())
    for number, name in found:
        if name != f"{stem}{number}":
            raise DataError(f"{where}: found {name!r}, expected {stem}{number}, without another spelling")
    return dict(found)


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


def cut(parts: Sequence[Part], card: DatasetCard, required: Collection[str] = (), *, faulty: bool = False) -> Episodes:
    """Check flat arrays as a whole, then yield their episodes.

    Args:
        parts: in recorded order.
        card: gives the ids, the action bounds, what ``terminals`` mean and the episodes to leave out.
        required: columns that the format demands, beside ``observations``, ``terminals`` and either ``timeouts`` or
            ``next_observations``, without which ends of episodes would go unnoticed.
        faulty: leave out what cannot be read, whatever the card says.

    Returns:
        The episodes. Numbers in ids count all episodes of the recording, also those that are left out.

    Raises:
        DataError: naming file, field, row, found and expected.
    """
    pieces: list[tuple[Mapping[str, np.ndarray], np.ndarray, int, int, str]] = []
    notes = Notes()
    choice = _Choice(card, faulty)
    number = 0
    for part in parts:
        number = number if part.number is None else part.number
        columns, fault = _columns(part, card, required)
        if columns is None:
            reason = choice.reason(part, number, fault or NO_TRANSITION)
            notes += Notes(left_out={_id(card, number): str(reason)})
            number += 1
            continue
        ends = find_ends(part, columns, card)
        finite = _Finite(part, columns)
        left: dict[str, str] = {}
        short = "next_observations" not in columns
        kept = np.ones(len(ends.last), bool)
        for start, stop in ends.bounds():
            found = finite.fault(start, stop) or (NO_TRANSITION if short and stop - start < 2 else None)
            reason = choice.reason(part, number, found)
            if reason is None:
                pieces.append((columns, ends.terminal, start, stop, _id(card, number)))
            else:
                left[_id(card, number)] = reason
                kept[start:stop] = False
            number += 1
        if "actions" in columns:
            check_bounds(columns["actions"], part.where, card, kept)
        notes += ends.notes + Notes(left_out=left)
    choice.check(parts, number)
    if not pieces and notes.left_out:
        if choice.faults:
            raise choice.faults[0]
        name, reason = next(iter(notes.left_out.items()))
        raise DataError(
            f"{parts[0].where}: found no episode to keep, {len(notes.left_out)} are left out; {name}: {reason}; expected at "
            "least one"
        )
    return Episodes((_episode(*piece) for piece in pieces), notes)


def _id(card: DatasetCard, number: int) -> str:
    return f"{card.name}-{number:06d}"


class _Choice:
    """Which episodes of a recording a card leaves out.

    Attributes:
        faults: of those that were left out for one.
    """

    def __init__(self, card: DatasetCard, faulty: bool) -> None:
        self.faults: list[DataError] = []
        self._card = card
        self._named = {name for name in card.leave_out or () if name != FAULTY}
        self._faulty = faulty or FAULTY in (card.leave_out or ())
        self._unknown = set(self._named)

    def reason(self, part: Part, number: int, found: DataError | str | None) -> str | None:
        """Why an episode is left out, None if it is kept.

        Args:
            part: it belongs to.
            number: of the episode.
            found: a fault, or another reason to leave it out.

        Raises:
            DataError: the fault, if the card does not leave it out.
        """
        names = {number, str(number), _id(self._card, number), part.name} & self._named
        self._unknown -= names
        if names:
            return BY_CARD
        if isinstance(found, DataError):
            if not self._faulty:
                raise found
            self.faults.append(found)
            return str(found).removeprefix(f"{part.where}: ")
        return found

    def check(self, parts: Sequence[Part], count: int) -> None:
        """All names have been found.

        Raises:
            DataError: if not.
        """
        if self._unknown:
            names = ", ".join(sorted(map(str, self._unknown)))
            named = [part.name for part in parts if part.name is not None]
            more = f" or their names ({named[0]} to {named[-1]})" if named else ""
            raise DataError(
                f"card {self._card.name}: leave_out: found {names}, expected numbers of episodes, 0 to {count - 1}{more}, "
                "or faulty"
            )


def _columns(
    part: Part, card: DatasetCard, required: Collection[str]
) -> tuple[dict[str, np.ndarray] | None, DataError | None]:
    """The checked columns of a part; or None, and what is wrong with the one episode that it is, None if it has no row.

    Raises:
        DataError: if something is wrong with a part that is more than one episode.
    """
    if part.fault is not None:
        return None, part.fault
    try:
        _check_presence(part.columns, part.where, required, card)
        if part.name is not None and part.columns["observations"].shape[:1] == (0,):
            return None, None
        return _checked(part.columns, part.where), None
    except DataError as error:
        if part.name is None:
            raise
        return None, error


def _check_presence(
    columns: Mapping[str, np.ndarray], where: str, required: Collection[str], card: DatasetCard
) -> None:
    found = ", ".join(columns) or "none of " + ", ".join(COLUMNS)
    for name in ("observations", "terminals", *required):
        if name not in columns:
            raise DataError(f"{where}: {name}: missing; found {found}")
    if "timeouts" not in columns and "next_observations" not in columns and card.dones is None:
        raise DataError(
            f"{where}: timeouts: missing; found {found}; expected timeouts or next_observations, "
            "else episodes cut off by a limit would run into each other; if terminals mark the end of every episode, set "
            f"dones: terminated or dones: truncated in the card {card.name}"
        )


def _checked(columns: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Shapes agree, flags are 0 or 1; numbers become float32, finite or not."""
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
            hint = ""
            if name == "actions" and values.ndim == 1 and values.dtype.kind in "iub":
                hint = "; whole numbers look like choices among discrete actions, which no method here takes"
            raise DataError(f"{where}: {name}: found shape {values.shape}, expected {expected}{hint}")
        if len(values) != rows:
            raise DataError(f"{where}: {name}: found {len(values)} rows, expected {rows} as in observations")
        if name in FLAG_COLUMNS:
            checked[name] = flags(values, where, name)
            continue
        with np.errstate(over="ignore"):
            checked[name] = values.astype(np.float32)
    if "next_observations" in checked and checked["next_observations"].shape != checked["observations"].shape:
        shapes = [checked[name].shape for name in ("next_observations", "observations")]
        raise DataError(f"{where}: next_observations: found shape {shapes[0]}, expected {shapes[1]} as observations")
    return checked


class _Finite:
    """Finds the first number of an episode that is not finite as float32."""

    def __init__(self, part: Part, columns: Mapping[str, np.ndarray]) -> None:
        self._part = part
        self._wrong: dict[str, np.ndarray] = {}
        for name in FLOAT_COLUMNS:
            if name in columns:
                wrong = ~np.isfinite(columns[name]).reshape(len(columns[name]), -1).all(1)
                if wrong.any():
                    self._wrong[name] = wrong

    def fault(self, start: int, stop: int) -> DataError | None:
        """What is wrong in these rows."""
        for name, wrong in self._wrong.items():
            if wrong[start:stop].any():
                row = start + int(np.argmax(wrong[start:stop]))
                found, component = not_finite(self._part.columns[name][row])
                return DataError(
                    f"{self._part.where}: {name}: found {found} in row {row}{component}, expected finite numbers (float32)"
                )
        return None


def check_bounds(actions: np.ndarray, where: str, card: DatasetCard, rows: np.ndarray | None = None) -> None:
    """Actions (N, action_dim) lie within the card's bounds, up to rounding.

    Args:
        actions: to check.
        where: they are, for messages.
        card: has the bounds.
        rows: (N,) bool, those to check; all by default.

    Raises:
        DataError: if not, or if the card has bounds for another number of components.
    """
    low, high = card.action_bounds(actions.shape[1])
    outside = (actions < np.subtract(low, BOUND_TOLERANCE)) | (actions > np.add(high, BOUND_TOLERANCE))
    if rows is not None:
        outside &= rows[:, None]
    if outside.any():
        row, axis = np.argwhere(outside)[0]
        raise DataError(
            f"{where}: actions: found {actions[row, axis]} in row {row}, component {axis}, expected a number in "
            f"[{low[axis]}, {high[axis]}] ({int(outside.any(1).sum())} rows are outside; the card {card.name} sets "
            "action_low and action_high)"
        )


@dataclass(frozen=True, eq=False)
class Ends:
    """Where the episodes of a part end, and whether in a terminal state.

    Args:
        last: (N,) bool, last rows of episodes.
        terminal: (N,) bool, steps that entered a terminal state; counts only where an episode ends.
        notes: what was found on the way.
    """

    last: np.ndarray
    terminal: np.ndarray
    notes: Notes

    def bounds(self) -> list[tuple[int, int]]:
        """First row and one past the last row of each episode."""
        stops = (np.flatnonzero(self.last) + 1).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))


def find_ends(part: Part, columns: Mapping[str, np.ndarray], card: DatasetCard) -> Ends:
    """Where the episodes of a part end.

    Args:
        part: as the file holds it.
        columns: its checked columns.
        card: its ``dones`` says what ``terminals`` mean, if it is set.

    Raises:
        DataError: if most rows are ends that nobody marked.
    """
    rows = len(columns["terminals"])
    terminals, timeouts = columns["terminals"], columns.get("timeouts", np.zeros(rows, bool))
    differs = gaps(part, columns) if "next_observations" in columns else None
    resimulated = 0.0
    if part.name is not None or part.ends is not None:
        last = np.zeros(rows, bool) if part.ends is None else part.ends.copy()
        last[-1] = True
        terminal = terminals
        inside = terminals & ~last
        if differs is None:
            inside[:-1] &= ~last[1:]
        elif (within := differs & ~last[:-1]).any():
            resimulated = float(_difference(columns)[within].max())
    else:
        goes_on = np.ones(rows - 1, bool) if differs is None else ~differs
        if differs is None and (terminals[:-1] & terminals[1:]).any():
            goes_on = ~_jumps(columns["observations"], terminals | timeouts)
        goes_on = np.append(goes_on, False) & ~timeouts
        follows = terminals[:-1] & terminals[1:] & goes_on[:-1]
        if terminals.all():  # episodes of one step each; a goal is left or not yet reached somewhere
            follows[:] = False
        repeated = np.append(follows, False) | np.append(False, follows)
        goal = 2 * int(repeated.sum()) > int(terminals.sum())
        inside = (terminals if goal else repeated) & goes_on
        last = (terminals & ~inside) | timeouts
        if differs is not None:
            _check_gaps(part, columns, differs, ~last[:-1])
            last[:-1] |= differs
        last[-1] = True
        terminal = terminals if card.dones is not None else terminals & ~repeated & (not goal)
        if card.dones == "truncated":
            terminal = np.zeros(rows, bool)
    notes = Notes(
        inside=int(inside.sum()),
        unmarked=int((last & ~terminals & ~timeouts).sum()),
        final=int(last.sum()) if differs is None else 0,
        rows=rows,
        resimulated=resimulated,
    )
    return Ends(last, terminal, notes)


def _jumps(observations: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Steps to the next row much larger than those within episodes, (N - 1,) bool.

    A column that never changes within an episode has no scale and is not looked at.
    """
    with np.errstate(invalid="ignore"):
        steps = np.abs(np.diff(observations, axis=0))
    inside = steps[~marked[:-1]]
    if not len(inside):
        return np.zeros(len(steps), bool)
    most = np.fmax.reduce(inside)
    return np.asarray((steps > JUMP * most)[:, most > 0].any(1))


def _difference(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each row's successor and the next row's state, (N - 1, observation_dim)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(columns["next_observations"][:-1] - columns["observations"][1:]))


def gaps(part: Part, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows whose ``next_observations`` are not the next row's ``observations``, up to rounding, (N - 1,) bool.

    Args:
        part: as the file holds it, for its number types.
        columns: its checked columns.
    """
    both = [columns[name] for name in ("observations", "next_observations")]
    types = [np.dtype(np.float32), *(part.columns[name].dtype for name in ("observations", "next_observations"))]
    precision = max(float(np.finfo(kind).eps) for kind in types if kind.kind == "f")
    scale = np.fmax(*(np.fmax.reduce(np.where(np.isfinite(values), np.abs(values), 0)) for values in both))
    return np.asarray((_difference(columns) > STATE_TOLERANCE + ROUNDING * precision * scale).any(1))


def _check_gaps(part: Part, columns: Mapping[str, np.ndarray], differs: np.ndarray, unmarked: np.ndarray) -> None:
    """Ends that nobody marked are the exception.

    Raises:
        DataError: if they are not, so that the successors rather than the episodes are in doubt.
    """
    found = int((differs & unmarked).sum())
    if 2 * found > int(unmarked.sum()):
        difference = np.where(unmarked[:, None], _difference(columns), 0.0)
        row, column = np.unravel_index(int(np.nanargmax(difference)), difference.shape)
        kinds = [part.columns[name].dtype for name in ("next_observations", "observations")]
        raise DataError(
            f"{part.where}: next_observations: found another state in {found} of {int(unmarked.sum())} rows without a mark "
            f"than observations of the next row, by up to {difference[row, column]:.4g} (row {row}, component {column}; "
            f"{kinds[0]} beside {kinds[1]}), expected the same state in most rows; one of the arrays may be rounded, "
            "measured anew or in another unit, then leave out next_observations; or rows are not in order, then mark each "
            "in timeouts"
        )


def _episode(columns: Mapping[str, np.ndarray], terminal: np.ndarray, start: int, stop: int, name: str) -> Episode:
    observations = columns["observations"][start:stop]
    steps = stop
    if "next_observations" in columns:
        observations = np.concatenate([observations, columns["next_observations"][stop - 1 : stop]])
    else:
        steps = stop - 1
    terminated = bool(terminal[steps - 1 : stop].any())
    timeout = "timeouts" in columns and bool(columns["timeouts"][stop - 1])
    return Episode(
        id=name,
        observations=observations.copy(),
        actions=columns["actions"][start:steps].copy() if "actions" in columns else None,
        rewards=columns["rewards"][start:steps].copy() if "rewards" in columns else None,
        terminated=terminated,
        truncated=timeout or not terminated,
    )
