"""METHODS.md points to functions, files and tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dynarep.pipeline.registry import ROOMS, kinds

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "METHODS.md").read_text()
NAME = re.compile(r"`([A-Za-z_][\w.]*)`")


def definitions(path: Path) -> set[str]:
    """Functions, classes, their methods and fields, and constants of a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
        found.update(names)
        if isinstance(node, ast.ClassDef):
            inside = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{name}" for name in inside} | {f".{name}" for name in inside}
    return found


def tables() -> list[tuple[str, list[str]]]:
    """The header and rows of each table."""
    blocks = re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE)
    return [(lines[0], lines[2:]) for block in blocks if len(lines := block.splitlines()) > 2]


def pointers() -> list[tuple[str, str]]:
    """(file, name) of every function that a table of equations names."""
    found = []
    for header, rows in tables():
        cells = [cell.strip() for cell in header.strip("|").split("|")]
        column = next((i for i, cell in enumerate(cells) if cell.startswith("function")), None)
        if column is None:
            continue
        stated = re.search(r"in `([\w/.]+\.py)`", cells[column])
        default = stated.group(1) if stated else None
        for row in rows:
            parts = re.split(r"(?<!\\)\|", row.strip("|"))
            cell = parts[column]
            homes = re.findall(r"in `([\w/.]+\.py)`", cell)
            for piece in [cell] if len(homes) == 1 and ";" not in cell else re.split(r"[;,]", cell):
                home = re.search(r"in `([\w/.]+\.py)`", piece)
                file = home.group(1) if home else default
                default = default if stated else file  # without a file in the header, that of the row before
                names = [name for name in NAME.findall(piece) if not name.endswith(".py") and ":" not in name]
                found += [(file, name) for name in names if file and not re.match(r"(with|of)\b", piece.strip())]
    return found


@pytest.mark.parametrize(("file", "name"), sorted(set(pointers())))
def test_a_function_is_in_its_file(file: str, name: str) -> None:
    known = definitions(ROOT / file)
    options = ("power", "bounds", "replay_ratio", "terms", "fine_tune", "delayed", "TD3BC")
    assert name in known or name in options or name.replace(".advantage", "OccupancyValue.advantage") in known


def test_pointers_are_found() -> None:
    assert len(pointers()) > 50
    assert ("pipeline/methods/encoders/icvf.py", "icvf_loss") in pointers()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:pipeline|data|stages|tests)/[\w/.]+\.py)`", TEXT))))
def test_a_file_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_every_kind_has_its_row() -> None:
    rows = re.findall(r"\| `(\w+)/(\w+)\.py` \| `(\w+)`, `(\w+)` \| `(\w+\.py)` \|", TEXT)
    assert {(room, kind) for room, kind, *_ in rows} == {
        (room, kind) for room in ROOMS.values() for kind in kinds(room)
    }
    for room, file, section, kind, test in rows:
        assert file == kind
        assert ROOMS[section] == room
        assert (ROOT / "tests" / test).is_file(), test


def test_tests_that_are_named_are_there() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXT)) - {"test_transport"}
    missing = {name for name in named if not re.search(rf"def {name}\b", written)}
    assert not missing
