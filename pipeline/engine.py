"""The one training loop: K updates per Lightning step, nothing synchronised inside, resumable to the bit.

A learner is an ``nn.Module`` whose parameters carry the replica axis first and which offers

- ``parameter_groups()``: optimiser groups, each ``{"params": [...], "lr": float}`` and optionally ``"cosine": True``
  (the rate decays to zero over the run),
- ``losses(batch) -> Losses``: one loss per replica; replicas are summed, so their gradients stay independent,
- ``after_update()``: target networks,
- ``export()``: the model that is shipped, asked for where snapshots are,
- and perhaps ``whole``: names of the batch's fields that are not dealt out where several processes share a batch.

``sample(generator)`` draws a batch on the device, from tables that live there; ``seek(update)``, called before each update,
lets tables that change with time catch up.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import inspect
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import lightning as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dynarep.configs.params import Field, config
from dynarep.pipeline.artifacts import save_model
from dynarep.pipeline.distributed import TrainerConfig, check_processes, mean_over_processes, process_rank, rows_of
from dynarep.pipeline.functional import Losses
from dynarep.pipeline.run import write_table
from dynarep.pipeline.watching import TENSORBOARD, Progress, TensorBoard

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""

COMPILE_FROM = 6000
"""Updates from which a training is compiled by default."""

Sample = Callable[[torch.Generator], Any]
Seek = Callable[[int], None]
Gradients = Callable[[Any], tuple[tuple[Tensor | None, ...], dict[str, Tensor]]]


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
    snapshots: int = Field(default=1, ge=1)
    """Parts of the run after each of which the model is kept; the last one is the result."""
    compile: bool | None = None
    """Compile losses and gradients into one graph (faster updates after seconds of compiling). By default trainings of at
    least ``COMPILE_FROM`` updates are, where PyTorch can; the last bits of the result depend on it."""
    average_rate: float = Field(default=1.0, gt=0, le=1)
    """Rate per update at which the model that is kept follows the trained one (Polyak averaging); 1 keeps the latter."""

    @property
    def snapshot_updates(self) -> tuple[int, ...]:
        """Updates after which a snapshot is taken, without the last."""
        return tuple(self.updates * i // self.snapshots for i in range(1, self.snapshots))

    def smoke(self) -> TrainingConfig:
        """A few small updates, to see that everything fits together."""
        return replace(self, updates=20, batch_size=min(self.batch_size, 32), updates_per_chunk=10)


class Learner(Protocol):
    """What the engine trains, see the module docstring."""

    def parameter_groups(self) -> list[dict[str, Any]]: ...  # noqa: D102
    def losses(self, batch: Any) -> Losses: ...  # noqa: D102
    def after_update(self) -> None: ...  # noqa: D102
    def export(self) -> nn.Module: ...  # noqa: D102


class NonFiniteLossError(FloatingPointError):
    """A loss or metric became NaN or infinite; the message names stage, update, metric and last good checkpoint."""


def training_device() -> torch.device:
    """This process's GPU, the first one unless several processes share a node, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return torch.device("cuda", int(local) % torch.cuda.device_count())


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next update or coupling (a third faster on CPU); elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> None:
    """Scale each replica's gradient to a norm of at most ``limit``; the first axis of every parameter is the replica."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    scale = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


def gradients_of(learner: nn.Module, parameters: list[nn.Parameter]) -> Gradients:
    """What maps a batch to gradients, losses and metrics.

    Args:
        learner: see the module docstring.
        parameters: those that are trained.

    Returns:
        A function to the gradient of the summed losses for each parameter, None where it has no part in them, and to
        ``loss`` and the metrics, each (R,).
    """

    def gradients(batch: Any) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
        result: Losses = learner.losses(batch)  # type: ignore[operator]
        found = torch.autograd.grad(result.loss.sum(), parameters, allow_unused=True)
        return tuple(None if g is None else g.contiguous() for g in found), {
            "loss": result.loss.detach(),
            **result.metrics,
        }

    return gradients


def compiled(gradients: Gradients, *, needed: bool) -> Gradients:
    """The same function as one compiled graph, on CUDA replayed as a CUDA graph.

    Args:
        gradients: from ``gradients_of``.
        needed: raise where it cannot be compiled; else say so and go on without.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        if needed:
            raise RuntimeError(f"training.compile: found PyTorch {torch.__version__}, expected 2.13 or newer")
        return gradients
    torch._dynamo.reset()  # the graphs of earlier trainings of this process count against a limit
    torch._dynamo.config.trace_autograd_ops = True
    mode = "reduce-overhead" if torch.cuda.is_available() else "default"
    fast = torch.compile(gradients, fullgraph=True, mode=mode)
    works: bool | None = None

    def call(batch: Any) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
        nonlocal works
        if works is False:
            return gradients(batch)
        state = torch.get_rng_state() if works is None else None
        try:
            result = fast(batch)
        except Exception as error:
            if needed or works:
                raise
            works = False
            assert state is not None
            torch.set_rng_state(state)
            reason = str(error).strip().partition("\n")[0]
            print(f"not compiled, which only takes longer: {type(error).__name__}: {reason}", file=sys.stderr)
            return gradients(batch)
        works = True
        return result

    return call


class _Chunks(pl.LightningModule):
    """Lightning's view of a run: one epoch is one chunk of updates."""

    def __init__(
        self,
        learner: nn.Module,
        sample: Sample,
        training: TrainingConfig,
        key: str,
        code: str,
        seed: int,
        seek: Seek | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner = learner
        self.average: AveragedModel | None = None
        if training.average_rate < 1:
            average = get_ema_multi_avg_fn(1 - training.average_rate)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(learner, multi_avg_fn=average)
        self.sample = sample
        self.seek = seek
        self.training_config = training
        self.key, self.code = key, code
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

    @property
    def kept(self) -> nn.Module:
        """The learner, or its average over the updates."""
        return self.learner if self.average is None else self.average.module

    @property
    def total(self) -> int:
        """Updates of the whole run."""
        return self.training_config.updates

    def configure_optimizers(self) -> Any:
        groups = self.learner.parameter_groups()  # type: ignore[operator]
        self._initial_rates = [group["lr"] for group in groups]
        self._cosine = [group.pop("cosine", False) for group in groups]
        return torch.optim.Adam(groups, fused=True)

    def on_fit_start(self) -> None:
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(self._generator_seed)
        torch.manual_seed(self._generator_seed)
        if self._resumed is not None:
            self.generator.set_state(self._resumed["generator"].cpu())
            torch.set_rng_state(self._resumed["rng"].cpu())
            if self._resumed["cuda_rng"]:
                torch.cuda.set_rng_state_all([state.cpu() for state in self._resumed["cuda_rng"]])
            self.rows = [row.to(self.device) for row in self.rows]
            self.trainer.should_stop = self.updates >= self.training_config.updates

        training, parameters = self.training_config, self._trained()
        self.gradients = gradients_of(self.learner, parameters)
        if training.compile or (training.compile is None and training.updates >= COMPILE_FROM):
            self.gradients = compiled(self.gradients, needed=training.compile is True)

    def _trained(self) -> list[nn.Parameter]:
        optimizer: torch.optim.Optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        return [p for group in optimizer.param_groups for p in group["params"]]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        training, parameters = self.training_config, self._trained()
        optimizer: torch.optim.Optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        snapshot_updates, processes = training.snapshot_updates, self.trainer.world_size
        started, first = time.perf_counter(), self.updates
        end = min(training.updates, (first // training.updates_per_chunk + 1) * training.updates_per_chunk)
        while self.updates < end:
            progress = self.updates / training.updates
            for group, rate, cosine in zip(optimizer.param_groups, self._initial_rates, self._cosine, strict=True):
                if cosine:
                    group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * progress))
            if self.seek is not None:
                self.seek(self.updates)
            drawn = self.sample(self.generator)
            if processes > 1:
                drawn = rows_of(drawn, self.trainer.global_rank, processes, getattr(self.learner, "whole", ()))
            gradients, values = self.gradients(drawn)
            if processes > 1:
                gradients = mean_over_processes(gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if training.gradient_clip is not None:
                clip_gradients(parameters, training.gradient_clip)
            optimizer.step()
            self.learner.after_update()  # type: ignore[operator]
            if self.average is not None:
                self.average.update_parameters(self.learner)
            self.updates += 1
            if self.updates in snapshot_updates:
                state = self.kept.export().state_dict()  # type: ignore[operator]
                self.snapshots[self.updates] = {name: value.detach().clone() for name, value in state.items()}
            self.rows.append(torch.stack(list(values.values())))
            if self.asked_to_stop and processes == 1:  # several processes agree at the end of the chunk
                break
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
            name, update = self.key.rpartition("-")[0], self.updates - len(self.rows) + k + 1
            raise NonFiniteLossError(
                f"{name}: {', '.join(bad)} became non-finite at update {update}; "
                f"last good checkpoint: {self.last_checkpoint or 'none was written yet'}"
            )
        if self.updates < end:
            return
        self.rows = []
        means = table.mean((0, 2)).tolist()
        rate = (self.updates - first) / (time.perf_counter() - started)
        self.curve.append({"update": self.updates, **dict(zip(names, means, strict=True)), "updates_per_second": rate})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dynarep"] = {
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
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["dynarep"]
        self.updates, self.curve = self._resumed["updates"], self._resumed["curve"]
        self.saved_updates = self.updates
        self.rows, self.snapshots = self._resumed["rows"], self._resumed["snapshots"]


class _Checkpoint(pl.Callback):
    """Ends a run, and writes ``path`` atomically: every ``checkpoint_every`` updates, at the end and where a signal stops it.

    SIGINT and SIGTERM stop a run after the update at hand, or after the chunk where several processes share it; a second
    one stops it at once. Parameters that are no longer finite are not written.
    """

    signals = signal.SIGINT, signal.SIGTERM

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, _Chunks)

        def stop(number: int, frame: FrameType | None) -> None:
            if pl_module.asked_to_stop:
                raise KeyboardInterrupt
            pl_module.asked_to_stop = True

        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, stop) for number in self.signals}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, _Chunks)
        training = pl_module.training_config
        every = math.ceil(training.checkpoint_every / training.updates_per_chunk) * training.updates_per_chunk
        trainer.should_stop = pl_module.stopping or pl_module.updates >= training.updates
        due = trainer.should_stop or pl_module.updates % every == 0
        if due and all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            temporary = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self.path)
            pl_module.last_checkpoint, pl_module.saved_updates = self.path, pl_module.updates

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def code_digest(learner: nn.Module, sample: Sample) -> str:
    """Identify the source text of what shapes a training: the learner's parts, its batches and this engine."""
    names = {type(part).__module__ for part in learner.modules()} | {sample.__module__, Losses.__module__, __name__}
    names |= {f"dynarep.data.{name}" for name in ("resident", "sampling", "stream")} & set(sys.modules)
    sources = [inspect.getsource(sys.modules[name]) for name in sorted(names) if not name.startswith("torch.")]
    return hashlib.sha256("".join(sources).encode()).hexdigest()


def _saved_updates(path: Path, key: str, code: str) -> int | None:
    """How many updates the checkpoint holds, if it belongs to this training; where one does not, say why."""
    if not path.exists():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)["dynarep"]
        if kept["key"] == key and kept["code"] == code:
            return int(kept["updates"])
        reason = f"it was made with other {'code' if kept['key'] == key else 'settings, seeds or data'}"
    except Exception as error:
        reason = str(error) or type(error).__name__
    print(f"{_shown(path)}: not a usable checkpoint ({reason}); training starts anew", file=sys.stderr)
    return None


@dataclass(frozen=True)
class Run:
    """Where and with which seeds a stage runs.

    Args:
        name: of what is trained, for progress lines and checkpoints, e.g. ``imitate/bc``.
        seed: of initialisation, sampling and noise.
        replicas: independent copies trained together.
        output: an existing folder that receives curves, TensorBoard logs and the artifact.
        checkpoints: folder of resume checkpoints, of this stage alone and outside of any stage output.
        trainer: the processes that share the work.
        place: of the stage in the pipeline, for progress lines, e.g. ``4/8``.
    """

    name: str
    seed: int
    replicas: int
    output: Path
    checkpoints: Path
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    place: str = ""

    @property
    def title(self) -> str:
        """Place and name."""
        return f"{self.place} {self.name}".lstrip()

    @property
    def part(self) -> dict[str, int]:
        """Which part of a stream this process reads, of how many."""
        return {"part": process_rank(self.trainer.devices), "parts": self.trainer.processes}

    def within(self, name: str) -> Run:
        """The same run for one of several models of a stage, in a new sub-folder."""
        output = self.output / name
        output.mkdir(parents=True)
        return replace(self, name=f"{self.name}/{name}", output=output)


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


def train(
    learner: nn.Module,
    sample: Sample,
    training: TrainingConfig,
    *,
    run: Run,
    metrics: Sequence[str],
    key: str,
    seek: Seek | None = None,
) -> None:
    """Train ``learner`` in place; write ``curves.tsv``, TensorBoard logs and ``snapshots/<update>/`` into ``run.output``.

    Args:
        learner: see the module docstring; it is moved to the training device and back to the CPU.
        sample: draws a batch.
        training: length and portions.
        run: names, seeds and folders.
        metrics: those shown while it runs, one or two that tell whether it learns.
        key: from ``run_key``. A checkpoint with this key, made by the same code, is resumed; that of a finished training
            is its result, so that a stage of several models that is stopped repeats none. The caller removes
            ``run.checkpoints`` when all is done.
        seek: called with the number of updates made, before each one, so that ``sample`` draws from what belongs to it.

    Raises:
        NonFiniteLossError: if a loss or metric is not finite.
        ValueError: if the batch cannot be shared among the processes, or another number of them runs.
        KeyboardInterrupt: on SIGINT (Ctrl-C) or SIGTERM; the message says at which update, and what was saved.
    """
    name, output, checkpoints, seed = run.name, run.output, run.checkpoints, run.seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    check_processes(run.trainer)
    keep_freed_memory()
    checkpoints.mkdir(parents=True, exist_ok=True)
    path = checkpoints / f"{name.replace('/', '-')}.ckpt"
    code = code_digest(learner, sample)
    module = _Chunks(learner, sample, training, key, code, seed, seek)
    saved = _saved_updates(path, key, code)
    resume = None if saved is None else path
    if resume:
        module.last_checkpoint = resume
        if process_rank(run.trainer.devices) == 0:
            how = "trained already, in" if saved == training.updates else f"resuming at update {saved} from"
            print(f"{run.title}: {how} {_shown(resume)}", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer = pl.Trainer(
            accelerator="auto",
            devices=run.trainer.devices,
            num_nodes=run.trainer.num_nodes,
            strategy=run.trainer.strategy,
            use_distributed_sampler=False,
            max_epochs=-1,
            logger=TensorBoardLogger(output, name=TENSORBOARD, version=""),
            callbacks=[_Checkpoint(path), TensorBoard(), Progress(run.title, metrics)],
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
    if module.updates < training.updates:
        raise KeyboardInterrupt(_where(module, name))
    learner.load_state_dict(module.kept.state_dict())
    learner.cpu().eval()
    if trainer.world_size > 1:
        trainer.strategy.barrier()
    write_table(output / "curves.tsv", module.curve)
    for update, state in module.snapshots.items():
        model = learner.export()  # type: ignore[operator]
        model.load_state_dict(state)
        save_model(output / "snapshots" / f"{update:09d}", model)


def _where(module: _Chunks, name: str) -> str:
    """At which update a run stopped, and what of it is saved."""
    saved = "nothing of it is saved"
    if module.last_checkpoint is not None:
        behind = module.saved_updates < module.updates
        saved = f"saved {f'up to update {module.saved_updates} ' if behind else ''}in {_shown(module.last_checkpoint)}"
    return f"at update {module.updates} of {module.training_config.updates} of {name}, {saved}"


def _shown(path: Path) -> Path:
    """The path as a person in the current folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
