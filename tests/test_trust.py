"""What is no file, no name or no size that anybody means is refused in one line; nothing hangs, nothing grows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from run_files import write_run

from dynarep.configs.params import ParamsError
from dynarep.data import prepare as preparing
from dynarep.data import remote
from dynarep.data.card import make_card
from dynarep.data.prepare import prepare
from dynarep.data.readers import flat, minari, read
from dynarep.data.readers.guess import guess
from dynarep.data.schema import DataError
from dynarep.data.shards import open_dataset
from dynarep.pipeline.artifacts.pretrained import load_encoder
from dynarep.pipeline.artifacts.storage import ArtifactError
from dynarep.pipeline.entries import datasets_of, parse_entry
from dynarep.pipeline.nn.networks import LARGEST, StackedLinear
from dynarep.pipeline.playing.environments import EvaluationError, make_environment
from dynarep.pipeline.report import ReportConfig, ReportError, build_report
from dynarep.pipeline.report.arrays import LATENTS, read_arrays
from dynarep.pipeline.run import Stage, stage_main
from dynarep.pipeline.stored import read_json
from dynarep.pipeline.training.checkpoint import is_sealed, seal

ROWS = 6
FLAT = {
    "observations": np.arange(3 * ROWS, dtype=np.float32).reshape(ROWS, 3),
    "actions": np.zeros((ROWS, 2), np.float32),
    "terminals": np.zeros(ROWS, bool),
    "timeouts": np.arange(ROWS) == ROWS - 1,
}
GOLDEN = Path(__file__).parent / "data"
WEIGHTS = {"dataset": "x", "kind": "icvf", "latent_dim": 4, "training": {"updates": 4}}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """What waits for a pipe ends in an error."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def recording(path: Path, **keys: Any) -> list[Any]:
    return list(read(path, make_card("x", {"path": str(path), **keys}, "x")))


@pytest.mark.parametrize("make", [fifo, device])
@pytest.mark.parametrize("name", ["r.npz", "r.parquet", "r.hdf5", "r.npy"])
def test_a_recording_that_is_no_file_is_refused(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    if name == "r.parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    make(path)
    keys = {"format": "d4rl"} if name == "r.hdf5" else {"format": "arrays", "observations_only": name == "r.npy"}
    with pytest.raises(DataError, match="found a pipe, device or socket, expected a file"):
        recording(path, **keys)


def test_an_array_of_a_folder_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for name, values in FLAT.items():
        np.save(tmp_path / f"{name}.npy", values)
    assert len(recording(tmp_path, format="arrays")) == 1
    for make, remove in ((fifo, Path.unlink), (device, Path.unlink), (Path.mkdir, Path.rmdir)):
        path = tmp_path / "actions.npy"
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(DataError, match="actions: cannot be read"):
            recording(tmp_path, format="arrays")
        remove(path)


def test_arrays_that_claim_more_than_is_stored_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    many = {**FLAT, "terminals": np.zeros(100_000, bool), "observations": np.zeros((100_000, 3), np.float32)}
    np.savez_compressed(tmp_path / "r.npz", **many)  # type: ignore[arg-type]
    parquet.write_table(pyarrow.table({"terminals": many["terminals"]}), tmp_path / "r.parquet", compression="zstd")
    with h5py.File(tmp_path / "r.hdf5", "w") as file:
        file.create_dataset("observations", data=many["observations"], compression="gzip")
    monkeypatch.setattr(flat, "SMALL", 10_000)
    for name, form in (("r.npz", "arrays"), ("r.parquet", "arrays"), ("r.hdf5", "d4rl")):
        with pytest.raises(DataError, match=rf"{name}.*bytes stored for [\d,]+ in memory, expected at least 1/100"):
            recording(tmp_path / name, format=form)


@pytest.mark.parametrize("second", ["observations.npy", "observations"])
def test_an_archive_with_an_array_twice_is_refused(tmp_path: Path, second: str) -> None:
    path = tmp_path / "r.npz"
    np.savez(path, **FLAT)  # type: ignore[arg-type]
    with zipfile.ZipFile(path, "a") as archive, pytest.warns() if second.endswith("npy") else nullcontext():
        archive.writestr(second, archive.read("observations.npy"))
    for load in (lambda: recording(path, format="arrays"), lambda: guess(path)):
        with pytest.raises(DataError, match="observations: found 2 arrays of this name, expected one"):
            load()


@pytest.mark.parametrize("wrong", ["0 00", "0 2", "1", "0 \u0663"])
def test_numbers_of_episodes_are_written_in_one_way_and_minaris_are_consecutive(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text("{}")
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "w") as main, h5py.File(tmp_path / "r.hdf5", "w") as demos:
        for number in wrong.split():
            names = {"rewards": np.zeros(ROWS), "terminations": np.zeros(ROWS), "truncations": np.zeros(ROWS)}
            states = {"observations": np.zeros((ROWS + 1, 3)), "actions": np.zeros((ROWS, 2))}
            for name, values in {**names, **states}.items():
                main[f"episode_{number}/{name}"] = values
            demos[f"data/demo_{number}/obs/a"] = np.zeros((ROWS, 3))
            demos[f"data/demo_{number}/actions"] = np.zeros((ROWS, 2))
    gap = wrong in ("0 2", "1")
    with pytest.raises(DataError, match="expected episodes without a gap" if gap else "without another spelling"):
        recording(tmp_path, format="minari")
    if not gap:
        with pytest.raises(DataError, match="without another spelling"):
            recording(tmp_path / "r.hdf5", format="robomimic", observations=["a"])


@pytest.mark.parametrize("spec", ["[" * 100_000, json.dumps({"id": {"a": 1}}), 5, "x"])
def test_an_environment_that_is_no_text_is_refused(tmp_path: Path, spec: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text(json.dumps({"env_spec": spec}))
    with pytest.raises(DataError, match=r"metadata\.json: env_spec: "):
        minari.environment(tmp_path)


@pytest.mark.parametrize("key", ["dataset", "initial"])
@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".", "a\n", "x" * 81])
def test_what_becomes_a_folder_is_a_name(key: str, name: str) -> None:
    with pytest.raises(ParamsError, match=rf"pretrain\.e\.{key}: found "):
        parse_entry("pretrain", "e", {**WEIGHTS, key: name})
    with pytest.raises(ParamsError, match=r"params: evaluate\.demonstrations: found "):
        datasets_of({"evaluate": {"demonstrations": name}})
    with pytest.raises(ParamsError, match=r"params: learn: found "):
        datasets_of({"learn": {name: {}}})


def test_an_entry_without_content_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"params: pretrain\.e: found None, expected a map with kind"):
        datasets_of({"pretrain": {"e": None}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": [0]}, r"e\.hidden\.0: found 0"),
        ({"hidden": [-8]}, r"e\.hidden\.0: found -8"),
        ({"hidden": [10**9]}, r"e\.hidden\.0: found 1000000000"),
        ({"hidden": [1] * 257}, r"e\.hidden: found "),
        ({"training": {"updates": 4, "snapshots": 5}}, "snapshots: found 5, expected at most 4"),
        ({"training": {"updates": 10**9, "snapshots": 10**9}}, r"e\.training\.snapshots: found 1000000000"),
    ],
)
def test_sizes_that_no_training_has_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_entry("pretrain", "e", {**WEIGHTS, **changes})


def test_a_layer_beyond_any_model_is_refused_before_memory_is_asked_for() -> None:
    side = 1 << 20
    with pytest.raises(
        ValueError, match=rf"found shape \(2, {side}, {side}\), expected .* at most {LARGEST:,} weights"
    ):
        StackedLinear((2,), side, side)


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 3 PiB"), RuntimeError("can't allocate memory: 8 TB\nframes")]
)
def test_memory_that_is_not_there_is_one_line(
    tmp_path: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(stage: Stage) -> None:
        raise error

    with pytest.raises(SystemExit):
        stage_main("report", main, ["--params", str(tmp_path / "params.yaml")])
    line = capsys.readouterr().err
    assert line.startswith("error: report: not enough memory")
    assert line.count("\n") == 1


def test_another_error_of_a_program_is_no_line(tmp_path: Path) -> None:
    def main(stage: Stage) -> None:
        raise RuntimeError("a memory of what was")

    with pytest.raises(RuntimeError):
        stage_main("report", main, ["--params", str(tmp_path / "params.yaml")])


@pytest.mark.parametrize("replica", [True, 1.5, "0", None, -1, 2])
def test_a_replica_is_a_number_of_one(replica: Any) -> None:
    with pytest.raises(ArtifactError, match=r"replica: found .*, expected 0 to 1"):
        load_encoder(GOLDEN / "artifacts-v2" / "intent", replica=replica)


def test_a_replica_can_be_a_number_of_numpy() -> None:
    assert load_encoder(GOLDEN / "artifacts-v2" / "intent", replica=np.int64(1)).metadata["replica"] == 1


def test_shards_used_in_place_are_there(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "x.yaml").write_text("shards: p\n")
    place = tmp_path / "p"
    place.mkdir()
    index = (GOLDEN / "datasets-v3" / "golden" / "index.json").read_bytes()
    (place / "index.json").write_bytes(index)
    with pytest.raises(DataError, match=r"shard-000000\.tar: no such file, but index\.json lists it"):
        prepare(["x"], cards=cards, root=tmp_path, out=tmp_path / "out")
    (place / "shard-000000.tar").write_bytes(b"short")
    with pytest.raises(DataError, match=r"shard-000000\.tar: found 5 bytes, expected 10240"):
        prepare(["x"], cards=cards, root=tmp_path, out=tmp_path / "out")


def test_an_index_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    index = json.loads((GOLDEN / "datasets-v3" / "golden" / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "location": None}))
    with pytest.raises(DataError, match=r"index\.json: location: found None"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("wrong", [{"cards": [1]}, {"sources": 5}, {"left_out": 5}, {"terminals_inside": "x"}, []])
def test_where_a_dataset_comes_from_has_a_form(tmp_path: Path, wrong: Any) -> None:
    index = json.loads((GOLDEN / "datasets-v3" / "golden" / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "provenance": wrong}))
    with pytest.raises(DataError, match=r"index\.json: provenance.*: found "):
        open_dataset(tmp_path)


@pytest.mark.parametrize("make", [fifo, device, Path.mkdir])
def test_a_checkpoint_or_seal_that_is_no_file_does_not_hang(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": 1}, path)
    seal(path)
    assert is_sealed(path)
    mark = path.with_suffix(".sha256")
    digest = mark.read_text()
    mark.unlink()
    make(mark)
    assert not is_sealed(path)
    mark.rmdir() if mark.is_dir() else mark.unlink()
    mark.write_text(digest)
    path.unlink()
    make(path)
    with pytest.raises(OSError, match=str(path)):
        is_sealed(path)


RETURNS: dict[str, Any] = {
    "env": "Hopper-v4",
    "env_options": {},
    "seed": 0,
    "plane": None,
    "max_steps": None,
    "reference": [-20.0, 3234.0],
    "versions": {"gymnasium": "1.4.0"},
    "policies": {
        "bc": {"returns": [[1.0, 2.0], [3, 4]], "lengths": [[5, 6], [7, 8]], "successes": [[1.0, None], [0, 0]]}
    },
}
PLAYED = RETURNS["policies"]["bc"]
METADATA: dict[str, Any] = {"stage": "learn/bc", "params": {}, "datasets": {}}
INDEX: dict[str, Any] = {"transitions": 1, "shards": [{"episodes": ["a"]}], "env": None, "returns": None}
INDEX |= {"provenance": {"cards": {}}}


def test_returns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "returns.json"
    path.write_text(json.dumps({**RETURNS, "more": 1, "policies": {"bc": PLAYED, "bc@10": PLAYED}}))
    assert read_json(path)["policies"]["bc@10"] == PLAYED


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("returns.json", {**RETURNS, "policies": {"../bc": PLAYED}}, r"policies\.\.\./bc"),
        ("returns.json", {**RETURNS, "policies": {"=1+1": PLAYED}}, "policies"),
        ("returns.json", {**RETURNS, "policies": {"a\tb": PLAYED}}, "policies"),
        ("returns.json", {**RETURNS, "policies": {}}, "policies"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "returns": []}}}, r"policies\.bc\.returns"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "returns": [[1.0], [2.0, 3.0]]}}}, "found rows of"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "returns": [[None, 1.0], [1, 1]]}}}, "found None"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "returns": [["1", "2"], ["3", "4"]]}}}, "found '1'"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "lengths": [[-1, 1], [1, 1]]}}}, "found -1"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "successes": [[1.0]]}}}, "successes: found rows of"),
        ("returns.json", {**RETURNS, "reference": [1.0]}, "reference"),
        ("returns.json", {**RETURNS, "reference": [1.0, 1.0]}, "reference"),
        ("returns.json", {**RETURNS, "plane": [0]}, "plane"),
        ("returns.json", {**RETURNS, "seed": True}, "seed"),
        ("returns.json", {key: value for key, value in RETURNS.items() if key != "env"}, "env"),
        ("clip.json", {"seconds_per_frame": 0}, "seconds_per_frame: found 0"),
        ("clip.json", {"seconds_per_frame": 1, "file": "../../etc/passwd.webp"}, "file: found '../../etc"),
        ("clip.json", {"seconds_per_frame": 1, "frames": 0}, "frames: found 0"),
        ("metadata.json", {**METADATA, "params": {"learn": []}}, r"params\.learn: found \[\]"),
        ("metadata.json", {**METADATA, "params": {"learn": {"a": 5}}}, r"params\.learn\.a: found 5"),
        (
            "metadata.json",
            {**METADATA, "params": {"learn": {"a": {"training": []}}}},
            r"learn\.a\.training: found \[\]",
        ),
        ("returns.json", {**RETURNS, "recording": {"dataset": "x"}}, r"no 'recording\.own'"),
        ("returns.json", {**RETURNS, "policies": {"bc": {"returns": [[1e39]], "lengths": [[1]]}}}, "found 1e[+]39"),
        ("metadata.json", {**METADATA, "datasets": "x"}, "datasets: found 'x'"),
        ("metadata.json", {**METADATA, "saw": {"a": 5}}, r"saw\.a: found 5"),
        ("demonstrate/metrics.json", {"returns": None}, "no 'dataset'"),
        ("demonstrate/metrics.json", {"dataset": "x", "returns": []}, "returns: found "),
        ("config.json", {}, "no 'kind'"),
        ("returns.json", {**RETURNS, "policies": {"bc": {**PLAYED, "lengths": [[1.5, 1], [1, 1]]}}}, "found 1.5"),
        ("demonstrate/metrics.json", {"dataset": "x", "returns": [None]}, r"returns\.0: found None"),
        ("metrics.json", {"spearman_true_return": "1"}, "spearman_true_return: found '1'"),
        ("index.json", {**INDEX, "transitions": -1}, "transitions: found -1"),
        ("index.json", {**INDEX, "shards": [{}]}, r"no 'shards\.0\.episodes'"),
        ("index.json", {**INDEX, "provenance": []}, r"provenance: found \[\]"),
        ("index.json", {**INDEX, "env": "a b"}, "env: found 'a b'"),
    ],
)
def test_a_file_of_a_stage_that_another_cannot_have_written_is_refused(
    tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make", [fifo, device, Path.mkdir])
def test_a_file_of_a_stage_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "returns.json"
    make(path)
    with pytest.raises(ValueError, match=r"returns\.json: cannot be read"):
        read_json(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', "\ud800"])
def test_json_that_nobody_writes_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"metrics\.json: not valid JSON"):
        read_json(path)


def test_an_archive_of_a_stage_that_claims_more_than_is_stored_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "SMALL", 10_000)
    np.savez_compressed(tmp_path / "latents.npz", latents=np.zeros(1_000_000))
    with pytest.raises(ReportError, match=r"latents\.npz: .* bytes stored for 8,000,128 in memory"):
        read_arrays(tmp_path / "latents.npz", LATENTS)


@pytest.mark.parametrize("make", [fifo, device, Path.mkdir])
def test_an_input_of_the_report_that_is_no_file_is_not_taken_for_missing(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    write_run(tmp_path)
    for file in ("demonstrate/metrics.json", "learn/bc/metadata.json", "evaluate/bc/clip.json"):
        (tmp_path / file).rename(tmp_path / "aside")
        make(tmp_path / file)
        with pytest.raises(ValueError, match=f"{file}: cannot be read"):
            build_report(ReportConfig(), tmp_path)
        (tmp_path / file).rmdir() if make is Path.mkdir else (tmp_path / file).unlink()
        (tmp_path / "aside").rename(tmp_path / file)


def test_a_film_has_the_frames_that_its_picture_shows(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "evaluate" / "bc" / "clip.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "frames": 1000}))
    with pytest.raises(
        ReportError, match=r"evaluate/bc/clip\.json: frames: found 1000, expected as many as bc\.webp shows"
    ):
        build_report(ReportConfig(), tmp_path)


def write_card(folder: Path, name: str = "x", **values: Any) -> Path:
    cards = folder / "configs" / "datasets"
    cards.mkdir(parents=True, exist_ok=True)
    (cards / f"{name}.yaml").write_text(json.dumps(values))
    return cards


def prepare_in(folder: Path, name: str = "x", **values: Any) -> Path:
    prepare([name], cards=write_card(folder, name, **values), root=folder, out=folder / "out")
    return folder / "out" / name


def test_a_checksum_of_any_source_is_compared(tmp_path: Path) -> None:
    """Of a file, of a folder by what sha256sum prints, and of shards by their index."""
    np.savez(tmp_path / "r.npz", **FLAT)  # type: ignore[arg-type]
    (tmp_path / "f").mkdir()
    for name, values in FLAT.items():
        np.save(tmp_path / "f" / f"{name}.npy", values)
    prepare_in(tmp_path, "y", path="r.npz", format="arrays")
    files = sorted((tmp_path / "f").iterdir())
    lines = "".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    for source, values in (
        (tmp_path / "r.npz", {"path": "r.npz", "format": "arrays"}),
        (None, {"path": "f", "format": "arrays"}),
        (tmp_path / "out" / "y" / "index.json", {"shards": "out/y"}),
    ):
        right = sha256(lines.encode() if source is None else source.read_bytes()).hexdigest()
        prepare_in(tmp_path, **values, sha256=right)
        with pytest.raises(DataError, match=f"found sha256 {right}, expected {'0' * 64} as the card x says"):
            prepare_in(tmp_path, **values, sha256="0" * 64)
    with pytest.raises(DataError, match=r"x\.yaml: sha256: only for a source of its own, this card has from"):
        prepare_in(tmp_path, **{"from": "y"}, sha256="0" * 64)


@pytest.mark.parametrize("kind", ["path", "shards"])
def test_what_is_hashed_is_what_was_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that changes between its hash and the end of the reading is refused, and what was there stays."""
    np.savez(tmp_path / "r.npz", **FLAT)  # type: ignore[arg-type]
    before = prepare_in(tmp_path, "y", path="r.npz", format="arrays")
    write_card(tmp_path, "z", shards="out/y")
    source, values = {
        "path": (tmp_path / "r.npz", {"path": "r.npz", "format": "arrays"}),
        "shards": (before / "index.json", {"from": "z"}),
    }[kind]
    earlier = (prepare_in(tmp_path, **values) / "index.json").read_bytes()

    def read_and_change(*arguments: Any) -> Any:
        found = build(*arguments)
        source.write_bytes(source.read_bytes() + b"\n")
        return found

    build = preparing._build
    monkeypatch.setattr(preparing, "_build", read_and_change)
    with pytest.raises(
        DataError, match=r"(r\.npz|index\.json): found sha256 \w{64}, expected \w{64}; it changed while"
    ):
        prepare_in(tmp_path, **values, env="Hopper-v4")
    assert (tmp_path / "out" / "x" / "index.json").read_bytes() == earlier


def test_a_dataset_by_name_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no record lies beside it: the prepared dataset has one."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    make_minari(tmp_path / "minari" / "hopper" / "test-v0")
    values = {"dataset": "hopper/test-v0", "format": "minari"}
    prepare_in(tmp_path, **values)
    prepare_in(tmp_path, **values, stride=2)
    with h5py.File(tmp_path / "minari" / "hopper" / "test-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/rewards"][0] = 5.0
    with pytest.raises(
        DataError, match=r"hopper/test-v0: found sha256 \w{64}, expected \w{64} as when hopper/test-v0 was"
    ):
        prepare_in(tmp_path, **values)
    shutil.rmtree(tmp_path / "out" / "x")
    prepare_in(tmp_path, **values)


@pytest.mark.parametrize("name", ["../../x-v0", "/x-v0", "a/../x-v0", ".x-v0", "x", "a//x-v0"])
def test_an_id_of_minari_is_no_path(name: str) -> None:
    with pytest.raises(DataError, match=r"dataset: found .*, expected an id of Minari"):
        minari.local(name)


def make_minari(folder: Path, **described: Any) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text(json.dumps(described))
    columns = {"rewards": np.zeros(ROWS), "terminations": np.zeros(ROWS), "truncations": np.eye(ROWS)[-1]}
    columns |= {"observations": np.zeros((ROWS + 1, 3)), "actions": np.zeros((ROWS, 2))}
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for name, values in columns.items():
            file[f"episode_0/{name}"] = values


@pytest.mark.parametrize("count", [True, 1.0, "1", None, [1]])
def test_a_count_of_minari_is_a_whole_number(tmp_path: Path, count: Any) -> None:
    make_minari(tmp_path, total_episodes=count)
    with pytest.raises(DataError, match=r"metadata\.json: total_episodes: found .*, expected a whole number"):
        recording(tmp_path, format="minari")


@pytest.mark.parametrize("name", ["", "a\nb", "<b>", "a b", "a" * 201])
def test_an_environment_is_an_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="env: found "):
        make_card("x", {"path": "r.npz", "format": "arrays", "env": name}, "x")
    make_minari(tmp_path, env_spec=json.dumps({"id": name}))
    with pytest.raises(DataError, match=r"metadata\.json: env_spec: found "):
        minari.environment(tmp_path)
    index = json.loads((GOLDEN / "datasets-v3" / "golden" / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "env": name}))
    with pytest.raises(DataError, match=r"index\.json: env: found "):
        open_dataset(tmp_path)


def test_how_films_are_drawn_is_no_option_of_an_environment() -> None:
    with pytest.raises(EvaluationError, match="render_mode: found 'human', expected no such key"):
        make_environment("Hopper-v4", {"render_mode": "human"})


def test_a_mixture_has_each_card_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mix: found y 2 times, expected each card once"):
        make_card("x", {"mix": ["y", {"name": "y", "fraction": 0.5}]}, "x")


def write_masked(path: Path, mask: Callable[[h5py.Group], object], samples: Any = None) -> None:
    with h5py.File(path, "w") as file:
        for number in range(2):
            file[f"data/demo_{number}/obs/a"] = np.zeros((ROWS, 3))
            file[f"data/demo_{number}/actions"] = np.zeros((ROWS, 2))
            if samples is not None:
                file[f"data/demo_{number}"].attrs["num_samples"] = samples
        mask(file.create_group("mask"))


def elsewhere(mask: h5py.Group) -> None:
    secret = Path(mask.file.filename).with_name("secret")
    secret.write_bytes(b"a secret")
    mask.create_dataset("train", (1,), "S8", external=[(str(secret), 0, 8)])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (elsewhere, "mask/train: found names of demonstrations stored in .*, expected them in the file itself"),
        (lambda mask: mask.create_virtual_dataset("train", h5py.VirtualLayout((1,), "S8")), "found a virtual dataset"),
        (lambda mask: mask.create_dataset("train", (10**10,), "S99", chunks=(10**6,)), "found 0 of 10,000 chunks"),
        (lambda mask: mask.create_dataset("train", data=np.arange(2)), "found int64 array, expected an array of names"),
        (lambda mask: mask.create_dataset("train", data=[b"demo_0"] * 2), "found 'demo_0' 2 times, expected names of"),
        (lambda mask: mask.create_dataset("train", data=[b"demo_\xff"]), "mask/train: found 'demo_\ufffd', expected"),
        (lambda mask: mask.create_dataset("train", data=[b"demo_7"]), "mask/train: found 'demo_7', expected names of"),
    ],
)
def test_a_choice_of_demonstrations_is_names_in_the_file(
    tmp_path: Path, mask: Callable[[h5py.Group], object], message: str
) -> None:
    write_masked(tmp_path / "r.hdf5", mask)
    with pytest.raises(DataError, match=rf"r\.hdf5: .*{message}"):
        recording(tmp_path / "r.hdf5", format="robomimic", observations=["a"], subset="train")


@pytest.mark.parametrize("samples", [[ROWS, ROWS], float(ROWS), str(ROWS), ROWS + 1])
def test_a_count_of_robomimic_is_a_whole_number(tmp_path: Path, samples: Any) -> None:
    write_masked(tmp_path / "r.hdf5", lambda mask: None, samples)
    with pytest.raises(DataError, match=rf"data/demo_0: obs: found {ROWS} rows, expected .* by num_samples"):
        recording(tmp_path / "r.hdf5", format="robomimic", observations=["a"])


def test_an_empty_file_is_not_hashed(tmp_path: Path) -> None:
    """Those of /proc say so, and some have no end."""
    (tmp_path / "r.hdf5").touch()
    with pytest.raises(DataError, match=r"r\.hdf5: cannot be read, .*: found an empty file"):
        prepare_in(tmp_path, path="r.hdf5", format="d4rl")


def test_a_remote_index_is_measured_before_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local file system copies a file without telling how far it is."""
    (tmp_path / "index.json").write_bytes(bytes(1000))
    monkeypatch.setattr(remote, "INDEX_BYTES", 100)
    monkeypatch.setattr(LocalFileSystem, "get_file", lambda *_, **__: pytest.fail("copied"))
    with pytest.raises(DataError, match=r"index\.json: found 1,000 bytes or more, expected at most 100"):
        remote.read_remote_index(f"file://{tmp_path}")
