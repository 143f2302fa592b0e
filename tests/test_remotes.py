"""Prepared datasets and artifacts in a DVC remote, a folder or an S3 server, as two people share them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_e2e import Project, new_project, ran

from dynarep.data.shards import load_dataset
from dynarep.pipeline.artifacts.storage import load_encoder_model

pytestmark = pytest.mark.slow

OWN, OTHER = "latent_dim: 8", "latent_dim: 4"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose intent encoder was trained with another size first, and then with its own."""
    project = new_project(tmp_path_factory.mktemp("remotes"))
    with project.changed(OWN, OTHER):
        assert ran(project.dvc("repro", "pretrain@intent")) == {"pretrain@intent"}
    assert ran(project.dvc("repro", "pretrain@intent")) == {"pretrain@intent"}
    project.commit()
    return project


@dataclass(frozen=True)
class Remote:
    """Where to push, and what DVC has to know beside the address."""

    url: str
    settings: dict[str, str]


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    if request.param == "folder":
        yield Remote(str(tmp_path / "storage"), {})
        return
    pytest.importorskip("dvc_s3", reason="needs dvc-s3: pip install 'dynarep[s3]'")
    moto = pytest.importorskip("moto.server", reason="needs moto[server,s3]")
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys).create_bucket(Bucket="robots")
        secrets = {"access_key_id": "testing", "secret_access_key": "testing"}
        yield Remote("s3://robots/dynarep", {"endpointurl": url, "region": "us-east-1", **secrets})
    finally:
        server.stop()


def clone(project: Project, folder: Path) -> Project:
    """The same project at somebody else's, without outputs and cache."""
    assert project.call("git", "clone", "-q", ".", str(folder)).returncode == 0
    assert not (folder / "artifacts").exists()
    assert not (folder / ".dvc" / "cache").exists()
    return replace(project, root=folder)


def digests(project: Project) -> dict[str, str]:
    return {path: digest for path, (digest, _) in project.state("pretrain/intent").items()}


def test_what_one_pushes_another_pulls(trained: Project, remote: Remote, tmp_path: Path) -> None:
    mine = trained
    mine.dvc("remote", "add", "--default", "--force", "storage", remote.url)
    for name, value in remote.settings.items():
        mine.dvc("remote", "modify", "storage", name, value)
    mine.commit()
    with mine.changed(OWN, OTHER):
        assert ran(mine.dvc("repro", "pretrain@intent")) == set()  # from the run cache
        assert "pushed" in mine.dvc("push", "--run-cache", "pretrain@intent")
    assert ran(mine.dvc("repro", "pretrain@intent")) == set()
    assert "pushed" in mine.dvc("push", "--run-cache", "prepare", "pretrain@intent")
    assert "up to date" in mine.dvc("push", "prepare", "pretrain@intent")

    theirs = clone(mine, tmp_path / "theirs")
    theirs.dvc("pull", "pretrain@intent")
    assert sorted(path.name for path in (theirs.root / "artifacts").iterdir()) == ["pretrain"]
    encoder = load_encoder_model(theirs.root / "artifacts" / "pretrain" / "intent", observation_dim=11)
    assert encoder.architecture.latent_dim == 8
    assert digests(theirs) == digests(mine)
    theirs.dvc("pull", "prepare")
    assert load_dataset(theirs.root / "artifacts" / "shards" / "hopper-tiny").env == "Hopper-v4"
    assert ran(theirs.dvc("repro", "pretrain@intent")) == set()

    with theirs.changed(OWN, OTHER):
        output = theirs.dvc("repro", "--pull", "pretrain@intent")
        assert ran(output) == set()
        assert "Stage 'pretrain@intent' is cached - skipping run" in output
        encoder = load_encoder_model(theirs.root / "artifacts" / "pretrain" / "intent")
        assert encoder.architecture.latent_dim == 4


def test_a_damaged_copy_is_noticed_where_the_remote_is_verified(trained: Project, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    trained.dvc("remote", "add", "--default", "--force", "storage", str(storage))
    trained.dvc("remote", "modify", "storage", "verify", "true")
    trained.commit()
    trained.dvc("push", "pretrain@intent")
    weights = max((path for path in storage.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-100])
    theirs = clone(trained, tmp_path / "theirs")
    done = theirs.call("python", "-m", "dvc", "pull", "pretrain@intent")
    assert done.returncode != 0
    assert not (theirs.root / "artifacts" / "pretrain" / "intent").exists()
