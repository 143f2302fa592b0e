import base64
import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from html.parser import HTMLParser
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from run_files import (
    HOPPER,
    SETTINGS,
    change,
    read,
    write,
    write_entry,
    write_examples,
    write_latents,
    write_other_run,
    write_plane,
    write_run,
    write_scores,
)

from dynarep.pipeline.playing.scores import difference_interval, normalised_score
from dynarep.pipeline.report import ReportConfig, ReportError, build_report
from dynarep.pipeline.report.curves import thin
from dynarep.pipeline.report.maps import CLASSES, Frame
from dynarep.pipeline.report.plots import BLUE, GREY, ORANGE, pool
from dynarep.pipeline.report.summary import times
from dynarep.pipeline.run import Stage
from dynarep.pipeline.tables import count
from dynarep.stages import report as stage


def test_a_large_factor_has_no_tenths() -> None:
    assert [times(value) for value in (0.04, 22.93, 99.94, 1201.04)] == [
        "0.0-fold",
        "22.9-fold",
        "99.9-fold",
        "1,201-fold",
    ]


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    write_run(tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.fixture
def drawing() -> None:
    """Plots are drawn, which takes most of the time; in tests without this they are made and described only."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawing" not in request.fixturenames:
        monkeypatch.setattr(
            "matplotlib.figure.Figure.savefig", lambda figure, file, **options: file.write("<svg></svg>")
        )


class Page(HTMLParser):
    """Text, images and table rows of a page; checks that tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.plots: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        self.elements.append((tag, values))
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.plots.append(values["aria-label"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "svg" not in self.open:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script", "svg"} & set(self.open):
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def build(artifacts: Path, title: str = "A title") -> Page:
    return Page(build_report(ReportConfig(title=title), artifacts))


def svgs(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


@pytest.mark.usefixtures("drawing")
def test_page_needs_no_other_file(artifacts: Path) -> None:
    html = build_report(ReportConfig(), artifacts)
    page = Page(html)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    assert not re.search(r'xlink:href="(?!#|data:)', html)
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert len(anchors) == 8  # seven sections, and the skip link
    assert all(f'id="{anchor}"' in html for anchor in anchors)
    assert len(html) < 3_000_000


def test_neither_torch_nor_a_simulator_is_imported() -> None:
    code = (
        "import sys, dynarep.pipeline.report, dynarep.pipeline.report.page\n"
        "print(sorted({'torch', 'gymnasium', 'mujoco', 'webdataset', 'lightning'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_policy_allows_the_pages_own_script_and_no_other(artifacts: Path) -> None:
    html = build_report(ReportConfig(title="<script>alert(1)</script>"), artifacts)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in html


@pytest.mark.usefixtures("drawing")
def test_plots_are_described_and_follow_the_theme(artifacts: Path) -> None:
    html = build_report(ReportConfig(), artifacts)
    drawn = svgs(html)
    maps = 6 if find_spec("umap") else 4
    assert len(drawn) == 1 + 2 + maps + 4 + 3 + 5  # scores; distances; maps; couplings; labels; models
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    for svg in drawn:
        tree = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1))
        assert tree.get("role") == "img"
        assert tree.get("aria-label")
        assert "<style" not in svg
        assert "#010203" not in svg
        assert "#040506" not in svg
        assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg)) <= set(re.findall(r' id="([^"]*)"', svg))
    assert sum("var(--ink)" in svg for svg in drawn) == len(drawn) - maps
    assert all(image["alt"] for image in Page(html).images)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_readable(artifacts: Path, theme: int) -> None:
    html = build_report(ReportConfig(), artifacts)
    colours = {name: pair[theme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", html)}
    for background in ("page", "shade"):
        for name in ("ink", "soft", "accent"):
            assert contrast(colours[name], colours[background]) >= 4.5, (name, background)  # WCAG 2.2, 1.4.3
    for colour in (BLUE, ORANGE, GREY):
        assert contrast(colour, colours["page"]) >= 3  # 1.4.11
    ramp = [colours[f"ramp-{number}"] for number in range(CLASSES)]
    assert f"ramp-{CLASSES}" not in colours
    assert all(contrast(colour, colours["shade"]) >= 3 for colour in ramp)
    lightness = [luminance(colour) for colour in ramp]
    assert lightness == sorted(lightness, reverse=True)  # the order is seen without hue


def table_of(page: Page, *titles: str) -> list[list[str]]:
    """Rows of the last table that starts with these columns, with its header."""
    start = max(i for i, row in enumerate(page.rows) if tuple(row[: len(titles)]) == titles)
    width = len(page.rows[start])
    end = next((i for i in range(start + 1, len(page.rows)) if len(page.rows[i]) != width), len(page.rows))
    return page.rows[start:end]


def test_scores_are_sorted_and_say_what_was_made_of_what(artifacts: Path) -> None:
    header, *rows = table_of(build(artifacts), "policy", "normalised IQM [95\u00a0%]", "expert fraction [95\u00a0%]")
    assert header[3:] == ["mean return", "length", "method", "label", "space", "role", "saw: expert", "saw: other"]
    assert [row[0] for row in rows] == ["demonstrations", "iql_ailot", "bc", "top_length", "chance"]
    assert rows[0][:4] == ["demonstrations", "123.5", "1.00", "4,000.0"]
    assert rows[1][3:9] == ["2,003.5", "300", "iql", "ailot", "intent (icvf)", "–"]
    assert rows[2][3:9] == ["1,003.5", "300", "bc", "–", "–", "control: no learned space"]
    assert rows[2][9:] == ["1 episode, observations & actions", "nothing"]
    assert rows[3][5:9] == ["top_bc", "length (constant)", "–", "control: length"]
    assert rows[4][5:] == ["random", "–", "–", "chance", "–", "–"]
    score = re.fullmatch(r"62\.2 \[(62\.\d), (62\.\d)\]", rows[1][1])
    assert score is not None
    assert float(score[1]) <= 62.2 <= float(score[2])
    assert rows[1][2] == "0.50 [0.50, 0.50]"


def test_controls_are_told_by_what_they_are_made_of(artifacts: Path) -> None:
    write_scores(artifacts, dict.fromkeys(("bc", "iql_ailot", "true", "otr", "chance"), 10.0))
    write_entry(artifacts, "relabel", "recorded", kind="recorded")
    write_entry(artifacts, "learn", "true", kind="iql", rewards="recorded")
    write_entry(artifacts, "learn", "otr", kind="iql", rewards="otr")
    rows = {row[0]: row for row in table_of(build(artifacts), "policy")}
    assert rows["otr"][6:9] == ["otr", "raw (identity)", "control: no learned space"]
    assert rows["true"][6:9] == ["recorded", "–", "reference: true reward"]
    config = artifacts / "pretrain" / "raw" / "config.json"
    change(config, kind="icvf")  # the same entries, on a space that was learned
    assert {row[0]: row[8] for row in table_of(build(artifacts), "policy")}["otr"] == "–"


def test_the_first_screen_has_the_best_and_a_control_of_each_kind(artifacts: Path) -> None:
    many = {f"p{number}": 3000.0 - number for number in range(12)}
    write_scores(artifacts, {**many, "bc": 1000, "iql_ailot": 2000, "top_length": 500, "chance": 18})
    for name in many:
        write_entry(artifacts, "learn", name, kind="iql", rewards="ailot")
    page = build(artifacts)
    first = [
        row[0]
        for row in page.rows[: page.rows.index(next(row for row in page.rows if "method" in row and len(row) > 5))]
    ]
    assert first == ["policy", "demonstrations", *[f"p{number}" for number in range(10)], "bc", "top_length", "chance"]
    assert "3 more in the table of all scores" in page.text
    shaded = [values for tag, values in page.elements if tag == "tr" and values.get("class") == "unlearned"]
    assert len(shaded) == 4  # bc and top_length, in both tables


def test_rows_that_would_read_the_same_get_more_digits(artifacts: Path) -> None:
    write_scores(artifacts, {"a": -12.01, "b": -12.04, "c": [[-0.001] * 4] * 2, "d": 50.0}, reference=None)
    rows = {row[0]: row for row in table_of(build(artifacts), "policy")}
    assert [rows[name][1].split()[0] for name in "abcd"] == ["-8.51", "-8.54", "0.0", "53.5"]
    assert [rows[name][2] for name in "abcd"] == ["-8.51", "-8.54", "0.0", "53.5"]
    assert "-0.0" not in build(artifacts).text


def test_returns_and_success_have_intervals_without_a_reference(artifacts: Path) -> None:
    successes = {"bc": [[1, 1, 1, 1], [1, 1, 1, 1]], "iql_ailot": [[0, 1, 0, 0], [0, 0, 0, 0]]}
    write_scores(artifacts, {"bc": 1000, "iql_ailot": 2000}, env="Maze-v0", reference=None, successes=successes)
    page = build(artifacts)
    header, _, best, second = table_of(page, "policy", "success rate [95\u00a0%]")
    assert header[2] == "return IQM [95\u00a0%]"
    assert best[:2] == ["bc", "1.00 [0.68, 1.00]"]  # Wilson's, where a bootstrap says 1 for certain
    assert re.fullmatch(r"1,003\.5 \[1,00\d\.\d, 1,00\d\.\d\]", best[2])
    assert second[1].startswith("0.12 [0.0")
    assert "share of episodes that reach their goal" in page.text


def test_an_expert_fraction_above_the_demonstrations_is_explained(artifacts: Path) -> None:
    assert "as far from chance as the demonstrations" not in build(artifacts).text
    write(artifacts / "demonstrate" / "metrics.json", json.dumps({"dataset": "weak", "returns": [1700.0, 1900.0]}))
    page = build(artifacts)
    assert "iql_ailot is more than 1.1 times as far from chance as the demonstrations" in page.text
    fraction = {
        row[0]: row[2] for row in table_of(page, "policy", "normalised IQM [95\u00a0%]", "expert fraction [95\u00a0%]")
    }
    value, low, high = map(float, re.findall(r"[\d.]+", fraction["iql_ailot"]))
    assert low < value - 0.03 < value + 0.03 < high  # two demonstrations say their mean less well than one


def test_tables_name_their_rows_and_columns(artifacts: Path) -> None:
    page = build(artifacts)
    heads = [values for tag, values in page.elements if tag == "th"]
    assert {head["scope"] for head in heads} == {"row", "col"}
    tables = [tag for tag, _ in page.elements if tag == "table"]
    assert len(tables) == len([tag for tag, _ in page.elements if tag == "caption"])
    assert sum(head["scope"] == "row" for head in heads) == len(page.rows) - len(tables)


def test_summary_is_made_of_the_numbers(artifacts: Path) -> None:
    text = build(artifacts).text.replace("\u00a0", " ")
    for sentence in (
        "Representations: dynamics (contrastive) and intent (icvf) from hopper-arbitrary (84,000 transitions).",
        "Policies: 1 of kind bc, 1 of kind iql, 1 of kind random and 1 of kind top_bc; labels come from comparison with "
        "hopper-expert-1.",
        "2 replicas say little about other training seeds.",
        "On Hopper-v4, iql_ailot is the best of 3 policies: over 2 replicas and 4 episodes of each, mean return 2,004, "
        "normalised IQM 62.2 (95 % interval 62.",
        "That is 50 % of the way from a random policy to the demonstrations.",
        "Of the expert it saw: 1 episode, observations only.",
        "The best policy with a learned space, iql_ailot, is better than the best control, bc (difference of the normalised "
        "score, paired by episode seed where both have the same episodes: +30.7, 95 % interval +30.7 to +30.7).",
        "iql_ailot is told apart from all others, by differences over the same episode seeds.",
        "a rank correlation of 0.91 (ailot), 0.80 (length), 0.50 (otr). length is the length of the episode, the control.",
        "squared distance grows 22.9-fold in intent and 22.9-fold between raw states",
    ):
        assert sentence in text, sentence


def test_summary_of_close_scores_and_of_one(artifacts: Path) -> None:
    close = [[1000.0, 1100.0, 900.0, 1000.0], [1000.0, 950.0, 1080.0, 990.0]]
    write_scores(artifacts, {"bc": close, "iql_ailot": np.array(close)[:, ::-1] + 5})
    assert "iql_ailot is not told apart from bc." in build(artifacts).text
    write_scores(artifacts, {"bc": close, "iql_ailot": np.array(close) + 5})  # less than chance, and always more
    assert "iql_ailot is told apart from all others" in build(artifacts).text
    (artifacts / "demonstrate" / "metrics.json").unlink()
    write_scores(artifacts, {"bc": [[1000.0, 1010.0]]}, env="Humanoid-v5", reference=None)
    text = build(artifacts).text
    assert "There is one replica, so the intervals say nothing of other training seeds." in text
    assert "On Humanoid-v5, bc was evaluated: over 1 replica and 2 episodes of each, mean return 1,005" in text
    assert "to the demonstrations." not in text.split("In brackets")[0]


def test_one_episode_has_no_interval(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": [[1000.0]], "iql_ailot": [[2000.0]]})
    page = build(artifacts)
    assert "One episode has no interval, so no two policies are told apart." in page.text
    assert [row[1] for row in table_of(page, "policy")[2:]] == ["62.1", "31.3"]


def test_scores_without_reference_are_plotted_as_returns(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": 1000, "iql": 500}, env="Humanoid-v5", reference=None)
    assert "Interquartile mean of the return: bc 1003.5, iql 503.5" in build(artifacts).plots


def test_actions_that_are_told_from_others(artifacts: Path) -> None:
    folder = artifacts / "pretrain" / "dynamics"
    (folder / "metrics.json").write_text(json.dumps({"action_resolution": {"0.1": 0.5, "1.0": 0.976}}))
    page = build(artifacts)
    assert ["dynamics (contrastive)", "0.50", "0.98"] in page.rows
    assert "0.5 by chance" in page.text
    (folder / "metrics.json").write_text(json.dumps({"action_resolution": {"0.1": "often"}}))
    with pytest.raises(ReportError, match=r"metrics\.json: action_resolution\.0\.1: found 'often'"):
        build(artifacts)


def test_values_before_a_goal(artifacts: Path) -> None:
    table = artifacts / "pretrain" / "intent" / "value.tsv"
    table.write_text("k\tvalue\tideal\n1\t0.9\t1\n30\t11.9\t26.03\n")
    assert "Negated value of intent against steps before the goal: 11.9 at k = 30" in build(artifacts).plots


def test_plots_show_the_files(artifacts: Path) -> None:
    page = build(artifacts)
    assert page.plots[1].endswith("k, intent: intent: psi reaches 22.9 at k = 50; raw states reaches 22.9 at k = 50")
    assert "k, raw: raw: states reaches 22.9 at k = 50; raw states reaches" in " ".join(page.plots)
    assert "no distances and no map are kept of dynamics (contrastive)" in page.text
    assert page.plots[-12:-5] == [
        "Coupling by ailot of 40 steps of agent-0 with 500 of expert-3",
        "Coupling by otr of 40 steps of agent-0 with 500 of expert-3",
        "Coupling by ailot of 700 steps of agent-1 with 500 of expert-3",
        "Coupling by otr of 700 steps of agent-1 with 500 of expert-3",
        "Relabelled against true return of 50 episodes: ailot, Spearman 0.91",
        "Relabelled against true return of 50 episodes: length (constant), Spearman 0.80",
        "Relabelled against true return of 50 episodes: otr, Spearman 0.50",
    ]
    assert "loss of learn/bc over updates" in " ".join(page.plots)
    assert "The loss of an ICVF may rise while it learns" in page.text


@pytest.mark.usefixtures("drawing")
def test_a_coupling_has_the_axes_of_tensorboards_picture(artifacts: Path) -> None:
    html = build_report(ReportConfig(), artifacts)
    texts = [re.findall(r">([^<>]+)</text>", svg) for svg in svgs(html) if "Coupling by" in svg]
    assert all("700" not in words[: words.index("step of the expert")] for words in texts)
    assert all("500" in words[: words.index("step of the expert")] for words in texts)


def test_examples_of_two_datasets_stand_apart(artifacts: Path) -> None:
    change(artifacts / "relabel" / "otr" / "metadata.json", dataset="walker")
    shutil.rmtree(artifacts / "relabel" / "otr" / "examples")
    write_examples(artifacts, "otr", prefix="walker")
    labels = [values["data-label"] for _, values in build(artifacts).elements if values.get("class") == "item"]
    assert [label.split(",")[0] for label in labels] == [
        *("1 of 4: agent-0", "2 of 4: agent-1"),
        *("3 of 4: walker-0", "4 of 4: walker-1"),
    ]


def test_a_strip_shows_the_rewards_of_the_steps(artifacts: Path) -> None:
    strips = {image["alt"]: image["src"] for image in build(artifacts).images if image["alt"].startswith("Rewards")}
    assert list(strips)[3:] == [
        "Rewards of the steps of agent-1, ailot: from -1 to 1",
        "Rewards of the steps of agent-1, otr: from -1 to 1",
        "Rewards of the steps of agent-1, true: from 1 to 1",
    ]
    content = base64.b64decode(list(strips.values())[3].split(",")[1])
    with Image.open(BytesIO(content)) as picture:
        assert picture.size == (600, 1)
        alpha = np.asarray(picture)[0, :, 3].astype(int)
    assert (alpha[0], alpha[-1]) == (0, 255)
    assert (np.diff(alpha) >= 0).all()


def test_every_episode_is_there_without_scripts(artifacts: Path) -> None:
    page = build(artifacts)
    labels = [values["data-label"] for _, values in page.elements if values.get("class") == "item"]
    assert labels == ["1 of 2: agent-0, 40 steps, true return 40", "2 of 2: agent-1, 700 steps, true return 700"]
    (slider,) = [values for tag, values in page.elements if tag == "input" and values.get("id") == "episode"]
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "1", "2")


def test_a_method_without_coupling_has_strips_alone(artifacts: Path) -> None:
    folder = artifacts / "relabel" / "rnd" / "examples"
    folder.mkdir(parents=True)
    write_entry(artifacts, "relabel", "rnd", kind="rnd", dataset="hopper-arbitrary")
    np.savez(folder / "1.npz", rewards=np.zeros(700), agent="agent-1")
    page = build(artifacts)
    assert "Rewards of the steps of agent-1, rnd: from 0 to 0" in [image["alt"] for image in page.images]
    assert not any("Coupling by rnd" in plot for plot in page.plots)


def test_the_map_is_of_the_latents(artifacts: Path) -> None:
    line = np.linspace(0, 1, 60)[:, None] * np.ones((1, 8), np.float32)
    write_latents(artifacts, latents=line)
    html = build_report(ReportConfig(), artifacts)
    panel = next(svg for svg in svgs(html) if "PCA of intent, step of the episode" in svg)
    assert "from 0 to 19; 60 states of 3 held-out episodes, first replica; 100 % and 0 % of variance" in panel
    places = np.array(re.findall(r"M([\d.]+) ([\d.]+)h0", panel), dtype=float)
    assert len(places) == 60
    assert np.ptp(places[:, 0]) > 300
    counts = [len(re.findall("M", path)) for path in re.findall(r'class="ramp-\d" d="([^"]*)"', panel)]
    assert len(counts) == CLASSES
    assert min(counts) > 0
    write_latents(artifacts, **{"return": np.full(3, np.nan)})
    assert not any("of intent, return of the episode" in plot for plot in build(artifacts).plots)


def test_one_latent_number_has_a_map(artifacts: Path) -> None:
    write_latents(artifacts, latents=np.linspace(0, 1, 60, dtype=np.float32)[:, None])
    assert any("PCA of intent" in plot and "100 % and 0 % of variance" in plot for plot in build(artifacts).plots)


def test_in_a_plane_the_first_screen_shows_distances_and_paths(artifacts: Path) -> None:
    assert not any("straight distance" in plot for plot in build(artifacts).plots)  # eleven numbers are no plane
    write_plane(artifacts)
    html = build_report(ReportConfig(), artifacts)
    learned, straight, paths = (svg for svg in svgs(html)[:3])
    assert "distance in intent (icvf) from" in learned
    assert "straight distance from 0.5 to 10" in straight  # from the end of the demonstration, (10, 0)
    assert (
        "Paths of the first episode of each replica: iql_ailot (with a learned space, blue) and bc (without, orange)"
        in paths
    )
    assert all(svg.count('class="line demonstration"') == 1 for svg in (learned, straight, paths))
    assert [paths.count(f'class="line {style}"') for style in ("learned", "unlearned")] == [2, 2]
    for file in ("evaluate/bc/paths.npz", "evaluate/iql_ailot/paths.npz"):
        (artifacts / file).unlink()
    assert not any("Paths of the first" in plot for plot in build(artifacts).plots)
    (artifacts / "shards" / "hopper-expert-1" / "shard-000000.tar").write_text("no tar")
    with pytest.raises(ReportError, match=r"shard-000000\.tar: found 6 bytes, expected "):
        build(artifacts)
    shutil.rmtree(artifacts / "shards" / "hopper-expert-1")
    assert not any("straight distance" in plot for plot in build(artifacts).plots)


def test_a_frame_keeps_the_shape_of_a_maze() -> None:
    corners = np.array([[0.0, 0.0], [10.0, 5.0]])
    frame = Frame.around(corners, equal=True)
    np.testing.assert_allclose(frame.place(corners), [[6, 160], [314, 6]])
    assert frame.height == 166
    assert Frame.around(np.array([[0.0, 0.0], [10.0, 0.1]]), equal=True).height == 240  # no ribbon


def test_films_stand_beside_the_experts(artifacts: Path) -> None:
    page = build(artifacts)
    films = [image for image in page.images if image["alt"].startswith("Film")]
    assert [film["alt"] for film in films] == [
        "Film of demonstrations: 12 frames, first 110 steps shown, return 1,200",
        "Film of iql_ailot: 12 frames, first 110 steps shown, return 1,200",
        "Film of bc: 3 frames, all 20 steps shown, return 300",
    ]
    assert films[0]["src"].startswith("data:image/webp;base64,")
    screens = [values["style"] for _, values in page.elements if values.get("class") == "screen"]
    assert screens == ["aspect-ratio:32/24"] * 3
    assert "first 110 steps shown, return 1,200; 2,000 in all 300 steps" in page.text
    assert "The demonstrations' film is episode-7 of hopper-expert-1, drawn from its recorded states" in page.text
    assert "no film of chance: it hides" in page.text
    assert "no film of top_length: the evaluation was asked for none" in page.text


def test_scores_that_are_null_are_like_missing_ones(artifacts: Path) -> None:
    before = build_report(ReportConfig(), artifacts)
    path = artifacts / "evaluate" / "bc" / "returns.json"
    nulls = dict.fromkeys(("successes", "distances", "errors", "fitted_q", "seen"))
    change(path, policies={"bc": {**nulls, **read(path)["policies"]["bc"]}})
    assert build_report(ReportConfig(), artifacts) == before


def test_a_film_may_lack_its_return(artifacts: Path) -> None:
    path = artifacts / "evaluate" / "bc" / "clip.json"
    path.write_text(json.dumps({key: value for key, value in read(path).items() if key != "reward"}))
    assert "all 20 steps shown" in build(artifacts).text


def test_without_films_the_page_says_why(artifacts: Path) -> None:
    notice = json.dumps({"seconds_per_frame": 0.08, "notice": "no renderer works (egl: gone). Install one."})
    folders = [artifacts / "demonstrate", *(artifacts / "evaluate").iterdir()]
    for folder in folders:
        write(folder / "clip.json", notice)
    page = build(artifacts)
    assert page.text.count("no films: no renderer works (egl: gone). Install one.") == 1
    assert not any(image["alt"].startswith("Film") for image in page.images)
    for folder in folders:
        (folder / "clip.json").unlink()
    assert "no films: the evaluation was asked for none" in build(artifacts).text
    for path in (artifacts / "evaluate").glob("*/returns.json"):
        write(path, json.dumps({**json.loads(path.read_text()), "env": "none"}))
    assert "no films: there is no environment" in build(artifacts).text


def test_entries_and_their_inputs(artifacts: Path) -> None:
    page = build(artifacts)
    assert ["hopper-arbitrary", "Hopper-v4", "2", "84,000", "2", "3"] in page.rows
    assert ["intent", "icvf", "hopper-arbitrary", "6,000", "2", "0.1.0"] in page.rows
    assert ["ailot", "ailot", "intent", "–", "2", "0.1.0"] in page.rows
    assert ["iql_ailot", "iql", "ailot", "20,000", "2", "0.1.0"] in page.rows


def test_what_the_params_file_has_no_more_is_left_out(artifacts: Path) -> None:
    entries = {"pretrain": ["raw", "intent"], "relabel": ["otr", "ailot"], "learn": ["iql_ailot", "chance"]}
    page = Page(build_report(ReportConfig(), artifacts, entries))
    assert [row[0] for row in table_of(page, "policy")] == ["policy", "demonstrations", "iql_ailot", "chance"]
    assert "dynamics" not in page.text
    assert [row[0] for row in table_of(page, "entry", "kind")] == ["entry", "iql_ailot", "chance"]
    assert page.text.index("raw (identity)\n") < page.text.index("intent (icvf)\n")  # in the order of the params file


def test_times_and_revisions_are_not_on_the_page(artifacts: Path) -> None:
    before = build_report(ReportConfig(), artifacts)
    write(artifacts.parent / "logs" / "learn" / "bc" / "run.json", json.dumps({"seconds": 12345, "revision": "abcdef"}))
    assert build_report(ReportConfig(), artifacts) == before


@pytest.fixture
def other(artifacts: Path) -> Path:
    return write_other_run(artifacts)


def compare(artifacts: Path, other: str = "before") -> Page:
    return Page(build_report(ReportConfig(compare=other), artifacts))


def test_two_runs_side_by_side(artifacts: Path, other: Path) -> None:
    page = compare(artifacts)
    header, best, same, unpaired = table_of(page, "policy", "this run")
    assert header[2:] == ["other run", "difference [95\u00a0%]", "reading", "interval", "weights"]
    assert best == ["iql_ailot", "62.2", "16.1", "+46.1 [+46.1, +46.1]", "higher", "paired", "–"]
    assert same == ["bc", "31.5", "31.5", "0.0 [0.0, 0.0]", "same weights", "paired", "same"]
    assert (unpaired[0], unpaired[5]) == ("top_length", "unpaired")
    about = "This run beside before. Of 3 policies that both have, 2 score higher here, 0 lower, 0 are not told apart, 1 has the"
    assert about in page.text
    assert "paired by episode seed and replica" in page.text
    assert "Those of top_length are not" in page.text
    assert ["learn.bc.training.actor", "0.0001", "0.0002"] in page.rows
    assert ["dataset.hopper-arbitrary", "f00d", "f00d, beef"] in page.rows
    assert ["pretrain/intent: weights", "pretrain-int", "another"] in page.rows
    assert any("in this run and the other: iql_ailot 62.2 and 16.1, bc 31.5 and 31.5" in plot for plot in page.plots)
    assert "Comparison" not in build(artifacts).text


def test_other_seeds_are_not_paired(artifacts: Path, other: Path) -> None:
    write_scores(other, {"bc": 1000, "iql_ailot": 1990}, seed=8)
    page = compare(artifacts)
    assert "Differences are not paired: the runs have other seeds" in page.text
    ours, theirs = (normalised_score(np.arange(8.0).reshape(2, 4) + mean, HOPPER) for mean in (2000, 1990))
    low, high = difference_interval(ours, theirs)
    assert table_of(page, "policy", "this run")[1][3] == f"+0.3 [{low:+.1f}, {high:+.1f}]"


def test_the_same_weights_with_other_scores_are_pointed_out(artifacts: Path, other: Path) -> None:
    write_scores(other, {"bc": 900})
    page = compare(artifacts)
    assert "bc scored differently with the same weights" in page.text
    assert table_of(page, "policy", "this run")[1][4:] == ["higher", "paired", "same"]


def test_a_comparison_needs_scores_alone(artifacts: Path, other: Path) -> None:
    for folder in other.iterdir():
        if folder.name != "evaluate":
            shutil.rmtree(folder)
    assert "no parameter, dataset, weight or metric differs in what both runs hold" in compare(artifacts).text
    write_scores(other, {"old": 9})
    assert "the two runs have no policy in common" in compare(artifacts).text
    write_scores(other, {"bc": 9}, env="Ant-v4", reference=None)
    with pytest.raises(ReportError, match=r"before was evaluated in Ant-v4, this run in Hopper-v4"):
        compare(artifacts)
    shutil.rmtree(other / "evaluate")
    with pytest.raises(
        ReportError, match=r"report\.compare: .*before/evaluate/\*/returns\.json: no such file.*expected"
    ):
        compare(artifacts)


def test_a_metric_may_be_missing_from_some_rows_or_all(artifacts: Path) -> None:
    curves = "update\tloss\tvalidation\tnever\n50\t2\t\t\n100\t1\t7\t\n150\t0.5\t6\t\n"
    write(artifacts / "learn" / "bc" / "curves.tsv", curves)
    alts = [plot for plot in build(artifacts).plots if "learn/bc" in plot]
    assert alts == [
        "loss of learn/bc over updates: from 2 to 0.5",
        "validation of learn/bc over updates: from 7 to 6",
    ]


def test_phases_have_curves_of_their_own_and_snapshots_have_none(artifacts: Path) -> None:
    for folder in ("discriminator", "snapshots/000000020"):
        write(artifacts / "learn" / "bc" / folder / "curves.tsv", "update\tloss\n1\t5\n2\t3\n")
    plots = [plot for plot in build(artifacts).plots if "learn/bc" in plot]
    assert [plot.split(" over")[0] for plot in plots] == ["loss of learn/bc", "loss of learn/bc/discriminator"]


def test_metrics_and_provenance(artifacts: Path) -> None:
    page = build(artifacts)
    assert ["held_out.noise", "1.01, 0.99"] in page.rows
    assert ["rank", "none"] in page.rows
    assert ["psi.spearman", "0.9612"] in page.rows
    assert ["params.learn.bc.training.actor", "0.0001"] in page.rows
    assert ["datasets.hopper-arbitrary", "f00d"] in page.rows
    assert "gymnasium 1.4.0, mujoco 4.0.0" in page.text
    assert "4 per replica, from seed 7" in page.text


def test_texts_are_escaped(artifacts: Path) -> None:
    write_entry(artifacts, "learn", "bc", kind="<i>", saw={"expert": "<b>&"}, params={"<i>": "<script>"})
    change(artifacts / "pretrain" / "intent" / "config.json", kind="<u>")
    page = build(artifacts, title="<em>$title & more")
    assert page.text.count("<em>$title & more") == 2
    rows = {row[0]: row for row in table_of(page, "policy")}
    assert (rows["bc"][5], rows["bc"][9]) == ("<i>", "<b>&")
    assert ["params.<i>", "<script>"] in page.rows
    assert "intent (<u>)" in page.text


def test_texts_in_plots_are_no_formulas(artifacts: Path, drawing: None) -> None:
    write_entry(artifacts, "relabel", "ailot", kind="$x^{$")
    (title,) = [
        text
        for text in svgs(build_report(ReportConfig(), artifacts))
        if "Relabelled against" in text[:300] and "$x^{" in text
    ]
    assert "ailot ($x^{$), Spearman" in title


@pytest.mark.parametrize(
    "missing",
    [
        "evaluate/bc/bc.webp",
        "pretrain/intent/distance.tsv",
        "pretrain/intent/latents.npz",
        "pretrain/intent/metrics.json",
        "pretrain/dynamics/curves.tsv",
        "learn/bc/curves.tsv",
        "relabel/ailot/metrics.json",
        "relabel/ailot/returns.tsv",
    ],
)
def test_a_missing_file_is_named_in_its_place(artifacts: Path, missing: str) -> None:
    (artifacts / missing).unlink()
    assert f"not available: artifacts/{missing}\n" in build(artifacts).text


def test_scores_are_all_that_is_needed(artifacts: Path) -> None:
    for folder in ("relabel", "pretrain", "learn", "shards", "demonstrate"):
        shutil.rmtree(artifacts / folder)
    for path in (artifacts / "evaluate").glob("*/clip.json"):
        path.unlink()
    page = build(artifacts)
    assert [row[0] for row in page.rows] == 2 * ["policy", "iql_ailot", "bc", "top_length", "chance"]
    for pattern in ("examples/*.npz", "returns.tsv"):
        assert f"not available: artifacts/relabel/*/{pattern}\n" in page.text
    assert page.images == []
    assert len(page.plots) == 1


def test_without_true_rewards(artifacts: Path) -> None:
    (artifacts / "relabel" / "otr" / "returns.tsv").write_text("episode\tlength\trelabelled\ttrue\na\t3\t-1.5\t\n")
    (artifacts / "relabel" / "ailot" / "returns.tsv").write_text("episode\tlength\trelabelled\na\t3\t-1.5\n")
    for name in ("ailot", "otr"):
        shutil.rmtree(artifacts / "relabel" / name / "examples")
    path = artifacts / "relabel" / "ailot" / "examples" / "0.npz"
    path.parent.mkdir()
    np.savez(path, coupling=np.ones((3, 2)) / 6, rewards=np.zeros(3), agent="a", expert="e")
    page = build(artifacts)
    for name in ("ailot", "otr"):
        assert f"not available: true returns in artifacts/relabel/{name}/returns.tsv\n" in page.text
    strips = [image["alt"] for image in page.images if image["alt"].startswith("Rewards")]
    assert strips == ["Rewards of the steps of a, ailot: from 0 to 0"]


def test_no_scores_is_an_error(artifacts: Path) -> None:
    write_scores(artifacts, {"chance": 18})
    with pytest.raises(ReportError, match=r"evaluate: holds no score of a policy that does not act at random"):
        build(artifacts)
    shutil.rmtree(artifacts / "evaluate")
    with pytest.raises(ReportError, match=r"evaluate/\*/returns.json: no such file; there are no scores"):
        build(artifacts)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluate/bc/returns.json", "{", "not valid JSON"),
        ("evaluate/bc/returns.json", '{"env": "Hopper-v4"}', r"returns\.json: no '\w+'"),
        ("evaluate/bc/returns.json", "[]", "expected a JSON object"),
        ("evaluate/bc/clip.json", "{}", "clip.json: no 'seconds_per_frame'"),
        ("evaluate/bc/clip.json", '{"seconds_per_frame": 1, "file": "a.webp"}', "clip.json: no 'frames'"),
        ("evaluate/bc/bc.webp", "not a picture", "bc.webp: not a picture"),
        ("learn/bc/metadata.json", "[]", "expected a JSON object, found list"),
        ("learn/bc/curves.tsv", "step\tloss\n1\t2\n", "no column 'update'; found step, loss"),
        ("learn/bc/curves.tsv", "update\tloss\n1\t2\n3\n", "line 3: 1 fields, expected 2"),
        ("learn/bc/curves.tsv", "update\tloss\n1\tlow\n", "column 'loss'.*low"),
        ("learn/bc/curves.tsv", "update\tloss\n1\tnan\n", "column 'loss': found nan, expected numbers within float32"),
        ("learn/bc/curves.tsv", "update\tloss\n1\t1e39\n", "column 'loss': found 1e39, expected numbers"),
        ("learn/bc/curves.tsv", "update\tloss\n\t1\n", "column 'update'"),
        ("learn/bc/curves.tsv", "update\tloss\n", "found no rows"),
        ("pretrain/intent/distance.tsv", "k\tspace\tmean\tlow\thigh\n", "found no rows"),
        ("pretrain/intent/latents.npz", "not a zip", "latents.npz: not a readable .npz"),
        ("relabel/ailot/examples/0.npz", "not a zip", "examples/0.npz: not a readable .npz"),
        ("relabel/ailot/examples/first.npz", "", "first.npz: expected a number"),
    ],
)
def test_damaged_files_are_errors_naming_them(artifacts: Path, file: str, content: str, message: str) -> None:
    (artifacts / file).write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        build(artifacts)
    assert str((artifacts / file).parent) in str(caught.value)


def test_policies_of_two_environments_are_refused(artifacts: Path) -> None:
    change(artifacts / "evaluate" / "bc" / "returns.json", seed=8)
    with pytest.raises(ReportError, match=r"chance/returns\.json: seed is 7, .*bc/returns\.json has 8"):
        build(artifacts)


def test_an_example_that_does_not_fit_is_an_error(artifacts: Path) -> None:
    path = artifacts / "relabel" / "ailot" / "examples" / "0.npz"
    whole = {"coupling": np.ones((3, 2)), "rewards": np.zeros(3), "agent": "a", "expert": "e"}
    for changes, message in (
        ({"rewards": np.zeros(4)}, r"coupling: found shape \(3, 2\), expected \(4 steps, expert_steps\)"),
        ({"rewards": np.zeros((3, 1))}, r"rewards: found shape \(3, 1\), expected \(steps\)"),
        ({"true_rewards": np.zeros(2)}, r"true_rewards: found shape \(2,\), expected \(3 steps\)"),
    ):
        np.savez(path, **{**whole, **changes})
        with pytest.raises(ReportError, match=message):
            build(artifacts)
    np.savez(path, **{key: value for key, value in whole.items() if key != "agent"})
    with pytest.raises(ReportError, match=r"no array 'agent'; found coupling, rewards, expert"):
        build(artifacts)


def test_latents_that_do_not_fit_are_an_error(artifacts: Path) -> None:
    for changes, message in (
        ({"step": np.arange(4)}, r"step: found shape \(4,\), expected \(60 states\)"),
        ({"latents": np.ones((0, 2))}, r"latents: found shape \(0, 2\)"),
        ({"observations": np.ones((59, 2))}, r"observations: found shape \(59, 2\), expected \(60 states, numbers\)"),
        ({"latents": np.full((60, 2), 1e39)}, "latents: found float64 that are not finite or too large"),
        ({"latents": np.full((60, 2), np.inf, np.float16)}, "latents: found float16 that are not finite"),
        ({"latents": np.full((60, 2), "1")}, "latents: found <U1, expected numbers"),
        ({"episode": np.zeros(60)}, "episode: found float64, expected integers"),
        ({"episode": np.full(60, 3)}, "episode: found 3 to 3, expected 0 to 2"),
        ({"return": np.array(["1"] * 3)}, "return: found <U1, expected numbers"),
        ({"return": np.full(3, np.inf)}, "return: found float64 that are not finite"),
    ):
        write_latents(artifacts, **changes)
        with pytest.raises(ReportError, match=rf"latents\.npz: {message}"):
            build(artifacts)


@pytest.mark.parametrize("changes", [{"replica": np.zeros(39, int)}, {"replica": np.array(0)}, {"observations": 1.0}])
def test_paths_that_do_not_fit_are_an_error(artifacts: Path, changes: dict[str, Any]) -> None:
    write_plane(artifacts)
    path = artifacts / "evaluate" / "bc" / "paths.npz"
    np.savez(path, **{"observations": np.ones((40, 2)), "replica": np.zeros(40, int), **changes})
    with pytest.raises(ReportError, match=r"bc/paths\.npz: .*: found shape"):
        build(artifacts)


def test_pooling_keeps_the_mean_level() -> None:
    matrix = np.arange(10.0)[:, None] * np.ones((10, 7))
    pooled = pool(matrix, 4)
    assert pooled.shape == (4, 4)
    np.testing.assert_allclose(pooled[:, 0], [0.5, 3.0, 5.5, 8.0])  # blocks of 2, 3, 2, 3
    np.testing.assert_array_equal(pool(matrix, 10), matrix)


def test_words() -> None:
    assert [count(1, "policy"), count(2, "policy"), count(1000, "step")] == ["1 policy", "2 policies", "1,000 steps"]


def test_thinning() -> None:
    np.testing.assert_array_equal(thin(np.array([1.0, 2.0])), [1.0, 2.0])
    np.testing.assert_allclose(thin(np.arange(1500.0)), np.arange(150) * 10 + 4.5)


@pytest.mark.usefixtures("drawing")
def test_same_inputs_make_the_same_page(artifacts: Path) -> None:
    assert build_report(ReportConfig(), artifacts) == build_report(ReportConfig(), artifacts)


@pytest.mark.usefixtures("drawing")
def test_stage(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = artifacts.parent / "params.yaml"
    learn = {name: settings for name, settings in SETTINGS["learn"].items() if name != "top_length"}
    params.write_text(json.dumps({"seed": 0, "report": {"title": "Hopper"}, "learn": learn}))
    stage.main(Stage("report", params))
    folder = artifacts / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "metrics.json", "returns.tsv"]
    assert "<h1>Hopper</h1>" in (folder / "index.html").read_text()
    scores = read(folder / "metrics.json")
    assert set(scores) == {"bc", "iql_ailot", "chance"}
    assert scores["bc"]["return_mean"] == 1003.5
    assert (folder / "returns.tsv").read_text().splitlines()[:2] == [
        "policy\treplica\tepisode\treturn",
        "bc\t0\t0\t1000.0",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    names = [line.split()[0] for line in printed if "[" in line]
    assert names == ["iql_ailot", "bc", "chance"]
    assert any(line.startswith("bc *") for line in printed)
    before = (folder / "index.html").read_bytes()
    stage.main(Stage("report", params))
    assert (folder / "index.html").read_bytes() == before
    shutil.rmtree(artifacts / "evaluate")
    with pytest.raises(ReportError):
        stage.main(Stage("report", params))
    assert (folder / "index.html").read_bytes() == before


def test_a_world_model_s_error_is_drawn_where_there_is_one(artifacts: Path) -> None:
    drawn = len(build(artifacts).plots)
    path = artifacts / "pretrain" / "intent" / "model_error.tsv"
    path.write_text("k\terror\tstaying\n1\t0.01\t0.2\n5\t0.125\t0.9\n")
    plots = build(artifacts).plots
    assert len(plots) == drawn + 1
    assert "Error of the model intent against steps ahead: 0.125 at k = 5" in plots
    path.write_text("k\terror\tstaying\n")
    with pytest.raises(ReportError, match=r"model_error.tsv: found no rows"):
        build(artifacts)
