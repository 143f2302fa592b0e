"""Encoders made elsewhere: handed on as they are, or where a training starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynarep.data.shards import DatasetInfo
from dynarep.pipeline.artifacts.locations import artifact_folder
from dynarep.pipeline.artifacts.storage import (
    ArtifactError,
    datasets_in,
    read_encoder_model,
    read_metadata,
)
from dynarep.pipeline.nn.models import Model


@dataclass(frozen=True)
class Origin:
    """An encoder made elsewhere.

    Args:
        key: where it is named, e.g. ``pretrain.intent.source``, for messages.
        source: where it lies.
        model: the encoder, with the replicas of this run.
        sha256: of its weights, as they lie there.
        metadata: of the artifact; empty if it has none.
    """

    key: str
    source: str
    model: Model
    sha256: str
    metadata: dict[str, Any]

    def check_data(self, dataset: DatasetInfo) -> None:
        """See that a dataset has the observations, and where it reads them the actions, that the encoder was made for.

        Raises:
            ArtifactError: if its spec has another size.
        """
        for field in ("observation_dim", "action_dim"):
            expected = getattr(self.model.architecture, field, None)
            found = getattr(dataset.spec, field)
            if expected is not None and found != expected:
                trained = ", ".join(datasets_in(self.metadata))
                raise ArtifactError(
                    f"{self.key}: {self.source} has {field} {expected}, {dataset.name} has {found}"
                    + (f"; the encoder was trained on {trained}" if trained else "")
                )

    def check_settings(self, model: Model) -> None:
        """See that the encoder has the architecture of ``model``, which the section's settings make.

        Raises:
            ArtifactError: with what each of them says.
        """
        if self.model.kind != model.kind:
            raise ArtifactError(f"{self.key}: {self.source} is of kind {self.model.kind}, expected {model.kind}")
        found, expected = asdict(self.model.architecture), asdict(model.architecture)
        other = [
            f"{name} {found[name]}, by the settings {expected[name]}"
            for name in found
            if name not in model.free and found[name] != expected[name]
        ]
        if other:
            entry = self.key.rpartition(".")[0]
            raise ArtifactError(f"{self.key}: {self.source} has {'; '.join(other)}; change {entry}")

    def describe(self, own: Mapping[str, Any], *, trained: bool) -> dict[str, Any]:
        """Metadata of what this run makes of the encoder.

        Args:
            own: metadata as for an encoder that was trained here.
            trained: whether it was trained further.

        Returns:
            The same with ``datasets`` those on which the weights were trained, and ``origin``.
        """
        before = {name: self.metadata["datasets"][name] for name in datasets_in(self.metadata)}
        datasets = {**before, **own["datasets"]} if trained else before
        origin = {"source": self.source, "sha256": self.sha256, "metadata": self.metadata}
        return {**own, "datasets": datasets, **({} if trained else {"measured_on": own["datasets"]}), "origin": origin}


def load_origin(source: str, key: str, replicas: int, root: str | os.PathLike[str] = "") -> Origin:
    """An encoder from elsewhere.

    Args:
        source: a path, ``dvc://...`` or ``hf://...``.
        key: where it is named.
        replicas: R. An encoder of one replica is repeated; of one with more, the first R are taken.
        root: relative paths start here.

    Raises:
        ArtifactError: if there is no artifact, it is damaged or no encoder, or has too few replicas.
    """
    try:
        with artifact_folder(source, root) as folder:
            (model, sha256), metadata = read_encoder_model(folder), read_metadata(folder)
    except ArtifactError as error:
        about = str(error).removeprefix(f"{source}: ")
        raise ArtifactError(f"{key}: {source}: {about}") from None
    return Origin(key, source, with_replicas(model, replicas, f"{key}: {source}"), sha256, metadata)


def with_replicas(model: Model, replicas: int, where: str) -> Model:
    """A model with R replicas: one is repeated, of more the first R are taken.

    Raises:
        ArtifactError: if it has more than one, but fewer than R.
    """
    found = model.architecture.replicas
    if 1 < found < replicas:
        raise ArtifactError(f"{where} has {found} replicas, expected 1, or at least the {replicas} of this run")
    return model.replica_rows([0] * replicas if found == 1 else range(replicas))
