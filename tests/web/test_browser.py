"""The web page in a real browser, wide and narrow: it works, sends no request elsewhere, and is accessible."""

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from her2batch.store import reviews
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from tests.web.served import application, listening

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install '.[test]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install '.[test]'")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

expect = playwright.expect
expect.set_options(timeout=30_000)

WIDTHS = {"wide": (1440, 900), "narrow": (390, 844)}
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(cohort: Cohort) -> Iterator[str]:
    with listening(application(cohort.root, codes=("wide", "narrow"))) as url:
        yield url


def open_page(browser: playwright.Browser, address: str, name: str, scheme: str) -> tuple[playwright.Page, list[str]]:
    """Open the page by its one-time link. Return it with a list that collects its errors and foreign requests."""
    width, height = WIDTHS[name]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, problems = context.new_page(), []
    page.on("console", lambda one: problems.append(one.text) if one.type in ("error", "warning") else None)
    page.on("pageerror", lambda one: problems.append(str(one)))
    page.on("request", lambda one: problems.append(one.url) if not _is_local(one.url) else None)
    page.goto(f"{address}/?token={name}")
    page.wait_for_selector("tbody tr")
    assert page.url == f"{address}/"
    return page, problems


def _is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("blob", "data") or urlsplit(url).hostname == "127.0.0.1"


def accessibility_violations(page: playwright.Page) -> list[str]:
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in SERIOUS]


def column(page: playwright.Page, label: str) -> list[str]:
    return page.locator(f'tbody td[data-label="{label}"]').all_inner_texts()


def fits_width(page: playwright.Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def sort_and_filter(page: playwright.Page) -> str:
    """Sort the list by score and filter it. Return the slide that was opened by keyboard."""
    page.get_by_role("button", name="Score").click()
    expect(page.locator('th[aria-sort="ascending"]')).to_contain_text("Score")
    page.get_by_role("button", name="Score").click()
    expect(page.locator('th[aria-sort="descending"]')).to_contain_text("Score")
    scores = [float(one) for one in column(page, "Score") if one != "–"]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 3
    page.get_by_label("Predicted").select_option("3+")
    expect(page.locator('tbody td[data-label="Rule"]').last).to_have_text("3+")
    assert set(column(page, "Rule")) == {"3+"}
    link = page.locator("tbody th a").first
    slide_id = link.inner_text()
    link.focus()
    page.keyboard.press("Enter")
    return str(slide_id)


def zoom_in(page: playwright.Page) -> None:
    expect(page.locator("#scale span")).to_have_text(re.compile(r"^[\d.]+ mm$"))
    before = page.locator("#scale span").inner_text()
    with page.expect_response(re.compile(r"deepzoom_files/\d+/\d+_\d+\.jpg$")) as tile:
        for _ in range(4):
            page.get_by_role("button", name="Zoom in").click()
    assert tile.value.status == 200
    expect(page.locator("#scale span")).not_to_have_text(before)


def choose_overlays(page: playwright.Page) -> None:
    page.get_by_role("button", name="Whole slide").click()
    page.wait_for_timeout(600)
    clear = page.locator(".overlay").evaluate("canvas => canvas.toDataURL()")
    for choice in ("DAB, optical density", "Tissue outline", "Membrane: intense, complete"):
        page.get_by_label("Overlay").select_option(choice)
        assert page.locator(".overlay").evaluate("canvas => canvas.toDataURL()") != clear
        expect(page.locator("#legend")).not_to_be_empty()
    page.get_by_label("Opacity").fill("25")
    assert page.locator(".overlay").evaluate("canvas => canvas.style.opacity") == "0.25"


def enter_review(page: playwright.Page) -> None:
    page.get_by_label("Change to", exact=True).check()
    page.get_by_label("Class to change to").select_option("2+")
    page.get_by_label("Comment").fill("<img src=x onerror=alert(1)> rim only")
    page.get_by_label("Reviewer").fill("Dr. Who")
    page.get_by_role("button", name="Save verdict").click()
    expect(page.locator("#saved")).to_have_text("Saved as review 1.")
    expect(page.locator("#reviews")).to_contain_text("3+ → 2+")
    expect(page.locator("#reviews q")).to_have_text("<img src=x onerror=alert(1)> rim only")


@pytest.mark.parametrize(
    ("name", "scheme"), [("wide", "light"), pytest.param("narrow", "dark", marks=pytest.mark.slow)]
)
def test_list_viewer_and_review_work(
    browser: playwright.Browser, address: str, cohort: Cohort, name: str, scheme: str
) -> None:
    page, problems = open_page(browser, address, name, scheme)
    assert accessibility_violations(page) == []
    assert fits_width(page)
    slide_id = sort_and_filter(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(slide_id)
    zoom_in(page)
    choose_overlays(page)
    assert accessibility_violations(page) == []
    assert fits_width(page)
    enter_review(page)
    entry = reviews.read_reviews(cohort)[-1]
    assert (entry["slide_id"], entry["predicted"], entry["label"]) == (slide_id, "3+", "2+")
    assert list(verify_cohort(cohort)) == []
    page.get_by_role("link", name="All slides").click()
    page.get_by_label("Verdict").select_option("given")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert column(page, "Verdict") == ["changed to 2+"]
    page.get_by_role("link", name="API").click()
    page.wait_for_selector("section")
    assert accessibility_violations(page) == []
    assert problems == []
    page.context.close()


def test_sign_in_page_accepts_the_token(browser: playwright.Browser, address: str) -> None:
    from tests.web.served import TOKEN

    page = browser.new_page()
    page.goto(address)
    assert accessibility_violations(page) == []
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("tbody tr")
    page.close()


def test_slide_without_an_image_shows_the_reason(browser: playwright.Browser, address: str, cohort: Cohort) -> None:
    from her2batch.store.cohort import RETIRED, write_row

    done, failed = sorted(cohort.rows().values(), key=lambda one: one["slide_id"])[:2]
    write_row(cohort, {**done, "flags": [*done["flags"], RETIRED]})
    lost = dict.fromkeys(failed) | {"slide_id": failed["slide_id"], "status": "failed", "files": [], "flags": []}
    write_row(cohort, {**lost, "error_code": "no-mpp", "error": "x.svs: no resolution; pass --mpp-override"})
    page, problems = open_page(browser, address, "wide", "light")
    page.goto(f"{address}/#/slide/{failed['slide_id']}")
    expect(page.locator("#viewer")).to_contain_text("pass --mpp-override")
    with page.expect_response(re.compile(r"thumbnail\.jpg$")):
        page.goto(f"{address}/#/slide/{done['slide_id']}")
    assert problems == []
    page.context.close()
