"""Stacked perceptrons whose layers have a largest singular value of 1, so that they are 1-Lipschitz.

Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, arXiv 1802.05957.
The largest singular value is followed by one step of power iteration per update, as PyTorch's parametrisation does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

SLOPE = 0.2
"""Of the leaky rectifier below 0."""

FIRST_ITERATIONS = 50
"""Steps of power iteration on the initial weights."""


class SpectralMLP(nn.Module):
    """R perceptrons with leaky rectifiers; weights are divided by their largest singular values, biases start at 0.

    Args:
        replicas: R.
        sizes: input, hidden and output widths.
        init: of the weights: ``orthogonal`` with gain sqrt(2 / (1 + slope^2)), 1 in the last layer, or ``uniform`` within
            +-1 / sqrt(inputs), PyTorch's default.
        normalise: divide by the largest singular values; without it the weights are as they are.
    """

    def __init__(
        self,
        replicas: int,
        sizes: Sequence[int],
        *,
        init: Literal["orthogonal", "uniform"] = "orthogonal",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.normalise, last = normalise, len(sizes) - 2
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            weight = torch.empty(replicas, inputs, outputs)
            for member in weight:
                if init == "orthogonal":
                    nn.init.orthogonal_(member, math.sqrt(2.0 / (1.0 + SLOPE**2)) if i < last else 1.0)
                else:
                    nn.init.uniform_(member, -1.0 / math.sqrt(inputs), 1.0 / math.sqrt(inputs))
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(replicas, 1, outputs)))
            right = nn.functional.normalize(torch.randn(replicas, outputs, 1), dim=1)
            self.register_buffer(f"left_{i}", torch.zeros(replicas, inputs, 1))
            self.register_buffer(f"right_{i}", right)
        self.iterate(FIRST_ITERATIONS)

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Follow the largest singular values."""
        if not self.normalise:
            return
        for i, weight in enumerate(self.weights):
            left, right = getattr(self, f"left_{i}"), getattr(self, f"right_{i}")
            for _ in range(times):
                left.copy_(nn.functional.normalize(weight @ right, dim=1, eps=1e-12))
                right.copy_(nn.functional.normalize(weight.mT @ left, dim=1, eps=1e-12))

    def effective(self) -> list[Tensor]:
        """The weights that are used, (R, inputs, outputs) each."""
        if not self.normalise:
            return list(self.weights)
        found = []
        for i, weight in enumerate(self.weights):
            largest = getattr(self, f"left_{i}").mT @ weight @ getattr(self, f"right_{i}")
            found.append(weight / largest)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, B, sizes[0]) to (R, B, sizes[-1])."""
        weights = self.effective()
        for i, (weight, bias) in enumerate(zip(weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < len(weights) - 1:
                x = nn.functional.leaky_relu(x, SLOPE)
        return x
