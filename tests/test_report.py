import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dynarep.data.d4rl import environment_reference
from dynarep.pipeline.report import ReportConfig, ReportError, _pool, _thin, build_report
from dynarep.pipeline.run import Stage
from dynarep.stages import report as stage


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def score(return_mean: float, iqm: float | None, **values: Any) -> dict[str, Any]:
    return {
        "env": "Hopper-v4",
        "episodes": 4,
        "replicas": 2,
        "return_mean": return_mean,
        "length_mean": return_mean / 3,
        "normalised_iqm": iqm,
        "normalised_low": None if iqm is None else iqm - 5,
        "normalised_high": None if iqm is None else iqm + 5,
        "expert_fraction": return_mean / 4000,
        "success_rate": None,
        "motion_distance": None,
        **values,
    }


def write_scores(root: Path, scores: dict[str, dict[str, Any]]) -> None:
    env = next(iter(scores.values()))["env"]
    played = {
        name: {
            "returns": (values["return_mean"] + np.arange(8.0).reshape(2, 4)).tolist(),
            "lengths": np.full((2, 4), 300).tolist(),
        }
        for name, values in scores.items()
    }
    versions = {"gymnasium": "1.4.0", "mujoco": "4.0.0"}
    reference = environment_reference(env)
    raw = {"env": env, "seed": 7, "max_steps": None, "reference": reference, "versions": versions, "policies": played}
    write(root / "evaluate" / "metrics.json", json.dumps(scores))
    write(root / "evaluate" / "returns.json", json.dumps(raw))


def write_model(root: Path, name: str, **metadata: Any) -> None:
    described = {"version": "0.1.0", "revision": "abc123", "datasets": {"hopper-arbitrary": "f00d"}, **metadata}
    write(root / name / "metadata.json", json.dumps(described))
    write(root / name / "config.json", "{}")
    rows = "".join(f"{i * 50}\t{1 / i}\n" for i in range(1, 601))
    write(root / name / "curves.tsv", "update\tloss\n" + rows)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    root = tmp_path / "artifacts"
    write_scores(root, {"bc": score(1000, 30.0), "iql_ailot": score(2000, 62.0), "random": score(18, 1.2)})
    for name in ("pretrain_dynamics", "pretrain_intent"):
        write_model(root, name)
    saw = {"expert": "1 episode, observations & actions", "other": "nothing"}
    write_model(root, "imitate/bc", demonstrations="hopper-expert-1", saw=saw, params={"imitate": {"actor": 1e-4}})
    write_model(root, "offline_rl/iql_ailot", saw={"expert": "1 episode, observations only", "other": "60,000"})
    write(root / "pretrain_dynamics" / "metrics.json", json.dumps({"held_out": {"noise": [1.01, 0.99]}, "rank": None}))
    write(root / "pretrain_intent" / "metrics.json", json.dumps({"psi": {"spearman": 0.9612345}}))
    distances = "".join(
        f"{k}\t{space}\t{k**0.8}\t{k**0.8 / 3}\t{k * 2}\n" for k in (1, 5, 50) for space in ("psi", "raw")
    )
    write(root / "pretrain_intent" / "distance.tsv", "k\tspace\tmean\tlow\thigh\n" + distances)
    for method in ("ailot", "otr"):
        rows = "".join(f"e{i}\t{i + 5}\t{-i}\t{i * 3}\n" for i in range(50))
        write(root / "relabel" / method / "returns.tsv", "episode\tlength\trelabelled\ttrue\n" + rows)
        np.savez(
            root / "relabel" / method / "example.npz",
            coupling=np.full((700, 500), 1 / 350_000, dtype=np.float32),
            rewards=np.zeros(700, dtype=np.float32),
            true_rewards=np.ones(700, dtype=np.float32),
            agent=f"agent-of-{method}",
            expert="expert-3",
        )
    spearman = {"ailot": {"spearman_true_return": 0.912}, "otr": {"spearman_true_return": 0.501}}
    write(root / "relabel" / "metrics.json", json.dumps(spearman))
    return root


class Page(HTMLParser):
    """Text, images and table rows of a page; checks that tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def build(artifacts: Path, title: str = "A title") -> Page:
    return Page(build_report(ReportConfig(title=title), artifacts))


def svg_of(image: dict[str, str]) -> str:
    return base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")).decode()


def test_page_needs_no_other_file(artifacts: Path) -> None:
    html = build_report(ReportConfig(), artifacts)
    page = Page(html)
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\(|<script", html)
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert anchors
    assert all(f'id="{anchor}"' in html for anchor in anchors)
    assert len(html) < 3_000_000


def test_images_are_described_and_follow_the_readers_setting(artifacts: Path) -> None:
    images = build(artifacts).images
    assert len(images) == 3 + 2 + 4  # scores, distance, coupling; two methods; four models
    for image in images:
        svg = svg_of(image)
        ElementTree.fromstring(svg)
        assert image["alt"]
        assert "prefers-color-scheme: dark" in svg
        assert "var(--ink)" in svg
        assert "#010203" not in svg
        assert not re.search(r'href="(?!#|data:)', svg)


def test_scores_are_sorted_and_say_what_was_seen(artifacts: Path) -> None:
    header, *rows = build(artifacts).rows[:4]
    assert header[0] == "policy"
    assert header[-2:] == ["saw: expert", "saw: other"]
    assert [row[0] for row in rows] == ["iql_ailot", "bc", "random"]
    assert rows[1] == [
        "bc",
        "1,000.0",
        "30.0 [25.0, 35.0]",
        "0.25",
        "333",
        "1 episode, observations & actions",
        "nothing",
    ]
    assert rows[2][-2:] == ["–", "–"]


def test_summary_is_made_of_the_numbers(artifacts: Path) -> None:
    text = build(artifacts).text.replace("\u00a0", " ")
    for sentence in (
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
    assert "their intervals overlap" in build(artifacts).text
    write_scores(artifacts, {"bc": score(1000, None, env="Humanoid-v5", expert_fraction=None, replicas=1)})
    text = build(artifacts).text
    assert "On Humanoid-v5, bc was evaluated: over 1 replica and 4 episodes of each, its mean return is 1,000." in text
    assert "demonstrations." not in text.split("Scores")[0]


def test_one_episode_has_no_interval(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": score(1000, 30.0, episodes=1), "iql_ailot": score(2000, 62.0, episodes=1)})
    page = build(artifacts)
    assert "The next, bc, scores 30.0. " in page.text
    assert "normalised score 62.0. " in page.text
    assert page.rows[1][2] == "62.0"


def test_scores_without_reference_are_plotted_as_returns(artifacts: Path) -> None:
    write_scores(artifacts, {"bc": score(1000, None, env="Humanoid-v5"), "iql": score(500, None, env="Humanoid-v5")})
    page = build(artifacts)
    assert page.images[0]["alt"] == "Interquartile mean of the return: bc 1003.5, iql 503.5"
    assert page.rows[1][2] == "–"


def test_plots_show_the_files(artifacts: Path) -> None:
    page = build(artifacts)
    alts = [image["alt"] for image in page.images]
    assert "intent space ψ reaches 22.9 at k = 50; raw states reaches 22.9 at k = 50" in alts[1]
    assert alts[2] == "Coupling of 700 agent steps with 500 expert steps, the agent's rewards below"
    assert alts[3:5] == [
        "Relabelled against true return of 50 episodes: ailot, Spearman 0.91",
        "Relabelled against true return of 50 episodes: otr, Spearman 0.50",
    ]
    assert "loss of imitate/bc over updates" in " ".join(alts)
    assert "agent-of-ailot" in page.text
    assert "their true rewards" in page.text


def test_a_metric_may_be_missing_from_some_rows_or_all(artifacts: Path) -> None:
    curves = "update\tloss\tvalidation\tnever\n50\t2\t\t\n100\t1\t7\t\n150\t0.5\t6\t\n"
    write(artifacts / "imitate" / "bc" / "curves.tsv", curves)
    alts = [image["alt"] for image in build(artifacts).images if "imitate/bc" in image["alt"]]
    assert alts == [
        "loss of imitate/bc over updates: from 2 to 0.5",
        "validation of imitate/bc over updates: from 7 to 6",
    ]


def test_metrics_and_provenance(artifacts: Path) -> None:
    page = build(artifacts)
    assert ["held_out.noise", "1.01, 0.99"] in page.rows
    assert ["rank", "none"] in page.rows
    assert ["psi.spearman", "0.9612"] in page.rows
    assert ["imitate/bc", "0.1.0", "abc123", "hopper-arbitrary"] in page.rows
    assert ["params.imitate.actor", "0.0001"] in page.rows
    assert ["datasets.hopper-arbitrary", "f00d"] in page.rows
    assert "Evaluated on Hopper-v4 from seed 7 with gymnasium 1.4.0, mujoco 4.0.0." in page.text


def test_texts_are_escaped(artifacts: Path) -> None:
    write_model(artifacts, "imitate/bc", saw={"expert": "<b>&"}, params={"<i>": "<script>"})
    page = build(artifacts, title="<em>$title & more")
    assert page.text.count("<em>$title & more") == 2
    assert page.rows[2][-2] == "<b>&"
    assert ["params.<i>", "<script>"] in page.rows


@pytest.mark.parametrize(
    "missing",
    [
        "evaluate/returns.json",
        "pretrain_intent/distance.tsv",
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
    for folder in ("relabel", "pretrain_dynamics", "pretrain_intent", "imitate", "offline_rl"):
        shutil.rmtree(artifacts / folder)
    (artifacts / "evaluate" / "returns.json").unlink()
    page = build(artifacts)
    assert [row[0] for row in page.rows] == ["policy", "iql_ailot", "bc", "random"]
    for pattern in ("example.npz", "returns.tsv"):
        assert f"not available: artifacts/relabel/*/{pattern}\n" in page.text
    assert page.images == []


def test_without_true_rewards(artifacts: Path) -> None:
    (artifacts / "relabel" / "otr" / "returns.tsv").write_text("episode\tlength\trelabelled\ttrue\na\t3\t-1.5\t\n")
    (artifacts / "relabel" / "ailot" / "returns.tsv").write_text("episode\tlength\trelabelled\na\t3\t-1.5\n")
    path = artifacts / "relabel" / "ailot" / "example.npz"
    np.savez(path, coupling=np.ones((3, 2)) / 6, rewards=np.zeros(3), agent="a", expert="e")
    page = build(artifacts)
    for method in ("ailot", "otr"):
        assert f"not available: true returns in artifacts/relabel/{method}/returns.tsv\n" in page.text
    assert "true rewards" not in page.text


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
        ("relabel/ailot/example.npz", "not a zip", "example.npz: not a readable npz"),
    ],
)
def test_damaged_files_are_errors_naming_them(artifacts: Path, file: str, content: str, message: str) -> None:
    (artifacts / file).write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        build(artifacts)
    assert str((artifacts / file).parent) in str(caught.value)


def test_an_example_that_does_not_fit_is_an_error(artifacts: Path) -> None:
    path = artifacts / "relabel" / "ailot" / "example.npz"
    np.savez(path, coupling=np.ones((3, 2)), rewards=np.zeros(4), agent="a", expert="e")
    with pytest.raises(ReportError, match=r"relabelled rewards have shape \(4,\), the coupling \(3, 2\)"):
        build(artifacts)
    np.savez(path, coupling=np.ones((3, 2)), rewards=np.zeros(3), agent="a")
    with pytest.raises(ReportError, match=r"no array 'expert'; found coupling, rewards, agent"):
        build(artifacts)


def test_pooling_keeps_the_mean_level() -> None:
    matrix = np.arange(10.0)[:, None] * np.ones((10, 7))
    pooled = _pool(matrix, 4)
    assert pooled.shape == (4, 4)
    np.testing.assert_allclose(pooled[:, 0], [0.5, 3.0, 5.5, 8.0])  # blocks of 2, 3, 2, 3
    np.testing.assert_array_equal(_pool(matrix, 10), matrix)


def test_thinning() -> None:
    np.testing.assert_array_equal(_thin(np.array([1.0, 2.0])), [1.0, 2.0])
    np.testing.assert_allclose(_thin(np.arange(1000.0)), np.arange(250) * 4 + 1.5)


def test_same_inputs_make_the_same_page(artifacts: Path) -> None:
    assert build_report(ReportConfig(), artifacts) == build_report(ReportConfig(), artifacts)


def test_stage(artifacts: Path) -> None:
    params = artifacts.parent / "params.yaml"
    params.write_text("seed: 0\nreport:\n  title: Hopper\n")
    stage.main(Stage("report", params))
    assert "<h1>Hopper</h1>" in (artifacts / "report" / "index.html").read_text()
    (artifacts / "evaluate" / "metrics.json").unlink()
    with pytest.raises(ReportError):
        stage.main(Stage("report", params))
    assert [path.name for path in (artifacts / "report").iterdir()] == ["index.html"]
