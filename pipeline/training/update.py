"""One update of a training: from a batch on the device to parameters that have stepped, and its replay as one CUDA graph.

``Update`` is what every way of training runs: eager, with its losses compiled, over several processes, and captured. Nothing of
Python in it changes from one update to the next, but for learners that count, which a capture finds out and refuses.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.pipeline.training.config import COMPILE_FROM, TrainingConfig
from dynarep.pipeline.training.gradients import clip_gradients, compiled, gradients_of

Values = dict[str, Tensor]
"""Loss and metrics of an update, each (R,)."""

WARM_UP = 3
"""Updates before a capture, in which libraries and the optimizer reserve what they need."""
AGREEING = 4
"""Updates over which a graph has to do what the plain update does, before it takes over."""


class Update:
    """Losses, gradients, clipping, Adam and target networks; an update ends where its batch has been used.

    Args:
        learner: see ``dynarep.pipeline.training.loop``.
        training: its length, and the limits of gradients.
        captured: whether rates are kept on the device, as a CUDA graph needs it.
    """

    def __init__(self, learner: nn.Module, training: TrainingConfig, *, captured: bool = False) -> None:
        self.learner, self.training = learner, training
        groups = learner.parameter_groups()  # type: ignore[operator]
        self._rates = [group["lr"] for group in groups]
        self._cosine = [group.pop("cosine", False) for group in groups]
        self._clips = [group.pop("clip", None) for group in groups]
        if captured:
            for group in groups:
                group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=captured)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.gradients = gradients_of(learner, self.parameters)

    def compile_losses(self) -> None:
        """Have losses and gradients run as one compiled graph, where that is asked for or pays and can be done."""
        training = self.training
        if training.compile or (training.compile is None and training.updates >= COMPILE_FROM):
            replayed = not training.capture
            self.gradients = compiled(self.gradients, needed=training.compile is True, replayed=replayed)

    def set_rates(self, update: int) -> None:
        """The learning rates of an update: half a cosine over the training for the groups that ask for it."""
        progress = update / self.training.updates
        for group, rate, cosine in zip(self.optimizer.param_groups, self._rates, self._cosine, strict=True):
            if cosine:
                now = rate * 0.5 * (1.0 + math.cos(math.pi * progress))
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(now)
                else:
                    group["lr"] = now

    def apply(self, gradients: Sequence[Tensor | None]) -> None:
        """Clip the gradients, step, and have target networks follow."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.training.gradient_clip is not None:
            clip_gradients(self.parameters, self.training.gradient_clip)
        for group, clip in zip(self.optimizer.param_groups, self._clips, strict=True):
            if clip is not None:
                clip_gradients(group["params"], clip)
        self.optimizer.step()
        self.learner.after_update()  # type: ignore[operator]

    def __call__(self, batch: Any) -> Values:
        """The update with a batch."""
        gradients, values = self.gradients(batch)
        self.apply(gradients)
        return values


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Have products of float32 matrices computed with PyTorch's ``highest``, ``high`` or ``medium`` precision for a while."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)


class CudaGraph:
    """Kernels of a step, recorded once without running them.

    Args:
        step: what is recorded.
        generator: the one it draws from.
    """

    def __init__(self, step: Callable[[], Values], generator: torch.Generator) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._values = step()

    def replay(self) -> Values:
        """Run them."""
        self._graph.replay()
        return {name: value.clone() for name, value in self._values.items()}


class CapturedStep:
    """A step that draws a batch and updates, replayed as one graph once it has been seen to do the same as the plain one.

    Where it cannot be captured, or does something else, that is said, and the plain step goes on.

    Args:
        step: draws a batch and updates.
        update: of that step.
        generator: what the step draws from.
        record: makes a graph of a step; ``CudaGraph``.
    """

    def __init__(
        self,
        step: Callable[[], Values],
        update: Update,
        generator: torch.Generator,
        record: Callable[[Callable[[], Values], torch.Generator], Any] = CudaGraph,
    ) -> None:
        self._step, self._update, self._generator, self._record = step, update, generator, record
        self._calls, self._graph, self.refused = 0, None, ""

    def __call__(self) -> Values:
        """One update."""
        self._calls += 1
        if self._calls == WARM_UP + 1:
            self._capture()
        values: Values = self._step() if self._graph is None else self._graph.replay()
        return values

    def _capture(self) -> None:
        before = self._state()
        try:
            graph = self._record(self._step, self._generator)
            self._restore(before)
            for _ in range(AGREEING):
                self._step()
            plain = self._state()
            self._restore(before)
            for _ in range(AGREEING):
                graph.replay()
            self._graph, self.refused = graph, _difference(plain, self._state())
        except (RuntimeError, ValueError) as error:
            self.refused = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        self._restore(before)
        if self.refused:
            self._graph = None
            print(f"not captured as one CUDA graph, which only takes longer: {self.refused}", file=sys.stderr)

    def _state(self) -> tuple[dict[str, Any], list[dict[str, Any]], Tensor, Tensor, list[Tensor]]:
        learner, optimizer = self._update.learner, self._update.optimizer
        moments = [deepcopy(optimizer.state[p]) for p in self._update.parameters]
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return deepcopy(learner.state_dict()), moments, self._generator.get_state(), torch.get_rng_state(), cuda

    def _restore(self, state: tuple[dict[str, Any], list[dict[str, Any]], Tensor, Tensor, list[Tensor]]) -> None:
        """In place, because a graph writes where its tensors were."""
        parameters, moments, generator, default, cuda = state
        self._update.learner.load_state_dict(parameters)
        for p, kept in zip(self._update.parameters, moments, strict=True):
            for name, value in self._update.optimizer.state[p].items():
                value.copy_(kept[name])
        self._generator.set_state(generator)
        torch.set_rng_state(default)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _difference(plain: Any, graph: Any) -> str:
    """The first of the learner's tensors in which two states differ beyond rounding, in words; empty if they do not."""
    for name, value in plain[0].items():
        if isinstance(value, Tensor) and not torch.allclose(graph[0][name], value, rtol=1e-3, atol=1e-5):
            return f"after {AGREEING} updates {name} is not that of plain updates"
    return ""
