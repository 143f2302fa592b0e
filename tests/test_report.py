import base64
import json
import re
import shutil
from hashlib import sha256
from html.parser import HTMLParser
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from run_files import score, write, write_clips, write_latents, write_model, write_other_run, write_run, write_scores

from dynarep.pipeline.report import ReportConfig, ReportError, build_report
from dynarep.pipeline.report.curves import thin
from dynarep.pipeline.report.html import count, duration
from dynarep.pipeline.report.plots import BLUE, GREY, ORANGE, pool
from dynarep.pipeline.report.representation import CLASSES
from dynarep.pipeline.run import Stage
from dynarep.stages import report as stage


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


def test_the_policy_allows_the_pages_own_script_and_no_other(artifacts: Path) -> None:
    html = build_report(ReportConfig(title="<script>alert(1)</script>"), artifacts)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in html


@pytest.mark.usefixtures("drawing")
def test_plots_are_described_and_follow_the_theme(artifacts: Path) -> None:
    html = build_report(ReportConfig(), artifacts)
    drawn = svgs(html)
    maps = 4 if find_spec("umap") else 2
    assert len(drawn) == 2 + maps + 4 + 2 + 4  # scores, distance; maps; couplings; labels; models
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


def test_scores_are_sorted_and_say_what_was_seen(artifacts: Path) -> None:
    write_model(artifacts, "offline_rl/iql_ailot", learner="iql", rewards="ailot")
    header, *rows = build(artifacts).rows[:5]
    assert header[0] == "policy"
    assert header[-3:] == ["method", "saw: expert", "saw: other"]
    assert [row[0] for row in rows] == ["demonstrations", "iql_ailot", "bc", "random"]
    assert rows[0][:4] == ["demonstrations", "4,000.0", "123.5", "1.00"]
    assert rows[1][5] == "iql on ailot rewards"
    assert rows[2] == [
        "bc",
        "1,000.0",
        "30.0 [25.0, 35.0]",
        "0.25",
        "333",
        "bc",
        "1 episode, observations & actions",
        "nothing",
    ]
    assert rows[3][-3:] == ["–", "–", "–"]


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
        "Representations of dynamics (φ and μ) and intent (ψ) from hopper-arbitrary (84,000 transitions).",
        "Policies: 1 by imitation and 1 by learning from new or true rewards; new rewards come from comparison with "
        "hopper-expert-1-states.",
        "2 replicas say little about other training seeds.",
        "After prepare, the stages took 8 min in all; the longest, imitate, 3 min.",
        "On Hopper-v4, iql_ailot is the best of 2 policies: over 2 replicas and 4 episodes of each, its mean return is "
        "2,000 and the interquartile mean of its normalised score 62.0 (95 % interval 57.0 to 67.0).",
        "That is 50 % of the way from a random policy to the demonstrations.",
        "Of the expert it saw: 1 episode, observations only.",
        "The next, bc, scores 30.0; their intervals do not overlap.",
        "a rank correlation of 0.91 (ailot), 0.50 (otr).",
        "From 1 to 50 steps apart, squared distance grows 22.9-fold in the intent space",
    ):
        assert sentence in text


def test_summary_of_close_scores_and_of_one(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": score(1000, 30.0), "iql_ailot": score(1100, 34.0)})
    text = build(artifacts).text
    assert "The intervals of bc overlap with that of iql_ailot, so which of them is better is open." in text
    write_scores(artifacts, {"bc": score(1000, None, env="Humanoid-v5", expert_fraction=None, replicas=1)})
    text = build(artifacts).text
    assert "There is one replica, so the intervals say nothing of other training seeds." in text
    assert "On Humanoid-v5, bc was evaluated: over 1 replica and 4 episodes of each, its mean return is 1,000." in text
    assert "to the demonstrations." not in text.split("Normalised IQM:")[0]


def test_one_episode_has_no_interval(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": score(1000, 30.0, episodes=1), "iql_ailot": score(2000, 62.0, episodes=1)})
    page = build(artifacts)
    assert "The next, bc, scores 30.0. " in page.text
    assert "normalised score 62.0. " in page.text
    assert page.rows[2][2] == "62.0"


def test_scores_without_reference_are_plotted_as_returns(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": score(1000, None, env="Humanoid-v5"), "iql": score(500, None, env="Humanoid-v5")})
    page = build(artifacts)
    assert page.plots[0] == "Interquartile mean of the return: bc 1003.5, iql 503.5"
    assert page.rows[1][2] == "–"


def test_plots_show_the_files(artifacts: Path) -> None:
    page = build(artifacts)
    assert "intent space ψ reaches 22.9 at k = 50; raw states reaches 22.9 at k = 50" in page.plots[1]
    assert page.plots[-10:-4] == [
        "Coupling by ailot of 40 steps of agent-0 with 500 of expert-3",
        "Coupling by otr of 40 steps of agent-0 with 500 of expert-3",
        "Coupling by ailot of 700 steps of agent-1 with 500 of expert-3",
        "Coupling by otr of 700 steps of agent-1 with 500 of expert-3",
        "Relabelled against true return of 50 episodes: ailot, Spearman 0.91",
        "Relabelled against true return of 50 episodes: otr, Spearman 0.50",
    ]
    assert "loss of imitate/bc over updates" in " ".join(page.plots)


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
    np.savez(folder / "1.npz", rewards=np.zeros(700), agent="agent-1")
    page = build(artifacts)
    assert "Rewards of the steps of agent-1, rnd: from 0 to 0" in [image["alt"] for image in page.images]
    assert not any("Coupling by rnd" in plot for plot in page.plots)


def test_the_map_is_of_the_latents(artifacts: Path) -> None:
    line = np.linspace(0, 1, 60)[:, None] * np.ones((1, 8), np.float32)
    write_latents(artifacts, latents=line)
    html = build_report(ReportConfig(), artifacts)
    panel = next(svg for svg in svgs(html) if "PCA, step of the episode" in svg)
    assert "from 0 to 19; 100 % and 0 % of variance" in panel
    places = np.array(re.findall(r"M([\d.]+) ([\d.]+)h0", panel), dtype=float)
    assert len(places) == 60
    assert np.ptp(places[:, 0]) > 300
    counts = [len(re.findall("M", path)) for path in re.findall(r'class="ramp-\d" d="([^"]*)"', panel)]
    assert len(counts) == CLASSES
    assert min(counts) > 0
    write_latents(artifacts, **{"return": np.full(3, np.nan)})
    assert not any("return of the episode" in plot for plot in build(artifacts).plots)


def test_films_stand_beside_the_experts(artifacts: Path) -> None:
    page = build(artifacts)
    films = [image for image in page.images if image["alt"].startswith("Film")]
    assert [film["alt"] for film in films] == [
        "Film of expert: 12 frames, first 110 steps shown, return 1,200",
        "Film of iql_ailot: 12 frames, first 110 steps shown, return 1,200",
        "Film of bc: 3 frames, all 20 steps shown, return 300",
    ]
    assert films[0]["src"].startswith("data:image/webp;base64,")
    screens = [values["style"] for _, values in page.elements if values.get("class") == "screen"]
    assert screens == ["aspect-ratio:32/24"] * 3
    assert "first 110 steps shown, return 1,200; 2,000 in all 300 steps" in page.text
    assert "The expert is episode-7 of hopper-expert-1, drawn from its recorded states" in page.text
    assert "no film of random: it hides" in page.text


def test_without_films_the_page_says_why(artifacts: Path) -> None:
    write_clips(artifacts, clips={}, notices={"": "no renderer works (egl: gone). Install one."})
    page = build(artifacts)
    assert "no films: no renderer works (egl: gone). Install one." in page.text
    assert not any(image["alt"].startswith("Film") for image in page.images)
    shutil.rmtree(artifacts / "evaluate" / "clips")
    assert "no films: the evaluation was asked for none" in build(artifacts).text


def test_cards_tell_time_and_provenance(artifacts: Path) -> None:
    page = build(artifacts)
    assert page.text.count("2026-02-03 10:20 UTC") == 6
    assert "3\u00a0min on 2 cores" in page.text
    assert "dynarep 0.1.0, revision abc123" in page.text
    assert ["hopper-arbitrary", "Hopper-v4", "2", "84,000", "2", "3"] in page.rows


@pytest.fixture
def other(artifacts: Path) -> Path:
    return write_other_run(artifacts)


def compare(artifacts: Path, other: str = "before") -> Page:
    return Page(build_report(ReportConfig(compare=other), artifacts))


def test_two_runs_side_by_side(artifacts: Path, other: Path) -> None:
    page = compare(artifacts)
    start = page.rows.index(["policy", "this run", "other run", "difference [95\u00a0%]", "reading"])
    best, same = page.rows[start + 1 : start + 3]
    assert best[:3] == ["iql_ailot", "62.2", "16.1"]
    assert best[3].startswith("+46.1 [+46.")
    assert best[4] == "higher"
    assert (same[0], same[4]) == ("bc", "not told apart")
    assert (
        "This run beside before. Of 2 policies that both have, 1 score higher here, 0 lower, 1 are not told apart."
        in (page.text)
    )
    assert ["imitate.actor", "0.0001", "0.0002"] in page.rows
    assert ["dataset.hopper-arbitrary", "f00d", "beef"] in page.rows
    assert ["imitate/bc: revision", "abc123", "fff"] in page.rows
    assert any("in this run and the other: iql_ailot 62.2 and 16.1, bc" in plot for plot in page.plots)
    assert "Comparison" not in build(artifacts).text


def test_a_comparison_needs_scores_alone(artifacts: Path, other: Path) -> None:
    for folder in other.iterdir():
        if folder.name != "evaluate":
            shutil.rmtree(folder)
    assert "no parameter, dataset, revision or metric differs in what both runs hold" in compare(artifacts).text
    write_scores(other, {"old": score(9, 1.0)})
    assert "the two runs have no policy in common" in compare(artifacts).text
    write_scores(other, {"bc": score(9, 1.0, env="Ant-v4")})
    with pytest.raises(ReportError, match=r"before was evaluated in Ant-v4, this run in Hopper-v4"):
        compare(artifacts)
    (other / "evaluate" / "returns.json").unlink()
    with pytest.raises(ReportError, match=r"report\.compare: .*before/evaluate/returns\.json: no such file; expected"):
        compare(artifacts)


def test_a_metric_may_be_missing_from_some_rows_or_all(artifacts: Path) -> None:
    curves = "update\tloss\tvalidation\tnever\n50\t2\t\t\n100\t1\t7\t\n150\t0.5\t6\t\n"
    write(artifacts / "imitate" / "bc" / "curves.tsv", curves)
    alts = [plot for plot in build(artifacts).plots if "imitate/bc" in plot]
    assert alts == [
        "loss of imitate/bc over updates: from 2 to 0.5",
        "validation of imitate/bc over updates: from 7 to 6",
    ]


def test_metrics_and_provenance(artifacts: Path) -> None:
    page = build(artifacts)
    assert ["held_out.noise", "1.01, 0.99"] in page.rows
    assert ["rank", "none"] in page.rows
    assert ["psi.spearman", "0.9612"] in page.rows
    assert ["params.imitate.actor", "0.0001"] in page.rows
    assert ["datasets.hopper-arbitrary", "f00d"] in page.rows
    assert "gymnasium 1.4.0, mujoco 4.0.0" in page.text
    assert "4 per replica, from seed 7" in page.text


def test_texts_are_escaped(artifacts: Path) -> None:
    write_model(artifacts, "imitate/bc", saw={"expert": "<b>&"}, params={"<i>": "<script>"})
    page = build(artifacts, title="<em>$title & more")
    assert page.text.count("<em>$title & more") == 2
    assert page.rows[3][-2] == "<b>&"
    assert ["params.<i>", "<script>"] in page.rows


@pytest.mark.parametrize(
    "missing",
    [
        "evaluate/returns.json",
        "evaluate/clips/clips.json",
        "evaluate/clips/bc.webp",
        "pretrain_intent/distance.tsv",
        "pretrain_intent/latents.npz",
        "pretrain_intent/metrics.json",
        "pretrain_dynamics/metrics.json",
        "pretrain_dynamics/curves.tsv",
        "pretrain_intent/metadata.json",
        "imitate/bc/curves.tsv",
        "imitate/bc/metadata.json",
        "relabel/metrics.json",
    ],
)
def test_a_missing_file_is_named_in_its_place(artifacts: Path, missing: str) -> None:
    (artifacts / missing).unlink()
    assert f"not available: artifacts/{missing}\n" in build(artifacts).text


def test_scores_are_all_that_is_needed(artifacts: Path) -> None:
    for folder in ("relabel", "pretrain_dynamics", "pretrain_intent", "imitate", "offline_rl", "shards"):
        shutil.rmtree(artifacts / folder)
    shutil.rmtree(artifacts / "evaluate" / "clips")
    (artifacts / "evaluate" / "returns.json").unlink()
    page = build(artifacts)
    assert [row[0] for row in page.rows] == ["policy", "iql_ailot", "bc", "random"]
    for pattern in ("examples/*.npz", "returns.tsv"):
        assert f"not available: artifacts/relabel/*/{pattern}\n" in page.text
    assert page.images == []
    assert page.plots == []


def test_without_true_rewards(artifacts: Path) -> None:
    (artifacts / "relabel" / "otr" / "returns.tsv").write_text("episode\tlength\trelabelled\ttrue\na\t3\t-1.5\t\n")
    (artifacts / "relabel" / "ailot" / "returns.tsv").write_text("episode\tlength\trelabelled\na\t3\t-1.5\n")
    for method in ("ailot", "otr"):
        shutil.rmtree(artifacts / "relabel" / method / "examples")
    path = artifacts / "relabel" / "ailot" / "examples" / "0.npz"
    path.parent.mkdir()
    np.savez(path, coupling=np.ones((3, 2)) / 6, rewards=np.zeros(3), agent="a", expert="e")
    page = build(artifacts)
    for method in ("ailot", "otr"):
        assert f"not available: true returns in artifacts/relabel/{method}/returns.tsv\n" in page.text
    strips = [image["alt"] for image in page.images if image["alt"].startswith("Rewards")]
    assert strips == ["Rewards of the steps of a, ailot: from 0 to 0"]


def test_no_scores_is_an_error(artifacts: Path) -> None:
    path = artifacts / "evaluate" / "metrics.json"
    for content in ("{}", json.dumps({"random": score(18, 1.0)})):
        path.write_text(content)
        with pytest.raises(ReportError, match=r"evaluate/metrics.json: holds no score"):
            build(artifacts)
    path.unlink()
    with pytest.raises(ReportError, match=r"evaluate/metrics.json: no such file; there are no scores"):
        build(artifacts)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluate/metrics.json", '{"bc": {"env": "Hopper-v4"}}', "bc has no 'episodes'"),
        ("evaluate/returns.json", "{", "not valid JSON"),
        ("evaluate/returns.json", '{"env": "Hopper-v4"}', "no 'seed'"),
        (
            "evaluate/returns.json",
            '{"env": "H", "seed": 0, "reference": null, "versions": {}, "policies": {}}',
            "does not have it",
        ),
        ("imitate/bc/metadata.json", "[]", "expected a JSON object, found list"),
        ("imitate/bc/curves.tsv", "step\tloss\n1\t2\n", "no column 'update'; found step, loss"),
        ("imitate/bc/curves.tsv", "update\tloss\n1\t2\n3\n", "line 3: 1 fields, expected 2"),
        ("imitate/bc/curves.tsv", "update\tloss\n1\tlow\n", "column 'loss'.*low"),
        ("pretrain_intent/distance.tsv", "k\tspace\tmean\tlow\thigh\n", "no rows"),
        ("relabel/ailot/examples/0.npz", "not a zip", "examples/0.npz: not a readable npz"),
        ("relabel/ailot/examples/first.npz", "", "first.npz: expected a number"),
        ("pretrain_intent/latents.npz", "not a zip", "latents.npz: not a readable npz"),
        ("evaluate/clips/clips.json", "{}", "clips.json: no 'seconds_per_frame'"),
        ("evaluate/clips/bc.webp", "not a picture", "bc.webp: not a picture"),
    ],
)
def test_damaged_files_are_errors_naming_them(artifacts: Path, file: str, content: str, message: str) -> None:
    (artifacts / file).write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        build(artifacts)
    assert str((artifacts / file).parent) in str(caught.value)


def test_an_example_that_does_not_fit_is_an_error(artifacts: Path) -> None:
    path = artifacts / "relabel" / "ailot" / "examples" / "0.npz"
    whole = {"coupling": np.ones((3, 2)), "rewards": np.zeros(3), "agent": "a", "expert": "e"}
    for changes, message in (
        ({"rewards": np.zeros(4)}, r"a coupling of shape \(3, 2\) with 4 rewards"),
        ({"rewards": np.zeros((3, 1))}, r"rewards have shape \(3, 1\), expected \(steps,\)"),
        ({"true_rewards": np.zeros(2)}, r"true rewards have shape \(2,\), rewards \(3,\)"),
    ):
        np.savez(path, **{**whole, **changes})
        with pytest.raises(ReportError, match=message):
            build(artifacts)
    np.savez(path, **{key: value for key, value in whole.items() if key != "agent"})
    with pytest.raises(ReportError, match=r"no array 'agent'; found coupling, rewards, expert"):
        build(artifacts)


def test_latents_that_do_not_fit_are_an_error(artifacts: Path) -> None:
    write_latents(artifacts, step=np.arange(4))
    with pytest.raises(ReportError, match=r"latents.npz: 60 latents, 60 episodes and 4 steps"):
        build(artifacts)


def test_pooling_keeps_the_mean_level() -> None:
    matrix = np.arange(10.0)[:, None] * np.ones((10, 7))
    pooled = pool(matrix, 4)
    assert pooled.shape == (4, 4)
    np.testing.assert_allclose(pooled[:, 0], [0.5, 3.0, 5.5, 8.0])  # blocks of 2, 3, 2, 3
    np.testing.assert_array_equal(pool(matrix, 10), matrix)


def test_words() -> None:
    assert [duration(seconds).replace("\u00a0", " ") for seconds in (3.4, 60, 5400, 9000)] == [
        "3 s",
        "1 min",
        "90 min",
        "2.5 h",
    ]
    assert [count(1, "policy"), count(2, "policy"), count(1000, "step")] == ["1 policy", "2 policies", "1,000 steps"]


def test_thinning() -> None:
    np.testing.assert_array_equal(thin(np.array([1.0, 2.0])), [1.0, 2.0])
    np.testing.assert_allclose(thin(np.arange(1500.0)), np.arange(150) * 10 + 4.5)


@pytest.mark.usefixtures("drawing")
def test_same_inputs_make_the_same_page(artifacts: Path) -> None:
    assert build_report(ReportConfig(), artifacts) == build_report(ReportConfig(), artifacts)


@pytest.mark.usefixtures("drawing")
def test_stage(artifacts: Path) -> None:
    params = artifacts.parent / "params.yaml"
    params.write_text("seed: 0\nreport:\n  title: Hopper\n")
    stage.main(Stage("report", params))
    assert "<h1>Hopper</h1>" in (artifacts / "report" / "index.html").read_text()
    (artifacts / "evaluate" / "metrics.json").unlink()
    with pytest.raises(ReportError):
        stage.main(Stage("report", params))
    assert sorted(path.name for path in (artifacts / "report").iterdir()) == ["index.html", "timing.json"]
