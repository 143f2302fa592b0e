import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dynarep.configs.params import (
    NAME,
    NODES,
    YAML_BYTES,
    Field,
    ParamsError,
    check_name,
    check_sections,
    config,
    read_file,
    read_section,
    read_yaml,
    validate,
)
from dynarep.data import schema
from dynarep.data.parallel import ClusterConfig
from dynarep.pipeline.entries import Entry, datasets_of, parse_entry, read_entry, read_params, section_of
from dynarep.pipeline.playing.environments import d4rl_reference
from dynarep.pipeline.playing.play import EvaluateConfig
from dynarep.pipeline.registry import ROOMS
from dynarep.pipeline.report import ReportConfig
from dynarep.pipeline.run import RunConfig

ROOT = Path(__file__).parents[1]

SECTIONS: dict[str, type] = {"cluster": ClusterConfig, "evaluate": EvaluateConfig, "report": ReportConfig}


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
        ("{dataset: a, optimiser: {widths: 8}}", ["part.optimiser.widths: found 8", "array"]),
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
    assert refusal(write(tmp_path, "- 1")).endswith("params.yaml: found list, expected a mapping")
    assert refusal(write(tmp_path, "")).endswith("params.yaml: found NoneType, expected a mapping")


NOBODY_MEANS = {
    "a: 1\na: 2": "found the key 'a' twice",
    "part: {x: 1, x: 2}": "found the key 'x' twice",
    "a: yes": "found 'yes', which is a truth value to YAML 1.1 and text to YAML 1.2; write true or false, or quote it",
    "a: [on]": "found 'on', which is a truth value",
    "on: 1": "found 'on', which is a truth value",
    "a: 1:30": "found '1:30', which is a number in base 60",
    "a: 010": "found '010', which is an octal number",
    "a: 0o10": "found '0o10', which is an octal number",
    "a: 0x1F": "found '0x1F', which is a number to one version",
    "a: 1_000": "found '1_000', which is a number to one version",
    "a: 2020-01-01": "found '2020-01-01', which is a date",
    "a: .inf": "found '.inf', which is no finite number",
    "a: [-.inf]": "found '-.inf', which is no finite number",
    "a: .nan": "found '.nan', which is no finite number",
    "a: 1.0e+39": "found '1.0e+39', expected at most 3.402823e+38",
    "a: 1e400": "found '1e400', expected at most 3.402823e+38",
    "a: 99999999999999999999": "found the integer '99999999999999999999', expected at most 9223372036854775807",
    "a: " + "9" * 5000: "expected at most 9223372036854775807",
    "1: a": "found the key '1', expected text",
    "~: a": "found the key '~', expected text",
    "[a]: b": "expected text",
    "a: !!python/object/apply:os.system [ls]": "found the tag tag:yaml.org,2002:python/object/apply:os.system",
    "a: !!int '1'": "found the tag tag:yaml.org,2002:int",
    "a: !x y": "found the tag !x",
    "a: &a [*a]": "found the anchor a within itself",
    'a: "b\\0c"': "found a null character",
    'a: "\\udc80"': "half a character",
    "a: " + "[" * 20_000: "nested more than 40 deep",
    "\n".join(" " * i + "a:" for i in range(1000)): "nested more than 40 deep",
    "a: &b [l, l, l, l, l, l, l, l, l]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(99 + i)} [{', '.join(['*' + chr(98 + i)] * 9)}]" for i in range(9)): (
        f"found more than {NODES:,} values, anchors expanded"
    ),
    "a: 1\n---\nb: 2": "expected a single document",
}


@pytest.mark.parametrize("text", NOBODY_MEANS, ids=lambda text: text[:20].encode("unicode_escape").decode())
def test_yaml_that_nobody_means_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ParamsError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: not valid YAML: ")
    assert NOBODY_MEANS[text] in str(error.value)
    assert len(str(error.value)) < 1000


def test_anchors_merge_keys_and_words_are_read(tmp_path: Path) -> None:
    text = """\ufeffbase: &base {x: 1, y: {<<: &in {p: 1}, p: 2}}
one: {<<: *base, x: 2}
two: &two {<<: [*base, *in], z: 3}
three: {<<: *two, z: 4}
words: [true, False, ~, null, 'yes', "010", y, n, 1.2.3, -5, +6, 1e-4, 2.5E3, .5, 3., abc:def, =]
"""
    y = {"p": 2}
    assert read_yaml(write(tmp_path, text)) == {
        "base": {"x": 1, "y": y},
        "one": {"x": 2, "y": y},
        "two": {"x": 1, "y": y, "p": 1, "z": 3},
        "three": {"x": 1, "y": y, "p": 1, "z": 4},
        "words": [
            *(True, False, None, None, "yes", "010", "y", "n", "1.2.3"),
            *(-5, 6, 1e-4, 2500.0, 0.5, 3.0, "abc:def", "="),
        ],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: true", "part.count: found True, Input should be a valid integer"),
        ("count: '5'", "part.count: found '5', Input should be a valid integer"),
        ("count: 5.0", "part.count: found 5.0, Input should be a valid integer"),
        ("count: 1e1", "part.count: found 10.0, Input should be a valid integer"),
        ("optimiser: {rate: '1'}", "part.optimiser.rate: found '1', Input should be a valid number"),
        ("optimiser: {rate: true}", "part.optimiser.rate: found True, Input should be a valid number"),
        ("dataset: true", "part.dataset: found True, Input should be a valid string"),
    ],
)
def test_types_are_strict(tmp_path: Path, text: str, message: str) -> None:
    given = text if text.startswith("dataset") else f"dataset: a, {text}"
    assert message in refusal(write(tmp_path, f"part: {{{given}}}"))
    whole = read_section(write(tmp_path, "part: {dataset: a, optimiser: {rate: 1}}"), "part", Section)
    assert whole.optimiser.rate == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, 2**70, {1: 2}, object(), [[object()]]])
def test_values_from_elsewhere_are_checked_too(value: Any) -> None:
    with pytest.raises(ParamsError, match=r"^place"):
        validate(Section, {"dataset": "a", "animals": {"tom": {"kind": "cat", "lives": value}}}, "place")


def test_nothing_but_files_of_moderate_size_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(b"a: '" + b"b" * YAML_BYTES + b"'\n")
    (tmp_path / "utf16").write_bytes("a: 1".encode("utf-16"))
    for name, message in {
        "fifo": "found a pipe, device or socket, expected a file",
        "/dev/zero": "found a pipe, device or socket, expected a file",
        ".": "Is a directory",
        "loop": "Too many levels of symbolic links",
        "large": r"found 1,000,006 bytes, expected at most 1,000,000",
        "/proc/self/status": r"found 1 bytes or more, expected 0",
        "utf16": "not valid YAML: 'utf-8' codec can't decode",
        "a" * 500: "File name too long",
        "a\0b": "not a path",
    }.items():
        with pytest.raises(ParamsError, match=message) as error:
            read_yaml(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(OSError, match="pipe") as caught:
        read_file(tmp_path / "fifo", 10)
    assert caught.value.filename == str(tmp_path / "fifo")


def test_names_that_become_folders() -> None:
    assert check_name("iql_ailot-2", "policies") == "iql_ailot-2"
    assert NAME.pattern == schema.NAME.pattern, "one rule for all"
    for name in ("../../../evil", "a/b", "a\n", "a@b", "", ".", "-x", "a" * 81, "\u0663", 5, None, "a.b"):
        with pytest.raises(ParamsError, match=r"^policies: found .*, expected a name of at most 80 letters"):
            check_name(name, "policies")
    with pytest.raises(
        ParamsError, match="policies: found 'random', expected another name; reserved are expert, random"
    ):
        check_name("random", "policies", reserved=("random", "expert"))


def test_mistyped_sections_are_named() -> None:
    check_sections({"seed": 0}, ("seed", "replicas"), "params.yaml")
    with pytest.raises(ParamsError) as error:
        check_sections({"sead": 3, "seed": 1, "zzz": 1}, ("seed", "replicas"), "params.yaml")
    assert str(error.value).splitlines() == [
        "params.yaml: sead: unknown section; did you mean seed?",
        "params.yaml: zzz: unknown section; expected one of seed, replicas",
    ]


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
    def test_every_entry_parses(self, path: Path) -> None:
        values = read_params(path)
        for section in ROOMS:
            for name, entry in section_of(values, section, str(path)).items():
                parse_entry(section, name, entry, f"{path}: {section}.{name}")
        for section in set(values) & set(SECTIONS):
            read_section(path, section, SECTIONS[section])
        validate(RunConfig, {k: values[k] for k in ("seed", "replicas") if k in values}, str(path))
        assert entries_of(path)

    def test_named_datasets_have_cards(self, path: Path) -> None:
        known = {card.stem for card in (ROOT / "configs" / "datasets").glob("*.yaml")}
        assert set(datasets_of(read_params(path))) <= known

    def test_entries_name_entries_that_are_there(self, path: Path) -> None:
        values = read_params(path)
        sections = {section: {"none", *section_of(values, section, str(path))} for section in ROOMS}
        for entry in (values.get("relabel") or {}).values():
            assert entry.get("space", "none") in sections["pretrain"]
        for entry in (values.get("learn") or {}).values():
            assert entry["encoder"] in sections["pretrain"]
            assert entry["rewards"] in sections["relabel"]


@pytest.mark.parametrize(
    ("section", "entry", "message"),
    [
        (
            "pretrain",
            {"kind": "contrastive", "dataset": "a", "held_out": 1.0, "training": {"updates": 1}},
            "held_out: found 1.0",
        ),
        (
            "pretrain",
            {"kind": "contrastive", "dataset": "a", "loss": "cubic", "training": {"updates": 1}},
            "loss: found 'cubic'",
        ),
        ("pretrain", {"kind": "icvf", "dataset": "a", "gamma": 1.0, "training": {"updates": 1}}, "gamma: found 1.0"),
        ("pretrain", {"kind": "icvf", "dataset": "a", "training": {"updates": -1}}, "training.updates: found -1"),
        ("pretrain", {"kind": "icvf", "dataset": "a"}, "training: missing; icvf is trained"),
        ("pretrain", {"kind": "identity", "dataset": "a", "training": {"updates": 1}}, "identity is not trained"),
        ("pretrain", {"kind": "icfv", "dataset": "a"}, "kind: found 'icfv', expected one of .*icvf"),
        ("relabel", {"kind": "otr", "dataset": "a", "demonstrations": "b", "epsilon": 0}, "epsilon: found 0"),
        (
            "learn",
            {"kind": "bc", "dataset": "a", "demonstrations": "b", "dropout": 1.0, "training": {"updates": 1}},
            "dropout: found 1.0",
        ),
        (
            "learn",
            {"kind": "iql", "dataset": "a", "demonstrations": "b", "training": {"updates": 1}},
            "rewards: found none",
        ),
        (
            "learn",
            {"kind": "bc", "dataset": "a", "demonstrations": "b", "rewards": "x", "training": {"updates": 1}},
            "bc reads no rewards",
        ),
        (
            "learn",
            {"kind": "repr_value_dice", "dataset": "a", "demonstrations": "b", "training": {"updates": 1}},
            "encoder: found none",
        ),
        (
            "learn",
            {"kind": "bc", "dataset": "a", "demonstrations": "b", "topp": 1, "training": {"updates": 1}},
            "topp: unknown key; bc knows",
        ),
    ],
)
def test_an_entry_that_is_not_as_its_kind_expects_is_refused(section: str, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=rf"^{section}\.x.*{message}"):
        parse_entry(section, "x", entry)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a b", "a@b", "none", "-x", "", "a\nb"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ParamsError, match=r"params: learn: found .*, expected a"):
        section_of({"learn": {name: {"kind": "bc"}}}, "learn", "params")


@pytest.mark.parametrize("section", ["pretrain_dynamics", "pretrain_intent", "imitate", "offline_rl", "engine"])
def test_an_older_file_is_told_how_it_is_written_now(tmp_path: Path, section: str) -> None:
    path = write(tmp_path, f"{section}: {{}}")
    with pytest.raises(ParamsError, match=rf"{section}: this section is written (pretrain|learn|cluster)"):
        read_params(path)


def test_an_unknown_section_is_named_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"sead: unknown section.*did you mean seed"):
        read_params(write(tmp_path, "sead: 3"))


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
    values = read_params(path)
    entries = {name: parse_entry("learn", name, entry) for name, entry in values["learn"].items()}
    iql = [
        entry
        for entry in entries.values()
        if entry.kind == "iql" and values["relabel"][entry.inputs.rewards]["kind"] == "otr"
    ]
    assert iql
    for entry in iql:
        assert (entry.config.expectile, entry.config.temperature, entry.config.dropout) == (
            expectile,
            temperature,
            dropout,
        )
        assert (entry.inputs.reward_scale, entry.inputs.reward_bias) == ("return_range", bias)
    env = read_section(path, "evaluate", EvaluateConfig)
    assert d4rl_reference(env.env, env.env_options) is not None
