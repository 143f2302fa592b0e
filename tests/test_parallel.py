"""Work on shards: in this process, in several, and on a Ray cluster of two nodes."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dynarep.configs.params import ParamsError, validate
from dynarep.data import parallel
from dynarep.data.parallel import ClusterConfig, ClusterError, map_shards
from dynarep.data.prepare import prepare
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, parts, write_dataset
from dynarep.pipeline.run import Stage

ROOT = Path(__file__).parents[1]
TWO = ClusterConfig(workers=2)
ITEMS = {f"shard-{i}": i for i in range(5)}


def starts(folder: Path) -> list[int]:
    """Items in the order in which work on them began."""
    files = sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[1]))
    return [int(path.name.split("-")[0]) for path in files]


def square(folder: Path, item: int) -> int:
    (folder / f"{item}-{time.time_ns()}-{os.getpid()}").touch()
    return item * item


def broken(folder: Path, item: int) -> int:
    square(folder, item)
    if item == 1:
        raise RuntimeError("the disk is gone")
    if item == 3:
        raise DataError("episode 3 is damaged")
    return item


def fails_once(folder: Path, item: int) -> int:
    square(folder, item)
    if starts(folder).count(item) == 1 and item == 2:
        raise OSError("not now")
    return item


def dies_once(folder: Path, item: int) -> int:
    square(folder, item)
    if starts(folder).count(item) == 1 and item == 2:
        os._exit(1)
    return item


def test_items_are_done_in_their_order_in_this_process(tmp_path: Path) -> None:
    assert list(map_shards(partial(square, tmp_path), ITEMS)) == [(f"shard-{i}", i * i) for i in range(5)]
    assert starts(tmp_path) == [0, 1, 2, 3, 4]
    assert list(map_shards(partial(square, tmp_path), {})) == []


def test_a_failure_is_tried_again(tmp_path: Path) -> None:
    assert dict(map_shards(partial(fails_once, tmp_path), ITEMS)) == ITEMS
    assert sorted(starts(tmp_path)) == [0, 1, 2, 2, 3, 4]


def check_failures(folder: Path, cluster: ClusterConfig) -> str:
    """What is said of two failing shards, after the others are done."""
    found = {}

    def collect() -> None:
        for name, value in map_shards(partial(broken, folder), ITEMS, cluster):
            found[name] = value

    with pytest.raises(ClusterError, match=r"^2 of 5 shards failed, 3 are done: ") as caught:
        collect()
    message = str(caught.value)
    assert found == {f"shard-{i}": i for i in (0, 2, 4)}
    assert "shard-1: failed every time, at last with RuntimeError: the disk is gone" in message
    assert "shard-3: episode 3 is damaged" in message
    begun = starts(folder)
    assert begun.count(1) == cluster.retries + 1
    assert begun.count(3) == 1  # bad input stays bad
    return message


def test_failing_shards_are_named_while_the_others_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_failures(tmp_path, ClusterConfig(retries=2))
    assert "shard-3: episode 3 is damaged; the other shards go on\n" in capsys.readouterr().err


def test_processes_give_the_same_and_lose_nothing_when_one_dies(tmp_path: Path) -> None:
    for name in ("square", "die", "broken"):
        (tmp_path / name).mkdir()
    found = dict(map_shards(partial(square, tmp_path / "square"), ITEMS, TWO))
    assert found == dict(map_shards(partial(square, tmp_path / "square"), ITEMS))
    workers = {path.name.split("-")[2] for path in (tmp_path / "square").iterdir()}
    assert str(os.getpid()) in workers
    assert len(workers) > 1
    assert dict(map_shards(partial(dies_once, tmp_path / "die"), ITEMS, TWO)) == ITEMS
    assert starts(tmp_path / "die").count(2) == 2
    check_failures(tmp_path / "broken", ClusterConfig(workers=2, retries=1))


def test_a_shard_that_kills_its_process_every_time_is_named() -> None:
    with pytest.raises(
        ClusterError, match=r"1 of 2 shards failed, 1 are done: bad: .*ChildProcessError: its process died"
    ):
        dict(map_shards(leave, {"bad": 1, "good": 0}, replace(TWO, retries=1)))


def leave(item: int) -> int:
    if item:
        os._exit(item)
    return item


def test_the_section_is_checked(tmp_path: Path) -> None:
    assert validate(ClusterConfig, {"kind": "ray", "address": "auto"}, "cluster").address == "auto"
    assert ClusterConfig().in_process
    assert ClusterConfig(workers=1).in_process
    assert not TWO.in_process
    assert not ClusterConfig(kind="ray").in_process
    assert ClusterConfig().or_workers(3).workers == 3
    assert TWO.or_workers(3) == TWO
    for values, message in (
        ({"kind": "slurm"}, "cluster.kind: found 'slurm'"),
        ({"workers": 0}, "cluster.workers: found 0"),
        ({"nodes": 2}, "cluster.nodes: unknown key"),
        ({"address": "head:6379"}, "address: found 'head:6379' with kind: local, expected kind: ray"),
    ):
        with pytest.raises(ParamsError, match=message):
            validate(ClusterConfig, values, "cluster")
    params = tmp_path / "params.yaml"
    params.write_text("cluster: {kind: ray, workers: 2}\n")
    assert Stage("relabel", params).cluster() == ClusterConfig(kind="ray", workers=2)
    params.write_text("relabel: {}\n")
    assert Stage("relabel", params).cluster() == ClusterConfig()
    params.write_text("cluster: {kinds: ray}\n")
    with pytest.raises(ParamsError, match=r"params\.yaml: cluster\.kinds: unknown key"):
        Stage("relabel", params).cluster()


def test_no_stage_runs_again_when_the_cluster_changes() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    definitions = [stage.get("do", stage) for stage in stages.values()]
    tracked = {key.split(".")[0] for stage in definitions for key in stage.get("params", ())}
    assert "relabel" in tracked
    assert "cluster" not in tracked


def test_ray_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ClusterError, match=r"cluster\.kind: ray needs the package ray: pip install 'dynarep\[cluster\]'"
    ):
        dict(map_shards(leave, {"a": 0}, ClusterConfig(kind="ray")))


def episode(name: str, length: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        id=name,
        observations=rng.normal(size=(length + 1, 3)).astype(np.float32).cumsum(0),
        actions=rng.uniform(-1, 1, (length, 1)).astype(np.float32),
        rewards=rng.normal(size=length).astype(np.float32),
        terminated=False,
        truncated=True,
    )


def write(folder: Path, episodes: list[Episode]) -> None:
    write_dataset(folder, folder.name, episodes, provenance={}, env=None, bounds=([-1.0], [1.0]), shard_bytes=4000)


def test_parts_hold_every_episode_once_within_its_shard(tmp_path: Path) -> None:
    write(tmp_path / "agents", [episode(f"e-{i}", 20 + i, i) for i in range(9)])
    dataset = load_dataset(tmp_path / "agents")
    names = [e.id for e in dataset.episodes]
    for steps in (1, 50, 10_000):
        found = parts(dataset, steps)
        assert [e.id for piece in found.values() for e in piece] == names
        for name, piece in found.items():
            assert name.startswith("shard-00000")
            assert name.endswith(f"{piece[0].id} to {piece[-1].id}")
            assert sum(e.length for e in piece[:-1]) < steps
    assert len(parts(dataset, 1)) == 9
    assert [name[:12] for name in parts(dataset, 10_000)] == [f"shard-{i:06d}" for i in range(len(parts(dataset)))]
    assert 1 < len(parts(dataset)) < 9


class Recordings:
    """A mixture of three recordings."""

    def __init__(self, root: Path) -> None:
        self.root, self.cards = root, root / "cards"
        self.cards.mkdir()
        for i, name in enumerate(("a", "b", "c")):
            rng = np.random.default_rng(i)
            rows = 60
            states = rng.normal(size=(rows + 1, 3)).astype(np.float32)
            ends = np.arange(rows) % 20 == 19
            arrays = {"observations": states[:-1], "next_observations": states[1:], "terminals": ends}
            actions = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
            np.savez(root / f"{name}.npz", actions=actions, rewards=rng.normal(size=rows), **arrays)
            (self.cards / f"{name}.yaml").write_text(f"path: {name}.npz\nformat: arrays\n")
        (self.cards / "mixed.yaml").write_text("mix: [c, a, {name: b, fraction: 0.5}]\n")

    def prepare(self, out: str, cluster: ClusterConfig) -> dict[str, str]:
        """Digests of the files of the prepared mixture."""
        folder = self.root / out
        prepare(["mixed"], cards=self.cards, root=self.root, out=folder, engine=cluster)
        return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "mixed").iterdir())}


def test_a_mixture_is_read_in_several_processes(tmp_path: Path) -> None:
    project = Recordings(tmp_path)
    assert project.prepare("two", TWO) == project.prepare("one", ClusterConfig())
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"^card mixed: 1 of 3 shards failed, 2 are done: a: .*a\.npz"):
        project.prepare("none", ClusterConfig())
    assert not (tmp_path / "none" / "mixed").exists()


def label(root: Path, cluster: ClusterConfig) -> dict[str, np.ndarray]:
    """Rewards of ``agents`` by transport in the space of an encoder."""
    import torch

    from dynarep.pipeline.methods.encoders.icvf import IntentArchitecture, IntentEncoder
    from dynarep.pipeline.relabel import relabel
    from dynarep.pipeline.training.run import Run
    from tests.entries import entry

    torch.manual_seed(0)
    encoder = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=3, hidden=(16,), latent_dim=4)).eval()
    agents, experts = (load_dataset(root / name) for name in ("agents", "experts"))
    run = Run("relabel/ailot", 0, 2, root, root)
    c = entry("relabel", "ailot", space="intent")
    found = relabel(c, agents, experts, encoder.requires_grad_(False), run, cluster)
    assert list(found.rewards) == [e.id for e in agents.episodes]
    return {**found.rewards, "metrics": np.array([found.metrics["marginal_error"], found.metrics["iterations"]])}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    write(tmp_path / "agents", [episode(f"e-{i}", 40 + i, i) for i in range(12)])
    write(tmp_path / "experts", [episode("expert", 50, 99)])
    return tmp_path


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return list(found) == list(expected) and all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_labels_of_several_processes_are_the_same_to_the_bit(labelled: Path) -> None:
    assert same(label(labelled, TWO), label(labelled, ClusterConfig()))


class TwoNodes:
    """A Ray cluster of a head and another node, of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=1)
        self.cluster.wait_for_nodes()
        self.there = ClusterConfig(kind="ray", address=self.cluster.address)

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'dynarep[cluster]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import the tests
    nodes = TwoNodes()
    try:
        yield nodes
    finally:
        nodes.stop()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def slowly(log: Path, fn: Callable[[Any], Any], item: Any) -> Any:
    import ray

    (log / f"{ray.get_runtime_context().get_node_id()}-{time.time_ns()}").touch()
    time.sleep(0.5)
    return fn(item)


@pytest.mark.slow
def test_a_node_that_dies_loses_no_shard(
    nodes: TwoNodes, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynarep.pipeline import relabel as module

    expected = label(labelled, ClusterConfig())
    log = tmp_path / "log"
    log.mkdir()
    second = nodes.second.node_id
    monkeypatch.setattr(
        module, "map_shards", lambda fn, items, cluster: map_shards(partial(slowly, log, fn), items, cluster)
    )
    killed = threading.Event()

    def kill_while_it_works() -> None:
        while not list(log.glob(f"{second}-*")):
            time.sleep(0.05)
        nodes.kill_second()
        killed.set()

    killer = threading.Thread(target=kill_while_it_works)
    killer.start()
    found = label(labelled, nodes.there)
    killer.join()
    assert killed.is_set()
    assert same(found, expected)
    shards = len(parts(load_dataset(labelled / "agents")))
    begun = [path.name.split("-")[0] for path in log.iterdir()]
    assert len(set(begun)) == 2
    assert len(begun) > shards  # what the dead node was working on was done again
    assert begun.count(second) < shards / 2 + 1


@pytest.mark.slow
def test_prepare_and_evaluate_on_ray_are_the_same_to_the_bit(nodes: TwoNodes, tmp_path: Path) -> None:
    import torch

    from dynarep.pipeline.artifacts.storage import save_model
    from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
    from dynarep.pipeline.playing.evaluate import evaluate
    from dynarep.pipeline.playing.play import EvaluateConfig

    project = Recordings(tmp_path)
    assert project.prepare("ray", nodes.there) == project.prepare("local", ClusterConfig())

    torch.manual_seed(0)
    architecture = PolicyArchitecture(
        replicas=2, observation_dim=11, action_low=(-1.0,) * 3, action_high=(1.0,) * 3, hidden=(8,)
    )
    folder = tmp_path / "artifacts" / "learn" / "bc"
    save_model(folder, Policy(architecture))
    (folder / "metadata.json").write_text("{}")
    settings = EvaluateConfig(env="Hopper-v4", episodes=12, max_steps=60, workers=1)
    artifacts = tmp_path / "artifacts"
    assert evaluate("bc", settings, artifacts, cluster=nodes.there) == evaluate("bc", settings, artifacts)


@pytest.mark.slow
def test_shards_that_fail_on_ray_are_named_and_killed_workers_replaced(nodes: TwoNodes, tmp_path: Path) -> None:
    for name in ("die", "broken"):
        (tmp_path / name).mkdir()
    assert dict(map_shards(partial(dies_once, tmp_path / "die"), ITEMS, nodes.there)) == ITEMS
    assert starts(tmp_path / "die").count(2) == 2
    check_failures(tmp_path / "broken", replace(nodes.there, retries=1))
    with pytest.raises(ClusterError, match=r"1 of 2 shards failed, 1 are done: bad: failed every time, .*"):
        dict(map_shards(leave, {"bad": 1, "good": 0}, replace(nodes.there, retries=0)))


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'dynarep[cluster]'")
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(
            ClusterError, match=rf"cluster: the Ray cluster at {address} cannot be joined: no answer .*kind: local"
        ):
            dict(map_shards(leave, {"a": 0}, ClusterConfig(kind="ray", address=address)))
        assert time.monotonic() - begin < 10
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=rf"at {address} cannot be joined"):
        dict(map_shards(leave, {"a": 0}, ClusterConfig(kind="ray")))
