import json
import pickle
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Model, make
from safetensors.torch import load_file, save_file

from dynarep.pipeline.artifacts.storage import (
    ArtifactError,
    load_artifact,
    load_dynamics_encoder,
    load_intent_encoder,
    load_policy,
    provenance,
    save_artifact,
    select_replica,
)
from dynarep.pipeline.encoders import DynamicsEncoder, IntentEncoder, Policy

torch.set_num_threads(1)

METADATA = {"path": "artifacts/here", "revision": "abc", "params": {"seed": 0}, "metrics": {"loss": 0.5}}


def inputs(model: Model, batch: int) -> tuple[torch.Tensor, ...]:
    observation, action = torch.randn(batch, 3), torch.randn(batch, 2)
    return (observation, action) if isinstance(model, DynamicsEncoder) else (observation,)


KINDS = ["intent", "dynamics", "policy"]


@pytest.fixture(scope="module")
def all_saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Path]]:
    artifacts = {kind: (make(kind), tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for model, folder in artifacts.values():
        save_artifact(folder, model, METADATA)
    return artifacts


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, all_saved: dict[str, tuple[Model, Path]]) -> tuple[Model, Path]:
    return all_saved[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An intent encoder's artifact without the exported program, to be damaged."""
    model = make("intent")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    architecture = {"replicas": 2, "observation_dim": 3, "hidden": [8], "latent_dim": 4, "variant": "ailot"}
    config = {"schema_version": 1, "type": "IntentEncoder", "architecture": architecture}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_round_trip(saved: tuple[Model, Path]) -> None:
    model, folder = saved
    loaded = load_artifact(folder, observation_dim=3)
    assert type(loaded) is type(model)
    assert loaded.architecture == model.architecture
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = inputs(model, 5)
    assert torch.equal(loaded(*x), model(*x))
    s = x[0].expand(2, 5, 3)
    if isinstance(loaded, IntentEncoder) and isinstance(model, IntentEncoder):
        assert torch.equal(loaded.embed(s), model.embed(s))
        assert torch.equal(loaded.distance(x[0], -x[0]), model.distance(x[0], -x[0]))
    elif isinstance(loaded, DynamicsEncoder) and isinstance(model, DynamicsEncoder):
        assert torch.equal(loaded.mu(s), model.mu(s))
        assert torch.equal(loaded.ratio(*x, x[0]), model.ratio(*x, x[0]))
    elif isinstance(loaded, Policy) and isinstance(model, Policy):
        assert torch.equal(loaded.act(s), model.act(s))
        assert not torch.equal(loaded.act(s)[0], loaded.act(s)[1])


def test_what_is_written(saved: tuple[Model, Path]) -> None:
    model, folder = saved
    names = {"model.safetensors", "config.json", "metadata.json", "model.pt2", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "metadata.json").read_text()) == METADATA
    config = json.loads((folder / "config.json").read_text())
    assert set(config) == {"schema_version", "type", "architecture"}
    assert config["type"] == type(model).__name__
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["normaliser.mean"], model.normaliser.mean)
    card = (folder / "README.md").read_text()
    assert card.startswith(f"# {type(model).__name__}\n")
    load = (
        'load_policy(Path("artifacts/here"))' if isinstance(model, Policy) else 'dynarep.load_encoder("artifacts/here")'
    )
    for text in ("- **revision**: abc", "| observation_dim | 3 |", load):
        assert text in card


def test_a_replica_alone(saved: tuple[Model, Path]) -> None:
    model, folder = saved
    x = inputs(model, 5)
    one = select_replica(model, 1)
    assert one.architecture.replicas == 1
    if isinstance(model, IntentEncoder):
        expected = model.embed(x[0][None])[1]
    elif isinstance(model, DynamicsEncoder):
        expected = model.phi(x[0][None], x[1][None])[1]
    else:
        expected = model.act(x[0][None])[1]
    torch.testing.assert_close(one(*x), expected)
    assert not torch.allclose(one(*x), model(*x))
    program = torch.export.load(folder / "model.pt2")
    assert {len(value) for name, value in program.state_dict.items() if "weight" in name} == {1}


def test_no_pickle_is_needed(saved: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled something")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_artifact(saved[1])


def torch_alone(folder: Path) -> Path:
    """A folder to import from that holds PyTorch and what it requires, and nothing else."""
    names, seen = ["torch"], set[str]()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # required elsewhere
            continue
        names += [re.split(r"[^\w.-]", text)[0] for text in found.requires or () if "extra ==" not in text]
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def test_programs_run_where_there_is_torch_alone(all_saved: dict[str, tuple[Model, Path]], tmp_path: Path) -> None:
    torch.manual_seed(1)
    batches = {str(folder): [inputs(model, size) for size in (1, 2, 7)] for model, folder in all_saved.values()}
    torch.save(batches, tmp_path / "in.pt")
    (tmp_path / "site").mkdir()
    program = f"""
import sys
from importlib.util import find_spec
sys.path.append({str(torch_alone(tmp_path / "site"))!r})
assert find_spec("torch")
found = [name for name in ("dynarep", "numpy", "safetensors", "pydantic", "lightning") if find_spec(name)]
assert not found, found
import torch
torch.set_num_threads(1)
results = {{}}
for folder, batches in torch.load("in.pt", weights_only=True).items():
    module = torch.export.load(folder + "/model.pt2").module()
    results[folder] = [module(*x) for x in batches]
torch.save(results, "out.pt")
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    for model, folder in all_saved.values():
        for x, y in zip(batches[str(folder)], found[str(folder)], strict=True):
            assert len(y) == len(x[0])
            torch.testing.assert_close(y, model(*x))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ArtifactError) as error:
        load_artifact(folder, **options)
    return str(error.value)


def test_the_undamaged_artifact_loads(folder: Path) -> None:
    assert isinstance(load_intent_encoder(folder, observation_dim=3), IntentEncoder)


def test_a_missing_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert message.startswith(f"{tmp_path / 'nowhere' / 'config.json'}: no such file")


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder / 'model.safetensors'}: no such file"


@pytest.mark.parametrize("keep", [0, 4, 100, -4])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(folder).startswith(f"{path}: damaged or truncated")


def test_weights_without_normaliser(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("normaliser")}, path)
    message = refusal(folder)
    assert message.startswith(f"{path}: ")
    assert "normaliser.mean" in message
    assert "normaliser.std" in message


def test_weights_of_another_shape_or_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "calibration": torch.ones(5)}, path)
    assert "calibration" in refusal(folder)
    save_file({**weights, "extra": torch.ones(5)}, path)
    assert "extra" in refusal(folder)


def test_unknown_keys(folder: Path) -> None:
    change(folder, comment="hello")
    assert "config.json: unknown keys ['comment']" in refusal(folder)


def test_unknown_and_wrong_architecture_keys(folder: Path) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    change(folder, architecture={**architecture, "dropout": 0.1})
    assert "config.json: architecture.dropout: unknown key" in refusal(folder)
    change(folder, architecture={**architecture, "latent_dim": "wide"})
    assert "config.json: architecture.latent_dim: found 'wide'" in refusal(folder)
    change(folder, architecture={k: v for k, v in architecture.items() if k != "hidden"})
    assert "config.json: architecture.hidden: missing" in refusal(folder)


def test_a_newer_schema(folder: Path) -> None:
    change(folder, schema_version=2)
    assert "config.json: schema_version is 2, this version reads up to 1" in refusal(folder)


def test_an_unknown_type(folder: Path) -> None:
    change(folder, type="Oracle")
    assert "config.json: type is 'Oracle', expected one of" in refusal(folder)


@pytest.mark.parametrize("key", ["schema_version", "type", "architecture"])
def test_missing_keys(folder: Path, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    assert refusal(folder) == f"{path}: missing keys ['{key}']"


@pytest.mark.parametrize("value", ["1", None, 0, True])
def test_a_schema_version_that_never_was(folder: Path, value: Any) -> None:
    change(folder, schema_version=value)
    assert f"config.json: schema_version is {value!r}" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_config_that_is_no_mapping(folder: Path, text: str) -> None:
    path = folder / "config.json"
    path.write_text(text)
    assert refusal(folder).startswith(f"{path}: ")


def test_observations_of_another_size(folder: Path) -> None:
    message = refusal(folder, observation_dim=11)
    assert message == f"{folder / 'config.json'}: the model reads observations of 3 numbers, the data has 11"


def test_an_artifact_of_another_kind(folder: Path) -> None:
    for load, name in ((load_policy, "Policy"), (load_dynamics_encoder, "DynamicsEncoder")):
        with pytest.raises(ArtifactError, match=f"config.json: type is IntentEncoder, expected {name}"):
            load(folder)


def test_provenance(tmp_path: Path) -> None:
    values = provenance(tmp_path)
    assert set(values) == {"version", "revision", "torch"}
    assert values["revision"] is None  # no repository
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert provenance(tmp_path)["revision"] == commit[:12]
    (tmp_path / "file").write_text("two")
    assert provenance(tmp_path)["revision"] == commit[:12] + "+dirty"
