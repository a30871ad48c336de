"""The report in a real browser: it asks for nothing, works by mouse and keys, and reads well to everybody."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from her2batch.reports import cohort_page as module
from her2batch.reports.cohort_page import write_report
from her2batch.store.cohort import Cohort

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")

SIZES = ((1440, "light"), (1440, "dark"), (390, "light"), (390, "dark"))
CORNERS = (SIZES[0], SIZES[3])
"""Each width and each scheme once."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def small(reported: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with the evidence of four slides inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", 100)
        return write_report(reported, tmp_path_factory.mktemp("small") / "report.html", pages=4).path


@pytest.fixture(scope="module")
def large(reported: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two pages of slides beside it."""
    return write_report(reported, tmp_path_factory.mktemp("large") / "report.html", pages=2).path


class Watched:
    """A page with everything that it asked for and complained about."""

    def __init__(self, browser: Browser, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("request", lambda one: self.asked.append(one.url) if not one.url.startswith("data:") else None)
        self.page.on("console", lambda one: self.said.append(one.text) if one.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda one: self.said.append(str(one)))
        self.page.goto(path.as_uri())


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_it_asks_for_nothing_complains_of_nothing_and_fits(
    browser: Browser, small: Path, width: int, scheme: str
) -> None:
    watched = Watched(browser, small, width, scheme)
    watched.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    watched.page.wait_for_timeout(200)
    assert watched.asked == [small.as_uri()]
    assert watched.said == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    watched.page.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [one if one in CORNERS else pytest.param(*one, marks=pytest.mark.slow) for one in SIZES]
)
def test_axe_finds_nothing_serious(browser: Browser, small: Path, width: int, scheme: str) -> None:
    watched = Watched(browser, small, width, scheme)
    watched.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = Axe().run(watched.page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    watched.page.close()


def column(page: Page, name: str, at: int) -> list[str]:
    return page.locator(f"#{name} tbody tr td:nth-child({at})").all_text_contents()


def test_a_list_sorts_and_filters_by_keys_alone(browser: Browser, small: Path) -> None:
    page = Watched(browser, small).page
    head = page.locator("#all thead th button", has_text="score")
    at = page.locator("#all thead th").all_text_contents().index("score") + 1
    head.focus()
    page.keyboard.press("Enter")
    up = [float(one) if one != "–" else math.inf for one in column(page, "all", at)]
    assert up == sorted(up)
    assert page.locator("#all th[aria-sort=ascending]").text_content() == "score"
    page.keyboard.press("Space")
    down = [float(one) if one != "–" else -math.inf for one in column(page, "all", at)]
    assert down == sorted(down, reverse=True)
    assert len(down) > 10
    page.locator("#all input[type=search]").focus()
    page.keyboard.type("north her2")
    sites = column(page, "all", 3)
    assert 0 < len(sites) < len(down)
    assert set(sites) == {"north"}
    assert page.locator("#all .where").text_content() == f"1–{len(sites)} of {len(sites)}"
    page.keyboard.type(" nothing like this")
    assert page.locator("#all .where").text_content() == "none"
    page.close()


def test_what_can_be_used_can_be_reached_by_tab_and_shows_its_focus(browser: Browser, small: Path) -> None:
    page = Watched(browser, small).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        one = "document.activeElement"
        seen.add(page.evaluate(f"{one}.tagName + '.' + {one}.className"))
        assert page.evaluate(f"getComputedStyle({one}).outlineStyle") != "none"
    assert {"A.", "BUTTON.sort", "INPUT.", "DIV.wide", "A.slide"} <= seen
    page.close()


def test_layers_change_and_fade(browser: Browser, small: Path) -> None:
    page = Watched(browser, small).page
    page.locator(".part#slides details summary").first.click()
    viewer = page.locator(".viewer").first
    shown = viewer.locator("image[data-layer]:not([hidden])")
    assert shown.count() == 1
    viewer.locator("input[type=range]").fill("20")
    assert shown.get_attribute("opacity") == "0.2"
    viewer.locator("input[value=faint]").check()
    assert shown.get_attribute("data-layer") == "faint"
    assert viewer.locator("p[data-layer]:not([hidden])").count() == 1
    viewer.locator("input[value='']").check()
    assert shown.count() == 0
    page.close()


def test_a_link_in_a_list_opens_the_evidence(browser: Browser, small: Path, large: Path) -> None:
    page = Watched(browser, small).page
    link = page.locator("#all a.slide").first
    name = link.text_content()
    link.click()
    assert page.locator(f"article[id='slide-{name}']").is_visible()
    page.close()
    watched = Watched(browser, large)
    watched.page.locator("#lists a.slide").first.click()
    watched.page.wait_for_load_state()
    assert watched.page.url.startswith((large.parent / "report_slides").as_uri())
    assert watched.page.locator(".viewer image").first.is_visible()
    assert watched.said == []
    watched.page.locator("header a").click()
    watched.page.wait_for_load_state()
    assert watched.page.url == large.as_uri()
    watched.page.close()


def test_a_page_of_a_slide_is_accessible_too(browser: Browser, large: Path) -> None:
    path = next((large.parent / "report_slides").iterdir())
    for width, scheme in CORNERS:
        watched = Watched(browser, path, width, scheme)
        found = Axe().run(watched.page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert watched.asked == [path.as_uri()]
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
        watched.page.close()


def test_it_prints(browser: Browser, small: Path) -> None:
    page = Watched(browser, small, scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page/") + pdf.count(b"/Type /Page ") >= 3
    assert page.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    page.close()


def test_without_scripts_the_first_rows_stand_there(browser: Browser, small: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(small.as_uri())
    assert page.locator("#all tbody tr").count() == 12
    assert page.locator("#all .tools").is_hidden()
    context.close()
