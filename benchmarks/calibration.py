"""What does a calibration gain in laboratories that it has never seen, and do its sets hold what they promise?

usage: calibration.py SCRATCH [--laboratories 200 201 …] [--slides 160] [--seeds 20] [--cells all|off] [--json FILE]

Paints HER2 slides of each synthetic laboratory (seeds from 100 are held out: nothing was developed on them), measures
their membranes and cells once, and keeps the measurements in SCRATCH. Slides are small, 0.45 × 0.34 mm with about 400
tumour cells, so that one takes half a second. Of each laboratory, 5, 20 and 60 slides are drawn at random as labelled
ones, with other slides to test on, for each seed. Prints one table for the uncalibrated membrane rule and each number
of labelled slides: accuracy, quadratic kappa, ECE (ten bins of equal mass), coverage of the sets on average and of each
class, share abstained, error among the others, error of the surer half of the slides, and the share of all errors in
the first fifth of the review queue; then the same for each laboratory in short. The slides are synthetic: the results
describe the software, not medicine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from synthetic_slides import MPP, cut_tiles, sampled

from her2batch.assessment import IHC_TASK
from her2batch.models.calibration.calibration_file import Calibration
from her2batch.models.calibration.evidence import (
    CELLS_EVIDENCE,
    COUNTERSTAIN,
    SlideEvidence,
    prediction_evidence,
    share_evidence,
)
from her2batch.models.calibration.fitting import LabelledEvidence, fit_method
from her2batch.models.calibration.predictions import CalibratedPredictor
from her2batch.models.guideline.cell_rule import score_cells
from her2batch.models.membrane_rule import apply_rule, rule_predictions
from her2batch.settings import ALGORITHMS
from her2batch.synthetic.cohort import draw_mix, paint_truth
from her2batch.synthetic.outlines import rng_for
from her2batch.synthetic.specimen import CellMix, SlideTruth, ihc_score
from her2batch.tasks import IHC_SCORES
from her2batch.training.metrics import confusion_counts, kappa
from her2batch.vision.cells.detection import detect_cells, fit_cell_reference
from her2batch.vision.membrane import MEMBRANE_COLUMNS, feature_index, measure_tiles

SIZE = 1792, 1344
"""Width and height of a slide, level-0 px of 0.25 µm."""

LABELLED = (5, 20, 60)
QUEUE = 0.2
"""Share of the slides at the head of the review queue."""

Floats = NDArray[np.float64]


def paint_jpeg(seed: int, number: int) -> tuple[bytes, CellMix]:
    """Paint a slide of a laboratory, and return it as the laboratory compresses it, with its mix of cells."""
    mix = draw_mix(IHC_SCORES[number % 4], rng_for(seed, "mix", number))
    truth = SlideTruth(f"L{seed}-{number}", mix, "her2", site=f"lab-{seed}", width=SIZE[0], height=SIZE[1])
    painted = paint_truth(truth, seed)
    quality, chroma = painted.laboratory.jpeg_quality, painted.laboratory.subsampling
    return simplejpeg.encode_jpeg(np.ascontiguousarray(painted.rgb), quality, "RGB", chroma), painted.specimen.mix


def measure_jpeg(content: bytes, mix: CellMix) -> list[float]:
    """Return class, cellular area, membrane shares (6), counterstain, and the probabilities by the cells (4)."""
    cv2.setNumThreads(1)
    pixels = cv2.resize(simplejpeg.decode_jpeg(content), (SIZE[0] // 2, SIZE[1] // 2), interpolation=cv2.INTER_AREA)
    tiles, stains = cut_tiles(np.asarray(pixels, np.uint8))
    reference = fit_cell_reference(sampled(tiles), MPP, stains)
    found = detect_cells(np.asarray(pixels, np.uint8), MPP, stains, reference, "membrane")
    features = measure_tiles(tiles, MPP, stains).astype(np.float64)
    weight = features[:, 0]
    shares = (weight[:, None] * features[:, 1:7]).sum(axis=0) / max(weight.sum(), 1e-9)
    counterstain = features[:, feature_index("haematoxylin_p90")].mean()
    cells = score_cells(found.category, found.tumour).p
    label = IHC_SCORES.index(ihc_score(mix))
    return [label, weight.mean(), *shares.tolist(), float(counterstain), *cells]


def measure_slide(seed: int, number: int) -> list[float]:
    """Paint and measure a slide of a laboratory."""
    return measure_jpeg(*paint_jpeg(seed, number))


def measurements(scratch: Path, seed: int, slides: int) -> Floats:
    """Return the measurements of a laboratory's slides, (slides, 13), from SCRATCH where they are there."""
    path = scratch / f"laboratory-{seed}-{slides}.npy"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array([measure_slide(seed, number) for number in range(slides)]))
    return np.asarray(np.load(path), np.float64)


@dataclass(frozen=True)
class Slide:
    """A slide: its class, its uncalibrated prediction, and the evidence of that."""

    label: str
    prediction: dict[str, Any]
    evidence: SlideEvidence


def as_slides(values: Floats, seed: int, with_cells: bool) -> list[Slide]:
    """Return slides as an ingest would predict them. values: of `measurements`."""
    slides = []
    for number, row in enumerate(values):
        membrane = {name: np.array([row[1 + k]], np.float32) for k, name in enumerate(MEMBRANE_COLUMNS)}
        prediction = next(one for one in rule_predictions(apply_rule(membrane), False) if one["task"] == IHC_TASK)
        further = {**share_evidence(membrane), COUNTERSTAIN: float(np.log(max(row[8], 1e-3)))}
        slide = {"slide_id": f"{seed}-{number}", "format": "aperio", "mpp": 0.25}
        cells = {CELLS_EVIDENCE: row[9:].tolist()} if with_cells else {}
        evidence = prediction_evidence(prediction, "membrane", slide, further, {COUNTERSTAIN: float(row[8])}, cells)
        slides.append(Slide(IHC_SCORES[int(row[0])], prediction, evidence))
    return slides


def predict(labelled: Sequence[Slide], tested: Sequence[Slide], coverage: float) -> list[dict[str, Any]]:
    """Return the rows of her2-4way for the tested slides; uncalibrated without labelled ones."""
    if not labelled:
        return [slide.prediction for slide in tested]
    learnt = [LabelledEvidence(one.evidence, one.label, one.evidence.slide) for one in labelled]
    made = Calibration(
        her2batch="benchmark", algorithms=ALGORITHMS, plan="benchmark", stains=("her2",), coverage=coverage,
        methods=(fit_method(learnt, None),),
    )  # fmt: skip
    predictor = CalibratedPredictor(made)
    return [predictor(one.prediction, one.evidence, None)[0] for one in tested]


def figures(rows: Sequence[dict[str, Any]], tested: Sequence[Slide]) -> dict[str, float]:
    """Return the figures of predictions; NaN where there is nothing to count."""
    truth = np.array([IHC_SCORES.index(one.label) for one in tested])
    p = np.array([row["p"] for row in rows], np.float64)
    predicted = np.array([IHC_SCORES.index(row["predicted"]) for row in rows])
    sets = np.array([[name in row["plausible"] for name in IHC_SCORES] for row in rows])
    wrong, single = predicted != truth, sets.sum(axis=1) == 1
    covered = sets[np.arange(len(truth)), truth]
    edges = np.diff(np.pad(sets, ((0, 0), (1, 1))).astype(int), axis=1)
    order = np.argsort(p[np.arange(len(p)), predicted], kind="stable")
    queue, surer = order[: round(QUEUE * len(p))], order[len(p) // 2 :]
    return {
        "accuracy": 1 - wrong.mean(),
        "kappa": float(kappa(confusion_counts(truth, predicted, 4))),
        "ece": expected_calibration_error(p, truth, predicted),
        "coverage": covered.mean(),
        **{f"coverage {name}": covered[truth == k].mean() for k, name in enumerate(IHC_SCORES)},
        "abstained": 1 - single.mean(),
        "error of the others": wrong[single].mean() if single.any() else np.nan,
        "error of the surer half": wrong[surer].mean(),
        "errors in the queue": wrong[queue].sum() / wrong.sum() if wrong.any() else np.nan,
        "with gaps": (edges == 1).sum(axis=1).max() - 1.0,
    }


def expected_calibration_error(p: Floats, truth: NDArray[Any], predicted: NDArray[Any], bins: int = 10) -> float:
    """Return the mean difference of confidence and accuracy in bins of equal mass (Nixon et al., 2019)."""
    confidence = p[np.arange(len(p)), predicted]
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    right = predicted == truth
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts) / len(p))


def main() -> None:
    """Measure the laboratories, and print the table and the paired comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--laboratories", type=int, nargs="+", default=list(range(200, 208)))
    parser.add_argument("--slides", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--cells", choices=("all", "off"), default="all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in (0, *LABELLED)}
    for number in args.laboratories:
        slides = as_slides(measurements(args.scratch, number, args.slides), number, args.cells == "all")
        for seed in range(args.seeds):
            order = np.random.default_rng(seed).permutation(len(slides))
            tested = [slides[k] for k in order[max(LABELLED) :]]
            for n, collected in found.items():
                rows = predict([slides[k] for k in order[:n]], tested, args.coverage)
                collected.append({"laboratory": number, "seed": seed, **figures(rows, tested)})
    print_table(found)
    print_harm(found)
    print_laboratories(found)
    if args.json is not None:
        args.json.write_text(json.dumps({str(n): rows for n, rows in found.items()}))


def print_table(found: dict[int, list[dict[str, Any]]]) -> None:
    """Print the mean of each figure over laboratories and seeds."""
    names = [name for name in found[0][0] if name not in ("laboratory", "seed")]
    print("| labelled slides | " + " | ".join(names) + " |")
    print("| --- " * (len(names) + 1) + "|")
    for n, rows in found.items():
        values = [np.nanmean([row[name] for row in rows]) if _any(rows, name) else np.nan for name in names]
        print(f"| {n or 'none'} | " + " | ".join("–" if np.isnan(value) else f"{value:.3f}" for value in values) + " |")


def _any(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return any(not np.isnan(row[name]) for row in rows)


def print_harm(found: dict[int, list[dict[str, Any]]]) -> None:
    """Print how often labelled slides lowered kappa: of seeds, over all laboratories, and of single laboratories."""
    seeds = sorted({row["seed"] for row in found[0]})
    for n in LABELLED:
        single = np.array([row["kappa"] - none["kappa"] for row, none in zip(found[n], found[0], strict=True)])
        of_seed = np.array([single[[row["seed"] == seed for row in found[n]]].mean() for seed in seeds])
        of_all = f"kappa lower in {(of_seed < 0).sum()} of {len(seeds)} seeds (least gain {of_seed.min():+.3f})"
        of_one = f"in {(single < 0).sum()} of {len(single)} draws of one laboratory ({single.min():+.3f})"
        print(f"{n} labelled slides against none: {of_all}; {of_one}")


def print_laboratories(found: dict[int, list[dict[str, Any]]]) -> None:
    """Print accuracy, ECE, the least coverage of a class and the errors in the queue of each laboratory."""
    for number in dict.fromkeys(row["laboratory"] for row in found[0]):
        words = []
        for n, rows in found.items():
            own = [row for row in rows if row["laboratory"] == number]
            accuracy, ece = (np.mean([row[name] for row in own]) for name in ("accuracy", "ece"))
            least = min(np.nanmean([row[f"coverage {name}"] for row in own]) for name in IHC_SCORES)
            words.append(f"{n or 'none'}: accuracy {accuracy:.3f}, ECE {ece:.3f}, least coverage {least:.3f}")
        print(f"laboratory {number}: {'; '.join(words)}")


if __name__ == "__main__":
    main()
