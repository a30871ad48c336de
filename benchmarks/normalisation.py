"""Does stain normalisation make the rules agree across laboratories? Several ways, measured on the same slides.

usage: normalisation.py [--laboratories 200 201 …] [--slides 16] [--cores FOLDER] [--json FILE]

Paints small HER2 slides of synthetic laboratories, four classes in turn, and a control slide of each laboratory (3+,
the same cells everywhere), and scores each slide by area and by cells after each of these:

as today            white point and stain vectors of the slide (Macenko 2009, shrunk to the published ones); thresholds
                    follow the slide's nuclei by a root of their density
to the counterstain all density of a laboratory is scaled until its typical nuclei have the reference density
to the control      haematoxylin is scaled as above, DAB until the control slide has the DAB of the reference laboratory
published vectors   those of Ruifrok & Johnston 2001 for every slide
Macenko reference   both stains of each slide are repainted with the published vectors and with the 99th percentiles of
                    the reference laboratory, as for H&E (Macenko 2009)
vectors of the lab  one pair of vectors for a laboratory, the median of those fitted to its slides
Vahadane            one pair of vectors for a laboratory, by sparse non-negative factorisation of px of its slides
                    (Vahadane et al. 2016)

Prints accuracy and quadratic kappa of both rules, over all laboratories and in the worst one, and in how many
laboratories a way is better and worse than today's. The slides are synthetic: the results describe the software, not
medicine. --cores: a folder of HER2 cores named SCORE_NAME.jpg at 0.25 µm/px, scored by each way that needs no control;
each is a laboratory of its own.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from calibration import SIZE, paint_jpeg
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning
from synthetic_slides import MPP, cut_tiles, sampled

from her2batch.models.guideline.cell_rule import score_cells
from her2batch.models.membrane_rule import apply_rule
from her2batch.synthetic.cohort import paint_truth
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth, ihc_score
from her2batch.tasks import IHC_SCORES
from her2batch.training.metrics import confusion_counts, kappa
from her2batch.vision.cells.detection import detect_cells, fit_cell_reference
from her2batch.vision.membrane import MEMBRANE_COLUMNS, REFERENCE_NUCLEI_OD, measure_tiles
from her2batch.vision.stain import (
    DAB,
    HAEMATOXYLIN,
    MIN_NUCLEUS_OD,
    MIN_STAINED_OD,
    MIN_TISSUE_OD,
    Stains,
    Vector,
    optical_density,
    separate_stains,
)

REFERENCE = "north"
"""Laboratory whose control and percentiles are the reference."""

Pixels = NDArray[np.uint8]
Scores = tuple[str, str]
"""Score by area and by cells."""


@dataclass(frozen=True)
class Picture:
    """A slide at MPP and its stains as an ingest fits them. tiles: of its tissue."""

    pixels: Pixels
    tiles: Pixels
    stains: Stains


@dataclass(frozen=True)
class Laboratory:
    """What is known of a laboratory: its slides, and its control, which cores do not have."""

    slides: Sequence[Picture]
    control: Picture | None


def read_jpeg(content: bytes) -> Picture:
    """Return a picture at half its resolution."""
    full = simplejpeg.decode_jpeg(content)
    pixels = cv2.resize(full, (full.shape[1] // 2, full.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return Picture(np.asarray(pixels, np.uint8), *cut_tiles(np.asarray(pixels, np.uint8)))


def paint_control(site: str) -> Picture:
    """Return the control slide of a laboratory: a typical 3+, with the same cells in each."""
    truth = SlideTruth("control", TYPICAL_MIXES["3+"], "her2", site=site, width=SIZE[0], height=SIZE[1])
    painted = paint_truth(truth)
    lab = painted.laboratory
    coded = simplejpeg.encode_jpeg(np.ascontiguousarray(painted.rgb), lab.jpeg_quality, "RGB", lab.subsampling)
    return read_jpeg(coded)


def score(pixels: Pixels, tiles: Pixels, stains: Stains) -> Scores:
    """Score a slide by area and by cells."""
    reference = fit_cell_reference(sampled(tiles), MPP, stains)
    found = detect_cells(pixels, MPP, stains, reference, "membrane")
    features = measure_tiles(tiles, MPP, stains)
    area = apply_rule({name: features[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)}).category
    try:
        return area, score_cells(found.category, found.tumour).category
    except ValueError:  # no tumour cells
        return area, "0"


def with_vectors(picture: Picture, haematoxylin: Vector, dab: Vector) -> Stains:
    """Return stains with other vectors, and nuclei and background as they show then."""
    stains = replace(picture.stains, haematoxylin=haematoxylin, dab=dab)
    parts = [separate_stains(optical_density(tile, stains.white), stains) for tile in sampled(picture.tiles)]
    h, d, mean = (np.concatenate([getattr(one, name).ravel() for one in parts]) for name in ("h", "d", "mean"))
    nuclear, tissue = h[h > MIN_NUCLEUS_OD], d[mean > MIN_TISSUE_OD]
    nuclei = float(np.percentile(nuclear, 75)) if len(nuclear) > len(h) / 1000 else 0.0
    background = max(float(np.percentile(tissue, 10)), 0.0) if len(tissue) else 0.0
    return replace(stains, nuclei=nuclei, background=background)


def repaint(picture: Picture, factors: tuple[float, float], vectors: tuple[Vector, Vector] | None = None) -> Scores:
    """Score a slide whose haematoxylin and DAB are multiplied, and painted with other vectors if given."""
    stains = picture.stains
    own = np.array([stains.haematoxylin, stains.dab])
    target = own if vectors is None else np.array(vectors)
    od = optical_density(picture.pixels, stains.white)
    density = separate_stains(od, stains)
    change = factors[0] * target[0] - own[0], factors[1] * target[1] - own[1]
    new = od + sum(np.float32(c)[:, None, None] * one for c, one in zip(change, (density.h, density.d), strict=True))
    white = np.asarray(stains.white, np.float32)[:, None, None]
    pixels = np.clip(white * 10**-new + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    tiles, fitted = cut_tiles(np.ascontiguousarray(pixels))
    return score(np.ascontiguousarray(pixels), tiles, fitted)


def percentile_of(picture: Picture, percent: float) -> tuple[float, float]:
    """Return this percentile of haematoxylin and of DAB in the stained px."""
    parts = [separate_stains(optical_density(tile, picture.stains.white), picture.stains) for tile in picture.tiles]
    stained = [one.mean > MIN_STAINED_OD / 2 for one in parts]
    h, d = (
        np.concatenate([getattr(one, name)[dark] for one, dark in zip(parts, stained, strict=True)]) for name in "hd"
    )
    if not len(h):
        return 0.0, 0.0
    return float(np.percentile(h, percent)), float(np.percentile(d, percent))


def vahadane(slides: Sequence[Picture], rng: np.random.Generator) -> tuple[Vector, Vector]:
    """Return the vectors of a laboratory by sparse non-negative factorisation of px of all its slides."""
    parts = []
    for picture in slides:
        od = np.concatenate([optical_density(tile, picture.stains.white).reshape(3, -1) for tile in picture.tiles], 1).T
        stained = od[od.mean(axis=1) > MIN_STAINED_OD]
        parts.append(stained[rng.choice(len(stained), min(1000, len(stained)), replace=False)])
    model = MiniBatchDictionaryLearning(
        2, alpha=0.1, max_iter=50, batch_size=256, positive_dict=True, positive_code=True, fit_algorithm="cd",
        transform_algorithm="lasso_cd", dict_init=np.array([HAEMATOXYLIN, DAB], np.float64), random_state=0,
    )  # fmt: skip
    found = model.fit(np.concatenate(parts).astype(np.float64)).components_
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    h, d = sorted((tuple(one.tolist()) for one in found), key=lambda one: one[2] - one[0])  # DAB absorbs more blue
    return h, d


def as_today(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Score the slides as an ingest does."""
    return [score(one.pixels, one.tiles, one.stains) for one in lab.slides]


def nuclei_factor(lab: Laboratory) -> float:
    """Return the factor that brings the typical nuclei of a laboratory to the reference density."""
    return REFERENCE_NUCLEI_OD / max(float(np.median([one.stains.nuclei for one in lab.slides])), 0.02)


def to_counterstain(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Scale all density by the laboratory's counterstain."""
    factor = nuclei_factor(lab)
    return [repaint(one, (factor, factor)) for one in lab.slides]


def to_control(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Scale haematoxylin by the laboratory's counterstain, and DAB by its control."""
    assert lab.control is not None
    dab = percentile_of(reference, 95)[1] / max(percentile_of(lab.control, 95)[1], 0.02)
    return [repaint(one, (nuclei_factor(lab), dab)) for one in lab.slides]


def published_vectors(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Use the published vectors for every slide."""
    return [score(one.pixels, one.tiles, with_vectors(one, HAEMATOXYLIN, DAB)) for one in lab.slides]


def macenko_reference(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Repaint every slide with the published vectors and the reference's percentiles of both stains."""
    wanted, found = percentile_of(reference, 99), []
    for one in lab.slides:
        own = percentile_of(one, 99)
        found.append(repaint(one, (wanted[0] / max(own[0], 0.05), wanted[1] / max(own[1], 0.05)), (HAEMATOXYLIN, DAB)))
    return found


def vectors_of_laboratory(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Use one pair of vectors, the median of the slides' own."""
    middle = [np.median([getattr(one.stains, name) for one in lab.slides], axis=0) for name in ("haematoxylin", "dab")]
    h, d = (tuple((one / np.linalg.norm(one)).tolist()) for one in middle)
    return [score(one.pixels, one.tiles, with_vectors(one, h, d)) for one in lab.slides]


def vahadane_vectors(lab: Laboratory, reference: Picture) -> list[Scores]:
    """Use one pair of vectors by factorisation."""
    h, d = vahadane(lab.slides, np.random.default_rng(0))
    return [score(one.pixels, one.tiles, with_vectors(one, h, d)) for one in lab.slides]


WAYS: dict[str, Callable[[Laboratory, Picture], list[Scores]]] = {
    "as today": as_today,
    "to the counterstain": to_counterstain,
    "to the control": to_control,
    "published vectors": published_vectors,
    "Macenko reference": macenko_reference,
    "vectors of the lab": vectors_of_laboratory,
    "Vahadane": vahadane_vectors,
}


def figures(found: dict[str, dict[int, list[Scores]]], truth: dict[int, list[str]], rule: int) -> list[dict[str, Any]]:
    """Return a row for each way: accuracy and kappa of a rule (0: area, 1: cells), and the comparison with today's."""
    accuracy = {
        way: {
            lab: float(np.mean([one[rule] == label for one, label in zip(scores, truth[lab], strict=True)]))
            for lab, scores in of_lab.items()
        }
        for way, of_lab in found.items()
    }
    rows, today = [], accuracy["as today"]
    for way, of_lab in found.items():
        labels = [IHC_SCORES.index(label) for lab in of_lab for label in truth[lab]]
        scored = [IHC_SCORES.index(one[rule]) for scores in of_lab.values() for one in scores]
        own = accuracy[way]
        rows.append(
            {
                "way": way, "accuracy": float(np.mean(list(own.values()))), "worst": min(own.values()),
                "kappa": float(kappa(confusion_counts(np.array(labels), np.array(scored), 4))),
                "better": sum(own[lab] > today[lab] for lab in own),
                "worse": sum(own[lab] < today[lab] for lab in own),
            }
        )  # fmt: skip
    return rows


def print_figures(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print a table."""
    print(f"| {title} | accuracy | worst laboratory | kappa | better in | worse in |")
    print("| --- " * 6 + "|")
    for row in rows:
        values = " | ".join(f"{row[name]:.3f}" for name in ("accuracy", "worst", "kappa"))
        print(f"| {row['way']} | {values} | {row['better']} | {row['worse']} |", flush=True)


def measure_laboratory(number: int, slides: int, reference: Picture) -> tuple[dict[str, list[Scores]], list[str]]:
    """Return the scores of a laboratory's slides by each way, and their true scores."""
    painted = [paint_jpeg(number, k) for k in range(slides)]
    lab = Laboratory([read_jpeg(content) for content, _ in painted], paint_control(f"lab-{number}"))
    return {name: way(lab, reference) for name, way in WAYS.items()}, [ihc_score(mix) for _, mix in painted]


def print_cores(folder: Path, reference: Picture) -> None:
    """Print the scores of real cores by each way that needs no control."""
    for path in sorted(folder.glob("*.jpg")):
        lab = Laboratory([read_jpeg(path.read_bytes())], None)
        found = {name: way(lab, reference)[0] for name, way in WAYS.items() if name != "to the control"}
        print(f"{path.stem}: " + "; ".join(f"{name}: area {one[0]}, cells {one[1]}" for name, one in found.items()))


def main() -> None:
    """Measure the laboratories, and print two tables, one for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laboratories", type=int, nargs="+", default=list(range(200, 208)))
    parser.add_argument("--slides", type=int, default=16)
    parser.add_argument("--cores", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    reference = paint_control(REFERENCE)
    found: dict[str, dict[int, list[Scores]]] = {name: {} for name in WAYS}
    truth: dict[int, list[str]] = {}
    for number in args.laboratories:
        scores, truth[number] = measure_laboratory(number, args.slides, reference)
        for name, own in scores.items():
            found[name][number] = own
    tables = {title: figures(found, truth, k) for k, title in enumerate(("area", "cells"))}
    for title, rows in tables.items():
        print_figures(rows, title)
    if args.cores is not None:
        print_cores(args.cores, reference)
    if args.json is not None:
        args.json.write_text(json.dumps(tables))


if __name__ == "__main__":
    main()
