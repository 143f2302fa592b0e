"""The whole pipeline, as a user runs it: DVC in a fresh git repository, with a few tiny entries of every section."""

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
from dynarep.pipeline.artifacts.storage import load_encoder_model, load_policy_model

ROOT = Path(__file__).parents[1]

PARAMS = """
seed: 0
replicas: 2
defaults:
  pretrain: &pretrain {dataset: hopper-tiny, initial: none, held_out: 0.2}
  relabel: &relabel {dataset: hopper-tiny, demonstrations: hopper-expert-1-states}
  learn: &learn {dataset: hopper-tiny, demonstrations: hopper-expert-1, encoder: none, hidden: [16]}
  training: &training {updates: 20, batch_size: 32, updates_per_chunk: 10}
pretrain:
  intent: {<<: *pretrain, kind: icvf, hidden: [16], latent_dim: 8, training: *training}
  raw: {<<: *pretrain, kind: identity}
relabel:
  ailot: {<<: *relabel, kind: ailot, space: intent, max_iterations: 10}
  otr: {<<: *relabel, kind: otr, space: raw, max_iterations: 10}
learn:
  random: {dataset: hopper-tiny, demonstrations: hopper-expert-1, encoder: none, rewards: none, kind: random}
  bc: {<<: *learn, kind: bc, rewards: none, training: *training}
  iql_ailot: {<<: *learn, kind: iql, rewards: ailot, training: *training}
  iql_otr: {<<: *learn, kind: iql, rewards: otr, training: *training}
evaluate:
  env: Hopper-v4
  episodes: 1
  max_steps: 10
  workers: 1
  demonstrations: hopper-expert-1
  motion: {dataset: none, space: none}
  recording: {dataset: none, rewards: none}
report: {}
"""

MODEL = ("model.safetensors", "config.json", "metadata.json", "README.md")

ENTRIES = {
    *("none", "prepare", "pretrain@intent", "pretrain@raw", "relabel@ailot", "relabel@otr", "demonstrate", "report"),
    *(f"{stage}@{name}" for stage in ("learn", "evaluate") for name in ("random", "bc", "iql_ailot", "iql_otr")),
}


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


def ran(output: str) -> set[str]:
    """Stages that DVC ran; prepare, which looks after the datasets that any change of params may name, apart."""
    return set(re.findall(r"^Running stage '([\w@]+)'", output, re.MULTILINE)) - {"prepare"}


def new_project(folder: Path) -> Project:
    """A copy of this project with tiny entries, committed, in which nothing has run yet."""
    root = folder / "project"
    ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
    for name in (".dvc", "configs", "data", "pipeline", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in (".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "params.yaml").write_text(PARAMS)

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
    assert ran(project.dvc("repro")) == ENTRIES - {"prepare"}
    project.commit()
    return project


def evaluated(*policies: str) -> set[str]:
    return {f"{stage}@{name}" for stage in ("learn", "evaluate") for name in policies} | {"report"}


def test_every_entry_leaves_its_artifact(project: Project) -> None:
    artifacts = project.root / "artifacts"
    expected = [f"{folder}/{file}" for folder in ("pretrain/intent", "pretrain/raw", "learn/bc") for file in MODEL]
    expected += ["pretrain/intent/curves.tsv", "pretrain/intent/distance.tsv", "pretrain/intent/latents.npz"]
    expected += ["relabel/ailot/returns.tsv", "relabel/ailot/examples/0.npz", "learn/iql_otr/curves.tsv"]
    expected += ["evaluate/bc/returns.json", "report/index.html", "report/metrics.json", "demonstrate/metrics.json"]
    assert [path for path in expected if not (artifacts / path).is_file()] == []
    assert [path for path in artifacts.rglob("*") if path.name.endswith((".tmp", ".old", ".ckpt"))] == []
    assert load_policy_model(artifacts / "learn" / "bc").replicas == 2
    assert load_encoder_model(artifacts / "pretrain" / "intent", observation_dim=11).architecture.replicas == 2
    assert set(project.json("report/metrics.json")) == {"random", "bc", "iql_ailot", "iql_otr"}


def test_what_differs_from_run_to_run_lies_outside_the_artifacts(project: Project) -> None:
    run = json.loads((project.root / "logs" / "learn" / "bc" / "run.json").read_text())
    assert {"started", "seconds", "revision", "version"} <= set(run)
    names = {path.name for path in (project.root / "artifacts").rglob("*")}
    assert not {name for name in names if name in ("timing.json", "model.pt2") or name.startswith("events.out")}


def test_nothing_runs_twice(project: Project) -> None:
    before = project.state()
    output = project.dvc("repro")
    assert "Running stage" not in output
    assert project.state() == before


@pytest.mark.slow
def test_an_equal_rerun_changes_no_byte(project: Project) -> None:
    """What DVC hashes is a function of the inputs alone, so nothing downstream would run again."""
    before = {path: digest for path, (digest, _) in project.state().items()}
    for stage in ("pretrain@intent", "relabel@ailot", "learn@iql_ailot", "evaluate@iql_ailot", "report"):
        project.dvc("repro", "--force", "--single-item", stage)
    assert {path: digest for path, (digest, _) in project.state().items()} == before
    assert "Running stage" not in project.dvc("repro")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "learn:\n  random",
            "  nearest: {<<: *relabel, kind: nearest, space: raw}\nlearn:\n  random",
            {"relabel@nearest", "report"},
        ),
        (
            "evaluate:\n  env",
            "  bc2: {<<: *learn, kind: bc, rewards: none, training: *training, learning_rate: 1.0e-3}\nevaluate:\n  env",
            evaluated("bc2"),
        ),
        ("kind: iql, rewards: otr", "kind: iql, temperature: 5, rewards: otr", evaluated("iql_otr")),
    ],
    ids=["a new label", "a new policy", "the temperature of one policy"],
)
def test_a_change_runs_what_depends_on_it(project: Project, old: str, new: str, expected: set[str]) -> None:
    with project.changed(old, new):
        assert ran(project.dvc("repro")) == expected
    project.dvc("repro")


@pytest.mark.slow
def test_another_dataset_for_one_encoder_runs_what_follows_from_it(project: Project) -> None:
    (project.root / "configs" / "datasets" / "hopper-other.yaml").write_text(
        "mix: [{name: hopper-arbitrary, fraction: 0.04}]\n"
    )
    project.commit()
    output = project.dvc("exp", "run", "-S", "pretrain.intent.dataset=hopper-other")
    assert ran(output) == {"pretrain@intent", "relabel@ailot", *evaluated("iql_ailot")}
    assert set(project.json("pretrain/intent/metadata.json")["datasets"]) == {"hopper-other"}
    assert read_yaml(project.root / "params.yaml")["pretrain"]["intent"]["dataset"] == "hopper-other"
    (project.root / "params.yaml").write_text(PARAMS)
    project.dvc("repro")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pipeline/methods/rewards/otr.py", {"relabel@otr"}),
        ("pipeline/methods/learners/bc.py", {"learn@bc"}),
        ("pipeline/methods/encoders/icvf.py", {"pretrain@intent", "relabel@ailot", "report"}),
    ],
)
def test_touching_a_method_runs_its_entries(project: Project, file: str, expected: set[str]) -> None:
    """Where the result is the same nothing follows; a model's file is part of its artifact, so what reads that runs, too."""
    path = project.root / file
    text = path.read_text()
    path.write_text(text + "\n# touched\n")
    try:
        assert ran(project.dvc("repro")) == expected
    finally:
        path.write_text(text)
        project.dvc("repro")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "stage", "message"),
    [
        (
            "latent_dim: 8",
            "latent_dimension: 8",
            "pretrain/intent",
            r"pretrain\.intent\.latent_dimension: unknown key; icvf knows",
        ),
        ("kind: otr", "kind: ort", "prepare", r"relabel\.otr\.kind: found 'ort', expected one of .*otr"),
        (
            "demonstrations: hopper-expert-1-states",
            "demonstrations: nowhere",
            "prepare",
            r"relabel\.ailot\.demonstrations: found 'nowhere'",
        ),
        ("latent_dim: 8", "latent_dim: 8, learning_rate: 1.0e30", "pretrain/intent", r"non-finite at update \d+"),
    ],
    ids=["unknown key", "unknown kind", "unknown dataset", "learning that diverges"],
)
def test_a_failure_is_one_line_and_loses_nothing(
    project: Project, old: str, new: str, stage: str, message: str
) -> None:
    project.dvc("checkout")  # entries that another test took away again have left their artifacts
    before = {path: digest for path, (digest, _) in project.state().items()}
    with project.changed(old, new):
        done = project.call(sys.executable, "-m", "dvc", "repro")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert re.match(rf"error: {stage}: .*{message}", lines[0]), lines
    project.dvc("checkout")  # DVC removes the previous output of a stage before it runs
    project.dvc("repro")
    assert {path: digest for path, (digest, _) in project.state().items()} == before
