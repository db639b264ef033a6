"""The page in a real browser: a headless Chromium, driven by Playwright, without a network.

`make browser` installs Chromium where there is none. Without it these tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedprune.studies.report import write_report

from .curved_outcomes import PERPLEXITY, outcome, study

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: Without the last ones a browser asks its maker for this and that, and waits where there is no network.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 700}
EVIL = "</script><script>document.title='run'</script><b>bold</b> \"quoted\" %{x} &amp;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all these tests, which ends with them: Playwright holds the event loop meanwhile."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        assert "CI" not in os.environ, "CI needs a browser: make browser"
        pytest.skip("there is no Chromium; `make browser` installs it")
    with sync_api.sync_playwright() as playwright:
        # Each context has a new and empty profile.
        opened = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield opened
        opened.close()


class Opened:
    """A page that is open, and what it asked for and complained about."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())

    def groups(self) -> dict[str, set[str]]:
        """Return the names of the groups that each plot shows, by the plot."""
        shown = self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) => [
                plot.dataset.plot ?? plot.dataset.choice,
                plot.data.filter((trace) => trace.meta?.group !== undefined)
                    .map((trace) => trace.name ?? "band"),
            ]))"""
        )
        return {plot: set(names) - {"band"} for plot, names in shown.items()}

    def colour(self, selector: str, property: str = "color") -> list[int]:
        """Return a colour as red, green and blue."""
        text = self.page.locator(selector).first.evaluate(
            "(element, property) => getComputedStyle(element)[property]", property
        )
        return [int(number) for number in re.findall(r"\d+", text)[:3]]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Write a report and open it from disk, offline."""
    contexts = []

    def opened(
        outcomes: Any, *, viewport: Any = WIDE, scheme: str = "light", script: str = "", **options: Any
    ) -> Opened:
        path = write_report(outcomes, tmp_path / "report.html", **{"title": "A study"} | options)
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        if script:
            page.add_init_script(script)
        shown = Opened(page, path)
        if not script:
            page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return shown

    yield opened
    for context in contexts:
        context.close()


def test_it_loads_without_complaint_and_asks_for_nothing(open_page):
    shown = open_page(study(), reference="FedAvg", target=0.5)
    assert shown.complaints == []
    assert shown.requests == [shown.page.url]
    assert shown.page.url.startswith("file://")
    drawn = shown.page.locator(".plot .main-svg")
    assert drawn.count() >= 10
    every = {
        "FedAvg",
        *(f"{name}, density {density}" for name in ("FedTiny", "Static") for density in (0.1, 0.5)),
    }
    groups = shown.groups()
    assert groups["curves"] == groups["pareto-flops"] == groups["device-cost"] == every


def test_hovering_shows_group_seed_and_values(open_page):
    shown = open_page([outcome("A", 0.1, 3), outcome("B", 0.5, 4)])
    plot = shown.page.locator('.plot[data-plot="pareto-flops"]')
    point = plot.locator("path.point").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = plot.locator(".hoverlayer .hovertext")
    label.wait_for()
    text = label.text_content()
    assert "B, density 0.5, seed 4" in text
    assert "FLOPs: 3.5 GFLOP" in text
    assert f"accuracy: {outcome('B', 0.5, 4).summary['final_accuracy']:.2%}" in text


def test_a_filter_holds_for_all_plots(open_page):
    shown = open_page(study())
    form = shown.page.get_by_role("form")
    form.get_by_label("Static").uncheck()
    assert all(not any(name.startswith("Static") for name in names) for names in shown.groups().values())
    assert shown.page.locator("#shown").text_content() == "3 of 5 groups shown in the plots"
    form.get_by_label("0.1", exact=True).uncheck()
    groups = shown.groups()
    assert groups["curves"] == groups["pareto-bytes"] == {"FedAvg", "FedTiny, density 0.5"}
    choice = shown.page.get_by_label("Group", exact=True)
    assert choice.locator("option:checked").text_content() == "FedTiny, density 0.5"
    assert choice.locator("option[disabled]").count() == 3
    legend = shown.page.locator("ul.legend[data-of=groups]").first.locator("li")
    assert legend.all_text_contents() == ["FedAvg", "FedTiny, density 0.5"]
    shown.page.get_by_role("button", name="Show all").click()
    shown.page.wait_for_function("document.getElementById('shown').textContent.startsWith('5 of 5')")
    assert len(shown.groups()["curves"]) == 5
    assert shown.complaints == []


def test_layers_and_devices_follow_their_choice(open_page):
    shown = open_page(study())
    data = "(element) => element.data.map((trace) => [trace.name, trace.y[0]])"
    layers = shown.page.locator('.plot[data-choice="density-group"]')
    shown.page.get_by_label("Group", exact=True).select_option(label="Static, density 0.5")
    assert dict(layers.evaluate(data))["all prunable weights"] == 0.5
    table = shown.page.locator("#density-table")
    assert table.locator("tbody tr").count() == 4
    cells = table.locator("tbody tr").first.locator("td").all_text_contents()
    assert set(cells) == {"50%"}  # Between the two points of a straight line, too.
    assert len(cells) == 7
    devices = shown.page.locator('.plot[data-choice="device-cost"]')
    before = devices.evaluate(data)
    shown.page.get_by_label("Cost", exact=True).select_option(label="FLOPs")
    assert devices.evaluate(data) != before


def test_the_keyboard_reaches_filters_and_shows_where_it_is(open_page):
    shown = open_page(study())
    focused = "document.activeElement"
    shown.page.keyboard.press("Tab")
    assert shown.page.evaluate(f"{focused}.className") == "skip"
    assert shown.page.evaluate(f"{focused}.getBoundingClientRect().left >= 0")
    for _ in range(60):
        shown.page.keyboard.press("Tab")
        assert shown.page.evaluate(f"getComputedStyle({focused}).outlineStyle") != "none"
        if shown.page.evaluate(f"{focused}.value") == "FedTiny":
            break
    shown.page.keyboard.press("Space")
    assert all("FedTiny, density 0.1" not in names for names in shown.groups().values())


def test_dark_by_the_system_or_by_choice(open_page):
    shown = open_page(study(), scheme="dark")
    axis = ".plot .xtitle"
    assert max(shown.colour("body", "backgroundColor")) < 60
    assert min(shown.colour(axis, "fill")) > 200
    shown.page.get_by_label("Theme").select_option("light")
    assert min(shown.colour("body", "backgroundColor")) > 200
    assert max(shown.colour(axis, "fill")) < 60
    shown.page.reload()
    shown.page.wait_for_selector("html[data-drawn]")
    assert min(shown.colour("body", "backgroundColor")) > 200


def test_paper_is_light_and_no_plot_is_cut(open_page):
    shown = open_page(study(), scheme="dark")
    shown.page.evaluate(
        """() => addEventListener("beforeprint", () => { window.printed = {
            body: getComputedStyle(document.body).backgroundColor,
            axis: getComputedStyle(document.querySelector(".plot .xtitle")).fill,
            page: document.body.getBoundingClientRect().width,
            plots: [...document.querySelectorAll(".plot")].map((plot) => {
                const place = plot.getBoundingClientRect();
                const drawn = plot.querySelector(".main-svg").getBoundingClientRect();
                return [place.width, drawn.width, place.height, drawn.height];
            }),
        }; })"""
    )
    paper = shown.page.pdf(prefer_css_page_size=True)
    assert paper.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 4
    printed = shown.page.evaluate("window.printed")
    assert printed["body"] == "rgb(255, 255, 255)"
    assert printed["axis"] != "rgb(230, 234, 238)"
    assert printed["page"] <= 960  # Letter and A4 across, less margins, have this many CSS pixels.
    for width, drawn_width, height, drawn_height in printed["plots"]:
        assert drawn_width == pytest.approx(width, abs=1)
        assert drawn_height == pytest.approx(height, abs=1)
    assert max(shown.colour("body", "backgroundColor")) < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(open_page, scheme):
    shown = open_page(study(), scheme=scheme, reference="FedAvg", target=0.5, refresh=600, progress="1 of 2")
    shown.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = axe.Axe().run(shown.page).response["violations"]
    assert [(fault["id"], [node["html"][:120] for node in fault["nodes"][:3]]) for fault in found] == []


def test_a_phone_needs_no_sideways_scrolling(open_page):
    shown = open_page(study(), viewport=PHONE)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_names_run_nothing(open_page):
    shown = open_page([outcome(EVIL, 0.1, seed) for seed in range(2)], title=EVIL)
    assert shown.page.title() == EVIL
    assert shown.page.locator("ul.legend li").first.text_content() == f"{EVIL}, density 0.1"
    point = shown.page.locator('.plot[data-plot="pareto-flops"] path.point').last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = shown.page.locator('.plot[data-plot="pareto-flops"] .hoverlayer .hovertext')
    label.wait_for()
    assert "</script><script>" in label.text_content()
    assert "<b>bold</b>" in label.text_content()
    assert shown.complaints == []


def test_it_reloads_until_told_to_stay(open_page):
    shown = open_page(study(), refresh=3, progress="1 of 2 runs")
    static, follow = (
        shown.page.get_by_role("checkbox", name=name) for name in ("Static", "Reload every 3 s")
    )
    static.uncheck()
    shown.page.evaluate("window.old = true")
    shown.page.wait_for_function(
        "window.old === undefined && document.documentElement.dataset.drawn", timeout=60_000
    )
    assert not static.is_checked()
    follow.uncheck()
    shown.page.evaluate("window.old = true")
    shown.page.wait_for_timeout(4500)
    assert shown.page.evaluate("window.old")
    assert not follow.is_checked()


def test_an_old_browser_has_the_tables(open_page):
    shown = open_page(study(), script="delete window.DecompressionStream")
    shown.page.get_by_text("This browser cannot draw the plots").first.wait_for()
    assert shown.page.get_by_role("table").first.is_visible()
    assert shown.complaints == []


def test_a_metric_of_which_less_is_better(open_page):
    shown = open_page(study(metric=PERPLEXITY))
    title = shown.page.locator('.plot[data-plot="curves"] .ytitle').text_content()
    assert title == "perplexity"
    assert shown.complaints == []
