"""Do a slide's controls help a calibration where the strength of the staining varies between runs?

usage: control_evidence.py [--laboratories 6] [--spread 0.8]

Draws tables of the membrane rule for laboratories whose staining has another strength in each run of eight slides, with
and without controls stained in the same run, and prints the accuracy of 200 further slides with 20 and 60 labelled
ones. The slides are the same in all rows. Nothing is painted: the figures are those of drawn shares, not of images.
"""

from __future__ import annotations

import argparse

import numpy as np

from her2batch.models.calibration.evidence import control_evidence, prediction_evidence, share_evidence
from her2batch.models.calibration.fitting import LabelledEvidence, fit_method
from her2batch.models.membrane_rule import apply_rule
from her2batch.tasks import IHC_SCORES
from tests.pipeline.calibration.laboratories import membrane_of

CONTROLS: tuple[tuple[str, ...], ...] = ((), ("3+",), ("1+", "2+", "3+"))

TESTED, IN_RUN = 200, 8


def laboratory(seed: int, spread: float, controls: tuple[str, ...], n: int) -> list[LabelledEvidence]:
    """Draw the slides of a laboratory, one a patient, with the evidence that a calibration reads."""
    draw = np.random.default_rng(seed)
    usual, slides = np.exp(draw.normal(0, 0.5)), []
    for k in range(n):
        if k % IN_RUN == 0:
            strength = usual * np.exp(draw.normal(0, spread))
        label = IHC_SCORES[draw.integers(4)]
        table = membrane_of(label, draw, strength)
        of_controls = np.random.default_rng([seed, k])  # so that the slides are the same with and without
        scores = {name: apply_rule(membrane_of(name, of_controls, strength)).score for name in controls}
        pieces = [{"role": "control", "expected": name, "score": score} for name, score in scores.items()]
        further = share_evidence(table) | control_evidence(pieces)
        prediction = {"p": apply_rule(table).p, "task": "her2-4way", "method": "membrane", "classes": list(IHC_SCORES)}
        evidence = prediction_evidence(prediction, "membrane", {"slide_id": f"s{k}"}, further, {})
        slides.append(LabelledEvidence(evidence, label, f"p{k}"))
    return slides


def accuracy(slides: list[LabelledEvidence], labelled: int) -> float:
    """Return the share of the slides after the labelled ones whose most likely class is right."""
    fitted = fit_method(slides[:labelled], None)
    model, tested = fitted.model.link(), slides[-TESTED:]
    p = np.concatenate([model.probabilities(one.evidence.matrix(fitted.centre)[None]) for one in tested])
    return float(np.mean([fitted.classes[k] == one.label for k, one in zip(p.argmax(axis=1), tested, strict=True)]))


def main() -> None:
    """Print a line for each set of controls and number of labelled slides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laboratories", type=int, default=6)
    parser.add_argument("--spread", type=float, default=0.8, help="standard deviation of the logarithm of the strength")
    args = parser.parse_args()
    for labelled in (20, 60):
        for controls in CONTROLS:
            found = [
                accuracy(laboratory(seed, args.spread, controls, labelled + TESTED), labelled)
                for seed in range(args.laboratories)
            ]
            words = ", ".join(controls) or "none"
            print(f"{labelled} labelled slides, controls {words}: accuracy {np.mean(found):.3f}", flush=True)


if __name__ == "__main__":
    main()
