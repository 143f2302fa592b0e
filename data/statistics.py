"""Mean and standard deviation of arrays too many to hold together."""

from __future__ import annotations

import numpy as np


class Moments:
    """Column-wise moments of batches of rows, accumulated in float64.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which does not cancel when the mean is
    large against the deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray = np.zeros(())
        self._squares: np.ndarray = np.zeros(())

    def add(self, rows: np.ndarray) -> None:
        """Take in rows (n, ...) with n >= 1."""
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        total = self.count + len(rows)
        shift = mean - self._mean
        self._squares = self._squares + np.square(rows - mean).sum(0) + shift**2 * (self.count * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self.count = total

    @property
    def mean(self) -> list[float]:
        """Mean per column."""
        return [float(value) for value in np.atleast_1d(self._mean)]

    @property
    def std(self) -> list[float]:
        """Population standard deviation per column."""
        return [float(value) for value in np.atleast_1d(np.sqrt(self._squares / self.count))]
