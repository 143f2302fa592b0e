"""What every stage program does: read its entry, hold its folders, write its output as a whole, fail in one line."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dynarep.configs.params import MOST_REPLICAS, Field, ParamsError, config, read_yaml, validate
from dynarep.data.folders import whole_folder
from dynarep.pipeline.tables import write_json
from dynarep.pipeline.training.processes import TrainerConfig, process_rank

if TYPE_CHECKING:
    from dynarep.data.parallel import ClusterConfig
    from dynarep.data.shards import Dataset, DatasetInfo, ShardedDataset
    from dynarep.pipeline.entries import Entry
    from dynarep.pipeline.nn.models import Encoder
    from dynarep.pipeline.training.run import Run

T = TypeVar("T")

SHARED_BY_PROCESSES = ("pretrain", "learn")
"""Sections whose trainings several processes can share."""

RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""Variables that tell a process its number."""


@config
class RunConfig:
    """The two values at the top of ``params.yaml`` that all stages share."""

    seed: int = Field(default=0, ge=0)
    replicas: int = Field(default=1, gt=0, le=MOST_REPLICAS)
    """Independent copies of everything that is trained; replica r of a stage builds on replica r of its encoder."""


@dataclass(frozen=True)
class Stage:
    """One run of one stage.

    Args:
        section: of the params file, and folder under ``artifacts/``.
        params: the params file; its folder is the project.
        entry: of the section; empty for a stage that has none.
        smoke: shrink the work to seconds, to see that everything fits together.
    """

    section: str
    params: Path
    entry: str = ""
    smoke: bool = False

    @property
    def name(self) -> str:
        """Section and entry."""
        return f"{self.section}/{self.entry}" if self.entry else self.section

    @property
    def project(self) -> Path:
        """The folder that holds params.yaml, configs/ and artifacts/."""
        return self.params.resolve().parent

    @property
    def artifacts(self) -> Path:
        """The folder of the stages' outputs, and of the inputs that other stages made."""
        return self.project / "artifacts"

    @property
    def state(self) -> Path:
        """The folder of what no stage depends on: checkpoints, logs, locks."""
        return self.project / ".dynarep" / ("smoke" if self.smoke else "")

    @property
    def destination(self) -> Path:
        """Where this stage's output belongs; a smoke run has a place of its own, so that it replaces nothing."""
        return (self.state if self.smoke else self.artifacts) / self.name

    @property
    def checkpoints(self) -> Path:
        """Where trainings of this stage that were stopped wait; it is removed with the end of the stage."""
        return self.state / "checkpoints" / self.name

    @property
    def logs(self) -> Path:
        """TensorBoard's logs, and when and where the stage ran: what differs from run to run."""
        return self.project / "logs" / ("smoke" if self.smoke else "") / self.name

    @property
    def place(self) -> str:
        """The number of this stage among those of ``dvc.yaml``, e.g. ``4/8``; empty where it is not there."""
        path = self.project / "dvc.yaml"
        stages = list(read_yaml(path).get("stages", ())) if path.is_file() else []
        return f"{stages.index(self.section) + 1}/{len(stages)}" if self.section in stages else ""

    @property
    def shards(self) -> Path:
        """The folder of prepared datasets."""
        return self.artifacts / "shards"

    def values(self) -> dict[str, Any]:
        """The whole params file."""
        from dynarep.pipeline.entries import read_params

        return read_params(self.params)

    def read_entry(self) -> Entry[Any]:
        """This stage's entry."""
        from dynarep.pipeline.entries import read_entry

        entry = read_entry(self.params, self.section, self.entry)
        return entry.smoke() if self.smoke else entry

    def config(self, kind: type[T]) -> T:
        """This stage's section as ``kind``."""
        values = self.values()
        if self.section not in values:
            raise ParamsError(f"{self.params}: no section {self.section!r}; found {', '.join(map(str, values))}")
        return validate(kind, values[self.section] or {}, f"{self.params}: {self.section}")

    def run_config(self) -> RunConfig:
        """Seed and replicas."""
        values = self.values()
        return validate(RunConfig, {k: values[k] for k in ("seed", "replicas") if k in values}, str(self.params))

    def cluster(self) -> ClusterConfig:
        """Section ``cluster``, where work on shards is done; a params file may leave it out."""
        from dynarep.data.parallel import ClusterConfig

        return validate(ClusterConfig, self.values().get("cluster") or {}, f"{self.params}: cluster")

    def run(self, output: Path, *, shared: bool = True) -> Run:
        """The training's view of this stage, writing into ``output``.

        Args:
            output: an existing folder.
            shared: train over the processes of section ``trainer``, if there is one.
        """
        from dynarep.pipeline.training.run import Run

        c, trainer = self.run_config(), self.trainer() if shared else self.trainer().alone()
        return Run(self.name, c.seed, c.replicas, output, self.checkpoints, trainer, self.place, self.logs)

    def dataset(self, name: str) -> Dataset:
        """A prepared dataset."""
        from dynarep.data.shards import load_dataset

        return load_dataset(self.shards / name)

    def sharded_dataset(self, name: str) -> ShardedDataset:
        """A prepared dataset of which only the index is read."""
        from dynarep.data.shards import open_dataset

        return open_dataset(self.shards / name)

    def encoder(self, name: str, key: str, observation_dim: int | None) -> Encoder | None:
        """The encoder of an entry of ``pretrain``; None for ``none``.

        Args:
            name: of the entry.
            key: that names it, for messages.
            observation_dim: numbers in an observation of the data that it will read.

        Raises:
            ValueError: if it is not there, damaged, or for other observations.
        """
        from dynarep.pipeline.artifacts.storage import ArtifactError, load_encoder_model
        from dynarep.pipeline.entries import NONE

        if name == NONE:
            return None
        try:
            return load_encoder_model(self.artifacts / "pretrain" / name, observation_dim=observation_dim)
        except ArtifactError as error:
            raise ValueError(f"{key}: needs the encoder of pretrain.{name}: {error}") from error

    @contextmanager
    def output(self) -> Iterator[Path]:
        """A fresh folder that becomes ``destination`` when the block ends well, and vanishes when it does not.

        What differs from run to run goes to ``logs``: ``run.json`` says when the block began, how long it took, on how many
        cores and with which revision. Of several processes only the first one's folder is kept. Two programs on one stage
        are refused. Checkpoints of the stage vanish when it has ended well.

        Raises:
            ValueError: if another program is at work on this stage.
        """
        self._check_rank()
        if process_rank() > 0:
            with TemporaryDirectory() as temporary:
                yield Path(temporary)
            return
        with ExitStack() as stack:
            stack.enter_context(self._alone())
            folder = stack.enter_context(whole_folder(self.destination))
            shutil.rmtree(self.logs, ignore_errors=True)
            began, started = datetime.now(UTC), time.monotonic()
            yield folder
            self._log(began, time.monotonic() - started)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def trainer(self) -> TrainerConfig:
        """Section ``trainer``, whose processes share the trainings of ``pretrain`` and ``learn``; one process elsewhere."""
        trainer = validate(TrainerConfig, self.values().get("trainer") or {}, f"{self.params}: trainer")
        return trainer if self.section in SHARED_BY_PROCESSES else trainer.alone()

    def _check_rank(self) -> None:
        """Refuse to work for nothing: only the first of several processes writes.

        Raises:
            ValueError: if a variable says that this is another process of several, and the stage runs in one.
        """
        if process_rank() > 0 and self.trainer().processes == 1:
            names = [name for name in RANKS if os.environ.get(name, "0") != "0"]
            raise ValueError(
                f"{names[0]}: found {os.environ[names[0]]}, but {self.name} runs in one process, so it would write nothing; "
                f"unset it, or set trainer.devices and trainer.num_nodes where processes share a training"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        path = self.state / "locks" / f"{self.name.replace('/', '-')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"{self.destination}: another program is at work on this stage ({path}); wait for its end"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _log(self, began: datetime, seconds: float) -> None:
        from dynarep.pipeline.artifacts.storage import provenance

        self.logs.mkdir(parents=True, exist_ok=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        run = {"started": began.isoformat(timespec="seconds"), "seconds": round(seconds, 2), "cores": cores}
        write_json(self.logs / "run.json", {**run, **provenance(self.project)})

    def provenance(self, *datasets: DatasetInfo) -> dict[str, Any]:
        """Metadata of an artifact of this stage: version, parameters and dataset fingerprints.

        Args:
            datasets: what it was made from.
        """
        from importlib.metadata import version

        values = self.values()
        section = values.get(self.section)
        if self.entry and isinstance(section, dict):
            section = {self.entry: section.get(self.entry)}
        return {
            "stage": self.name,
            "path": self.destination.relative_to(self.project).as_posix(),
            "smoke": self.smoke,
            "version": version("dynarep"),
            "params": {"seed": values.get("seed"), "replicas": values.get("replicas"), self.section: section},
            "datasets": {dataset.name: dataset.fingerprint for dataset in datasets},
        }


def run_own_code(project: Path, name: str) -> None:
    """Start the program anew with the code of a project that has some, where another copy was imported.

    A queued experiment of DVC runs in a copy of the repository, while an editable install imports the original; its result would
    be that of other code than it says.

    Args:
        project: the folder of the params file.
        name: of the stage program.
    """
    code = [project / folder for folder in ("pipeline", "stages", "data", "configs")]
    imported = Path(__file__).resolve().parents[1]
    if not all((folder / "__init__.py").is_file() for folder in code) or imported == project.resolve():
        return
    package = project / ".dynarep" / "code" / "dynarep"
    package.mkdir(parents=True, exist_ok=True)
    for target in (*code, project / "pipeline" / "root" / "__init__.py"):
        link = package / target.name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    path = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", f"dynarep.stages.{name}", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def stage_main(
    name: str, main: Callable[[Stage], None], arguments: list[str] | None = None, *, entries: bool = False
) -> None:
    """Parse a stage program's arguments and run it.

    A known error is one line on stderr and exit status 1; SIGINT (Ctrl-C) and SIGTERM are one line and 130.

    Args:
        name: of the section.
        main: the program.
        arguments: those of the command line by default.
        entries: whether the program works on one entry of the section, whose name is its first argument.
    """
    from dynarep.data.schema import DataError

    parser = argparse.ArgumentParser(prog=f"python -m dynarep.stages.{name}", description=f"The {name} stage.")
    if entries:
        parser.add_argument("entry", help=f"an entry of section {name} of the params file")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="params file; its folder is the project"
    )
    parser.add_argument("--smoke", action="store_true", help="a few updates only, to see that everything fits together")
    options = parser.parse_args(arguments)
    if arguments is None:
        run_own_code(options.params.resolve().parent, name)
    stage = Stage(name, options.params, options.entry if entries else "", options.smoke)
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        main(stage)
    except KeyboardInterrupt as stop:
        if process_rank() == 0:
            print(f"{stage.name}: stopped {stop}".rstrip() + "; run it again to go on", file=sys.stderr)
        sys.exit(130)
    except (DataError, ValueError, FloatingPointError, OSError) as error:
        _give_up(stage, error, str(error))
    except (MemoryError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not re.search("(allocate|enough|out of) memory", text):
            raise
        _give_up(stage, error, f"not enough memory for the data, batch_size, hidden and replicas of this stage: {text}")
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, terminate)


def _give_up(stage: Stage, error: BaseException, text: str) -> NoReturn:
    """End with one line; where it names no file, it names the entry of the params file."""
    if os.environ.get("DYNAREP_TRACEBACK"):
        raise error
    if not any(place in text for place in (str(stage.project), str(stage.params), "://")):
        text += f" ({stage.params}: {stage.name.replace('/', '.')})"
    print(f"error: {stage.name}: {text}", file=sys.stderr)
    sys.exit(1)
