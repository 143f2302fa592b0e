"""The one training loop: K updates per Lightning step, nothing synchronised inside, resumable to the bit.

``train`` takes a learner, ``parameter_groups``, ``losses``, ``after_update`` and ``export`` of ``dynarep.pipeline.method``, and
perhaps ``whole``: names of the batch's fields that are not dealt out where several processes share a batch. ``sample(generator)``
draws a batch on the device; a source that changes with time, ``advance(update, learner)`` of it, catches up before each update.

Lightning has the devices, the processes and their gradients' exchange (DDP), precision, and the loggers. The updates of a
chunk, the checkpoint and its meaning are here.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dynarep.data.folders import disk_errors_named
from dynarep.pipeline.artifacts.storage import save_model
from dynarep.pipeline.method import Sources
from dynarep.pipeline.sources import Source, SourceError
from dynarep.pipeline.tables import write_table
from dynarep.pipeline.training.checkpoint import relative, saved_updates, seal
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import denormals_as_zero, keep_freed_memory
from dynarep.pipeline.training.processes import check_processes, mean_over_processes, rows_of
from dynarep.pipeline.training.run import Run, code_digest
from dynarep.pipeline.training.update import CapturedStep, Update, matmul_precision
from dynarep.pipeline.training.watching import Loggers, Progress, TensorBoard, loggers_of

Sample = Callable[[torch.Generator], Any]


class NonFiniteLossError(FloatingPointError):
    """A loss or metric became NaN or infinite; the message names stage, update, metric and last good checkpoint."""


class TrainingLoop(pl.LightningModule):
    """Lightning's view of a run: one epoch is one chunk of updates."""

    def __init__(
        self,
        learner: nn.Module,
        sample: Sample,
        training: TrainingConfig,
        name: str,
        key: str,
        code: str,
        seed: int,
        source: Source | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner = learner
        self.average: AveragedModel | None = None
        if training.average_rate < 1:
            average = get_ema_multi_avg_fn(1 - training.average_rate)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(learner, multi_avg_fn=average)
        self.sample = sample
        self.source = source
        self.failure: SourceError | None = None
        self.training_config = training
        self.name, self.key, self.code = name, key, code
        self.updates = 0
        self.rows: list[Tensor] = []
        """Loss and metrics (metrics, R) of each update of a chunk that is not complete."""
        self.asked_to_stop = self.stopping = False
        self.curve: list[dict[str, float]] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.last_checkpoint: Path | None = None
        self.saved_updates = 0
        self._generator_seed = seed
        self._resumed: dict[str, Any] | None = None
        self.training_began = False

    @property
    def kept(self) -> nn.Module:
        """The learner, or its average over the updates."""
        return self.learner if self.average is None else self.average.module

    @property
    def total(self) -> int:
        """Updates of the whole run."""
        return self.training_config.updates

    def configure_optimizers(self) -> Any:
        """The optimizer of the update."""
        captured = self.training_config.capture and self.device.type == "cuda"
        self.update = Update(self.learner, self.training_config, captured=captured)
        return self.update.optimizer

    def on_fit_start(self) -> None:
        """Seed, or go on with the state of a checkpoint; prepare the gradients."""
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(self._generator_seed)
        torch.manual_seed(self._generator_seed)
        if self._resumed is not None:
            self.generator.set_state(self._resumed["generator"].cpu())
            torch.set_rng_state(self._resumed["rng"].cpu())
            if self._resumed["cuda_rng"]:
                torch.cuda.set_rng_state_all([state.cpu() for state in self._resumed["cuda_rng"]])
            if self.source is not None and self.updates < self.training_config.updates:
                self.source.restore(self._resumed["source"])
            self.rows = [row.to(self.device) for row in self.rows]
            self.trainer.should_stop = self.updates >= self.training_config.updates
        self.update.compile_losses()
        self.step: Callable[[], dict[str, Tensor]] = self._step
        if self.training_config.capture:
            self.step = self._captured()

    def _step(self) -> dict[str, Tensor]:
        """Draw a batch and update."""
        batch = self.sample(self.generator)
        processes = self.trainer.world_size
        if processes == 1:
            return self.update(batch)
        batch = rows_of(batch, self.trainer.global_rank, processes, getattr(self.learner, "whole", ()))
        gradients, values = self.update.gradients(batch)
        self.update.apply(mean_over_processes(gradients))
        return values

    def _captured(self) -> Callable[[], dict[str, Tensor]]:
        """The same as one CUDA graph, or the plain one where that cannot be."""
        reasons = {
            "the device is no GPU": self.device.type != "cuda",
            "it learns from steps that it makes": self.source is not None,
            "several processes share a batch": self.trainer.world_size > 1,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is None:
            return CapturedStep(self._step, self.update, self.generator)
        print(f"{self.name}: not captured as one CUDA graph, which only takes longer: {reason}", file=sys.stderr)
        return self._step

    def on_train_start(self) -> None:
        """All that a checkpoint holds has been taken back."""
        self.training_began = True

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """The updates of a chunk, or of what is left of one; ``batch`` is a placeholder."""
        training = self.training_config
        snapshot_updates, processes = training.snapshot_updates, self.trainer.world_size
        started, first = time.perf_counter(), self.updates
        end = min(training.updates, (first // training.updates_per_chunk + 1) * training.updates_per_chunk)
        while self.updates < end:
            self.update.set_rates(self.updates)
            if not self._advanced():
                break
            values = self.step()
            if self.average is not None:
                self.average.update_parameters(self.learner)
            self.updates += 1
            if self.updates in snapshot_updates:
                state = self.kept.export().state_dict()  # type: ignore[operator]
                self.snapshots[self.updates] = {name: value.detach().clone() for name, value in state.items()}
            self.rows.append(torch.stack(list(values.values())))
            if self.asked_to_stop and processes == 1:  # several processes agree at the end of the chunk
                break
        if self.updates == first:  # the source failed
            self.stopping = True
            return
        names = list(values)
        stacked = torch.stack(self.rows)
        if processes > 1:
            torch.distributed.all_reduce(stacked)
            stacked /= processes
        self.stopping = self.trainer.strategy.reduce_boolean_decision(self.asked_to_stop, all=False)
        table = stacked.cpu()  # (K, metrics, R): the only synchronisation of the chunk
        finite = table.isfinite().flatten(1).all(1)
        if not finite.all():
            k = int(finite.logical_not().nonzero()[0, 0])
            bad = [name for name, row in zip(names, table[k], strict=True) if not row.isfinite().all()]
            update = self.updates - len(self.rows) + k + 1
            raise NonFiniteLossError(
                f"{self.name}: {', '.join(bad)} became non-finite at update {update}; "
                f"last good checkpoint: {self.last_checkpoint or 'none was written yet'}"
            )
        if self.updates < end:
            return
        self.rows = []
        means = table.mean((0, 2)).tolist()
        rate = (self.updates - first) / (time.perf_counter() - started)
        self.curve.append({"update": self.updates, **dict(zip(names, means, strict=True)), "updates_per_second": rate})

    def _advanced(self) -> bool:
        """Have the source catch up; where it cannot, stop as a signal would, so that nothing is lost."""
        if self.source is None:
            return True
        try:
            self.source.advance(self.updates, self.learner)
        except SourceError as error:
            self.failure, self.asked_to_stop = error, True
        return self.failure is None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the loop needs to go on to the bit."""
        checkpoint["dynarep"] = {
            "name": self.name,
            "key": self.key,
            "code": self.code,
            "updates": self.updates,
            "total": self.training_config.updates,
            "rows": self.rows,
            "curve": self.curve,
            "snapshots": self.snapshots,
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "source": {} if self.source is None else self.source.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self._resumed = checkpoint["dynarep"]
        self.updates, self.curve = self._resumed["updates"], self._resumed["curve"]
        self.saved_updates = self.updates
        self.rows, self.snapshots = self._resumed["rows"], self._resumed["snapshots"]


class Checkpoint(pl.Callback):
    """Ends a run, and writes ``path`` atomically: every ``checkpoint_every`` updates, at the end and where a signal stops it.

    SIGINT and SIGTERM stop a run after the update at hand, or after the chunk where several processes share it; a second
    one stops it at once. Parameters that are no longer finite are not written.
    """

    signals = signal.SIGINT, signal.SIGTERM

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals."""
        assert isinstance(pl_module, TrainingLoop)

        def stop(number: int, frame: FrameType | None) -> None:
            if pl_module.asked_to_stop:
                raise KeyboardInterrupt
            pl_module.asked_to_stop = True

        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, stop) for number in self.signals}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop where it is time, and write a checkpoint where one is due."""
        assert isinstance(pl_module, TrainingLoop)
        training = pl_module.training_config
        every = math.ceil(training.checkpoint_every / training.updates_per_chunk) * training.updates_per_chunk
        trainer.should_stop = pl_module.stopping or pl_module.updates >= training.updates
        due = trainer.should_stop or pl_module.updates % every == 0
        if due and all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            temporary = self.path.with_suffix(".tmp")
            with disk_errors_named(self.path):
                trainer.save_checkpoint(temporary)
                if trainer.is_global_zero:
                    self.path.with_suffix(".sha256").unlink(missing_ok=True)
                    temporary.replace(self.path)
                    seal(self.path)
            pl_module.last_checkpoint, pl_module.saved_updates = self.path, pl_module.updates

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def train(
    learner: nn.Module,
    sources: Sources,
    batch: Callable[[Sources, torch.Generator], Any],
    training: TrainingConfig,
    *,
    run: Run,
    shown: Sequence[str],
    key: str,
    source: Source | None = None,
) -> None:
    """Train ``learner`` in place.

    Writes ``curves.tsv`` and ``snapshots/<update>/`` into ``run.output``, TensorBoard's logs into ``run.logs``.

    Args:
        learner: see the module docstring; it is moved to the training device and back to the CPU.
        sources: what batches are drawn from.
        batch: draws one from them, usually the learner's own.
        training: length and portions.
        run: names, seeds and folders.
        shown: metrics shown while it runs, one or two that tell whether it learns.
        key: from ``run_key``. A checkpoint with this key, made by the same code, is resumed; that of a finished training
            is its result, so that a stage of several models that is stopped repeats none. The caller removes
            ``run.checkpoints`` when all is done.
        source: what changes with time among the sources; its state is kept in checkpoints.

    Raises:
        NonFiniteLossError: if a loss or metric is not finite.
        SourceError: if the source cannot go on; a checkpoint holds what was trained until then.
        ValueError: if the batch cannot be shared among the processes, or another number of them runs; if a checkpoint that is
            what was written cannot be taken back.
        KeyboardInterrupt: on SIGINT (Ctrl-C) or SIGTERM; the message says at which update, and what was saved.
    """
    name, output, checkpoints, seed = run.name, run.output, run.checkpoints, run.seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    check_processes(run.trainer)
    keep_freed_memory()
    checkpoints.mkdir(parents=True, exist_ok=True)
    path = checkpoints / f"{name.replace('/', '-')}.ckpt"
    code = code_digest(learner, batch)
    module = TrainingLoop(learner, partial(batch, sources), training, name, key, code, seed, source)
    saved = saved_updates(path, key, code)
    resume = None if saved is None else path
    if resume:
        module.last_checkpoint = resume
        if run.rank == 0:
            how = "trained already, in" if saved == training.updates else f"resuming at update {saved} from"
            print(f"{run.title}: {how} {relative(resume)}", file=sys.stderr)
    with denormals_as_zero(), matmul_precision(training.matmul_precision), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer = pl.Trainer(
            accelerator="auto",
            devices=run.trainer.devices,
            num_nodes=run.trainer.num_nodes,
            strategy=run.trainer.strategy,
            plugins=None if run.trainer.processes > 1 else LightningEnvironment(),  # alone, also as a task of a job
            use_distributed_sampler=False,
            max_epochs=-1,
            logger=loggers_of(run),
            callbacks=[Checkpoint(path), TensorBoard(), Progress(run.title, shown), Loggers()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        # A generator of its own, because a loader draws a number per epoch from the global one otherwise.
        chunks: DataLoader[Tensor] = DataLoader(torch.zeros(1, 1), generator=torch.Generator())  # type: ignore[arg-type]
        try:
            trainer.fit(module, chunks, ckpt_path=resume, weights_only=True)
        except SystemExit:  # Lightning's answer to a KeyboardInterrupt, at a second signal
            raise KeyboardInterrupt(_where(module, name)) from None
        except Exception as error:
            if resume is None or module.training_began:
                raise
            problem = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{relative(resume)}: cannot be resumed from ({problem}); delete it to start anew"
            ) from error
    if module.failure is not None:
        raise SourceError(f"{module.failure}; {_where(module, name)}") from module.failure
    if module.updates < training.updates:
        raise KeyboardInterrupt(_where(module, name))
    learner.load_state_dict(module.kept.state_dict())
    learner.cpu().eval()
    if trainer.world_size > 1:
        trainer.strategy.barrier()
    rows = [{name: value for name, value in row.items() if name != "updates_per_second"} for row in module.curve]
    write_table(output / "curves.tsv", rows)
    for update, state in module.snapshots.items():
        model = learner.export()  # type: ignore[operator]
        model.load_state_dict(state)
        save_model(output / "snapshots" / f"{update:09d}", model)


def _where(module: TrainingLoop, name: str) -> str:
    """At which update a run stopped, and what of it is saved."""
    saved = "nothing of it is saved"
    if module.last_checkpoint is not None:
        behind = module.saved_updates < module.updates
        saved = (
            f"saved {f'up to update {module.saved_updates} ' if behind else ''}in {relative(module.last_checkpoint)}"
        )
    return f"at update {module.updates} of {module.training_config.updates} of {name}, {saved}"
