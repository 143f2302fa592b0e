import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models import make

from dynarep.pipeline.artifacts.locations import artifact_folder
from dynarep.pipeline.artifacts.pretrained import (
    PretrainedDynamics,
    PretrainedIntent,
    PretrainedPolicy,
    load_encoder,
    load_policy,
)
from dynarep.pipeline.artifacts.storage import ArtifactError, save_model

S = np.ones((2, 3), np.float32)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    save_model(tmp_path / "made", make("intent"))
    (tmp_path / "made" / "metadata.json").write_text('{"path": "artifacts/pretrain/intent"}')
    return tmp_path / "made"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://bucket/encoder", "s3://bucket/encoder: expected a path, dvc://"),
        ("dvc://project", "dvc://project: expected dvc://<repository>#<path>"),
        ("dvc://project#", "dvc://project#: expected dvc://<repository>#<path>"),
        ("hf://name", "hf://name: expected hf://<owner>/<name>"),
        ("hf://owner/name/more", "hf://owner/name/more: expected hf://<owner>/<name>"),
        ("hf:/owner/name", "hf:/owner/name: expected a path, dvc://"),
        ("nowhere", "nowhere: no such folder in "),
    ],
)
def test_what_is_no_source(source: str, message: str) -> None:
    for load in (load_encoder, load_policy):
        with pytest.raises(ArtifactError) as error:
            load(source)
        assert str(error.value).startswith(message)


class Hub:
    """A stand-in for the Hub: repositories are folders, calls are kept."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs dynarep[hub]")
        self.root, self.calls = root, list[dict[str, Any]]()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", self.upload_folder)

    def snapshot_download(self, name: str, *, allow_patterns: list[str], **options: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.calls.append({"name": name, **options})
        if not (self.root / name).exists():
            raise LocalEntryNotFoundError(f"no {name}")
        target = self.root / "cache" / name
        for pattern in allow_patterns:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / name / pattern, target)
        return str(target)

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        from huggingface_hub import RepoUrl

        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.calls.append({"uploaded": repo_id, **options})
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return "https://huggingface.co/commit"


def front_matter(card: str) -> dict[str, Any]:
    """What stands between the first two lines of dashes."""
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_the_hub(hub: Hub, artifact: Path) -> None:
    encoder = load_encoder(artifact, replica=1)
    assert encoder.push_to_hub("me/psi", private=True, commit_message="First") == "https://huggingface.co/commit"
    assert hub.calls[-1]["uploaded"] == "me/psi"
    assert hub.calls[-1]["commit_message"] == "First"
    files = {path.name for path in (hub.root / "me" / "psi").iterdir()}
    assert files == {"model.safetensors", "config.json", "metadata.json", "README.md"}
    card = (hub.root / "me" / "psi" / "README.md").read_text()
    front = front_matter(card)
    assert (front["library_name"], front["license"]) == ("dynarep", "unknown")
    assert front["pipeline_tag"] == "feature-extraction"
    assert 'dynarep.load_encoder("hf://me/psi")' in card
    assert "- **path**: artifacts/pretrain/intent\n" in card

    loaded = load_encoder("hf://me/psi")
    assert hub.calls[-1] == {"name": "me/psi", "revision": None}
    np.testing.assert_array_equal(loaded(S), encoder(S))
    assert loaded.source == "hf://me/psi"
    load_encoder("hf://me/psi@refs/pr/1")
    assert hub.calls[-1]["revision"] == "refs/pr/1"
    with pytest.raises(ArtifactError, match="hf://me/phi@v1: cannot be fetched: LocalEntryNotFoundError"):
        load_encoder("hf://me/phi@v1")


def test_from_pretrained(hub: Hub, artifact: Path, tmp_path: Path) -> None:
    encoder = load_encoder(artifact)
    encoder.push_to_hub("me/psi")
    loaded = PretrainedIntent.from_pretrained("me/psi", revision="v1", token="t", trainable=True)
    assert loaded.source == "hf://me/psi@v1"
    assert hub.calls[-1]["revision"] == "v1"
    assert hub.calls[-1]["token"] == "t"
    np.testing.assert_array_equal(loaded(S), encoder(S))
    assert all(weight.requires_grad for weight in loaded.parameters())
    encoder.save_pretrained(tmp_path / "saved")
    for folder in (artifact, tmp_path / "saved"):
        np.testing.assert_array_equal(PretrainedIntent.from_pretrained(folder)(S), encoder(S))
    with pytest.raises(ArtifactError, match="hf://me/psi: type is PretrainedIntent, expected PretrainedDynamics"):
        PretrainedDynamics.from_pretrained("me/psi")


@pytest.mark.parametrize("prefix", ["", "hf://"])
def test_a_policy_on_the_hub(prefix: str, hub: Hub, tmp_path: Path) -> None:
    save_model(tmp_path / "made", make("policy"))
    (tmp_path / "made" / "metadata.json").write_text('{"datasets": {"hopper": "abc"}, "params": {"seed": 0}}')
    policy = load_policy(tmp_path / "made")
    policy.metadata["scores"] = {"env": "Hopper-v4", "return_mean": 312.5, "episodes": 20}
    policy.push_to_hub("me/hopper-bc", license="apache-2.0", branch="v1", create_pr=True)
    assert {key: hub.calls[-1][key] for key in ("revision", "create_pr")} == {"revision": "v1", "create_pr": True}
    card = (hub.root / "me" / "hopper-bc" / "README.md").read_text()
    front = front_matter(card)
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "reinforcement-learning")
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == "Hopper-v4"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"return_mean": 312.5, "episodes": 20}
    for text in ('policy = dynarep.load_policy("hf://me/hopper-bc")', "Trained on hopper.", "| return_mean | 312.5 |"):
        assert text in card
    loaded = PretrainedPolicy.from_pretrained(f"{prefix}me/hopper-bc")
    np.testing.assert_array_equal(loaded(S), policy(S))
    assert loaded.source == "hf://me/hopper-bc"
    with pytest.raises(ArtifactError, match="found a policy of kind deterministic, expected an encoder"):
        PretrainedIntent.from_pretrained(f"{prefix}me/hopper-bc")


def test_the_hubs_errors_are_ours(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs dynarep[hub]")

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    encoder = load_encoder(artifact)
    with pytest.raises(ArtifactError, match="hf://me/psi: cannot be uploaded: ConnectionError: no network"):
        encoder.push_to_hub("me/psi")
    with pytest.raises(ArtifactError, match="hf://psi: expected hf://<owner>/<name>"):
        encoder.push_to_hub("psi")
    for source in ("me/psi", "hf://me/psi"):
        with pytest.raises(ArtifactError, match="hf://me/psi: cannot be fetched: ConnectionError: no network"):
            PretrainedIntent.from_pretrained(source)
    with pytest.raises(ArtifactError, match="hf://me/psi@v1: found another revision, v2"):
        PretrainedIntent.from_pretrained("hf://me/psi@v1", revision="v2")


@pytest.mark.parametrize("how", ["load_encoder", "from_pretrained"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers #5110, BERTopic #2297: in another working directory a path is taken for the id of a repository."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs dynarep[hub]")
    asked = []

    def ask(name: str, **_: Any) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    monkeypatch.chdir(tmp_path)
    save_model(Path("encoders/hopper"), make("intent"))
    load = load_encoder if how == "load_encoder" else PretrainedIntent.from_pretrained
    for name in ("encoders/hopper", "./encoders/hopper", "encoders/hopper/", str(tmp_path / "encoders" / "hopper")):
        assert isinstance(load(name), PretrainedIntent)
    for name in (
        "encoders/hoppr",
        "./encoders/hoppr",
        "../hopper",
        "artifacts/pretrain/intent/",
        "hopper",
        "/nowhere/x",
    ):
        with pytest.raises(ArtifactError) as error:
            load(name)
        assert str(error.value).startswith(f"{name}: no such folder in {tmp_path}")
    assert not asked
    for name, message in (
        ("hf://owner/name", "hf://owner/name: cannot be fetched: "),
        ("hf://name", "hf://name: expected hf://<owner>/<name>"),
        ("hf:/owner/name", "hf:/owner/name: expected a path, dvc://"),
        ("dvc://#nothing", "dvc://#nothing: cannot be fetched: "),
    ):
        with pytest.raises(ArtifactError) as error:
            load(name)
        assert str(error.value).startswith(message)
    assert asked == ["owner/name"]
    Path("encoders/empty").mkdir()
    with pytest.raises(ArtifactError, match=r"encoders/empty/config.json: no such file"):
        load("encoders/empty")


def test_without_the_hub_package(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: load_encoder("hf://me/psi"), lambda: load_encoder(artifact).push_to_hub("me/psi")):
        with pytest.raises(ArtifactError, match=r"hf://me/psi: needs huggingface_hub: pip install 'dynarep\[hub\]'"):
            call()


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def repository(folder: Path) -> Path:
    """A new git and DVC repository."""
    folder.mkdir()
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.name", "a")
    run(folder, "git", "config", "user.email", "a@b")
    run(folder, sys.executable, "-m", "dvc", "init", "-q")
    run(folder, sys.executable, "-m", "dvc", "config", "core.analytics", "false")
    return folder


def commit(folder: Path, tag: str) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", tag)
    run(folder, "git", "tag", tag)


@pytest.mark.slow
def test_artifacts_of_another_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = (sys.executable, "-m", "dvc")
    owner, user = repository(tmp_path / "owner"), repository(tmp_path / "user")
    storage = tmp_path / "storage"
    run(owner, *dvc, "remote", "add", "-q", "-d", "storage", str(storage))
    path = owner / "artifacts" / "pretrain" / "intent"
    expected = {}
    for tag, kind in (("v1", "intent"), ("v2", "dynamics")):
        shutil.rmtree(path, ignore_errors=True)
        save_model(path, make(kind))
        if kind == "intent":
            (path / "metadata.json").write_text('{"tag": "v1"}')
        run(owner, *dvc, "add", "-q", "artifacts/pretrain/intent")
        run(owner, *dvc, "push", "-q")
        commit(owner, tag)
        expected[tag] = load_encoder(path)
    assert isinstance(expected["v1"], PretrainedIntent)
    latents = expected["v1"](S)

    for source in (
        f"dvc://{owner}#artifacts/pretrain/intent@v1",
        f"dvc://file://{owner}#artifacts/pretrain/intent/@v1",
    ):
        first = load_encoder(source)
        assert isinstance(first, PretrainedIntent)
        np.testing.assert_array_equal(first(S), latents)
        assert first.metadata == {"tag": "v1", "replica": 0}
        assert first.source == source
    assert isinstance(load_encoder(f"dvc://{owner}#artifacts/pretrain/intent"), PretrainedDynamics)  # the latest
    monkeypatch.chdir(owner)
    assert isinstance(load_encoder("dvc://#artifacts/pretrain/intent@v1"), PretrainedIntent)
    monkeypatch.chdir(user)
    with artifact_folder("dvc://owner#artifacts/pretrain/intent@v1", tmp_path) as folder:  # relative to a given folder
        assert isinstance(load_encoder(folder), PretrainedIntent)
    for source in (
        f"dvc://{owner}#artifacts/nothing@v1",
        f"dvc://{owner}#artifacts/pretrain/intent@v9",
        f"dvc://{tmp_path / 'nowhere'}#artifacts/pretrain/intent",
    ):
        with pytest.raises(ArtifactError) as error:
            load_encoder(source)
        assert str(error.value).startswith(f"{source}: cannot be fetched: ")

    run(user, *dvc, "get", str(owner), "artifacts/pretrain/intent", "--rev", "v1", "-o", "got")
    run(user, *dvc, "import", "-q", str(owner), "artifacts/pretrain/intent", "--rev", "v1", "-o", "imported")
    for folder in ("got", "imported"):
        found = load_encoder(folder)
        assert isinstance(found, PretrainedIntent)
        np.testing.assert_array_equal(found(S), latents)
    assert (user / "imported.dvc").exists()
    commit(user, "imported")
    run(user, *dvc, "update", "-q", "--rev", "v2", "imported.dvc")
    assert isinstance(load_encoder("imported"), PretrainedDynamics)

    for folder in (owner / ".dvc" / "cache", storage):
        shutil.rmtree(folder)
    with pytest.raises(ArtifactError, match=r"cannot be fetched: .* on its default remote"):
        load_encoder(f"dvc://{owner}#artifacts/pretrain/intent@v1")
