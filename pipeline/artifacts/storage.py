"""Artifacts: folders of safetensors and JSON that hold a model, its architecture, its normaliser and its provenance.

Nothing in a folder is a pickle, and what is in it follows from what it was made from: equal inputs give equal bytes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from hashlib import file_digest, sha256
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynarep.configs.params import ParamsError, validate
from dynarep.pipeline.nn.models import ActingModel, Encoder, Model
from dynarep.pipeline.registry import find_model

SCHEMA_VERSION = 2

ARTIFACT_FILES = ("model.safetensors", "config.json", "metadata.json", "README.md")
"""What ``save_artifact`` writes."""

EXPORTS = ("model.pt2", "model.onnx")
"""What may lie beside them, made by an export."""

TYPES = {"IntentEncoder": ("encoders", "icvf"), "DynamicsEncoder": ("encoders", "contrastive"), "Policy": ("policies", "deterministic")}
"""Kinds of the types that schema version 1 names."""

NO_PATH = "path/to/this/folder"
"""Stands in the card of an artifact whose metadata has no path."""

LARGEST = 1 << 28
"""Weights that an architecture may ask for, at most."""


class ArtifactError(ValueError):
    """An artifact is missing, damaged, newer than this version, or does not fit; the message names file and field."""


def provenance(project: Path | None = None) -> dict[str, Any]:
    """Version, git revision (with ``+dirty`` for uncommitted changes) and torch version that make an artifact."""
    git = [
        "git",
        "-C",
        str(project or Path.cwd()),
        "describe",
        "--always",
        "--dirty=+dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {"version": package_metadata.version("dynarep"), "revision": revision, "torch": torch.__version__}


def save_artifact(folder: Path, model: Model, metadata: dict[str, Any]) -> None:
    """Write ``model`` into ``folder``, which must exist: ``ARTIFACT_FILES``."""
    model = model.cpu().eval().requires_grad_(False)
    save_model(folder, model)
    metadata = {**metadata, "code": code_of(model)}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2, default=str) + "\n")
    (folder / "README.md").write_text(_readme(model, metadata))


def save_model(folder: Path, model: Model) -> None:
    """Write what ``load_artifact`` reads, model.safetensors and config.json, into ``folder``, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(state, weights)
    weights.chmod(0o644)
    config = {
        "schema_version": SCHEMA_VERSION,
        "room": model.room,
        "kind": model.kind,
        "architecture": dataclasses.asdict(model.architecture),
        "sha256": weights_digest(folder),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def code_of(model: Model) -> str:
    """Digest of the file that says what a model computes, so that what reads an artifact changes with it."""
    return sha256(inspect.getsource(sys.modules[type(model).__module__]).encode()).hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 of an artifact's weights, in hexadecimal."""
    with (folder / "model.safetensors").open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def export_program(model: Model, path: str | os.PathLike[str]) -> None:
    """Write ``forward`` of the first replica with a dynamic batch as a ``torch.export`` program, which runs without dynarep.

    ``torch.export.load`` may unpickle what a file brings along, so load such a file only if you trust whoever made it.

    Args:
        model: on the CPU.
        path: of the file, usually ``model.pt2``.
    """
    inputs = model.inputs()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        model.replica_rows([0]), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=True
    )
    torch.export.save(program, path)


def _readme(model: Model, metadata: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in dataclasses.asdict(model.architecture).items())
    about = "\n".join(
        f"- **{key}**: {value}" for key, value in metadata.items() if isinstance(value, str | int | float)
    )
    what = "policy" if isinstance(model, ActingModel) else "encoder"
    path = json.dumps(str(metadata.get("path", NO_PATH)))
    return f"""# {what}: {model.kind}

Made by dynarep.

{about}

| architecture | |
|---|---|
{rows}

```python
import dynarep

{what} = dynarep.load_{what}({path})
```

The weights are safetensors, the architecture is JSON: loading runs no code of this folder.
"""


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of an artifact, nothing if it has none.

    Raises:
        ArtifactError: if it is not a JSON mapping.
    """
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise ArtifactError(f"{path}: found {type(metadata).__name__}, expected a mapping")
    return metadata


def load_artifact(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> Model:
    """Load a frozen model in eval mode.

    Args:
        folder: an artifact folder.
        observation_dim: what the caller will feed; refused here, by name, if the model was made for another size.

    Raises:
        ArtifactError: if a file is missing or damaged, the schema is newer, a key is unknown or missing, a weight or the
            normaliser is missing, not finite or of another type, or ``observation_dim`` differs.
    """
    config_path, weights_path = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    room, kind, architecture, digest = _read_config(config_path)
    try:
        model_class = find_model(room, kind, f"{config_path}: kind")
        chosen = validate(model_class.Architecture, architecture, f"{config_path}: architecture")
        with torch.device("meta"):
            wanted = model_class(chosen).state_dict()  # type: ignore[call-arg]
    except ParamsError as error:
        raise ArtifactError(str(error)) from None
    except (RuntimeError, ValueError, MemoryError, OverflowError, TypeError) as error:
        raise ArtifactError(f"{config_path}: architecture: not one of a model: {error}") from None
    if sum(tensor.numel() for tensor in wanted.values()) > LARGEST:
        raise ArtifactError(f"{config_path}: architecture: asks for more than {LARGEST:,} weights")
    try:
        if digest is not None and (found := weights_digest(Path(folder))) != digest:
            raise ArtifactError(f"{weights_path}: sha256 is {found}, config.json says {digest}: the file has changed")
        state = load_file(weights_path)
    except FileNotFoundError:
        raise ArtifactError(f"{weights_path}: no such file") from None
    except SafetensorError as error:
        raise ArtifactError(f"{weights_path}: damaged or truncated: {error}") from None
    except OSError as error:
        raise ArtifactError(f"{weights_path}: {error}") from None
    model = model_class(chosen)  # type: ignore[call-arg]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ArtifactError(f"{weights_path}: {error}") from None
    _check_values(weights_path, model.state_dict(), state)
    dim = model.architecture.observation_dim
    if observation_dim is not None and observation_dim != dim:
        raise ArtifactError(
            f"{config_path}: the model reads observations of {dim} numbers, the data has {observation_dim}"
        )
    return model.eval().requires_grad_(False)


def _read_config(path: Path) -> tuple[str, str, Any, str | None]:
    """Room, kind, architecture and digest of the weights, of either schema version."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; expected an artifact folder with config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: found {type(config).__name__}, expected a mapping")
    version = config.get("schema_version")
    if "schema_version" in config and (type(version) is not int or not 1 <= version <= SCHEMA_VERSION):
        raise ArtifactError(f"{path}: schema_version is {version!r}, this version reads up to {SCHEMA_VERSION}")
    keys = {"schema_version", "architecture"} | ({"type"} if version == 1 else {"room", "kind", "sha256"})
    if keys - set(config):
        raise ArtifactError(f"{path}: missing keys {sorted(keys - set(config))}")
    if set(config) - keys:
        raise ArtifactError(f"{path}: unknown keys {sorted(set(config) - keys)}")
    if version == 1:
        if config["type"] not in list(TYPES):
            raise ArtifactError(f"{path}: type is {config['type']!r}, expected one of {sorted(TYPES)}")
        return *TYPES[config["type"]], config["architecture"], None
    if config["room"] not in ("encoders", "policies"):
        raise ArtifactError(f"{path}: room is {config['room']!r}, expected encoders or policies")
    return config["room"], config["kind"], config["architecture"], str(config["sha256"])


def _check_values(path: Path, own: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Refuse weights that a model cannot have learned."""
    for name, tensor in stored.items():
        if tensor.dtype != own[name].dtype:
            raise ArtifactError(f"{path}: {name}: found {tensor.dtype}, expected {own[name].dtype}")
        if not tensor.isfinite().all():
            raise ArtifactError(f"{path}: {name}: found a number that is not finite")
        if name.endswith("normaliser.std") and (tensor < 0).any():
            raise ArtifactError(f"{path}: {name}: found a negative deviation, expected numbers of at least 0")
        if name.endswith("calibration") and (tensor <= 0).any():
            raise ArtifactError(f"{path}: {name}: found {tensor.min()}, expected positive numbers")
    if "low" in stored and not (stored["low"] < stored["high"]).all():
        raise ArtifactError(f"{path}: low, high: found a lower bound that is not below the upper one")


def _load(folder: str | os.PathLike[str], kind: type[Model], what: str, observation_dim: int | None) -> Model:
    model = load_artifact(folder, observation_dim=observation_dim)
    if not isinstance(model, kind):
        found = "a policy" if isinstance(model, ActingModel) else "an encoder"
        raise ArtifactError(f"{Path(folder) / 'config.json'}: found {found} of kind {model.kind}, expected {what}")
    return model


def load_policy_model(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> ActingModel:
    """Load a policy with all its replicas, see ``load_artifact``."""
    return cast(ActingModel, _load(folder, ActingModel, "a policy", observation_dim))


def load_encoder_model(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> Encoder:
    """Load an encoder with all its replicas, see ``load_artifact``."""
    return cast(Encoder, _load(folder, Encoder, "an encoder", observation_dim))
