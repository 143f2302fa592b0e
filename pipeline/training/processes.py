"""A training over several processes: who is who, whose rows of a batch are whose, and the mean of their gradients.

Every process holds the same parameters, draws the same batch and takes the gradient of its own rows. The mean of these
gradients is that of the whole batch, so that the number of processes changes nothing but rounding and the time it takes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dynarep.configs.params import Field, config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor

Batch = TypeVar("Batch", bound="DataclassInstance")

NODES = ("WORLD_SIZE", "RANK", "NODE_RANK", "SLURM_NTASKS")
"""Variables of which one tells a process which part of several nodes it is."""


@config
class TrainerConfig:
    """Section ``trainer``: processes that share the batches of ``pretrain`` and ``learn``, and loggers of trainings.

    The values go to Lightning's Trainer. They change where a training runs, not what it learns, so no stage depends on them.
    """

    devices: int = Field(default=1, gt=0)
    """Processes per node, each on a GPU of its own where there are any."""
    num_nodes: int = Field(default=1, gt=0)
    strategy: str = "auto"
    """Lightning's name of it; ``auto`` is ``ddp`` for more than one process."""
    loggers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Loggers beside TensorBoard with their arguments: a class of ``lightning.pytorch.loggers``, or ``<module>:<class>``."""

    @property
    def processes(self) -> int:
        """Processes on all nodes."""
        return self.devices * self.num_nodes

    def alone(self) -> TrainerConfig:
        """The same in one process."""
        return TrainerConfig(loggers=self.loggers)


def process_rank(devices: int = 1, environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process among those that run the same program, started by torchrun, SLURM or Lightning.

    Args:
        devices: processes per node, which only Lightning's own start needs, and only beyond the first node.
        environment: variables of the process.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in environment:
            return int(environment[name])
    return int(environment.get("NODE_RANK", "0")) * devices + int(environment.get("LOCAL_RANK", "0"))


def check_processes(trainer: TrainerConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to train where another number of processes was started than ``trainer`` says, or nothing says which node this is.

    Raises:
        ValueError: naming both numbers, or the variables of which one is missing.
    """
    if trainer.num_nodes > 1 and not any(name in environment for name in NODES):
        raise ValueError(
            f"trainer.num_nodes: found {trainer.num_nodes}, but none of {', '.join(NODES)} is set, so this process would wait "
            "for the others; start it with torchrun or SLURM as docs/clusters.md says"
        )
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        started = int(environment.get(name, trainer.processes))
        if started != trainer.processes and (name == "WORLD_SIZE" or trainer.processes > 1):
            raise ValueError(
                f"trainer: devices {trainer.devices} times num_nodes {trainer.num_nodes} is {trainer.processes}, but "
                f"{started} processes run ({name})"
            )


def rows_of(batch: Batch, rank: int, processes: int, whole: Collection[str] = ()) -> Batch:
    """The rows of a batch that belong to a process.

    Args:
        batch: a dataclass of tensors (R, B, ...) or None.
        rank: of the process.
        processes: how many share the batch.
        whole: fields of which every process has all rows.

    Raises:
        ValueError: if B is not a multiple of ``processes``.
    """
    parts: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    for name, value in parts.items():
        if value is not None and name not in whole:
            size, rest = divmod(value.shape[1], processes)
            if rest:
                raise ValueError(
                    f"training.batch_size: found {value.shape[1]}, expected a multiple of the {processes} processes of trainer"
                )
            parts[name] = value[:, rank * size : (rank + 1) * size]
    return replace(batch, **parts)


def mean_over_processes(gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The mean of each gradient over all processes, in one exchange; None stays None."""
    import torch

    present = [gradient for gradient in gradients if gradient is not None]
    flat = torch.cat([gradient.flatten() for gradient in present])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    means = iter(flat.split([gradient.numel() for gradient in present]))  # type: ignore[no-untyped-call]
    return tuple(None if gradient is None else next(means).view_as(gradient) for gradient in gradients)
