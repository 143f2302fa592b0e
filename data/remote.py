"""Prepared datasets at a URL: any that fsspec knows, with retries, and nothing half-arrived is taken for whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dynarep.data.folders import DISK
from dynarep.data.schema import DataError
from dynarep.data.shard import INDEX_BYTES, Shard, check_content, missing_shard

ATTEMPTS = 4
"""Requests before a file is given up."""
PAUSE = 1.0
"""Seconds before the second attempt, doubled before each further one."""
TIMEOUT = 60.0
"""Seconds without an answer or a byte after which an HTTP connection counts as lost."""
SLOWEST = 1000.0
"""Bytes per second, after the first ``TIMEOUT``, below which a transfer counts as lost."""
TEMPORARY = (408, 425, 429)
"""HTTP status codes below 500 after which another attempt may succeed."""


def read_remote_index(location: str) -> tuple[str, bytes]:
    """Address and content of a dataset's ``index.json``.

    Raises:
        DataError: if there is none, or it cannot be had.
    """
    url = address(location, "index.json")
    try:
        with TemporaryDirectory() as folder:
            part = Path(folder) / "index.json"
            _retried(url, lambda filesystem, path: _get(filesystem, path, part, INDEX_BYTES))
            return url, part.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{url}: no such file; expected a prepared dataset there") from None


def fetch_shard(location: str, shard: Shard, cache: Path) -> Path:
    """A shard as a local file, downloaded if it is not there.

    What arrives is kept under another name until its size and SHA-256 are those of the index. A second process waits for
    the first. A file in the cache that is damaged is downloaded again.

    Args:
        location: URL of the dataset.
        shard: as its index lists it.
        cache: folder that receives ``<sha256>.tar``.

    Raises:
        DataError: if the shard is missing or cannot be had, or what arrives is not what the index lists.
    """
    from filelock import FileLock

    url = address(location, shard.file)
    path, part = cache / f"{shard.sha256}.tar", cache / f".{shard.sha256}.part"

    def download(filesystem: Any, source: str) -> None:
        _get(filesystem, source, part, shard.bytes)
        _check(url, shard, part)

    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{cache}: cannot be written: {error.strerror}") from None
    with FileLock(cache / f".{shard.sha256}.lock"):
        if path.is_file():
            try:
                _check(path, shard, path)
            except DataError:
                path.unlink()
            else:
                return path
        try:
            _retried(url, download)
        except FileNotFoundError:
            raise missing_shard(url) from None
        else:
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


class _TooLargeError(DataError):
    """More arrives than there can be."""


def _get(filesystem: Any, source: str, part: Path, limit: int) -> None:
    """Copy a file of at most ``limit`` bytes, not too slowly."""
    from fsspec.callbacks import Callback

    began = time.monotonic()

    def watch(size: int | None, value: int, **_: Any) -> None:
        if max(size or 0, value) > limit:
            raise _TooLargeError(f"found {max(size or 0, value):,} bytes or more, expected at most {limit:,}")
        seconds = time.monotonic() - began
        if seconds > TIMEOUT and value < SLOWEST * (seconds - TIMEOUT):
            raise TimeoutError(f"only {value:,} bytes arrived within {seconds:.0f} s")

    if "file" in filesystem.protocol:  # copies without telling how far it is
        watch(filesystem.size(source), 0)
    filesystem.get_file(source, str(part), callback=Callback(hooks={"limits": watch}))
    if (size := part.stat().st_size) > limit:
        raise _TooLargeError(f"found {size:,} bytes, expected at most {limit:,}")


def address(location: str, file: str) -> str:
    """URL of a file of a dataset; a query of the dataset's URL stays behind the path."""
    base, mark, query = location.partition("?")
    return f"{base.rstrip('/')}/{file}{mark}{query}"


def _check(place: Path | str, shard: Shard, path: Path) -> None:
    with path.open("rb") as file:
        check_content(place, shard, path.stat().st_size, lambda: file_digest(file, "sha256").hexdigest())


def _retried(url: str, action: Callable[[Any, str], Any]) -> Any:
    """What ``action`` returns for the file system and the path of a URL, tried until it does not raise."""
    filesystem, path = _filesystem(url)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return action(filesystem, path)
        except FileNotFoundError:
            raise
        except _TooLargeError as error:
            raise DataError(f"{url}: {error}") from None
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, OSError) and error.errno in DISK:
                raise DataError(
                    f"{url}: cannot be written to {error.filename or 'the disk'}: {error.strerror}"
                ) from None
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in TEMPORARY
            if refused or isinstance(error, PermissionError):
                raise DataError(f"{url}: refused: {_in_words(error)}") from None
            problem = error
    if isinstance(problem, DataError):
        raise DataError(f"{problem} ({ATTEMPTS} attempts)") from None
    raise DataError(f"{url}: cannot be read: {_in_words(problem)} ({ATTEMPTS} attempts)") from None


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        if "::" in url:
            raise ValueError("found a chain of file systems, expected one URL")
        options: dict[str, Any] = {}
        if url.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
            options["client_kwargs"] = {"timeout": timeout}
        filesystem, path = url_to_fs(url, **options)
    except FileNotFoundError:
        raise
    except Exception as error:  # ImportError, ValueError, and what each file system has of its own
        raise DataError(f"{url}: cannot be read: {error}; pip install 'dynarep[remote]' reads http and https") from None
    return filesystem, path


def _in_words(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
