"""How long and in what portions a method is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from dynarep.configs.params import Field, config

COMPILE_FROM = 6000
"""Updates from which a training is compiled by default."""


@config
class TrainingConfig:
    """How long and in what portions to train; what is learned is configured with the method."""

    updates: int = Field(gt=0)
    batch_size: int = Field(default=256, gt=0)
    updates_per_chunk: int = Field(default=250, gt=0)
    """Updates per Lightning step: metrics are read, logged and checked once per chunk."""
    checkpoint_every: int = Field(default=5000, gt=0)
    """Updates between checkpoints for resuming, rounded up to whole chunks."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """Largest gradient norm of one replica."""
    snapshots: int = Field(default=1, ge=1, le=1000)
    """Parts of the run after each of which the model is kept, at most one for each update; the last one is the result."""
    compile: bool | None = None
    """Compile losses and gradients into one graph (faster updates after seconds of compiling). By default trainings of at
    least ``COMPILE_FROM`` updates are, where PyTorch can; the last bits of the result depend on it."""
    capture: bool = False
    """Replay the whole update, from drawing a batch to target networks, as one CUDA graph, once the graph has been seen to do
    what plain updates do. Where it cannot, the training says why and goes on without."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """PyTorch's precision of float32 matrix products: ``high`` allows TF32 and ``medium`` bfloat16 where the device has them. The
    result depends on it."""
    average_rate: float = Field(default=1.0, gt=0, le=1)
    """Rate per update at which the model that is kept follows the trained one (Polyak averaging); 1 keeps the latter."""

    def __post_init__(self) -> None:
        if self.snapshots > self.updates:
            raise ValueError(
                f"snapshots: found {self.snapshots}, expected at most {self.updates}, the number of updates"
            )

    @property
    def snapshot_updates(self) -> tuple[int, ...]:
        """Updates after which a snapshot is taken, without the last."""
        return tuple(self.updates * i // self.snapshots for i in range(1, self.snapshots))

    def smoke(self) -> TrainingConfig:
        """A few small updates, to see that everything fits together."""
        return replace(self, updates=20, batch_size=min(self.batch_size, 32), updates_per_chunk=10)
