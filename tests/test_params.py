from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dynarep.configs.params import Field, ParamsError, config, read_section, read_yaml, validate
from dynarep.data.parallel import ClusterConfig
from dynarep.pipeline.entries import (
    NONE,
    SECTIONS,
    Entry,
    datasets_of,
    parse_entry,
    read_entry,
    read_params,
    section_of,
)
from dynarep.pipeline.playing.environments import d4rl_reference
from dynarep.pipeline.playing.play import EvaluateConfig
from dynarep.pipeline.registry import ROOMS
from dynarep.pipeline.report import ReportConfig
from dynarep.pipeline.run import RunConfig
from dynarep.pipeline.training.processes import TrainerConfig

ROOT = Path(__file__).parents[1]

OTHERS: dict[str, type] = {
    "trainer": TrainerConfig,
    "cluster": ClusterConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}
"""Sections that hold no entries."""


@config
class Optimiser:
    rate: float = Field(default=1e-3, gt=0)
    widths: tuple[int, ...] = (8, 8)


@config
class Cat:
    kind: Literal["cat"]
    lives: int = Field(default=9, le=9)


@config
class Dog:
    kind: Literal["dog"]


@config
class Section:
    dataset: str
    count: int = 3
    optimiser: Optimiser = Optimiser()
    animals: dict[str, Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(default_factory=dict)


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def refusal(path: Path, section: str = "part") -> str:
    with pytest.raises(ParamsError) as error:
        read_section(path, section, Section)
    return str(error.value)


def test_a_section_is_read(tmp_path: Path) -> None:
    text = "part: {dataset: a, count: 4, optimiser: {rate: 1e-4, widths: [1, 2]}, animals: {tom: {kind: cat}}}"
    section = read_section(write(tmp_path, text), "part", Section)
    # YAML 1.1 reads 1e-4 as text
    expected = Section(
        dataset="a", count=4, optimiser=Optimiser(rate=1e-4, widths=(1, 2)), animals={"tom": Cat(kind="cat")}
    )
    assert section == expected
    with pytest.raises(AttributeError):
        section.count = 5  # type: ignore[misc]
    assert read_section(write(tmp_path, "part: {dataset: a}"), "part", Section) == Section(dataset="a")
    assert read_section(write(tmp_path, "part:\nother: 1"), "part", ReportConfig) == ReportConfig()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{dataset: a, cuont: 4}", ["part.cuont: unknown key; ", "part knows dataset, count, optimiser, animals"]),
        ("{dataset: a, optimiser: {rates: 1}}", ["part.optimiser.rates: unknown key"]),
        ("{dataset: a, count: many}", ["part.count: found 'many'", "integer"]),
        ("{dataset: a, count: 1.5}", ["part.count: found 1.5", "integer"]),
        ("{dataset: 3}", ["part.dataset: found 3", "string"]),
        ("{dataset: a, optimiser: {rate: 0}}", ["part.optimiser.rate: found 0", "greater than 0"]),
        ("{dataset: a, optimiser: {widths: 8}}", ["part.optimiser.widths: found 8", "tuple"]),
        ("{dataset: a, animals: {tom: {kind: cow}}}", ["part.animals.tom", "cow", "'cat', 'dog'"]),
        ("{dataset: a, animals: {tom: {kind: cat, lives: 10}}}", ["part.animals.tom", ".lives: found 10"]),
        ("{count: 4}", ["part.dataset: missing"]),
        ("", ["part.dataset: missing"]),
        ("[1, 2]", ["part: found [1, 2]"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, f"part: {text}")
    message = refusal(path)
    assert message.startswith(f"{path}: part")
    for part in parts:
        assert part in message


def test_every_wrong_key_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "part: {cuont: 4, count: many}")
    lines = refusal(path).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: part.") for line in lines)


def test_a_missing_section_lists_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "one: {}\ntwo: {}")
    assert refusal(path) == f"{path}: no section 'part'; found one, two"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.yaml"
    assert refusal(missing) == f"{missing}: no such file"
    assert refusal(write(tmp_path, "a: [1")).startswith(f"{tmp_path / 'params.yaml'}: not valid YAML")
    assert refusal(write(tmp_path, "- 1")).endswith("params.yaml: expected a mapping, found list")
    assert refusal(write(tmp_path, "")).endswith("params.yaml: expected a mapping, found NoneType")


PARAMS = [ROOT / "params.yaml", *sorted((ROOT / "configs" / "presets").glob("*.yaml"))]


def entries_of(path: Path) -> dict[tuple[str, str], Entry[Any]]:
    """All entries of a params file by section and name."""
    values = read_params(path)
    return {
        (section, name): read_entry(path, section, name)
        for section in ROOMS
        for name in section_of(values, section, str(path))
    }


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
class TestParamsFiles:
    def test_every_section_is_known_and_valid(self, path: Path) -> None:
        values = read_params(path)
        for section in set(values) & set(OTHERS):
            validate(OTHERS[section], values[section] or {}, f"{path}: {section}")
        validate(RunConfig, {k: values[k] for k in ("seed", "replicas") if k in values}, str(path))
        assert entries_of(path)

    def test_named_datasets_have_cards(self, path: Path) -> None:
        known = {card.stem for card in (ROOT / "configs" / "datasets").glob("*.yaml")}
        assert set(datasets_of(read_params(path))) <= known

    def test_entries_name_entries_that_are_made(self, path: Path) -> None:
        found = entries_of(path)
        for one in found.values():
            for field, section in (
                ("initial", "pretrain"),
                ("space", "pretrain"),
                ("encoder", "pretrain"),
                ("rewards", "relabel"),
            ):
                name = getattr(one.inputs, field, NONE)
                assert name == NONE or (section, name) in found, f"{one.where}.{field}"

    def test_an_encoder_has_the_spaces_that_are_read(self, path: Path) -> None:
        from dynarep.pipeline.registry import find_model

        found = entries_of(path)
        for one in found.values():
            name = getattr(one.inputs, "encoder", getattr(one.inputs, "space", NONE))
            reads = (*one.method.needs(one.config).encoder, *getattr(one.method, "reads", ()))
            points = getattr(one.inputs, "points", None)
            wanted = {*reads, *(() if points is None else (points,))}
            if name == NONE:
                assert not wanted or one.method.needs(one.config).optional_encoder, one.where
            elif found["pretrain", name].kind != "artifact":
                spaces = find_model("encoders", found["pretrain", name].kind, name).spaces  # type: ignore[attr-defined]
                assert wanted <= set(spaces), one.where

    def test_something_plays_at_random(self, path: Path) -> None:
        assert any(one.kind == "random" for one in entries_of(path).values())


def test_the_root_file_has_every_section() -> None:
    assert set(read_yaml(ROOT / "params.yaml")) == {*SECTIONS} - {"prepare"}


@pytest.mark.parametrize(
    ("section", "name", "change", "message"),
    [
        ("pretrain", "dynamics", {"held_out": 1.0}, "held_out: found 1.0"),
        ("pretrain", "dynamics", {"loss": "cubic"}, "loss: found 'cubic'"),
        ("pretrain", "dynamics", {"kind": "cpc"}, "kind: found 'cpc', expected one of artifact, contrastive"),
        ("pretrain", "dynamics", {"source": "hf://a/b", "initial": "raw"}, "initial, source: found raw and hf://a/b"),
        ("pretrain", "dynamics", {"training": None}, "training: missing; contrastive is trained"),
        ("pretrain", "raw", {"training": {"updates": 1}}, "training: unknown key; identity is not trained"),
        ("pretrain", "intent", {"gamma": 1.0}, "gamma: found 1.0"),
        ("pretrain", "intent", {"expectile": 0.0}, "expectile: found 0"),
        ("pretrain", "intent", {"training": {"updates": -1}}, "training.updates: found -1"),
        ("pretrain", "intent", {"latent": 3}, "latent: unknown key; icvf knows .*latent_dim"),
        ("relabel", "otr", {"epsilon": 0}, "epsilon: found 0"),
        ("relabel", "otr", {"examples": 0}, "examples: found 0"),
        ("learn", "bc", {"dropout": 1.0}, "dropout: found 1.0"),
        ("learn", "bc", {"rewards": "ailot"}, "rewards: found 'ailot', expected none; bc reads no rewards"),
        ("learn", "bc", {"encoder": "dynamics"}, "encoder: found 'dynamics', expected none; bc reads no encoder"),
        ("learn", "iql_otr", {"rewards": "none"}, "rewards: found none, expected an entry of relabel"),
        ("learn", "iql_otr", {"reward_scale": "large"}, "reward_scale: found 'large'"),
        (
            "learn",
            "repr_value_dice_top3",
            {"encoder": "none"},
            "encoder: found none, expected an entry of pretrain with phi and mu",
        ),
    ],
)
def test_what_an_entry_cannot_be_is_said(section: str, name: str, change: dict[str, Any], message: str) -> None:
    values = section_of(read_params(ROOT / "params.yaml"), section, "params")[name] | change
    with pytest.raises(ParamsError, match=rf"params: {section}\.{name}[.:].*{message}"):
        parse_entry(section, name, values, f"params: {section}.{name}")


def test_settings_that_are_out_of_range_are_refused() -> None:
    values = read_yaml(ROOT / "params.yaml")["evaluate"] | {"episodes": 0}
    with pytest.raises(ParamsError, match=r"params: evaluate\.episodes: found 0"):
        validate(EvaluateConfig, values, "params: evaluate")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("pretrain_intent", r"pretrain_intent: this section is written pretrain\.<name>"),
        ("imitate", r"imitate: this section is written learn\.<policy>"),
        ("offline_rl", r"offline_rl: this section is written learn\.<policy>"),
        ("engine", "engine: this section is written cluster"),
        ("learning", "learning: unknown section; .*did you mean learn"),
    ],
)
def test_an_older_file_is_told_how_it_is_written_now(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        read_params(write(tmp_path, f"seed: 0\n{section}: {{}}"))


@pytest.mark.parametrize("text", ["{}", ""])
@pytest.mark.parametrize("section", ROOMS)
def test_a_map_may_be_empty(tmp_path: Path, section: str, text: str) -> None:
    path = write(tmp_path, f"seed: 0\n{section}: {text}")
    assert section_of(read_params(path), section, str(path)) == {}
    assert datasets_of(read_params(path)) == {}
    with pytest.raises(ParamsError, match=f"{section}: no entry 'x'; found none"):
        read_entry(path, section, "x")


@pytest.mark.parametrize(
    ("preset", "expectile", "temperature", "dropout", "bias"),
    [
        ("antmaze", 0.9, 10, 0, -2),
        ("adroit", 0.7, 0.5, 0.1, 0),
        ("kitchen", 0.7, 0.5, 0.1, 0),
        ("published", 0.7, 3, 0, 0),
    ],
)
def test_presets_have_the_published_settings(
    preset: str, expectile: float, temperature: float, dropout: float, bias: float
) -> None:
    path = ROOT / "configs" / "presets" / f"{preset}.yaml"
    found = [read_entry(path, "learn", f"iql_{label}") for label in ("ailot", "otr")]
    for one in found:
        c = one.config
        assert (c.expectile, c.temperature, c.dropout) == (expectile, temperature, dropout)
        assert (one.inputs.reward_scale, one.inputs.reward_bias) == ("return_range", bias)
    assert {"pretrain", "relabel", "learn", "evaluate"} <= set(read_params(path))
    env = read_section(path, "evaluate", EvaluateConfig)
    assert d4rl_reference(env.env, env.env_options) is not None
