from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dynarep.configs.params import Field, ParamsError, config, read_section, read_yaml, validate
from dynarep.data.parallel import ClusterConfig
from dynarep.pipeline.training.processes import TrainerConfig
from dynarep.pipeline.playing.environments import d4rl_reference
from dynarep.pipeline.playing.evaluate import EvaluateConfig
from dynarep.pipeline.imitate import ImitateConfig
from dynarep.pipeline.offline_rl import OfflineRLConfig
from dynarep.pipeline.pretrain_dynamics import PretrainDynamicsConfig
from dynarep.pipeline.pretrain_intent import PretrainIntentConfig
from dynarep.pipeline.relabel import RelabelConfig
from dynarep.pipeline.report import ReportConfig
from dynarep.pipeline.run import RunConfig

ROOT = Path(__file__).parents[1]

SECTIONS: dict[str, type] = {
    "engine": ClusterConfig,
    "pretrain_dynamics": PretrainDynamicsConfig,
    "pretrain_intent": PretrainIntentConfig,
    "imitate": ImitateConfig,
    "relabel": RelabelConfig,
    "offline_rl": OfflineRLConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}


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


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
class TestParamsFiles:
    def test_every_section_is_known_and_valid(self, path: Path) -> None:
        values = read_yaml(path)
        assert set(values) <= {"seed", "replicas", "trainer", *SECTIONS}
        for section in set(values) & set(SECTIONS):
            read_section(path, section, SECTIONS[section])
        validate(RunConfig, {k: values[k] for k in ("seed", "replicas") if k in values}, str(path))
        validate(TrainerConfig, values.get("trainer", {}), str(path))

    def test_named_datasets_have_cards(self, path: Path) -> None:
        known = {card.stem for card in (ROOT / "configs" / "datasets").glob("*.yaml")}
        named = set()
        for section in read_yaml(path).values():
            if isinstance(section, dict):
                places: list[dict[str, Any]] = [section, section.get("noise", {})]
                named |= {place[key] for place in places for key in ("dataset", "demonstrations") if key in place}
        assert named <= known

    def test_policies_learn_from_rewards_that_are_made(self, path: Path) -> None:
        values = read_yaml(path)
        if "offline_rl" not in values:
            pytest.skip("no offline_rl")
        made = {"true", *values.get("relabel", {}).get("methods", {})}
        assert {policy["rewards"] for policy in values["offline_rl"]["policies"].values()} <= made


def test_the_root_file_has_every_section() -> None:
    assert set(read_yaml(ROOT / "params.yaml")) == {"seed", "replicas", "trainer", *SECTIONS}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("pretrain_dynamics", "held_out", 1.0),
        ("pretrain_dynamics", "method", {"loss": "cubic"}),
        ("pretrain_intent", "method", {"gamma": 1.0}),
        ("pretrain_intent", "method", {"expectile": 0.0}),
        ("pretrain_intent", "training", {"updates": -1}),
        ("relabel", "methods", {"true": {"kind": "otr"}}),
        ("relabel", "methods", {"ot": {"kind": "otr", "method": {"epsilon": 0}}}),
        ("imitate", "policies", {"bc": {"kind": "bc", "method": {"dropout": 1.0}, "training": {"updates": 1}}}),
        ("offline_rl", "reward_scale", "large"),
        ("evaluate", "episodes", 0),
    ],
)
def test_values_out_of_range_are_refused(section: str, key: str, value: Any, tmp_path: Path) -> None:
    values = read_yaml(ROOT / "params.yaml")[section] | {key: value}
    with pytest.raises(ParamsError, match=rf"params: {section}.*found"):
        validate(SECTIONS[section], values, f"params: {section}")


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
    c = read_section(path, "offline_rl", OfflineRLConfig)
    assert (c.iql.expectile, c.iql.temperature, c.iql.dropout) == (expectile, temperature, dropout)
    assert (c.reward_scale, c.reward_bias) == ("return_range", bias)
    assert set(read_yaml(path)) - {"trainer"} == {"seed", "replicas", *SECTIONS} - {"engine"}
    env = read_section(path, "evaluate", EvaluateConfig)
    assert d4rl_reference(env.env, env.env_options) is not None
