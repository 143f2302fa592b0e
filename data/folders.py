"""Output folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` that takes its place, flushed to disk, if the block does not raise.

    What lay at ``path`` before stays untouched until then, and is restored if the exchange itself was interrupted.
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
