"""Output folders and files that appear complete or not at all, and files that are read as a whole within bounds."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

from dynarep.configs.params import open_file, read_file
from dynarep.data.schema import DataError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of a disk, which say nothing about the file that was written."""


def read_content(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        DataError: if there is none, or it is something else or larger.
    """
    try:
        return read_file(path, limit)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def digest_of(path: Path) -> str:
    """SHA-256 of a regular file in hexadecimal, computed once for each state of the file.

    Raises:
        OSError: if there is none, or it is empty or something else; the error names the file.
    """
    with open_file(path) as file:
        state = os.fstat(file.fileno())
    if not state.st_size:  # files of /proc are, and have no end
        raise OSError(errno.EINVAL, "found an empty file", str(path))
    return _digest_of(path, (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@cache
def _digest_of(path: Path, state: tuple[int, ...]) -> str:
    with open_file(path) as file:
        return file_digest(file, "sha256").hexdigest()


def parse_json(content: bytes | str, where: Path | str) -> Any:
    """What a JSON text says: UTF-8, every key once, finite numbers.

    Args:
        content: the text.
        where: it was read from, for messages.

    Raises:
        DataError: if it is something else, or is nested too deeply.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_number, parse_float=_number)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{where}: not valid JSON: found values nested too deeply") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for ``json.loads``.

    Raises:
        ValueError: if a key stands there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"found the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"found {text}, expected finite numbers")
    return number


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` that takes its place, flushed to disk, if the block does not raise.

    What lay at ``path`` before stays untouched until then, and is restored if the exchange itself was interrupted.

    Raises:
        OSError: if the disk is full or fails; the error names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():  # an earlier run was stopped between the two renames below
        old.rename(path)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir()
    try:
        with disk_errors_named(path):
            yield new
            for entry in (*new.rglob("*"), new):
                _flush(entry)
            if path.exists():
                path.rename(old)
            new.rename(path)
            _flush(path.parent)
    finally:
        if not path.exists() and old.exists():
            old.rename(path)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside ``path`` that takes its place, flushed to disk, if the block does not raise.

    Raises:
        OSError: if the disk is full or fails; the error names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with disk_errors_named(path):
            yield new
            _flush(new)
            new.replace(path)
            _flush(path.parent)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Have an error of the disk that names no file name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in DISK:
            error.filename = str(path)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
