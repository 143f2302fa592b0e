"""The same work on many shards: in this process, in several, or on a Ray cluster.

A shard of work is an episode range, a recording, a block of rollouts: an item with a name. The function is a pure one of
its item, with seeds that come from the item, so that a result depends neither on where nor on how often nor in which
order it was made, and a repetition is harmless.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
R = TypeVar("R")

CONNECT_SECONDS = 30.0


class ClusterError(ValueError):
    """A cluster cannot be used, or some shards could not be done; the message names them and the way out."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ClusterConfig:
    """Section ``cluster``: where work on shards is done. No result depends on it, and no stage of DVC either.

    Args:
        kind: ``local``, this machine, or ``ray``.
        address: of a running Ray cluster, ``host:port``, or ``auto`` for the one that this machine is a node of; null: that
            in ``RAY_ADDRESS``, else a cluster of this machine alone is started.
        workers: shards at a time, in as many processes; null: one shard, in this process, or on Ray as many as there are
            CPUs.
        retries: a shard that fails is done again up to so many times, unless its input is bad.
    """

    kind: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = Field(default=None, ge=1)
    retries: int = Field(default=3, ge=0)

    def __post_init__(self) -> None:
        if self.address is not None and self.kind != "ray":
            raise ValueError(f"address: found {self.address!r} with kind: {self.kind}, expected kind: ray")

    @property
    def in_process(self) -> bool:
        """Whether all is done in this process."""
        return self.kind == "local" and self.workers in (None, 1)

    def or_workers(self, workers: int) -> ClusterConfig:
        """With so many processes of this machine, where it is local and says nothing of them."""
        return dataclasses.replace(self, workers=workers) if self.kind == "local" and self.workers is None else self


IN_PROCESS = ClusterConfig()


def map_shards(
    fn: Callable[[T], R], items: Mapping[str, T], cluster: ClusterConfig = IN_PROCESS
) -> Iterator[tuple[str, R]]:
    """Names and results of all items, each as soon as it is there.

    A shard whose process or node dies, or that fails, is done again, on Ray on a node that is left. One that fails every
    time does not stop the others: after the last of them an error names it. A ``ValueError`` says that the input is bad,
    so the shard is not tried again.

    Args:
        fn: pure, picklable with cloudpickle; what it carries (``functools.partial``) is sent once, not with every item.
        items: by name; picklable, as are the results.
        cluster: where to work.

    Raises:
        ClusterError: at once if the cluster cannot be reached; at the end if shards failed, with their names.
    """
    work = _on_ray if cluster.kind == "ray" else _here if cluster.in_process else _in_processes
    failures: dict[str, _Failure] = {}
    for name, result in work(fn, items, cluster):
        if isinstance(result, _Failure):
            failures[name] = result
            print(f"{name}: {result.message}; the other shards go on", file=sys.stderr, flush=True)
        else:
            yield name, result
    if failures:
        told = "; ".join(f"{name}: {failure.message}" for name, failure in failures.items())
        done = len(items) - len(failures)
        cause = next(iter(failures.values())).cause
        raise ClusterError(f"{len(failures)} of {len(items)} shards failed, {done} are done: {told}") from cause


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and NumPy compute in one thread: the last bits of a sum depend on how many share it."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Why a shard was given up."""

    message: str
    cause: Exception | None = None


def _tried(fn: Callable[[T], R], item: T, retries: int) -> R | _Failure:
    try:
        return fn(item)
    except ValueError as error:
        return _Failure(str(error), error)
    except Exception as error:
        if retries > 0:
            return _tried(fn, item, retries - 1)
        return _Failure(f"failed every time, at last with {type(error).__name__}: {error}", error)


def _here(fn: Callable[[T], R], items: Mapping[str, T], cluster: ClusterConfig) -> Iterator[tuple[str, R | _Failure]]:
    for name, item in items.items():
        yield name, _tried(fn, item, cluster.retries)


class _Process:
    """A process that works on one item after another; a new one takes the place of one that dies."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_receive, initargs=(self.payload,))

    def __call__(self, item: Any) -> Any:
        try:
            return self.pool.submit(_call, item).result()
        except BrokenProcessPool as error:
            self.pool = self._start()
            raise ChildProcessError("its process died, maybe for want of memory") from error


_received: Callable[[Any], Any]


def _receive(payload: bytes) -> None:
    import cloudpickle

    global _received
    _received = cloudpickle.loads(payload)


def _call(item: Any) -> Any:
    return _received(item)


def _in_processes(
    fn: Callable[[T], R], items: Mapping[str, T], cluster: ClusterConfig
) -> Iterator[tuple[str, R | _Failure]]:
    import cloudpickle

    count = min(cluster.workers or 1, len(items))
    processes = [_Process(cloudpickle.dumps(fn)) for _ in range(count)]
    free: SimpleQueue[_Process] = SimpleQueue()
    for process in processes:
        free.put(process)

    def run(item: T) -> R | _Failure:
        process = free.get()
        try:
            return _tried(process, item, cluster.retries)
        finally:
            free.put(process)

    threads = ThreadPoolExecutor(max(1, count))
    try:
        running = {threads.submit(run, item): name for name, item in items.items()}
        for done in as_completed(running):
            yield running[done], done.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(fn: Callable[[T], R], items: Mapping[str, T], cluster: ClusterConfig) -> Iterator[tuple[str, R | _Failure]]:
    ray = _connected(cluster)
    options = {"max_retries": cluster.retries, "retry_exceptions": True, "scheduling_strategy": "SPREAD"}
    task = ray.remote(num_cpus=1, **options)(_untried)
    sent = ray.put(fn)
    limit = cluster.workers or 2 * int(ray.cluster_resources().get("CPU", 1))
    waiting = iter(items.items())
    running: dict[Any, str] = {}
    try:
        while True:
            running |= {task.remote(sent, item): name for name, item in islice(waiting, limit - len(running))}
            if not running:
                break
            (done,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                yield name, ray.get(done)
            except ray.exceptions.RayError as error:
                yield name, _Failure(f"failed every time, at last with {_last_line(error)}", error)
    finally:
        for reference in running:
            ray.cancel(reference)


def _untried(fn: Callable[[T], R], item: T) -> R | _Failure:
    try:
        return fn(item)
    except ValueError as error:
        return _Failure(str(error))


def _last_line(error: Exception) -> str:
    """What Ray's report of a remote error ends with, after the traceback."""
    return str(error).strip().splitlines()[-1]


def _connected(cluster: ClusterConfig) -> Any:
    """Ray, connected for the rest of this process."""
    import logging
    import os

    try:
        import ray
    except ImportError:
        raise ClusterError(
            "cluster.kind: ray needs the package ray: pip install 'dynarep[cluster]'; or set kind: local"
        ) from None
    if ray.is_initialized():
        return ray
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    where = "of this machine cannot be started" if address is None else f"at {address} cannot be joined"
    way_out = (
        "correct cluster.address (or RAY_ADDRESS), start a cluster (`ray start --head`), leave both out to start one of "
        "this machine alone, or set cluster.kind: local"
    )
    if address is not None and (problem := _probe(address)):
        raise ClusterError(f"cluster: the Ray cluster {where}: {problem}; {way_out}")
    local: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"num_cpus": cluster.workers, "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, ... by what is wrong
        raise ClusterError(f"cluster: the Ray cluster {where}: {error}; {way_out}") from error
    return ray


def _probe(address: str) -> str | None:
    """Why a cluster cannot be joined. Asked in another process, because Ray can wait for ever where nobody answers."""
    program = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, text=True, timeout=CONNECT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CONNECT_SECONDS:.0f} seconds"
    return done.stderr.strip().splitlines()[-1] if done.returncode else None
