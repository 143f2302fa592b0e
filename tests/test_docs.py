"""The documentation pages: that they build without a warning, and what they quote from the code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

REPOSITORY = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "l2m4m")


def missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built with warnings as errors."""
    if absent := [name for name in NEEDED if missing(name)]:
        pytest.skip(f"needs {', '.join(absent)}: pip install 'dynarep[docs]'")
    if shutil.which("make") is None:
        pytest.skip("needs make")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "layout"], cwd=REPOSITORY, check=True, capture_output=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class References(HTMLParser):
    """Targets of links and sources of a page, and what in it can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.formulas = 0
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.anchors.update(value for key, value in values.items() if key in ("id", "name"))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("img", "script", "source", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values["href"])
        self.formulas += tag == "math"


def test_links_lead_somewhere_and_nothing_comes_from_the_network(site: Path) -> None:
    pages = {page: References(page) for page in site.rglob("*.html") if page.name != "404.html"}
    for page, references in pages.items():
        for target in references.loaded + references.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert target in references.links, f"{page}: {target} is loaded from the network"
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            assert path.exists(), f"{page}: {target}"
            if parts.fragment and path in pages and target in references.links:
                assert unquote(parts.fragment) in pages[path].anchors | {"__"}, f"{page}: {target}"
    for concept in ("dynamics", "intent", "metric", "online"):
        assert pages[site / "concepts" / f"{concept}.html"].formulas > 1


def test_every_page_is_there(site: Path) -> None:
    pages = sorted((REPOSITORY / "docs").rglob("*.md"))
    assert len(pages) > 10
    for page in pages:
        assert (site / page.relative_to(REPOSITORY / "docs")).with_suffix(".html").exists()
    home = (site / "index.html").read_text()
    for name in ("METHODS", "CHANGELOG", "CONTRIBUTING", "tutorial", "params", "troubleshooting", "reference/encoders"):
        assert f'href="{name}.html"' in home
    assert 'id="dynarep.load_encoder"' in (site / "reference" / "encoders.html").read_text()


def words(node: ast.AST) -> str | None:
    """A literal with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(words(value) or "…" for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def literals() -> Iterator[str]:
    for folder in ("configs", "data", "pipeline", "stages"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if text := words(node):
                    yield text


def quoted() -> list[str]:
    """Messages of the troubleshooting page: its headings, and the first column of its table."""
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    lines = re.findall(r"^### .*$|^\| `[^|]*", page, re.MULTILINE)
    return [message for line in lines for message in re.findall(r"`([^`]+)`", line)]


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    messages, sources = quoted(), list(literals())
    assert len(messages) > 40
    for message in messages:
        pattern = ".*".join(re.escape(part) for part in message.split("…"))
        assert any(re.search(pattern, source, re.DOTALL) for source in sources), message
    assert len(messages) == len(set(messages))


GUIDES = [
    path for path in sorted((REPOSITORY / "docs").rglob("*.md")) if path.name not in ("results.md", "performance.md")
]
"""The others hold measured tables, of older runs, too."""


def params_files() -> list[Any]:
    """Whole params files in the pages, by page and number."""
    found = []
    for page in GUIDES:
        blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        whole = [block for block in blocks if re.search("^replicas:", block, re.MULTILINE)]
        found += [pytest.param(block, id=f"{page.name}-{n}") for n, block in enumerate(whole)]
    return found


def test_the_params_files_are_found() -> None:
    assert len(params_files()) >= 3


@pytest.mark.parametrize("text", params_files())
def test_a_params_file_in_a_page_is_one(text: str, tmp_path: Path) -> None:
    """Every section is known, every entry parses and names entries that are there, and DVC finds what it reads."""
    from dynarep.configs.params import validate
    from dynarep.pipeline.entries import INPUTS, parse_entry, read_params
    from dynarep.pipeline.playing.play import EvaluateConfig

    path = tmp_path / "params.yaml"
    path.write_text(text)
    values = read_params(path)
    named = {"initial": "pretrain", "space": "pretrain", "encoder": "pretrain", "rewards": "relabel"}
    required = {
        "pretrain": ("dataset", "initial"),
        "relabel": ("dataset", "demonstrations", "space"),
        "learn": ("dataset", "demonstrations", "encoder", "rewards"),
    }
    for section in INPUTS:
        for name, entry in values[section].items():
            parse_entry(section, name, entry)
            assert set(required[section]) <= set(entry), (section, name)
            for key, other in named.items():
                assert entry.get(key, "none") in {"none", *values[other]}, (section, name, key)
    validate(EvaluateConfig, values["evaluate"], "evaluate")
    assert {"demonstrations", "motion"} <= set(values["evaluate"])


OLD = ("pretrain_dynamics", "pretrain_intent", "stages.imitate", "offline_rl", "relabel.methods", "timing.json")


@pytest.mark.parametrize(
    "page", [*GUIDES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "METHODS.md"], ids=lambda p: p.name
)
def test_no_page_speaks_of_what_is_gone(page: Path) -> None:
    text = page.read_text().partition("## From an older file")[0]
    assert not [word for word in OLD if word in text]


def test_the_picture_of_scores_shows_the_stored_results(tmp_path: Path) -> None:
    """``python -m benchmarks.pictures docs/pictures scores`` draws it again."""
    matplotlib = pytest.importorskip("matplotlib")
    from benchmarks import pictures

    committed = (REPOSITORY / "docs" / "pictures" / "scores-light.svg").read_text()
    if f"Matplotlib v{matplotlib.__version__}," not in committed:
        pytest.skip("drawn by another version of matplotlib, whose pictures differ")
    pictures.save("scores", tmp_path)
    assert (tmp_path / "scores-light.svg").read_text() == committed
