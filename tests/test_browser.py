"""The page in a real browser: Chromium, without a head, at phone and desktop size, light and dark."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from headstart.results import report

from .conftest import ROOT
from .studies import study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = files("axe_playwright_python").joinpath("axe.min.js")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; as root it runs without its sandbox, which wants another user."""
    root = os.name == "posix" and os.geteuid() == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(report.render_html(study(), report.render_figures(study())), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    content = study([f"class {number}" for number in range(100)], color=True)
    skipped_files = {f"class 1/{number}.jpg": "is empty" for number in range(9)}
    rows = [dataclasses.replace(row, metrics={**row.metrics, "balanced_accuracy": 0.5, "macro_f1": 0.5})
            for row in content.rows]  # fmt: skip
    content = dataclasses.replace(content, skipped_files=skipped_files, rows=rows)
    path = tmp_path_factory.mktemp("many") / "index.html"
    path.write_text(report.render_html(content, report.render_figures(content)), encoding="utf-8")
    return path


@pytest.fixture(params=["made", "many", "real"])
def file(request) -> Path:
    """Pages of random numbers, of few classes and of many, and that of the last `make study`."""
    if request.param != "real":
        return request.getfixturevalue(request.param)
    if not (real := ROOT / "report/quick/index.html").exists():
        pytest.skip("`make study` has not been run here")
    return real


def opened(browser: Browser, file: Path, *, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page, and what it has requested and complained of."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, events = context.new_page(), []
    page.on("request", lambda request: events.append(request.url))
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.goto(file.as_uri())
    return page, events


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_the_page(browser, file, width, scheme):
    page, events = opened(browser, file, width=width, scheme=scheme)
    assert events == [file.as_uri()]  # one request, no error
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.alt)")
    assert page.evaluate("[...document.querySelectorAll('svg')].every(svg => svg.getAttribute('aria-label'))")
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.querySelector('th[scope=col]'))")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 34)"
    assert dark == (scheme == "dark")
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    results = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})")
    assert len(results["passes"]) > 20
    assert [(found["id"], found["nodes"][0]["html"][:200]) for found in results["violations"]] == []
    page.context.close()


def test_the_page_by_keyboard(browser, made):
    page, _ = opened(browser, made, width=1280, scheme="light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#table"
    page.context.close()


def test_the_page_on_paper_is_dark_on_white(browser, made):
    page, _ = opened(browser, made, width=1280, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.context.close()
