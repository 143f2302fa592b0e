"""Encoders made elsewhere, in place of a pretraining stage's own and as the start of its training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from models import make

from dynarep.configs.params import ParamsError
from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline.artifacts.origin import load_origin
from dynarep.pipeline.artifacts.storage import ArtifactError, load_artifact, read_metadata, save_model
from dynarep.pipeline.entries import Entry, PretrainInputs, parse_entry
from dynarep.pipeline.measures import step_calibration
from dynarep.pipeline.methods.encoders.icvf import ICVF, ICVFConfig, IntentEncoder
from dynarep.pipeline.pretrain import Pretrained, pretrain
from dynarep.pipeline.run import Stage
from dynarep.pipeline.training import loop
from dynarep.pipeline.training.run import Run
from dynarep.stages.pretrain import main

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

    monkeypatch.setattr(loop, "train", refuse)


KINDS = {"intent": "icvf", "dynamics": "contrastive"}
METHOD: dict[str, dict[str, Any]] = {
    "intent": {"hidden": [8], "latent_dim": 4, "variant": "ailot", "learning_rate": 1e-9},
    "dynamics": {"hidden": [8, 8], "feature_dim": 4, "loss": "ranking", "learning_rate": 1e-9, "absorbing": True},
}


def given(source: Path, **values: Any) -> Entry[PretrainInputs]:
    """An entry that hands on an encoder."""
    values = {"kind": "artifact", "dataset": "here", "held_out": 0.3, "source": str(source), **values}
    return parse_entry("pretrain", "it", values)


def tuned(kind: str, source: Path, **values: Any) -> Entry[PretrainInputs]:
    """An entry that trains an encoder further."""
    about = {"kind": KINDS[kind], "dataset": "here", "held_out": 0.3, "source": str(source), "training": TRAINING}
    return parse_entry("pretrain", "it", {**about, **METHOD[kind], **values})


def made(entry: Entry[PretrainInputs], data: Dataset, run: Run) -> Pretrained:
    assert entry.inputs.source is not None
    return pretrain(entry, data, run, load_origin(entry.inputs.source, f"{entry.where}.source", run.replicas))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("kind", ["intent", "dynamics"])
def test_an_encoder_is_used_as_it_is(kind: str, project: Path, here: Dataset, run: Run) -> None:
    found = made(given(project / "encoders" / kind), here, run)
    assert same(found.encoder, load_artifact(project / "encoders" / kind))  # weights, normaliser and calibration
    assert found.measured.metrics
    assert not (run.output / "curves.tsv").exists()


@pytest.mark.usefixtures("no_training")
def test_its_unit_is_measured_anew_on_request(project: Path, here: Dataset, run: Run) -> None:
    source = project / "encoders" / "intent"
    kept, own = made(given(source), here, run), made(given(source, recalibrate=True), here, run)
    before, after = (cast(IntentEncoder, found.encoder).calibration for found in (kept, own))
    assert before.tolist() == [2.0, 3.0]
    torch.testing.assert_close(after, step_calibration(kept.encoder, here.episodes))
    assert not torch.allclose(after, before)
    assert kept.measured.metrics["step_distance"] == pytest.approx(float((before / after).mean()))
    assert own.measured.metrics["calibration"] == after.tolist()


@pytest.mark.usefixtures("no_training")
def test_replicas(project: Path, here: Dataset, run: Run, tmp_path: Path) -> None:
    two = make("intent")
    save_model(tmp_path / "one", two.replica_rows([1]))
    for folder, replicas, expected in ((tmp_path / "one", 2, [1, 1]), (project / "encoders" / "intent", 1, [0])):
        run = Run("pretrain", 0, replicas, run.output, run.checkpoints)
        assert same(made(given(folder), here, run).encoder, two.replica_rows(expected))
    run = Run("pretrain", 0, 3, run.output, run.checkpoints)
    with pytest.raises(ArtifactError, match=r"intent has 2 replicas, expected 1, or at least the 3 of this run"):
        made(given(project / "encoders" / "intent"), here, run)


@pytest.mark.parametrize(
    ("kind", "dims", "named", "message"),
    [
        ("intent", (4, 2), "intent", r"has observation_dim 3, there-4-2 has 4; the encoder was trained on there$"),
        ("dynamics", (4, 2), "dynamics", r"has observation_dim 3, there-4-2 has 4; the encoder was trained on there$"),
        ("dynamics", (3, 1), "dynamics", r"has action_dim 2, there-3-1 has 1; the encoder was trained on there$"),
        ("intent", (3, 2), "nowhere", r"nowhere: no such folder in "),
        ("intent", (3, 2), "policy", r"found a policy of kind deterministic, expected an encoder"),
    ],
)
@pytest.mark.parametrize("handed_on", [True, False])
def test_what_does_not_fit_is_refused(
    handed_on: bool,
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
    save_model(project / "encoders" / "policy", make("policy"))
    source = project / "encoders" / named
    entry = given(source) if handed_on else tuned(kind, source)
    with pytest.raises(ArtifactError, match=rf"^pretrain\.it\.source: .*{message}"):
        made(entry, load_dataset(folder), run)


def test_training_does_not_go_on_from_another_kind(project: Path, here: Dataset, run: Run) -> None:
    with pytest.raises(ArtifactError, match=r"dynamics is of kind contrastive, expected icvf"):
        made(tuned("intent", project / "encoders" / "dynamics"), here, run)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "icvf", "source": "x"}, r"pretrain.it.training: missing; icvf is trained"),
        ({"kind": "artifact", "source": "x", "training": TRAINING}, r"training: unknown key; artifact is not trained"),
        ({"kind": "icvf", "source": "x", "initial": "y", "training": TRAINING}, "found y and x, expected one of them"),
    ],
)
def test_entries_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_entry("pretrain", "it", {"dataset": "here", **values})


def test_an_artifact_needs_a_source(here: Dataset, run: Run) -> None:
    entry = parse_entry("pretrain", "it", {"kind": "artifact", "dataset": "here", "held_out": 0.3})
    with pytest.raises(ValueError, match="source: missing"):
        pretrain(entry, here, run)


@pytest.mark.parametrize("kind", ["intent", "dynamics"])
def test_training_goes_on_from_an_encoder(kind: str, project: Path, here: Dataset, run: Run) -> None:
    """At a vanishing rate weights stay where they start, at a real one they move; the normaliser always stays."""
    source = project / "encoders" / kind
    before = load_artifact(source).state_dict()
    for rate, moves in ((1e-9, False), (1e-2, True)):
        after = made(tuned(kind, source, learning_rate=rate), here, run).encoder.state_dict()
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
        ("intent", {"latent_dim": 5}, "latent_dim 4, by the settings 5; change pretrain.it"),
        ("intent", {"variant": "icvf"}, "variant ailot, by the settings icvf"),
        ("dynamics", {"hidden": [9]}, r"hidden \(8, 8\), by the settings \(9,\)"),
        ("dynamics", {"loss": "quadratic"}, "positive True, by the settings False"),
        ("dynamics", {"absorbing": False}, "absorbing True, by the settings False"),
    ],
)
def test_another_architecture_is_refused(
    kind: str, changed: dict[str, Any], message: str, project: Path, here: Dataset, run: Run
) -> None:
    source = project / "encoders" / kind
    with pytest.raises(ArtifactError, match=rf"^pretrain\.it\.source: {source} has .*{message}"):
        made(tuned(kind, source, **changed), here, run)


@pytest.mark.parametrize("kind", ["intent", "dynamics"])
@pytest.mark.parametrize("handed_on", [True, False])
def test_the_stage_says_where_it_comes_from(
    kind: str, handed_on: bool, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"dataset": "here", "held_out": 0.3, "source": f"encoders/{kind}"}
    values |= {"kind": "artifact"} if handed_on else {"kind": KINDS[kind], "training": TRAINING, **METHOD[kind]}
    (project / "params.yaml").write_text(json.dumps({"seed": 0, "replicas": 2, "pretrain": {"it": values}}))
    monkeypatch.chdir(tmp_path)  # relative paths start at the project, wherever it runs
    main(Stage("pretrain", project / "params.yaml", "it"))
    folder = project / "artifacts" / "pretrain" / "it"
    assert load_artifact(folder).kind == KINDS[kind]
    metadata = read_metadata(folder)
    own = read_metadata(project / "encoders" / kind)
    assert metadata["origin"]["source"] == f"encoders/{kind}"
    assert len(metadata["origin"]["sha256"]) == 64
    assert metadata["origin"]["metadata"] == own
    assert set(metadata["datasets"]) == ({"there"} if handed_on else {"there", "here"})
    assert set(metadata.get("measured_on", {})) == ({"here"} if handed_on else set())
    assert (folder / "curves.tsv").exists() is not handed_on


@pytest.mark.usefixtures("no_training")
def test_an_entry_starts_from_another_entry(project: Path, tmp_path: Path) -> None:
    """``initial`` names one whose artifact is there."""
    values = {"dataset": "here", "held_out": 0.3, "kind": "icvf", "initial": "first", "training": TRAINING}
    save_model(project / "artifacts" / "pretrain" / "first", make("intent"))
    entries = {"second": {**values, **METHOD["intent"], "latent_dim": 5}}
    (project / "params.yaml").write_text(json.dumps({"seed": 0, "replicas": 2, "pretrain": entries}))
    with pytest.raises(ArtifactError, match=r"pretrain\.second\.initial: .*first has latent_dim 4, by the settings 5"):
        main(Stage("pretrain", project / "params.yaml", "second"))
