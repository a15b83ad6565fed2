"""The report in a real browser: headless Chromium, at phone and desktop size, in light and dark mode."""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from headstart.results import figures
from headstart.results.comparison import Estimate
from headstart.results.overview import LabelFactor
from headstart.results.page import render_figures, render_html, render_overview_html

from . import test_networks, test_studies
from .conftest import ROOT
from .studies import study
from .test_issues import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = files("axe_playwright_python").joinpath("axe.min.js")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; as root without its sandbox, which root cannot use."""
    is_root = os.name == "posix" and os.geteuid() == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if is_root else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def few_classes(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_html(study(), render_figures(study())), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory) -> Path:
    content = study([f"class {number}" for number in range(100)], color=True)
    skipped_files = {f"class 1/{number}.jpg": "is empty" for number in range(9)}
    rows = [dataclasses.replace(row, metrics={**row.metrics, "balanced_accuracy": 0.5, "macro_f1": 0.5})
            for row in content.rows]  # fmt: skip
    content = dataclasses.replace(content, skipped_files=skipped_files, rows=rows, issues=report())
    path = tmp_path_factory.mktemp("many") / "index.html"
    path.write_text(render_html(content, render_figures(content)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "networks.html"
    path.write_text(test_networks.html(test_networks.ranking(), resnet="cannot download it"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    factor = LabelFactor(500, Estimate(3.3, 2.0, math.inf))
    rows = [test_studies.study("first"), test_studies.study("second", label_factor=factor)]
    path = tmp_path_factory.mktemp("studies") / "studies.html"
    path.write_text(render_overview_html(rows, figures.as_svg(figures.forest, rows)), encoding="utf-8")
    return path


@pytest.fixture(params=["few_classes", "many_classes", "networks", "studies", "last_study"])
def file(request) -> Path:
    """Pages of random numbers, and the report of the last `make study`."""
    if request.param != "last_study":
        return request.getfixturevalue(request.param)
    if not (path := ROOT / "report/quick/index.html").exists():
        pytest.skip("`make study` has not been run")
    return path


def open_page(browser: Browser, file: Path, *, width: int, scheme: str) -> tuple[Page, list[str]]:
    """Open the page; return it with its requests, console messages and errors."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, events = context.new_page(), []
    page.on("request", lambda request: events.append(request.url))
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.goto(file.as_uri())
    return page, events


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_report_makes_no_requests_and_is_accessible(browser, file, width, scheme):
    page, events = open_page(browser, file, width=width, scheme=scheme)
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
    assert [(violation["id"], violation["nodes"][0]["html"][:200]) for violation in results["violations"]] == []
    page.context.close()


def test_keyboard_navigation(browser, few_classes):
    page, _ = open_page(browser, few_classes, width=1280, scheme="light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#table"
    page.context.close()


def test_print_is_dark_on_white(browser, few_classes):
    page, _ = open_page(browser, few_classes, width=1280, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.context.close()
