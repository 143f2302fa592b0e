"""The state of a small project, as DVC and its checkpoints have it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from dynarep.configs.params import ParamsError
from dynarep.pipeline.status import StageStatus, pipeline_status
from dynarep.pipeline.training.checkpoint import seal
from dynarep.stages import status

PIPELINE = """
stages:
  first:
    cmd: mkdir -p artifacts/first && cp code.py artifacts/first/model.safetensors && echo {} > artifacts/first/config.json
    params: [first]
    deps: [code.py]
    outs: [artifacts/first]
  second:
    cmd: cat artifacts/first/config.json other.txt > second.txt
    deps: [artifacts/first, other.txt]
    outs: [second.txt]
  third:
    cmd: cp second.txt third.txt
    deps: [second.txt]
    outs: [third.txt]
"""
PARAMS = "first: {updates: 10, method: {hidden: [8], rate: 0.1}}\n"


def reproduce(project: Path) -> None:
    from dvc.repo import Repo

    with chdir(project), Repo(config={"core": {"no_scm": True}}) as repo:
        repo.reproduce()


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project without git in which every stage has run."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("status")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SITE_CACHE_DIR"):
            patch.setenv(name, str(folder / "dvc"))
        project = folder / "project"
        project.mkdir()
        for name, text in (("dvc.yaml", PIPELINE), ("params.yaml", PARAMS), ("code.py", "a = 1\n"), ("other.txt", "b")):
            (project / name).write_text(text)
        Repo.init(str(project), no_scm=True).close()
        (project / ".dvc" / "config").write_text("")  # as in a copy of a repository without its .git
        reproduce(project)
        yield project


@pytest.fixture
def project(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of it, the cache too."""
    shutil.copytree(reproduced, tmp_path / "project", symlinks=True)
    return tmp_path / "project"


def states(project: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {s.name: (s.state, s.reasons) for s in pipeline_status(project)}


def test_all_is_fresh(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline_status(project) == [StageStatus(name, "fresh") for name in ("first", "second", "third")]
    assert status.main(["--params", str(project / "params.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["1/3 first   fresh", "2/3 second  fresh", "3/3 third   fresh", "all stages are fresh"]


def test_stages_stand_below_each_other_also_where_there_are_ten(capsys: pytest.CaptureFixture[str]) -> None:
    status.show([StageStatus(f"learn@{number}", "fresh") for number in range(10)])
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[9]) == (" 1/10 learn@0  fresh", "10/10 learn@9  fresh")


def test_a_stage_that_will_run_makes_stale_what_builds_on_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").write_text(PARAMS.replace("0.1", "0.2").replace("updates: 10, ", ""))
    (project / "code.py").write_text("a = 2\n")
    reasons = ("first.method.rate is 0.2, was 0.1", "first.updates is gone, was 10", "code.py changed")
    assert states(project) == {
        "first": ("stale", reasons),
        "second": ("stale", ("builds on first",)),
        "third": ("stale", ("builds on first",)),
    }
    (project / "dvc.yaml").write_text(PIPELINE.replace("mkdir -p", "mkdir  -p"))
    assert states(project)["first"][1] == (*reasons, "its command changed")
    assert status.main(["--params", str(project / "params.yaml")]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"1/3 first   stale        {'; '.join(reasons)}; and 1 more (dvc status first)"
    assert last == "0 of 3 fresh; dvc repro runs the rest"


def test_the_stages_before_stay_fresh(project: Path) -> None:
    (project / "other.txt").write_text("c")
    found = states(project)
    assert found["first"] == ("fresh", ())
    assert found["second"] == ("stale", ("other.txt changed",))


BACK = " (dvc checkout brings back what the stage wrote)"


@pytest.mark.parametrize(
    ("damage", "reasons"),
    [
        (shutil.rmtree, ("artifacts/first is missing (dvc checkout brings it back)",)),
        (lambda path: (path / "config.json").unlink(), (f"artifacts/first/config.json is missing{BACK}",)),
        (
            lambda path: (path / "config.json").write_text("{"),
            ("artifacts/first/config.json does not load: Expecting property name",),
        ),
        (
            lambda path: (path / "model.safetensors").write_text("a = 1"),
            ("artifacts/first/model.safetensors does not load: ",),
        ),
        (lambda path: (path / "config.json").write_text("[]"), (f"artifacts/first/config.json was changed{BACK}",)),
        (lambda path: (path / "more").touch(), (f"artifacts/first/more was put there{BACK}",)),
    ],
)
def test_outputs_that_are_not_what_the_stage_wrote(
    project: Path, damage: Callable[[Path], object], reasons: tuple[str, ...]
) -> None:
    folder = project / "artifacts" / "first"
    for path in folder.iterdir():  # DVC's files may be links into its cache
        text = path.read_bytes()
        path.unlink()
        path.write_bytes(text)
    damage(folder)
    found = states(project)
    state, words = found["first"]
    assert state == "broken"
    assert len(words) == len(reasons)
    assert all(word.startswith(reason) for word, reason in zip(words, reasons, strict=True)), words
    assert found["second"][0] == "stale"
    assert found["second"][1][-1] == "builds on first"


def test_a_fresh_clone_has_the_lock_alone(project: Path) -> None:
    for path in ("artifacts", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project / path)
    for path in ("second.txt", "third.txt"):
        (project / path).unlink()
    paths = {"first": "artifacts/first", "second": "second.txt", "third": "third.txt"}
    assert states(project) == {
        name: ("broken", (f"{path} is missing, in DVC's cache too (dvc pull may have it)",))
        for name, path in paths.items()
    }


def test_nothing_has_run(project: Path) -> None:
    (project / "dvc.lock").unlink()
    shutil.rmtree(project / "artifacts")
    (project / "second.txt").unlink()
    assert states(project) == {
        "first": ("never run", ()),
        "second": ("never run", ()),
        "third": ("never run", ("DVC does not know what made third.txt",)),
    }


def test_trainings_that_wait(project: Path) -> None:
    folder = project / ".dynarep" / "checkpoints" / "first"
    folder.mkdir(parents=True)
    for name, update in (("a", 10), ("b", 4)):
        kept = {"dynarep": {"name": f"first/{name}", "key": "1234", "updates": update, "total": 10}}
        torch.save(kept, folder / f"first-{name}.ckpt")
        seal(folder / f"first-{name}.ckpt")
    os.mkfifo(folder / "first-c.ckpt")
    assert states(project)["first"][0] == "fresh"  # what waits belongs to something else
    (project / "params.yaml").write_text(PARAMS.replace("0.1", "0.2"))
    assert states(project)["first"] == (
        "interrupted",
        (
            "first/b waits at update 4 of 10",
            "first-c.ckpt is damaged and will be made anew",
            "1 of its trainings is done",
            "first.method.rate is 0.2, was 0.1",
        ),
    )


@pytest.mark.slow
def test_while_dvc_runs(project: Path) -> None:
    cmd = "touch started && while [ ! -e go ]; do sleep 0.05; done && cat artifacts/first/config.json > second.txt"
    (project / "dvc.yaml").write_text(PIPELINE.replace("cat artifacts/first/config.json other.txt > second.txt", cmd))
    script = f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}; import test_status; "
    script += f"test_status.reproduce(test_status.Path({str(project)!r}))"
    running = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (project / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        found = states(project)
    finally:
        (project / "go").touch()
        running.wait(60)
    assert found["first"] == ("fresh", ())
    assert found["second"] == ("running", ())
    assert found["third"] == ("stale", ("builds on second",))


def test_what_is_no_project_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--params", str(tmp_path / "params.yaml")]
    assert status.main(arguments) == 2
    assert (
        capsys.readouterr().err
        == f"error: status: {tmp_path}/dvc.yaml: no such file; expected the project's pipeline\n"
    )
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    assert status.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not inside of a DVC repository" in line
    with pytest.raises(ParamsError, match="DVC repository"):
        pipeline_status(tmp_path)
