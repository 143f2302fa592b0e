"""Noise dimensions: numbers beside an observation that have nothing to do with the task.

A representation of states should not change when such numbers are appended. ``white`` noise is drawn anew in every step.
``ar1`` noise remembers, x_{t+1} = rho x_t + sqrt(1 - rho^2) e_t with e_t ~ N(0, 1), so it drifts as slowly as states do.
Both start in their stationary distribution and have mean 0 and one deviation in every step. A whole episode at once and a
process row by row give the same numbers, so that a recording and an environment can have the same noise.
"""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Literal

import numpy as np

Kind = Literal["white", "ar1"]


class NoiseProcess:
    """Noise of one episode after another, a row for each observation.

    Args:
        kind: ``white`` or ``ar1``.
        dims: numbers in a row, >= 1.
        rho: correlation of successive rows in [0, 1); only ``ar1`` has one.
        deviation: of each number.

    Raises:
        ValueError: if ``dims`` or ``rho`` is out of range.
    """

    def __init__(self, kind: Kind, dims: int, rho: float = 0.0, deviation: float = 1.0) -> None:
        if dims < 1:
            raise ValueError(f"dims: found {dims}, expected at least 1")
        if not 0 <= rho < 1:
            raise ValueError(f"rho: found {rho}, expected a number in [0, 1)")
        self.dims = dims
        self.rho = rho if kind == "ar1" else 0.0
        self.scale = math.sqrt(1 - self.rho**2)
        self.deviation = deviation
        self._rng = np.random.default_rng(0)
        self._row: np.ndarray | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; the next ``step`` gives its first row. All numbers of the episode come from ``rng``."""
        self._rng = rng
        self._row = None

    def step(self) -> np.ndarray:
        """The next row, (dims,) float32."""
        drawn = self._rng.standard_normal(self.dims)
        self._row = drawn if self._row is None else self.rho * self._row + self.scale * drawn
        return (self.deviation * self._row).astype(np.float32)


def draw_noise(
    kind: Kind, rows: int, dims: int, rng: np.random.Generator, *, rho: float = 0.0, deviation: float = 1.0
) -> np.ndarray:
    """Noise of one episode, what ``NoiseProcess`` gives in as many steps.

    Args:
        kind: ``white`` or ``ar1``.
        rows: of the episode.
        dims: numbers in a row, >= 1.
        rng: gives all numbers.
        rho: correlation of successive rows in [0, 1); only ``ar1`` has one.
        deviation: of each number.

    Returns:
        (rows, dims) float32.

    Raises:
        ValueError: if ``dims`` or ``rho`` is out of range.
    """
    process = NoiseProcess(kind, dims, rho, deviation)
    drawn = rng.standard_normal((rows, dims))
    if process.rho:
        for row in range(1, rows):
            drawn[row] = process.rho * drawn[row - 1] + process.scale * drawn[row]
    return (deviation * drawn).astype(np.float32)


def episode_generator(seed: int, episode: str) -> np.random.Generator:
    """The generator for the noise of the episode with this id: the same on every machine, another one for each episode."""
    return np.random.default_rng(int.from_bytes(sha256(f"{seed}/{episode}".encode()).digest()[:16], "big"))
