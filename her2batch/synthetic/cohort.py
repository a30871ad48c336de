"""A synthetic HER2 cohort with known ground truth: patients, slides, labels, annotations.

    OUT/slides/SLIDE.svs            Aperio's layout: JPEG pyramid, thumbnail, label and macro with an invented name
    OUT/labels.csv                  slide_id, patient_id, her2, ish, er, pr, site, stain
    OUT/annotations/SLIDE.geojson   QuPath regions of HER2 slides, classes 0, 1+, 2+, 3+; about half of the tumour
    OUT/truth/SLIDE.npz             bool masks at about 8 µm/px: tissue, tumour and the artefacts (pen, fold, blur,
                                    bubble); `regions`: the score around each px (0 none, 1 + position in 0 … 3+);
                                    `downsample`: level-0 px per px
    OUT/truth/SLIDE.json            stain, labels, shares of cell classes, number of tumour cells, artefacts, kind of
                                    slide, laboratory; of nuclear markers positive share, H-score and Allred score
    OUT/truth/SLIDE.cells.parquet   every cell: position, shape, kind, category, densities (`true_cells.CELL_COLUMNS`)

Results on these slides describe the software: whether it finds what was painted, how fast, and reproducibly. They do
not describe medicine.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.exchange.geojson import CLASS_COLOURS
from her2batch.files.parquet import write_parquet
from her2batch.synthetic.cell_layout import Stain
from her2batch.synthetic.cell_sums import CellSums
from her2batch.synthetic.laboratory import SITES, Laboratory, laboratory_of
from her2batch.synthetic.outlines import ARTEFACTS, rng_for
from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import (
    CellMix,
    SlideKind,
    SlideTruth,
    SyntheticTissue,
    allred_score,
    h_score,
    make_tissue,
    positive_share,
)
from her2batch.synthetic.svs import write_svs
from her2batch.synthetic.true_cells import cell_table, empty_cells
from her2batch.tasks import IHC_SCORES

Image = NDArray[np.uint8]
Progress = Callable[[int, int], None]

LABEL_HEADER = ("slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain")
"""Columns of labels.csv."""

MIN_SLIDE_PX = 512
"""Least width and height of a slide, level-0 px."""

BORDERLINE_SHARE = 0.2
"""Share of slides whose mix is close to the adjacent score."""

FOLLOW_UP_STAINS: tuple[Stain, ...] = ("her2", "er", "er", "pr")
"""Stains of a patient's second and third slides, drawn with equal probability."""

PATIENT_NAMES = ("Muster, Erika", "Beispiel, Anna", "Exempel, Greta", "Modelo, Lucia", "Doe, Jane", "Esempio, Maria",
         "Przyklad, Ewa", "Voorbeeld, Sanne", "Exemple, Claire", "Roe, Janet")  # fmt: skip
"""Invented patient names: placeholder names of several languages."""

VIEW_UM = 400.0
"""Edge of the fields that are annotated entirely or not at all."""

MIN_REGION_PX = 60
"""Least area of annotated regions and holes (0.004 mm²)."""


class CohortOptions(NamedTuple):
    """Slides other than the usual ones.

    laboratories: names, between which the patients are divided.  stain: of all slides; by default HER2, and ER or PR on
    some further slides.  kind: of all slides.
    """

    laboratories: tuple[str, ...] = tuple(SITES)
    stain: Stain | None = None
    kind: SlideKind = "usual"


def make_cohort(
    out: Path,
    slides: int = 20,
    seed: int = 0,
    size: tuple[int, int] = (6000, 5000),
    workers: int | None = None,
    progress: Progress | None = None,
    options: CohortOptions | None = None,
) -> Path:
    """Write a cohort under `out` and return `out`. The same arguments give the same bytes for any number of workers.

    size: typical width and height, level-0 px at 0.25 µm/px; each slide's size is log-normal about them.  workers:
    number of processes, by default one per core.  progress: called with the number of finished and of all slides.
    options: laboratories, stain and kind of the slides.  Raises InputError.
    """
    if slides < 1 or min(size) < MIN_SLIDE_PX:
        raise InputError(
            f"{slides} slides of {size[0]} × {size[1]} px", None, f"ask for 1 or more of {MIN_SLIDE_PX} px or more"
        )
    write_cohort(out, plan_cohort(slides, seed, size, options), seed, workers, progress)
    return out


def write_cohort(
    out: Path, truths: list[SlideTruth], seed: int, workers: int | None = None, progress: Progress | None = None
) -> None:
    """Write the slides of a cohort with their labels, annotations and ground truth. See `make_cohort`."""
    for name in ("slides", "annotations", "truth"):
        (out / name).mkdir(parents=True, exist_ok=True)
    write = partial(_write_slide_files, out, seed)
    written: list[SlideTruth] = []
    for truth in _map_in_processes(write, truths, workers or os.cpu_count() or 1):
        written.append(truth)
        if progress is not None:
            progress(len(written), len(truths))
    write_labels(out / "labels.csv", written)


def _map_in_processes(
    function: Callable[[SlideTruth], SlideTruth], truths: list[SlideTruth], workers: int
) -> Iterator[SlideTruth]:
    """Yield the results in order, computed in several processes if there are several workers and slides."""
    if min(workers, len(truths)) == 1:
        yield from map(function, truths)
        return
    context = multiprocessing.get_context("spawn")  # a forked child of a threaded parent may hang
    with ProcessPoolExecutor(min(workers, len(truths)), context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(function, truths)


def plan_cohort(
    slides: int, seed: int, size: tuple[int, int], options: CohortOptions | None = None
) -> list[SlideTruth]:
    """Draw the ground truth of every slide. Every four patients have all four scores.

    A patient has one to three slides, the first stained for HER2; a tumour has one score, ISH, ER and PR.
    """
    options = options or CohortOptions()
    laboratories = [laboratory_of(name).name for name in options.laboratories]
    truths: list[SlideTruth] = []
    scores: list[str] = []
    sites: list[str] = []
    patient = 0
    while len(truths) < slides:
        scores = scores or rng_for(seed, "scores", patient).permutation(IHC_SCORES).tolist()
        sites = sites or rng_for(seed, "sites", patient).permutation(laboratories).tolist()
        rng = rng_for(seed, "patient", patient)
        truths += _plan_patient(rng, patient, scores.pop(), sites.pop(), size, options.stain)
        patient += 1
    return [replace(truth, kind=options.kind) for truth in truths[:slides]]


def _plan_patient(
    rng: np.random.Generator, number: int, ihc: str, site: str, size: tuple[int, int], only: Stain | None = None
) -> list[SlideTruth]:
    """Draw the slides of one patient.  only: the stain of all slides, instead of a drawn one."""
    patient_id, name = f"P{number + 1:03d}", PATIENT_NAMES[number % len(PATIENT_NAMES)]
    positive = {"er": rng.random() < 0.65, "pr": rng.random() < 0.5}
    stains: list[Stain] = [
        "her2",
        *(FOLLOW_UP_STAINS[k] for k in rng.integers(len(FOLLOW_UP_STAINS), size=rng.choice(3, p=[0.5, 0.3, 0.2]))),
    ]
    stains = [only or stain for stain in stains]
    mixes = [draw_mix(ihc, rng) if stain == "her2" else _draw_marker(stain, positive, rng) for stain in stains]
    ish = draw_ish(mixes[0], rng) if ihc == "2+" else None
    truths = []
    for k, (stain, mix) in enumerate(zip(stains, mixes, strict=True), start=1):
        width, height = (max(MIN_SLIDE_PX, round(edge * np.clip(rng.lognormal(0, 0.15), 0.6, 1.6))) for edge in size)
        pieces = 1 + int(rng.choice(3, p=[0.5, 0.35, 0.15])) if max(width, height) >= 3000 else 1
        artefacts = tuple(name for name in ARTEFACTS if rng.random() < 0.2)
        own_ish = ish if stain == "her2" else None
        truths.append(
            SlideTruth(
                f"{patient_id}-{k}", mix, stain, own_ish, patient_id, name, site, artefacts, pieces, width, height
            )
        )
    return truths


def draw_ish(mix: CellMix, rng: np.random.Generator) -> str | None:
    """Draw the ISH of a 2+ tumour: about a fifth is positive, more with intense staining; it is sometimes missing."""
    if rng.random() < 0.07:
        return None
    return "+" if rng.random() < np.clip(0.2 + 0.8 * (mix.moderate - 0.38), 0.05, 0.5) else "-"


def draw_mix(ihc: str, rng: np.random.Generator) -> CellMix:
    """Draw a cell mix that has a HER2 score, sometimes close to the adjacent score."""
    near = rng.random() < BORDERLINE_SHARE
    u = rng.uniform
    faint = moderate = intense = 0.0
    if ihc == "0":
        faint = u(0.05, 0.09) if near else u(0.0, 0.03)
    elif ihc == "1+":
        faint, moderate = (u(0.12, 0.17), 0.0) if near else (u(0.3, 0.75), u(0.0, 0.05))
    elif ihc == "2+" and near:
        faint, moderate, intense = u(0.2, 0.5), u(0.12, 0.16), u(0.02, 0.08)
    elif ihc == "2+":
        faint, moderate, intense = u(0.15, 0.35), u(0.2, 0.6), u(0.0, 0.05)
    elif near:
        faint, moderate, intense = u(0.2, 0.3), u(0.2, 0.4), u(0.12, 0.2)
    else:
        faint, moderate, intense = u(0.02, 0.12), u(0.08, 0.25), u(0.35, 0.62)
    return CellMix(1 - faint - moderate - intense, faint, moderate, intense)


def draw_nuclei(positive: bool, rng: np.random.Generator) -> CellMix:
    """Draw the mix of ER or PR nuclei: none stained, or more than 1 %, sometimes low-positive (under 10 %)."""
    if not positive:
        return CellMix(1.0, 0.0, 0.0, 0.0)
    share = rng.uniform(0.02, 0.1) if rng.random() < BORDERLINE_SHARE / 2 else rng.uniform(0.3, 0.98)
    weak, moderate, strong = (share * rng.dirichlet([1.0, 2.0, 3.0])).tolist()
    return CellMix(1 - weak - moderate - strong, weak, moderate, strong)


def _draw_marker(stain: Stain, positive: dict[str, bool], rng: np.random.Generator) -> CellMix:
    """Draw the mix of a nuclear marker: of ER and PR by the tumour's status, of Ki-67 from 1 to 90 %."""
    if stain != "ki67":
        return draw_nuclei(positive[stain], rng)
    share = float(np.exp(rng.uniform(np.log(0.01), np.log(0.9))))  # median 9 %
    weak, moderate, strong = (share * rng.dirichlet([1.0, 2.0, 3.0])).tolist()
    return CellMix(1 - weak - moderate - strong, weak, moderate, strong)


def write_labels(path: Path, truths: list[SlideTruth]) -> None:
    """Write labels.csv. A slide has only the labels of its own stain."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, LABEL_HEADER, lineterminator="\n")
        rows.writeheader()
        for truth in truths:
            ish = truth.ish if truth.her2 == "2+" else None
            values = (truth.slide_id, truth.patient_id, truth.her2, ish, truth.receptor("er"), truth.receptor("pr"))
            rows.writerow(dict(zip(LABEL_HEADER, (*values, truth.site, truth.stain), strict=True)))


def _write_slide_files(out: Path, seed: int, planned: SlideTruth) -> SlideTruth:
    """Write a slide, its annotations and its ground truth; return the truth.

    The returned mix is that of the cells as placed, which on small slides differs slightly from the planned one.
    """
    painted = make_slide_with_cells(out / "slides" / f"{planned.slide_id}.svs", planned, seed)
    specimen = painted.specimen
    truth = replace(planned, mix=specimen.mix)
    if truth.her2 is not None:
        features = draw_annotations(specimen, rng_for(seed, truth.slide_id, "annotations"))
        collection = {"type": "FeatureCollection", "features": features}
        (out / "annotations" / f"{truth.slide_id}.geojson").write_text(json.dumps(collection), encoding="utf-8")
    write_truth(out / "truth", truth, painted)
    return truth


def write_truth(folder: Path, truth: SlideTruth, painted: PaintedSlide) -> None:
    """Write masks, facts and cells of a slide as described in the module's docstring."""
    specimen = painted.specimen
    arrays: dict[str, Any] = {"downsample": specimen.fields.px, "regions": specimen.regions, **specimen.masks}
    np.savez_compressed(folder / f"{truth.slide_id}.npz", **arrays)
    labels = {"her2": truth.her2, "er": truth.receptor("er"), "pr": truth.receptor("pr")}
    facts = asdict(truth) | labels | {"mix": truth.mix._asdict(), "n_tumour_cells": specimen.n_cells}
    facts["laboratory"] = asdict(painted.laboratory)
    if truth.stain != "her2":
        share = positive_share(truth.mix)
        facts |= {"positive_share": share, "h_score": h_score(truth.mix), "allred": allred_score(truth.mix)}
    (folder / f"{truth.slide_id}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    write_parquet(painted.cells, folder / f"{truth.slide_id}.cells.parquet")


class PaintedSlide(NamedTuple):
    """A painted slide: its pixels (height, width, 3) uint8, tissue, cells (`true_cells.CELL_COLUMNS`), laboratory."""

    rgb: Image
    specimen: SyntheticTissue
    cells: pa.Table
    laboratory: Laboratory


def paint_truth(truth: SlideTruth, seed: int = 0, laboratory: Laboratory | None = None) -> PaintedSlide:
    """Paint a slide without writing a file.  laboratory: by default that of the slide's site."""
    laboratory = laboratory or laboratory_of(truth.site)
    specimen = make_tissue(truth, seed, laboratory)
    sums = CellSums(specimen.cells.x, specimen.cells.y)
    size = truth.width, truth.height
    rgb = paint_slide(specimen.cells, specimen.fields, specimen.noise, specimen.appearance, size, sums)
    cells = cell_table(truth, specimen, sums)
    if truth.kind == "grey":
        rgb = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    elif truth.kind == "noise":
        rng = rng_for(seed, truth.slide_id, "noise")
        rgb, cells = rng.integers(0, 256, (truth.height, truth.width, 3), np.uint8), empty_cells()
    return PaintedSlide(rgb, specimen, cells, laboratory)


def make_slide(path: Path, truth: SlideTruth, seed: int = 0, laboratory: Laboratory | None = None) -> SyntheticTissue:
    """Paint a slide, write it to `path` as an Aperio SVS, and return its tissue with the ground truth.

    1500 × 1200 px take about 0.3 s.  laboratory: by default that of the slide's site.
    """
    return make_slide_with_cells(path, truth, seed, laboratory).specimen


def make_slide_with_cells(
    path: Path, truth: SlideTruth, seed: int = 0, laboratory: Laboratory | None = None
) -> PaintedSlide:
    """Paint a slide, write it to `path` as an Aperio SVS, and return it with its tissue and cells."""
    painted = paint_truth(truth, seed, laboratory)
    write_svs(path, painted.rgb, truth, painted.laboratory.jpeg_quality, painted.laboratory.subsampling)
    return painted


def draw_annotations(specimen: SyntheticTissue, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return regions as QuPath exports them, in level-0 px: about half of the fields of VIEW_UM are annotated."""
    regions, px = specimen.regions, specimen.fields.px
    view = max(1, round(VIEW_UM / specimen.appearance.mpp / px))
    seen = rng.random((-(-regions.shape[0] // view), -(-regions.shape[1] // view))) < 0.5
    seen[rng.integers(seen.shape[0]), rng.integers(seen.shape[1])] = True
    shown = regions * np.kron(seen, np.ones((view, view), bool))[: regions.shape[0], : regions.shape[1]]
    return [
        _geojson_feature(name, rings, px)
        for k, name in enumerate(IHC_SCORES, start=1)
        for rings in _outlines(shown == k)
    ]


def _outlines(mask: NDArray[np.bool_]) -> Iterator[list[NDArray[np.int32]]]:
    """Yield the larger parts of a mask, each as its outline and those of its holes: (n, 2) x, y in px of the mask."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    contours, tree = cv2.findContours(opened, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    smoothed = [cv2.approxPolyDP(contour, 0.8, True)[:, 0] for contour in contours]
    large = [len(ring) > 2 and cv2.contourArea(ring) >= MIN_REGION_PX for ring in smoothed]
    for k, outline in enumerate(smoothed):
        parents = tree[0, :, 3]
        if large[k] and parents[k] < 0:
            yield [outline, *(smoothed[i] for i in np.flatnonzero(parents == k) if large[i])]


def _geojson_feature(name: str, rings: list[NDArray[np.int32]], px: int) -> dict[str, Any]:
    closed = [((np.vstack([ring, ring[:1]]) + 0.5) * px).tolist() for ring in rings]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": closed},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": CLASS_COLOURS[name]}},
    }
