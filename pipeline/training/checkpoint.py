"""Checkpoints for resuming: sealed with a digest, used only where they belong to the training at hand."""

from __future__ import annotations

import sys
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch

from dynarep.configs.params import open_file, read_file


def seal(path: Path) -> None:
    """Write the digest of a checkpoint beside it."""
    path.with_suffix(".sha256").write_text(_digest(path))


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return file_digest(file, "sha256").hexdigest()


def is_sealed(path: Path) -> bool:
    """Whether a checkpoint is what was written."""
    mark = path.with_suffix(".sha256")
    return mark.is_file() and read_file(mark, 64).decode() == _digest(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a training kept of itself, without a pickle.

    Raises:
        ValueError: if the checkpoint is not what was written; reading it raises other errors by the damage.
    """
    if not is_sealed(path):
        raise ValueError("it is not what was written")
    return dict(torch.load(path, map_location="cpu", weights_only=True)["dynarep"])


def saved_updates(path: Path, key: str, code: str) -> int | None:
    """How many updates the checkpoint holds, if it belongs to this training; where one does not, say why."""
    if not path.exists():
        return None
    try:
        kept = read_checkpoint(path)
        if kept["key"] == key and kept["code"] == code:
            return int(kept["updates"])
        reason = f"it was made with other {'code' if kept['key'] == key else 'settings, seeds or data'}"
    except Exception as error:
        reason = str(error) or type(error).__name__
    print(f"{relative(path)}: not a usable checkpoint ({reason}); training starts anew", file=sys.stderr)
    return None


def relative(path: Path) -> Path:
    """The path as a person in the current folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
