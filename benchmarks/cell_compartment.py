"""How are tumour cells told from stroma? Fits the coefficients of `vision/cells/compartment.py`, and tests them.

usage: cell_compartment.py [--laboratories 24] [--seed 1] [--workers N]

The model is fitted on slides of laboratories 1 to 24, on the cells that were found in a true nucleus: HER2 slides for
membrane markers, ER slides for nuclear markers. It is tested on the laboratories of even number, fitted on those of odd
number. Prints the coefficients in the order of INPUTS.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from synthetic_slides import MPP, Job, cut_tiles, plan_jobs, read_slide, sampled

from her2batch.synthetic.true_cells import match_cells
from her2batch.vision.cells import detection
from her2batch.vision.cells.compartment import INPUTS, model_inputs

Sample = tuple[int, str, NDArray[np.float32], NDArray[np.bool_]]


def collect(job: Job) -> Sample:
    """Return laboratory, kind of marker, inputs of the model (n, len(INPUTS)) and truth (n,) of a slide's cells."""
    kept: list[NDArray[np.float32]] = []

    def remember(*args: object) -> NDArray[np.float32]:
        kept.append(model_inputs(*args))  # type: ignore[arg-type]
        return kept[-1]

    _, _, pixels, cells = read_slide(job)
    tiles, stains = cut_tiles(pixels)
    reference = detection.fit_cell_reference(sampled(tiles), MPP, stains)
    marker: detection.Marker = "membrane" if job[2] == "her2" else "nuclear"
    detection.model_inputs, detection.MIN_HOLE_SHARE = remember, -1.0  # keep every cell, so that rows correspond
    found = detection.detect_cells(pixels, MPP, stains, reference, marker)
    rows = match_cells(cells, 2 * found.x + 0.5, 2 * found.y + 0.5, MPP / 2)
    tumour = cells["tumour"].to_numpy(zero_copy_only=False)[rows[rows >= 0]]
    return job[0], marker, kept[-1][rows >= 0], tumour


def main() -> None:
    """Fit, test and print the model of each kind of marker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laboratories", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    from concurrent.futures import ProcessPoolExecutor

    jobs = [job for job in plan_jobs(range(1, args.laboratories + 1), args.seed) if job[3] == "usual"]
    with ProcessPoolExecutor(args.workers) as pool:
        samples = list(pool.map(collect, jobs))
    for marker in ("membrane", "nuclear"):
        own = [one for one in samples if one[1] == marker]
        lab = np.concatenate([np.full(len(one[3]), one[0]) for one in own])
        inputs, truth = (np.concatenate([one[k] for one in own]) for k in (2, 3))
        fit = partial(LogisticRegression(C=1, max_iter=5000).fit, inputs[:, 1:], truth)
        odd = lab % 2 == 1
        half = LogisticRegression(C=1, max_iter=5000).fit(inputs[odd, 1:], truth[odd])
        auc = roc_auc_score(truth[~odd], half.decision_function(inputs[~odd, 1:]))
        model = fit()
        values = [float(model.intercept_[0]), *model.coef_[0].tolist()]
        print(f"{marker}: {len(truth):,} cells, AUC on other laboratories {auc:.4f}")
        print("   " + ", ".join(f"{name} {value:.3f}" for name, value in zip(INPUTS, values, strict=True)))


if __name__ == "__main__":
    main()
