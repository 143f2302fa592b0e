"""Encoders made elsewhere, in place of a pretraining stage's own and as the start of its training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make

from dynarep.configs.params import ParamsError, validate
from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline import pretrain_dynamics as dynamics_stage
from dynarep.pipeline import pretrain_intent as intent_stage
from dynarep.pipeline.artifacts.storage import ArtifactError, load_artifact, read_metadata, save_model, select_replicas
from dynarep.pipeline.encoders import DynamicsEncoder, IntentEncoder
from dynarep.pipeline.training.loop import Run, TrainingConfig
from dynarep.pipeline.methods.encoders.icvf import ICVF, ICVFConfig
from dynarep.pipeline.pretrain_dynamics import PretrainDynamicsConfig, pretrain_dynamics
from dynarep.pipeline.pretrain_intent import PretrainIntentConfig, pretrain_intent, step_calibration
from dynarep.pipeline.run import Stage
from dynarep.stages.pretrain_dynamics import main as dynamics_main
from dynarep.stages.pretrain_intent import main as intent_main

MakeEpisode = Callable[..., Episode]
TRAINING = {"updates": 3, "batch_size": 8, "updates_per_chunk": 3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def project(tmp_path: Path, make_episode: MakeEpisode) -> Path:
    """A project with a prepared dataset ``here``, and encoders that were made from another one."""
    root = tmp_path / "project"
    episodes = [make_episode(20, f"e-{i}", seed=i) for i in range(6)]
    write_episodes(root / "artifacts" / "shards" / "here", episodes)
    for kind in ("intent", "dynamics"):
        save_model(root / "encoders" / kind, make(kind))
        (root / "encoders" / kind / "metadata.json").write_text('{"datasets": {"there": "abc"}, "revision": "def"}')
    return root


@pytest.fixture
def here(project: Path) -> Dataset:
    return load_dataset(project / "artifacts" / "shards" / "here")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "output").mkdir()
    return Run("pretrain", 0, 2, tmp_path / "output", tmp_path / "checkpoints")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    for stage in (dynamics_stage, intent_stage):
        monkeypatch.setattr(stage, "train", refuse)


def section(kind: str, **values: Any) -> PretrainIntentConfig | PretrainDynamicsConfig:
    if kind == "intent":
        return validate(PretrainIntentConfig, {"dataset": "here", "held_out": 0.3, **values}, "pretrain_intent")
    noise = {"dataset": "here"}
    values = {"dataset": "here", "held_out": 0.3, "noise": noise, **values}
    return validate(PretrainDynamicsConfig, values, "pretrain_dynamics")


def pretrain(kind: str, c: Any, data: Dataset, run: Run) -> tuple[Any, dict[str, Any]]:
    if kind == "intent":
        encoder, metrics, *_ = pretrain_intent(c, data, run)
        return encoder, metrics
    return pretrain_dynamics(c, data, data, run)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("kind", ["intent", "dynamics"])
def test_an_encoder_is_used_as_it_is(kind: str, project: Path, here: Dataset, run: Run) -> None:
    c = section(kind, encoder=str(project / "encoders" / kind))
    encoder, metrics = pretrain(kind, c, here, run)
    assert same(encoder, load_artifact(project / "encoders" / kind))  # weights, normaliser and calibration
    assert metrics
    assert not (run.output / "curves.tsv").exists()


@pytest.mark.usefixtures("no_training")
def test_its_unit_is_measured_anew_on_request(project: Path, here: Dataset, run: Run) -> None:
    source = str(project / "encoders" / "intent")
    kept, metrics = pretrain("intent", section("intent", encoder=source), here, run)
    own, recalibrated = pretrain("intent", section("intent", encoder=source, recalibrate=True), here, run)
    assert kept.calibration.tolist() == [2.0, 3.0]
    torch.testing.assert_close(own.calibration, step_calibration(kept, here.episodes))
    assert not torch.allclose(own.calibration, kept.calibration)
    assert metrics["step_distance"] == pytest.approx(float((kept.calibration / own.calibration).mean()))
    assert recalibrated["calibration"] == own.calibration.tolist()


@pytest.mark.usefixtures("no_training")
def test_replicas(project: Path, here: Dataset, run: Run, tmp_path: Path) -> None:
    two = make("intent")
    save_model(tmp_path / "one", select_replicas(two, [1]))
    for folder, replicas, expected in ((tmp_path / "one", 2, [1, 1]), (project / "encoders" / "intent", 1, [0])):
        run = Run("pretrain", 0, replicas, run.output, run.checkpoints)
        encoder, _ = pretrain("intent", section("intent", encoder=str(folder)), here, run)
        assert same(encoder, select_replicas(two, expected))
    run = Run("pretrain", 0, 3, run.output, run.checkpoints)
    with pytest.raises(ArtifactError, match=r"intent has 2 replicas, expected 1, or at least the 3 of this run"):
        pretrain("intent", section("intent", encoder=str(project / "encoders" / "intent")), here, run)


@pytest.mark.parametrize(
    ("kind", "dims", "named", "message"),
    [
        ("intent", (4, 2), "intent", r"has observation_dim 3, there-4-2 has 4; the encoder was trained on there$"),
        ("dynamics", (4, 2), "dynamics", r"has observation_dim 3, there-4-2 has 4; the encoder was trained on there$"),
        ("dynamics", (3, 1), "dynamics", r"has action_dim 2, there-3-1 has 1; the encoder was trained on there$"),
        ("intent", (3, 2), "dynamics", r"type is DynamicsEncoder, expected IntentEncoder$"),
        ("intent", (3, 2), "nowhere", r"nowhere/config\.json: no such file"),
    ],
)
@pytest.mark.parametrize("key", ["encoder", "initial"])
def test_what_does_not_fit_is_refused(
    key: str,
    kind: str,
    dims: tuple[int, int],
    named: str,
    message: str,
    project: Path,
    run: Run,
    tmp_path: Path,
    make_episode: MakeEpisode,
) -> None:
    folder = tmp_path / "there-{}-{}".format(*dims)
    write_episodes(folder, [make_episode(9, f"e-{i}", observation_dim=dims[0], action_dim=dims[1]) for i in range(4)])
    c = section(kind, **{key: str(project / "encoders" / named), "training": TRAINING})
    with pytest.raises(ArtifactError, match=rf"^pretrain_{kind}\.{key}: .*{message}"):
        pretrain(kind, c, load_dataset(folder), run)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "training: missing; only a section with an encoder does without"),
        ({"initial": "x"}, "training: missing"),
        ({"encoder": "x", "initial": "y", "training": TRAINING}, "encoder: x is used as it is, initial: y is trained"),
    ],
)
@pytest.mark.parametrize("kind", ["intent", "dynamics"])
def test_sections_that_make_no_sense(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        section(kind, **values)


METHOD = {
    "intent": {"hidden": [8], "latent_dim": 4, "variant": "ailot", "learning_rate": 1e-9},
    "dynamics": {"hidden": [8, 8], "feature_dim": 4, "loss": "ranking", "learning_rate": 1e-9},
}


@pytest.mark.parametrize("kind", ["intent", "dynamics"])
def test_training_goes_on_from_an_encoder(kind: str, project: Path, here: Dataset, run: Run) -> None:
    """At a vanishing rate weights stay where they start, at a real one they move; the normaliser always stays."""
    options = {"absorbing": True} if kind == "dynamics" else {}
    before = load_artifact(project / "encoders" / kind).state_dict()
    for rate, moves in ((1e-9, False), (1e-2, True)):
        c = section(
            kind,
            initial=str(project / "encoders" / kind),
            method={**METHOD[kind], "learning_rate": rate},
            training=TRAINING,
            **options,
        )
        after = pretrain(kind, c, here, run)[0].state_dict()
        for name, value in before.items():
            if name.startswith("normaliser"):
                assert torch.equal(after[name], value)
            elif name == "calibration":
                assert not torch.allclose(after[name], value)  # belongs to weights and data
            else:
                assert torch.allclose(after[name], value, rtol=0, atol=1e-6) is not moves, name


def test_both_members_and_the_targets_start_from_psi() -> None:
    encoder = make("intent")
    assert isinstance(encoder, IntentEncoder)
    learner = ICVF(ICVFConfig(hidden=(8,), latent_dim=4, variant="ailot"), 2, torch.zeros(3), torch.ones(3))
    learner.start_from(encoder)
    states = torch.randn(2, 5, 3)
    for value in (learner.online, learner.target):
        psi = value.psi(learner.normaliser(states).unsqueeze(1))
        for member in range(2):
            torch.testing.assert_close(psi[:, member], encoder.embed(states))


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("intent", {"latent_dim": 5}, "latent_dim 4, by the settings 5; change section pretrain_intent"),
        ("intent", {"variant": "icvf"}, "variant ailot, by the settings icvf"),
        ("dynamics", {"hidden": [9]}, r"hidden \(8, 8\), by the settings \(9,\)"),
        ("dynamics", {"loss": "quadratic"}, "positive True, by the settings False"),
        ("dynamics", {}, "absorbing True, by the settings False"),
    ],
)
def test_another_architecture_is_refused(
    kind: str, changed: dict[str, Any], message: str, project: Path, here: Dataset, run: Run
) -> None:
    source = str(project / "encoders" / kind)
    c = section(kind, initial=source, method=METHOD[kind] | changed, training=TRAINING)
    with pytest.raises(ArtifactError, match=rf"^pretrain_{kind}\.initial: {source} has .*{message}"):
        pretrain(kind, c, here, run)


@pytest.mark.parametrize("kind", ["intent", "dynamics"])
@pytest.mark.parametrize("key", ["encoder", "initial"])
def test_the_stage_says_where_it_comes_from(
    kind: str, key: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"pretrain_{kind}"
    values: dict[str, Any] = {"dataset": "here", "held_out": 0.3, key: f"encoders/{kind}"}
    if key == "initial":
        values |= {"method": METHOD[kind], "training": TRAINING}
    if kind == "dynamics":
        values |= {"noise": {"dataset": "here"}, "absorbing": True}
    (project / "params.yaml").write_text(json.dumps({"seed": 0, "replicas": 2, name: values}))
    monkeypatch.chdir(tmp_path)  # relative paths start at the project, wherever it runs
    {"intent": intent_main, "dynamics": dynamics_main}[kind](Stage(name, project / "params.yaml"))
    folder = project / "artifacts" / name
    assert isinstance(load_artifact(folder), {"intent": IntentEncoder, "dynamics": DynamicsEncoder}[kind])
    metadata = read_metadata(folder)
    own = read_metadata(project / "encoders" / kind)
    assert metadata["origin"]["source"] == f"encoders/{kind}"
    assert len(metadata["origin"]["sha256"]) == 64
    assert metadata["origin"]["metadata"] == own
    assert set(metadata["datasets"]) == ({"there"} if key == "encoder" else {"there", "here"})
    assert set(metadata.get("measured_on", {})) == ({"here"} if key == "encoder" else set())
    assert (folder / "curves.tsv").exists() is (key == "initial")


def test_training_is_planned_only_where_it_happens() -> None:
    training = TrainingConfig(updates=7)
    assert PretrainIntentConfig(dataset="here", training=training).planned == training
    assert PretrainIntentConfig(dataset="here", training=training, encoder="x").planned.updates == 1
