"""An encoder made elsewhere, as an entry like any other: a path, ``dvc://...`` or ``hf://...``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dynarep.configs.params import config
from dynarep.pipeline.measures import Measured
from dynarep.pipeline.method import METHODS, EncoderMethod, World
from dynarep.pipeline.nn.models import Encoder

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable
    from dynarep.data.schema import Episode


@config
class ArtifactConfig:
    """What to do with the encoder that ``source`` names."""

    recalibrate: bool = False
    """Measure the unit of distance anew, on the dataset; else the encoder keeps its own."""


class Artifact(EncoderMethod):
    """Hands on an encoder; it is measured on the entry's dataset as its own kind is."""

    kind = "artifact"
    Config = ArtifactConfig
    trains = False

    def __init__(self, world: World) -> None:
        super().__init__()
        if not isinstance(world.encoder, Encoder):
            raise ValueError("source: missing; an artifact is a path, dvc://... or hf://...")
        self.model = world.encoder

    @classmethod
    def build(cls, c: ArtifactConfig, world: World) -> Artifact:
        """With the encoder of a world."""
        return cls(world)

    def start_from(self, encoder: Encoder) -> None:
        """Nothing is trained."""

    def export(self) -> Encoder:
        """The encoder as it came."""
        return self.model

    @classmethod
    def check_held_out(cls, held_out: list[Episode]) -> None:
        """Nothing is trained, so ``measure`` is early enough to refuse."""

    @classmethod
    def measure(
        cls,
        c: ArtifactConfig,
        encoder: Encoder,
        held_out: list[Episode],
        table: TransitionTable,
        whole: TransitionTable,
        episodes: Iterable[Episode],
    ) -> Measured:
        """As its own kind is measured; the calibration stays unless ``recalibrate`` is set."""
        method = METHODS["encoders", encoder.kind]
        kept = encoder.calibration_of(encoder.spaces[0])
        before = None if kept is None else kept.clone()
        assert issubclass(method, EncoderMethod)
        measured = method.measure(method.Config(), encoder, held_out, table, whole, episodes)
        if before is not None and kept is not None and not c.recalibrate:
            kept.copy_(before)
            measured.metrics["calibration"] = before.tolist()
        return measured
