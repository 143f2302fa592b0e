"""Artifacts: folders of safetensors and JSON that hold a model, its architecture, its normaliser and its provenance."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Sequence
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynarep.configs.params import ParamsError, validate
from dynarep.pipeline.encoders import ARTIFACT_TYPES, DynamicsEncoder, IntentEncoder, Policy

SCHEMA_VERSION = 1

ARTIFACT_FILES = ("model.safetensors", "config.json", "metadata.json", "model.pt2", "README.md")
"""What ``save_artifact`` writes."""

NO_PATH = "path/to/this/folder"
"""Stands in the card of an artifact whose metadata has no path."""

M = TypeVar("M", bound=IntentEncoder | DynamicsEncoder | Policy)


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


def example_inputs(model: IntentEncoder | DynamicsEncoder | Policy) -> tuple[Tensor, ...]:
    """Two rows of zeros for each argument of ``model.forward``."""
    observation = torch.zeros(2, model.architecture.observation_dim)
    if isinstance(model, DynamicsEncoder):
        return observation, torch.zeros(2, model.architecture.action_dim)
    return (observation,)


def save_artifact(folder: Path, model: IntentEncoder | DynamicsEncoder | Policy, metadata: dict[str, Any]) -> None:
    """Write ``model`` into ``folder``, which must exist: ``ARTIFACT_FILES``.

    ``model.pt2`` is ``forward`` of the first replica with a dynamic batch, exported by torch.export: it runs without
    this package.
    """
    model = model.cpu().eval().requires_grad_(False)
    save_model(folder, model)
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2, default=str) + "\n")
    inputs = example_inputs(model)
    batch = torch.export.Dim("batch", min=1)
    first = select_replica(model, 0)
    program = torch.export.export(first, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=True)
    torch.export.save(program, folder / "model.pt2")
    (folder / "README.md").write_text(_readme(type(model).__name__, dataclasses.asdict(model.architecture), metadata))


def save_model(folder: Path, model: IntentEncoder | DynamicsEncoder | Policy) -> None:
    """Write what ``load_artifact`` reads, model.safetensors and config.json, into ``folder``, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "schema_version": SCHEMA_VERSION,
        "type": type(model).__name__,
        "architecture": dataclasses.asdict(model.architecture),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


NOT_STACKED = ("normaliser.mean", "normaliser.std", "low", "high")
"""Entries of a model's state that replicas share; all others have the replicas in front."""


def select_replica(model: M, replica: int) -> M:
    """A frozen copy of one replica, as a model of one."""
    return select_replicas(model, [replica])


def select_replicas(model: M, replicas: Sequence[int]) -> M:
    """A frozen copy of some replicas, in this order; one may come several times."""
    architecture = dataclasses.replace(model.architecture, replicas=len(replicas))
    state = {
        name: tensor if name in NOT_STACKED else tensor[list(replicas)] for name, tensor in model.state_dict().items()
    }
    chosen = type(model)(architecture)  # type: ignore[arg-type]
    chosen.load_state_dict(state)
    chosen.eval().requires_grad_(False)
    return chosen


def _readme(kind: str, architecture: dict[str, Any], metadata: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in architecture.items())
    about = "\n".join(
        f"- **{key}**: {value}" for key, value in metadata.items() if isinstance(value, str | int | float)
    )
    path = metadata.get("path", NO_PATH)
    if kind == Policy.__name__:
        load = f"""from pathlib import Path
from dynarep.pipeline.artifacts import load_policy

policy = load_policy(Path("{path}"))"""
    else:
        load = f"""import dynarep

encoder = dynarep.load_encoder("{path}")"""
    return f"""# {kind}

Made by dynarep.

{about}

| architecture | |
|---|---|
{rows}

```python
{load}
```

Without dynarep: `torch.export.load("model.pt2").module()(*inputs)`.
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


def load_artifact(
    folder: str | os.PathLike[str], *, observation_dim: int | None = None
) -> IntentEncoder | DynamicsEncoder | Policy:
    """Load a frozen model in eval mode.

    Args:
        folder: an artifact folder.
        observation_dim: what the caller will feed; refused here, by name, if the model was made for another size.

    Raises:
        ArtifactError: if a file is missing or damaged, the schema is newer, a key is unknown or missing, a weight or the
            normaliser is missing, or ``observation_dim`` differs.
    """
    config_path, weights_path = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    try:
        config = json.loads(config_path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{config_path}: no such file; expected an artifact folder with config.json") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{config_path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{config_path}: found {type(config).__name__}, expected a mapping")
    keys = {"schema_version", "type", "architecture"}
    if keys - set(config):
        raise ArtifactError(f"{config_path}: missing keys {sorted(keys - set(config))}")
    version = config["schema_version"]
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ArtifactError(f"{config_path}: schema_version is {version!r}, this version reads up to {SCHEMA_VERSION}")
    if set(config) - keys:
        raise ArtifactError(f"{config_path}: unknown keys {sorted(set(config) - keys)}")
    if config["type"] not in list(ARTIFACT_TYPES):
        raise ArtifactError(f"{config_path}: type is {config['type']!r}, expected one of {sorted(ARTIFACT_TYPES)}")
    model_class, architecture_class = ARTIFACT_TYPES[config["type"]]
    try:
        model: IntentEncoder | DynamicsEncoder | Policy = model_class(
            validate(architecture_class, config["architecture"], f"{config_path}: architecture")
        )
        state = load_file(weights_path)
    except ParamsError as error:
        raise ArtifactError(str(error)) from None
    except FileNotFoundError:
        raise ArtifactError(f"{weights_path}: no such file") from None
    except SafetensorError as error:
        raise ArtifactError(f"{weights_path}: damaged or truncated: {error}") from None
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ArtifactError(f"{weights_path}: {error}") from None
    found = model.architecture.observation_dim
    if observation_dim is not None and observation_dim != found:
        raise ArtifactError(
            f"{config_path}: the model reads observations of {found} numbers, the data has {observation_dim}"
        )
    return model.eval().requires_grad_(False)


def _load(folder: str | os.PathLike[str], kind: type, observation_dim: int | None) -> Any:
    model = load_artifact(folder, observation_dim=observation_dim)
    if not isinstance(model, kind):
        raise ArtifactError(f"{Path(folder) / 'config.json'}: type is {type(model).__name__}, expected {kind.__name__}")
    return model


def load_policy(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> Policy:
    """Load a policy, see ``load_artifact``."""
    return _load(folder, Policy, observation_dim)  # type: ignore[no-any-return]


def load_intent_encoder(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> IntentEncoder:
    """Load an intent encoder, see ``load_artifact``."""
    return _load(folder, IntentEncoder, observation_dim)  # type: ignore[no-any-return]


def load_dynamics_encoder(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> DynamicsEncoder:
    """Load a dynamics encoder, see ``load_artifact``."""
    return _load(folder, DynamicsEncoder, observation_dim)  # type: ignore[no-any-return]
