"""Encoders made elsewhere: in place of a pretraining, or where it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from typing import Any, Generic, TypeVar

from dynarep.configs.params import config
from dynarep.data.shards import DatasetInfo
from dynarep.pipeline.artifacts import ArtifactError, load_artifact, read_metadata, select_replicas
from dynarep.pipeline.encoders import DynamicsEncoder, IntentEncoder
from dynarep.pipeline.engine import TrainingConfig
from dynarep.pipeline.locations import artifact_folder

M = TypeVar("M", IntentEncoder, DynamicsEncoder)


@config
class PretrainingConfig:
    """What both pretraining sections say about training, or of an encoder that was trained elsewhere."""

    encoder: str | None = None
    """Use this encoder and train none: a path, ``dvc://...`` or ``hf://...``, see ``artifact_folder``."""
    initial: str | None = None
    """Start the training from this encoder, of the architecture that ``method`` names. Its normaliser stays."""
    training: TrainingConfig | None = None
    """Needed unless there is an ``encoder``."""

    def __post_init__(self) -> None:
        if self.encoder is not None and self.initial is not None:
            raise ValueError(
                f"encoder: {self.encoder} is used as it is, initial: {self.initial} is trained further; expected one of them"
            )
        if self.encoder is None and self.training is None:
            raise ValueError("training: missing; only a section with an encoder does without")

    @property
    def planned(self) -> TrainingConfig:
        """``training``, or with an ``encoder`` a single update, which is not made."""
        return self.training if self.training is not None and self.encoder is None else TrainingConfig(updates=1)


@dataclass(frozen=True)
class Origin(Generic[M]):
    """An encoder made elsewhere.

    Args:
        key: where it is named, e.g. ``pretrain_intent.encoder``, for messages.
        source: where it lies.
        model: the encoder, with the replicas of this run.
        sha256: of its weights, as they lie there.
        metadata: of the artifact; empty if it has none.
    """

    key: str
    source: str
    model: M
    sha256: str
    metadata: dict[str, Any]

    def check_data(self, dataset: DatasetInfo, fields: tuple[str, ...]) -> None:
        """See that a dataset has the observations, and where it reads them the actions, that the encoder was made for.

        Raises:
            ArtifactError: if one of ``fields`` of its spec has another size.
        """
        for field in fields:
            found, expected = getattr(dataset.spec, field), getattr(self.model.architecture, field)
            if found != expected:
                trained = ", ".join(self.metadata.get("datasets", {}))
                raise ArtifactError(
                    f"{self.key}: {self.source} has {field} {expected}, {dataset.name} has {found}"
                    + (f"; the encoder was trained on {trained}" if trained else "")
                )

    def check_settings(self, model: IntentEncoder | DynamicsEncoder) -> None:
        """See that the encoder has the architecture of ``model``, which the section's settings make.

        Raises:
            ArtifactError: with what each of them says.
        """
        found, expected = asdict(self.model.architecture), asdict(model.architecture)
        other = [
            f"{name} {found[name]}, by the settings {expected[name]}" for name in found if found[name] != expected[name]
        ]
        if other:
            section = self.key.partition(".")[0]
            raise ArtifactError(f"{self.key}: {self.source} has {'; '.join(other)}; change section {section}")

    def describe(self, own: Mapping[str, Any], *, trained: bool) -> dict[str, Any]:
        """Metadata of what this run makes of the encoder.

        Args:
            own: metadata as for an encoder that was trained here.
            trained: whether it was trained further.

        Returns:
            The same with ``datasets`` those on which the weights were trained, and ``origin``.
        """
        before = self.metadata.get("datasets", {})
        datasets = {**before, **own["datasets"]} if trained else before
        origin = {"source": self.source, "sha256": self.sha256, "metadata": self.metadata}
        return {**own, "datasets": datasets, **({} if trained else {"measured_on": own["datasets"]}), "origin": origin}


def load_origin(
    c: PretrainingConfig, section: str, kind: type[M], replicas: int, root: str | os.PathLike[str] = ""
) -> Origin[M] | None:
    """The encoder that a section names, if any.

    Args:
        c: the section.
        section: its name.
        kind: the type of encoder that is expected.
        replicas: R. An encoder of one replica is repeated; of one with more, the first R are taken.
        root: relative paths start here.

    Raises:
        ArtifactError: if there is no artifact, it is damaged or of another kind, or has too few replicas.
    """
    name, source = ("encoder", c.encoder) if c.encoder is not None else ("initial", c.initial)
    if source is None:
        return None
    key = f"{section}.{name}"
    try:
        with artifact_folder(source, root) as folder:
            model, metadata = load_artifact(folder), read_metadata(folder)
            with (folder / "model.safetensors").open("rb") as file:
                sha256 = file_digest(file, "sha256").hexdigest()
    except ArtifactError as error:
        about = str(error).removeprefix(f"{source}: ")
        raise ArtifactError(f"{key}: {source}: {about}") from None
    if not isinstance(model, kind):
        raise ArtifactError(f"{key}: {source}: type is {type(model).__name__}, expected {kind.__name__}")
    found = model.architecture.replicas
    if 1 < found < replicas:
        raise ArtifactError(f"{key}: {source} has {found} replicas, expected 1, or at least the {replicas} of this run")
    rows = [0] * replicas if found == 1 else range(replicas)
    return Origin(key, source, select_replicas(model, rows), sha256, metadata)
