"""The contract of every kind: what a file of a room must hold, so that all that reads the registry can rely on it."""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from dynarep.configs.params import ParamsError
from dynarep.data.replay import ReplayTable
from dynarep.data.resident import TransitionTable
from dynarep.data.schema import Episode
from dynarep.pipeline.artifacts.storage import load_artifact, save_model
from dynarep.pipeline.entries import check_kinds, check_references
from dynarep.pipeline.labelling import Reward
from dynarep.pipeline.method import METHODS, EncoderMethod, Learner, Method, Needs, Sources, World
from dynarep.pipeline.nn.models import MODELS, ActingModel, Encoder, Model
from dynarep.pipeline.playing.environments import CollectionConfig
from dynarep.pipeline.registry import ROOMS, find_method, find_model, kinds

ROOT = Path(__file__).parents[1]
BASES: dict[str, type] = {"encoders": EncoderMethod, "rewards": Reward, "learners": Learner}
ALL = [(room, kind) for room in ROOMS.values() for kind in kinds(room)]
MODEL_KINDS = [
    (room, kind)
    for room in ("encoders", "policies")
    for kind in kinds(room)
    if (room, kind) != ("encoders", "artifact")
]
"""``artifact`` hands on the model of another kind."""

SIZES: dict[str, Any] = {
    "replicas": 2,
    "observation_dim": 3,
    "action_dim": 2,
    "action_low": (-1.0, 0.0),
    "action_high": (1.0, 5.0),
    "hidden": (8,),
    "policy_hidden": (8,),
    "feature_dim": 4,
    "latent_dim": 8,
    "head_hidden": (8,),
    "values": 2,
    "gamma": 0.9,
}
"""Of every architecture, by the name of its field."""


DRAWS = ("uniform", "latent_planner")
"""Policies that draw at random, all replicas from one stream."""


def model_of(room: str, kind: str) -> Model:
    """A model of random weights and moments."""
    found = find_model(room, kind, "kind")
    names = [field.name for field in dataclasses.fields(found.Architecture)]
    torch.manual_seed(0)
    model = found(found.Architecture(**{name: SIZES[name] for name in names if name in SIZES}))  # type: ignore[call-arg]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    stored = model.state_dict()  # other buffers follow from the architecture
    for name, buffer in model.named_buffers():
        if name in stored and name not in ("low", "high"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval().requires_grad_(False)


def default_config(method: type[Method]) -> Any:
    """The defaults; what a policy acts in has none."""
    acts = "environment" in {field.name for field in dataclasses.fields(method.Config)}
    return method.Config(environment=CollectionConfig(env="Hopper-v4")) if acts else method.Config()


def test_an_unknown_kind_is_refused_before_its_file_is_looked_for() -> None:
    values = {"pretrain": {"raw": {"kind": "identity"}}, "relabel": {"otr": {"kind": "ort"}}, "learn": {}}
    with pytest.raises(ParamsError, match=r"^p: relabel\.otr\.kind: found 'ort', expected one of .*, otr, "):
        check_kinds(values, "p")


@pytest.mark.parametrize(
    ("section", "key", "known"),
    [
        ("pretrain", "initial", "none, a"),
        ("relabel", "space", "none, a"),
        ("learn", "encoder", "none, a"),
        ("learn", "rewards", "none, b"),
    ],
)
def test_an_entry_that_is_not_there_is_refused_before_its_folder_is_looked_for(
    section: str, key: str, known: str
) -> None:
    values: dict[str, Any] = {
        "pretrain": {"a": {"initial": "none"}},
        "relabel": {"b": {"space": "a"}},
        "learn": {"c": {"encoder": "a", "rewards": "b"}},
    }
    check_references(values, "p")
    (name,) = values[section]
    values[section][name][key] = "gone"
    with pytest.raises(
        ParamsError, match=rf"^p: {section}\.{name}\.{key}: found 'gone', expected an entry of \w+: {known}$"
    ):
        check_references(values, "p")


def test_the_rooms_are_there() -> None:
    assert {"bc", "value_dice", "iql", "random"} <= set(kinds("learners"))
    assert {"icvf", "contrastive", "identity", "standardise", "artifact"} <= set(kinds("encoders"))
    assert {"ailot", "otr", "recorded", "constant"} <= set(kinds("rewards"))
    assert {"deterministic", "uniform"} <= set(kinds("policies"))


@pytest.mark.parametrize(("room", "kind"), [*ALL, *(("policies", kind) for kind in kinds("policies"))])
def test_a_file_registers_its_kind_and_no_other(room: str, kind: str) -> None:
    module = import_module(f"dynarep.pipeline.methods.{room}.{kind}")
    assert module.__doc__
    for registry in (METHODS, MODELS):
        here = [key for key, found in registry.items() if found.__module__ == module.__name__]  # type: ignore[attr-defined]
        assert here in ([], [(room, kind)])
    if room == "policies":
        assert MODELS[room, kind].__module__ == module.__name__
    else:
        assert METHODS[room, kind].__module__ == module.__name__


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ParamsError, match="here: found 'gail', expected one of bc, "):
        find_method("learners", "gail", "here")
    with pytest.raises(
        ParamsError,
        match="here: found None, expected one of deterministic, latent_gaussian, latent_planner, squashed_gaussian, uniform",
    ):
        find_model("policies", None, "here")


@pytest.mark.parametrize(("room", "kind"), ALL)
class TestMethods:
    def method(self, room: str, kind: str) -> type[Method]:
        return find_method(room, kind, "kind")

    def test_its_room_and_base(self, room: str, kind: str) -> None:
        method = self.method(room, kind)
        assert issubclass(method, BASES[room])
        assert (method.room, method.kind) == (room, kind)
        assert method.shown

    def test_its_config_is_frozen_and_has_defaults(self, room: str, kind: str) -> None:
        method = self.method(room, kind)
        config = method.Config
        assert dataclasses.is_dataclass(config)
        assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        defaults = default_config(method)
        for field in dataclasses.fields(config):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(defaults, field.name, None)
        if not hasattr(defaults, "environment"):  # its options are a mapping
            hash(defaults)
        assert config.__doc__

    def test_it_does_not_take_the_names_of_inputs(self, room: str, kind: str) -> None:
        from dynarep.pipeline.entries import INPUTS

        (section,) = (name for name, of_section in ROOMS.items() if of_section == room)
        shared = {field.name for field in dataclasses.fields(INPUTS[section])} | {"kind"}
        assert not shared & {field.name for field in dataclasses.fields(self.method(room, kind).Config)}

    def test_it_says_what_it_needs(self, room: str, kind: str) -> None:
        method = self.method(room, kind)
        needs = method.needs(default_config(method))
        assert isinstance(needs, Needs)
        assert set(needs.actions) <= {"dataset", "demonstrations"}
        assert needs.absorbing in (None, "steps", "discounted")

    def test_it_is_documented(self, room: str, kind: str) -> None:
        method = self.method(room, kind)
        assert "__doc__" in vars(method)
        assert method.__doc__
        for name, member in vars(method).items():
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, classmethod | property)):
                assert inspect.getdoc(member), name

    def test_it_can_be_trained_if_it_says_so(self, room: str, kind: str) -> None:
        """It has losses, groups and a batch, its own or in its phases."""
        method = self.method(room, kind)
        own = [
            name
            for name in ("losses", "parameter_groups", "batch")
            if getattr(method, name) is not getattr(Method, name)
        ]
        phases = method.phases is not Method.phases
        assert (len(own) == 3 or phases) == method.trains
        assert method.build.__func__ is not Method.build.__func__  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", kinds("learners"))
def test_a_learner_says_what_it_saw(kind: str) -> None:
    method = find_method("learners", kind, "kind")
    assert issubclass(method, Learner)
    rewards = "label" if method.needs(default_config(method)).rewards else None
    saw = method.saw(default_config(method), "two episodes, observations and actions", "nine transitions", rewards)
    assert list(saw) == ["expert", "other"]
    assert all(saw.values())
    if rewards:
        assert "label" in saw["other"]


def dynamics() -> Model:
    return model_of("encoders", "contrastive")


@pytest.mark.parametrize("kind", kinds("learners"))
def test_a_learner_makes_a_policy(kind: str) -> None:
    """Built for a world it draws, has a finite loss per replica, and exports a policy of the world's form."""
    method = find_method("learners", kind, "kind")
    c = default_config(method)
    needs = method.needs(c)
    rng = torch.Generator().manual_seed(0)
    episodes = [
        Episode(
            id=f"e-{i}",
            observations=torch.randn(13, 3, generator=rng).numpy(),
            actions=torch.rand(12, 2, generator=rng).numpy(),
            terminated=False,
            truncated=True,
        )
        for i in range(3)
    ]
    table = TransitionTable.from_episodes(episodes, device=torch.device("cpu"))
    rewards = torch.randn(2, 36, generator=rng) if needs.rewards else None
    roles = dict.fromkeys(("dataset", "demonstrations"), lambda: table)
    if needs.environment is not None:
        replay = ReplayTable(2, 36, observation_dim=3, action_dim=2, device="cpu")
        rows = table.gather(torch.arange(36).expand(2, -1))
        replay.extend(dataclasses.replace(rows, rewards=torch.randn(2, 36, generator=rng)), torch.zeros(2, 36))
        roles["dataset"] = lambda: replay
    sources = Sources(roles, 2, 4, torch.device("cpu"), rewards)
    encoder = dynamics() if needs.encoder and not needs.optional_encoder else None
    world = World(2, torch.zeros(3), torch.ones(3), (-1.0, 0.0), (1.0, 5.0), encoder=encoder)
    learner = method.build(c, world)
    learner.prepare(sources)
    for phase in learner.phases() if method.trains else []:
        result = phase.learner.losses(phase.batch(sources, rng))  # type: ignore[operator]
        assert result.loss.shape == (2,)
        assert result.loss.isfinite().all()
        assert set(phase.shown) <= {"loss", *result.metrics}
        assert all(value.shape == (2,) and not value.requires_grad for value in result.metrics.values())
        if phase.finish is not None:
            phase.finish(sources)
    policy = learner.export()
    assert isinstance(policy, ActingModel)
    observations = torch.randn(1, 5, 3)
    actions = policy.act(observations)
    assert actions.shape == (policy.replicas, 5, 2)
    assert (actions >= policy.low - 1e-6).all()
    assert (actions <= policy.high + 1e-6).all()


@pytest.mark.parametrize(("room", "kind"), MODEL_KINDS)
class TestModels:
    def test_it_is_documented_and_frozen(self, room: str, kind: str) -> None:
        found = find_model(room, kind, "kind")
        assert issubclass(found, Encoder if room == "encoders" else ActingModel)
        assert (found.room, found.kind) == (room, kind)
        assert found.__doc__
        assert found.Architecture.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert {"replicas", "observation_dim"} <= {field.name for field in dataclasses.fields(found.Architecture)}

    def test_it_is_the_same_after_saving_and_loading(self, room: str, kind: str, tmp_path: Path) -> None:
        model = model_of(room, kind)
        save_model(tmp_path / "model", model)
        loaded = load_artifact(tmp_path / "model", observation_dim=3)
        assert type(loaded) is type(model)
        assert loaded.architecture == model.architecture
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        observations, actions = torch.randn(1, 5, 3), torch.rand(1, 5, 2)
        for one, other in zip(
            self.numbers(model, observations, actions), self.numbers(loaded, observations, actions), strict=True
        ):
            assert one.isfinite().all()
            assert torch.equal(one, other)

    def numbers(self, model: Model, observations: torch.Tensor, actions: torch.Tensor) -> list[torch.Tensor]:
        if isinstance(model, ActingModel):
            model.reset((3, 4))
            return [model.act(observations)]
        assert isinstance(model, Encoder)
        return [model.embed(observations, actions if s in model.reads_actions else None, s) for s in model.spaces]

    def test_rows_of_its_replicas_are_theirs(self, room: str, kind: str) -> None:
        model = model_of(room, kind)
        chosen = model.replica_rows([1, 1, 0])
        assert chosen.architecture.replicas == 3
        assert not any(p.requires_grad for p in chosen.parameters())
        if kind in DRAWS:
            return
        observations, actions = torch.randn(1, 5, 3), torch.rand(1, 5, 2)
        pairs = zip(
            self.numbers(model, observations, actions), self.numbers(chosen, observations, actions), strict=True
        )
        for whole, rows in pairs:
            if len(whole) == 1:
                assert torch.equal(whole, rows)  # all replicas are one
            else:
                torch.testing.assert_close(rows, whole[[1, 1, 0]])

    def test_forward_is_the_first_replica(self, room: str, kind: str) -> None:
        model = model_of(room, kind)
        inputs = tuple(torch.randn_like(x) for x in model.inputs())
        if isinstance(model, ActingModel):
            model.reset((0,))
        found = model(*inputs)
        first = self.numbers(model, inputs[0][None], inputs[1][None] if len(inputs) > 1 else torch.zeros(1, 2, 2))[0][0]
        if kind not in DRAWS:
            torch.testing.assert_close(found, first)
        assert found.shape == first.shape


@pytest.mark.parametrize("kind", [kind for room, kind in MODEL_KINDS if room == "encoders"])
def test_an_encoder_answers_for_each_of_its_spaces(kind: str) -> None:
    encoder = model_of("encoders", kind)
    assert isinstance(encoder, Encoder)
    assert encoder.spaces
    assert len(set(encoder.spaces)) == len(encoder.spaces)
    assert set(encoder.reads_actions) | set(encoder.in_steps) <= set(encoder.spaces)
    observations, actions = torch.randn(1, 6, 3), torch.rand(1, 6, 2)
    for space in encoder.spaces:
        points = encoder.embed(observations, actions if space in encoder.reads_actions else None, space)
        assert points.dim() == 3
        assert points.shape[0] in (1, 2)
        assert points.shape[1] == 6
        calibration = encoder.calibration_of(space)
        assert calibration is None or calibration.shape == (2,)
    first = encoder.spaces[0]
    default = encoder.embed(observations, actions if first in encoder.reads_actions else None)
    assert default.shape[-1] == encoder.latent_dim()
