"""Artifacts: folders of safetensors and JSON that hold a model, its architecture, its normaliser and its provenance.

Nothing that is written here is a pickle, and what is in a folder follows from what it was made from: equal inputs give equal
bytes. Nothing that is read here runs code of the folder.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import os
import re
import reprlib
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynarep.configs.params import LARGEST_NUMBER, MOST_LAYERS, MOST_REPLICAS, ParamsError, read_file, validate
from dynarep.data.folders import parse_json
from dynarep.data.schema import DataError
from dynarep.pipeline.nn.models import ActingModel, Encoder, Model
from dynarep.pipeline.nn.networks import LARGEST
from dynarep.pipeline.registry import find_model

SCHEMA_VERSION = 2

ARTIFACT_FILES = ("model.safetensors", "config.json", "metadata.json", "README.md")
"""What ``save_artifact`` writes."""

EXPORTS = ("model.pt2", "model.onnx")
"""What may lie beside them, made by an export."""

TYPES = {
    "IntentEncoder": ("encoders", "icvf"),
    "DynamicsEncoder": ("encoders", "contrastive"),
    "Policy": ("policies", "deterministic"),
}
"""Kinds of the types that schema version 1 names."""

NO_PATH = "path/to/this/folder"
"""Stands in the card of an artifact whose metadata has no path."""

LARGEST_JSON, LARGEST_HEADER = 1 << 24, 1 << 20
"""Bytes of a JSON file and of the names in front of the weights, at most."""


class ArtifactError(ValueError):
    """An artifact is missing, damaged, newer than this version, or does not fit; the message names file and field."""


def provenance(project: Path | None = None) -> dict[str, Any]:
    """Version, git revision (with ``+dirty`` for uncommitted changes) and torch version that make an artifact.

    A changed ``dvc.lock`` is no change: DVC writes it while the pipeline runs.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project or Path.cwd()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude,glob)**/dvc.lock")
        revision = git("rev-parse", "--short=12", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {"version": package_metadata.version("dynarep"), "revision": revision, "torch": torch.__version__}


def save_artifact(folder: Path, model: Model, metadata: dict[str, Any]) -> None:
    """Write ``model`` into ``folder``, which must exist: ``ARTIFACT_FILES``.

    Raises:
        OSError: if a file cannot be written; it names the file.
    """
    model = model.cpu().eval().requires_grad_(False)
    save_model(folder, model)
    metadata = {**metadata, "code": code_of(model)}
    _write(folder / "metadata.json", f"{json.dumps(metadata, indent=2, default=str)}\n".encode())
    _write(folder / "README.md", readme(model, metadata).encode("utf-8", "backslashreplace"))


def save_model(folder: Path, model: Model) -> None:
    """Write what ``load_artifact`` reads, model.safetensors and config.json, into ``folder``, which is made if missing.

    The weights carry kind and architecture in their header, so that a changed config.json is noticed.

    Raises:
        OSError: as ``save_artifact``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {"room": model.room, "kind": model.kind, "architecture": dataclasses.asdict(model.architecture)}
    content = save(state, {"model": json.dumps(about, sort_keys=True)})
    _write(folder / "model.safetensors", content)
    config = {"schema_version": SCHEMA_VERSION, **about, "sha256": sha256(content).hexdigest()}
    _write(folder / "config.json", f"{json.dumps(config, indent=2)}\n".encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def code_of(model: Model) -> str:
    """Digest of the files of a model's class and its bases, so that what reads an artifact changes with them."""
    modules = dict.fromkeys(base.__module__ for base in type(model).__mro__ if issubclass(base, Model))
    own = [inspect.getsource(sys.modules[name]) for name in modules if name != Model.__module__]
    return sha256("".join(own).encode()).hexdigest()


def export_program(model: Model, path: str | os.PathLike[str]) -> None:
    """Write ``forward`` of the first replica with a dynamic batch as a ``torch.export`` program, which runs without dynarep.

    The file that is written here holds no pickle. But ``torch.export.load`` unpickles what a file brings along, so load one
    only if you trust whoever made it.

    Args:
        model: on the CPU.
        path: of the file, usually ``model.pt2``.

    Raises:
        ArtifactError: if the model draws at random or keeps a state, which a program cannot do.
        OSError: if the file cannot be written; it names the file.
    """
    one, target = exportable(model), Path(path)
    inputs = one.inputs()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(one, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=True)
    program.example_inputs = None  # they would be pickled
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    _write(target, buffer.getvalue())


def exportable(model: Model) -> Model:
    """The first replica of a model whose output depends on nothing but its input.

    Raises:
        ArtifactError: if it does not.
    """
    one = model.replica_rows([0])
    inputs = one.inputs()
    with torch.no_grad():
        if not torch.equal(one(*inputs), one(*inputs)):
            raise ArtifactError(
                f"{model.kind}: draws at random or keeps a state, expected a model that can be exported"
            )
    return one


def readme(model: Model, metadata: dict[str, Any], source: str | None = None) -> str:
    """The card of an artifact, as Markdown.

    Args:
        model: of any kind.
        metadata: of the artifact.
        source: how it is loaded; by default the path in the metadata.
    """
    rows = "\n".join(
        f"| {markdown(key)} | {markdown(value)} |" for key, value in dataclasses.asdict(model.architecture).items()
    )
    about = "\n".join(
        f"- **{markdown(key)}**: {markdown(value)}"
        for key, value in metadata.items()
        if isinstance(value, str | int | float)
    )
    datasets, numbers = datasets_in(metadata), dict(_numbers(metadata.get("scores") or metadata.get("metrics")))
    data = f"Trained on {', '.join(map(markdown, datasets))}.\n\n" if datasets else ""
    table = "".join(f"| {markdown(key)} | {markdown(value)} |\n" for key, value in numbers.items())
    measured = f"| measured | |\n|---|---|\n{table}\n" if table else ""
    what = "policy" if isinstance(model, ActingModel) else "encoder"
    path = source if source is not None else str(metadata.get("path", NO_PATH))
    return f"""# {what}: {model.kind}

Made by dynarep.

{about}

{data}{measured}| architecture | |
|---|---|
{rows}

```python
import dynarep

{what} = dynarep.load_{what}({python_text(path)})
```

The weights are safetensors and the architecture is JSON: `dynarep.load_{what}` runs no code of this folder. A `model.pt2` that
somebody put beside them is another matter: `torch.export.load` unpickles what the file brings along, and that can run code.
Load such a file only if you trust its author.
"""


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What was measured, by dotted names."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, f"{name}.{key}".lstrip("."))
    elif isinstance(values, int | float) or (isinstance(values, str) and name == "env"):
        yield name, f"{values:.4g}" if isinstance(values, float) else values


def markdown(value: Any) -> str:
    """A value as one line of plain text in Markdown."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str(value).split()))


def python_text(text: str) -> str:
    """A text as a literal of Python on one line."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def datasets_in(metadata: dict[str, Any]) -> list[str]:
    """Names of the datasets that a model was trained on, as far as its metadata say."""
    datasets = metadata.get("datasets")
    return [str(name) for name in datasets] if isinstance(datasets, dict) else []


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of an artifact, nothing if it has none.

    Raises:
        ArtifactError: if it is not a JSON mapping.
    """
    path = folder / "metadata.json"
    return _read_json(path) if os.path.lexists(path) else {}


def _read(path: Path, limit: int, hint: str = "") -> bytes:
    """The content of a regular file.

    Raises:
        ArtifactError: if there is none, it cannot be read, is something else or larger than ``limit`` bytes.
    """
    try:
        return read_file(path, limit)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}{hint}") from None


def _read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """A mapping in a JSON file.

    Raises:
        ArtifactError: as ``_read``, and if it is no JSON, no mapping, or has a key twice or a number that is not finite.
    """
    try:
        values = parse_json(_read(path, LARGEST_JSON, hint), path)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: found {type(values).__name__}, expected a mapping")
    return values


def load_artifact(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> Model:
    """Load a frozen model in eval mode, see ``read_artifact``."""
    return read_artifact(folder, observation_dim)[0]


def read_artifact(folder: str | os.PathLike[str], observation_dim: int | None = None) -> tuple[Model, str]:
    """A frozen model in eval mode, and the SHA-256 of the weights that were read for it, in hexadecimal.

    Args:
        folder: an artifact folder.
        observation_dim: what the caller will feed; refused here, by name, if the model was made for another size.

    Raises:
        ArtifactError: if a file is missing or damaged, the schema is newer, a key is unknown or missing, a number of the
            architecture is out of bounds, the weights are not those that config.json describes, a weight or the normaliser is
            missing, not finite or of another type, or ``observation_dim`` differs.
    """
    config_path, weights_path = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    room, kind, given, digest = _read_config(config_path)
    where = f"{config_path}: architecture"
    try:
        model_class = find_model(room, kind, f"{config_path}: kind")
        architecture: Any = validate(model_class.Architecture, given, where)
    except ParamsError as error:
        raise ArtifactError(str(error)) from None
    except KeyError:
        raise ArtifactError(f"{config_path}: kind: found {kind!r}, which is no kind of model") from None
    _check_architecture(given, architecture, where)
    _check_size(weights_path, architecture)
    try:
        with torch.device("meta"):
            wanted = model_class(architecture).state_dict()
    except (RuntimeError, ValueError, MemoryError, OverflowError, TypeError) as error:
        raise ArtifactError(f"{where}: not one of a model: {error}") from None
    if sum(tensor.numel() for tensor in wanted.values()) > LARGEST:
        raise ArtifactError(f"{where}: asks for more than {LARGEST:,} weights")
    content = _read(weights_path, sum(tensor.nbytes for tensor in wanted.values()) + LARGEST_HEADER)
    found = sha256(content).hexdigest()
    if digest not in (None, found):
        raise ArtifactError(
            f"{weights_path}: damaged or truncated, or another file: sha256 is {found}, config.json says {digest}"
        )
    try:
        state = load(content)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"{weights_path}: damaged or truncated: {error}") from None
    _check_header(
        config_path,
        weights_path,
        content,
        {"room": room, "kind": kind, "architecture": _plain(architecture)},
        {f.name: f.default for f in dataclasses.fields(architecture) if f.default is not dataclasses.MISSING},
    )
    _check_values(weights_path, wanted, state)
    model = model_class(architecture)
    for name in {"low", "high"} & set(wanted):
        if not torch.equal(model.state_dict()[name], state[name]):
            raise ArtifactError(
                f"{weights_path}: {name}: found other bounds than architecture.action_{name} of config.json"
            )
    model.load_state_dict(state, strict=True)
    dim = model.architecture.observation_dim
    if observation_dim is not None and observation_dim != dim:
        raise ArtifactError(
            f"{config_path}: the model reads observations of {dim} numbers, the data has {observation_dim}"
        )
    return model.eval().requires_grad_(False), found


def _read_config(path: Path) -> tuple[str, str, Any, str | None]:
    """Room, kind, architecture and digest of the weights, of either schema version."""
    config = _read_json(path, "; expected an artifact folder with config.json")
    if "schema_version" not in config:
        raise ArtifactError(f"{path}: missing keys ['schema_version']")
    version = config["schema_version"]
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
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


def _plain(architecture: Any) -> dict[str, Any]:
    """An architecture as JSON has it."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(architecture))))


def _check_architecture(given: dict[str, Any], architecture: Any, where: str) -> None:
    """Refuse values of another type than a model saves, and numbers that no model has."""
    plain = _plain(architecture)
    for key, value in given.items():
        if not _alike(value, plain[key]):
            raise ArtifactError(f"{where}.{key}: found {reprlib.repr(value)}, expected {reprlib.repr(plain[key])}")
    for key, value in _leaves(plain):
        numbers = value if isinstance(value, list) else [value]
        integers = [number for number in numbers if type(number) is int]
        least = int(key.rpartition(".")[2] in ("replicas", "hidden", "components") or key.endswith("_dim"))
        most = MOST_REPLICAS if key == "replicas" else LARGEST_NUMBER
        for number in integers:
            if not least <= number <= most:
                raise ArtifactError(f"{where}.{key}: found {number}, expected {least} to {most:,}")
        if isinstance(value, list) and len(value) > (MOST_LAYERS if integers else LARGEST_NUMBER):
            raise ArtifactError(f"{where}.{key}: found {len(value):,} layers, expected at most {MOST_LAYERS}")


def _leaves(values: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """What is in a mapping of mappings, by dotted names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def _alike(given: Any, own: Any) -> bool:
    """Whether a value of a file is what a model would save: of the same type, except that a float may be written as 1."""
    if isinstance(own, list):
        return isinstance(given, list) and len(given) == len(own) and all(map(_alike, given, own))
    return (type(given) is type(own) or (type(given), type(own)) == (int, float)) and given == own


def _check_size(path: Path, architecture: Any) -> None:
    """Refuse an architecture whose hidden layers alone have more numbers than there are bytes, before it is built."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return  # reading says what is wrong
    needed = 4 * architecture.replicas * sum(getattr(architecture, "hidden", ()))
    if path.is_file() and size < needed:
        raise ArtifactError(
            f"{path}: damaged or truncated: found {size:,} bytes; architecture.hidden of config.json needs {needed:,} or more"
        )


def _check_header(config: Path, weights: Path, content: bytes, about: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse a config.json that does not describe the model whose weights these are; older files do not say, or not all."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = (header.get("__metadata__") or {}).get("model")
        saved = None if text is None else json.loads(text)
        own = (
            about
            if saved is None
            else defaults | saved["architecture"] | {"room": saved["room"], "kind": saved["kind"]}
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{weights}: damaged: its header does not say what model it is of") from None
    if saved is None:
        return
    named = {"room": about["room"], "kind": about["kind"], **about["architecture"]}
    for key in sorted(named.keys() | own.keys()):
        if named.get(key) != own.get(key):
            field = key if key in ("room", "kind") else f"architecture.{key}"
            raise ArtifactError(
                f"{config}: {field}: found {reprlib.repr(named.get(key))}, the weights were saved with "
                f"{reprlib.repr(own.get(key))}"
            )


def _check_values(path: Path, wanted: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Refuse weights that a model of these shapes and types cannot have learned."""
    for what, names in (("missing", wanted.keys() - stored.keys()), ("unknown", stored.keys() - wanted.keys())):
        if names:
            raise ArtifactError(f"{path}: {what} weights {', '.join(map(repr, sorted(names)))}")
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            expected = tuple(wanted[name].shape)
            raise ArtifactError(f"{path}: {name}: found shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.dtype != wanted[name].dtype:
            raise ArtifactError(f"{path}: {name}: found {tensor.dtype}, expected {wanted[name].dtype}")
        if not tensor.isfinite().all():
            raise ArtifactError(f"{path}: {name}: found a number that is not finite")
        if name.endswith(("normaliser.std", "normaliser.variance")) and (tensor < 0).any():
            raise ArtifactError(f"{path}: {name}: found a negative deviation, expected numbers of at least 0")
        if name.endswith("calibration") and (tensor <= 0).any():
            raise ArtifactError(f"{path}: {name}: found {tensor.min()}, expected positive numbers")
    if "low" in stored and not (stored["low"] < stored["high"]).all():
        raise ArtifactError(f"{path}: low, high: found a lower bound that is not below the upper one")


def _load(
    folder: str | os.PathLike[str], kind: type[Model], what: str, observation_dim: int | None
) -> tuple[Model, str]:
    model, digest = read_artifact(folder, observation_dim)
    if not isinstance(model, kind):
        found = "a policy" if isinstance(model, ActingModel) else "an encoder"
        raise ArtifactError(f"{Path(folder) / 'config.json'}: found {found} of kind {model.kind}, expected {what}")
    return model, digest


def load_policy_model(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> ActingModel:
    """Load a policy with all its replicas, see ``load_artifact``."""
    return cast(ActingModel, _load(folder, ActingModel, "a policy", observation_dim)[0])


def load_encoder_model(folder: str | os.PathLike[str], *, observation_dim: int | None = None) -> Encoder:
    """Load an encoder with all its replicas, see ``load_artifact``."""
    return read_encoder_model(folder, observation_dim)[0]


def read_encoder_model(folder: str | os.PathLike[str], observation_dim: int | None = None) -> tuple[Encoder, str]:
    """An encoder with all its replicas, and the SHA-256 of its weights, see ``read_artifact``."""
    model, digest = _load(folder, Encoder, "an encoder", observation_dim)
    return cast(Encoder, model), digest
