"""Typed parameters: one frozen dataclass per stage, filled from a section of ``params.yaml``, strict about every key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

__all__ = ["Field", "ParamsError", "config", "read_section", "read_yaml", "validate"]

T = TypeVar("T")


class ParamsError(ValueError):
    """A params file is unreadable or a value in it is not allowed; the message names file, key, value and expectation."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def config(cls: type[T]) -> type[T]:
    """Decorate a class as a frozen, keyword-only configuration that refuses unknown keys."""
    return dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=False))(cls)  # type: ignore[return-value]


def validate(kind: type[T], values: Any, where: str) -> T:
    """Build ``kind`` from plain ``values``.

    Raises:
        ParamsError: with one line per wrong key: ``where.key: what was found, what is expected``.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join([where, *(str(part) for part in problem["loc"])])
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                known = (
                    ", ".join(field.name for field in dataclasses.fields(kind))
                    if dataclasses.is_dataclass(kind)
                    else ""
                )
                lines.append(
                    f"{key}: unknown key; {where} knows {known}" if len(problem["loc"]) == 1 else f"{key}: unknown key"
                )
            elif problem["type"] in ("missing", "missing_argument"):
                lines.append(f"{key}: missing")
            else:
                lines.append(f"{key}: found {problem['input']!r}, {problem['msg']}")
        raise ParamsError("\n".join(lines)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ParamsError: if the file is missing, is not YAML or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def read_section(path: Path, section: str, kind: type[T]) -> T:
    """Read one section of a params file as ``kind``.

    Raises:
        ParamsError: if the section is missing or does not fit ``kind``.
    """
    values = read_yaml(path)
    if section not in values:
        raise ParamsError(f"{path}: no section {section!r}; found {', '.join(map(str, values))}")
    return validate(kind, values[section] if values[section] is not None else {}, f"{path}: {section}")
