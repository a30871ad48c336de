"""The report in a real browser: no requests, usable by mouse and keyboard, accessible."""

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
"""Each width and each colour scheme once."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def small(reported: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that contains the evidence of four slides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_SLIDES_INLINE", 100)
        return write_report(reported, tmp_path_factory.mktemp("small") / "report.html", pages=4).path


@pytest.fixture(scope="module")
def large(reported: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two slide pages beside it."""
    return write_report(reported, tmp_path_factory.mktemp("large") / "report.html", pages=2).path


class ObservedPage:
    """An open page with its network requests and its console errors and warnings."""

    def __init__(self, browser: Browser, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("request", lambda one: self.requests.append(one.url) if not one.url.startswith("data:") else None)
        self.page.on(
            "console", lambda one: self.problems.append(one.text) if one.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda one: self.problems.append(str(one)))
        self.page.goto(path.as_uri())


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_report_sends_no_request_logs_no_error_and_fits_the_width(
    browser: Browser, small: Path, width: int, scheme: str
) -> None:
    observed = ObservedPage(browser, small, width, scheme)
    observed.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    observed.page.wait_for_timeout(200)
    assert observed.requests == [small.as_uri()]
    assert observed.problems == []
    assert observed.page.evaluate("document.documentElement.scrollWidth") <= width
    observed.page.close()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        *(pytest.param(*one, marks=pytest.mark.slow) for one in CORNERS),
        *(pytest.param(*one, marks=pytest.mark.long) for one in SIZES if one not in CORNERS),
    ],
)
def test_report_has_no_serious_accessibility_violation(browser: Browser, small: Path, width: int, scheme: str) -> None:
    observed = ObservedPage(browser, small, width, scheme)
    observed.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = Axe().run(observed.page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    observed.page.close()


def column(page: Page, name: str, at: int) -> list[str]:
    return page.locator(f"#{name} tbody tr td:nth-child({at})").all_text_contents()


@pytest.mark.slow
def test_table_sorts_and_filters_by_keyboard(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small).page
    head = page.locator("#worklist thead th button", has_text="score")
    at = page.locator("#worklist thead th").all_text_contents().index("score") + 1
    head.focus()
    page.keyboard.press("Enter")
    up = [float(one) if one != "–" else math.inf for one in column(page, "worklist", at)]
    assert up == sorted(up)
    assert page.locator("#worklist th[aria-sort=ascending]").text_content() == "score"
    page.keyboard.press("Space")
    down = [float(one) if one != "–" else -math.inf for one in column(page, "worklist", at)]
    assert down == sorted(down, reverse=True)
    assert len(down) > 10
    page.locator("#worklist input[type=search]").focus()
    page.keyboard.type("north")
    sites = column(page, "worklist", 9)
    assert 0 < len(sites) < len(down)
    assert set(sites) == {"north"}
    assert page.locator("#worklist .where").text_content() == f"1–{len(sites)} of {len(sites)}"
    page.keyboard.type(" nothing like this")
    assert page.locator("#worklist .where").text_content() == "none"
    page.close()


@pytest.mark.slow
def test_filters_show_the_slides_to_review(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small).page
    choice = page.locator("#worklist .filters label", has_text="to review")
    n = int(choice.locator("b").text_content())
    choice.click()
    assert len(column(page, "worklist", 1)) == n > 0
    assert all(one != "–" for one in column(page, "worklist", 3))
    page.close()


@pytest.mark.slow
def test_narrow_table_keeps_class_and_reasons_on_screen(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small, 390).page
    for kind in ("k-result", "k-reasons"):
        box = page.locator(f"#worklist tbody tr td.{kind}").first.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    page.close()


@pytest.mark.slow
def test_class_colours_survive_printing(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small).page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.swatch')).printColorAdjust") == "exact"
    page.close()


@pytest.mark.slow
def test_controls_are_reachable_by_tab_and_show_their_focus(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small).page
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


@pytest.mark.slow
def test_layer_and_opacity_can_be_changed(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small).page
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


@pytest.mark.slow
def test_link_in_a_table_opens_the_evidence(browser: Browser, small: Path, large: Path) -> None:
    page = ObservedPage(browser, small).page
    link = page.locator("#worklist a.slide").first
    name = link.text_content()
    link.click()
    assert page.locator(f"article[id='slide-{name}']").is_visible()
    page.close()
    observed = ObservedPage(browser, large)
    observed.page.locator("#worklist a.slide").first.click()
    observed.page.wait_for_load_state()
    assert observed.page.url.startswith((large.parent / "report_slides").as_uri())
    assert observed.page.locator(".viewer image").first.is_visible()
    assert observed.problems == []
    observed.page.locator("header a").click()
    observed.page.wait_for_load_state()
    assert observed.page.url == large.as_uri()
    observed.page.close()


@pytest.mark.slow
def test_slide_page_has_no_serious_accessibility_violation(browser: Browser, large: Path) -> None:
    path = next((large.parent / "report_slides").iterdir())
    for width, scheme in CORNERS:
        observed = ObservedPage(browser, path, width, scheme)
        found = Axe().run(observed.page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert observed.requests == [path.as_uri()]
        assert observed.page.evaluate("document.documentElement.scrollWidth") <= width
        observed.page.close()


@pytest.mark.slow
def test_report_prints_in_light_mode_with_all_details(browser: Browser, small: Path) -> None:
    page = ObservedPage(browser, small, scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page/") + pdf.count(b"/Type /Page ") >= 3
    assert page.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    page.close()


@pytest.mark.slow
def test_first_rows_are_shown_without_scripts(browser: Browser, small: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(small.as_uri())
    assert page.locator("#worklist tbody tr").count() == 12
    assert page.locator("#worklist .tools").is_hidden()
    context.close()


@pytest.mark.slow
def test_pictures_survive_printing(browser: Browser, large: Path) -> None:
    """Pictures further down than the screen are decoded too: none waits until it is scrolled to."""
    path = next((large.parent / "report_slides").iterdir())
    page = ObservedPage(browser, path).page
    page.emulate_media(media="print")
    assert page.locator("img").count() > 0
    page.evaluate("Promise.all([...document.images].map((one) => one.decode()))")
    assert page.evaluate("[...document.images].every((one) => one.loading !== 'lazy')")
    page.close()
