"""The page as a pathologist uses it, in a real browser, wide and narrow: it works, asks no other machine, excludes
nobody."""

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


def opened(browser: playwright.Browser, address: str, name: str, scheme: str) -> tuple[playwright.Page, list[str]]:
    """The page, come in by its link; and what goes wrong on it, as it does."""
    width, height = WIDTHS[name]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("console", lambda one: wrong.append(one.text) if one.type in ("error", "warning") else None)
    page.on("pageerror", lambda one: wrong.append(str(one)))
    page.on("request", lambda one: wrong.append(one.url) if not _ours(one.url) else None)
    page.goto(f"{address}/?token={name}")
    page.wait_for_selector("tbody tr")
    assert page.url == f"{address}/"
    return page, wrong


def _ours(url: str) -> bool:
    return urlsplit(url).scheme in ("blob", "data") or urlsplit(url).hostname == "127.0.0.1"


def barriers(page: playwright.Page) -> list[str]:
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in SERIOUS]


def column(page: playwright.Page, label: str) -> list[str]:
    return page.locator(f'tbody td[data-label="{label}"]').all_inner_texts()


def fits(page: playwright.Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def sorted_and_filtered(page: playwright.Page) -> str:
    """The list, sorted by score and filtered; returns the slide that was opened by the keyboard."""
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


def zoomed(page: playwright.Page) -> None:
    expect(page.locator("#scale span")).to_have_text(re.compile(r"^[\d.]+ mm$"))
    before = page.locator("#scale span").inner_text()
    with page.expect_response(re.compile(r"deepzoom_files/\d+/\d+_\d+\.jpg$")) as tile:
        for _ in range(4):
            page.get_by_role("button", name="Zoom in").click()
    assert tile.value.status == 200
    expect(page.locator("#scale span")).not_to_have_text(before)


def overlaid(page: playwright.Page) -> None:
    page.get_by_role("button", name="Whole slide").click()
    page.wait_for_timeout(600)
    clear = page.locator(".overlay").evaluate("canvas => canvas.toDataURL()")
    for choice in ("DAB, optical density", "Tissue outline", "Membrane: intense, complete"):
        page.get_by_label("Overlay").select_option(choice)
        assert page.locator(".overlay").evaluate("canvas => canvas.toDataURL()") != clear
        expect(page.locator("#legend")).not_to_be_empty()
    page.get_by_label("Opacity").fill("25")
    assert page.locator(".overlay").evaluate("canvas => canvas.style.opacity") == "0.25"


def judged(page: playwright.Page) -> None:
    page.get_by_label("Change to", exact=True).check()
    page.get_by_label("Class to change to").select_option("2+")
    page.get_by_label("Comment").fill("<img src=x onerror=alert(1)> rim only")
    page.get_by_label("Reviewer").fill("Dr. Who")
    page.get_by_role("button", name="Save verdict").click()
    expect(page.locator("#saved")).to_have_text("Saved as review 1.")
    expect(page.locator("#reviews")).to_contain_text("3+ → 2+")
    expect(page.locator("#reviews q")).to_have_text("<img src=x onerror=alert(1)> rim only")


@pytest.mark.parametrize(("name", "scheme"), [("wide", "light"), ("narrow", "dark")])
def test_the_page_works(browser: playwright.Browser, address: str, cohort: Cohort, name: str, scheme: str) -> None:
    page, wrong = opened(browser, address, name, scheme)
    assert barriers(page) == []
    assert fits(page)
    slide_id = sorted_and_filtered(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(slide_id)
    zoomed(page)
    overlaid(page)
    assert barriers(page) == []
    assert fits(page)
    judged(page)
    entry = reviews.read_reviews(cohort)[-1]
    assert (entry["slide_id"], entry["predicted"], entry["label"]) == (slide_id, "3+", "2+")
    assert list(verify_cohort(cohort)) == []
    page.get_by_role("link", name="All slides").click()
    page.get_by_label("Verdict").select_option("given")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert column(page, "Verdict") == ["changed to 2+"]
    page.get_by_role("link", name="API").click()
    page.wait_for_selector("section")
    assert barriers(page) == []
    assert wrong == []
    page.context.close()


def test_the_door_asks_for_the_token(browser: playwright.Browser, address: str) -> None:
    from tests.web.served import TOKEN

    page = browser.new_page()
    page.goto(address)
    assert barriers(page) == []
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Come in").click()
    page.wait_for_selector("tbody tr")
    page.close()


def test_a_slide_without_a_picture_says_why(browser: playwright.Browser, address: str, cohort: Cohort) -> None:
    from her2batch.store.cohort import RETIRED, write_row

    done, failed = sorted(cohort.rows().values(), key=lambda one: one["slide_id"])[:2]
    write_row(cohort, {**done, "flags": [*done["flags"], RETIRED]})
    lost = dict.fromkeys(failed) | {"slide_id": failed["slide_id"], "status": "failed", "files": [], "flags": []}
    write_row(cohort, {**lost, "error_code": "no-mpp", "error": "x.svs: no resolution; pass --mpp-override"})
    page, wrong = opened(browser, address, "wide", "light")
    page.goto(f"{address}/#/slide/{failed['slide_id']}")
    expect(page.locator("#viewer")).to_contain_text("pass --mpp-override")
    with page.expect_response(re.compile(r"thumbnail\.jpg$")):
        page.goto(f"{address}/#/slide/{done['slide_id']}")
    assert wrong == []
    page.context.close()
