import csv
import inspect
import math
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn

from dynarep.configs.params import ParamsError, validate
from dynarep.data.folders import whole_folder
from dynarep.pipeline.dual_game import ImitationBatch, Transitions
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.encoders.contrastive import ContrastiveBatch, Dynamics, DynamicsConfig
from dynarep.pipeline.methods.encoders.icvf import ICVF, GoalBatch, ICVFConfig
from dynarep.pipeline.methods.learners.bc import BC, BCConfig
from dynarep.pipeline.methods.learners.iql import IQL, IQLConfig, RewardBatch
from dynarep.pipeline.methods.learners.td3_bc import TD3BC, SARSABatch, TD3BCConfig
from dynarep.pipeline.methods.learners.value_dice import ValueDICE, ValueDICEConfig
from dynarep.pipeline.nn import networks as mlp_module
from dynarep.pipeline.nn.functional import Losses, polyak
from dynarep.pipeline.nn.networks import MLP
from dynarep.pipeline.tables import write_table
from dynarep.pipeline.training.checkpoint import is_sealed, seal
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import denormals_as_zero, training_device
from dynarep.pipeline.training.gradients import clip_gradients
from dynarep.pipeline.training.loop import NonFiniteLossError, train
from dynarep.pipeline.training.run import Run, run_key
from tests.entries import NOTHING, drawn_by

torch.set_num_threads(1)

start = Progress.start


class Regression(nn.Module):
    """A learner with everything: two groups, noise from the global generator, and a target network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.target = MLP((2,), (3, 8, 1)), MLP((2,), (3, 8, 1)).requires_grad_(False)
        self.offset = nn.Parameter(torch.zeros(2, 1, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        offset = {"params": [self.offset], "lr": 1e-2, "cosine": True}
        return [{"params": list(self.network.parameters()), "lr": 1e-3}, offset]

    def losses(self, x: Tensor) -> Losses:
        noisy = x + 0.1 * torch.randn(x.shape, device=x.device)
        error = self.network(noisy) + self.offset - 0.5 * self.target(x) - x.sum(-1, keepdim=True)
        loss = error.square().mean((1, 2))
        return Losses(loss, {"absolute_error": error.detach().abs().mean((1, 2))})

    def after_update(self) -> None:
        polyak(self.target.parameters(), self.network.parameters(), 0.01)


def draw(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 16, 3, generator=generator, device=generator.device)


def failing(after: int, error: BaseException) -> Callable[[torch.Generator], Tensor]:
    """``draw`` that raises at the draw numbered ``after``, counted from 0."""
    count = 0

    def sample(generator: torch.Generator) -> Tensor:
        nonlocal count
        if count == after:
            raise error
        count += 1
        return draw(generator)

    return sample


class InterruptionError(Exception):
    pass


TRAINING = TrainingConfig(updates=24, updates_per_chunk=4, checkpoint_every=8)


def make_run(folder: Path, name: str = "stage/model") -> Run:
    output = folder / "output"
    output.mkdir(parents=True)
    return Run(name, 0, 2, output, folder / "checkpoints")


def fit(
    folder: Path,
    training: TrainingConfig = TRAINING,
    *,
    sample: Callable[[torch.Generator], Any] = draw,
    learner: nn.Module | None = None,
    key: str = "key",
    shown: tuple[str, ...] = ("loss",),
) -> nn.Module:
    run = make_run(folder)
    learner = learner or Regression()
    try:
        train(learner, NOTHING, drawn_by(sample), training, run=run, shown=shown, key=key)
    except BaseException:
        assert not (run.output / "curves.tsv").exists()
        run.output.rename(folder / f"failed-{len(list(folder.iterdir()))}")
        raise
    return learner


def read_curve(folder: Path) -> list[dict[str, float]]:
    with (folder / "output" / "curves.tsv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "stage-model.ckpt"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return fit(folder), read_curve(folder)


def test_the_loop_is_the_plain_one(uninterrupted: tuple[nn.Module, Any]) -> None:
    device = training_device()
    learner = Regression().to(device)
    first, second = learner.parameter_groups()
    optimizer = torch.optim.Adam([first, {k: second[k] for k in ("params", "lr")}], fused=True)
    generator = torch.Generator(device).manual_seed(0)
    torch.manual_seed(0)
    losses = []
    for update in range(24):
        optimizer.param_groups[1]["lr"] = 1e-2 * (1 + math.cos(math.pi * update / 24)) / 2
        optimizer.zero_grad()
        loss = learner.losses(draw(generator)).loss
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        learner.after_update()
        losses.append(loss.mean().item())
    assert same(learner.cpu(), uninterrupted[0])
    assert [row["update"] for row in uninterrupted[1]] == [4, 8, 12, 16, 20, 24]
    means = [sum(losses[i : i + 4]) / 4 for i in range(0, 24, 4)]
    assert [row["loss"] for row in uninterrupted[1]] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("updates_per_chunk", [1, 7, 100])
def test_chunks_change_nothing_to_the_bit(
    tmp_path: Path, updates_per_chunk: int, uninterrupted: tuple[nn.Module, Any]
) -> None:
    learner = fit(tmp_path, replace(TRAINING, updates_per_chunk=updates_per_chunk))
    assert same(learner, uninterrupted[0])
    expected = [*range(updates_per_chunk, 24, updates_per_chunk), 24]
    assert [row["update"] for row in read_curve(tmp_path)] == expected


def test_what_training_leaves(tmp_path: Path) -> None:
    learner = fit(tmp_path)
    assert not learner.training
    assert all(p.device.type == "cpu" for p in learner.parameters())
    rows = read_curve(tmp_path)
    assert list(rows[0]) == ["update", "loss", "absolute_error"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [path.name for path in (tmp_path / "output").iterdir()] == [
        "curves.tsv"
    ]  # and no log, which differs each time
    assert list((tmp_path / "checkpoints-logs").glob("events*"))
    kept = checkpoint(tmp_path)
    assert set((tmp_path / "checkpoints").iterdir()) == {kept, kept.with_suffix(".sha256")}
    header, *lines = (tmp_path / "output" / "curves.tsv").read_text().splitlines()
    assert header == "update\tloss\tabsolute_error"
    assert [line.split("\t")[0] for line in lines] == ["4", "8", "12", "16", "20", "24"]


@pytest.mark.parametrize("error", [InterruptionError("stop"), KeyboardInterrupt()])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    tmp_path: Path,
    error: BaseException,
    uninterrupted: tuple[nn.Module, list[dict[str, float]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(type(error)):
        fit(tmp_path, sample=failing(14, error))  # after the checkpoint at 8, within the chunk 13..16
    assert checkpoint(tmp_path).exists()
    calls = 0

    def counted(generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        return draw(generator)

    capsys.readouterr()
    torch.manual_seed(123)  # nothing may depend on the state of the process
    learner = fit(tmp_path, sample=counted)
    assert f"resuming at update 8 from {checkpoint(tmp_path)}" in capsys.readouterr().err
    assert calls == 16
    assert same(learner, uninterrupted[0])
    assert read_curve(tmp_path) == uninterrupted[1]


def test_a_finished_training_is_not_repeated(
    tmp_path: Path, uninterrupted: tuple[nn.Module, list[dict[str, float]]]
) -> None:
    """As in a stage of several models that was stopped in a later one."""
    fit(tmp_path)
    after = torch.get_rng_state()
    (tmp_path / "output").rename(tmp_path / "first")
    torch.manual_seed(123)
    learner = fit(tmp_path, sample=failing(0, AssertionError("drawn")))
    assert same(learner, uninterrupted[0])
    assert read_curve(tmp_path) == uninterrupted[1]
    assert torch.equal(torch.get_rng_state(), after)


def at_draw(count: int, action: Callable[[], object]) -> Callable[[torch.Generator], Tensor]:
    """``draw`` that does something before the draw numbered ``count``, counted from 0."""
    done = iter(range(1_000_000))

    def sample(generator: torch.Generator) -> Tensor:
        if next(done) == count:
            action()
        return draw(generator)

    return sample


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 9, 11, 12, 22])
def test_a_signal_stops_after_the_update_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, at: int, uninterrupted: tuple[nn.Module, list[dict[str, float]]]
) -> None:
    """Within a chunk of 4 (9), at its end (11), at its start (12)."""
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    message = f"at update {at + 1} of 24 of stage/model, saved in {checkpoint(tmp_path)}"
    with pytest.raises(KeyboardInterrupt, match=f"^{re.escape(message)}$"):
        fit(tmp_path, sample=at_draw(at, lambda: signal.raise_signal(number)))
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    torch.manual_seed(123)
    learner = fit(tmp_path, sample=failing(24 - at - 1, AssertionError("drawn")))
    assert same(learner, uninterrupted[0])
    assert read_curve(tmp_path) == uninterrupted[1]


def test_a_signal_in_the_last_update_changes_nothing(tmp_path: Path, uninterrupted: tuple[nn.Module, Any]) -> None:
    assert same(fit(tmp_path, sample=at_draw(23, lambda: signal.raise_signal(signal.SIGINT))), uninterrupted[0])


def test_a_second_signal_stops_at_once(tmp_path: Path, uninterrupted: tuple[nn.Module, Any]) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="at update 14 of 24 of stage/model, saved up to update 8 in"):
        fit(tmp_path, sample=at_draw(14, twice))
    assert signal.getsignal(signal.SIGINT) == handler
    assert same(fit(tmp_path), uninterrupted[0])


def test_other_code_starts_anew(
    tmp_path: Path,
    uninterrupted: tuple[nn.Module, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped(tmp_path)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda of: source(of) + (" # changed" if of is mlp_module else ""))
    capsys.readouterr()
    assert same(fit(tmp_path), uninterrupted[0])
    assert "not a usable checkpoint (it was made with other code); training starts anew" in capsys.readouterr().err


def test_a_run_can_be_resumed_twice(tmp_path: Path, uninterrupted: tuple[nn.Module, list[dict[str, float]]]) -> None:
    for _ in range(2):  # stops at update 9, then at update 8 + 9
        with pytest.raises(InterruptionError):
            fit(tmp_path, sample=failing(9, InterruptionError()))
    learner = fit(tmp_path)
    assert same(learner, uninterrupted[0])
    assert read_curve(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("after", [14, 24])
def test_the_bar_on_a_terminal_ends_with_the_run(tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    started = []
    monkeypatch.setattr(Progress, "start", lambda self: started.append(self) or start(self))  # type: ignore[func-returns-value]
    if after < 24:
        with pytest.raises(InterruptionError):
            fit(tmp_path, sample=failing(after, InterruptionError()))
    else:
        fit(tmp_path)
    (bar,) = started
    assert not bar.live.is_started
    assert bar.tasks[0].completed == (12 if after < 24 else 24)
    assert re.fullmatch(r"loss [\d.]+", bar.tasks[0].fields["status"])
    assert re.fullmatch(r"\d+/s" + (r"  0:\d\d left" if after < 24 else ""), bar.tasks[0].fields["speed"].rstrip())


def test_a_line_of_progress_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, shown=("loss", "absolute_error"))
    line = r"stage/model: 24/24  \d+/s  loss [\d.]+  absolute_error [\d.]+\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def stopped(folder: Path, key: str = "key") -> None:
    with pytest.raises(InterruptionError):
        fit(folder, sample=failing(14, InterruptionError()), key=key)
    assert checkpoint(folder).exists()


def test_a_sealed_checkpoint_that_cannot_be_taken_back_is_named(tmp_path: Path) -> None:
    stopped(tmp_path)
    path = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "optimizer_states": [{}]}, path)
    seal(path)
    with pytest.raises(ValueError, match=rf"{path}: cannot be resumed from \(KeyError.*\); delete it to start anew"):
        fit(tmp_path)
    assert is_sealed(path)


def test_another_key_starts_anew(tmp_path: Path, uninterrupted: tuple[nn.Module, list[dict[str, float]]]) -> None:
    stopped(tmp_path, "another")
    with pytest.raises(InterruptionError):  # of 24 draws; resumed at 8 it would need but 16
        fit(tmp_path, sample=failing(23, InterruptionError()))
    learner = fit(tmp_path)
    assert same(learner, uninterrupted[0])
    assert read_curve(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "not sealed", "changed"])
def test_a_damaged_checkpoint_starts_anew(
    tmp_path: Path,
    damage: str,
    uninterrupted: tuple[nn.Module, list[dict[str, float]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint(tmp_path)
    path.parent.mkdir()
    if damage in ("not sealed", "changed"):
        path.parent.rmdir()
        stopped(tmp_path)
        if damage == "changed":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.with_suffix(".sha256").unlink()
    elif damage == "pickle":  # nothing but tensors and plain values is ever loaded
        torch.save({"dynarep": {"key": "key"}, "callbacks": InterruptionError("harm")}, path)
    elif damage == "truncated":
        torch.save({"dynarep": {"key": "key"}, "weights": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        path.write_bytes(b"" if damage == "empty" else b"not a checkpoint")
    if damage not in ("not sealed", "changed"):
        seal(path)
    learner = fit(tmp_path)
    assert f"{path}: not a usable checkpoint" in capsys.readouterr().err
    assert same(learner, uninterrupted[0])
    assert read_curve(tmp_path) == uninterrupted[1]


class Breaking(Regression):
    """A metric or the loss of the second replica breaks at one update."""

    def __init__(self, at: int, what: str, value: float = math.nan) -> None:
        super().__init__()
        self.at, self.what, self.value, self.count = at, what, value, 0

    def losses(self, x: Tensor) -> Losses:
        result = super().losses(x)
        self.count += 1
        broken = torch.tensor([0.0, self.value if self.count == self.at else 0.0], device=x.device)
        if self.what == "loss":
            return Losses(result.loss + broken, result.metrics)
        return Losses(result.loss, {**result.metrics, self.what: broken})


@pytest.mark.parametrize(
    ("at", "what", "value", "saved"),
    [(3, "loss", math.nan, False), (4, "spread", math.inf, False), (15, "spread", -math.inf, True)],
)
def test_a_loss_that_is_not_finite(tmp_path: Path, at: int, what: str, value: float, saved: bool) -> None:
    def stage() -> None:
        with whole_folder(tmp_path / "artifact") as folder:
            run = Run("stage/model", 0, 2, folder, tmp_path / "checkpoints")
            train(Breaking(at, what, value), NOTHING, drawn_by(draw), TRAINING, run=run, shown=("loss",), key="1234")

    with pytest.raises(NonFiniteLossError) as error:
        stage()
    assert not list(tmp_path.glob("*artifact*"))
    assert f"stage/model: {what} became non-finite at update {at};" in str(error.value)
    last = str(checkpoint(tmp_path)) if saved else "none was written yet"
    assert str(error.value).endswith(f"last good checkpoint: {last}")
    if saved:
        found = torch.load(checkpoint(tmp_path), weights_only=True)
        assert found["dynarep"]["updates"] == 8
        assert all(tensor.isfinite().all() for tensor in found["state_dict"].values())


def test_a_resumed_run_names_the_checkpoint_it_came_from(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"loss became non-finite at update 10;.*stage-model\.ckpt"):
        fit(tmp_path, learner=Breaking(2, "loss"))


class Linear(nn.Module):
    """Gradients that do not depend on the parameters: ``slopes`` (2,) times the batch. Adam then moves by its rate."""

    def __init__(self, *, cosine: bool, slopes: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.decaying, self.constant = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(2, 3))
        self.cosine, self.slopes = cosine, torch.tensor(slopes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        first = {"params": [self.decaying], "lr": 0.1, "cosine": self.cosine}
        return [first, {"params": [self.constant], "lr": 0.01}]

    def losses(self, factor: float) -> Losses:
        total = self.decaying.sum(1) + self.constant.sum(1)
        return Losses(factor * self.slopes.to(total.device) * total)

    def after_update(self) -> None:
        pass


def test_cosine_schedule(tmp_path: Path) -> None:
    learner = Linear(cosine=True)
    fit(tmp_path, learner=learner, sample=lambda _: 1.0)
    moved = sum(0.1 * (1 + math.cos(math.pi * i / 24)) / 2 for i in range(24))
    torch.testing.assert_close(learner.decaying.detach(), torch.full((2, 1), -moved), rtol=1e-4, atol=0)
    torch.testing.assert_close(learner.constant.detach(), torch.full((2, 3), -0.24), rtol=1e-4, atol=0)


def test_the_schedule_goes_on_after_a_resume(tmp_path: Path) -> None:
    count = iter(range(14))

    def sample(_: torch.Generator) -> float:
        if next(count, None) is None:
            raise InterruptionError
        return 1.0

    with pytest.raises(InterruptionError):
        fit(tmp_path, learner=Linear(cosine=True), sample=sample)
    learner = Linear(cosine=True)
    fit(tmp_path, learner=learner, sample=lambda _: 1.0)
    moved = sum(0.1 * (1 + math.cos(math.pi * i / 24)) / 2 for i in range(24))
    torch.testing.assert_close(learner.decaying.detach(), torch.full((2, 1), -moved), rtol=1e-4, atol=0)


def test_gradients_are_clipped_per_replica() -> None:
    small, large = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 1, 2))
    small.grad, large.grad = torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[[0.0, 4.0]], [[0.0, 0.4]]])
    unused = nn.Parameter(torch.zeros(2, 2))
    clip_gradients([small, unused, large], 1.0)  # norms 5 and 0.5
    torch.testing.assert_close(small.grad, torch.tensor([[0.6, 0.0], [0.3, 0.0]]))
    torch.testing.assert_close(large.grad, torch.tensor([[[0.0, 0.8]], [[0.0, 0.4]]]))
    assert unused.grad is None


@pytest.mark.parametrize("clip", [None, 1.0])
def test_training_clips_if_told_to(tmp_path: Path, clip: float | None) -> None:
    factors = iter([1.0, 100.0] * 12)
    learner = Linear(cosine=False, slopes=(1.0, 1e-3))
    fit(tmp_path, replace(TRAINING, gradient_clip=clip), learner=learner, sample=lambda _: next(factors))
    # gradients of 1, 100, 1, ... become constant where they are clipped; those of the second replica are below 1
    first, second = learner.decaying.detach().neg().flatten().tolist()
    if clip:
        assert first == pytest.approx(24 * 0.1, rel=1e-3)
    else:
        assert first == pytest.approx(second, rel=1e-2)
    assert second < 0.8 * 24 * 0.1


def test_a_phase_has_a_folder_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path, "imitate")
    inner = run.phase("bc")
    assert (inner.name, inner.output) == ("imitate/bc", run.output / "bc")
    assert inner.output.is_dir()
    assert inner.logs == run.logs / "bc"
    assert (inner.seed, inner.replicas, inner.checkpoints) == (0, 2, run.checkpoints)


def test_the_key_identifies_what_shapes_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    key = run_key(run, TRAINING, "fingerprint")
    assert key.startswith("stage/model-")
    assert key == run_key(replace(run, output=tmp_path, checkpoints=tmp_path), replace(TRAINING), "fingerprint")
    others = [
        run_key(replace(run, name="stage/other"), TRAINING, "fingerprint"),
        run_key(replace(run, seed=1), TRAINING, "fingerprint"),
        run_key(replace(run, replicas=3), TRAINING, "fingerprint"),
        run_key(run, replace(TRAINING, batch_size=8), "fingerprint"),
        run_key(run, TRAINING, "other"),
    ]
    assert len({key, *others}) == 6


def test_training_config() -> None:
    smoke = TrainingConfig(updates=100_000, batch_size=256).smoke()
    assert (smoke.updates, smoke.batch_size) == (20, 32)
    for key, value in {"updates": 0, "batch_size": 0, "updates_per_chunk": 0, "gradient_clip": 0.0}.items():
        with pytest.raises(ParamsError, match=f"training.{key}: found"):
            validate(TrainingConfig, {"updates": 10, key: value}, "training")


def test_write_table(tmp_path: Path) -> None:
    write_table(tmp_path / "t.tsv", [{"k": 1, "space": "psi"}, {"k": math.nan, "space": "raw"}])
    assert (tmp_path / "t.tsv").read_bytes() == b"k\tspace\n1\tpsi\n\traw\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares two runs on the CPU to the bit")
def test_the_average_follows_the_trained_parameters(tmp_path: Path) -> None:
    """Kept parameters are those of the run without averaging, averaged by hand; an interruption changes nothing."""
    rate = 0.2
    states: list[Tensor] = []
    plain = Regression()
    after_update = plain.after_update

    def recorded() -> None:
        after_update()
        states.append(plain.network.layers[0].weight.detach().clone())

    plain.after_update = recorded  # type: ignore[method-assign]
    fit(tmp_path / "plain", learner=plain)
    expected = states[0]
    for state in states[1:]:
        expected = torch.lerp(expected, state, rate)
    averaging = replace(TRAINING, average_rate=rate)
    kept = fit(tmp_path / "kept", averaging)
    torch.testing.assert_close(kept.network.layers[0].weight, expected)
    with pytest.raises(InterruptionError):
        fit(tmp_path / "stopped", averaging, sample=failing(17, InterruptionError()))
    resumed = fit(tmp_path / "stopped", averaging)
    assert torch.equal(resumed.network.layers[0].weight, kept.network.layers[0].weight)


def regression() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    return Regression(), draw


def transitions(generator: torch.Generator, replicas: int = 2, batch: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    states = torch.randn(2, replicas, batch, 5, generator=generator)
    return states[0], torch.rand(replicas, batch, 2, generator=generator) * 2 - 1, states[1]


MOMENTS, BOUNDS = (torch.zeros(5), torch.ones(5)), ((-1.0, -1.0), (1.0, 1.0))


def cloning() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    torch.manual_seed(0)
    return BC.build(BCConfig(hidden=(16,)), World(2, *MOMENTS, *BOUNDS)), lambda g: Transitions(*transitions(g))


def q_learning() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    torch.manual_seed(0)

    def sample(generator: torch.Generator) -> RewardBatch:
        s, a, s_next = transitions(generator)
        return RewardBatch(s, a, s.sum(-1), (s_next[..., 0] > 1).float(), s_next)

    return IQL.build(IQLConfig(hidden=(16,)), World(2, *MOMENTS, *BOUNDS)), sample


def delayed_actor() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    torch.manual_seed(0)

    def sample(generator: torch.Generator) -> SARSABatch:
        s, a, s_next = transitions(generator)
        return SARSABatch(s, a, s.sum(-1), (s_next[..., 0] > 1).float(), s_next)

    return TD3BC.build(TD3BCConfig(hidden=(16,), noise=0.0), World(2, *MOMENTS, *BOUNDS)), sample


def intents() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    torch.manual_seed(0)

    def sample(generator: torch.Generator) -> GoalBatch:
        (s, _, s_next), (g, _, z) = transitions(generator), transitions(generator)
        return GoalBatch(s, s_next, g, z, (s[..., 0] > 1).float(), (s[..., 1] > 1).float())

    return ICVF(ICVFConfig(hidden=(16,), latent_dim=16), 2, *MOMENTS), sample


def contrast() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    torch.manual_seed(0)

    def sample(generator: torch.Generator) -> ContrastiveBatch:
        return ContrastiveBatch(*transitions(generator), transitions(generator)[0])

    return Dynamics(DynamicsConfig(hidden=(16,), feature_dim=8), 2, *MOMENTS, 2), sample


def penalised_game() -> tuple[nn.Module, Callable[[torch.Generator], Any]]:
    """With actions at their mode, because compiled code draws other noise."""
    torch.manual_seed(0)
    game = ValueDICE(ValueDICEConfig(hidden=(16,), actor_rate=1e-3, cloning_weight=1.0), 2, *MOMENTS, *BOUNDS)
    game.actor.sample = lambda observations, noise: game.actor.mode(observations)  # type: ignore[method-assign]

    def sample(generator: torch.Generator) -> ImitationBatch:
        expert = Transitions(*transitions(generator))
        return ImitationBatch(expert, expert)  # mixtures of the same points do not depend on the weights drawn for them

    return game, sample


CONSTANT_OF_Q = "critic.network.layers.1.bias"
"""Of the game: its gradient is zero but for rounding, which Adam turns into steps of full size."""

SLOW = [regression, q_learning, delayed_actor, intents, contrast, penalised_game]


@pytest.mark.skipif(torch.cuda.is_available(), reason="samples on the CPU")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("make", [cloning, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)])
def test_compiled_updates_are_those_of_the_plain_loop(
    make: Callable[[], tuple[nn.Module, Callable[[torch.Generator], Any]]], tmp_path: Path
) -> None:
    states = []
    for compile_it in (False, True):
        learner, sample = make()
        if isinstance(learner, Regression):
            learner.losses = noiseless(learner)  # type: ignore[method-assign]
        training = replace(TRAINING, updates=12, compile=compile_it)
        fit(tmp_path / str(compile_it), training, learner=learner, sample=sample)
        states.append({name: x for name, x in learner.state_dict().items() if isinstance(x, Tensor)})
    start, _ = make()
    moved = [not torch.equal(states[0][n], x) for n, x in start.state_dict().items() if isinstance(x, Tensor)]
    assert any(moved)
    for name, value in states[0].items():
        if name != CONSTANT_OF_Q:
            torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


def noiseless(learner: Regression) -> Callable[[Tensor], Losses]:
    def losses(x: Tensor) -> Losses:
        error = learner.network(x) + learner.offset - 0.5 * learner.target(x) - x.sum(-1, keepdim=True)
        return Losses(error.square().mean((1, 2)), {"absolute_error": error.detach().abs().mean((1, 2))})

    return losses


def test_what_cannot_be_compiled_is_trained_plainly_unless_it_must_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stubborn(Regression):
        def losses(self, x: Tensor) -> Losses:
            if float(x.sum()) > 1e9:  # a graph break
                raise AssertionError
            return super().losses(x)

    must = replace(TRAINING, updates=4, compile=True)
    with pytest.raises(Exception, match=r"(?i)data-dependent|item|float"):
        fit(tmp_path / "must", must, learner=Stubborn())
    plain = fit(tmp_path / "plain", replace(must, compile=False), learner=Stubborn())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynarep.pipeline.training.update.COMPILE_FROM", 1)
        tried = fit(tmp_path / "tried", replace(must, compile=None), learner=Stubborn())
    assert "not compiled" in capsys.readouterr().err
    assert torch.equal(tried.network.layers[0].weight, plain.network.layers[0].weight)


def test_numbers_below_1e_38_are_0_while_it_trains_alone() -> None:
    small = torch.tensor(1e-39)
    with denormals_as_zero():
        assert small * 1 == 0
    assert small * 1 != 0
