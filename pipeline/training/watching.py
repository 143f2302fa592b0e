"""What a person sees of a training while it runs: progress in the terminal, TensorBoard, and other loggers.

Everything here reads what the loop already has on the host once per chunk, so that watching costs no synchronisation.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import lightning as pl
import lightning.pytorch.loggers as lightning_loggers
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import nn

from dynarep.pipeline.progress import NAME, WIDE, bar_width, clock, fitting, shortened

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from dynarep.pipeline.training.run import Run

SPEED = 20
"""Columns of the speed and the time left."""

HISTOGRAMS = 4
"""How often within a run the distributions of parameters and gradients are logged."""


class Watched(Protocol):
    """What is read of a training.

    Args:
        updates: made so far.
        total: of the run.
        curve: one row per chunk that is complete: ``update``, loss, metrics, ``updates_per_second``.
        learner: whose parameters and gradients are logged.
    """

    updates: int
    curve: list[dict[str, float]]
    learner: nn.Module

    @property
    def total(self) -> int: ...  # noqa: D102


class Progress(pl.Callback):
    """A live bar on a terminal, else a line every ``seconds``: updates, their speed, the time left and some metrics.

    Args:
        title: what is trained.
        metrics: columns of the curve that are shown.
        seconds: between two lines.
    """

    def __init__(self, title: str, metrics: Sequence[str], seconds: float = 15.0) -> None:
        self.title, self.metrics, self.seconds = title, metrics, seconds
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show where the run begins, which is not the start where it is resumed."""
        training: Watched = pl_module  # type: ignore[assignment]
        self.began = self.said = time.monotonic()
        self.first = training.updates
        if sys.stderr.isatty() and trainer.is_global_zero:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            console = Console(stderr=True)
            name = self.title if console.width >= WIDE else shortened(self.title, NAME)
            taken = len(name) + bar_width(console.width) + len(f"{training.total}/{training.total}") + SPEED + 4
            self.room = max(console.width - taken, 0)
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=bar_width(console.width)),
                MofNCompleteColumn(),
                TextColumn("[cyan]{task.fields[speed]}"),
                TextColumn("{task.fields[status]}"),
                console=console,
            )
            self.task = self.bar.add_task(name, total=training.total, completed=self.first, speed="", status="")
            self.bar.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last chunk."""
        training: Watched = pl_module  # type: ignore[assignment]
        if not trainer.is_global_zero or not training.curve:
            return
        now, row = time.monotonic(), training.curve[-1]
        rate = (training.updates - self.first) / max(now - self.began, 1e-9)
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        if training.updates < training.total:
            speed += f"  {clock((training.total - training.updates) / rate)} left"
        parts = [f"{name} {row[name] + 0.0:.4g}" for name in self.metrics]
        if self.bar is not None:  # fields keep their width, so that nothing jumps
            status = fitting(parts, self.room)
            self.bar.update(self.task, completed=training.updates, speed=f"{speed:{SPEED}}", status=status)
        elif now - self.said > self.seconds or training.updates >= training.total:
            self.said = now
            print(
                f"{self.title}: {training.updates:,}/{training.total:,}  {speed}  {'  '.join(parts)}",
                file=sys.stderr,
                flush=True,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the bar as it is."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that the message follows it."""
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def loggers_of(run: Run) -> list[Logger]:
    """TensorBoard's logger first, then those that the params file names.

    A logger that takes ``save_dir``, ``name`` or ``run_name`` writes into the run's logs, under its name, unless it is told
    otherwise.

    Raises:
        ValueError: if there is no such logger, its package is missing, or it refuses its arguments.
    """
    named = {"save_dir": str(run.logs), "name": run.name.replace("/", "-"), "run_name": run.name.replace("/", "-")}
    found: list[Logger] = [TensorBoardLogger(run.logs, name="", version="")]
    for kind, arguments in run.trainer.loggers.items():
        where = f"trainer.loggers.{kind}"
        make = _logger_class(kind, where)
        takes = inspect.signature(make).parameters
        try:
            found.append(make(**{**{key: value for key, value in named.items() if key in takes}, **arguments}))
        except ImportError as error:
            raise ValueError(f"{where}: its package is not installed: {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    return found


def _logger_class(kind: str, where: str) -> Callable[..., Logger]:
    module, _, name = kind.rpartition(":")
    try:
        found = getattr(import_module(module) if module else lightning_loggers, name, None)
    except ImportError as error:
        raise ValueError(f"{where}: {error}") from None
    if not (inspect.isclass(found) and issubclass(found, Logger)):
        known = ", ".join(name for name in sorted(lightning_loggers.__all__) if name != "Logger")
        raise ValueError(f"{where}: found no such logger, expected <module>:<class> or one of {known}")
    return found


class Loggers(pl.Callback):
    """Ends what loggers began, so that the next training of the same program begins anew."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finish what has to be finished, as a run of W&B."""
        for logger in trainer.loggers:
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if callable(finish):
                finish()


class TensorBoard(pl.Callback):
    """Logs the curve, and ``HISTOGRAMS`` times within a run the distributions of parameters and gradients."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what a resumed run had logged before, because its output folder is new."""
        training: Watched = pl_module  # type: ignore[assignment]
        self.logged = 0
        self._scalars(trainer, training)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last chunk."""
        training: Watched = pl_module  # type: ignore[assignment]
        before = training.curve[self.logged - 1]["update"] if self.logged else 0
        new = self.logged < len(training.curve)
        self._scalars(trainer, training)
        if (
            new
            and trainer.is_global_zero
            and training.updates * HISTOGRAMS // training.total > before * HISTOGRAMS // training.total
        ):
            writer: SummaryWriter = trainer.logger.experiment  # type: ignore[union-attr]
            trained = ((n, p) for n, p in training.learner.named_parameters() if p.requires_grad)
            for name, parameter in trained:
                values = {"parameters": parameter.detach(), "gradients": parameter.grad}
                for kind, tensor in values.items():
                    if tensor is not None and tensor.numel() > 1 and bool(tensor.isfinite().all()):
                        writer.add_histogram(f"{kind}/{name}", tensor, training.updates, bins=64)

    def _scalars(self, trainer: pl.Trainer, training: Watched) -> None:
        for row in training.curve[self.logged :]:
            values = {name: value for name, value in row.items() if name != "update"}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=int(row["update"]))
        self.logged = len(training.curve)
