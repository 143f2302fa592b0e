"""What MkDocs does not do by itself: pages from outside ``docs/``, links and lists as a forge reads them, a nav that fills.

A page keeps its path in the repository, with ``docs/`` left out. Links are written relative to the file, as a forge
resolves them; here they are led to the pages, and a link to a file that is no page becomes its text. Text below a list
item is indented as far as the item's own text, as in CommonMark; Python-Markdown wants four columns.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = (
    "README.md",
    "METHODS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "data/embedded/README.md",
    "tests/parity/README.md",
)
LINK = re.compile(
    r"^ *```.*?^ *```$|(?P<text>!?\[(?:[^][`]|`[^`]*`)*\])\((?!\w+:)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)|`[^`\n]*`",
    re.DOTALL | re.MULTILINE,
)
PICTURE = re.compile(r'<picture>\s*<source[^>]*srcset="(?P<dark>[^"]*)"[^>]*>\s*<img\s(?P<light>[^>]*)>\s*</picture>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside ``docs/`` and enter in the nav what it does not name."""
    root = Path(config.config_file_path).parent
    examples = sorted(path.relative_to(root).as_posix() for path in root.glob("examples/*/README.md"))
    pictures = [path.relative_to(root).as_posix() for path in root.glob("examples/*/*.[ps][nv]g")]
    for name in (*OUTSIDE, *examples, *pictures):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    named = set(_pages(config.nav))
    found = [file.src_uri for file in files.documentation_pages() if "/" not in file.src_uri]
    _section(config.nav, "How-to guides").extend(sorted(set(found) - named))
    _section(config.nav, "Examples").extend(examples)
    config.nav = [item for item in config.nav or [] if not isinstance(item, dict) or any(item.values())]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to pages, and show of a picture what fits the colours of the page."""
    root = Path(config.config_file_path).parent
    here = page.file.src_uri if page.file.generated_by else f"docs/{page.file.src_uri}"

    def led(match: re.Match[str]) -> str:
        if match["path"] is None:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match["path"]))
        name = target.removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            exists = (root / target).exists()
            return match["text"].removeprefix("!")[1:-1] if exists else match[0]
        path = posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        return f"{match['text']}({path}{match['anchor'] or ''})"

    return _reindented(LINK.sub(led, PICTURE.sub(_pictures, markdown)))


def _reindented(markdown: str) -> str:
    """Four columns for each list that a line is in, and a blank line before an item where only CommonMark needs none."""
    offsets, fence, loose, lines = [0], "", False, [""]
    for line in markdown.split("\n"):
        text = line.lstrip(" ")
        indent, depth = len(line) - len(text), len(offsets)
        if text and not fence:
            while indent < offsets[-1]:
                offsets.pop()
        item = None if fence or indent - offsets[-1] >= 4 else re.match(r"(?:[-*+]|\d+\.) +", text)
        if item and lines[-1] and (loose if depth > 1 else text[0] in "-*+"):
            lines.append("")
        lines.append(" " * (4 * (len(offsets) - 1) + max(indent - offsets[-1], 0)) + text if text else "")
        if mark := re.match("```+", text):
            fence = "" if fence else mark[0]
        if item:
            offsets.append(indent + len(item[0]))
            loose = False
        loose |= not text
    return "\n".join(lines[1:])


def _pictures(match: re.Match[str]) -> str:
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', match["light"]))
    sources = {"light": attributes["src"], "dark": match["dark"]}
    return "\n".join(f"![{attributes['alt']}]({path}#only-{theme})" for theme, path in sources.items())


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav or ()
    return [name for part in parts for name in _pages(part)]


def _section(nav: Any, title: str) -> list[Any]:
    section: list[Any] = next(item[title] for item in nav if isinstance(item, dict) and title in item)
    return section
