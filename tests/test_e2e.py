"""The whole pipeline, as a user runs it: DVC in a fresh git repository, with the tiny preset."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dynarep.configs.params import read_yaml
from dynarep.pipeline.artifacts.storage import load_dynamics_encoder, load_intent_encoder, load_policy

ROOT = Path(__file__).parents[1]
STAGES = (
    "prepare",
    "pretrain_dynamics",
    "pretrain_intent",
    "imitate",
    "relabel",
    "offline_rl",
    "evaluate",
    "report",
)
IMITATORS = ("bc", "value_dice", "repr_value_dice", "smodice")
LEARNERS = ("iql_ailot", "iql_otr", "iql_true", "td3_bc_ailot", "top_bc_rnd")
MODEL = ("model.safetensors", "config.json", "metadata.json", "model.pt2", "README.md", "curves.tsv")
SCORE = ("return_mean", "normalised_iqm", "normalised_low", "normalised_high", "expert_fraction")


@dataclass(frozen=True)
class Project:
    """A copy of this project, with git and DVC, in which every stage has run once."""

    root: Path
    environment: dict[str, str]

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def dvc(self, *arguments: str) -> str:
        """What a command that must succeed prints."""
        done = self.call(sys.executable, "-m", "dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def commit(self) -> None:
        for arguments in (["add", "-A"], ["commit", "-q", "-m", "state"]):
            done = self.call("git", *arguments)
            assert done.returncode == 0, done.stderr

    def json(self, path: str) -> Any:
        return json.loads((self.root / "artifacts" / path).read_text())

    def state(self, *folders: str) -> dict[str, tuple[str, int]]:
        """Digest and time of change of every artifact, or of those in some folders."""
        roots = [self.root / "artifacts" / folder for folder in folders or ("",)]
        files = sorted(path for root in roots for path in root.rglob("*") if path.is_file())
        assert files
        return {
            str(path.relative_to(self.root)): (sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in files
        }

    @contextmanager
    def changed(self, old: str, new: str) -> Iterator[None]:
        """The params file with one place changed, for a while."""
        path = self.root / "params.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        try:
            yield
        finally:
            path.write_text(text)


def ran(output: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)


def new_project(folder: Path) -> Project:
    """A copy of this project with the tiny preset, committed, in which nothing has run yet."""
    root = folder / "project"
    ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
    for name in (".dvc", "configs", "data", "pipeline", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in (".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copy(ROOT / "configs" / "presets" / "tiny.yaml", root / "params.yaml")

    python = folder / "bin" / "python"  # the stages' commands start with this word
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))} | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(folder / "dvc"),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    project = Project(root, environment)
    for arguments in (["init", "-q"], ["config", "user.name", "test"], ["config", "user.email", "test@example.org"]):
        assert project.call("git", *arguments).returncode == 0
    project.commit()
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = new_project(tmp_path_factory.mktemp("e2e"))
    assert sorted(ran(project.dvc("repro"))) == sorted(STAGES)
    project.commit()
    return project


def test_every_stage_leaves_its_artifacts(project: Project) -> None:
    artifacts = project.root / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == sorted(["shards", *STAGES[1:]])
    shards = sorted(path.name for path in (artifacts / "shards").iterdir())
    assert {"hopper-expert-1", "hopper-expert-1-states", "hopper-tiny"} <= set(shards)
    assert "hopper-arbitrary" not in shards  # no stage names it, only the card of hopper-tiny does
    trained = ["pretrain_dynamics", "pretrain_intent"]
    trained += [f"imitate/{name}" for name in IMITATORS] + [f"offline_rl/{name}" for name in LEARNERS]
    expected = [f"{folder}/{file}" for folder in trained for file in MODEL]
    expected += [f"{stage}/metrics.json" for stage in STAGES[1:-1]]
    expected += [f"{stage}/timing.json" for stage in STAGES[1:]]
    expected += ["pretrain_intent/distance.tsv", "pretrain_intent/latents.npz", "relabel/returns.tsv"]
    expected += ["evaluate/returns.json", "evaluate/returns.tsv", "evaluate/clips/clips.json", "report/index.html"]
    for method in ("ailot", "otr"):
        expected += [f"relabel/{method}/returns.tsv", f"relabel/{method}/examples/0.npz"]
        assert list((artifacts / "relabel" / method / "rewards").glob("*.safetensors"))
    assert [path for path in expected if not (artifacts / path).is_file()] == []
    assert [path for path in artifacts.rglob("*") if path.name.endswith((".tmp", ".old", ".ckpt"))] == []


def test_models_load_with_all_replicas(project: Project) -> None:
    artifacts = project.root / "artifacts"
    replicas = read_yaml(project.root / "params.yaml")["replicas"]
    for path in [f"imitate/{name}" for name in IMITATORS] + [f"offline_rl/{name}" for name in LEARNERS]:
        assert load_policy(artifacts / path).replicas == replicas
        assert project.json(f"{path}/metadata.json")["params"]["replicas"] == replicas
    dynamics = load_dynamics_encoder(artifacts / "pretrain_dynamics", observation_dim=11)
    intent = load_intent_encoder(artifacts / "pretrain_intent", observation_dim=11)
    assert dynamics.architecture.replicas == intent.architecture.replicas == replicas


def test_scores_have_their_form(project: Project) -> None:
    scores = project.json("evaluate/metrics.json")
    assert set(scores) == {*IMITATORS, *LEARNERS, "random"}
    for name, score in scores.items():
        assert (score["env"], score["episodes"]) == ("Hopper-v4", 1)
        assert score["replicas"] == (1 if name == "random" else 2)
        assert all(isinstance(score[key], float) for key in SCORE), (name, score)
        assert score["normalised_low"] <= score["normalised_iqm"] <= score["normalised_high"]
    page = (project.root / "artifacts" / "report" / "index.html").read_text()
    assert all(name in page for name in scores)


def test_nothing_runs_twice(project: Project) -> None:
    before = project.state()
    output = project.dvc("repro")
    assert ran(output) == []
    assert "up to date" in output
    assert project.state() == before


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """What DVC shows of metrics: no lists, and nothing that is not known."""
    return {
        key: numbers(value) if isinstance(value, dict) else value
        for key, value in metrics.items()
        if value is not None and not isinstance(value, list)
    }


def test_dvc_shows_metrics_and_plots(project: Project) -> None:
    shown = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]
    stages = ("pretrain_dynamics", "pretrain_intent", "relabel", "evaluate")
    assert set(shown) == {f"artifacts/{stage}/metrics.json" for stage in stages}
    for stage in stages:
        assert shown[f"artifacts/{stage}/metrics.json"]["data"] == numbers(project.json(f"{stage}/metrics.json"))
    plots = json.loads(project.dvc("plots", "show", "--json"))
    curves = {"dynamics_loss", "dynamics_normalisation", "intent_loss", "intent_value"}
    assert set(plots["data"]) == curves | {"distance", "relabelled_returns", "returns"}
    assert "errors" not in plots


@pytest.mark.parametrize(
    ("old", "new", "stage", "message"),
    [
        (
            "{hidden: [16], latent_dim: 8}",
            "{hidden: [16], latent_dimension: 8}",
            "pretrain_intent",
            r"params\.yaml: pretrain_intent\.method\.latent_dimension: unknown key",
        ),
        (
            "demonstrations: hopper-expert-1-states",
            "demonstrations: nowhere",
            "prepare",
            r"params\.yaml: relabel\.demonstrations: found 'nowhere', expected one of .*hopper-expert-1-states",
        ),
        (
            "feature_dim: 8",
            "feature_dim: 8, learning_rate: 1.0e30",
            "pretrain_dynamics",
            r"pretrain_dynamics.*loss.*non-finite at update \d+",
        ),
    ],
    ids=["unknown key", "unknown dataset", "learning that diverges"],
)
def test_a_failure_is_one_line_and_loses_nothing(
    project: Project, old: str, new: str, stage: str, message: str
) -> None:
    before = project.state()
    with project.changed(old, new):
        done = project.call(sys.executable, "-m", "dvc", "repro")
    assert done.returncode != 0
    assert ran(done.stdout)[-1] == stage
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("ERROR: failed to reproduce")]
    assert re.match(rf"error: {stage}: .*{message}", line), line
    project.dvc("checkout")  # DVC removes the previous output of a stage before it runs
    assert contents(project.state()) == contents(before)
    assert ran(project.dvc("repro")) == []


def contents(state: dict[str, tuple[str, int]]) -> dict[str, str]:
    return {path: digest for path, (digest, _) in state.items()}


def test_another_dataset_reruns_what_depends_on_it(project: Project) -> None:
    card = project.root / "configs" / "datasets" / "hopper-other.yaml"
    card.write_text("mix: [{name: hopper-arbitrary, fraction: 0.04}]\n")
    project.commit()
    kept = ("shards/hopper-tiny", "shards/hopper-expert-1", "pretrain_dynamics", "imitate")
    before = project.state(*kept)
    output = project.dvc("exp", "run", "-S", "pretrain_intent.dataset=hopper-other")
    assert ran(output) == ["prepare", "pretrain_intent", "relabel", "offline_rl", "evaluate", "report"]
    assert project.state(*kept) == before
    assert set(project.json("pretrain_intent/metadata.json")["datasets"]) == {"hopper-other"}
    assert set(project.json("pretrain_dynamics/metadata.json")["datasets"]) == {"hopper-tiny"}
    assert read_yaml(project.root / "params.yaml")["pretrain_intent"]["dataset"] == "hopper-other"
    written = re.findall(r"^([\w-]+): .* -> artifacts/shards/", output, re.MULTILINE)
    assert written == ["hopper-other"]
