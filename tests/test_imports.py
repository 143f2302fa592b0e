import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "data", "configs")
STAGES = ("prepare", "pretrain_dynamics", "pretrain_intent", "imitate", "relabel", "offline_rl", "evaluate", "report")
HEAVY = (
    "torch",
    "lightning",
    "webdataset",
    "gymnasium",
    "mujoco",
    "h5py",
    "scipy",
    "matplotlib",
    "PIL",
    "tensorboard",
    "dvc",
    "ray",
)

OWNERS = {
    "lightning": ["pipeline/engine.py", "pipeline/watching.py"],
    "webdataset": ["data/shards.py"],
    "fsspec": ["data/remote.py"],
    "aiohttp": ["data/remote.py"],
    "gymnasium": [
        "pipeline/environments.py",
        "pipeline/integrations/gymnasium.py",
        "pipeline/integrations/stable_baselines3.py",
        "data/embedded/record.py",
    ],
    "gymnasium_robotics": ["pipeline/environments.py"],
    "shimmy": ["pipeline/environments.py"],
    "mujoco": ["data/embedded/record.py"],
    "h5py": [f"data/readers/{name}.py" for name in ("hdf5", "robomimic", "minari")] + ["data/embedded/record.py"],
    "minari": ["data/readers/minari.py"],
    "umap": ["pipeline/report/representation.py"],
    "pyarrow": ["data/readers/parquet.py"],
    "dvc": ["pipeline/locations.py", "pipeline/status.py"],
    "huggingface_hub": ["pipeline/locations.py", "pipeline/integrations/hub.py"],
    "onnx": ["pipeline/integrations/onnx.py"],
    "stable_baselines3": ["pipeline/integrations/stable_baselines3.py", "data/embedded/record.py"],
    "sklearn": ["pipeline/integrations/scikit_learn.py"],
    "ray": ["data/parallel.py"],
    "cloudpickle": ["data/parallel.py"],
}
"""Who may import what; ``record.py`` made the embedded recordings and is imported by nothing."""

METHOD_SIBLINGS = {f"dynarep.pipeline.{name}" for name in ("functional", "networks", "encoders", "transport")} | {
    "dynarep.configs.params"
}


def modules(text: str) -> set[str]:
    """Names of all modules that a source imports, anywhere in it; ``from a import b`` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


SOURCES = {
    path.relative_to(ROOT).as_posix(): modules(path.read_text())
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


def test_the_sources_are_found() -> None:
    assert {f"stages/{stage}.py" for stage in STAGES} <= set(SOURCES)
    assert len(SOURCES) > 30
    assert modules("def f():\n    from a.b import c\n    import d.e") == {"a.b", "a.b.c", "d.e"}
    assert modules("from . import x") == {".", "..x"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_is_imported_by_a_name_that_others_may_have(package: str) -> None:
    wrong = {path: found for path, names in SOURCES.items() if (found := within(names, package))}
    assert not wrong
    tests = {p.name: found for p in (ROOT / "tests").glob("*.py") if (found := within(modules(p.read_text()), package))}
    assert not tests


def test_no_relative_imports() -> None:
    assert not {path for path, names in SOURCES.items() if any(name.startswith(".") for name in names)}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_its_owners(library: str) -> None:
    importers = {path for path, names in SOURCES.items() if within(names, library)}
    assert importers <= set(OWNERS[library])


def test_stages_use_the_pipeline_and_the_pipeline_uses_the_data() -> None:
    for path, names in SOURCES.items():
        if not path.startswith("stages/"):
            assert not within(names, "dynarep.stages"), path
        if path.startswith(("data/", "configs/")):
            assert not within(names, "dynarep.pipeline"), path
    assert not {path for path, names in SOURCES.items() if within(names, "dynarep.data.embedded.record")}


def test_nothing_inside_needs_the_root() -> None:
    """The packages work as a namespace, without ``dynarep/__init__.py``."""
    assert not {path for path, names in SOURCES.items() if "dynarep" in names}


def test_methods_stand_alone() -> None:
    methods = {path: names for path, names in SOURCES.items() if path.startswith("pipeline/methods/")}
    assert len(methods) > 6
    for path, names in methods.items():
        ours = {name for name in within(names, "dynarep") if ".".join(name.split(".")[:3]) not in METHOD_SIBLINGS}
        assert not ours, path
        others = {name.split(".")[0] for name in names} - {"dynarep", "torch"} - sys.stdlib_module_names
        assert not others, path


def test_networks_and_functions_know_no_method() -> None:
    for name in ("functional", "networks", "encoders", "transport", "artifacts", "engine"):
        assert not within(SOURCES[f"pipeline/{name}.py"], "dynarep.pipeline.methods")
        assert not within(SOURCES[f"pipeline/{name}.py"], "dynarep.data")


def test_help_is_light_and_is_not_shadowed(tmp_path: Path) -> None:
    """Every stage program answers --help without heavy imports, in a folder with packages of the same names."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('shadowed')\n")
    program = f"""
import runpy, sys
for stage in {STAGES!r}:
    sys.argv = [stage, "--help"]
    try:
        runpy.run_module(f"dynarep.stages.{{stage}}", run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0
    else:
        raise AssertionError(f"{{stage}} did not stop")
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (stage, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        assert f"usage: python -m dynarep.stages.{stage}" in done.stdout
    assert done.stdout.count("--smoke") >= len(STAGES)
