import json
import math
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dynarep.configs.params import ParamsError
from dynarep.data.folders import whole_folder
from dynarep.data.schema import DataError
from dynarep.pipeline.report import ReportConfig
from dynarep.pipeline.run import Stage, stage_main, write_json
from dynarep.stages import learn, report


class HaltError(Exception):
    pass


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(path: Path, text: str, error: BaseException | None = None) -> None:
    with whole_folder(path) as folder:
        assert folder != path
        assert folder.parent == path.parent  # the same file system
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)
        if error is not None:
            raise error


def test_a_folder_appears_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "artifact"
    fill(path, "one")
    assert contents(path) == {"sub/file": "one"}
    (path / "stray").write_text("stray")
    with whole_folder(path) as folder:
        (folder / "other").write_text("two")
        assert contents(path) == {"stray": "stray", "sub/file": "one"}  # until the end
    assert contents(path) == {"other": "two"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [HaltError(), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_keeps_what_was_there(tmp_path: Path, error: BaseException, existing: bool) -> None:
    path = tmp_path / "artifact"
    if existing:
        fill(path, "one")
    with pytest.raises(type(error)):
        fill(path, "two", error)
    assert contents(tmp_path) == ({"artifact/sub/file": "one"} if existing else {})
    assert list(tmp_path.iterdir()) == ([path] if existing else [])


def test_a_failure_at_the_exchange_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "artifact"
    fill(path, "one")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == ".artifact.new":
            raise OSError("disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="disk"):
        fill(path, "two")
    assert contents(tmp_path) == {"artifact/sub/file": "one"}


def test_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    fill(path, "one")
    (tmp_path / ".artifact.new").mkdir()
    (tmp_path / ".artifact.new" / "half").write_text("half")
    path.rename(tmp_path / ".artifact.old")  # killed between the two renames
    with pytest.raises(HaltError):
        fill(path, "two", HaltError())
    assert contents(tmp_path) == {"artifact/sub/file": "one"}
    (tmp_path / ".artifact.old").mkdir()  # killed before the last clean-up
    (tmp_path / ".artifact.old" / "file").write_text("zero")
    fill(path, "two")
    assert contents(tmp_path) == {"artifact/sub/file": "two"}


def test_write_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    values: dict[Any, Any] = {
        "a": math.nan,
        "b": [math.inf, -math.inf],
        "c": 1 / 3,
        "d": 3.2e-9,
        "e": True,
        5: (1, None),
    }
    write_json(path, values)
    text = path.read_text()
    assert text.endswith("}\n")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    c = found.pop("c")
    assert c == pytest.approx(1 / 3, rel=1e-6)
    assert len(str(c)) <= 10
    assert found == {"a": None, "b": [None, None], "d": 3.2e-9, "e": True, "5": [1, None]}


def project(folder: Path, text: str = "seed: 3\nreplicas: 4\nreport: {title: hello}\n") -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_a_stage_knows_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    stage = Stage("report", Path("params.yaml"))
    assert stage.project == tmp_path.resolve()
    assert stage.artifacts == stage.project / "artifacts"
    assert stage.config(ReportConfig) == ReportConfig(title="hello")
    run = stage.run(tmp_path)
    assert (run.name, run.seed, run.replicas, run.output) == ("report", 3, 4, tmp_path)
    assert run.checkpoints == stage.project / ".dynarep" / "checkpoints" / "report"
    assert (
        Stage("report", Path("params.yaml"), smoke=True).destination == stage.project / ".dynarep" / "smoke" / "report"
    )
    with stage.output() as folder:
        (folder / "file").write_text("text")
    assert contents(stage.artifacts) == {"report/file": "text"}
    logged = json.loads((stage.project / "logs" / "report" / "run.json").read_text())
    assert 0 <= logged["seconds"] < 60
    assert logged["cores"] >= 1
    assert datetime.fromisoformat(logged["started"]).tzinfo is not None
    assert {"version", "revision", "torch"} <= set(logged)
    facts = stage.provenance()
    assert facts["stage"] == "report"
    assert facts["params"] == {"seed": 3, "replicas": 4, "report": {"title": "hello"}}
    assert {"version", "datasets", "path"} <= set(facts)
    assert "revision" not in facts, "what differs from run to run has no place in an artifact"


def test_a_stage_knows_its_place(tmp_path: Path) -> None:
    stage = Stage("report", project(tmp_path))
    assert stage.run(tmp_path).title == "report"
    (tmp_path / "dvc.yaml").write_text("stages: {prepare: {cmd: a}, report: {cmd: b}, other: {cmd: c}}\n")
    assert stage.run(tmp_path).title == "2/3 report"
    assert Stage("report", stage.params, "b").run(tmp_path).title == "2/3 report/b"
    assert Stage("elsewhere", stage.params).place == ""


@pytest.mark.parametrize("smoke", [False, True])
def test_checkpoints_stay_until_the_stage_has_ended_well(tmp_path: Path, smoke: bool) -> None:
    stage, other = Stage("report", project(tmp_path), smoke=smoke), Stage("report", project(tmp_path), smoke=not smoke)
    for one in (stage, other):
        one.checkpoints.mkdir(parents=True)
        (one.checkpoints / "report.ckpt").touch()
    with pytest.raises(HaltError), stage.output():
        raise HaltError
    assert (stage.checkpoints / "report.ckpt").exists()
    with stage.output():
        pass
    assert not stage.checkpoints.exists()
    assert (other.checkpoints / "report.ckpt").exists()


@pytest.mark.parametrize(("text", "key"), [("seed: -1", "seed"), ("replicas: 0", "replicas"), ("seed: x", "seed")])
def test_seed_and_replicas_are_checked(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ParamsError, match=rf"params\.yaml\.{key}: found"):
        Stage("report", project(tmp_path, text)).run_config()


def call(name: str, error: BaseException | None, *arguments: str) -> list[Stage]:
    seen = []

    def main(stage: Stage) -> None:
        seen.append(stage)
        if error is not None:
            raise error

    stage_main(name, main, list(arguments), entries=name == "learn")
    return seen


def test_flags() -> None:
    assert call("report", None) == [Stage("report", Path("params.yaml"))]
    arguments = ("bc", "--params", "elsewhere/p.yaml", "--smoke")
    assert call("learn", None, *arguments) == [Stage("learn", Path("elsewhere/p.yaml"), "bc", smoke=True)]
    for wrong in (("report", "--learning-rate", "1"), ("report", "bc"), ("learn",)):
        with pytest.raises(SystemExit) as stop:
            call(wrong[0], None, *wrong[1:])
        assert stop.value.code == 2


@pytest.mark.parametrize(
    "error",
    [DataError("found this"), ParamsError("found this"), FloatingPointError("found this"), OSError("found this")],
)
def test_known_errors_are_one_line(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("learn", error, "bc")
    assert stop.value.code == 1
    assert capsys.readouterr() == ("", "error: learn/bc: found this (params.yaml: learn.bc)\n")


def test_a_known_error_that_names_a_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("report", OSError(f"{tmp_path}/a: found this"), "--params", f"{tmp_path}/params.yaml")
    assert capsys.readouterr().err == f"error: report: {tmp_path}/a: found this\n"


def test_a_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAREP_TRACEBACK", "1")
    with pytest.raises(DataError):
        call("learn", DataError("found this"), "bc")


def test_unknown_errors_keep_their_traceback() -> None:
    with pytest.raises(HaltError):
        call("learn", HaltError(), "bc")


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("learn", KeyboardInterrupt("at update 3 of 9 of learn/bc"), "bc")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "learn/bc: stopped at update 3 of 9 of learn/bc; run it again to go on\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_outside_of_a_training(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # A shell that started the tests with & has SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            stage_main("evaluate", lambda stage: signal.raise_signal(number), ["bc"], entries=True)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "evaluate/bc: stopped; run it again to go on\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "params.yaml: no such file"),
        ("seed: 0", "params.yaml: learn: no entry"),
        (
            "learn: {a: {kind: random, demonstrations: d, dataset: d, encoder: none, rewards: none}}",
            "artifacts/shards/",
        ),
    ],
)
def test_a_real_stage_fails_in_one_line(
    tmp_path: Path, text: str | None, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml" if text is None else project(tmp_path, text)
    with pytest.raises(SystemExit) as stop:
        stage_main("learn", learn.main, ["a", "--params", str(path)], entries=True)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: learn/a: {tmp_path}")
    assert found in line
    assert not (tmp_path / "artifacts").exists()


def test_a_stage_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        stage_main("report", report.main, ["--params", str(project(tmp_path, "report: {titel: a}"))])
    assert not (tmp_path / "artifacts").exists()


def test_of_two_programs_on_one_stage_one_refuses_and_nothing_is_mixed(tmp_path: Path) -> None:
    project(tmp_path)
    first = (
        "import sys; from pathlib import Path; from dynarep.pipeline.run import Stage\n"
        "with Stage('report', Path('params.yaml')).output() as folder:\n"
        "    (folder / 'file').write_text('first')\n"
        "    print('inside', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", first], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "inside\n"
        stage = Stage("report", tmp_path / "params.yaml")
        with (
            pytest.raises(ValueError, match=r"artifacts/report: another program is at work on this stage \("),
            stage.output() as folder,
        ):
            (folder / "file").write_text("second")
        program.communicate("\n")
    assert program.returncode == 0
    assert contents(stage.destination) == {"file": "first"}
    with stage.output() as folder:
        (folder / "file").write_text("second")
    assert contents(stage.destination) == {"file": "second"}
