"""Entropic optimal transport between episodes: a batched, stabilised Sinkhorn iteration for single precision.

For costs C (n, m), masses a (n), b (m) and epsilon > 0, the coupling

    P = argmin_P  sum_ij P_ij C_ij + epsilon KL(P || a b^T),      sum_j P_ij = a_i,  sum_i P_ij = b_j

has the form P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon), and Sinkhorn's iteration alternates
g_j = -epsilon log sum_i a_i exp((f_i - C_ij) / epsilon) with the same formula for f, starting at f = 0
(Cuturi 2013; Peyre and Cuturi, Computational Optimal Transport, 2019, section 4.2).

A half-step here is one matrix-vector product with the kernel exp((f_i + g_j - C_ij) / epsilon). The scalings that it
yields stay apart from the potentials f, g until one of them leaves exp(+-15). Then they are absorbed into the
potentials, the kernel is built anew, and the half-step is taken again (Schmitzer, Stabilized sparse scaling algorithms,
2019, section 3.1). Where a kernel is built, the side that moves next starts at its hard transform,
f_i = min_j (C_ij - g_j), so that each of its sums has a term of exponent 0: the iterates are those of the log domain up
to rounding, however small epsilon is.

Where many iterations are needed, half-steps are over-relaxed: a potential moves omega times as far as to the one that
meets its masses (Thibault, Chizat, Dossal and Papadakis, Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal
transport, 2021). The fixed point is the same, and is reached in a quarter of the iterations at epsilon 1 % of the mean cost.

Exponents below -60 are raised to -60. Between scalings within exp(+-15) such an entry adds less than exp(-30) of a sum,
and neither entries nor products become denormal numbers, which would slow a CPU down several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOWEST_EXPONENT = -60.0
LARGEST_SCALING = math.exp(15.0)
CHECK_EVERY = 10
"""Iterations between two looks at the marginal error."""
RELAXATION = 1.7
"""An omega that suits epsilons of 1 to 5 % of the mean cost."""

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True)
class Transport:
    """Solutions of a batch of B problems.

    Args:
        coupling: (B, n, m). Row i sums to a_i up to rounding, also where the iteration stopped early or the total
            masses differ.
        marginal_error: (B,), sum_j |share of column j in the coupling - share of b_j in b|, in [0, 2], measured on the
            coupling. It compares shares because totals that differ cannot both be met.
        iterations: (B,), int64.
    """

    coupling: Tensor
    marginal_error: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class Labels:
    """Rewards of B agent episodes against one expert episode each, and the transport they follow from.

    Args:
        rewards: (B, n), 0 on padding.
        cost: (B, n, m), what mass pays from an agent's step to an expert's; arbitrary on padding.
        transport: the couplings (B, n, m).
        dropped_mass: (B,), the share of mass whose cost the rewards leave out, in [0, 1].
    """

    rewards: Tensor
    cost: Tensor
    transport: Transport
    dropped_mass: Tensor


def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    *,
    max_iterations: int,
    tolerance: float,
    relaxation: float = 1.0,
) -> Transport:
    """Solve a batch of entropic optimal transport problems.

    An iteration updates columns, then rows; at the end rows carry exactly ``a``. The coupling does not depend on the
    total of ``b``. Problems that have converged leave the batch. On a CPU they are solved one after another, because one
    kernel fits its cache and a batch does not. Peak memory is about four times that of ``cost``.

    Args:
        cost: (B, n, m), any finite values; ignored in rows and columns without mass.
        a: (B, n), at least 0; zero is padding.
        b: (B, m), at least 0; zero is padding.
        epsilon: (B,), greater than 0, in the units of ``cost``.
        max_iterations: at least 1.
        tolerance: a problem stops when its marginal error is below this, looked at every ``CHECK_EVERY`` iterations; 0
            runs ``max_iterations`` without over-relaxation.
        relaxation: omega in [1, 2) of problems that have not converged at the first look. It is 1 between two looks where
            the error has not fallen.

    Raises:
        ValueError: if shapes disagree, a mass is negative or not finite, a side has no mass, epsilon is not positive,
            a cost divided by epsilon is not finite, or a number is out of range.
    """
    _check(cost, a, b, epsilon, max_iterations, relaxation)
    if cost.device.type == "cpu" and len(cost) > 1:
        alone = [slice(i, i + 1) for i in range(len(cost))]
        parts = [_solve(cost[i], a[i], b[i], epsilon[i], max_iterations, tolerance, relaxation) for i in alone]
        return Transport(
            torch.cat([part.coupling for part in parts]),
            torch.cat([part.marginal_error for part in parts]),
            torch.cat([part.iterations for part in parts]),
        )
    return _solve(cost, a, b, epsilon, max_iterations, tolerance, relaxation)


def _check(cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, max_iterations: int, relaxation: float) -> None:
    if cost.dim() != 3 or a.shape != cost.shape[:2] or b.shape != cost[:, 0].shape or epsilon.shape != cost.shape[:1]:
        raise ValueError(
            "expected cost (B, n, m), a (B, n), b (B, m), epsilon (B,); found "
            f"{tuple(cost.shape)}, {tuple(a.shape)}, {tuple(b.shape)}, {tuple(epsilon.shape)}"
        )
    for name, mass in (("a", a), ("b", b)):
        if not (mass.isfinite() & (mass >= 0)).all():
            raise ValueError(f"masses {name}: expected finite values of at least 0, found {mass.aminmax()}")
        if not (mass.sum(-1) > 0).all():
            raise ValueError(f"masses {name}: problem {int((mass.sum(-1) == 0).nonzero()[0])} has no mass")
    if not (epsilon.isfinite() & (epsilon > 0)).all():
        raise ValueError(f"epsilon: expected finite values greater than 0, found {epsilon.tolist()}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: expected at least 1, found {max_iterations}")
    if not 1 <= relaxation < 2:
        raise ValueError(f"relaxation: expected a number in [1, 2), found {relaxation}")


def _solve(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, max_iterations: int, tolerance: float, relaxation: float
) -> Transport:
    total = a.sum(-1)
    problems = _Problems(cost, a / total.unsqueeze(-1), b / b.sum(-1, keepdim=True), epsilon)
    running, waiting = problems, torch.arange(len(cost), device=cost.device)
    column_potential = torch.empty_like(b)
    iterations = torch.full_like(waiting, max_iterations)
    last_error = torch.full_like(total, torch.inf)
    for iteration in range(max_iterations):
        if tolerance > 0 and iteration > 0 and iteration % CHECK_EVERY == 0:
            error = running.marginal_error()
            done = error < tolerance
            if done.any():
                column_potential[waiting[done]] = running.absorbed(COLUMNS)[done]
                iterations[waiting[done]] = iteration
                running, waiting = running.select(~done), waiting[~done]
                if len(waiting) == 0:
                    break
            if relaxation > 1:
                running.relaxation = torch.where(error[~done] < last_error[waiting], relaxation, 1.0)
                last_error[waiting] = error[~done]
        running.update(COLUMNS)
        running.update(ROWS)
    column_potential[waiting] = running.absorbed(COLUMNS)
    coupling = problems.coupling(column_potential, total)
    error = (coupling.sum(1) / total.unsqueeze(1) - problems.mass[COLUMNS]).abs().sum(-1)
    return Transport(coupling, error, iterations)


class _Problems:
    """Iterates of a batch: masses, potentials divided by epsilon and scalings of rows and columns, and their kernel.

    Padding has the potential -inf.
    """

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor) -> None:
        self.mass = [a, b]
        self.exponents = cost / -epsilon[:, None, None]
        for side, mass in enumerate(self.mass):
            if (mass == 0).any():
                self.exponents.masked_fill_((mass == 0).unsqueeze(2 - side), 0.0)
        if not torch.stack(self.exponents.aminmax()).isfinite().all():
            raise ValueError("cost: not finite, or too large to be divided by epsilon")
        self.padding = [(a == 0).to(a.dtype), (b == 0).to(b.dtype)]
        self.potential = [torch.where(mass > 0, 0.0, -torch.inf) for mass in self.mass]
        self.scaling = [torch.ones_like(a), torch.ones_like(b)]
        self.kernel = torch.empty_like(cost)
        self.relaxation: Tensor | None = None
        self._build(COLUMNS)

    def select(self, mask: Tensor) -> _Problems:
        """The problems where ``mask`` (B,) holds."""
        part = copy(self)
        part.exponents, part.kernel = self.exponents[mask], self.kernel[mask]
        part.mass, part.padding, part.potential, part.scaling = (
            [x[mask] for x in pair] for pair in (self.mass, self.padding, self.potential, self.scaling)
        )
        return part

    def update(self, side: int) -> None:
        """Give ``side`` the scaling that meets its masses, or one beyond it where it is over-relaxed.

        A half-step for which the kernel is built is not over-relaxed.
        """
        scaling = self._exact_scaling(side)
        if self.relaxation is not None:
            scaling.div_(self.scaling[side]).pow_(self.relaxation.unsqueeze(1)).mul_(self.scaling[side])
        low, high = scaling.aminmax()
        if not 1.0 / LARGEST_SCALING <= low.item() <= high.item() <= LARGEST_SCALING:
            self._build(side)
            scaling = self._exact_scaling(side)
        self.scaling[side] = scaling

    def absorbed(self, side: int) -> Tensor:
        """The potential of ``side`` with its scaling, divided by epsilon."""
        return self.potential[side] + self.scaling[side].log()

    def marginal_error(self) -> Tensor:
        """sum_j |column sum - b_j|, (B,), with rows exact."""
        a, b = self.mass
        weights = a * self._exact_scaling(ROWS)
        sums = _weighted_sums(weights, self.kernel)
        return (b * (self.scaling[COLUMNS] * sums - 1.0).abs()).sum(-1)

    def coupling(self, column_potential: Tensor, total: Tensor) -> Tensor:
        """The coupling of mass ``total`` (B,) that a column potential divided by epsilon (B, m) gives, with rows exact.

        Overwrites the kernel.
        """
        self.potential[COLUMNS] = column_potential
        self.scaling[COLUMNS] = torch.ones_like(column_potential)
        self._build(ROWS)
        a, b = self.mass
        rows = total.unsqueeze(1) * a * self._exact_scaling(ROWS)
        return self.kernel.mul_(rows.unsqueeze(2)).mul_(b.unsqueeze(1))

    def _sums(self, side: int) -> Tensor:
        """Kernel times mass and scaling of the other side, (B, size of side)."""
        other = 1 - side
        weights = self.mass[other] * self.scaling[other]
        return _weighted_sums(weights, self.kernel if side == COLUMNS else self.kernel.mT)

    def _exact_scaling(self, side: int) -> Tensor:
        """What meets the masses of ``side``; 1 on padding, where entries of the kernel are exp(-60)."""
        return self._sums(side).add_(self.padding[side]).reciprocal_()

    def _build(self, side: int) -> None:
        """Absorb the other side's scaling, put ``side`` at its hard transform, and build the kernel."""
        other = 1 - side
        self.potential[other] = self.absorbed(other)
        torch.add(self.exponents, self.potential[other].unsqueeze(1 + side), out=self.kernel)
        nearest = self.kernel.amax(1 + other)
        self.potential[side] = torch.where(self.mass[side] > 0, -nearest, -torch.inf)
        self.kernel.add_(self.potential[side].unsqueeze(1 + other)).clamp_(min=LOWEST_EXPONENT)
        _exponential_(self.kernel)
        self.scaling = [torch.ones_like(scaling) for scaling in self.scaling]


def _weighted_sums(weights: Tensor, kernel: Tensor) -> Tensor:
    """Weights (B, n) times kernel (B, n, m), (B, m); on a CPU by NumPy, which takes half of PyTorch's time for it."""
    if kernel.device.type == "cpu":
        return torch.from_numpy((weights.numpy()[:, None] @ kernel.numpy())[:, 0])
    return torch.bmm(weights.unsqueeze(1), kernel).squeeze(1)


def _exponential_(x: Tensor) -> None:
    """exp(x) in place; on a CPU by NumPy, likewise."""
    if x.device.type == "cpu":
        np.exp(x.numpy(), out=x.numpy())
    else:
        x.exp_()


def uniform_masses(lengths: Tensor, size: int, total: Tensor | float = 1.0) -> Tensor:
    """Equal masses on the first ``lengths`` (B,) of ``size`` steps, none on the padding: (B, size)."""
    steps = torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)
    return steps / lengths.unsqueeze(1) * torch.as_tensor(total, device=lengths.device).reshape(-1, 1)


def mean_cost(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Mean cost of the product coupling, sum_ij a_i b_j C_ij / (sum a sum b): (B, n, m), (B, n), (B, m) -> (B,)."""
    columns = torch.bmm(a.unsqueeze(1), cost).squeeze(1)
    return (columns * b).sum(-1) / (a.sum(-1) * b.sum(-1))


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """||x_i - y_j||^2 for (B, n, d), (B, m, d): (B, n, m), in double precision inside, so that close points stay close."""
    x, y = x.double(), y.double()
    squares = torch.baddbmm(y.square().sum(-1).unsqueeze(1), x, y.mT, alpha=-2.0)
    return squares.add_(x.square().sum(-1).unsqueeze(2)).clamp_(min=0.0).float()


def pad_with_last(episodes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack B sequences (T_i, d) as (B, max T_i, d), each continued with its last element, and their lengths (B,)."""
    size = max(len(episode) for episode in episodes)
    padded = torch.stack([torch.cat([x, x[-1:].expand(size - len(x), -1)]) for x in episodes])
    return padded, torch.tensor([len(episode) for episode in episodes], device=padded.device)
