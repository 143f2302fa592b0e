"""One training among others: its names, seeds and folders, and what identifies it."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dynarep.pipeline.training.processes import TrainerConfig, process_rank


@dataclass(frozen=True)
class Run:
    """Where and with which seeds a stage runs.

    Args:
        name: of what is trained, for progress lines and checkpoints, e.g. ``learn/bc``.
        seed: of initialisation, sampling and noise.
        replicas: independent copies trained together.
        output: an existing folder that receives curves and the artifact.
        checkpoints: folder of resume checkpoints, of this stage alone and outside of any stage output.
        trainer: the processes that share the work.
        place: of the stage in the pipeline, for progress lines, e.g. ``4/8``.
        logs_in: folder of TensorBoard's logs, which change with every run; beside ``checkpoints`` by default.
    """

    name: str
    seed: int
    replicas: int
    output: Path
    checkpoints: Path
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    place: str = ""
    logs_in: Path | None = None

    @property
    def logs(self) -> Path:
        """Folder of TensorBoard's logs."""
        return self.checkpoints.parent / f"{self.checkpoints.name}-logs" if self.logs_in is None else self.logs_in

    @property
    def title(self) -> str:
        """Place and name."""
        return f"{self.place} {self.name}".lstrip()

    @property
    def rank(self) -> int:
        """The number of this process among those that share the work; 0 of one, whatever a job's variables number."""
        return process_rank(self.trainer.devices) if self.trainer.processes > 1 else 0

    @property
    def part(self) -> dict[str, int]:
        """Which part of a stream this process reads, of how many."""
        return {"part": self.rank, "parts": self.trainer.processes}

    def phase(self, name: str) -> Run:
        """The same run for one of several phases of a method, in a new sub-folder."""
        output = self.output / name
        output.mkdir(parents=True)
        return replace(self, name=f"{self.name}/{name}", output=output, logs_in=self.logs / name)


def digest(*tensors: Tensor) -> str:
    """Identify the content of tensors, for ``run_key``."""
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def run_key(run: Run, *parts: Any) -> str:
    """Identify everything that shapes a training run: its name, seeds, and ``parts`` (configs, data fingerprints)."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in parts]
    text = json.dumps([run.name, run.seed, run.replicas, plain], sort_keys=True, default=str)
    return f"{run.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def code_digest(learner: nn.Module, sample: Callable[..., Any]) -> str:
    """Identify the source text of what shapes a training: the learner's parts, its batches, and the loop."""
    owner = getattr(sample, "__self__", None)
    parts = [*learner.modules(), *([] if owner is None else [owner])]
    names = {base.__module__ for part in parts for base in type(part).__mro__} | {sample.__module__}
    names |= {f"dynarep.pipeline.training.{name}" for name in ("loop", "update", "gradients", "config")}
    names |= {f"dynarep.data.{name}" for name in ("replay", "resident", "sampling", "stream")}
    names |= {"dynarep.pipeline.nn.functional", "dynarep.pipeline.playing.replay"}
    chosen = sorted(
        name for name in names & set(sys.modules) if name not in ("builtins",) and not name.startswith("torch.")
    )
    return hashlib.sha256("".join(inspect.getsource(sys.modules[name]) for name in chosen).encode()).hexdigest()
