"""Where a training runs: its device, and how this process treats memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""


def training_device() -> torch.device:
    """This process's GPU, the first one unless several processes share a node, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return torch.device("cuda", int(local) % torch.cuda.device_count())


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Let a CPU take numbers below 1e-38 as 0, as a GPU does, for a while.

    Adam's means of gradients that have become 0 decay into them within a thousand updates, and slow an update down several times.
    """
    kept = bool(torch.tensor(1e-39) * 1 != 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next update or coupling (a third faster on CPU); elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
