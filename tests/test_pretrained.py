import copy
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make
from safetensors.numpy import load_file, save_file

from dynarep.data.columns import read_latents
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, write_dataset
from dynarep.pipeline.artifacts.pretrained import (
    PretrainedDynamics,
    PretrainedIntent,
    PretrainedPolicy,
    load_encoder,
    load_policy,
)
from dynarep.pipeline.artifacts.storage import ArtifactError, load_artifact, load_policy_model, save_model
from dynarep.pipeline.methods.encoders.contrastive import DynamicsEncoder
from dynarep.pipeline.methods.encoders.icvf import IntentEncoder
from dynarep.pipeline.methods.encoders.identity import States, StatesArchitecture
from dynarep.pipeline.methods.encoders.standardise import StandardisedArchitecture, StandardisedStates
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture
from dynarep.pipeline.nn.networks import Normaliser

METADATA = {"path": "artifacts/here", "datasets": {"hopper": "abc"}, "metrics": {"loss": 0.5}}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    for kind in ("intent", "dynamics", "policy"):
        save_model(root / kind, make(kind))
        (root / kind / "metadata.json").write_text(json.dumps(METADATA))
    return root


@pytest.fixture
def intent(artifacts: Path) -> PretrainedIntent:
    encoder = load_encoder(artifacts / "intent")
    assert isinstance(encoder, PretrainedIntent)
    return encoder


@pytest.fixture
def dynamics(artifacts: Path) -> PretrainedDynamics:
    encoder = load_encoder(str(artifacts / "dynamics"))
    assert isinstance(encoder, PretrainedDynamics)
    return encoder


@pytest.fixture
def whole(artifacts: Path) -> IntentEncoder:
    """All replicas."""
    model = load_artifact(artifacts / "intent")
    assert isinstance(model, IntentEncoder)
    return model


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_an_encoder_tells(intent: PretrainedIntent, dynamics: PretrainedDynamics, artifacts: Path) -> None:
    assert (intent.spec.observation_dim, intent.spec.action_dim, intent.latent_dim) == (3, 0, 4)
    assert (dynamics.spec.observation_dim, dynamics.spec.action_dim, dynamics.latent_dim) == (3, 2, 4)
    assert intent.metadata == {**METADATA, "replica": 0}
    assert intent.source == str(artifacts / "intent")
    assert (intent.device, intent.dtype) == (torch.device("cpu"), torch.float32)
    assert "latent_dim=4" in repr(intent)
    for encoder in (intent, dynamics):
        assert not encoder.training
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_tensors(intent: PretrainedIntent, dynamics: PretrainedDynamics, whole: IntentEncoder, artifacts: Path) -> None:
    s, following, a = rows(5, 3), rows(5, 3, seed=1), rows(5, 2, seed=2)
    torch.testing.assert_close(intent(s), whole(s))
    torch.testing.assert_close(intent.distance(s, following), whole.distance(s, following))
    plain = load_artifact(artifacts / "dynamics")
    assert isinstance(plain, DynamicsEncoder)
    torch.testing.assert_close(dynamics(s, a), plain(s, a))
    torch.testing.assert_close(dynamics.ratio(s, a, following), plain.ratio(s, a, following))


def test_numpy_in_gives_numpy_out(intent: PretrainedIntent, dynamics: PretrainedDynamics) -> None:
    s, following, a = rows(5, 3), rows(5, 3, seed=1), rows(5, 2, seed=2)
    results = [
        (intent(s.numpy()), intent(s)),
        (intent(s.double().numpy()), intent(s)),
        (intent(s.numpy()[:, ::-1][:, ::-1]), intent(s)),
        (intent(s.tolist()), intent(s)),
        (intent.distance(s.numpy(), following.numpy()), intent.distance(s, following)),
        (dynamics(s.numpy(), a.numpy()), dynamics(s, a)),
        (dynamics.ratio(s.numpy(), a.numpy(), following.numpy()), dynamics.ratio(s, a, following)),
    ]
    for array, tensor in results:
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float32
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5)
    assert isinstance(intent.distance(s, following.numpy()), torch.Tensor)


def test_any_leading_shape(intent: PretrainedIntent, dynamics: PretrainedDynamics) -> None:
    s, goal, a = rows(2, 5, 3), rows(3, seed=1), rows(5, 2, seed=2)
    assert intent(goal).shape == (4,)
    torch.testing.assert_close(intent(s)[1, 2], intent(s[1, 2]))
    steps = intent.distance(s, goal)
    assert steps.shape == (2, 5)
    torch.testing.assert_close(steps[1, 2], intent.distance(s[1, 2], goal))
    assert intent.distance(goal, goal).shape == ()
    torch.testing.assert_close(dynamics(s, a)[1, 2], dynamics(s[1, 2], a[2]))
    assert dynamics.ratio(s, a, goal).shape == (2, 5)
    assert intent(np.zeros((0, 3))).shape == (0, 4)
    assert intent.distance(np.zeros((0, 3)), goal.numpy()).shape == (0,)


def test_gradients_reach_tensors_and_not_arrays(intent: PretrainedIntent) -> None:
    s = rows(5, 3).requires_grad_()
    intent(s).sum().backward()
    assert s.grad is not None
    assert s.grad.abs().sum() > 0
    intent.unfreeze()
    assert isinstance(intent(s.detach().numpy()), np.ndarray)


@pytest.mark.parametrize("replica", [0, 1])
def test_a_replica(artifacts: Path, whole: IntentEncoder, replica: int) -> None:
    encoder = load_encoder(artifacts / "intent", replica=replica)
    assert isinstance(encoder, PretrainedIntent)
    s = rows(5, 3)
    torch.testing.assert_close(encoder(s), whole.embed(s[None])[replica])
    expected = (whole.embed(s[None]) - whole.embed(-s[None])).square().sum(-1) * whole.calibration[:, None]
    torch.testing.assert_close(encoder.distance(s, -s), expected[replica])
    assert encoder.metadata["replica"] == replica
    assert encoder.networks["psi"].layers[0].weight.shape[0] == 1


@pytest.mark.parametrize("replica", [-1, 2])
def test_a_replica_that_is_not_there(artifacts: Path, replica: int) -> None:
    with pytest.raises(ArtifactError, match=rf"intent: replica: found {replica}, expected 0 to 1"):
        load_encoder(artifacts / "intent", replica=replica)


def test_types(artifacts: Path, intent: PretrainedIntent) -> None:
    s = rows(5, 3)
    double = load_encoder(artifacts / "intent", dtype=torch.float64)
    assert isinstance(double, PretrainedIntent)
    assert double(s).dtype == torch.float64
    assert double(s.numpy()).dtype == np.float64
    torch.testing.assert_close(double(s).float(), intent(s))
    half = load_encoder(artifacts / "intent", dtype=torch.bfloat16)
    assert isinstance(half, PretrainedIntent)
    assert half(s).dtype == torch.bfloat16
    assert half(s.numpy()).dtype == np.float32
    torch.testing.assert_close(half(s).float(), intent(s), atol=0.1, rtol=0.05)
    assert intent(s.double()).dtype == torch.float32
    assert intent(np.array([[1, 2, 3]])).dtype == np.float32


def test_another_device(artifacts: Path) -> None:
    encoder = load_encoder(artifacts / "intent", device="meta")
    assert isinstance(encoder, PretrainedIntent)
    assert encoder.device.type == "meta"
    assert encoder(torch.empty(5, 3, device="meta")).shape == (5, 4)


def trainable(encoder: PretrainedIntent | PretrainedDynamics) -> set[str]:
    return {name.removeprefix("model.") for name, weight in encoder.named_parameters() if weight.requires_grad}


def test_unfreezing(artifacts: Path, intent: PretrainedIntent, dynamics: PretrainedDynamics) -> None:
    everything = {f"psi.layers.{layer}.{name}" for layer in (0, 1) for name in ("weight", "bias")}
    assert trainable(load_encoder(artifacts / "intent", trainable=True)) == everything
    assert trainable(intent.unfreeze(last=1)) == {"psi.layers.1.weight", "psi.layers.1.bias"}
    assert trainable(intent.unfreeze(last=2)) == everything
    assert trainable(intent.unfreeze(last=1)) == {"psi.layers.1.weight", "psi.layers.1.bias"}
    assert trainable(intent.freeze()) == set()
    last = {"phi_network.layers.2.weight", "mu_network.layers.2.weight", "mu_network.layers.2.bias"}
    assert trainable(dynamics.unfreeze(last=1)) == last
    dynamics.networks["mu"].requires_grad_(False)
    assert trainable(dynamics) == {"phi_network.layers.2.weight"}
    for last_layers in (0, 3):
        with pytest.raises(ValueError, match=f"found last={last_layers}, expected 1 to 2, layers of psi"):
            intent.unfreeze(last=last_layers)


def test_training_changes_what_is_trainable_and_nothing_else(intent: PretrainedIntent) -> None:
    before = copy.deepcopy(intent.state_dict())
    intent.unfreeze(last=1)
    optimiser = torch.optim.Adam(intent.parameters(), lr=0.1)
    intent(rows(5, 3)).square().sum().backward()
    optimiser.step()
    after = intent.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.psi.layers.1.weight", "model.psi.layers.1.bias"}


def test_refusals_name_artifact_found_and_expected(
    intent: PretrainedIntent, dynamics: PretrainedDynamics, artifacts: Path
) -> None:
    with pytest.raises(ArtifactError) as error:
        intent(np.zeros((4, 11)))
    assert str(error.value).startswith(
        f"{artifacts / 'intent'} (icvf): observation: found shape (4, 11), expected 3 numbers; "
        "it was trained on hopper. "
    )
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: intent(torch.zeros(4, 2)), r"observation: found shape \(4, 2\), expected 3"),
        (lambda: intent(1.0), r"observation: found shape \(\), expected 3"),
        (lambda: intent.distance(np.zeros(3), np.zeros(5)), r"b: found shape \(5,\), expected 3"),
        (lambda: intent.distance(np.zeros((2, 3)), np.zeros((4, 3))), r"leading shapes \(2,\) of a and \(4,\) of b"),
        (lambda: intent(np.array([["a", "b", "c"]])), "observation: found an array of <U1, expected numbers"),
        (lambda: dynamics(np.zeros((4, 3)), np.zeros((4, 3))), r"action: found shape \(4, 3\), expected 2"),
        (lambda: dynamics.ratio(np.zeros(3), np.zeros(2), np.zeros(7)), r"next_observation: found shape \(7,\), exp"),
    ]
    for call, message in cases:
        with pytest.raises(ArtifactError, match=message):
            call()


def test_the_absorbing_bit_may_be_given(dynamics: PretrainedDynamics) -> None:
    s, a = rows(5, 3), rows(5, 2)
    given = torch.cat([s, torch.zeros(5, 1)], -1)
    torch.testing.assert_close(dynamics(given, a), dynamics(s, a))
    assert not torch.allclose(dynamics(given + torch.tensor([0.0, 0, 0, 1]), a), dynamics(s, a))


def test_a_policy_is_no_encoder(artifacts: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config.json: found a policy of kind deterministic, expected an encoder"):
        load_encoder(artifacts / "policy")


def test_metadata_may_be_missing_but_not_damaged(artifacts: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((artifacts / "intent" / name).read_bytes())
    assert load_encoder(tmp_path).metadata == {"replica": 0}
    for text, message in (("{", "not valid JSON"), ("[]", "found list, expected a mapping")):
        (tmp_path / "metadata.json").write_text(text)
        with pytest.raises(ArtifactError, match=f"metadata.json: {message}"):
            load_encoder(tmp_path)


def test_saving(intent: PretrainedIntent, artifacts: Path, tmp_path: Path) -> None:
    second = load_encoder(artifacts / "intent", replica=1)
    second.save_pretrained(tmp_path / "second")
    again = load_encoder(tmp_path / "second")
    s = rows(5, 3)
    assert torch.equal(again(s), second(s))
    assert {**again.metadata, "code": None} == {**METADATA, "replica": 1, "code": None}
    second.export_program(tmp_path / "second" / "model.pt2")
    program = torch.export.load(tmp_path / "second" / "model.pt2").module()
    torch.testing.assert_close(program(s), second(s))

    intent.unfreeze(last=1)
    with torch.no_grad():
        intent.networks["psi"].layers[-1].weight.mul_(2.0)
    intent.save_pretrained(tmp_path / "second")  # in place of an artifact
    tuned = load_encoder(tmp_path / "second")
    torch.testing.assert_close(tuned(s), intent(s).detach())
    assert tuned.metadata["fine_tuned"]
    assert trainable(intent) == {"psi.layers.1.weight", "psi.layers.1.bias"}  # saving leaves it as it was

    (tmp_path / "second" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"second: found notes.txt, expected a new or empty folder"):
        intent.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "notes.txt").read_text() == "mine"


MakeEpisode = Callable[..., Episode]


@pytest.fixture
def dataset(tmp_path: Path, make_episode: MakeEpisode) -> Path:
    episodes = [
        make_episode(7, "e-0", seed=0),
        make_episode(1, "e-1", seed=1),
        make_episode(4, "e-2", seed=2, separate=True),
        make_episode(5, "e-3", seed=3),
    ]
    folder = tmp_path / "shards" / "small"
    bounds = ((-1.0, -1.0), (1.0, 1.0))
    write_dataset(folder, "small", episodes, provenance={}, env=None, bounds=bounds, shard_bytes=600)
    assert len(list(folder.glob("*.tar"))) > 1
    return folder


@pytest.mark.parametrize("batch_size", [1, 3, 8192])
def test_latents_of_a_dataset(
    intent: PretrainedIntent, dynamics: PretrainedDynamics, dataset: Path, tmp_path: Path, batch_size: int
) -> None:
    loaded = load_dataset(dataset)
    assert intent.encode_dataset(dataset, tmp_path / "psi", batch_size=batch_size) == tmp_path / "psi" / "latents"
    latents = read_latents(tmp_path / "psi", loaded)
    assert list(latents) == ["e-0", "e-1", "e-2", "e-3"]
    for episode in loaded.episodes:
        np.testing.assert_allclose(latents[episode.id], intent(episode.observations), rtol=1e-4, atol=1e-6)
    dynamics.encode_dataset(loaded, tmp_path / "phi", batch_size=batch_size)
    for episode, features in zip(loaded.episodes, read_latents(tmp_path / "phi", loaded).values(), strict=True):
        np.testing.assert_allclose(features, dynamics(episode.current, episode.actions), rtol=1e-4, atol=1e-6)


def test_a_dataset_by_name(
    intent: PretrainedIntent, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "artifacts").mkdir()
    dataset.parent.rename(tmp_path / "artifacts" / "shards")
    monkeypatch.chdir(tmp_path)
    intent.encode_dataset("small", "psi")
    assert len(read_latents("psi", load_dataset(Path("artifacts/shards/small")))) == 4
    with pytest.raises(DataError, match=r"artifacts/shards/other/index.json: no such file; .* not prepared"):
        intent.encode_dataset("other", "psi")


def test_latents_belong_to_one_dataset(
    intent: PretrainedIntent, dataset: Path, tmp_path: Path, make_episode: MakeEpisode
) -> None:
    written = intent.encode_dataset(dataset, tmp_path)
    loaded = load_dataset(dataset)
    bounds = ((-1.0, -1.0), (1.0, 1.0))
    write_dataset(tmp_path / "other", "other", [make_episode(3)], provenance={}, env=None, bounds=bounds)
    with pytest.raises(DataError, match=r"found latents of small with fingerprint .*, expected those of other"):
        read_latents(tmp_path, load_dataset(tmp_path / "other"))
    with pytest.raises(DataError, match="found no latents"):
        read_latents(tmp_path / "nowhere", loaded)
    first = min(written.glob("*.safetensors"))
    kept = first.read_bytes()
    first.write_bytes(kept[:-5])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        read_latents(tmp_path, loaded)
    about = {"dataset_fingerprint": loaded.fingerprint}
    first.write_bytes(kept)
    columns = load_file(first)
    save_file({name: rows[:-2] for name, rows in columns.items()}, first, metadata=about)
    with pytest.raises(DataError, match=r"episode e-0: found shape \(6, 4\), expected 7 or 8 rows"):
        read_latents(tmp_path, loaded)
    first.unlink()
    with pytest.raises(DataError, match="misses episode e-0"):
        read_latents(tmp_path, loaded)


def test_a_dataset_that_does_not_fit(
    intent: PretrainedIntent, dynamics: PretrainedDynamics, tmp_path: Path, make_episode: MakeEpisode
) -> None:
    wide, passive = tmp_path / "wide", tmp_path / "passive"
    write_dataset(
        wide, "wide", [make_episode(3, observation_dim=5)], provenance={}, env=None, bounds=((-1.0, -1.0), (1.0, 1.0))
    )
    write_dataset(passive, "passive", [make_episode(3, action_dim=0)], provenance={}, env=None, bounds=((), ()))
    with pytest.raises(ArtifactError, match="observation: found 5 numbers in those of wide, expected 3"):
        intent.encode_dataset(wide, tmp_path / "out")
    with pytest.raises(ArtifactError, match="action: found 0 numbers in those of passive, expected 2"):
        dynamics.encode_dataset(passive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    intent.encode_dataset(passive, tmp_path / "out")


def test_latents_that_are_not_finite_are_not_written(intent: PretrainedIntent, dataset: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        intent.networks["psi"].layers[-1].bias.fill_(torch.inf)
    with pytest.raises(
        DataError, match=r"latents of small by .*episode e-0: found a number that is not finite in row 0"
    ):
        intent.encode_dataset(dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "latents").exists()


def test_names_in_the_column(intent: PretrainedIntent, dataset: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    written = intent.encode_dataset(dataset, tmp_path)
    files = sorted(written.glob("*.safetensors"))
    assert files
    assert {file.name for file in written.iterdir()} == {"about.json", *(file.name for file in files)}
    fingerprint = json.loads((dataset / "index.json").read_text())["fingerprint"]
    for path in files:
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"dataset_fingerprint": fingerprint}
    assert json.loads((written / "about.json").read_text()) == {
        "dataset": "small",
        "encoder": intent.source,
        "sha256": {file.name: sha256(file.read_bytes()).hexdigest() for file in files},
    }


@pytest.fixture
def states(tmp_path: Path) -> dict[str, PretrainedIntent]:
    """Encoders of states that have no network."""
    standardised = StandardisedStates(StandardisedArchitecture(replicas=1, observation_dim=3))
    standardised.normaliser = Normaliser(torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 2.0 - 1e-3))
    found = {}
    for name, model in (("raw", States(StatesArchitecture(replicas=1, observation_dim=3))), ("scaled", standardised)):
        save_model(tmp_path / name, model)
        encoder = load_encoder(tmp_path / name)
        assert isinstance(encoder, PretrainedIntent)
        found[name] = encoder
    return found


def test_encoders_are_known_by_what_they_offer(states: dict[str, PretrainedIntent]) -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 3.0])
    np.testing.assert_allclose(states["raw"](b), b)
    np.testing.assert_allclose(states["scaled"](b), [1.0, 0.0, 0.0])
    assert states["raw"].distance(a, b) == pytest.approx(4.0)  # no calibration
    assert states["scaled"].distance(a, b) == pytest.approx(1.0)
    for encoder in states.values():
        assert (encoder.space, encoder.latent_dim, encoder.in_steps) == ("states", 3, False)
        assert encoder.freeze()(b).shape == (3,)
        with pytest.raises(ArtifactError, match="unfreeze: found no network, there is nothing to train"):
            encoder.unfreeze()


class Steps(IntentEncoder):
    """Has a distance of its own."""

    kind = ""
    in_steps = ("psi",)

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().sum(-1)


def test_a_distance_in_steps_is_the_encoders_own(whole: IntentEncoder) -> None:
    plain, own = PretrainedIntent(whole), PretrainedIntent(Steps(whole.architecture))
    assert (plain.in_steps, own.in_steps) == (False, True)
    assert own.distance(np.zeros(3), np.ones(3)) == pytest.approx(3.0)
    torch.testing.assert_close(plain.distance(rows(5, 3), -rows(5, 3)), whole.distance(rows(5, 3), -rows(5, 3)))


def test_an_encoder_in_the_wrong_class(whole: IntentEncoder, artifacts: Path) -> None:
    dynamics = load_artifact(artifacts / "dynamics")
    assert isinstance(dynamics, DynamicsEncoder)
    with pytest.raises(ArtifactError, match="found an encoder of states alone, expected one that reads actions"):
        PretrainedDynamics(whole)
    with pytest.raises(ArtifactError, match="found an encoder that reads actions, expected one of states"):
        PretrainedIntent(dynamics)


@pytest.fixture
def policy(artifacts: Path) -> PretrainedPolicy:
    return load_policy(artifacts / "policy")


def test_what_a_policy_tells(policy: PretrainedPolicy, artifacts: Path) -> None:
    assert (policy.spec.observation_dim, policy.spec.action_dim) == (3, 2)
    assert (policy.spec.action_low, policy.spec.action_high) == ((-1.0, 0.0), (1.0, 5.0))
    assert policy.metadata == {**METADATA, "replica": 0}
    assert policy.source == str(artifacts / "policy")
    assert not policy.training
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert "action_high=(1.0, 5.0)" in repr(policy)


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (7, 3), (2, 4, 3), (0, 3)])
def test_actions(shape: tuple[int, ...], replica: int, artifacts: Path) -> None:
    policy = load_policy(artifacts / "policy", replica=replica)
    s = rows(*shape)
    expected = torch.zeros(0, 2)
    if s.numel():
        expected = load_policy_model(artifacts / "policy").act(s.reshape(1, -1, 3))[replica].reshape(*shape[:-1], 2)
    found = policy(s)
    torch.testing.assert_close(found, expected)
    for array in (s.numpy(), s.double().numpy(), s.tolist() if s.numel() else s.numpy()):
        action = policy(array)
        assert isinstance(action, np.ndarray)
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-6)
    for tensor in (s.double(), s.half(), s.bfloat16()):
        action = policy(tensor)
        assert action.dtype == torch.float32
        torch.testing.assert_close(action, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_actions_keep_to_the_bounds(dtype: torch.dtype, artifacts: Path) -> None:
    policy = load_policy(artifacts / "policy", dtype=dtype)
    action = policy(1e3 * rows(500, 3).to(dtype))
    assert action.dtype == dtype
    low, high = (torch.tensor(bound, dtype=dtype) for bound in (policy.spec.action_low, policy.spec.action_high))
    assert ((action >= low) & (action <= high)).all()
    assert (action == high).any()  # they are reached


def test_what_a_policy_refuses(policy: PretrainedPolicy, artifacts: Path) -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: policy(np.zeros((4, 11))),
            r"policy \(deterministic\): observation: found shape \(4, 11\), expected 3 ",
        ),
        (lambda: policy(torch.zeros(4)), r"observation: found shape \(4,\), expected 3"),
        (lambda: policy(1.0), r"observation: found shape \(\), expected 3"),
        (lambda: policy([1.0, float("nan"), 0.0]), "observation: found a number that is not finite"),
        (lambda: policy([1.0, 1e39, 0.0]), "observation: found a number that is not finite"),
        (lambda: policy(["a", "b", "c"]), "observation: found an array of <U1, expected numbers"),
        (lambda: policy([[1.0], [1.0, 2.0]]), "observation: found rows of different lengths"),
        (lambda: policy.check("the robot", 3, 7), "action: found 7 numbers in those of the robot, expected 2"),
        (lambda: load_policy(artifacts / "policy", replica=2), "replica: found 2, expected 0 to 1"),
        (lambda: load_policy(artifacts / "intent"), "found an encoder of kind icvf, expected a policy"),
    ]
    for call, message in cases:
        with pytest.raises(ArtifactError, match=message):
            call()


def test_a_policy_with_noise_starts_anew(tmp_path: Path) -> None:
    bounds = {"action_low": (-1.0, 0.0), "action_high": (1.0, 5.0)}
    save_model(tmp_path, Uniform(UniformArchitecture(replicas=1, observation_dim=3, **bounds)))
    policy = load_policy(tmp_path)
    policy.reset(1)
    first = [policy(np.zeros(3)) for _ in range(3)]
    policy.reset(1)
    np.testing.assert_array_equal([policy(np.zeros(3)) for _ in range(3)], first)
    policy.reset(2)
    assert not np.array_equal(policy(np.zeros(3)), first[0])
    assert first[0].dtype == np.float32


def test_a_policy_is_tuned_and_saved(policy: PretrainedPolicy, tmp_path: Path) -> None:
    policy.unfreeze(last=1)
    names = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert names == {"model.network.layers.1.weight", "model.network.layers.1.bias"}
    policy(rows(5, 3)).sum().backward()
    with torch.no_grad():
        policy.networks["network"].layers[-1].weight.mul_(0.5)
    policy.save_pretrained(tmp_path / "tuned", license="mit")
    again = load_policy(tmp_path / "tuned")
    torch.testing.assert_close(again(rows(5, 3)), policy(rows(5, 3)).detach())
    assert (again.metadata["license"], again.metadata["fine_tuned"]) == ("mit", True)
    assert "license" not in policy.metadata
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="file: found a file, expected a new or empty folder"):
        policy.save_pretrained(tmp_path / "file")


def test_a_program_of_a_policy(policy: PretrainedPolicy, artifacts: Path, tmp_path: Path) -> None:
    policy.export_program(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 2, 7):
        torch.testing.assert_close(program(rows(batch, 3)), policy(rows(batch, 3)))
    with pytest.raises(ArtifactError, match=r"found torch.float64 on cpu, expected torch.float32 on cpu"):
        load_policy(artifacts / "policy", dtype=torch.float64).export_program(tmp_path / "double.pt2")
    with pytest.raises(OSError, match=r"No such file or directory: .*nowhere"):
        policy.export_program(tmp_path / "nowhere" / "model.pt2")


def test_metadata_of_any_shape_do_no_harm(artifacts: Path, tmp_path: Path) -> None:
    save_model(tmp_path, make("intent"))
    for datasets in ("x", None, [1], {"<b>": "x"}):
        (tmp_path / "metadata.json").write_text(json.dumps({"datasets": datasets}))
        with pytest.raises(ArtifactError, match=r"observation: found shape \(4, 5\), expected 3"):
            load_encoder(tmp_path)(np.zeros((4, 5)))
