"""D4RL by name, against a local server that breaks off, corrupts and confuses."""

from __future__ import annotations

import errno
import re
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from dynarep.data import d4rl, download
from dynarep.data.card import make_card
from dynarep.data.prepare import prepare
from dynarep.data.readers import locate
from dynarep.data.schema import DataError
from dynarep.data.shards import load_dataset

NAME = "hopper-medium-v2"
FILE = "gym_mujoco_v2/hopper_medium-v2.hdf5"


class Server(ThreadingHTTPServer):
    """Serves one file at two places; the attributes say what goes wrong."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.tag: str | None = '"one"'
        self.cuts: list[int] = []
        """The next responses break off after so many bytes of their body."""
        self.kind = "application/octet-stream"
        self.status = 200
        self.length = True
        self.ranges = True
        self.mirror: bytes = body
        self.drip: float | None = None
        """Seconds between bytes."""
        self.requests: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.requests.append((self.path, wanted))
        body, status, start = server.body, server.status, 0
        if self.path.startswith("/mirror/"):
            body, status = server.mirror, 200
        total = len(body)
        if wanted and server.ranges and self.headers["If-Range"] == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < total else 416
        self.send_response(status)
        self.send_header("Content-Type", server.kind)
        if server.tag:
            self.send_header("ETag", server.tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if server.length:
            self.send_header("Content-Length", str(total - start if status != 416 else 0))
        self.end_headers()
        for i in range(200 if server.drip else 0):
            try:
                self.wfile.write(body[i : i + 1])
            except OSError:
                return
            time.sleep(server.drip or 0.0)
        if status != 416:
            self.wfile.write(body[start:][: server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def recording() -> bytes:
    """A file in D4RL's layout, somewhat larger than a few chunks."""
    rng = np.random.default_rng(0)
    rows = 2000
    states = rng.normal(size=(rows + 1, 11)).astype(np.float32)
    with h5py.File("recording", "w", driver="core", backing_store=False) as file:
        file["observations"], file["next_observations"] = states[:-1], states[1:]
        file["actions"] = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(1, rows + 1) % 1000 == 0
        file["metadata/algorithm"] = "SAC"
        file.flush()
        return bytes(file.id.get_file_image())


BODY = recording()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with Server(BODY) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DYNAREP_DATA", str(tmp_path / "cache"))
        monkeypatch.setattr(d4rl, "_installed", dict)
        monkeypatch.setitem(d4rl.URLS, NAME, server.url(FILE))
        monkeypatch.setattr(download, "PAUSE", 0.0)
        yield server
        server.shutdown()
        thread.join()


def fetch(**keys: Any) -> bytes:
    card = make_card("medium", {"dataset": NAME, "format": "d4rl", **keys}, "card")
    return locate(card, Path()).read_bytes()


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "d4rl" / f"{NAME}.hdf5"


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in cached(tmp_path).parent.iterdir() if path.suffix not in (".lock", ".sha256"))


def test_a_dataset_is_downloaded_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards, out = tmp_path / "configs", tmp_path / "shards"
    cards.mkdir()

    def run(**keys: Any) -> str:
        (cards / "medium.yaml").write_text(yaml.safe_dump({"dataset": NAME, "format": "d4rl", **keys}))
        prepare(["medium"], cards=cards, root=tmp_path, out=out)
        return capsys.readouterr().out

    assert run() == f"medium: 2 episodes, 2,000 steps -> {out.relative_to(tmp_path) / 'medium'}\n"
    assert cached(tmp_path).read_bytes() == BODY
    assert leftovers(tmp_path) == [cached(tmp_path).name]
    assert load_dataset(out / "medium").spec.observation_dim == 11
    assert "fresh" in run(sha256=sha256(BODY).hexdigest(), mirrors=[server.url("mirror/file")])
    assert server.requests == [(f"/{FILE}", None)]
    cached(tmp_path).unlink()
    assert "fresh" in run(), "what is prepared needs no download"
    assert len(server.requests) == 1
    assert "fresh" not in run(action_high=2.0)
    assert len(server.requests) == 2
    cached(tmp_path).unlink()
    with pytest.raises(DataError, match=f"cannot be downloaded: .*expected {'1' * 64}"):
        run(action_high=2.0, sha256="1" * 64)
    assert len(server.requests) == 3
    assert fetch() == BODY
    with pytest.raises(
        DataError, match=f"found sha256 {sha256(BODY).hexdigest()}, expected {'0' * 64} as the card medium"
    ):
        run(sha256="0" * 64)


def test_an_interrupted_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000, 30_000]
    assert fetch() == BODY
    assert server.requests == [(f"/{FILE}", asked) for asked in (None, "bytes=70000-", "bytes=100000-")]
    assert leftovers(tmp_path) == [cached(tmp_path).name]


def test_a_later_process_resumes(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cuts = [70_000]
    with pytest.raises(DataError, match=re.escape(f"the transfer ended after 70,000 of {len(BODY):,} bytes")) as caught:
        fetch()
    assert f"{server.url(FILE)}: " in str(caught.value)
    assert f"put the file at {cached(tmp_path)}, name another server as mirrors" in str(caught.value)
    assert not cached(tmp_path).exists()
    assert fetch() == BODY
    assert server.requests[-1] == (f"/{FILE}", "bytes=70000-")


def test_another_version_of_the_file_is_not_appended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.body, server.cuts = b"\x89HDF old" * 20_000, [70_000]
    with pytest.raises(DataError, match="the transfer ended after"):
        fetch()
    server.body, server.tag = BODY, '"two"'
    assert fetch() == BODY


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_version_a_download_starts_anew(server: Server, tag: str | None) -> None:
    server.tag, server.cuts = tag, [70_000]
    assert fetch() == BODY
    assert server.requests == [(f"/{FILE}", None)] * 2


def test_a_server_without_ranges_starts_anew(server: Server) -> None:
    server.ranges, server.cuts = False, [70_000]
    assert fetch() == BODY


def test_a_part_that_is_no_beginning_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [70_000]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(DataError):
        fetch()
    part = cached(tmp_path).with_name(f".{NAME}.hdf5.part")
    part.write_bytes(BODY + b"more")
    with pytest.raises(DataError, match="the server cannot continue what had arrived"):
        fetch()
    assert fetch() == BODY


def test_a_corrupted_body_is_refused_and_the_mirror_asked(server: Server, tmp_path: Path) -> None:
    wrong = bytearray(BODY)
    wrong[50_000] ^= 0xFF
    server.body = bytes(wrong)
    right = sha256(BODY).hexdigest()
    with pytest.raises(DataError, match=f"found sha256 {sha256(wrong).hexdigest()}, expected {right}"):
        fetch(sha256=right)
    assert leftovers(tmp_path) == []
    assert fetch(sha256=right, mirrors=[server.url("mirror/file.hdf5")]) == BODY
    assert [path for path, _ in server.requests] == [f"/{FILE}", f"/{FILE}", "/mirror/file.hdf5"]


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_an_html_page_is_refused(server: Server, tmp_path: Path, kind: str) -> None:
    server.kind, server.body = kind, b"\n<!DOCTYPE html><title>We are sorry</title>"
    with pytest.raises(DataError, match="found an HTML page in place of the file"):
        fetch()
    assert leftovers(tmp_path) == []


def test_other_content_and_error_codes_are_refused(server: Server, tmp_path: Path) -> None:
    server.body = b"not HDF5" * 100
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        fetch()
    server.status = 404
    with pytest.raises(DataError, match="HTTP status 404 Not Found; "):
        fetch(mirrors=[server.url("mirror2/file")])
    server.requests.clear()
    server.status = 503
    with pytest.raises(DataError, match=r"503.* \(4 attempts; what has arrived is kept\)"):
        fetch()
    assert len(server.requests) == 4
    assert leftovers(tmp_path) == []


def test_an_early_end_without_content_length_is_found_in_the_file(server: Server, tmp_path: Path) -> None:
    server.length, server.cuts = False, [100_000]
    with pytest.raises(DataError, match=r"not a readable HDF5 file: .*truncated file"):
        fetch()
    assert leftovers(tmp_path) == []
    assert fetch() == BODY


def test_a_server_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setitem(d4rl.URLS, NAME, "http://127.0.0.1:1/file.hdf5")
    with pytest.raises(
        DataError, match=r"dataset hopper-medium-v2: cannot be downloaded: http://127.0.0.1:1/file.hdf5: .*refused"
    ):
        fetch()
    assert fetch(mirrors=[server.url(FILE)]) == BODY


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hopper-medium-v1", "dataset hopper-medium-v1: D4RL's Gym recordings before v2 have wrong content; use those of v2"),
        ("hoper-medium-v2", "dataset hoper-medium-v2: unknown to D4RL, expected for instance hopper-medium-v2"),
        ("../hopper", "dataset: found '../hopper', expected a name of D4RL such as hopper-medium-v2"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAREP_DATA", str(tmp_path))
    with pytest.raises(DataError, match=re.escape(message)):
        locate(make_card("x", {"dataset": name, "format": "d4rl"}, "card"), tmp_path)


INFOS = """
import os
os.system('touch executed')
DATASET_URLS = {'new-v0': 'http://example.org/new.hdf5', 'odd-v0': 5, 6: 'x'}
REF_MIN_SCORE = {'new-v0': 1, 'half-v0': 1}
REF_MAX_SCORE = {'new-v0': 2.5, 'new-v1': True}
OTHER = {'a': open('executed', 'w')}
for kind in ('a', 'b'):
    DATASET_URLS['loop-' + kind] = 'http://example.org/' + kind
"""


def test_the_tables_of_an_installed_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read, not executed, and only if they are installed: not from a folder that lies on the path."""
    here, installed = tmp_path / "here", tmp_path / "installed"
    for folder in (here, installed):
        (folder / "d4rl").mkdir(parents=True)
        (folder / "d4rl" / "__init__.py").write_text("raise Exception('missing MuJoCo')\n")
        (folder / "d4rl" / "infos.py").write_text(INFOS)
        (folder / "d4rl-1.1.dist-info").mkdir()
        (folder / "d4rl-1.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: d4rl\nVersion: 1.1\n")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), *sys.path])
    try:
        d4rl._installed.cache_clear()
        with pytest.raises(DataError, match="dataset new-v0: unknown to D4RL"):
            d4rl.url("new-v0")
        monkeypatch.setattr("sysconfig.get_path", lambda key: str(installed))
        d4rl._installed.cache_clear()
        assert d4rl.url("new-v0") == "http://example.org/new.hdf5"
        assert d4rl.reference("new-v0") == (1.0, 2.5)
        assert d4rl.reference("half-v0") is None
        assert d4rl.url(NAME) == f"{d4rl.SERVER}/{FILE}"
        for name in ("odd-v0", "loop-a"):
            with pytest.raises(DataError, match=f"dataset {name}: unknown"):
                d4rl.url(name)
        for source in ("REF_MIN_SCORE = " + "(" * 10_000, "DATASET_URLS = {'a': open('executed')}", "\0", "x" * 2**21):
            (installed / "d4rl" / "infos.py").write_text(source)
            d4rl._installed.cache_clear()
            assert d4rl.url(NAME) == f"{d4rl.SERVER}/{FILE}"
        assert not (here / "executed").exists()
    finally:
        d4rl._installed.cache_clear()


def test_the_hash_of_the_first_download_is_kept(server: Server, tmp_path: Path) -> None:
    assert fetch() == BODY
    record = cached(tmp_path).with_name(f"{NAME}.hdf5.sha256")
    assert record.read_text() == f"{sha256(BODY).hexdigest()}\n"
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    cached(tmp_path).write_bytes(wrong)
    with pytest.raises(DataError, match=rf"found sha256 \w{{64}}, expected {sha256(BODY).hexdigest()} as it was down"):
        fetch()
    cached(tmp_path).unlink()
    server.body = wrong
    with pytest.raises(DataError, match=f"expected {sha256(BODY).hexdigest()}; .*delete {record}"):
        fetch()
    record.write_text("nonsense")
    with pytest.raises(DataError, match=f"{record}: found 'nonsense', expected 64 hexadecimal digits"):
        fetch()
    record.unlink()
    assert fetch() == wrong, "on somebody's word"
    record.unlink()
    assert fetch() == wrong
    assert record.read_text() == f"{sha256(wrong).hexdigest()}\n", "a download from before there were records"


def test_only_servers_are_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://[::1", "http://a b/", "x"):
        monkeypatch.setitem(d4rl.URLS, NAME, url)
        with pytest.raises(DataError, match=f"dataset {NAME}: cannot be downloaded: {re.escape(url)}: "):
            fetch()


def test_a_download_has_bounds(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(download, "LARGEST", 1000)
    with pytest.raises(DataError, match=f"found a file of {len(BODY):,} bytes, expected at most 1,000"):
        fetch()
    server.length = False
    with pytest.raises(DataError, match="found more than 1,000 bytes"):
        fetch()
    monkeypatch.setattr(download, "LARGEST", 10**9)
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.drip = 0.05
    with pytest.raises(DataError, match=r"only [\d,]+ bytes arrived within 0 s .*what has arrived is kept"):
        fetch()
    monkeypatch.setattr(download, "LONGEST", 0.1)
    with pytest.raises(DataError, match="the transfer took more than 0 s"):
        fetch()


def test_a_full_disk_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(DataError, match=rf"\.{NAME}.hdf5.part: cannot be written or read: No space left on device"):
        fetch()
    assert len(server.requests) == 1, "another attempt would not help"


@pytest.mark.skipif(find_spec("d4rl") is None, reason="d4rl is not installed")
def test_our_table_agrees_with_that_of_the_package() -> None:
    installed = d4rl._installed()
    assert d4rl.URLS.items() <= installed["DATASET_URLS"].items()
    for name in d4rl.URLS:
        expected = installed["REF_MIN_SCORE"][name], installed["REF_MAX_SCORE"][name]
        assert (d4rl.MAZE2D_REFERENCES.get(name) or d4rl.REFERENCES[name.partition("-")[0]]) == expected


def test_references_of_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4rl, "_installed", dict)
    assert d4rl.reference("hopper-medium-v2") == (-20.272305, 3234.3)
    assert d4rl.reference("maze2d-umaze-v1") == (23.85, 161.86)
    assert d4rl.reference("flow-ring-random-v0") is None


def test_the_cache_is_in_the_users_folder_unless_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNAREP_DATA", raising=False)
    assert download.cache_folder().name == "dynarep"
    monkeypatch.setenv("DYNAREP_DATA", "~/somewhere")
    assert download.cache_folder() == Path.home() / "somewhere"
