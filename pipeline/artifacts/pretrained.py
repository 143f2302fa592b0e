"""Pretrained encoders for other projects: loaded from anywhere, frozen, checked, for tensors and NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dynarep.data.columns import write_latents
from dynarep.data.folders import whole_folder
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline.artifacts.storage import (
    ARTIFACT_FILES,
    ArtifactError,
    load_artifact,
    read_metadata,
    save_artifact,
    select_replica,
)
from dynarep.pipeline.encoders import DynamicsEncoder, IntentEncoder
from dynarep.pipeline.artifacts.locations import artifact_folder
from dynarep.pipeline.nn.networks import MLP

M = TypeVar("M", IntentEncoder, DynamicsEncoder)

SHARDS = Path("artifacts/shards")
"""Where a project keeps its prepared datasets."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What an encoder reads.

    Args:
        observation_dim: numbers in one raw observation.
        action_dim: numbers in one action; 0 for an encoder of observations alone.
    """

    observation_dim: int
    action_dim: int


class PretrainedEncoder(nn.Module):
    """What ``PretrainedIntent`` and ``PretrainedDynamics`` share: one replica of an encoder, and where it comes from.

    Inputs are raw observations, and actions, of any leading shape, which broadcast against each other; the normaliser is
    inside. Tensors, on the encoder's device, give a tensor, through which gradients flow. NumPy arrays and lists give a
    NumPy array, without gradients. Other floating types are converted to the encoder's.

    Attributes:
        model: the encoder itself, with one replica.
        spec: what it reads.
        latent_dim: numbers in one latent.
        metadata: of the artifact, see ``docs/artifact-format.md``; empty where there is none.
        source: where it was loaded from.
    """

    model: IntentEncoder | DynamicsEncoder
    spec: EncoderSpec
    latent_dim: int
    metadata: dict[str, Any]
    source: str

    @property
    def networks(self) -> Mapping[str, MLP]:
        """The networks by name: ``psi``, or ``phi`` and ``mu``."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.normaliser.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and latents."""
        return self.model.normaliser.mean.dtype

    def freeze(self) -> Self:
        """Let no weight be trained, as after loading."""
        return self.requires_grad_(False)

    def unfreeze(self, last: int | None = None) -> Self:
        """Let weights be trained. Normaliser and calibration stay as they are.

        Args:
            last: layers of each network, counted from its output; all by default.

        Raises:
            ValueError: if ``last`` is not between 1 and the number of layers.
        """
        for name, network in self.networks.items():
            layers = len(network.layers)
            if last is not None and not 1 <= last <= layers:
                raise ValueError(
                    f"{self.source}: unfreeze: found last={last}, expected 1 to {layers}, layers of {name}"
                )
            network.requires_grad_(False)
            for layer in network.layers[-(last or layers) :]:
                layer.requires_grad_(True)
        self.metadata = {**self.metadata, "fine_tuned": True}
        return self

    def encode_dataset(
        self, dataset: str | os.PathLike[str] | Dataset, out: str | os.PathLike[str], *, batch_size: int = 8192
    ) -> Path:
        """Write the latents of a prepared dataset as a column beside it, ``<out>/latents/<shard>.safetensors``.

        ``dynarep.read_latents(out, dataset)`` reads them: per episode, psi of each row of ``observations``, or phi(s_t, a_t)
        of its T transitions; (rows, latent_dim) float32.

        Args:
            dataset: a prepared dataset, its folder, or the name of a card whose dataset lies in ``artifacts/shards``.
            out: receives the folder ``latents``, as a whole.
            batch_size: rows encoded at once.

        Returns:
            The folder ``<out>/latents``.

        Raises:
            DataError: if the dataset is not prepared or damaged.
            ArtifactError: if it has other observations or actions than the encoder reads, or none.
        """
        if not isinstance(dataset, Dataset):
            folder = Path(dataset)
            named = isinstance(dataset, str) and len(folder.parts) == 1 and not folder.exists()
            dataset = load_dataset(SHARDS / folder if named else folder)
        self.check(dataset.name, dataset.spec.observation_dim, dataset.spec.action_dim)

        def encode(episodes: Sequence[Episode]) -> Iterator[NDArray[np.float32]]:
            columns = [self._columns(episode) for episode in episodes]
            latents = self.encode_in_batches(*map(np.concatenate, zip(*columns, strict=True)), batch_size=batch_size)
            return iter(np.split(latents, np.cumsum([len(column[0]) for column in columns])[:-1]))

        return write_latents(Path(out), dataset, encode, encoder=self.source)

    def encode_in_batches(self, *inputs: ArrayLike, batch_size: int = 8192) -> NDArray[np.float32]:
        """Latents of N rows, (N, latent_dim) float32, computed in batches.

        Args:
            inputs: those of a call, N rows each.
            batch_size: rows encoded at once.

        Raises:
            ArtifactError: as a call does.
        """
        arrays = [np.asarray(value) for value in inputs]
        batches = range(0, max(len(arrays[0]), 1), batch_size)
        parts = [self(*(array[start : start + batch_size] for array in arrays)) for start in batches]
        return np.concatenate(parts).astype(np.float32, copy=False)

    def check(self, name: str, observation_dim: int, action_dim: int) -> None:
        """Refuse data that does not fit.

        Args:
            name: of the data, for the message.
            observation_dim: numbers in its observations.
            action_dim: numbers in its actions, 0 if it has none; ignored by an encoder of observations alone.

        Raises:
            ArtifactError: if sizes differ; with those found, those expected, and the name of the artifact.
        """
        found = {"observation": observation_dim, "action": action_dim}
        expected = {"observation": self.spec.observation_dim, "action": self.spec.action_dim}
        for field in ("observation", "action") if self.spec.action_dim else ("observation",):
            if found[field] != expected[field]:
                raise self._misfit(field, f"{found[field]} numbers in those of {name}", expected[field])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the encoder as an artifact, as it is now: float32, this one replica, a new ``model.pt2``.

        Args:
            folder: becomes the artifact, as a whole; may exist if it is empty or an artifact and nothing else.

        Raises:
            ArtifactError: if other files lie there.
        """
        path = Path(folder)
        if path.exists() and (others := {entry.name for entry in path.iterdir()} - set(ARTIFACT_FILES)):
            raise ArtifactError(
                f"{path}: found {min(others)}, expected a new or empty folder, or one of an artifact alone"
            )
        plain = type(self.model)(self.model.architecture)  # type: ignore[arg-type]
        plain.load_state_dict(self.model.state_dict())
        with whole_folder(path) as new:
            save_artifact(new, plain, self.metadata)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Self:
        """``load_encoder`` in the manner of the Hugging Face Hub, of which a name without prefix is.

        Args:
            name: ``<owner>/<name>``, or the path of an existing folder.
            options: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` of
                ``huggingface_hub.ModelHubMixin.from_pretrained``, and those of ``load_encoder``.

        Raises:
            ArtifactError: as ``load_encoder``, and if the artifact is of another type.
            huggingface_hub.errors.HfHubHTTPError: or another of its errors, if the Hub cannot be reached or has no such name.
        """
        from dynarep.pipeline.integrations.hub import HubEncoder

        encoder = HubEncoder.from_pretrained(os.fspath(name), **options).encoder
        if not isinstance(encoder, cls):
            raise ArtifactError(f"{encoder.source}: type is {type(encoder).__name__}, expected {cls.__name__}")
        return encoder

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the artifact to the Hugging Face Hub, with a model card; needs ``dynarep[hub]``.

        Args:
            name: ``<owner>/<name>``; made if missing.
            options: ``private``, ``token``, ``commit_message``, ``branch``, ``create_pr`` and others of
                ``huggingface_hub.ModelHubMixin.push_to_hub``.

        Returns:
            URL of the commit.
        """
        from dynarep.pipeline.integrations.hub import HubEncoder

        return str(HubEncoder(self, name).push_to_hub(name, **options))

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"source={self.source!r}, {self.spec}, latent_dim={self.latent_dim}"

    def _columns(self, episode: Episode) -> tuple[NDArray[np.float32], ...]:
        """The inputs of a call, of an episode's steps."""
        raise NotImplementedError

    def _evaluate(self, function: Callable[..., Tensor], **inputs: Tensor | ArrayLike) -> Any:
        """``function`` of the inputs as (N, dim) tensors, in the inputs' leading shape and kind."""
        plain = not any(isinstance(value, Tensor) for value in inputs.values())
        tensors = [self._tensor(field, value) for field, value in inputs.items()]
        shapes = [tensor.shape[:-1] for tensor in tensors]
        try:
            leading = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        except RuntimeError:
            found = " and ".join(f"{tuple(shape)} of {field}" for field, shape in zip(inputs, shapes, strict=True))
            raise ArtifactError(f"{self.source}: found leading shapes {found}, expected ones that broadcast") from None
        rows = [tensor.expand(*leading, -1).reshape(leading.numel(), tensor.shape[-1]) for tensor in tensors]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not plain):
            if leading.numel():
                result = function(*rows)
            else:
                result = function(*(row.new_zeros(1, row.shape[-1]) for row in rows))[:0]
            result = result.reshape((*leading, *result.shape[1:]))
        if not plain:
            return result
        return (result.float() if result.dtype == torch.bfloat16 else result).cpu().numpy()

    def _tensor(self, field: str, value: Tensor | ArrayLike) -> Tensor:
        if not isinstance(value, Tensor):
            array = np.asarray(value)
            if array.dtype.kind not in "fiub":
                raise ArtifactError(f"{self.source}: {field}: found an array of {array.dtype}, expected numbers")
            kind = np.float64 if self.dtype == torch.float64 else np.float32
            value = torch.from_numpy(np.array(array, kind, order="C")).to(self.device)
        expected = self.spec.action_dim if field == "action" else self.spec.observation_dim
        accepted = {expected}
        if field != "action" and isinstance(self.model, DynamicsEncoder) and self.model.architecture.absorbing:
            accepted.add(expected + 1)
        if value.ndim == 0 or value.shape[-1] not in accepted:
            raise self._misfit(field, f"shape {tuple(value.shape)}", expected)
        return value.to(self.dtype)

    def _misfit(self, field: str, found: str, expected: int) -> ArtifactError:
        trained = ", ".join(self.metadata.get("datasets", {}))
        about = f"; it was trained on {trained}" if trained else ""
        return ArtifactError(
            f"{self.source} ({type(self.model).__name__}): {field}: found {found}, expected {expected} numbers{about}. "
            "Give it what the environment returns, in the layout of that data, or load an encoder made for yours"
        )


class PretrainedIntent(PretrainedEncoder):
    """psi(s): where a state lies, so that squared distances count steps.

    Args:
        model: an intent encoder.
        replica: which of its replicas.
        metadata: of the artifact.
        source: where it comes from, for messages.
    """

    model: IntentEncoder

    def __init__(
        self,
        model: IntentEncoder,
        *,
        replica: int = 0,
        metadata: Mapping[str, Any] | None = None,
        source: str = "encoder",
    ) -> None:
        super().__init__()
        self.source = source
        self.model, self.metadata = _one_replica(model, replica, metadata, source)
        self.spec = EncoderSpec(observation_dim=model.architecture.observation_dim, action_dim=0)
        self.latent_dim = model.architecture.latent_dim
        self.eval()

    @property
    def networks(self) -> Mapping[str, MLP]:
        """``psi``."""
        return {"psi": self.model.psi}

    @overload
    def forward(self, observation: Tensor) -> Tensor: ...
    @overload
    def forward(self, observation: ArrayLike) -> NDArray[Any]: ...
    def forward(self, observation: Tensor | ArrayLike) -> Tensor | NDArray[Any]:
        """psi(s): (..., observation_dim) -> (..., latent_dim).

        Raises:
            ArtifactError: if observations have another size than the encoder reads.
        """
        return self._evaluate(self.model, observation=observation)  # type: ignore[no-any-return]

    @overload
    def distance(self, a: Tensor, b: Tensor) -> Tensor: ...
    @overload
    def distance(self, a: ArrayLike, b: ArrayLike) -> NDArray[Any]: ...
    def distance(self, a: Tensor | ArrayLike, b: Tensor | ArrayLike) -> Tensor | NDArray[Any]:
        """Squared distance of psi in steps between observations (..., observation_dim): (...).

        It is 1 on average over single steps of the pretraining data. That unit belongs to the pretrained weights; after
        fine-tuning it is no longer exact.

        Raises:
            ArtifactError: if observations have another size than the encoder reads, or do not broadcast.
        """
        return self._evaluate(self.model.distance, a=a, b=b)  # type: ignore[no-any-return]

    def _columns(self, episode: Episode) -> tuple[NDArray[np.float32], ...]:
        return (episode.observations,)


class PretrainedDynamics(PretrainedEncoder):
    """phi(s, a), and with mu(s') how much likelier s' follows than it occurs.

    Args:
        model: a dynamics encoder.
        replica: which of its replicas.
        metadata: of the artifact.
        source: where it comes from, for messages.
    """

    model: DynamicsEncoder

    def __init__(
        self,
        model: DynamicsEncoder,
        *,
        replica: int = 0,
        metadata: Mapping[str, Any] | None = None,
        source: str = "encoder",
    ) -> None:
        super().__init__()
        a = model.architecture
        self.source = source
        self.model, self.metadata = _one_replica(model, replica, metadata, source)
        self.spec = EncoderSpec(observation_dim=a.observation_dim, action_dim=a.action_dim)
        self.latent_dim = a.feature_dim
        self.eval()

    @property
    def networks(self) -> Mapping[str, MLP]:
        """``phi`` and ``mu``."""
        return {"phi": self.model.phi_network, "mu": self.model.mu_network}

    @overload
    def forward(self, observation: Tensor, action: Tensor) -> Tensor: ...
    @overload
    def forward(self, observation: ArrayLike, action: ArrayLike) -> NDArray[Any]: ...
    def forward(self, observation: Tensor | ArrayLike, action: Tensor | ArrayLike) -> Tensor | NDArray[Any]:
        """phi(s, a): (..., observation_dim), (..., action_dim) -> (..., latent_dim).

        Raises:
            ArtifactError: if observations or actions have another size than the encoder reads, or do not broadcast.
        """
        return self._evaluate(self.model, observation=observation, action=action)  # type: ignore[no-any-return]

    @overload
    def ratio(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor: ...
    @overload
    def ratio(self, observation: ArrayLike, action: ArrayLike, next_observation: ArrayLike) -> NDArray[Any]: ...
    def ratio(
        self, observation: Tensor | ArrayLike, action: Tensor | ArrayLike, next_observation: Tensor | ArrayLike
    ) -> Tensor | NDArray[Any]:
        """P(s'|s, a) / p_n(s') of (..., observation_dim), (..., action_dim), (..., observation_dim): (...).

        Raises:
            ArtifactError: as a call does.
        """
        return self._evaluate(  # type: ignore[no-any-return]
            self.model.ratio, observation=observation, action=action, next_observation=next_observation
        )

    def _columns(self, episode: Episode) -> tuple[NDArray[np.float32], ...]:
        assert episode.actions is not None
        return episode.current, episode.actions


def _one_replica(model: M, replica: int, metadata: Mapping[str, Any] | None, source: str) -> tuple[M, dict[str, Any]]:
    about = dict(metadata or {})
    replicas = model.architecture.replicas
    if not 0 <= replica < replicas:
        raise ArtifactError(f"{source}: replica: found {replica}, expected 0 to {replicas - 1}")
    if replicas > 1:
        about["replica"] = replica
    return select_replica(model, replica), about


def load_encoder(
    source: str | os.PathLike[str],
    *,
    replica: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
) -> PretrainedIntent | PretrainedDynamics:
    """Load a pretrained encoder: frozen, in eval mode, its normaliser inside.

    Args:
        source: a path, ``dvc://<repository>#<path>[@<revision>]`` or ``hf://<owner>/<name>[@<revision>]``; see
            ``artifact_folder``.
        replica: which of the artifact's replicas.
        device: where the encoder computes.
        dtype: floating type in which it computes.
        trainable: leave all weights trainable; for some of them see ``PretrainedEncoder.unfreeze``.

    Raises:
        ArtifactError: if there is no artifact, it is damaged, made by a newer version or not of an encoder, or has no such
            replica.
    """
    name = os.fspath(source)
    with artifact_folder(source) as folder:
        try:
            model, metadata = load_artifact(folder), read_metadata(folder)
        except ArtifactError as error:
            raise (error if folder == Path(name) else ArtifactError(f"{name}: {error}")) from None
    encoder: PretrainedIntent | PretrainedDynamics
    if isinstance(model, IntentEncoder):
        encoder = PretrainedIntent(model, replica=replica, metadata=metadata, source=name)
    elif isinstance(model, DynamicsEncoder):
        encoder = PretrainedDynamics(model, replica=replica, metadata=metadata, source=name)
    else:
        raise ArtifactError(f"{name}: type is {type(model).__name__}, expected an encoder; load_policy loads policies")
    encoder.to(device, dtype)
    return encoder.unfreeze() if trainable else encoder
