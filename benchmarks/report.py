"""How long does the report of a large cohort take, how large is it, and how does a browser display it?

usage: report.py SCRATCH [--slides N] [--rounds N] [--chromium PATH]

The tables of N slides are written through the store's own schemas and rows: slides, predictions of the rule and of a
bundle's three methods, membrane shares, labels, times. All values are random. Thumbnails are sixteen images of 2048 px
under N names, so that they are decoded as often as real ones. There are no pyramids, so evidence pages have no tiles
and are measured separately. With a browser: seconds until the page is drawn, and the longest of a hundred frames while
it scrolls from top to bottom.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from her2batch.files.parquet import write_parquet
from her2batch.models.membrane_rule import apply_rule, rule_predictions
from her2batch.reports.cohort_page import write_report
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, Row
from her2batch.store.labels import LABELS_SCHEMA
from her2batch.store.schemas import table_schema
from her2batch.tasks import CLASSES, IHC_SCORES, her2_class
from her2batch.vision.membrane import MEMBRANE_COLUMNS

SITES = ("north", "south", "east", "west", "harbour")
TILES = 40
BUNDLE = "0123456789ab"
THUMBNAILS = 16

SCROLL_SCRIPT = """async () => {
  const gaps = []; let last = performance.now();
  const end = document.documentElement.scrollHeight;
  for (let k = 0; k < 100; k++) {
    scrollTo(0, end * k / 99);
    await new Promise(requestAnimationFrame);
    const now = performance.now(); gaps.push(now - last); last = now;
  }
  return gaps;
}"""


def write_thumbnail(path: Path, seed: int) -> None:
    """Write an image of a round piece of brownish tissue, 2048 × 1536 px."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:1536, :2048].astype(np.float32)
    inside = np.hypot((x - 1024) / 1.3, y - 768) < 500 + 100 * np.sin(seed + np.arctan2(y - 768, x - 1024) * 3)
    rgb = np.full((1536, 2048, 3), 240, np.uint8)
    rgb[inside] = (170, 190, 215 - 5 * seed)
    rgb[inside] = np.clip(rgb[inside] + rng.normal(0, 12, (int(inside.sum()), 3)), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), rgb, [cv2.IMWRITE_JPEG_QUALITY, 85])


def membrane_table(slide_id: str, strength: float, rng: np.random.Generator) -> pa.Table:
    """Return a membrane table of TILES tiles. strength: mean staining."""
    columns = {"cells": rng.uniform(0.3, 0.8, TILES)}
    for name, factor in zip(MEMBRANE_COLUMNS[1:], (1.0, 0.55, 0.25, 0.8, 0.4, 0.18), strict=True):
        columns[name] = np.clip(strength * factor * rng.lognormal(0, 0.4, TILES), 0, 1)
    arrays = [pa.array([slide_id] * TILES), pa.array(np.arange(TILES, dtype=np.int32))]
    return pa.table(
        [*arrays, *(pa.array(columns[one].astype(np.float32)) for one in MEMBRANE_COLUMNS)],
        schema=table_schema("membrane"),
    )


def bundle_predictions(slide: Row, truth: str, rng: np.random.Generator) -> list[Row]:
    """Return random predictions of three methods of a bundle."""
    classes = CLASSES["her2-3way"]
    rows = []
    for method in ("clam-sb", "convnext-small", "mlp"):
        logits = rng.normal(0, 1, 3) + 2 * (np.array(classes) == truth)
        p = np.exp(logits) / np.exp(logits).sum()
        plausible = [name for name, one in zip(classes, p, strict=True) if one > 0.15]
        rows.append({**slide, "task": "her2-3way", "method": method, "classes": list(classes), "p": p.tolist(),
                     "predicted": classes[int(p.argmax())], "plausible": plausible, "review": len(plausible) > 1,
                     "reasons": ["undecided"] if len(plausible) > 1 else [], "score": None})  # fmt: skip
    return rows


def add_slide(cohort: Cohort, k: int, blank: Row, pictures: list[Path]) -> tuple[Row, Row]:
    """Commit one slide; return its label and its times."""
    rng = np.random.default_rng(k)
    slide_id, patient = f"S{k:05}", f"P{k // 2:05}"
    ihc = IHC_SCORES[rng.choice(4, p=[0.3, 0.3, 0.2, 0.2])]
    ish = "-" if ihc == "2+" and rng.random() < 0.5 else None
    known = {"slide_id": slide_id, "patient_id": patient, "her2": ihc, "ish": ish, "site": SITES[k % 5]}
    label = {**dict.fromkeys(LABELS_SCHEMA.names), **known, "stain": "her2"}
    row = {**blank, "slide_id": slide_id, "patient_id": patient, "path": f"/scans/{slide_id}.svs"}
    seconds = float(rng.lognormal(3, 0.4))
    ended = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=k)
    times = {"slide_id": slide_id, "status": "done", "host": "bench", "pid": 1, "seconds": seconds, "finished": ended}
    times["stages"] = [("tiles", seconds)]
    draft = cohort.draft(slide_id)
    if k % 50 == 49:
        failed = {"status": "failed", "error_code": "truncated", "error": f"{row['path']}: is cut; copy it again"}
        draft.commit({**row, **failed, "n_tiles": 0}, None)
        return label, {**times, "status": "failed"}
    table = membrane_table(slide_id, {"0": 0.04, "1+": 0.2, "2+": 0.5, "3+": 1.0}[ihc] * rng.lognormal(0, 0.3), rng)
    result = apply_rule({name: table[name].to_numpy() for name in MEMBRANE_COLUMNS})
    keys = {"slide_id": slide_id, "patient_id": patient}
    rule = [{**keys, **one} for one in rule_predictions(result, presumed=False)]
    draft.write("membrane", table)
    draft.write("predictions/membrane", pa.Table.from_pylist(rule, table_schema("predictions")))
    predictions = bundle_predictions(keys, str(her2_class("her2-3way", ihc, "-")), rng)
    draft.write(f"predictions/{BUNDLE}", pa.Table.from_pylist(predictions, table_schema("predictions")))
    os.link(pictures[k % THUMBNAILS], draft.thumbnail())
    flags = [name for name in ("pen", "blurred", "overexposed") if rng.random() < 0.05]
    draft.commit({**row, "flags": flags}, None)
    return label, times


def make_cohort(cohort: Cohort, slides: int) -> None:
    """Write the cohort's tables."""
    plan = Plan()
    cohort.create(plan)
    pictures = [cohort.root.parent / f"picture{k}.jpg" for k in range(THUMBNAILS)]
    for k, path in enumerate(pictures):
        write_thumbnail(path, k)
    blank = {**dict.fromkeys(table_schema("slides").names), "stain": "her2", "sha256": "0" * 64, "bytes": 10**9,
             "format": "aperio", "reader": "tiff", "width": 80_000, "height": 60_000, "level_downsamples": [1.0, 4.0],
             "mpp": 0.25, "mpp_source": "file", "tissue_mm2": 120.0, "n_tiles": TILES, "flags": [], "blur": 0.01,
             "pen": 0.0, "saturated": 0.0, "background": 240.0, "status": "done", "plan_id": plan.id}  # fmt: skip
    committed = [add_slide(cohort, k, blank, pictures) for k in range(slides)]
    write_parquet(pa.Table.from_pylist([label for label, _ in committed], LABELS_SCHEMA), cohort.labels)
    cohort.write_times("ingest-bench", [times for _, times in committed])
    seen = [{"path": f"/scans/S{k:05}.svs", "bytes": 10**9, "mtime_ns": 0, "n_files": 1, "sha256": None,
             "outcome": "slide", "slide_id": f"S{k:05}", "reason": None} for k in range(slides)]  # fmt: skip
    cohort.write_intake(seen)
    cohort.update_row_cache()


def time_browser(path: Path, chromium: str) -> tuple[float, list[float]]:
    """Return the seconds until the page is drawn, and the ms of each frame while it scrolls."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        started = time.perf_counter()
        page.goto(path.as_uri())
        page.evaluate("() => new Promise(requestAnimationFrame)")
        opened = time.perf_counter() - started
        gaps = page.evaluate(SCROLL_SCRIPT)
        browser.close()
    return opened, gaps


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--slides", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chromium", default="")
    args = parser.parse_args()
    cohort = Cohort(args.scratch.absolute() / f"cohort-{args.slides}")
    if not cohort.labels.exists():
        make_cohort(cohort, args.slides)
    out = args.scratch.absolute() / "report.html"
    seconds: dict[int, list[float]] = {0: [], 100: []}
    for _ in range(args.rounds):
        for pages, found in seconds.items():
            started, cpu = time.perf_counter(), time.process_time()
            report = write_report(cohort, out, pages=pages)
            found.append(time.perf_counter() - started)
            worked = time.process_time() - cpu
    alone, both = (statistics.median(one) for one in seconds.values())
    print(f"{args.slides} slides: report {alone:.1f} s, with {report.slides} pages of slides {both:.1f} s "
          f"({worked:.1f} s of processor), {report.bytes / 1e6:.1f} MB")  # fmt: skip
    if args.chromium:
        opened, gaps = time_browser(out, args.chromium)
        print(f"{'':8} opened in {opened:.1f} s; a frame {statistics.median(gaps):.0f} ms, the longest {max(gaps):.0f}")


if __name__ == "__main__":
    main()
