"""One update, captured: a graph takes over only where it does what the plain update does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.update import AGREEING, WARM_UP, CapturedStep, Update, Values, matmul_precision
from tests.test_engine import Regression, draw, fit

TRAINING = TrainingConfig(updates=20, batch_size=4)


class Recorded:
    """Stands for a CUDA graph: what it does is that of the moment it was recorded, and recording runs nothing."""

    def __init__(self, step: Callable[[], Values], generator: torch.Generator, rate: float = 1.0) -> None:
        self.step, self.rate = step, rate
        self.replays = 0

    def replay(self) -> Values:
        self.replays += 1
        return {name: value * self.rate for name, value in self.step().items()}


class Counting(Regression):
    """Trains every second time only, by a count that a recording cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.recorded = 0, False

    def losses(self, x: Tensor) -> Any:
        losses = super().losses(x)
        self.count += not self.recorded
        return losses if self.count % 2 else type(losses)(0.0 * losses.loss, losses.metrics)


def stepping(learner: Regression, record: Any) -> tuple[CapturedStep, Update, torch.Generator]:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    update = Update(learner, TRAINING)
    return CapturedStep(lambda: update(draw(generator)), update, generator, record), update, generator


def weights(learner: nn.Module) -> list[Tensor]:
    return [value.clone() for value in learner.state_dict().values()]


def test_a_graph_takes_over_after_warming_up_and_nothing_is_trained_twice() -> None:
    graphs: list[Recorded] = []

    def record(step: Callable[[], Values], generator: torch.Generator) -> Recorded:
        graphs.append(Recorded(step, generator))
        return graphs[-1]

    plain = Regression()
    step, update, generator = stepping(plain, record)
    for _ in range(10):
        update(draw(generator))
    expected = weights(plain)
    captured = Regression()
    step, *_ = stepping(captured, record)
    losses = [step()["loss"] for _ in range(10)]
    for found, value in zip(weights(captured), expected, strict=True):
        assert torch.equal(found, value)
    assert graphs[0].replays == AGREEING + 10 - WARM_UP
    assert not step.refused
    assert len(losses) == 10
    assert losses[0].shape == (2,)


def test_a_graph_of_a_learner_that_counts_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    plain, counting = Counting(), Counting()
    _, update, generator = stepping(plain, None)
    for _ in range(10):
        update(draw(generator))

    class Frozen(Recorded):
        def replay(self) -> Values:
            counting.recorded = True
            values = super().replay()
            counting.recorded = False
            return values

    step, *_ = stepping(counting, Frozen)
    for _ in range(WARM_UP):
        step()
    counting.count = 0  # that of a record is odd or even, never both
    step()
    assert "is not that of plain updates" in step.refused
    assert "not captured as one CUDA graph" in capsys.readouterr().err


def test_what_cannot_be_recorded_goes_on_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    def record(step: Callable[[], Values], generator: torch.Generator) -> Recorded:
        step()  # leaves traces, which must be gone afterwards
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain, tried = Regression(), Regression()
    _, update, generator = stepping(plain, None)
    for _ in range(8):
        update(draw(generator))
    step, *_ = stepping(tried, record)
    for _ in range(8):
        step()
    for found, value in zip(weights(tried), weights(plain), strict=True):
        assert torch.equal(found, value)
    printed = capsys.readouterr().err
    assert printed == (
        "not captured as one CUDA graph, which only takes longer: "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks a CPU")
def test_a_cpu_says_that_it_captures_nothing_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = TrainingConfig(updates=12, updates_per_chunk=4)
    plain = fit(tmp_path / "plain", training)
    asked = fit(tmp_path / "asked", TrainingConfig(updates=12, updates_per_chunk=4, capture=True))
    for found, value in zip(weights(asked), weights(plain), strict=True):
        assert torch.equal(found, value)
    assert "stage/model: not captured as one CUDA graph, which only takes longer: the device is no GPU" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_training_is_the_plain_one(tmp_path: Path) -> None:
    def on_gpu(generator: torch.Generator) -> Tensor:
        return torch.randn(2, 4, 3, generator=generator, device="cuda")

    states = []
    for capture in (False, True):
        training = TrainingConfig(updates=40, updates_per_chunk=10, capture=capture, compile=False)
        states.append(weights(fit(tmp_path / str(capture), training, sample=on_gpu)))
    for found, value in zip(*states, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)


def test_rates_on_the_device_follow_the_same_cosine() -> None:
    plain, kept = Update(Regression(), TRAINING), Update(Regression(), TRAINING, captured=True)
    for update in (plain, kept):
        update.set_rates(10)
    rates = [[float(group["lr"]) for group in update.optimizer.param_groups] for update in (plain, kept)]
    assert rates[0] == pytest.approx([1e-3, 0.5e-2])
    assert rates[1] == pytest.approx(rates[0])
    assert isinstance(kept.optimizer.param_groups[1]["lr"], Tensor)


def test_the_precision_of_products_is_given_back() -> None:
    kept = torch.get_float32_matmul_precision()
    found = []

    def fail() -> None:
        with matmul_precision("medium"):
            found.append(torch.get_float32_matmul_precision())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert found == ["medium"]
    assert torch.get_float32_matmul_precision() == kept
