"""Readers and loaders of the data layer, and the report, on inputs damaged at random: some content, or a known error.

A known error is a ``DataError``, ``ParamsError`` or ``ReportError`` that names the file. Where a checksum covers the
content, another content is never accepted. A failure names the seed, from which ``damaged`` makes the input again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch
from zlib import crc32

import h5py
import numpy as np
import pytest
import yaml
from run_files import write_plane, write_run

from dynarep.configs.params import ParamsError, config, read_section
from dynarep.data.card import load_card, make_card
from dynarep.data.columns import read_latents, write_latents
from dynarep.data.readers import read
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, open_dataset, read_rewards, write_dataset, write_rewards
from dynarep.data.stream import ShardFiles
from dynarep.pipeline.report import ReportConfig, ReportError, build_report

ROWS = 12
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(ROWS + 1, 3)).astype(np.float32)
FLAT = {
    "observations": STATES[:-1],
    "next_observations": STATES[1:],
    "actions": RNG.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
    "rewards": RNG.normal(size=ROWS).astype(np.float32),
    "terminals": np.arange(ROWS) == ROWS - 1,
    "timeouts": np.arange(ROWS) == 5,
}


def content(episodes: list[Episode]) -> str:
    digest = sha256()
    for e in episodes:
        digest.update(f"{e.id} {e.terminated} {e.truncated}".encode())
        for values in (e.current, e.successors, e.actions, e.rewards):
            digest.update(b"-" if values is None else values.tobytes())
    return digest.hexdigest()


def recording(path: Path, **keys: Any) -> str:
    return content(list(read(path, make_card("x", {"path": str(path), **keys}, "x"))))


def hdf5(path: Path, arrays: dict[str, np.ndarray], **options: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **options)


def make_minari(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "metadata.json").write_text(
        json.dumps({"total_episodes": 1, "total_steps": ROWS, "env_spec": json.dumps({"id": "Hopper-v4"})})
    )
    names = {"actions": FLAT["actions"], "rewards": FLAT["rewards"], "observations": STATES}
    names |= {"terminations": FLAT["terminals"], "truncations": np.zeros(ROWS, bool)}
    hdf5(folder / "data" / "main_data.hdf5", {f"episode_0/{name}": values for name, values in names.items()})


def make_robomimic(folder: Path) -> None:
    arrays = {"obs/a": FLAT["observations"], "next_obs/a": FLAT["next_observations"], "actions": FLAT["actions"]}
    hdf5(folder / "r.hdf5", {f"data/demo_{i}/{name}": values for i in range(2) for name, values in arrays.items()})


def make_folder(folder: Path) -> None:
    for name, values in FLAT.items():
        np.save(folder / f"{name}.npy", values)


def make_prepared(folder: Path) -> None:
    episodes = [
        Episode(
            id=f"x-{i}",
            observations=STATES[: 4 + i],
            actions=FLAT["actions"][: 3 + i],
            rewards=FLAT["rewards"][: 3 + i],
            terminated=False,
            truncated=True,
        )
        for i in range(3)
    ]
    bounds = ((-1.0, -1.0), (1.0, 1.0))
    write_dataset(folder, "x", episodes, provenance={}, env="Hopper-v4", bounds=bounds, shard_bytes=3000)


def load_prepared(folder: Path) -> str:
    dataset = load_dataset(folder)
    return f"{content(dataset.episodes)} {dataset.spec}"


def stream_prepared(folder: Path) -> str:
    dataset = open_dataset(folder)
    with ShardFiles(dataset) as files:
        files.hold(range(len(dataset.shards)))
        return content([files.read(i, j) for i, shard in enumerate(dataset.shards) for j in range(len(shard.episodes))])


def make_columns(folder: Path) -> None:
    make_prepared(folder / "data")
    dataset = load_dataset(folder / "data")
    write_rewards(folder, dataset, {e.id: np.ones((2, e.length)) for e in dataset.episodes})
    write_latents(folder, dataset, lambda members: [e.observations for e in members], encoder="itself")


def load_columns(folder: Path) -> str:
    dataset = load_dataset(folder / "data")
    columns = [*read_rewards(folder, dataset).items(), *read_latents(folder, dataset).items()]
    return sha256(b"".join(name.encode() + values.tobytes() for name, values in columns)).hexdigest()


def make_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = {name: values.tolist() for name, values in FLAT.items()}
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(table), folder / "r.parquet")


def make_run(folder: Path) -> None:
    write_run(folder)
    write_plane(folder)


def report(folder: Path) -> str:
    """The page, its plots made and not drawn, which takes most of the time."""

    def save(figure: object, file: TextIO, **options: object) -> None:
        file.write("<svg></svg>")

    with patch("matplotlib.figure.Figure.savefig", save), patch.dict("sys.modules", umap=None):
        return build_report(ReportConfig(), folder)


CARD = {"path": "r.npz", "format": "arrays", "action_low": [-1.0, -0.5], "top": 3, "stride": 2, "description": "words"}
SECTION = {"seed": 0, "part": {"rate": 1.0e-3, "widths": [8, 8], "inner": {"count": 3, "on": True}, "name": "a"}}


@config
class Inner:
    count: int = 1
    on: bool = False


@config
class Section:
    rate: float
    widths: tuple[int, ...]
    inner: Inner
    name: str


@dataclass(frozen=True)
class Target:
    """A valid input, and what loads it.

    Args:
        make: writes it into an empty folder.
        load: gives its content.
        sealed: whether a checksum covers the content.
        native: whether a library parses it that is not safe from its input, so that it is read in another process.
        seeds: damages in a default run of the tests.
    """

    make: Callable[[Path], object]
    load: Callable[[Path], str]
    sealed: bool = False
    native: bool = False
    seeds: int = 40


def archive(save: Callable[..., None], arrays: dict[str, np.ndarray], folder: Path) -> None:
    save(folder / "r.npz", **arrays)


OGBENCH = {name: FLAT[name] for name in ("observations", "actions")} | {"terminals": FLAT["terminals"]}
TARGETS = {
    "arrays": Target(partial(archive, np.savez, FLAT), lambda f: recording(f / "r.npz", format="arrays")),
    "arrays, compressed": Target(
        partial(archive, np.savez_compressed, FLAT), lambda f: recording(f / "r.npz", format="arrays")
    ),
    "arrays, folder": Target(make_folder, lambda f: recording(f, format="arrays")),
    "ogbench": Target(partial(archive, np.savez, OGBENCH), lambda f: recording(f / "r.npz", format="ogbench")),
    "d4rl": Target(lambda f: hdf5(f / "r.hdf5", FLAT), lambda f: recording(f / "r.hdf5", format="d4rl"), native=True),
    "d4rl, compressed": Target(
        lambda f: hdf5(f / "r.hdf5", FLAT, chunks=True, compression="gzip", fletcher32=True),
        lambda f: recording(f / "r.hdf5", format="d4rl"),
        native=True,
    ),
    "parquet": Target(make_parquet, lambda f: recording(f / "r.parquet", format="arrays")),
    "robomimic": Target(
        make_robomimic,
        lambda f: recording(f / "r.hdf5", format="robomimic", observations=["a"]),
        native=True,
    ),
    "minari": Target(make_minari, lambda f: recording(f, format="minari"), native=True),
    "prepared": Target(make_prepared, load_prepared, sealed=True),
    "prepared, streamed": Target(make_prepared, stream_prepared, sealed=True),
    "prepared, as a recording": Target(make_prepared, lambda f: recording(f, format="prepared"), sealed=True),
    "columns": Target(make_columns, load_columns, sealed=True),
    "card": Target(
        lambda f: (f / "x.yaml").write_text(yaml.safe_dump(CARD)),
        lambda f: repr(load_card("x", f)),
    ),
    "params": Target(
        lambda f: (f / "params.yaml").write_text(yaml.safe_dump(SECTION)),
        lambda f: repr(read_section(f / "params.yaml", "part", Section)),
    ),
    "report": Target(make_run, report, seeds=10),
}

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**70,
    1.5,
    -0.0,
    1e39,
    "",
    "x",
    "../x",
    "\0",
    "\ud800",
    "ünï",
    [],
    {},
    [[]],
]


def exchanged(value: Any, rng: random.Random) -> Any:
    """Another value in a random place of a JSON value: of another type, missing, or twice."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        kind = rng.random()
        if kind < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        if kind < 0.2:
            return {**value, rng.choice(("more", "", *value)): rng.choice(ODD)}
        return {**value, key: exchanged(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.2:
            return value[:i] + value[i + 1 :]
        if kind < 0.4:
            return [*value, value[i]]
        return [*value[:i], exchanged(value[i], rng), *value[i + 1 :]]
    return rng.choice(ODD)


def exchanged_array(values: np.ndarray, rng: random.Random) -> np.ndarray:
    """Another array: of another type, shape or size, or with numbers that nobody measures."""
    n = rng.randrange(8)
    if n == 0:
        return values.astype("U8")
    if n == 1:
        return values[..., None]
    if n == 2:
        return values[:0] if values.ndim else values[None]
    if n == 3:
        return values[:-1] if values.ndim else values[None]
    if n == 4:
        return values.T if values.ndim > 1 else values[::-1] if values.ndim else values
    if n == 5:
        return np.asarray(values.ravel()[0])
    return np.full(values.shape, rng.choice((np.nan, -np.inf, 1e308, 1e38, -1.0, 0.5)))


def exchanged_table(text: str, rng: random.Random) -> str:
    """Another text in a random place of a table, or all over a column."""
    rows = [line.split("\t") for line in text.splitlines()]
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    found = rng.choice(("", "nan", "-inf", "1e308", "1e38", "-1", "0.5", "x", "$x^{$", "\t"))
    for row in rows[1:] if rng.random() < 0.2 else rows[i : i + 1]:
        row[j] = found
    return "".join("\t".join(row) + "\n" for row in rows)


def garbled(data: bytes, rng: random.Random) -> bytes:
    """Bytes with bits flipped, an end cut off, or pieces deleted, repeated, exchanged, cleared or replaced."""
    n = len(data)
    a, b = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
    short = min(b, a + rng.choice((1, 4, 16, 64)))
    kind = rng.randrange(9)
    if kind < 3 and n:
        found = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            found[rng.randrange(n)] ^= 1 << rng.randrange(8)
        return bytes(found)
    if kind == 3:
        return data[:a]
    if kind == 4:
        return data[:a] + data[short:]
    if kind == 5:
        return data[:short] + data[a:short] + data[short:]
    if kind == 6:
        return data[:a] + bytes(short - a) + data[short:]
    if kind == 7:
        return data[:a] + rng.randbytes(short - a) + data[short:]
    return data[b:] + data[a:b] + data[:a]


def damaged(folder: Path, rng: random.Random) -> str:
    """Damage one file below a folder; what was done."""
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = file.read_bytes()
    if rng.random() < 0.03:
        file.unlink()
        return f"{file.name} deleted"
    if file.suffix in (".json", ".yaml") and rng.random() < 0.7:
        text = json.dumps(exchanged(yaml.safe_load(data), rng))
        file.write_bytes(text.encode(errors="surrogatepass"))
        return f"{file.name} exchanged: {text[:300]}"
    if file.suffix == ".npz" and rng.random() < 0.5:
        with np.load(file) as opened:
            arrays = dict(opened)
        name = rng.choice(sorted(arrays))
        arrays[name] = exchanged_array(arrays[name], rng)
        np.savez(file, **arrays)
        return f"{file.name}: {name} exchanged: {arrays[name].dtype}, {arrays[name].shape}, {arrays[name].ravel()[:3]}"
    if file.suffix == ".tsv" and rng.random() < 0.7:
        file.write_text(exchanged_table(data.decode(), rng))
        return f"{file.name} exchanged: {file.read_text()[:300]}"
    changed = garbled(data, rng)
    file.write_bytes(changed)
    return f"{file.name} garbled, {len(data)} to {len(changed)} bytes"


def outcome(case: Target, place: Path) -> tuple[str, str]:
    """What loading a damaged input comes to: ``content``, ``refusal`` or ``fault``, and the digest or message."""
    try:
        return "content", case.load(place)
    except (DataError, ParamsError, ReportError) as error:
        named = any(str(path) in str(error) for path in (place, *place.rglob("*")))
        return ("refusal", "") if named else ("fault", f"names no file: {error}")
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"


def outcome_elsewhere(case: Target, place: Path) -> tuple[str, str]:
    """The same in a process of its own, since native code that has read damaged files is in no state to go on."""
    result = place.with_name(f"{place.name}.json")
    child = os.fork()
    if not child:
        try:
            result.write_text(json.dumps(outcome(case, place)))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        return "crash", f"ended by signal {os.WTERMSIG(status)}"
    kind, text = json.loads(result.read_text())
    return kind, text


def attack(target: str, seeds: range, folder: Path) -> None:
    case, faults, crashes = TARGETS[target], [], 0
    good = folder / "good"
    good.mkdir()
    case.make(good)
    whole = case.load(good)
    for seed in seeds:
        place = folder / f"seed-{seed}"
        shutil.copytree(good, place)
        what = damaged(place, random.Random(f"{target} {seed}"))
        kind, found = (outcome_elsewhere if case.native else outcome)(case, place)
        crashes += kind == "crash"
        if kind == "fault" or crashes > len(seeds) / 100:
            faults.append(f"{seed}: {what}: {found}")
        elif kind == "content" and case.sealed and found != whole:
            faults.append(f"{seed}: {what}: another content was accepted")
        shutil.rmtree(place)
    assert not faults, f"{len(faults)} of {len(seeds)}:\n" + "\n".join(fault[:600] for fault in faults[:20])


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_refused_or_harmless(target: str, tmp_path: Path) -> None:
    attack(target, range(TARGETS[target].seeds), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_much_damage_is_refused_or_harmless(target: str, tmp_path: Path) -> None:
    seeds = TARGETS[target].seeds
    attack(target, range(seeds, 75 * seeds), tmp_path)


def test_the_same_seed_does_the_same_damage(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        make_columns(tmp_path / name)
        done = [damaged(tmp_path / name, random.Random(seed)) for seed in range(5)]
        found.append((done, [crc32(p.read_bytes()) for p in sorted((tmp_path / name).rglob("*")) if p.is_file()]))
    assert found[0] == found[1]
