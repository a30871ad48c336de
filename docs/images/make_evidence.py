"""Make docs/images/slide-evidence.png, the picture at the top of README.md.

    python docs/images/make_evidence.py

The picture is a part of a slide page as `her2batch report` writes it, for a synthetic HER2 slide. The script makes the
slide with its label, ingests it (`--workers 0`), writes the slide page, opens it in headless Chromium in light mode and
takes a screenshot of the evidence: class and score, the slide with its heatmap, the shares and the steps of the
membrane rule, and one example tile of each kind. Controls, links to tables and the other sections are left out. The
colours of the PNG are reduced to a palette, so that it stays below MAX_BYTES.

It needs Chromium and the extra `test` (Playwright; Pillow comes with torchvision), 3 GB of memory and about two
minutes. The same versions give the same slide and tables; the text is drawn with the fonts of the system.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from her2batch.reports.report_data import load_report_data
from her2batch.reports.slide_page import write_slide_pages
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from her2batch.synthetic.cohort import make_slide, write_labels
from her2batch.synthetic.specimen import CellMix, SlideTruth
from her2batch.vision.heatmap import HEAT_COLOUR

TRUTH = SlideTruth(
    "S0117", CellMix(none=0.14, faint=0.16, moderate=0.26, intense=0.44), patient_id="P042", width=15_200, height=16_800
)  # fmt: skip
"""A 3+ slide: 44 % of its tumour cells have intense, complete membrane staining. 3.8 × 4.2 mm at 0.25 µm/px."""

SEED = 1
WIDTH = 1080
"""Width of the page, CSS px: both columns of the evidence fit side by side."""

SCALE = 1.2
"""Device px per CSS px."""

COLOURS = 48
"""Colours of the palette."""

LEGEND_PX = 150
"""Rows that the colour scale of the heatmap gets when the palette is chosen, so that it keeps enough colours."""

MAX_BYTES = 300_000

STYLE = """
header.top, .controls, a.src, .viewer p.small { display: none !important }
main.page { max-width: none; padding: 1.2rem 1.4rem }
.tiles { max-width: none; grid-template-columns: repeat(3, 1fr); margin-top: 1.2rem }
.tiles img { max-width: none; aspect-ratio: 16 / 9; object-fit: cover }
.kind { margin: 0 0 .35rem }
"""

CROP = """() => {
  // Keep the two columns at the top, and below them the first example tile of each kind in one row.
  const columns = document.querySelector("article.evidence .two");
  const examples = document.createElement("div");
  examples.className = "tiles";
  for (const kind of document.querySelectorAll("article.evidence p.kind")) {
    const group = document.createElement("div");
    group.append(kind.nextElementSibling.querySelector("figure"));
    group.prepend(kind);
    examples.append(group);
  }
  while (columns.nextElementSibling) columns.nextElementSibling.remove();
  columns.after(examples);
}"""


def write_slide_page(folder: Path) -> Path:
    """Make the slide, ingest it and write its page. Return the path of the page."""
    scans = folder / "slides"
    scans.mkdir()
    specimen = make_slide(scans / f"{TRUTH.slide_id}.svs", TRUTH, SEED)
    write_labels(folder / "labels.csv", [replace(TRUTH, mix=specimen.mix)])
    request = IngestRequest(scans, folder / "cohort", labels=folder / "labels.csv")
    if ingest(request, Plan(), Resources(workers=0)).exit_code != 0:
        raise SystemExit("the slide could not be ingested")
    data = load_report_data(Cohort(folder / "cohort"))
    pages = folder / "pages"
    write_slide_pages(replace(data, page_links={TRUTH.slide_id: "#"}, page_folder=pages), pages, "../report.html")
    return pages / f"{TRUTH.slide_id}.html"


def take_screenshot(page: Path, out: Path) -> None:
    """Take a screenshot of the evidence on a slide page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(
            viewport={"width": WIDTH, "height": 1000}, color_scheme="light", device_scale_factor=SCALE
        )
        view.goto(page.as_uri())
        view.evaluate(CROP)
        view.add_style_tag(content=STYLE)
        view.wait_for_timeout(500)  # the images of the tiles are decoded
        view.locator("main").screenshot(path=out)
        browser.close()


def reduce_colours(screenshot: Path, out: Path) -> None:
    """Write a screenshot as a PNG with a palette. Raises SystemExit for a file above MAX_BYTES."""
    image = Image.open(screenshot).convert("RGB")
    level = np.linspace(0, 1, image.width)[:, None]
    scale = (255 * (1 - level) + np.array(HEAT_COLOUR) * level).astype(np.uint8)
    sample = Image.new("RGB", (image.width, image.height + LEGEND_PX))
    sample.paste(image, (0, 0))
    sample.paste(Image.fromarray(np.repeat(scale[None], LEGEND_PX, axis=0)), (0, image.height))
    palette = sample.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    reduced = image.quantize(palette=palette, dither=Image.Dither.NONE)
    colours = reduced.getpalette() or []
    white = reduced.getpixel((0, 0))  # the background of the page
    colours[3 * white : 3 * white + 3] = [255, 255, 255]
    reduced.putpalette(colours)
    reduced.save(out, optimize=True)
    if out.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{out} has {out.stat().st_size} bytes, more than {MAX_BYTES}: lower SCALE or COLOURS")


def main() -> None:
    """Write slide-evidence.png beside this script."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        screenshot = folder / "screenshot.png"
        take_screenshot(write_slide_page(folder), screenshot)
        reduce_colours(screenshot, Path(__file__).with_name("slide-evidence.png"))


if __name__ == "__main__":
    main()
