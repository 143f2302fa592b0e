"""What every stage program does: read its section, hold its folders, write its output as a whole, fail in one line."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from dynarep.configs.params import Field, config, read_section, read_yaml, validate
from dynarep.data.folders import whole_folder
from dynarep.pipeline.distributed import process_rank

if TYPE_CHECKING:
    from dynarep.data.parallel import EngineConfig
    from dynarep.data.shards import Dataset, DatasetInfo, ShardedDataset
    from dynarep.pipeline.engine import Run

T = TypeVar("T")


@config
class RunConfig:
    """The two values at the top of ``params.yaml`` that all stages share."""

    seed: int = Field(default=0, ge=0)
    replicas: int = Field(default=1, gt=0)
    """Independent copies of everything that is trained; replica r of a stage builds on replica r of its encoder."""


@dataclass(frozen=True)
class Stage:
    """One run of one stage.

    Args:
        name: the section of the params file and the folder under ``artifacts/``.
        params: the params file; its folder is the project.
        smoke: shrink the work to seconds, to see that everything fits together.
    """

    name: str
    params: Path
    smoke: bool = False

    @property
    def project(self) -> Path:
        """The folder that holds params.yaml, configs/ and artifacts/."""
        return self.params.resolve().parent

    @property
    def artifacts(self) -> Path:
        """The folder of the stages' outputs, and of the inputs that other stages made."""
        return self.project / "artifacts"

    @property
    def destination(self) -> Path:
        """Where this stage's output belongs; a smoke run has a place of its own, so that it replaces nothing."""
        return (self.project / ".dynarep" / "smoke" if self.smoke else self.artifacts) / self.name

    @property
    def checkpoints(self) -> Path:
        """Where trainings of this stage that were stopped wait; it is removed with the end of the stage."""
        return self.project / ".dynarep" / ("smoke" if self.smoke else "") / "checkpoints" / self.name

    @property
    def place(self) -> str:
        """The number of this stage in ``dvc.yaml``, out of how many, e.g. ``4/8``; empty where it is not there."""
        path = self.project / "dvc.yaml"
        stages = list(read_yaml(path).get("stages", ())) if path.is_file() else []
        return f"{stages.index(self.name) + 1}/{len(stages)}" if self.name in stages else ""

    @property
    def shards(self) -> Path:
        """The folder of prepared datasets."""
        return self.artifacts / "shards"

    def config(self, kind: type[T]) -> T:
        """This stage's section as ``kind``."""
        return read_section(self.params, self.name, kind)

    def run_config(self) -> RunConfig:
        """Seed and replicas."""
        values = read_yaml(self.params)
        return validate(RunConfig, {k: values[k] for k in ("seed", "replicas") if k in values}, str(self.params))

    def engine(self) -> EngineConfig:
        """Section ``engine``, where work on shards is done; a params file may leave it out."""
        from dynarep.data.parallel import EngineConfig

        return validate(EngineConfig, read_yaml(self.params).get("engine") or {}, f"{self.params}: engine")

    def run(self, output: Path, *, shared: bool = False) -> Run:
        """The engine's view of this stage, writing into ``output``.

        Args:
            output: an existing folder.
            shared: train over the processes of section ``trainer``, if there is one.
        """
        from dynarep.pipeline.distributed import TrainerConfig
        from dynarep.pipeline.engine import Run

        c, trainer = self.run_config(), TrainerConfig()
        if shared and "trainer" in read_yaml(self.params):
            trainer = read_section(self.params, "trainer", TrainerConfig)
        return Run(self.name, c.seed, c.replicas, output, self.checkpoints, trainer, self.place)

    def dataset(self, name: str) -> Dataset:
        """A prepared dataset."""
        from dynarep.data.shards import load_dataset

        return load_dataset(self.shards / name)

    def sharded_dataset(self, name: str) -> ShardedDataset:
        """A prepared dataset of which only the index is read."""
        from dynarep.data.shards import open_dataset

        return open_dataset(self.shards / name)

    @contextmanager
    def output(self) -> Iterator[Path]:
        """A fresh folder that becomes ``destination`` when the block ends well, and vanishes when it does not.

        ``timing.json`` in it says when the block began, how long it took and on how many cores. Of several processes only the
        first one's folder is kept. Checkpoints of the stage vanish when it has ended well.
        """
        if process_rank() > 0:
            with TemporaryDirectory() as temporary:
                yield Path(temporary)
        else:
            with whole_folder(self.destination) as folder:
                began, started = datetime.now(UTC), time.monotonic()
                yield folder
                timing = {
                    "started": began.isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - started, 2),
                    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                }
                write_json(folder / "timing.json", timing)
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def provenance(self, *datasets: DatasetInfo, model: str = "") -> dict[str, Any]:
        """Metadata of an artifact of this stage: version, revision, parameters and dataset fingerprints.

        Args:
            datasets: what it was made from.
            model: its sub-folder, where the stage writes several.
        """
        from dynarep.pipeline.artifacts import provenance

        values = read_yaml(self.params)
        return {
            "stage": self.name,
            "path": (self.destination / model).relative_to(self.project).as_posix(),
            "smoke": self.smoke,
            **provenance(self.project),
            "params": {key: values.get(key) for key in ("seed", "replicas", self.name)},
            "datasets": {dataset.name: dataset.fingerprint for dataset in datasets},
        }


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with a final newline; floats keep eight digits, those that are not finite become null."""
    path.write_text(json.dumps(_plain(value), indent=2) + "\n")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of equal keys as tab-separated values with a header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def stage_main(name: str, main: Callable[[Stage], None], arguments: list[str] | None = None) -> None:
    """Parse a stage program's three flags and run it.

    A known error is one line on stderr and exit status 1; SIGINT (Ctrl-C) and SIGTERM are one line and 130.
    """
    from dynarep.data.schema import DataError

    parser = argparse.ArgumentParser(prog=f"python -m dynarep.stages.{name}", description=f"The {name} stage.")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="params file; its folder is the project"
    )
    parser.add_argument("--stage", default=name, help="section of the params file and folder under artifacts/")
    parser.add_argument("--smoke", action="store_true", help="a few updates only, to see that everything fits together")
    options = parser.parse_args(arguments)
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        main(Stage(options.stage, options.params, options.smoke))
    except KeyboardInterrupt as stop:
        if process_rank() == 0:
            print(f"{options.stage}: stopped {stop}".rstrip() + "; run it again to go on", file=sys.stderr)
        sys.exit(130)
    except (DataError, ValueError, FloatingPointError, OSError) as error:
        if os.environ.get("DYNAREP_TRACEBACK"):
            raise
        print(f"error: {options.stage}: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, terminate)
