"""Typed parameters: one frozen dataclass per stage, filled from a section of ``params.yaml``, strict about every key.

YAML is read as both of its versions read it, or not at all: a word such as ``yes``, ``010`` or ``1:30``, which means a
truth value, an octal number or minutes to one version and text or another number to the other, is refused with its line.
Bounds on size, depth and the number of values after anchors are expanded keep a small file from becoming a large one.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

__all__ = [
    "ENVIRONMENT",
    "FLOAT_MAX",
    "LARGEST_NUMBER",
    "MOST_LAYERS",
    "MOST_REPLICAS",
    "NAME",
    "EnvironmentId",
    "Field",
    "Name",
    "ParamsError",
    "Widths",
    "check_name",
    "check_sections",
    "config",
    "open_file",
    "read_file",
    "read_section",
    "read_yaml",
    "validate",
]

T = TypeVar("T")

YAML_BYTES = 1_000_000
"""Largest YAML file that is read."""
DEPTH = 40
"""Deepest nesting of a YAML file."""
NODES = 50_000
"""Most values of a YAML file, those behind anchors counted wherever they are used."""
FLOAT_MAX = 3.4028234663852886e38
"""Largest float32, in which all numbers are used."""
INT_MAX = 2**63 - 1
LARGEST_NUMBER, MOST_REPLICAS, MOST_LAYERS = 1 << 24, 1 << 16, 256
"""Bounds of the numbers of an architecture."""
Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=LARGEST_NUMBER)], ...], Field(max_length=MOST_LAYERS)]
"""Of the hidden layers of a network."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
"""Names that become files or folders; in a tar a dot would start the suffix."""
Name = Annotated[str, Field(pattern=f"^(?:{NAME.pattern})$")]
ENVIRONMENT = re.compile(r"[A-Za-z0-9_:./-]{1,200}")
"""Ids of Gymnasium environments, with the module that registers one and a namespace, if there are any."""
EnvironmentId = Annotated[str, Field(pattern=f"^(?:{ENVIRONMENT.pattern})$")]


class ParamsError(ValueError):
    """A params file is unreadable or a value in it is not allowed; the message names file, key, value and expectation."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def config(cls: type[T]) -> type[T]:
    """Decorate a class as a frozen, keyword-only configuration that refuses unknown keys."""
    return dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=False))(cls)  # type: ignore[return-value]


def validate(kind: type[T], values: Any, where: str) -> T:
    """Build ``kind`` from plain ``values``, as JSON and YAML have them.

    Types are strict: text is no number, a truth value is no number, 1.5 and 1.0 are no integers; an integer is a float.

    Raises:
        ParamsError: with one line per wrong key: ``where.key: what was found, what is expected``.
    """
    try:
        _check_plain(values, where)
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except RecursionError:
        raise ParamsError(f"{where}: found values nested too deeply, expected a few levels") from None
    except TypeError as error:
        raise ParamsError(f"{where}: found a value that is not plain: {error}") from None
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
                lines.append(f"{key}: found {_shown(problem['input'])}, {problem['msg']}")
        raise ParamsError("\n".join(lines)) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


def _check_plain(values: Any, where: str) -> None:
    """Keys are text, and numbers are finite as float32 or int64."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            if not isinstance(key, str):
                raise ParamsError(f"{where}: found the key {_shown(key)}, expected text")
            _check_plain(value, f"{where}.{key}")
    elif isinstance(values, list | tuple):
        for i, value in enumerate(values):
            _check_plain(value, f"{where}.{i}")
    elif isinstance(values, float) and not abs(values) <= FLOAT_MAX:
        raise ParamsError(f"{where}: found {values}, expected a number within {FLOAT_MAX:.7g}, the largest float32")
    elif isinstance(values, int) and not -INT_MAX <= values <= INT_MAX:
        raise ParamsError(f"{where}: found an integer of {values.bit_length()} bits, expected at most {INT_MAX}")


def check_name(name: object, where: str, reserved: Collection[str] = ()) -> str:
    """A name that can become a file or folder, and nothing but one beside its siblings.

    Args:
        name: to check.
        where: it was found, for the message.
        reserved: names that mean something else there.

    Returns:
        The name.

    Raises:
        ParamsError: if it is no text, empty, too long, reserved, or has other characters than letters, digits, '-', '_'.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ParamsError(f"{where}: found {_shown(name)}, expected a name of at most 80 letters, digits, '-' and '_'")
    if name in reserved:
        raise ParamsError(f"{where}: found {name!r}, expected another name; reserved are {', '.join(sorted(reserved))}")
    return name


def check_sections(values: Mapping[str, Any], known: Collection[str], path: Path | str) -> None:
    """The sections of a file are among the known ones.

    Args:
        values: of the file.
        known: names of sections.
        path: of the file, for the message.

    Raises:
        ParamsError: with one line for each that is not; the line names the most similar known one.
    """
    lines = []
    for name in values:
        if name not in known:
            similar = get_close_matches(str(name), known, 1)
            advice = f"did you mean {similar[0]}?" if similar else f"expected one of {', '.join(known)}"
            lines.append(f"{path}: {name}: unknown section; {advice}")
    if lines:
        raise ParamsError("\n".join(lines))


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; never wait for a pipe, never read a device.

    Raises:
        OSError: if there is none, or it is something else; the error names the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a path with a null character, or with text that is none
        raise OSError(errno.EINVAL, f"not a path ({error})", _shown(str(path))) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "found a pipe, device or socket, expected a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: if there is none, it is something else or larger; the error names the file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"found {size:,} bytes, expected at most {limit:,}", str(path))
        content = file.read(size + 1)
    if len(content) != size:
        raise OSError(errno.EIO, f"found {len(content):,} bytes or more, expected {size:,}", str(path))
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ParamsError: if the file is missing, no regular file, too large, not YAML, ambiguous, or not a mapping.
    """
    try:
        text = read_file(path, YAML_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    try:
        loader = _Loader(text)
        try:
            values = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: found {type(values).__name__}, expected a mapping")
    return values


PLAIN = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "float": re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    "merge": re.compile("<<"),
}
"""Words that are not text, by their kind, in both versions of YAML; ``1e-4``, which YAML 1.1 takes for text, is a number."""

AMBIGUOUS = {
    "a truth value to YAML 1.1 and text to YAML 1.2; write true or false, or quote it": re.compile(
        r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"
    ),
    "a number in base 60 to YAML 1.1 and text to YAML 1.2; quote it": re.compile(
        r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    ),
    "an octal number to one version of YAML; write it in decimal, or quote it": re.compile(r"[-+]?0o?[0-9_]+"),
    "a number to one version of YAML and text to the other; write it in decimal, or quote it": re.compile(
        r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|0[0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?)"
    ),
    "no finite number": re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    "a date to YAML 1.1 and text to YAML 1.2; quote it": re.compile(
        r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(([Tt]|[ \t]+)[0-9]{1,2}:[0-9:.]*.*)?"
    ),
}
"""What words of these forms are."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without what nobody means."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._mark: Any = None
        self._sizes: dict[int, int] = {}
        """Values in each node that is complete, itself included."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise _problem(f"found the tag {event.tag}, expected a value without one", event.start_mark)
        self._depth += 1
        if self._depth > DEPTH:
            raise _problem(f"found values nested more than {DEPTH} deep", event.start_mark)
        self._mark = event.start_mark
        before = self._nodes
        is_alias = self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._sizes:
                raise _problem(f"found the anchor {event.anchor} within itself", event.start_mark)
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > NODES:
            raise _problem(f"found more than {NODES:,} values, anchors expanded", event.start_mark)
        self._depth -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is not yaml.ScalarNode:
            return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if implicit[0]:
            for name, pattern in PLAIN.items():
                if pattern.fullmatch(value):
                    return f"tag:yaml.org,2002:{name}"
            for meaning, pattern in AMBIGUOUS.items():
                if pattern.fullmatch(value):
                    raise _problem(f"found {_shown(value)}, which is {meaning}", self._mark)
        return "tag:yaml.org,2002:str"

    def construct_scalar(self, node: Any) -> Any:
        value: Any = super().construct_scalar(node)
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            raise _problem("found a null character or half a character in a text", node.start_mark)
        return value

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) > 20 or abs(int(text)) > INT_MAX:
            raise _problem(f"found the integer {_shown(text)}, expected at most {INT_MAX}", node.start_mark)
        return int(text)

    def construct_yaml_float(self, node: Any) -> float:
        text = self.construct_scalar(node)
        number = float(text)
        if not abs(number) <= FLOAT_MAX:
            raise _problem(
                f"found {_shown(text)}, expected at most {FLOAT_MAX:.7g}, the largest float32", node.start_mark
            )
        return number

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _problem(f"found the key {_shown(key.value)}, expected text", key.start_mark)
            if key.value in seen:
                raise _problem(f"found the key {_shown(key.value)} twice", key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _problem(text: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, mark)


def read_section(path: Path, section: str, kind: type[T]) -> T:
    """Read one section of a params file as ``kind``.

    Raises:
        ParamsError: if the section is missing or does not fit ``kind``.
    """
    values = read_yaml(path)
    if section not in values:
        raise ParamsError(f"{path}: no section {section!r}; found {', '.join(map(str, values))}")
    return validate(kind, values[section] if values[section] is not None else {}, f"{path}: {section}")
