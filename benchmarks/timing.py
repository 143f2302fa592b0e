"""Side-by-side timing: contenders of a group take turns in one process on one core, and medians are compared."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Work = Callable[[], float | tuple[float, float]]
"""Works for a while and returns how many units it did, and in how many seconds if not all of its time counts."""


class NotMeasured(Exception):  # noqa: N818
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way of doing the work of a group.

    Args:
        name: as shown.
        start: sets everything up, and returns what is timed.
        note: what is special about it, shown in the table.
    """

    name: str
    start: Callable[[], Work]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Contenders that do the same work.

    Args:
        name: of the group.
        unit: what is counted, per second.
        contenders: the first is this project, with which the others are compared.
        floor: arithmetic of one unit in floating point operations, or None.
        one_core: whether the process keeps to one core.
    """

    name: str
    unit: str
    contenders: Sequence[Contender]
    floor: Callable[[], float] | None = None
    one_core: bool = True


@dataclass
class Timing:
    """What was measured of a contender: units per second of each repeat, or why there is nothing."""

    name: str
    note: str
    rates: list[float] = field(default_factory=list)
    missing: str | None = None

    @property
    def median(self) -> float:
        """Units per second."""
        return statistics.median(self.rates)


def compare(group: Group, repeats: int) -> list[Timing]:
    """Time all contenders of a group in turns, ``repeats`` times after one untimed turn.

    On one core, NumPy computes in one thread where threadpoolctl is installed. A contender that cannot run here, as one whose
    packages are not installed, is reported as missing.
    """
    cores = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        if group.one_core:
            os.sched_setaffinity(0, {max(cores)})
            stack.callback(os.sched_setaffinity, 0, cores)
            with contextlib.suppress(ImportError):
                from threadpoolctl import threadpool_limits

                stack.enter_context(threadpool_limits(1, user_api="blas"))
        timings, work = [], {}
        for contender in group.contenders:
            timing = Timing(contender.name, contender.note)
            timings.append(timing)
            try:
                work[contender.name] = contender.start()
                work[contender.name]()
            except (ImportError, NotMeasured) as error:
                timing.missing = str(error)
                work.pop(contender.name, None)
        for _ in range(repeats):
            for timing in timings:
                if timing.missing is None:
                    started = time.perf_counter()
                    done = work[timing.name]()
                    seconds = time.perf_counter() - started
                    units, seconds = done if isinstance(done, tuple) else (done, seconds)
                    timing.rates.append(units / seconds)
    return timings


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()
