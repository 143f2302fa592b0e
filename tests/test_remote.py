"""Datasets at a URL, on a local server that breaks off, cuts, forgets and changes files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dynarep.data import remote
from dynarep.data.card import load_card
from dynarep.data.describe import describe
from dynarep.data.prepare import prepare
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, open_dataset, read_rewards, write_dataset, write_rewards
from dynarep.data.stream import EpisodeBuffer, ShardFiles
from dynarep.pipeline.artifacts.storage import load_encoder_model
from dynarep.pipeline.run import stage_main
from dynarep.stages import prepare as prepare_stage
from dynarep.stages import pretrain as pretrain_stage

pytest.importorskip("fsspec", reason="needs the extra remote")
pytest.importorskip("aiohttp", reason="needs the extra remote")


class Server(ThreadingHTTPServer):
    """Serves a folder; the attributes say what goes wrong."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        """File -> what goes wrong with the next requests for it: drop, cut, flip, forbidden, busy, silent."""
        self.requests: Counter[str] = Counter()
        self.released = Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that hang up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/robot/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.requests[name] += 1
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        path = self.server.folder / name
        status = {"forbidden": 403, "busy": 503}.get(fault, 200 if path.is_file() else 404)
        body = path.read_bytes() if status == 200 else b"sorry"
        if fault == "cut":  # complete as far as HTTP is concerned
            body = body[:-5000]
        elif fault == "flip":
            body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
        elif fault == "silent":
            self.server.released.wait()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)

    def do_HEAD(self) -> None:
        self.send_response(405)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def episodes(count: int = 24, shift: float = 0.0) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            id=f"robot-{i:06d}",
            observations=(rng.normal(size=(21 + i, 3)) + shift).astype(np.float32),
            actions=rng.uniform(-1, 1, (20 + i, 2)).astype(np.float32),
            rewards=rng.normal(size=20 + i).astype(np.float32),
            terminated=False,
            truncated=True,
        )
        for i in range(count)
    ]


def publish(folder: Path, **options: Any) -> None:
    bounds = ((-1.0, -1.0), (1.0, 1.0))
    write_dataset(
        folder, "original", episodes(**options), provenance={}, env="Hopper-v4", bounds=bounds, shard_bytes=6000
    )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    publish(tmp_path / "served")
    with Server(tmp_path / "served") as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DYNAREP_DATA", str(tmp_path / "cache"))
        monkeypatch.setattr(remote, "PAUSE", 0.0)
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


class Project:
    """A project whose card ``robot`` uses shards in place."""

    def __init__(self, root: Path, shards: str) -> None:
        self.root, self.out = root, root / "artifacts" / "shards"
        self.cards = root / "configs" / "datasets"
        self.cards.mkdir(parents=True)
        self.card("robot", shards=shards)

    def card(self, name: str, **values: Any) -> None:
        (self.cards / f"{name}.yaml").write_text(yaml.safe_dump(values))

    def prepare(self, name: str = "robot") -> Path:
        prepare([name], cards=self.cards, root=self.root, out=self.out)
        return self.out / name


@pytest.fixture
def project(tmp_path: Path, server: Server) -> Project:
    return Project(tmp_path / "project", server.url)


SHARD = "shard-000003.tar"


def stream_all(folder: Path, **options: Any) -> torch.Tensor:
    """Read a stream for a while; the last content of the buffer."""
    with EpisodeBuffer(
        open_dataset(folder), steps=150, steps_per_update=10.0, seed=0, shuffle_shards=3, **options
    ) as buffer:
        for update in range(140):
            buffer.advance(update)
        return buffer.table.packed.clone()


def cached(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "shards"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def test_prepare_copies_the_index_and_no_shard(
    server: Server, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project.prepare()
    steps = sum(range(20, 44))
    shown = f"robot: 24 episodes, {steps} steps, in place at {server.url}"
    assert capsys.readouterr().out == f"{shown} -> artifacts/shards/robot\n"
    assert [path.name for path in folder.iterdir()] == ["index.json"]
    assert set(server.requests) == {"index.json"}
    dataset, original = open_dataset(folder), open_dataset(tmp_path / "served")
    assert (dataset.name, dataset.env, dataset.location) == ("robot", "Hopper-v4", server.url)
    assert (dataset.fingerprint, dataset.shards) == (original.fingerprint, original.shards)
    project.prepare()
    assert capsys.readouterr().out == f"{shown}, fresh\n"
    publish(tmp_path / "served", count=23)
    project.prepare()
    assert "23 episodes" in capsys.readouterr().out, "another index is noticed"


def test_a_stream_from_a_server_is_the_stream_from_the_folder(server: Server, project: Project, tmp_path: Path) -> None:
    local = stream_all(tmp_path / "served")
    folder = project.prepare()
    assert torch.equal(stream_all(folder), local)
    shards = open_dataset(folder).shards
    assert cached(tmp_path) == sorted(f"{shard.sha256}.tar" for shard in shards)
    assert max(server.requests[shard.file] for shard in shards) == 1
    assert torch.equal(stream_all(folder), local)
    assert max(server.requests[shard.file] for shard in shards) == 1, "the cache is used"


def test_without_a_cache_nothing_is_kept(server: Server, project: Project, tmp_path: Path) -> None:
    folder = project.prepare()
    assert torch.equal(stream_all(folder, cache=False), stream_all(tmp_path / "served"))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("fault", ["drop", "cut", "flip", "busy"])
def test_what_goes_wrong_once_is_tried_again(server: Server, project: Project, tmp_path: Path, fault: str) -> None:
    folder = project.prepare()
    server.faults = {SHARD: [fault, fault, fault]}
    assert torch.equal(stream_all(folder), stream_all(tmp_path / "served"))
    assert server.requests[SHARD] == 4


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        ("drop", r"cannot be read: \w+: .*\(4 attempts\)", 4),
        ("cut", r"found \d+ bytes, expected \d+; prepare the dataset again \(4 attempts\)", 4),
        ("flip", r"found sha256 \w{64}, expected \w{64}; prepare the dataset again \(4 attempts\)", 4),
        ("busy", r"cannot be read: ClientResponseError: 503.*\(4 attempts\)", 4),
        ("forbidden", r"refused: ClientResponseError: 403", 1),
        ("missing", r"no such file, but index.json lists it; prepare the dataset again", 1),
    ],
)
def test_what_stays_wrong_is_named_and_never_taken_for_whole(
    server: Server, project: Project, tmp_path: Path, fault: str, message: str, requests: int
) -> None:
    folder = project.prepare()
    original = (tmp_path / "served" / SHARD).read_bytes()
    if fault == "missing":
        (tmp_path / "served" / SHARD).unlink()
    else:
        server.faults = {SHARD: [fault] * 8}
    for read in (stream_all, load_dataset):
        server.requests.clear()
        with pytest.raises(DataError, match=f"{server.url}{SHARD}: {message}"):
            read(folder)
        assert server.requests[SHARD] == requests
    digests = {f"{shard.sha256}.tar" for shard in open_dataset(folder).shards if shard.file != SHARD}
    assert set(cached(tmp_path)) <= digests, "neither a part nor a wrong file stays"
    server.faults.clear()
    (tmp_path / "served" / SHARD).write_bytes(original)
    assert torch.equal(stream_all(folder), stream_all(tmp_path / "served"))


def test_a_dataset_that_has_changed_since_it_was_prepared(server: Server, project: Project, tmp_path: Path) -> None:
    folder = project.prepare()
    publish(tmp_path / "served", shift=1.0)
    with pytest.raises(DataError, match=r"shard-\d+.tar: found .*, expected .*; prepare the dataset again"):
        stream_all(folder)
    project.prepare()
    stream_all(folder)


def test_a_damaged_file_in_the_cache_is_downloaded_again(server: Server, project: Project, tmp_path: Path) -> None:
    folder = project.prepare()
    expected = stream_all(folder)
    for name in cached(tmp_path)[:3]:
        path = tmp_path / "cache" / "shards" / name
        path.write_bytes(path.read_bytes()[:-1000])
    assert torch.equal(stream_all(folder), expected)
    assert sorted(count for file, count in server.requests.items() if file != "index.json")[-4:] == [1, 2, 2, 2]


def test_a_silent_server_is_given_up(server: Server, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(project.prepare())
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    server.faults = {SHARD: ["silent"] * 4}
    with ShardFiles(dataset) as files:
        files.hold({3})
        with pytest.raises(DataError, match=rf"{SHARD}: cannot be read: .*Timeout.*\(4 attempts\)"):
            files.read(3, 0)


def test_what_arrives_has_bounds(server: Server, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(project.prepare())
    path = server.folder / SHARD
    path.write_bytes(path.read_bytes() + bytes(10**6))
    server.requests.clear()
    with ShardFiles(dataset) as files:
        files.hold({3})
        with pytest.raises(
            DataError, match=rf"{SHARD}: found [\d,]+ bytes.*, expected at most {dataset.shards[3].bytes:,}"
        ):
            files.read(3, 0)
    assert server.requests[SHARD] == 1, "another attempt would not help"
    monkeypatch.setattr(remote, "INDEX_BYTES", 1000)
    with pytest.raises(DataError, match=r"index.json: found [\d,]+ bytes.*, expected at most 1,000"):
        remote.read_remote_index(server.url)
    monkeypatch.undo()
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", 0.0001)
    monkeypatch.setattr(remote, "SLOWEST", 1e12)
    with pytest.raises(DataError, match=r"index\.json: cannot be read: "):
        remote.read_remote_index(server.url)


@pytest.mark.parametrize("url", ["simplecache::file:///tmp", "python://x", "foo://x", "dask://x", "http://[::1/x"])
def test_urls_that_no_file_system_takes(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    with pytest.raises(DataError, match=re.escape(url)):
        remote.read_remote_index(url if "://" in url else f"{url}://")


def test_an_index_that_cannot_be_had(server: Server, project: Project, tmp_path: Path) -> None:
    path = tmp_path / "served" / "index.json"
    index = path.read_text()
    server.faults = {"index.json": ["drop", "busy"]}
    project.prepare()
    for content, message in (
        (index[:-100], "index.json: not valid JSON"),
        ("<html>Please log in</html>", "index.json: not valid JSON"),
        (
            json.dumps({**json.loads(index), "schema_version": 1}),
            "index.json: schema_version: found 1, expected 3; prepare it again",
        ),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=re.escape(server.url) + message):
            project.prepare()
    path.unlink()
    with pytest.raises(DataError, match=r"index.json: no such file; expected a prepared dataset there"):
        project.prepare()
    assert open_dataset(project.out / "robot").shards, "what was there stays"


@pytest.mark.parametrize("url", ["nonsense://host/robot", "http://127.0.0.1:9/robot"])
def test_a_url_that_leads_nowhere(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    with pytest.raises(DataError, match=f"{url}/index.json: cannot be read: .*(not known|onnect)"):
        Project(tmp_path, url).prepare()


def test_any_file_system_that_fsspec_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("DYNAREP_DATA", str(tmp_path / "cache"))
    publish(tmp_path / "served")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "served").iterdir():
        memory.pipe_file(f"/bucket/robot/{path.name}", path.read_bytes())
    folder = Project(tmp_path / "project", "memory://bucket/robot").prepare()
    assert torch.equal(stream_all(folder), stream_all(tmp_path / "served"))
    memory.rm_file(f"/bucket/robot/{SHARD}")
    with pytest.raises(DataError, match=f"memory://bucket/robot/{SHARD}: no such file, but index.json lists it"):
        stream_all(folder, cache=False)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_folder_is_used_in_place_too(tmp_path: Path, absolute: bool) -> None:
    publish(tmp_path / "project" / "big")
    folder = Project(tmp_path / "project", str(tmp_path / "project" / "big") if absolute else "big").prepare()
    assert [path.name for path in folder.iterdir()] == ["index.json"]
    assert json.loads((folder / "index.json").read_text())["location"] == (
        str(tmp_path / "project" / "big") if absolute else "../../../big"
    )
    assert torch.equal(stream_all(folder), stream_all(tmp_path / "project" / "big"))


def test_other_stages_read_it_whole(server: Server, project: Project, tmp_path: Path) -> None:
    """In memory, as any dataset; with rewards beside it, and as a part of other cards."""
    dataset = load_dataset(project.prepare())
    for found, expected in zip(dataset.episodes, episodes(), strict=True):
        np.testing.assert_array_equal(found.observations, expected.observations)
    rewards = {e.id: np.zeros(e.length, np.float32) for e in dataset.episodes}
    write_rewards(tmp_path / "relabel", dataset, rewards)
    assert read_rewards(tmp_path / "relabel", dataset).keys() == rewards.keys()
    project.card("best", **{"from": "robot", "top": 2})
    best = load_dataset(project.prepare("best"))
    assert sorted(e.return_ for e in best.episodes) == sorted(e.return_ for e in episodes())[-2:]  # type: ignore[type-var]
    assert best.env == "Hopper-v4"
    publish(tmp_path / "served", count=5)
    project.card("best", **{"from": "robot", "top": 2})
    assert len(load_dataset(project.prepare("best")).episodes) == 2


@pytest.mark.parametrize("key", [{"top": 1}, {"stride": 2}, {"observations_only": True}])
def test_a_card_with_shards_selects_nothing(tmp_path: Path, key: dict[str, Any]) -> None:
    project = Project(tmp_path, "big")
    project.card("robot", shards="big", **key)
    with pytest.raises(DataError, match="a card with shards takes them as they are; write a card with from: robot"):
        load_card("robot", project.cards)
    project.card("robot", shards="big", format="d4rl")
    with pytest.raises(DataError, match="path and format: found only one of them"):
        load_card("robot", project.cards)
    project.card("robot", shards="big")
    with pytest.raises(DataError, match=r"big/index.json: cannot be read, named as shards by a dataset card: No such"):
        project.prepare()


def test_describe_reads_the_index_alone(server: Server, project: Project) -> None:
    text, accepted = describe("robot", project.root)
    assert accepted
    assert f"shards: {server.url}" in text
    assert "24 episodes, 756 steps in " in text
    assert "used in place, by its index alone" in text
    assert set(server.requests) == {"index.json"}


def test_a_stage_streams_what_prepare_did_not_copy(
    server: Server, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {
        "kind": "icvf",
        "dataset": "robot",
        "initial": "none",
        "stream": {"buffer_steps": 200},
        "hidden": [8],
        "latent_dim": 4,
        "training": {"updates": 40, "batch_size": 32},
    }
    (project.root / "params.yaml").write_text(yaml.safe_dump({"pretrain": {"intent": section}}))
    monkeypatch.chdir(project.root)
    stage_main("prepare", prepare_stage.main, [])
    stage_main("pretrain", pretrain_stage.main, ["intent"], entries=True)
    folder = project.root / "artifacts" / "pretrain" / "intent"
    content = (folder / "metadata.json").read_bytes()
    assert json.loads(content)["datasets"] == {"robot": open_dataset(server.folder).fingerprint}
    assert load_encoder_model(folder).calibration.isfinite().all()
    (server.folder / SHARD).unlink()
    shutil.rmtree(Path(os.environ["DYNAREP_DATA"]) / "shards")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        stage_main("pretrain", pretrain_stage.main, ["intent"], entries=True)
    expected = (
        f"error: pretrain/intent: {server.url}{SHARD}: no such file, but index.json lists it; prepare the dataset again"
    )
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert (folder / "metadata.json").read_bytes() == content
