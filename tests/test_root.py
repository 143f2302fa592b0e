"""The package ``dynarep`` itself: ``pipeline/root/__init__.py``, and the ways in which it is installed."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "pipeline" / "root" / "__init__.py"
FOLDERS = ("pipeline", "stages", "data", "configs")


@pytest.fixture(scope="module")
def root() -> ModuleType:
    spec = spec_from_file_location("root", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_three_lists_agree(root: ModuleType) -> None:
    (types,) = (node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    imports = [node for node in types.body if isinstance(node, ast.ImportFrom)]
    assert {node.module: tuple(alias.name for alias in node.names) for node in imports} == root._HOMES
    names = [name for names in root._HOMES.values() for name in names]
    assert sorted([*names, "__version__"]) == sorted(root.__all__)


def test_every_name_is_there(root: ModuleType) -> None:
    for name in root.__all__:
        assert getattr(root, name) is not None
        assert name in dir(root)
    assert root.load_encoder is importlib.import_module("dynarep.pipeline.artifacts.pretrained").load_encoder
    with pytest.raises(AttributeError, match="has no attribute 'load_decoder'"):
        _ = root.load_decoder


def test_every_package_is_installed() -> None:
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(("dynarep", *file.parent.relative_to(REPOSITORY).parts))
        for folder in FOLDERS
        for file in (REPOSITORY / folder).rglob("__init__.py")
        if file != SOURCE
    }
    assert {"dynarep", *found} == set(tools["packages"])


LIGHT = """
import sys
before = set(sys.modules)
import dynarep
assert dynarep.__file__.endswith("__init__.py"), dynarep.__file__
assert "load_encoder" in dir(dynarep)
heavy = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"dynarep"}
assert not heavy, heavy
"""


def call(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """What a command prints that must succeed, with nothing on the path but ``path``."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_light(tmp_path: Path) -> None:
    package = tmp_path / "dynarep"
    package.mkdir()
    for folder in FOLDERS:
        (package / folder).symlink_to(REPOSITORY / folder)
    (package / "__init__.py").symlink_to(SOURCE)
    call(sys.executable, "-c", LIGHT, cwd=REPOSITORY, path=tmp_path)
    call(sys.executable, "-c", LIGHT + "from dynarep import DataError", cwd=tmp_path, path=tmp_path)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intent encoder that the pipeline's functions made."""
    from synthetic import Chain

    import dynarep
    from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture

    folder = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(0)
    episodes = Chain(5).episodes("e", generator, lambda s, g: g.uniform(-1, 1, len(s)), count=20, steps=30)
    dynarep.write_episodes(folder / "chain", episodes)
    training = {"updates": 20, "updates_per_chunk": 10, "batch_size": 32}
    values = {"kind": "icvf", "dataset": "chain", "hidden": [16], "latent_dim": 4, "training": training}
    entry = dynarep.parse_entry("pretrain", "intent", values)
    (folder / "artifact").mkdir()
    run = dynarep.Run("pretrain/intent", 0, 2, folder / "artifact", folder / "checkpoints")
    dataset = dynarep.load_dataset(folder / "chain")
    made = dynarep.pretrain(entry, dataset, run)
    about = {"metrics": made.measured.metrics, "datasets": {"chain": dataset.fingerprint}}
    dynarep.save_artifact(folder / "artifact", made.encoder, about)
    states = made.encoder.normaliser.mean[None]
    (folder / "expected.json").write_text(json.dumps(made.encoder.eval()(states).tolist()))
    values = {"kind": "random", "dataset": "chain", "demonstrations": "chain"}
    (folder / "policy").mkdir()
    run = dynarep.Run("learn/random", 0, 2, folder / "policy", folder / "checkpoints")
    entry = dynarep.parse_entry("learn", "random", values)
    policy, facts = dynarep.learn(entry, dataset, dataset, None, None, run)
    dynarep.save_artifact(folder / "policy", policy, facts)
    bounds = {"action_low": (-1.0,) * 3, "action_high": (1.0,) * 3}
    (folder / "hopper").mkdir()
    hopper = Policy(PolicyArchitecture(replicas=2, observation_dim=11, hidden=(16,), **bounds))
    dynarep.save_artifact(folder / "hopper", hopper, {})
    return folder / "artifact"


USE = """
import sys
import dynarep

encoder = dynarep.load_encoder(sys.argv[1])
latent = encoder([encoder.model.normaliser.mean.tolist()])
steps = encoder.distance([1, 0, 0, 0, 0], [0, 0, 0, 0, 1])

import json, numpy
from pathlib import Path
policy = dynarep.load_policy(Path(sys.argv[1]).parent / "policy")
assert policy([1.0, 0, 0, 0, 0]).shape == (policy.spec.action_dim,)
expected = json.loads((Path(sys.argv[1]).parent / "expected.json").read_text())
numpy.testing.assert_allclose(latent, expected, rtol=1e-4, atol=1e-6)
assert steps.shape == () and steps > 0
print(dynarep.__file__, dynarep.__version__)
"""

PLAY = """
import dynarep, gymnasium
env, policy = gymnasium.make("Hopper-v5"), dynarep.load_policy("hopper", replica=1)
observation, _ = env.reset(seed=0)
for _ in range(10):
    observation, *_ = env.step(policy(observation))
"""

EXPORT = """
import dynarep, numpy, onnxruntime
from dynarep.pipeline.integrations.onnx import export_onnx
policy = dynarep.load_policy("hopper", replica=1)
export_onnx(policy, "hopper.onnx")
session = onnxruntime.InferenceSession("hopper.onnx")
for count in (1, 100):
    observations = numpy.random.default_rng(0).normal(size=(count, 11)).astype("float32")
    (actions,) = session.run(["action"], {"observation": observations})
    numpy.testing.assert_allclose(actions, policy(observations), rtol=0, atol=1e-5)
    numpy.testing.assert_allclose(actions[0], policy(observations[0]), rtol=0, atol=1e-5)
"""

CHECKED = """
import dynarep

reveal_type(dynarep.load_encoder("here"))
reveal_type(dynarep.__version__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "editable", "strict"])
def test_installed_in_a_fresh_environment(way: str, artifact: Path, tmp_path: Path) -> None:
    """Only the heavy packages are those of this interpreter."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 to build")
    copy, environment, elsewhere = tmp_path / "repository", tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "heavy.pth").write_text(str(Path(np.__file__).parents[1]))
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    if way == "wheel":
        call(*pip, "wheel", *offline, "--wheel-dir", tmp_path / "wheels", copy, cwd=tmp_path)
        (wheel,) = (tmp_path / "wheels").glob("dynarep-*.whl")
        call(*pip, "install", *offline, wheel, cwd=tmp_path)
        shutil.rmtree(copy)
        copy = elsewhere
    else:
        strict = ("--config-settings", "editable_mode=strict") if way == "strict" else ()
        call(*pip, "install", *offline, *strict, "--editable", copy, cwd=tmp_path)
    for cwd in (elsewhere, copy):
        call(python, "-c", LIGHT, cwd=cwd)
        printed = call(python, "-c", USE, artifact, cwd=cwd)
        assert printed.startswith(str(tmp_path)), printed
        assert "--smoke" in call(python, "-m", "dynarep.stages.relabel", "--help", cwd=cwd)
    call(python, "-W", "ignore", "-c", PLAY, cwd=artifact.parent)
    pytest.importorskip("onnxruntime", reason="needs dynarep[onnx]")
    call(python, "-W", "ignore", "-c", EXPORT, cwd=artifact.parent)
    typed = "from importlib.resources import files; assert (files('dynarep') / 'py.typed').is_file()"
    cards = "assert (files('dynarep.configs') / 'datasets' / 'hopper-expert.yaml').is_file()"
    call(python, "-c", f"{typed}; {cards}", cwd=elsewhere)
    pytest.importorskip("mypy", reason="needs mypy to check types")
    if way != "editable":  # which type checkers cannot follow
        (elsewhere / "checked.py").write_text(CHECKED)
        mypy = (sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache")
        printed = call(*mypy, "--follow-imports=silent", "checked.py", cwd=elsewhere)
        assert "pretrained.PretrainedIntent | dynarep.pipeline.artifacts.pretrained.PretrainedDynamics" in printed, (
            printed
        )
        assert 'Revealed type is "str"' in printed or 'Revealed type is "builtins.str"' in printed, printed
