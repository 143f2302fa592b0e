"""Kinds by name: a kind is a file of ``pipeline/methods/<room>``, imported when it is asked for.

So a stage loads, and depends on, the file of its own kind and no other.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from dynarep.configs.params import ParamsError
from dynarep.pipeline.method import METHODS, Method
from dynarep.pipeline.nn.models import MODELS, Model

ROOMS = {"pretrain": "encoders", "relabel": "rewards", "learn": "learners"}
"""Sections of a params file and the rooms of their kinds."""


def kinds(room: str) -> list[str]:
    """All kinds of a room."""
    folder = Path(__file__).parent / "methods" / room
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def check_kind(room: str, kind: object, where: str) -> str:
    """A kind of a room; errors as ``find_method``."""
    known = kinds(room)
    if not isinstance(kind, str) or kind not in known:
        raise ParamsError(f"{where}: found {kind!r}, expected one of {', '.join(known)}")
    return kind


def _load(room: str, kind: object, where: str) -> str:
    found = check_kind(room, kind, where)
    import_module(f"dynarep.pipeline.methods.{room}.{found}")
    return found


def find_method(room: str, kind: object, where: str) -> type[Method]:
    """The method of a kind.

    Raises:
        ParamsError: if there is none; the message starts with ``where`` and names all that there are.
    """
    return METHODS[room, _load(room, kind, where)]


def find_model(room: str, kind: object, where: str) -> type[Model]:
    """The model class of a kind; errors as ``find_method``."""
    return MODELS[room, _load(room, kind, where)]
