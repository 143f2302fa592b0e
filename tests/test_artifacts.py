import ast
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Model, make
from safetensors.torch import load_file, save_file

from dynarep.pipeline.artifacts.storage import (
    SCHEMA_VERSION,
    ArtifactError,
    export_program,
    load_artifact,
    load_encoder_model,
    load_policy_model,
    provenance,
    read_metadata,
    save_artifact,
)
from dynarep.pipeline.methods.encoders.contrastive import DynamicsEncoder
from dynarep.pipeline.methods.encoders.icvf import IntentEncoder
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture

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
    """An intent encoder's artifact of schema version 1, whose weights say nothing of themselves, to be damaged."""
    model = make("intent")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    architecture = {"replicas": 2, "observation_dim": 3, "hidden": [8], "latent_dim": 4, "variant": "ailot"}
    config = {"schema_version": 1, "type": "IntentEncoder", "architecture": architecture}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An artifact of this version, to be damaged."""
    save_artifact(tmp_path, make(request.param), METADATA)
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
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "metadata.json",
        "README.md",
    }
    metadata = json.loads((folder / "metadata.json").read_text())
    assert {**metadata, "code": None} == {**METADATA, "code": None}
    assert len(metadata["code"]) == 64
    config = json.loads((folder / "config.json").read_text())
    assert set(config) == {"schema_version", "room", "kind", "architecture", "sha256"}
    assert (config["schema_version"], config["room"], config["kind"]) == (2, model.room, model.kind)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["normaliser.mean"], model.normaliser.mean)
    card = (folder / "README.md").read_text()
    what = "policy" if isinstance(model, Policy) else "encoder"
    assert card.startswith(f"# {what}: {model.kind}\n")
    load = f'{what} = dynarep.load_{what}("artifacts/here")'
    for text in (
        "- **revision**: abc",
        "| observation_dim | 3 |",
        "| loss | 0.5 |",
        load,
        "`torch.export.load` unpickles",
    ):
        assert text in card


def test_equal_models_give_equal_bytes(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = saved
    save_artifact(tmp_path, model, METADATA)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("path", ['a"b', "a\\b", "a\nb```\n", "a😀'", "\udcff"])
def test_a_card_quotes_what_it_names(path: str, tmp_path: Path) -> None:
    name = "<script>|[x](y)`\n# z"
    save_artifact(
        tmp_path, make("intent"), {"path": path, name: name, "datasets": {name: "abc"}, "metrics": {name: 1.0}}
    )
    card = (tmp_path / "README.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    (call,) = (node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call))
    assert ast.literal_eval(call.args[0]) == path
    prose = card.replace(snippet, "")
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[x|^# z", prose, re.M)
    assert prose.count("```") == 2


def test_a_replica_alone(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, _ = saved
    x = inputs(model, 5)
    one = model.replica_rows([1])
    assert one.architecture.replicas == 1
    if isinstance(model, IntentEncoder):
        expected = model.embed(x[0][None])[1]
    elif isinstance(model, DynamicsEncoder):
        expected = model.phi(x[0][None], x[1][None])[1]
    else:
        expected = model.act(x[0][None])[1]
    torch.testing.assert_close(one(*x), expected)
    assert not torch.allclose(one(*x), model(*x))
    export_program(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    assert {len(value) for name, value in program.state_dict.items() if "weight" in name} == {1}


def test_what_draws_at_random_is_not_exported(tmp_path: Path) -> None:
    bounds = {"action_low": (-1.0, 0.0), "action_high": (1.0, 5.0)}
    with pytest.raises(ArtifactError, match="uniform: draws at random or keeps a state"):
        export_program(Uniform(UniformArchitecture(replicas=1, observation_dim=3, **bounds)), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def is_pickle(content: bytes) -> bool:
    """Whether a file is one, as ``torch.save`` and ``pickle.dump`` write them."""
    try:
        return bool(content) and any(operation.name == "STOP" for operation, *_ in pickletools.genops(content))
    except Exception:  # not one
        return False


def test_nothing_that_is_written_is_a_pickle(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = saved
    assert is_pickle(pickle.dumps(METADATA))
    for path in folder.iterdir():
        assert not is_pickle(path.read_bytes()), path
        assert not zipfile.is_zipfile(path), path
    export_program(model, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as program:
        assert [name for name in program.namelist() if is_pickle(program.read(name))] == []
    torch.save({"a": 1}, tmp_path / "saved.pt")
    with zipfile.ZipFile(tmp_path / "saved.pt") as saved_by_torch:
        assert any(is_pickle(saved_by_torch.read(name)) for name in saved_by_torch.namelist())


def test_no_pickle_is_needed(saved: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled something")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_artifact(saved[1])


GOLDEN = Path(__file__).parent / "data" / "artifacts-v1"


@pytest.mark.parametrize("kind", KINDS)
def test_artifacts_of_schema_version_1_compute_what_they_did(kind: str) -> None:
    """Written, with what they compute, by the code before the second version."""
    classes = {"intent": IntentEncoder, "dynamics": DynamicsEncoder, "policy": Policy}
    model = load_artifact(GOLDEN / kind, observation_dim=11)
    assert type(model) is classes[kind]
    assert model.architecture.replicas == 2
    assert "hopper-tiny" in read_metadata(GOLDEN / kind)["datasets"]
    expected = json.loads((GOLDEN / kind / "expected.json").read_text())
    x = [torch.tensor(expected["observation"])] + [torch.tensor(expected["action"])] * (kind == "dynamics")
    torch.testing.assert_close(model(*x), torch.tensor(expected["output"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_artifacts_of_schema_version_2_compute_what_they_did(kind: str) -> None:
    folder = GOLDEN.with_name("artifacts-v2") / kind
    model = load_artifact(folder, observation_dim=3)
    assert read_metadata(folder)["stage"] == f"golden/{kind}"
    expected = json.loads((folder / "expected.json").read_text())
    found = model(*map(torch.tensor, expected["inputs"]))
    torch.testing.assert_close(found, torch.tensor(expected["output"]), rtol=1e-5, atol=1e-6)


def test_every_schema_version_has_its_golden_files() -> None:
    """With a new version comes ``save_artifact`` of ``tests.models`` by the code before it."""
    kept = {path.name for path in GOLDEN.parent.glob("artifacts-v*")}
    assert kept == {f"artifacts-v{version}" for version in range(1, SCHEMA_VERSION + 1)}


def test_an_artifact_moves_to_this_version(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        old = load_artifact(GOLDEN / kind)
        save_artifact(tmp_path / kind, old, {})
        new = load_artifact(tmp_path / kind)
        assert new.architecture == old.architecture
        assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in old.state_dict().items())


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
    batches = {kind: [inputs(model, size) for size in (1, 2, 7)] for kind, (model, _) in all_saved.items()}
    for kind, (model, _) in all_saved.items():
        export_program(model, tmp_path / f"{kind}.pt2")
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
for kind, batches in torch.load("in.pt", weights_only=True).items():
    module = torch.export.load(kind + ".pt2").module()
    results[kind] = [module(*x) for x in batches]
torch.save(results, "out.pt")
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    for kind, (model, _) in all_saved.items():
        for x, y in zip(batches[kind], found[kind], strict=True):
            assert len(y) == len(x[0])
            torch.testing.assert_close(y, model(*x))


@pytest.mark.parametrize(("variant", "replica"), [("icvf", 0), ("ailot", 1)])
def test_a_few_lines_of_torch_are_enough(variant: str, replica: int, tmp_path: Path) -> None:
    """Those of docs/artifact-format.md, where dynarep cannot be imported."""
    intent, policy = make("intent"), make("policy")
    assert isinstance(intent, IntentEncoder)
    intent = type(intent)(replace(intent.architecture, variant=variant))
    torch.nn.init.normal_(intent.normaliser.mean)
    for name, model in (("pretrain/intent", intent), ("learn/bc", policy)):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        save_artifact(tmp_path / "artifacts" / name, model, {})
    s = torch.randn(5, 3)
    expected = {"latent": intent.embed(s[None])[replica], "action": policy.act(s[None])[replica]}
    text = (Path(__file__).parents[1] / "docs" / "artifact-format.md").read_text()
    (snippet,) = (found for found in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "load_file" in found)
    snippet = snippet.replace("replica = 0", f"replica = {replica}")
    snippet = snippet.replace("torch.zeros(4, 11)", f"torch.tensor({s.tolist()})")
    program = (
        "import sys; sys.modules['dynarep'] = None\n"
        f"{snippet}\n"
        "json.dump({'latent': latent.tolist(), 'action': action.tolist()}, open('found.json', 'w'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), value.detach(), rtol=1e-5, atol=1e-5)


def read(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    return load_artifact(folder), read_metadata(folder)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ArtifactError) as error:
        load_artifact(folder, **options)
    return str(error.value)


def test_the_undamaged_artifact_loads(folder: Path) -> None:
    assert isinstance(load_encoder_model(folder, observation_dim=3), IntentEncoder)


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
    assert refusal(folder) == f"{path}: calibration: found shape (5,), expected (2,)"
    save_file({**weights, "../../extra": torch.ones(5)}, path)
    assert refusal(folder) == f"{path}: unknown weights '../../extra'"


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
    change(folder, schema_version=3)
    assert "config.json: schema_version is 3, this version reads up to 2" in refusal(folder)


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


def test_an_artifact_of_another_room(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config.json: found an encoder of kind icvf, expected a policy"):
        load_policy_model(folder)
    (tmp_path / "policy").mkdir()
    save_artifact(tmp_path / "policy", make("policy"), {})
    with pytest.raises(ArtifactError, match=r"config.json: found a policy of kind deterministic, expected an encoder"):
        load_encoder_model(tmp_path / "policy")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "change_to", "message"),
    [
        ("psi.layers.0.weight", lambda x: x * NAN, "found a number that is not finite"),
        ("normaliser.mean", lambda x: x * INF, "found a number that is not finite"),
        ("normaliser.std", lambda x: -x, "found a negative deviation"),
        ("normaliser.std", lambda x: x * 0 - 0.001, "found a negative deviation"),
        ("calibration", lambda x: -x, "expected positive numbers"),
        ("calibration", lambda x: x[:, None], r"found shape \(2, 1\), expected \(2,\)"),
        ("psi.layers.0.weight", lambda x: x.double(), "found torch.float64, expected torch.float32"),
        ("psi.layers.0.weight", lambda x: x.half(), "found torch.float16, expected torch.float32"),
        ("psi.layers.0.weight", lambda x: x > 0, "found torch.bool, expected torch.float32"),
        ("psi.layers.1.bias", lambda x: x.int(), "found torch.int32, expected torch.float32"),
    ],
)
def test_weights_that_no_model_learned(folder: Path, name: str, change_to: Any, message: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, name: change_to(weights[name]).contiguous()}, path)
    assert re.search(f"{re.escape(str(path))}: {re.escape(name)}: .*{message}", refusal(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("replicas", value) for value in (0, -1, 10**9, 10**19, "2", 2.0, True, None)),
        *(("observation_dim", value) for value in (0, -3, 10**12, "3", None)),
        *(
            ("hidden", value)
            for value in ([0], [-1], [10**9], [10**6, 10**6], [8] * 100_000, 8, "8", None, ["a"], [8.0])
        ),
        *(("latent_dim", value) for value in (0, -1, 10**10, None)),
        *(("variant", value) for value in ("x", None, 5)),
    ],
)
def test_architectures_that_no_model_has(folder: Path, key: str, value: Any) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    change(folder, architecture={**architecture, key: value})
    began = time.monotonic()
    message = refusal(folder)
    assert time.monotonic() - began < 5
    assert f"architecture.{key}" in message
    assert str(folder) in message
    assert len(message) < 2000


def test_large_architectures_without_the_weights_for_it(folder: Path) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    for key, value in (("hidden", [16_000, 16_000]), ("observation_dim", 10**7), ("replicas", 60_000)):
        change(folder, architecture={**architecture, key: value})
        assert "model.safetensors: " in refusal(folder) or "asks for more than" in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("intent", "variant", "icvf"), ("dynamics", "positive", False), ("policy", "action_high", [1.0, 4.0])],
)
def test_swapped_options(kind: str, key: str, value: Any, tmp_path: Path) -> None:
    """They change what the same weights compute; the weights know with which they were saved."""
    save_artifact(tmp_path, make(kind), {})
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    change(tmp_path, architecture={**architecture, key: value})
    assert f"config.json: architecture.{key}: found {value!r}, the weights were saved with" in refusal(tmp_path)


def test_bounds_that_contradict_each_other(tmp_path: Path) -> None:
    save_artifact(tmp_path, make("policy"), {})
    config = json.loads((tmp_path / "config.json").read_text())
    old = {"schema_version": 1, "type": "Policy", "architecture": {**config["architecture"], "action_high": [1.0, 4.0]}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")  # says nothing of itself
    assert "model.safetensors: high: found other bounds than architecture.action_high" in refusal(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "high": -weights["high"]}, tmp_path / "model.safetensors")
    assert "low, high: found a lower bound that is not below the upper one" in refusal(tmp_path)


def test_one_changed_bit(fresh: Path) -> None:
    path = fresh / "model.safetensors"
    content = path.read_bytes()
    for place in (0, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert refusal(fresh).startswith(f"{path}: damaged or truncated, or another file: sha256 is")
    path.write_bytes(content)
    load_artifact(fresh)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "artifact"}, "kind: found 'artifact', which is no kind of model"),
        ({"kind": "../../evil"}, "kind: found '../../evil', expected one of"),
        ({"kind": ["icvf"]}, "kind: found"),
        ({"room": "learners"}, "room is 'learners', expected encoders or policies"),
        ({"sha256": None}, "sha256 is"),
        ({"architecture": None}, "architecture"),
        ({"architecture": []}, "architecture"),
    ],
)
def test_configs_of_nothing(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_artifact(tmp_path, make("intent"), {})
    change(tmp_path, **values)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b"[" * 200_000,
        b"\xff",
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"{}}",
    ],
    ids=["twice", "nan", "long", "deep", "bytes", "utf-16", "bom", "more"],
)
@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
def test_what_is_no_json(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        read(folder)
    assert str(error.value).startswith(f"{folder / name}: not valid JSON: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metadata.json"])
@pytest.mark.parametrize("what", ["folder", "fifo", "device", "loop", "large"])
def test_what_is_no_file(name: str, what: str, folder: Path) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # takes no room
    else:
        path.symlink_to({"device": "/dev/zero", "loop": name}[what])
    with pytest.raises(ArtifactError) as error:
        read(folder)
    assert str(error.value).startswith(f"{path}: ")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file").startswith(
        f"{tmp_path / 'file' / 'config.json'}: cannot be read: Not a directory"
    )
    assert "cannot be read" in refusal(Path(f"{tmp_path}/a\0b"))


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.safetensors"):
        save_artifact(tmp_path, make("intent"), {})


def test_provenance(tmp_path: Path) -> None:
    values = provenance(tmp_path)
    assert set(values) == {"version", "revision", "torch"}
    assert values["revision"] is None  # no repository
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    (tmp_path / "dvc.lock").write_text("one")
    subprocess.run([*git, "add", "file", "dvc.lock"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert provenance(tmp_path)["revision"] == commit[:12]
    (tmp_path / "dvc.lock").write_text("what DVC writes while it runs")
    assert provenance(tmp_path)["revision"] == commit[:12]
    (tmp_path / "file").write_text("two")
    assert provenance(tmp_path)["revision"] == commit[:12] + "+dirty"
