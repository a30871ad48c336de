"""The web page in a real browser, wide and narrow: it works, sends no request elsewhere, and is accessible."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from her2batch.store import reviews
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from tests.reports.pdf_pictures import is_blank, shown_pictures
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
    page.locator("[name=result]").select_option("3+")
    expect(page.locator('tbody td[data-label="Result"]').last).to_contain_text("3+")
    assert {one.split()[0] for one in column(page, "Result")} == {"3+"}
    link = page.locator("tbody th a").first
    slide_id = link.inner_text()
    link.focus()
    page.keyboard.press("Enter")
    return str(slide_id)


def zoom_in(page: playwright.Page) -> None:
    expect(page.locator("#scale span")).to_have_text(re.compile(r"^[\d.]+ µm$"))
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
    """Enter a verdict by mouse, then supersede it with a reason."""
    assert page.locator("#choices input:checked").count() == 0
    page.get_by_role("button", name="Save").click()  # nothing is chosen: the browser asks for a choice
    page.locator("#choices label", has_text="0").first.click()
    page.get_by_label("Comment").fill("<img src=x onerror=alert(1)> rim only")
    page.get_by_label("Reviewer").fill("Dr. Who")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#saved")).to_contain_text("Saved as review 1.")
    expect(page.locator("#reviews")).to_contain_text("3+ → 0")
    expect(page.locator("#reviews q")).to_have_text("<img src=x onerror=alert(1)> rim only")
    page.get_by_role("button", name="Replace review 1").click()
    page.locator("#choices label", has_text="2+").click()
    page.get_by_label("Comment").fill("wrong key")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#saved")).to_contain_text("Saved as review 2.")
    expect(page.locator("#reviews .superseded")).to_contain_text("replaced by review 2")
    expect(page.locator("#result")).to_contain_text("decided")


def measure_and_magnify(page: playwright.Page) -> None:
    """At 40× a screen px is 0.25 µm: a drag of 200 px measures 50 µm."""
    page.get_by_role("button", name="40×").click()
    expect(page.get_by_role("button", name="40×")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Ruler").click()
    box = page.locator("#viewer").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 60, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 200, steps=4)
    page.mouse.up()
    expect(page.locator("#measured")).to_have_text(re.compile(r"^(49|50|51)(\.\d)? µm$"))
    page.get_by_role("button", name="Ruler").click()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), [("wide", "light"), ("narrow", "dark")])
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
    measure_and_magnify(page)
    assert accessibility_violations(page) == []
    assert fits_width(page)
    enter_review(page)
    entry = reviews.read_reviews(cohort)[-1]
    assert (entry["slide_id"], entry["predicted"], entry["label"]) == (slide_id, "3+", "2+")
    assert list(verify_cohort(cohort)) == []
    page.get_by_role("link", name="Worklist").click()
    page.locator("[name=result]").select_option("")
    page.locator("#views label", has_text="Decided").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    assert column(page, "Verdict") == ["changed to 2+, Dr. Who"]
    page.get_by_role("link", name="API").click()
    page.wait_for_selector("section")
    assert accessibility_violations(page) == []
    assert problems == []
    page.context.close()


@pytest.mark.slow
def test_every_slide_for_review_is_decided_by_keyboard_alone(
    browser: playwright.Browser, address: str, cohort: Cohort
) -> None:
    """From the list to the last verdict: 1 key a class, Enter, N. The name is typed once."""
    page, problems = open_page(browser, address, "wide", "light")
    asked = int(page.locator("[data-state=review]").inner_text())
    assert asked >= 3
    page.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#choices label").first).to_be_visible()
    for key in ("#choices", "#result", "#reasons li", "#verdict button.main"):
        box = page.locator(key).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 900, key  # without scrolling
    page.get_by_label("Reviewer").focus()
    page.keyboard.type("Dr. Who")
    page.locator("#main").focus()
    for k in range(asked):
        assert page.locator("#choices input:checked").count() == 0
        page.keyboard.press(str(k % 4))
        page.keyboard.press("Enter")
        expect(page.locator("#saved")).to_contain_text(f"Saved as review {k + 1}.")
        title = page.title()
        page.keyboard.press("n")
        expect(page).not_to_have_title(title)
        expect(page.locator("#result .score")).to_be_visible()
    page.get_by_role("link", name="Worklist").click()
    expect(page.locator("[data-state=review]")).to_have_text("0")
    expect(page.locator("[data-state=decided]")).to_have_text(str(asked))
    assert len(reviews.read_reviews(cohort)) == asked
    assert problems == []
    page.context.close()


@pytest.mark.slow
def test_2_plus_without_ish_shows_no_definite_class(browser: playwright.Browser, address: str, cohort: Cohort) -> None:
    cohort.labels.unlink()
    page, _ = open_page(browser, address, "wide", "light")
    page.locator("#views label", has_text="ISH needed").click()
    expect(page.locator("tbody tr td[data-label=Result]").first).to_contain_text("equivocal, ISH needed")
    open_slides = page.locator("tbody a").all_inner_texts()
    assert open_slides
    for slide_id in open_slides[:2]:
        page.goto(f"{address}/#/slide/{slide_id}")
        expect(page.locator("#result")).to_contain_text("equivocal, ISH needed")
        words = page.locator("main").inner_text().partition("Other slides of the case")[0].lower().split()
        assert not {"negative", "positive", "low", "high"} & {word.strip(".,:;()") for word in words}
        assert page.locator("#derived .hanging").count() == 2
    page.context.close()


@pytest.mark.slow
def test_quality_flags_stand_as_a_banner(browser: playwright.Browser, address: str, cohort: Cohort) -> None:
    flagged = next(
        one for one, row in sorted(cohort.rows().items()) if "pen" in row["flags"] and row["stain"] == "her2"
    )
    page, _ = open_page(browser, address, "wide", "light")
    page.goto(f"{address}/#/slide/{flagged}")
    expect(page.locator("#banner")).to_have_text("Look at the image first: pen ink on the slide.")
    expect(page.locator("#result")).to_contain_text("to review")
    page.context.close()


@pytest.mark.slow
def test_page_and_report_link_each_other(browser: playwright.Browser, address: str, cohort: Cohort) -> None:
    from her2batch.reports.cohort_page import write_report

    write_report(cohort, cohort.root / "report.html", pages=1)
    slide_id = next((cohort.root / "report_slides").iterdir()).stem
    page, problems = open_page(browser, address, "wide", "light")
    page.goto(f"{address}/#/slide/{slide_id}")
    page.get_by_role("link", name="In the report").click()
    expect(page.locator("article h1")).to_have_text(slide_id)
    assert page.locator("a.src[href]").count() == 0
    page.get_by_role("link", name="In the viewer").click()
    expect(page.locator("#result .score")).to_be_visible()
    assert page.url.partition("?")[0] == f"{address}/#/slide/{slide_id}"  # and the position in the viewer
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.locator("#worklist tbody tr").first).to_be_visible()
    assert problems == []
    page.context.close()


@pytest.mark.slow
def test_sign_in_page_accepts_the_token(browser: playwright.Browser, address: str) -> None:
    from tests.web.served import TOKEN

    page = browser.new_page()
    page.goto(address)
    assert accessibility_violations(page) == []
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("tbody tr")
    page.close()


@pytest.mark.slow
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
    # the scale bar counts level-0 px, of which the thumbnail has fewer
    expect(page.locator("#scale span")).to_have_text(re.compile("µm$"))
    bar, length = page.locator("#scale i").bounding_box(), page.locator("#scale span").inner_text()
    image = page.locator("#viewer").bounding_box()
    assert bar is not None
    assert image is not None
    shown_um = float(length.split()[0]) / bar["width"]  # µm per screen px
    fitting = max(done["width"] / image["width"], done["height"] / image["height"]) * done["mpp"]
    assert shown_um == pytest.approx(fitting, rel=0.05)
    assert problems == []
    page.context.close()


@pytest.mark.slow
def test_the_worklist_prints_every_thumbnail(browser: playwright.Browser, address: str, tmp_path: Path) -> None:
    page, _ = open_page(browser, address, "narrow", "light")
    page.wait_for_load_state("networkidle")
    (tmp_path / "list.pdf").write_bytes(page.pdf())
    shown = shown_pictures(tmp_path / "list.pdf")
    assert len(shown) == page.locator("tbody img").count() > 3
    assert not any(is_blank(picture) for picture in shown)
    page.context.close()
