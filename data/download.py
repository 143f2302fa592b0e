"""Downloads that can be interrupted and resumed, and appear complete or not at all."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from hashlib import file_digest
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from dynarep.configs.params import read_file
from dynarep.data.folders import DISK, digest_of
from dynarep.data.schema import DataError

ATTEMPTS = 4
"""Connections to one server before the next one is tried."""
PAUSE = 1.0
"""Seconds before the second attempt, doubled before each further one."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
CHUNK = 1 << 16
NOTE_BYTES = 1 << 16
"""Largest note beside a part that is read."""
LARGEST = 100_000_000_000
"""Most bytes of a file."""
SLOWEST = 1000.0
"""Bytes per second, over ``TIMEOUT``, below which a connection counts as lost."""
LONGEST = 24 * 3600.0
"""Seconds after which a connection is given up in any case; what has arrived is kept."""


class _LostError(Exception):
    """The connection broke; what has arrived is kept and another attempt may succeed."""


class _RefusedError(Exception):
    """What the server sends is not the file."""


def cache_folder() -> Path:
    """Where downloads are kept: ``$DYNAREP_DATA``, by default a folder in the user's cache directory."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("DYNAREP_DATA")
    return Path(chosen).expanduser() if chosen else user_cache_path("dynarep")


def download(
    urls: Sequence[str], path: Path, *, name: str, check: Callable[[Path], None], sha256: str | None = None
) -> None:
    """Download a file unless it is there, with a progress bar on stderr.

    What arrives is kept beside ``path`` as ``.<file>.part`` and renamed once its size, its SHA-256 if known and
    ``check`` are right. After an interruption, also of an earlier process, the rest is asked for by HTTP Range, provided
    that the server still has the same version of the file; else it starts anew. A second process waits for the first.

    Where no SHA-256 is known, that of the first download is recorded as ``<file>.sha256``, and the file has to keep it,
    also when it is downloaded again.

    Args:
        urls: of the same file, tried in order.
        path: the file.
        name: of the dataset, for messages.
        check: raises ``DataError`` if the complete file is not what it should be.
        sha256: of the file, in hexadecimal.

    Raises:
        DataError: if no server gives the file; the message says why for each. If the file is there, but is not the one
            that was downloaded, or if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(urls, path, name, check, sha256)
    except OSError as error:
        place = error.filename or path
        raise DataError(f"dataset {name}: {place}: cannot be written or read: {error.strerror or error}") from None


def _download(urls: Sequence[str], path: Path, name: str, check: Callable[[Path], None], sha256: str | None) -> None:
    from filelock import FileLock

    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            if sha256 is None:
                _compare(path, name)
            return
        expected = sha256 or _recorded(path)
        problems = []
        for url in urls:
            try:
                _fetch(url, part, name)
                _inspect(part, check, expected)
            except (_LostError, _RefusedError) as error:
                problems.append(f"{url}: {error}")
            else:
                _record(path, expected or digest_of(part))
                part.replace(path)
                _note(part).unlink()
                return
        if sha256 is None and expected is not None:
            problems.append(f"the SHA-256 is that of an earlier download; if it may change, delete {_record_of(path)}")
        raise DataError(
            f"dataset {name}: cannot be downloaded: {'; '.join(problems)}; put the file at {path}, name another server as "
            "mirrors in the card, or give the card a path"
        )


def _record_of(path: Path) -> Path:
    """Where the SHA-256 of a download is written down."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    try:
        found = read_file(_record_of(path), 200).decode().strip()
    except FileNotFoundError:
        return None
    except ValueError:
        found = ""
    if not re.fullmatch("[0-9a-f]{64}", found):
        raise DataError(f"{_record_of(path)}: found {found!r}, expected 64 hexadecimal digits; delete it to start anew")
    return found


def _record(path: Path, digest: str) -> None:
    new = _record_of(path).with_name(f".{path.name}.sha256.new")
    new.write_text(f"{digest}\n")
    new.replace(_record_of(path))


def _compare(path: Path, name: str) -> None:
    """A file is the one that was downloaded; one from before there were records becomes it."""
    found = digest_of(path)
    expected = _recorded(path)
    if expected is None:
        _record(path, found)
    elif found != expected:
        raise DataError(
            f"dataset {name}: {path}: found sha256 {found}, expected {expected} as it was downloaded; delete the file to "
            f"download it again, or {_record_of(path).name} if it may be another"
        )


def _inspect(part: Path, check: Callable[[Path], None], sha256: str | None) -> None:
    """Delete a complete file that is not the right one."""
    problem = None
    with part.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest() if sha256 else None
        file.seek(0)
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        problem = "found an HTML page in place of the file"
    elif found != sha256:
        problem = f"found sha256 {found}, expected {sha256}"
    else:
        try:
            check(part)
        except DataError as error:
            problem = str(error)
    if problem is not None:
        _discard(part)
        raise _RefusedError(problem)


def _fetch(url: str, part: Path, name: str) -> None:
    """Complete ``part`` from one server."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return _transfer(url, part, name)
        except (OSError, HTTPException, ValueError, _LostError) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                raise _RefusedError(f"HTTP status {error.code} {error.reason}") from None
            if isinstance(error, OSError) and error.errno in DISK:
                raise OSError(error.errno, error.strerror, str(part)) from None
            if isinstance(error, ValueError):  # of urllib and http, about a URL
                raise _RefusedError(str(error)) from None
            problem = error
    raise _LostError(f"{problem} ({ATTEMPTS} attempts; what has arrived is kept)")


def _transfer(url: str, part: Path, name: str) -> None:
    """One connection: ask for what is missing and append it."""
    if not url.lower().startswith(("http://", "https://")):
        raise _RefusedError("expected a URL of http or https")
    version = _resumable(url, part)
    start = part.stat().st_size if version else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "dynarep"}
    if version and start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        _discard(part)  # the part is as long as the file or longer, so it is not the beginning of this file
        raise _LostError("the server cannot continue what had arrived") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _RefusedError("found an HTML page in place of the file")
        if response.status != 206:
            start = 0
            _discard(part)
            note = {"url": url, "version": response.headers["ETag"] or response.headers["Last-Modified"]}
            _note(part).write_text(json.dumps(note))
        size = _size(response, start)
        if size is not None and size > LARGEST:
            raise _RefusedError(f"found a file of {size:,} bytes, expected at most {LARGEST:,}")
        with part.open("ab") as file:
            _copy(response, file, start, size, name)
    found = part.stat().st_size
    if size is not None and found != size:
        if found > size:
            _discard(part)
        raise _LostError(f"the transfer ended after {found:,} of {size:,} bytes")


def _copy(response: HTTPResponse, file: BinaryIO, start: int, size: int | None, name: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=size, completed=start)
        began = since = time.monotonic()
        total, arrived = start, 0
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))
            total, arrived, now = total + len(chunk), arrived + len(chunk), time.monotonic()
            if total > LARGEST:
                raise _RefusedError(f"found more than {LARGEST:,} bytes")
            if now - began > LONGEST:
                raise _LostError(f"the transfer took more than {LONGEST:,.0f} s")
            if now - since > TIMEOUT:
                if arrived < SLOWEST * (now - since):
                    raise _LostError(f"only {arrived:,} bytes arrived within {now - since:.0f} s")
                since, arrived = now, 0


def _size(response: HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file, None if the server does not say."""
    if response.status == 206:
        found = response.headers["Content-Range"] or ""
        if not found.startswith(f"bytes {start}-"):
            raise _RefusedError(f"asked for bytes from {start}, got Content-Range {found!r}")
        total = found.rpartition("/")[2]
        return int(total) if total.isdecimal() else None
    length = response.headers["Content-Length"]
    return int(length) if length else None


def _resumable(url: str, part: Path) -> str | None:
    """The server's mark of the version that ``part`` is the beginning of, None if it is of no use."""
    try:
        note = json.loads(read_file(_note(part), NOTE_BYTES))
    except (OSError, ValueError):
        return None
    known = isinstance(note, dict) and part.is_file() and note.get("url") == url
    version = note.get("version") if known else None
    return str(version) if version and not str(version).startswith("W/") else None


def _note(part: Path) -> Path:
    """Where the origin of a part is written down."""
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
