"""What a recorded episode is, and the error that says why something is not one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynarep.configs.params import NAME


class DataError(ValueError):
    """Data, or a description of data, is not as it must be; the message names place, field, found and expected."""


def not_finite(row: np.ndarray) -> tuple[str, str]:
    """The first number of a row that is not finite as float32, and which component it is, however wide the row is."""
    numbers = np.atleast_1d(row)
    with np.errstate(over="ignore"):
        component = int(np.argmax(~np.isfinite(numbers.astype(np.float32))))
    return f"{numbers[component]}", f", component {component}" if np.ndim(row) else ""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What all episodes of a dataset have in common.

    Args:
        observation_dim: numbers in one observation.
        action_dim: numbers in one action; 0 if the dataset has no actions.
        action_low: smallest allowed action, ``action_dim`` numbers.
        action_high: largest allowed action, ``action_dim`` numbers.
        has_rewards: whether every transition carries a reward.
    """

    observation_dim: int
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    has_rewards: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One episode of T >= 1 transitions (s_t, a_t, r_t, s_{t+1}).

    All arrays are float32, finite and agree in T; this is checked on construction.

    Args:
        id: unique in its dataset, for instance ``hopper-arbitrary-000012``.
        observations: (T + 1, observation_dim), the states s_0..s_T; or (T, observation_dim), the states s_t, where
            ``next_observations`` is given.
        next_observations: (T, observation_dim), the states s_{t+1} of transitions that do not follow each other.
        actions: (T, action_dim) in the units of the environment.
        rewards: (T,).
        terminated: the last transition entered a terminal state of the decision process.
        truncated: the recording stopped after the last transition for another reason, such as a time limit.

    Raises:
        DataError: if an array is not as described.
    """

    id: str
    observations: np.ndarray
    next_observations: np.ndarray | None = None
    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: bool
    truncated: bool

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.id):
            raise DataError(f"episode id: found {self.id!r}, expected at most 80 letters, digits, '-' and '_'")
        fields = {"observations": 2, "next_observations": 2, "actions": 2, "rewards": 1}
        for field, ndim in fields.items():
            values = getattr(self, field)
            if values is None and field != "observations":
                continue
            if not isinstance(values, np.ndarray) or values.dtype != np.float32:
                found = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
                raise self._error(field, found, "a float32 array")
            if values.ndim != ndim or (ndim == 2 and values.shape[1] == 0):
                raise self._error(field, f"shape {values.shape}", "(steps, numbers)" if ndim == 2 else "(steps,)")
        length = self.length
        if length < 1:
            raise self._error("observations", f"shape {self.observations.shape}", "at least one transition")
        states = length if self.next_observations is not None else length + 1
        for field, rows in {"next_observations": states, "actions": length, "rewards": length}.items():
            values = getattr(self, field)
            if values is not None and len(values) != rows:
                raise self._error(field, f"{len(values)} rows", f"{rows} for {states} observations")
        if self.next_observations is not None and self.next_observations.shape != self.observations.shape:
            found = f"shape {self.next_observations.shape}"
            raise self._error("next_observations", found, f"{self.observations.shape} as observations")
        for field in fields:
            values = getattr(self, field)
            if values is not None and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0, 0])
                found, component = not_finite(values[row])
                raise self._error(field, f"{found} in row {row}{component}", "finite numbers")

    def _error(self, field: str, found: str, expected: str) -> DataError:
        return DataError(f"episode {self.id}: {field}: found {found}, expected {expected}")

    @property
    def length(self) -> int:
        """Number of transitions T."""
        return len(self.observations) - (self.next_observations is None)

    @property
    def current(self) -> np.ndarray:
        """The states s_t, (T, observation_dim)."""
        return self.observations[: self.length]

    @property
    def successors(self) -> np.ndarray:
        """The states s_{t+1}, (T, observation_dim)."""
        return self.observations[1:] if self.next_observations is None else self.next_observations

    @property
    def return_(self) -> float | None:
        """Undiscounted sum of rewards, None without rewards."""
        return None if self.rewards is None else float(self.rewards.sum(dtype=np.float64))
