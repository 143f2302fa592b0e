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
        self._least: np.ndarray = np.array(np.inf)
        self._most: np.ndarray = np.array(-np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Take in rows (n, ...) with n >= 1."""
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        total = self.count + len(rows)
        shift = mean - self._mean
        self._squares = self._squares + np.square(rows - mean).sum(0) + shift**2 * (self.count * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self._least = np.minimum(self._least, rows.min(0))
        self._most = np.maximum(self._most, rows.max(0))
        self.count = total

    @property
    def mean(self) -> list[float]:
        """Mean per column."""
        return [float(value) for value in np.atleast_1d(self._mean)]

    @property
    def std(self) -> list[float]:
        """Population standard deviation per column, 1 for a column that is constant in two rows or more.

        Whoever standardises divides by it. A constant column says nothing about its own scale. Divided by its deviation,
        0 or what rounding leaves of it, it would outweigh all others as soon as it moves in use; divided by 1 it stays in
        its unit.
        """
        constant = (self._least == self._most) & (self.count > 1)
        deviations = np.where(constant, 1.0, np.sqrt(self._squares / self.count))
        return [float(value) for value in np.atleast_1d(deviations)]
