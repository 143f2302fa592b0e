"""Pretrained encoders and policies for other projects: loaded from anywhere, frozen, checked, for tensors and NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dynarep.data.columns import write_latents
from dynarep.data.folders import whole_folder
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline.artifacts.locations import artifact_folder, pretrained_source
from dynarep.pipeline.artifacts.storage import (
    ARTIFACT_FILES,
    EXPORTS,
    ArtifactError,
    datasets_in,
    export_program,
    load_encoder_model,
    load_policy_model,
    read_metadata,
    save_artifact,
)
from dynarep.pipeline.nn.models import ActingModel, Encoder, Model
from dynarep.pipeline.nn.networks import MLP

M = TypeVar("M", bound=Model)

SHARDS = Path("artifacts/shards")
"""Where a project keeps its prepared datasets."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What an encoder reads.

    Args:
        observation_dim: numbers in one raw observation.
        action_dim: numbers in one action; 0 for an encoder that reads only observations.
    """

    observation_dim: int
    action_dim: int


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy reads and gives.

    Args:
        observation_dim: numbers in one raw observation.
        action_low: smallest action, one number for each part.
        action_high: largest action.
    """

    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return len(self.action_low)


class PretrainedModel(nn.Module, Generic[M]):
    """What pretrained encoders and policies share: one replica of a model, and where it comes from.

    Inputs are raw observations, and actions, of any leading shape, which broadcast against each other; the normaliser is
    inside. Tensors, on the model's device, give a tensor, through which gradients flow. NumPy arrays and lists give a NumPy
    array, without gradients. Other floating types are converted to the model's.

    Attributes:
        model: the model itself, with one replica.
        spec: what it reads.
        metadata: of the artifact, see ``docs/artifact-format.md``; empty where there is none.
        source: where it was loaded from.

    Args:
        model: with any number of replicas.
        replica: which of them.
        metadata: of the artifact.
        source: where it comes from, for messages.

    Raises:
        ArtifactError: if there is no such replica.
    """

    model: M
    spec: EncoderSpec | PolicySpec
    metadata: dict[str, Any]
    source: str

    def __init__(
        self, model: M, *, replica: int = 0, metadata: Mapping[str, Any] | None = None, source: str = ""
    ) -> None:
        super().__init__()
        self.source = source or model.kind
        self.metadata = dict(metadata or {})
        replicas = model.architecture.replicas
        if isinstance(replica, bool) or not isinstance(replica, int | np.integer) or not 0 <= replica < replicas:
            raise ArtifactError(f"{self.source}: replica: found {replica!r}, expected 0 to {replicas - 1}")
        if replicas > 1:
            self.metadata["replica"] = replica
        self.model = model.replica_rows([replica])
        self.eval()

    @property
    def networks(self) -> Mapping[str, MLP]:
        """The networks by name, such as ``psi``, or ``phi`` and ``mu``."""
        return self.model.networks()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(torch.device, self.model.normaliser.mean.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model computes."""
        return cast(torch.dtype, self.model.normaliser.mean.dtype)

    def freeze(self) -> Self:
        """Let no weight be trained, as after loading."""
        return self.requires_grad_(False)

    def unfreeze(self, last: int | None = None) -> Self:
        """Let weights be trained. Normaliser, calibration and bounds stay as they are.

        Args:
            last: layers of each network, counted from its output; all by default.

        Raises:
            ArtifactError: if the model has no network.
            ValueError: if ``last`` is not between 1 and the number of layers.
        """
        if not self.networks:
            raise ArtifactError(
                f"{self.source} ({self.model.kind}): unfreeze: found no network, there is nothing to train"
            )
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

    def check(self, name: str, observation_dim: int, action_dim: int) -> None:
        """Refuse data that does not fit.

        Args:
            name: of the data, for the message.
            observation_dim: numbers in its observations.
            action_dim: numbers in its actions, 0 if it has none; ignored by a model that reads only observations.

        Raises:
            ArtifactError: if sizes differ; with those found, those expected, and the name of the artifact.
        """
        found = {"observation": observation_dim, "action": action_dim}
        expected = {"observation": self.spec.observation_dim, "action": self.spec.action_dim}
        for field in ("observation", "action") if self.spec.action_dim else ("observation",):
            if found[field] != expected[field]:
                raise self._misfit(field, f"{found[field]} numbers in those of {name}", expected[field])

    def save_pretrained(self, folder: str | os.PathLike[str], *, license: str | None = None) -> None:  # noqa: A002
        """Write the model as an artifact, as it is now: float32, this one replica.

        Args:
            folder: becomes the artifact, as a whole; may exist if it is empty or an artifact and nothing else.
            license: under which you share it, such as ``apache-2.0``; kept in the metadata.

        Raises:
            ArtifactError: if other files lie there.
            OSError: if a file cannot be written.
        """
        path = Path(folder)
        if os.path.lexists(path) and not path.is_dir():
            raise ArtifactError(f"{path}: found a file, expected a new or empty folder, or one of an artifact alone")
        known = {*ARTIFACT_FILES, *EXPORTS}
        if path.exists() and (others := {entry.name for entry in path.iterdir()} - known):
            raise ArtifactError(
                f"{path}: found {min(others)}, expected a new or empty folder, or one of an artifact alone"
            )
        plain = type(self.model)(self.model.architecture)
        plain.load_state_dict(self.model.state_dict())
        metadata = self.metadata if license is None else {**self.metadata, "license": license}
        with whole_folder(path) as new:
            save_artifact(new, plain, metadata)

    def export_program(self, path: str | os.PathLike[str]) -> None:
        """Write what a call computes as a ``torch.export`` program, usually ``model.pt2``, for PyTorch without this package.

        The batch is dynamic: give it (B, observation_dim), of one observation (1, observation_dim). Whoever loads such a
        file has to trust its author; ``docs/artifact-format.md`` says why.

        Args:
            path: of the file.

        Raises:
            ArtifactError: if the model is not float32 on the CPU, draws at random or keeps a state.
            OSError: if the file cannot be written.
        """
        self.check_exportable()
        export_program(self.model, path)

    def check_exportable(self) -> None:
        """See that the model is float32 on the CPU, as files of it are.

        Raises:
            ArtifactError: if not.
        """
        if self.dtype != torch.float32 or self.device.type != "cpu":
            raise ArtifactError(f"{self.source}: found {self.dtype} on {self.device}, expected torch.float32 on cpu")

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool | None = None,
        local_files_only: bool | None = None,
        **options: Any,
    ) -> Self:
        """``load_encoder`` or ``load_policy`` in the manner of the Hugging Face Hub.

        Args:
            name: the path of an existing folder, else ``<owner>/<name>`` on the Hub; or anything with a prefix, as
                ``load_encoder`` takes it. Where ``<owner>`` is a folder here, the Hub is not asked: say ``hf://``.
            revision: branch, tag or commit on the Hub.
            token: for private repositories.
            cache_dir: where files of the Hub are kept.
            force_download: fetch them again.
            local_files_only: fetch nothing.
            options: ``replica``, ``device``, ``dtype``, ``trainable`` of ``load_encoder``.

        Raises:
            ArtifactError: as ``load_encoder``, and if the artifact is of another type.
        """
        hub = {
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        source = pretrained_source(os.fspath(name), revision)
        given = {key: value for key, value in hub.items() if value is not None}
        load = _load_policy if issubclass(cls, PretrainedPolicy) else _load_encoder
        found: PretrainedModel[Any] = load(source, given, **options)
        if not isinstance(found, cls):
            raise ArtifactError(f"{found.source}: type is {type(found).__name__}, expected {cls.__name__}")
        return found

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub, with a card; needs ``dynarep[hub]``.

        Metadata goes along; it names datasets, parameters and, if you put them there, ``scores``.

        Args:
            name: ``<owner>/<name>``; made if missing.
            options: ``license``, ``private``, ``token``, ``commit_message``, ``branch``, ``create_pr``; see
                ``dynarep.pipeline.integrations.hub.upload``.

        Returns:
            URL of the commit.

        Raises:
            ArtifactError: if ``huggingface_hub`` is missing, or the Hub refuses.
        """
        from dynarep.pipeline.integrations.hub import upload

        return upload(self, name, **options)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"source={self.source!r}, kind={self.model.kind!r}, {self.spec}"

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
            try:
                array = np.asarray(value)
            except ValueError:
                raise ArtifactError(
                    f"{self.source}: {field}: found rows of different lengths, expected an array"
                ) from None
            if array.dtype.kind not in "fiub":
                raise ArtifactError(f"{self.source}: {field}: found an array of {array.dtype}, expected numbers")
            kind = np.float64 if self.dtype == torch.float64 else np.float32
            with np.errstate(over="ignore"):  # infinite then
                value = torch.from_numpy(np.array(array, kind, order="C")).to(self.device)
        expected = self.spec.action_dim if field == "action" else self.spec.observation_dim
        accepted = {expected, expected + (field != "action" and self._takes_bit())}
        if value.ndim == 0 or value.shape[-1] not in accepted:
            raise self._misfit(field, f"shape {tuple(value.shape)}", expected)
        return value.to(self.dtype)

    def _takes_bit(self) -> bool:
        """Whether observations may come with the absorbing bit."""
        return False

    def _misfit(self, field: str, found: str, expected: int) -> ArtifactError:
        trained = ", ".join(datasets_in(self.metadata))
        about = f"; it was trained on {trained}" if trained else ""
        what = "a policy" if isinstance(self, PretrainedPolicy) else "an encoder"
        return ArtifactError(
            f"{self.source} ({self.model.kind}): {field}: found {found}, expected {expected} numbers{about}. "
            f"Give it what the environment returns, in the layout of that data, or load {what} made for yours"
        )


class PretrainedEncoder(PretrainedModel[Encoder]):
    """What ``PretrainedIntent`` and ``PretrainedDynamics`` share.

    Attributes:
        latent_dim: numbers in one latent.
        space: name of the space in which the latents lie.
    """

    spec: EncoderSpec
    latent_dim: int
    space: str

    def __init__(
        self, model: Encoder, *, replica: int = 0, metadata: Mapping[str, Any] | None = None, source: str = ""
    ) -> None:
        super().__init__(model, replica=replica, metadata=metadata, source=source)
        self.space = model.spaces[0]
        a = model.architecture
        self.spec = EncoderSpec(
            observation_dim=a.observation_dim,
            action_dim=a.action_dim if self.space in model.reads_actions else 0,
        )
        self.latent_dim = model.latent_dim()

    def encode_dataset(
        self, dataset: str | os.PathLike[str] | Dataset, out: str | os.PathLike[str], *, batch_size: int = 8192
    ) -> Path:
        """Write the latents of a prepared dataset as a column beside it, ``<out>/latents/<shard>.safetensors``.

        ``dynarep.read_latents(out, dataset)`` reads them: per episode, the point of each row of ``observations``, or
        phi(s_t, a_t) of its T transitions; (rows, latent_dim) float32.

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

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, latent_dim={self.latent_dim}"

    def _columns(self, episode: Episode) -> tuple[NDArray[np.float32], ...]:
        """The inputs of a call, of an episode's steps."""
        raise NotImplementedError

    def _takes_bit(self) -> bool:
        return bool(getattr(self.model.architecture, "absorbing", False))


class PretrainedIntent(PretrainedEncoder):
    """Where a state lies: psi of an intent encoder, or the points of any other encoder that reads only observations.

    Args:
        model: an encoder of states.
        replica: which of its replicas.
        metadata: of the artifact.
        source: where it comes from, for messages.

    Raises:
        ArtifactError: if the encoder reads actions, or has no such replica.
    """

    def __init__(
        self, model: Encoder, *, replica: int = 0, metadata: Mapping[str, Any] | None = None, source: str = ""
    ) -> None:
        super().__init__(model, replica=replica, metadata=metadata, source=source)
        if self.spec.action_dim:
            raise ArtifactError(f"{self.source}: found an encoder that reads actions, expected one of states")

    @overload
    def forward(self, observation: Tensor) -> Tensor: ...
    @overload
    def forward(self, observation: ArrayLike) -> NDArray[Any]: ...
    def forward(self, observation: Tensor | ArrayLike) -> Tensor | NDArray[Any]:
        """Points of observations, such as psi(s): (..., observation_dim) -> (..., latent_dim).

        Raises:
            ArtifactError: if observations have another size than the encoder reads.
        """
        return self._evaluate(self.model, observation=observation)  # type: ignore[no-any-return]

    @property
    def in_steps(self) -> bool:
        """Whether ``distance`` is a number of steps; else it is a squared distance."""
        return self.space in self.model.in_steps

    @overload
    def distance(self, a: Tensor, b: Tensor) -> Tensor: ...
    @overload
    def distance(self, a: ArrayLike, b: ArrayLike) -> NDArray[Any]: ...
    def distance(self, a: Tensor | ArrayLike, b: Tensor | ArrayLike) -> Tensor | NDArray[Any]:
        """How far apart observations (..., observation_dim) are: (...).

        With ``in_steps`` it is the number of steps between them, as the encoder says it. Else it is the squared distance of
        their points. Where the encoder carries a calibration (``icvf``), its unit is that of a single step: it is 1 on average
        over single steps of the pretraining data. That unit belongs to the pretrained weights; after fine-tuning it is no
        longer exact.

        Raises:
            ArtifactError: if observations have another size than the encoder reads, or do not broadcast.
        """
        measure = cast(Any, self.model).distance if self.in_steps else self._squared
        return self._evaluate(measure, a=a, b=b)  # type: ignore[no-any-return]

    @overload
    def value(self, observation: Tensor, goal: Tensor, intent: Tensor | None = None) -> Tensor: ...
    @overload
    def value(self, observation: ArrayLike, goal: ArrayLike, intent: ArrayLike | None = None) -> NDArray[Any]: ...
    def value(
        self, observation: Tensor | ArrayLike, goal: Tensor | ArrayLike, intent: Tensor | ArrayLike | None = None
    ) -> Tensor | NDArray[Any]:
        """V(s, g, z) of an ``icvf`` encoder: how well g is reached from s by whoever wants z; (..., observation_dim) each: (...).

        k steps before a goal that is its own intent it is about -(1 - gamma^k) / (1 - gamma), gamma that of the training.

        Args:
            observation: s.
            goal: g.
            intent: z, a state; by default the goal itself.

        Raises:
            ArtifactError: as a call does, and if the encoder keeps no V.
        """
        if getattr(self.model.architecture, "gamma", None) is None or not hasattr(self.model, "value"):
            raise ArtifactError(
                f"{self.source} ({self.model.kind}): value: found no V, expected an icvf encoder that keeps it"
            )
        return self._evaluate(  # type: ignore[no-any-return]
            self._value, observation=observation, goal=goal, intent=goal if intent is None else intent
        )

    def _value(self, observation: Tensor, goal: Tensor, intent: Tensor) -> Tensor:
        return cast(Any, self.model).value(observation[None], goal[None], intent[None])[0]  # type: ignore[no-any-return]

    def _squared(self, a: Tensor, b: Tensor) -> Tensor:
        squared: Tensor = (self.model(a) - self.model(b)).square().sum(-1)
        calibration = self.model.calibration_of(self.space)
        return squared if calibration is None else squared * calibration[0]

    def _columns(self, episode: Episode) -> tuple[NDArray[np.float32], ...]:
        return (episode.observations,)


class PretrainedDynamics(PretrainedEncoder):
    """phi(s, a), and with mu(s') how much more likely s' follows than it occurs.

    Args:
        model: an encoder of states and actions.
        replica: which of its replicas.
        metadata: of the artifact.
        source: where it comes from, for messages.

    Raises:
        ArtifactError: if the encoder reads no actions, or has no such replica.
    """

    def __init__(
        self, model: Encoder, *, replica: int = 0, metadata: Mapping[str, Any] | None = None, source: str = ""
    ) -> None:
        super().__init__(model, replica=replica, metadata=metadata, source=source)
        if not self.spec.action_dim:
            raise ArtifactError(f"{self.source}: found an encoder of states alone, expected one that reads actions")

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
            ArtifactError: as a call does, and if the encoder has no phi and mu.
        """
        if not {"phi", "mu"} <= set(self.model.spaces):
            raise ArtifactError(f"{self.source}: ratio: found {' and '.join(self.model.spaces)}, expected phi and mu")
        return self._evaluate(  # type: ignore[no-any-return]
            cast(Any, self.model).ratio, observation=observation, action=action, next_observation=next_observation
        )

    def _columns(self, episode: Episode) -> tuple[NDArray[np.float32], ...]:
        assert episode.actions is not None
        return episode.current, episode.actions


class PretrainedPolicy(PretrainedModel[ActingModel]):
    """A policy: raw observations in, actions within the bounds out.

    Args:
        model: a policy.
        replica: which of its replicas.
        metadata: of the artifact.
        source: where it comes from, for messages.

    Raises:
        ArtifactError: if there is no such replica.
    """

    spec: PolicySpec

    def __init__(
        self, model: ActingModel, *, replica: int = 0, metadata: Mapping[str, Any] | None = None, source: str = ""
    ) -> None:
        super().__init__(model, replica=replica, metadata=metadata, source=source)
        a = model.architecture
        self.spec = PolicySpec(
            observation_dim=a.observation_dim, action_low=tuple(a.action_low), action_high=tuple(a.action_high)
        )

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: a policy with a state or with noise starts anew, others do nothing.

        Args:
            seed: of the noise.
        """
        self.model.reset((seed,))

    @overload
    def forward(self, observation: Tensor) -> Tensor: ...
    @overload
    def forward(self, observation: ArrayLike) -> NDArray[Any]: ...
    def forward(self, observation: Tensor | ArrayLike) -> Tensor | NDArray[Any]:
        """Actions within the bounds: (..., observation_dim) -> (..., action_dim).

        Raises:
            ArtifactError: if observations have another size than the policy reads, or an array has a number that is not
                finite. Tensors are not searched for one, because that would wait for the device.
        """
        return self._evaluate(self._act, observation=observation)  # type: ignore[no-any-return]

    def _tensor(self, field: str, value: Tensor | ArrayLike) -> Tensor:
        tensor = super()._tensor(field, value)
        if not isinstance(value, Tensor) and not tensor.isfinite().all():
            raise ArtifactError(
                f"{self.source}: {field}: found a number that is not finite; the policy cannot act on it"
            )
        return tensor

    def _act(self, observation: Tensor) -> Tensor:
        return self.model(observation).to(self.dtype).clamp(self.model.low, self.model.high)  # type: ignore[no-any-return]


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
        trainable: leave all weights trainable; for some of them see ``PretrainedModel.unfreeze``.

    Returns:
        ``PretrainedDynamics`` if the encoder reads actions, else ``PretrainedIntent``.

    Raises:
        ArtifactError: if there is no artifact, it is damaged, made by a newer version or not of an encoder, or has no such
            replica.
    """
    return _load_encoder(os.fspath(source), {}, replica=replica, device=device, dtype=dtype, trainable=trainable)


def load_policy(
    source: str | os.PathLike[str],
    *,
    replica: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
) -> PretrainedPolicy:
    """Load a policy: frozen, in eval mode, its normaliser and bounds inside.

    Args:
        source: as ``load_encoder`` takes it.
        replica: which of the artifact's replicas.
        device: where the policy computes.
        dtype: floating type in which it computes.
        trainable: leave all weights trainable; for some of them see ``PretrainedModel.unfreeze``.

    Raises:
        ArtifactError: if there is no artifact, it is damaged, made by a newer version or not of a policy, or has no such
            replica.
    """
    return _load_policy(os.fspath(source), {}, replica=replica, device=device, dtype=dtype, trainable=trainable)


def _load_encoder(
    source: str, hub: Mapping[str, Any], *, replica: int = 0, **options: Any
) -> PretrainedIntent | PretrainedDynamics:
    model, metadata = _read(source, load_encoder_model, hub)
    kind = PretrainedDynamics if model.spaces[0] in model.reads_actions else PretrainedIntent
    return _placed(kind(model, replica=replica, metadata=metadata, source=source), **options)


def _load_policy(source: str, hub: Mapping[str, Any], *, replica: int = 0, **options: Any) -> PretrainedPolicy:
    model, metadata = _read(source, load_policy_model, hub)
    return _placed(PretrainedPolicy(model, replica=replica, metadata=metadata, source=source), **options)


def _read(source: str, load: Callable[[Path], M], hub: Mapping[str, Any]) -> tuple[M, dict[str, Any]]:
    with artifact_folder(source, **hub) as folder:
        try:
            return load(folder), read_metadata(folder)
        except ArtifactError as error:
            raise (error if folder == Path(source) else ArtifactError(f"{source}: {error}")) from None


P = TypeVar("P", bound=PretrainedModel[Any])


def _placed(
    found: P, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, trainable: bool = False
) -> P:
    found.to(device, dtype)
    return found.unfreeze() if trainable else found
