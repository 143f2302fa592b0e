"""The page in a browser: headless Chromium, driven by playwright (extra ``browser``)."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_files import write_other_run, write_plane, write_run

from dynarep.pipeline.report import ReportConfig, build_report

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'dynarep[browser]'")
CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's own Chromium, or one that is installed."""
    installed = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with playwright.sync_playwright() as drivers:
        own = Path(drivers.chromium.executable_path).exists()
        if not own and installed is None:
            pytest.skip("no Chromium: python -m playwright install chromium, or install one")
        browser = drivers.chromium.launch(executable_path=None if own else installed, chromium_sandbox=os.getuid() != 0)
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open the report with options of a browser context; whatever the page complains of fails the test."""
    path = tmp_path / "index.html"
    write_run(tmp_path / "artifacts")
    write_plane(tmp_path / "artifacts")
    write_other_run(tmp_path / "artifacts")
    path.write_text(build_report(ReportConfig(title="Hopper", compare="before"), tmp_path / "artifacts"))
    complaints: list[str] = []

    def open_page(**options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("data:", "file:")) or complaints.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert complaints == []


WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_are_present_and_nothing_overflows(opened: Open, size: dict[str, int], theme: str) -> None:
    page = opened(viewport=size, color_scheme=theme)
    images = page.locator("img").all()
    assert len(images) == 3 + 6  # films, strips
    assert all(image.evaluate("image => image.complete && image.naturalWidth > 0") for image in images)
    plots = page.locator("svg").all()
    assert len(plots) >= 20
    for plot in plots:
        if plot.is_visible():
            box = plot.bounding_box()
            assert box["width"] > 100
            assert box["height"] > 50
            assert box["x"] + box["width"] <= size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_until_it_is_chosen(opened: Open) -> None:
    page = opened(color_scheme="dark")
    dark = background(page)
    page.emulate_media(color_scheme="light")
    light = background(page)
    assert light == "rgb(255, 255, 255)" != dark
    text = page.locator("svg.plot text").first
    ink = text.evaluate("text => getComputedStyle(text).fill")
    page.get_by_label("Dark").check(force=True)
    assert background(page) == dark
    assert text.evaluate("text => getComputedStyle(text).fill") != ink
    page.reload()
    assert background(page) == dark  # the choice is kept
    page.get_by_label("System").check(force=True)
    assert background(page) == light


def test_the_episode_slider_takes_arrow_keys(opened: Open) -> None:
    page = opened()
    slider = page.get_by_label("Episode", exact=True)
    assert page.locator(".item:visible").count() == 1
    assert "agent-1, 700 steps" in page.locator("output[for=episode]").inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".item:visible").get_attribute("data-label").startswith("1 of 2: agent-0")
    assert "agent-0, 40 steps" in page.locator("output[for=episode]").inner_text()
    assert slider.get_attribute("aria-valuetext").startswith("1 of 2: agent-0")


def shift(page: Any, film: int) -> float:
    """How many frames a film is moved up."""
    screen = page.locator(".film").nth(film)
    moved = screen.evaluate(
        "film => film.querySelector('.screen').getBoundingClientRect().top - "
        "film.querySelector('img').getBoundingClientRect().top"
    )
    return float(moved) / float(screen.locator(".screen").bounding_box()["height"])


def test_films_share_a_clock_and_stop_at_their_end(opened: Open) -> None:
    page = opened(reduced_motion="reduce")
    page.locator("#film").scroll_into_view_if_needed()
    page.locator("#film").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("output[for=film]").inner_text() == "0.40 s"
    assert [shift(page, film) for film in range(3)] == pytest.approx([5, 5, 2], abs=0.05)  # bc has three frames
    page.get_by_role("button", name="Play").click()
    playwright.expect(page.locator("#film")).to_have_value("11", timeout=10_000)
    page.get_by_role("button", name="Play").wait_for()
    assert [shift(page, film) for film in range(3)] == pytest.approx([11, 11, 2], abs=0.05)


def test_films_start_before_one_scrolls_where_motion_is_welcome(opened: Open) -> None:
    page = opened(reduced_motion="no-preference")
    playwright.expect(page.locator("#film")).to_have_value("11", timeout=10_000)
    playwright.expect(page.locator("#film")).to_have_value("3", timeout=10_000)  # again from the start
    assert page.evaluate("scrollY") == 0
    page.get_by_role("button", name="Pause").click()
    stopped = page.locator("#film").input_value()
    page.wait_for_timeout(500)
    assert page.locator("#film").input_value() == stopped
    still = opened(reduced_motion="reduce")
    still.locator(".screens").scroll_into_view_if_needed()
    still.wait_for_timeout(500)
    assert still.locator("#film").input_value() == "0"


def test_the_keyboard_reaches_every_control(opened: Open) -> None:
    page = opened(reduced_motion="reduce")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || "
                "document.activeElement.textContent.trim() || document.activeElement.tagName"
            )
        )
    assert {"theme", "film", "episode", "Play", "Skip to the scores", "Scores"} <= reached
    assert any(name.startswith("pretrain/dynamics") for name in reached)  # folded parts, too


def test_without_scripts_everything_is_there(opened: Open) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(".item").count() == 2
    assert all(item.is_visible() for item in page.locator(".item").all())
    assert not page.locator("#episode").is_visible()
    assert not page.locator("#film").is_visible()
    assert page.locator(".film").first.is_visible()


def test_a_table_that_is_too_wide_says_so(opened: Open) -> None:
    def hint(page: Any) -> str:
        shown = page.locator("#scores .scroll").evaluate("box => getComputedStyle(box, '::before').content")
        return str(shown)

    page = opened(viewport=NARROW)
    assert "more columns to the right" in hint(page)
    page.locator("#scores .scroll").evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    page.wait_for_timeout(300)
    assert "more columns to the left" in hint(page)
    assert hint(opened(viewport={"width": 2400, "height": 900})) == "none"


def test_a_wide_page_uses_its_right_side(opened: Open) -> None:
    page = opened(viewport={"width": 1680, "height": 1000})
    side = page.locator(".first .side").bounding_box()
    assert side["x"] > 800
    assert side["x"] + side["width"] > 1550
    assert side["y"] < 300
    phone = opened(viewport=NARROW).locator(".first .side").bounding_box()
    assert phone["x"] < 30  # below, not beside
