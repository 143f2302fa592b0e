"""What TensorBoard shows of a training, read back with its own reader."""

import csv
import io
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger

from dynarep.data.schema import Episode
from dynarep.data.shards import load_dataset, write_dataset
from dynarep.pipeline.methods.encoders.icvf import ICVFConfig
from dynarep.pipeline.pretrain import board_of, pretrain
from dynarep.pipeline.progress import episode_progress, fitting
from dynarep.pipeline.training.board import board, coupling_figure
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.processes import TrainerConfig
from dynarep.pipeline.training.run import Run
from dynarep.pipeline.training.watching import Progress, loggers_of
from tests.entries import entry

torch.set_num_threads(1)

UPDATES = 40


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0}).Reload()


def learn(folder: Path, name: str, trainer: TrainerConfig | None = None) -> Path:
    """The folder of an entry after a training."""
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            id=f"e-{i}",
            observations=rng.normal(size=(31, 3)).cumsum(0).astype(np.float32),
            rewards=np.full(30, i, np.float32),
            terminated=False,
            truncated=True,
        )
        for i in range(1, 11)
    ]
    if not (folder / "data").exists():
        write_dataset(folder / "data", "data", episodes, provenance={}, env=None, bounds=((), ()))
    output = folder / name
    output.mkdir()
    training = TrainingConfig(updates=UPDATES, batch_size=8, updates_per_chunk=5)
    method = ICVFConfig(hidden=(16,), latent_dim=8)
    c = entry("pretrain", "icvf", method, held_out=0.3, training=training)
    trainer = trainer or TrainerConfig()
    run = Run("pretrain/intent", 0, 2, output, folder / "checkpoints", trainer, logs_in=folder / f"{name}-logs")
    board_of(pretrain(c, load_dataset(folder / "data"), run).measured, run)
    return output


def logs(output: Path) -> Path:
    return output.parent / f"{output.name}-logs"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(tmp_path_factory.mktemp("watching"), "first")


def test_scalars_are_the_curve_also_where_a_training_was_done_before(output: Path) -> None:
    for folder in (output, learn(output.parent, "again")):
        with (folder / "curves.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        shown = read(logs(folder))
        assert {"loss", "value", "updates_per_second"} <= set(shown.Tags()["scalars"])
        for name in ("loss", "value"):
            found = [(event.step, event.value) for event in shown.Scalars(name)]
            assert [step for step, _ in found] == list(range(5, UPDATES + 1, 5))
            assert [value for _, value in found] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)


def test_histograms_a_few_times_of_what_is_trained(output: Path) -> None:
    shown = read(logs(output))
    tags = shown.Tags()["histograms"]
    assert {tag.partition("/")[0] for tag in tags} == {"parameters", "gradients"}
    assert not [tag for tag in tags if "target" in tag]
    for tag in tags:
        assert [event.step for event in shown.Histograms(tag)] == [10, 20, 30, 40]
        assert all(event.histogram_value.num > 1 for event in shown.Histograms(tag))
    assert sum(path.stat().st_size for path in logs(output).rglob("*")) < 500_000


def test_the_projector_shows_held_out_states(output: Path) -> None:
    folder = logs(output)
    config = (folder / "projector_config.pbtxt").read_text()
    assert 'tensor_name: "latents:' in config
    (points,) = folder.rglob("tensors.tsv")
    (metadata,) = folder.rglob("metadata.tsv")
    for path in (points, metadata):
        assert f'path: "{path.relative_to(folder)}"' in config
    header, *rows = metadata.read_text().splitlines()
    assert header == "episode\ttime\treturn"
    latents = np.loadtxt(points)
    assert latents.shape == (len(rows), 8)
    assert 60 <= len(rows) <= 400
    totals: dict[str, set[str]] = {}
    for row in rows:
        episode, time, total = row.split("\t")
        assert 0 <= int(time) < 30
        assert float(total) in {30.0 * i for i in range(1, 11)}
        totals.setdefault(episode, set()).add(total)
    assert len(totals) >= 2
    assert all(len(found) == 1 for found in totals.values())


def test_pictures(output: Path, tmp_path: Path) -> None:
    (tag,) = read(logs(output)).Tags()["images"]
    assert tag == "squared distance after k steps"
    with board(tmp_path) as writer:
        writer.add_figure("coupling", coupling_figure(np.eye(40, 30) / 30))
    (picture,) = read(tmp_path).Images("coupling")
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert (picture.width, picture.height) == (500, 350)


class Heard(Logger):
    """A logger of another package, as ``trackio`` or W&B have it: its run has to be finished."""

    runs: ClassVar[list["Heard"]] = []

    def __init__(self, project: str, run_name: str = "") -> None:
        super().__init__()
        self.project, self.run_name, self.steps, self.finished = project, run_name, [], 0
        self.experiment = self
        self.runs.append(self)

    name, version = property(lambda self: self.project), property(lambda self: 0)

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert "loss" in metrics
        self.steps.append(step)

    def finish(self) -> None:
        self.finished += 1


def test_other_loggers_get_the_same_curve(tmp_path: Path) -> None:
    loggers = {"CSVLogger": {}, f"{__name__}:Heard": {"project": "maze"}}
    folder = learn(tmp_path, "logged", TrainerConfig(loggers=loggers))
    (found,) = logs(folder).rglob("metrics.csv")
    assert found.parts[-3] == "pretrain-intent"
    with (folder / "curves.tsv").open() as curve, found.open() as file:
        rows = list(csv.DictReader(curve, delimiter="\t"))
        logged = list(csv.DictReader(file))
    assert [row["step"] for row in logged] == [row["update"] for row in rows]
    assert [float(row["loss"]) for row in logged] == pytest.approx([float(row["loss"]) for row in rows], rel=1e-5)
    (heard,) = Heard.runs
    assert (heard.run_name, heard.steps, heard.finished) == ("pretrain-intent", list(range(5, UPDATES + 1, 5)), 1)
    assert read(logs(folder)).Tags()["scalars"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            "WandbLog",
            {},
            "found no such logger, expected <module>:<class> or one of CSVLogger, CometLogger",
        ),
        ("no_such_package:Logger", {}, "No module named 'no_such_package'"),
        ("CSVLogger", {"project": "x"}, "unexpected keyword argument 'project'"),
        pytest.param(
            "WandbLogger",
            {},
            "its package is not installed: .*wandb",
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
        ),
    ],
)
def test_a_logger_that_cannot_be_had_is_named(
    tmp_path: Path, kind: str, arguments: dict[str, Any], message: str
) -> None:
    run = Run("learn/bc", 0, 1, tmp_path, tmp_path / "checkpoints", TrainerConfig(loggers={kind: arguments}))
    with pytest.raises(ValueError, match=rf"trainer\.loggers\.{kind}: .*{message}"):
        loggers_of(run)


class Terminal(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What was on it, without codes."""
        return [
            line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())) if line.strip()
        ]


def terminal_of_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stderr; within a test, because pytest sets stderr anew before it."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def test_the_bar_of_a_training_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of_eighty_columns(monkeypatch)
    row = {"update": 2250.0, "loss": 0.412, "squared_error": 0.0713}
    module: Any = SimpleNamespace(updates=0, total=100_000, curve=[row])
    trainer: Any = SimpleNamespace(is_global_zero=True)
    shown = Progress("14/25 learn/weighted_bc_of_the_metric_label/discriminator", ("loss", "squared_error"))
    shown.on_train_start(trainer, module)
    module.updates = 2250
    shown.on_train_epoch_end(trainer, module)
    shown.teardown(trainer, module, "fit")
    last = terminal.lines[-1]
    assert len(last) <= 80
    for part in ("14/25 learn/…", "minator", "━", "2250/100000", "/s", "left"):
        assert part in last, last


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(11, ""), (12, "loss 0.65012"), (31, "loss 0.65012"), (32, "loss 0.65012  squared_error 0.07")],
)
def test_a_metric_is_shown_whole_or_not_at_all(columns: int, shown: str) -> None:
    assert fitting(["loss 0.65012", "squared_error 0.07"], columns) == shown


def test_the_bar_of_episodes_shows_place_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of_eighty_columns(monkeypatch)
    work = ((f"block {number}", [0] * 5) for number in range(4))
    for name, _ in episode_progress(work, len, 40, "17/25 evaluate/weighted_bc_of_the_metric_label"):
        assert name.startswith("block")
    last = terminal.lines[-1]
    assert len(last) <= 80
    for part in ("17/25 evalua…etric_label", "━", "20/40", "episodes/s", "left"):
        assert part in last, last
