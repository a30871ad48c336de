"""Controls: how much of their area is found, how much of the patient's tissue is lost, and what becomes of the score.

    python benchmarks/controls.py [--slides 40] [--faded 20] [--out FOLDER]

Each slide has a patient's tissue of one to three pieces and three controls, 0, 2+ and 3+, at one end. It is ingested
with a file of places, with `auto`, and, as the reference, without the controls. On the faded slides the 3+ control is
one class weaker. Prints one JSON line; results on synthetic slides describe the software, not medicine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from her2batch.pipeline.growth.ingest_request import IngestRequest
from her2batch.runtime.ingest import ingest
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from her2batch.synthetic.cohort import draw_mix
from her2batch.synthetic.controls.control_slides import ControlSlideTruth, make_control_slide
from her2batch.synthetic.laboratory import SITES
from her2batch.synthetic.specimen import TYPICAL_MIXES, CellMix, SlideTruth, rng_for
from her2batch.tasks import IHC_SCORES

EXPECTED = ("0", "2+", "3+")
FILE = '[[place]]\nside = "{end}"\nmm = 0.5\nexpected = ["0", "2+", "3+"]\n'


def patient(number: int) -> SlideTruth:
    """The patient's tissue of a slide: scores, laboratories and numbers of pieces in turn."""
    mix = draw_mix(IHC_SCORES[number % 4], rng_for(7, "controls", number))
    site = list(SITES)[number % len(SITES)]
    return SlideTruth(f"S{number:02d}", mix, site=site, pieces=1 + number % 3, width=3000, height=2000, mpp=0.5)


def faded(mix: CellMix) -> CellMix:
    """The mix of a control that is stained one class weaker."""
    return CellMix(mix.none + mix.faint, mix.moderate, mix.intense, 0.0)


def run(scans: Path, out: Path, controls: str | None) -> Cohort:
    """Ingest a folder."""
    ingest(IngestRequest(scans, out, controls=controls), Plan(), Resources(workers=0))
    return Cohort(out)


def areas(cohort: Cohort, slide_id: str, truth: ControlSlideTruth) -> tuple[float, float]:
    """Share of the control area that is found, and of the patient's tissue that is lost, by the boxes of the pieces."""
    taken = np.zeros(truth.tissue.shape, bool)
    for piece in cohort.read("pieces", slide_id).to_pylist():
        if piece["role"] != "tissue":
            x, y, right, bottom = (
                round(value / truth.px)
                for value in (piece["x"], piece["y"], piece["x"] + piece["width"], piece["y"] + piece["height"])
            )
            taken[max(y - 1, 0) : bottom + 1, max(x - 1, 0) : right + 1] = True
    return float((taken & truth.controls).sum() / truth.controls.sum()), float(
        (taken & truth.tissue).sum() / truth.tissue.sum()
    )


def score(cohort: Cohort, slide_id: str) -> float:
    """Continuous score of the membrane rule."""
    return float(cohort.read("predictions/membrane", slide_id)["score"][0].as_py())


def compare(folder: Path, slides: int, end: str) -> dict[str, Any]:
    """Ingest slides with controls at one end, and the same tissue without."""
    for name in ("with", "without"):
        (folder / name).mkdir(parents=True)
    truths = {}
    for number in range(slides):
        own = patient(number)
        path = folder / "with" / f"{own.slide_id}.svs"
        truths[own.slide_id] = make_control_slide(path, own, EXPECTED, 7, end)
        make_control_slide(folder / "without" / f"{own.slide_id}.svs", own, [], 7, end)
    (folder / "controls.toml").write_text(FILE.format(end=end), encoding="utf-8")
    plain = run(folder / "without", folder / "cohort-without", None)
    unsaid = run(folder / "with", folder / "cohort-unsaid", None)
    result: dict[str, Any] = {
        "flagged_without_the_option": sum("control-suspected" in row["flags"] for row in unsaid.rows().values()),
        "flagged_without_controls": sum("control-suspected" in row["flags"] for row in plain.rows().values()),
        "score_difference_if_unsaid": max(abs(score(unsaid, one) - score(plain, one)) for one in truths),
    }
    for name, option in (("places", str(folder / "controls.toml")), ("auto", "auto")):
        cohort = run(folder / "with", folder / f"cohort-{name}", option)
        found = {one: areas(cohort, one, truth) for one, truth in truths.items()}
        differences = [abs(score(cohort, one) - score(plain, one)) for one in truths]
        result[name] = {
            "found": float(np.mean([share for share, _ in found.values()])),
            "least_found": min(share for share, _ in found.values()),
            "lost": float(np.mean([share for _, share in found.values()])),
            "most_lost": max(share for _, share in found.values()),
            "score_difference": max(differences),
            "failed": sum("control-failed" in row["flags"] for row in cohort.rows().values()),
            "missing": sum("control-missing" in row["flags"] for row in cohort.rows().values()),
        }
    return result


def fade(folder: Path, slides: int) -> dict[str, Any]:
    """Ingest slides whose 3+ control is a class weaker."""
    (folder / "scans").mkdir(parents=True)
    controls = [TYPICAL_MIXES["0"], TYPICAL_MIXES["2+"], faded(TYPICAL_MIXES["3+"])]
    for number in range(slides):
        own = patient(number)
        make_control_slide(folder / "scans" / f"{own.slide_id}.svs", own, controls, 7)
    (folder / "controls.toml").write_text(FILE.format(end="left"), encoding="utf-8")
    cohort = run(folder / "scans", folder / "cohort", str(folder / "controls.toml"))
    caught = sum("control-failed" in row["flags"] for row in cohort.rows().values())
    return {"slides": slides, "caught": caught}


def main() -> None:
    """Run both comparisons and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--faded", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        out, started = given.out or Path(temporary), time.process_time()
        result = {"slides": given.slides, "faded": fade(out / "faded", given.faded)}
        for end, part in (("left", given.slides - given.slides // 2), ("right", given.slides // 2)):
            result[end] = compare(out / end, part, end)
        print(json.dumps({**result, "cpu_seconds": time.process_time() - started}))


if __name__ == "__main__":
    main()
