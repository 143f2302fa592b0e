import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.graph import file_of, imported

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "data", "configs")
STAGES = ("prepare", "pretrain", "relabel", "learn", "evaluate", "demonstrate", "report")
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
    "lightning": ["pipeline/training/loop.py", "pipeline/training/watching.py"],
    "webdataset": ["data/shards.py"],
    "fsspec": ["data/remote.py"],
    "aiohttp": ["data/remote.py"],
    "gymnasium": [
        "data/writers/minari.py",
        "pipeline/playing/environments.py",
        "pipeline/playing/maze.py",
        "pipeline/integrations/gymnasium.py",
        "pipeline/integrations/stable_baselines3.py",
        "data/embedded/record.py",
    ],
    "gymnasium_robotics": ["pipeline/playing/environments.py"],
    "shimmy": ["pipeline/playing/environments.py"],
    "mujoco": ["data/embedded/record.py", "pipeline/playing/environments.py"],
    "h5py": [f"data/readers/{name}.py" for name in ("hdf5", "robomimic", "minari")]
    + ["data/writers/d4rl.py", "data/writers/robomimic.py"]
    + ["data/embedded/record.py", "data/embedded/record_maze.py"],
    "minari": ["data/readers/minari.py", "data/writers/minari.py"],
    "umap": ["pipeline/report/representation.py"],
    "pyarrow": ["data/readers/parquet.py", "data/writers/table.py", "data/writers/lerobot.py"],
    "dvc": ["pipeline/artifacts/locations.py", "pipeline/status.py"],
    "huggingface_hub": ["pipeline/artifacts/locations.py", "pipeline/integrations/hub.py"],
    "onnx": ["pipeline/integrations/onnx.py"],
    "stable_baselines3": ["pipeline/integrations/stable_baselines3.py", "data/embedded/record.py"],
    "sklearn": ["pipeline/integrations/scikit_learn.py"],
    "ray": ["data/parallel.py"],
    "cloudpickle": ["data/parallel.py"],
}
"""Who may import what; ``record.py`` made the embedded recordings and is imported by nothing."""

SHARED_ROOMS = {
    "dynarep.configs",
    *(f"dynarep.data.{name}" for name in ("replay", "resident", "sampling", "schema", "shards")),
    *(
        f"dynarep.pipeline.{name}"
        for name in (
            "method",
            "cloning",
            "dual_game",
            "search",
            "steps_to_go",
            "factorisation",
            "labelling",
            "transport",
            "measures",
            "nn",
            "training.config",
            "soft_actor_critic",
            "latent_actor_critic",
            "online_imitation",
            "playing.environments",
            "methods.policies",
        )
    ),
}
"""What the file of a method may import beside torch, numpy and the standard library."""

LAYERS = ("configs", "data", "pipeline", "stages")
"""From the bottom to the top; a file imports from its own layer and those below. Programs in ``pipeline/root`` are above all."""


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


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_itself_and_those_below(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for path, names in SOURCES.items():
        if path.startswith(f"{layer}/") and not path.startswith(("data/embedded/", "pipeline/root/")):
            for other in above:
                assert not within(names, f"dynarep.{other}"), path
    if layer == "stages":
        assert not {p for p, names in SOURCES.items() if p.startswith("stages/") and within(names, "dynarep.stages")}


def test_nothing_imports_the_program_that_made_the_embedded_recordings() -> None:
    for program in ("record", "record_maze"):
        assert not {path for path, names in SOURCES.items() if within(names, f"dynarep.data.embedded.{program}")}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other, sorted: the strongly connected components of more than one node."""

    def reach(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for following in graph.get(waiting.pop(), set()) - found:
                found.add(following)
                waiting.append(following)
        return found

    reached = {node: reach(node) for node in graph}
    found = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, set())))
        for node in graph
        if node in reached[node]
    }
    return sorted(map(list, found))


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}}) == [["b", "c"], ["d"]]


def test_no_import_circle_also_no_lazy_one() -> None:
    """Imports inside of functions count; those for type checkers alone do not."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        files = {file_of(name) for name in imported(ROOT / path)}
        graph[path] = {file for file in files if file is not None and file != path}
    assert sum(map(len, graph.values())) > 200
    assert circles(graph) == []


def test_nothing_inside_needs_the_root() -> None:
    """The packages work as a namespace, without ``dynarep/__init__.py``."""
    assert not {path for path, names in SOURCES.items() if "dynarep" in names}


METHODS = {
    path: names
    for path, names in SOURCES.items()
    if path.startswith("pipeline/methods/") and not path.endswith("__init__.py")
}


@pytest.mark.parametrize("path", METHODS)
def test_a_method_stands_alone(path: str) -> None:
    """It imports the shared rooms; of methods it knows the policies that it makes, and no other kind."""
    room = path.split("/")[2]
    allowed = SHARED_ROOMS - ({"dynarep.pipeline.methods.policies"} if room in ("policies", "encoders") else set())
    allowed |= {"dynarep.pipeline.registry"} if room == "policies" else set()  # a policy may read through any encoder
    packages = {".".join(name.split(".")[:n]) for name in allowed for n in range(1, name.count(".") + 1)}
    ours = within(METHODS[path], "dynarep")
    strange = {name for name in ours - packages if not any(within({name}, shared) for shared in allowed)}
    assert not strange
    others = {name.split(".")[0] for name in METHODS[path]} - {"dynarep", "torch", "numpy"} - sys.stdlib_module_names
    assert not others


def test_every_room_has_its_methods() -> None:
    assert {path.split("/")[2] for path in METHODS} == {"encoders", "learners", "policies", "rewards"}
    assert len(METHODS) > 20


SHARED_FILES = [
    *sorted(path for path in SOURCES if path.startswith("pipeline/nn/")),
    *(f"pipeline/{name}.py" for name in ("transport", "factorisation", "measures", "method", "registry")),
    *sorted(path for path in SOURCES if path.startswith("pipeline/training/")),
]


@pytest.mark.parametrize("path", SHARED_FILES)
def test_what_methods_share_knows_no_method(path: str) -> None:
    """``registry`` finds kinds by the names of their files, and so does whoever asks it."""
    assert not within(SOURCES[path], "dynarep.pipeline.methods")


@pytest.mark.parametrize("path", [path for path in SHARED_FILES if path.startswith("pipeline/nn/")])
def test_networks_and_functions_know_no_data(path: str) -> None:
    assert not within(SOURCES[path], "dynarep.data")


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
