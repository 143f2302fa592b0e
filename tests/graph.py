"""What code each stage of dvc.yaml runs, told from the imports of its program. `python -m tests.graph` writes it there."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ROOMS = {"pretrain": "encoders", "relabel": "rewards", "learn": "learners"}
"""Stages whose programs import the file of their own kind by name."""

BY_CONTENT = {"pipeline/methods/encoders", "pipeline/methods/policies"}
"""Rooms of models. An artifact holds the digest of its model's file, so what reads it depends on that file by content."""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path: Path) -> set[str]:
    """Modules of this project that a file imports when it runs, anywhere in it."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.startswith("dynarep.")}


def file_of(module: str) -> str | None:
    """The file of a module of this project, from the root of the repository."""
    path = module.removeprefix("dynarep.").replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


def closure(start: str) -> set[str]:
    """All files that a file imports, directly or not, itself included; empty ones are left out."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [file for module in imported(ROOT / path) if (file := file_of(module))]
    return {path for path in found if (ROOT / path).read_text().strip()}


def needed(stage: str) -> set[str]:
    """Code that a stage runs beside the file of its own kind: of all kinds, what is in no room of kinds."""
    room = ROOMS.get(stage)
    starts = [f"stages/{stage}.py"]
    if room is not None:
        starts += [f"pipeline/methods/{room}/{path.name}" for path in (ROOT / "pipeline/methods" / room).glob("*.py")]
    files = set().union(*(closure(start) for start in starts))
    if room is not None:
        files = {path for path in files if not path.startswith(f"pipeline/methods/{room}/")}
    return files


def named(stage: str, dvc: dict) -> set[str]:
    """Files that the deps of a stage name; a folder stands for all in it."""
    definition = dvc["stages"][stage]
    files: set[str] = set()
    for dep in definition.get("do", definition).get("deps", []):
        path = ROOT / dep
        if path.is_dir():
            files |= {file.relative_to(ROOT).as_posix() for file in path.rglob("*.py")}
        elif dep.endswith(".py"):
            files.add(dep)
    return files


def read_dvc() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def folded(files: set[str]) -> list[str]:
    """The same with a folder in place of its files where all of them are meant."""
    lines: list[str] = []
    for folder in sorted({path.rpartition("/")[0] for path in files}):
        inside = {path for path in files if path.rpartition("/")[0] == folder}
        every = {
            file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob("*.py") if file.read_text().strip()
        }
        lines += [folder] if every <= inside and len(inside) > 2 else sorted(inside)
    return lines


MARK = "# code:"


def written(text: str) -> str:
    """dvc.yaml with the list of each stage's code, which follows the mark, made anew."""
    stage, skipping, lines = "", False, []
    for line in text.splitlines():
        if line.startswith("  ") and not line.startswith("   ") and line.endswith(":"):
            stage = line.strip(" :")
        if skipping and line.strip().startswith("- "):
            continue
        skipping = False
        lines.append(line)
        if line.strip().startswith(MARK):
            indent = " " * (len(line) - len(line.lstrip()))
            lines += [f"{indent}- {path}" for path in folded(needed(stage))]
            skipping = True
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = ROOT / "dvc.yaml"
    path.write_text(written(path.read_text()))
