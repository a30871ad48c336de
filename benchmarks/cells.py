"""How well and how fast are cells found and scored, compared with the area rule on the same synthetic slides?

usage: cells.py accuracy [--first 100] [--laboratories 32] [--seed 7] [--workers N]
       cells.py speed [--edge 1024] [--rounds 5]

accuracy: laboratories from 100 are held out (`synthetic.laboratory`); nothing was developed or fitted on them. A row a
slide, then the figures: detection (centre inside the true nucleus, one to one), shares of categories, scores, tumour
compartment, slides that cannot be scored, and nuclear staining.
speed: CPU time of one thread; tiles of 224 px at 0.5 µm/px in a block without its margin.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from dataclasses import fields

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from synthetic_slides import MPP, TILE, Measured, cut_tiles, measure_slides, plan_jobs, read_slide, sampled

from her2batch.models.guideline.cell_rule import score_cells
from her2batch.models.guideline.nuclear_rule import score_nuclear
from her2batch.models.guideline.scorable import scorability
from her2batch.models.membrane_rule import apply_rule
from her2batch.synthetic.specimen import allred_score, positive_share
from her2batch.synthetic.true_cells import match_cells
from her2batch.vision.cells.detection import detect_cells, fit_cell_reference
from her2batch.vision.membrane import measure_tiles

Figures = dict[str, list[float]]


def matched(slide: Measured) -> NDArray[np.int64]:
    """Return the row of the true cell of each found cell, -1 for none."""
    found = slide.found
    return match_cells(slide.cells, 2 * found.x + 0.5, 2 * found.y + 0.5, slide.truth.mpp)


def add_detection(slide: Measured, figures: Figures) -> str:
    """Add precision, recall, F1 and the likelihoods of the tumour; return the words of the row."""
    rows = matched(slide)
    hits = rows >= 0
    true, found, right = len(slide.cells), len(rows), int(hits.sum())
    f1 = 2 * right / max(true + found, 1)
    is_tumour = slide.cells["tumour"].to_numpy(zero_copy_only=False)
    figures["f1"].append(f1)
    figures["precision"].append(right / max(found, 1))
    figures["recall"].append(right / max(true, 1))
    if 0 < is_tumour[rows[hits]].mean() < 1:
        figures["tumour AUC"].append(float(roc_auc_score(is_tumour[rows[hits]], slide.found.tumour[hits])))
        figures["tumour found / true"].append(float((slide.found.tumour >= 0.5).mean() / is_tumour.mean()))
    return f"F1 {f1:.2f}"


def add_her2(slide: Measured, figures: Figures) -> str:
    """Add what cells and area say about a HER2 slide."""
    problem = refused(slide)
    figures["refused"].append(float(problem is not None))
    cells, area = score_cells(slide.found.category, slide.found.tumour), apply_rule(slide.membrane)
    error = np.abs(np.array(cells.percent) - 100 * np.array(slide.mix))
    weak = slide.truth.kind == "weak-complete"
    if weak:
        figures["weak complete: cells"].append(float(cells.category == "2+"))
        figures["weak complete: area 2+ or review"].append(
            float(area.category == "2+" or "weak-complete" in area.reasons)
        )
    else:
        figures["share error"].append(float(error.max()))
        figures["shares within 5"].append(float(error.max() <= 5))
        figures["each share within 5"] += (error <= 5).astype(float).tolist()
        figures["calls, cells"].append(float(cells.category == slide.truth.her2))
        figures["calls, area"].append(float(area.category == slide.truth.her2))
        figures["calls, both agree"].append(float(cells.category == area.category))
        if cells.category == area.category:
            figures["calls, where both agree"].append(float(cells.category == slide.truth.her2))
        figures["true class of p >= 0.1"].append(
            float(cells.p[["0", "1+", "2+", "3+"].index(slide.truth.her2 or "0")] >= 0.1)
        )
    found, true = (" ".join(f"{one:3.0f}" for one in many) for many in (cells.percent, 100 * np.array(slide.mix)))
    words = f"cells {cells.category} area {area.category} shares {found} of {true}"
    return words if problem is None else f"{words} refused: {problem}"


def refused(slide: Measured) -> str | None:
    """Return the code with which a slide is refused, None if it can be scored."""
    columns = {field.name: getattr(slide.found, field.name) for field in fields(slide.found)}
    reference = slide.reference
    found = scorability(columns, stain=slide.stain, hue_spread=reference.hue_spread, foreign=reference.foreign)
    return found.code if found else None


def add_nuclear(slide: Measured, figures: Figures) -> str:
    """Add positive share and Allred score of an ER slide."""
    result = score_nuclear(slide.found.category, slide.found.tumour, "er")
    true = positive_share(slide.mix)
    figures["ER share error"].append(100 * abs(result.positive - true))
    figures["ER within 3"].append(float(abs(result.positive - true) <= 0.03))
    figures["Allred exact"].append(float(result.allred == allred_score(slide.mix)))
    figures["ER sign"].append(float((result.positive >= 0.01) == (true >= 0.01)))
    return f"positive {result.positive:.3f} of {true:.3f}, Allred {result.allred} of {allred_score(slide.mix)}"


def accuracy(first: int, laboratories: int, seed: int, workers: int) -> None:
    """Print a row a slide and the mean of every figure."""
    figures: Figures = {name: [] for name in FIGURES}
    for slide in measure_slides(plan_jobs(range(first, first + laboratories), seed), workers):
        if slide.truth.kind not in ("usual", "weak-complete"):
            code = refused(slide)
            figures["unscorable, refused"].append(float(code is not None))
            print(f"{slide.truth.slide_id:28} {code}", flush=True)
            continue
        words = add_detection(slide, figures)
        words += " " + (add_her2 if slide.truth.stain == "her2" else add_nuclear)(slide, figures)
        print(f"{slide.truth.slide_id:28} {words}", flush=True)
    for name, values in figures.items():
        if values:
            ends = f"least {min(values):7.3f}  most {max(values):7.3f}"
            print(f"{name:36} mean {np.mean(values):7.3f}  {ends}  n {len(values)}")


FIGURES = (
    "f1", "precision", "recall", "tumour AUC", "tumour found / true", "share error", "shares within 5",
    "each share within 5", "calls, cells", "calls, area", "calls, both agree", "calls, where both agree",
    "true class of p >= 0.1", "weak complete: cells", "weak complete: area 2+ or review", "refused",
    "unscorable, refused", "ER share error", "ER within 3", "Allred exact", "ER sign",
)  # fmt: skip


def speed(edge: int, rounds: int) -> None:
    """Print tiles a second of one core, of the cells and of the area rule."""
    cv2.setNumThreads(1)
    for score in ("0", "2+", "3+"):
        _, _, pixels, _ = read_slide((1, score, "her2", "usual", 3))
        tiles, stains = cut_tiles(pixels)
        reference = fit_cell_reference(sampled(tiles), MPP, stains)
        block = np.ascontiguousarray(np.tile(pixels[200:800, 300:900], (3, 3, 1))[:edge, :edge])
        n = edge * edge / TILE**2
        rates: dict[str, list[float]] = {"cells": [], "area": []}
        for _ in range(rounds):
            started = time.process_time()
            found = detect_cells(block, MPP, stains, reference, "membrane")
            rates["cells"].append(n / (time.process_time() - started))
            started = time.process_time()
            measure_tiles(tiles, MPP, stains)
            rates["area"].append(len(tiles) / (time.process_time() - started))
        cells, area = (float(np.median(one)) for one in rates.values())
        words = f"{score}: cells {cells:,.0f} tiles/s, area rule {area:,.0f}, ratio {cells / area:.2f}"
        print(f"{words}; {len(found) / n:.0f} cells a tile")


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("accuracy")
    one.add_argument("--first", type=int, default=100)
    one.add_argument("--laboratories", type=int, default=32)
    one.add_argument("--seed", type=int, default=7)
    one.add_argument("--workers", type=int, default=2)
    two = parts.add_parser("speed")
    two.add_argument("--edge", type=int, default=1024)
    two.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.part == "speed":
        speed(args.edge, args.rounds)
    else:
        accuracy(args.first, args.laboratories, args.seed, args.workers)


if __name__ == "__main__":
    main()
