import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dynarep.data.schema import Episode
from dynarep.data.shards import load_dataset, write_dataset
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.run import Stage
from dynarep.pipeline.training.processes import TrainerConfig, check_processes, process_rank, rows_of
from dynarep.pipeline.training.run import Run

PROGRAM = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from dynarep.data.shards import load_dataset
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.training.processes import TrainerConfig, process_rank
from dynarep.pipeline.training.run import Run

torch.set_num_threads(1)
work, devices, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
data = load_dataset(work / "data")
training = {"updates": 6, "batch_size": 8, "updates_per_chunk": 3, "checkpoint_every": 3, "compile": False}
mine = out / f"process-{process_rank()}"
mine.mkdir(parents=True)
run = Run("test", 0, 2, mine, out / "checkpoints", TrainerConfig(devices=devices))
shared = {"dataset": "data", "initial": "none", "held_out": 0.2, "training": training, "hidden": [16]}
values = {
    "intent": {**shared, "kind": "icvf", "latent_dim": 8},
    "quadratic": {**shared, "kind": "contrastive", "feature_dim": 8},
    "ranking": {**shared, "kind": "contrastive", "feature_dim": 8, "loss": "ranking"},
}
models = {
    name: pretrain(parse_entry("pretrain", name, value), data, run.phase(name)).encoder for name, value in values.items()
}
iql = {"kind": "iql", "dataset": "data", "demonstrations": "data", "rewards": "true", "hidden": [16, 16], "training": training}
rewards = {e.id: e.rewards[None] for e in data.episodes}
models["iql"] = learn(parse_entry("learn", "iql", iql), data, data, None, rewards, run.phase("iql"))[0]
for name, model in models.items():
    save_file(model.state_dict(), mine / f"{name}.safetensors")
"""


@dataclass(frozen=True)
class Pair:
    first: Tensor
    second: Tensor | None


def test_rows_are_dealt_out_in_order() -> None:
    batch = Pair(torch.arange(24).view(2, 6, 2), torch.arange(12).view(2, 6))
    parts = [rows_of(batch, rank, 3) for rank in range(3)]
    torch.testing.assert_close(torch.cat([part.first for part in parts], 1), batch.first)
    torch.testing.assert_close(torch.cat([part.second for part in parts if part.second is not None], 1), batch.second)
    assert rows_of(batch, 1, 3, whole=("second",)).second is batch.second
    assert rows_of(Pair(batch.first, None), 0, 2).second is None


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="found 6, expected a multiple of the 4 processes of trainer"):
        rows_of(Pair(torch.zeros(1, 6), None), 0, 4)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"SLURM_PROCID": "2"}, 2),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, 5),
    ],
)
def test_the_rank_is_known_however_processes_were_started(environment: dict[str, str], rank: int) -> None:
    assert process_rank(4, environment) == rank


def test_another_number_of_processes_is_refused() -> None:
    check_processes(TrainerConfig(devices=2, num_nodes=2), {"WORLD_SIZE": "4"})
    check_processes(TrainerConfig(), {"SLURM_NTASKS": "8"})
    with pytest.raises(ValueError, match="devices 1 times num_nodes 1 is 1, but 2 processes run"):
        check_processes(TrainerConfig(), {"WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="is 4, but 2 processes run"):
        check_processes(TrainerConfig(devices=4), {"SLURM_NTASKS": "2"})


def test_a_process_that_would_wait_for_nodes_that_nobody_started_is_refused() -> None:
    check_processes(TrainerConfig(num_nodes=2), {"NODE_RANK": "1"})
    with pytest.raises(ValueError, match=r"trainer\.num_nodes: found 2, but none of WORLD_SIZE, .* is set"):
        check_processes(TrainerConfig(num_nodes=2), {})


def test_only_the_first_process_keeps_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\ntrainer: {devices: 2}\n")
    stage = Stage("learn", tmp_path / "params.yaml", "bc")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        with stage.output() as folder:
            (folder / "by.txt").write_text(str(rank))
    assert (stage.destination / "by.txt").read_text() == "0"


def test_another_process_of_a_stage_that_shares_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\ntrainer: {devices: 2}\n")
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(ValueError, match="RANK: found 1, but report runs in one process"),
        Stage("report", tmp_path / "params.yaml").output(),
    ):
        pass


def episodes(count: int, length: int) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            id=f"e-{i}",
            observations=rng.normal(size=(length + 1, 3)).cumsum(0).astype(np.float32),
            actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            rewards=rng.normal(size=length).astype(np.float32),
            terminated=False,
            truncated=True,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("task", ["0", "1"])
def test_a_task_of_a_job_trains_alone_where_the_trainer_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "sweep",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": task,
        "SLURM_LOCALID": task,
    }
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    bounds = (-1.0, -1.0), (1.0, 1.0)
    write_dataset(tmp_path / "data", "data", episodes(2, 20), provenance={}, env=None, bounds=bounds)
    data = load_dataset(tmp_path / "data")
    training = {"updates": 4, "batch_size": 8, "updates_per_chunk": 2}
    entry = parse_entry(
        "learn", "bc", {"kind": "bc", "dataset": "data", "demonstrations": "data", "hidden": [4], "training": training}
    )
    (tmp_path / "out").mkdir()
    run = Run("test", 0, 1, tmp_path / "out", tmp_path / "checkpoints")
    assert run.part == {"part": 0, "parts": 1}
    learn(entry, data, data, None, None, run)
    assert len((tmp_path / "out" / "curves.tsv").read_text().splitlines()) == 3
    assert (tmp_path / "checkpoints" / "test.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["lightning", "torchrun"])
def test_two_processes_learn_what_one_does(start: str, tmp_path: Path) -> None:
    bounds = (-1.0, -1.0), (1.0, 1.0)
    write_dataset(tmp_path / "data", "data", episodes(10, 20), provenance={}, env=None, bounds=bounds)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for devices in (1, 2):
        launcher = torchrun if start == "torchrun" and devices == 2 else []
        command = [
            sys.executable,
            *launcher,
            str(program),
            str(tmp_path),
            str(devices),
            str(tmp_path / f"by-{devices}"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PL_DISABLE_FORK": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("intent", "quadratic", "ranking", "iql"):
        one = load_file(tmp_path / "by-1" / "process-0" / f"{name}.safetensors")
        for rank in (0, 1):
            two = load_file(tmp_path / "by-2" / f"process-{rank}" / f"{name}.safetensors")
            for key, value in one.items():
                torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    rows = (tmp_path / "by-2" / "process-0" / "iql" / "curves.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["update", "3", "6"]
