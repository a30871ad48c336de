"""Reasons to look at a slide: their codes, kinds and words, and which of them ask for a review."""

from __future__ import annotations

from typing import Final

REASONS: Final[dict[str, tuple[str, str]]] = {
    "failed": ("failed", "no result"),
    "no-tissue": ("failed", "no tissue was found"),
    "no-method": ("failed", "no method gave a result"),
    "control-failed": ("control", "a control tissue of this run did not score as expected"),
    "control-missing": ("control", "a control tissue was not found where it should be"),
    "control-suspected": ("control", "a piece of tissue may be a control"),
    "only-controls": ("control", "all tissue of the slide is control tissue, or excluded"),
    "needs-ish": ("ish", "2+ is equivocal: ISH needed"),
    "not-ihc": ("not-scorable", "stained with haematoxylin and eosin, not for HER2"),
    "no-colour": ("not-scorable", "the image has no colours: a grey copy, or no stain"),
    "other-stain": ("not-scorable", "another stain than haematoxylin and DAB"),
    "nuclear-staining": ("not-scorable", "DAB lies in the nuclei, as of ER or PR"),
    "cytoplasmic-staining": ("not-scorable", "brown cytoplasm without membranes"),
    "few-tumour-cells": ("not-scorable", "too few tumour cells"),
    "cells-disagree": ("disagreement", "tumour cells and membrane area give different classes"),
    "methods-disagree": ("disagreement", "the methods give different classes"),
    "ish-contradicts": ("disagreement", "the laboratory's ISH result contradicts the score"),
    "pen": ("quality", "pen ink on the slide"),
    "blurred": ("quality", "much of the tissue is out of focus"),
    "overexposed": ("quality", "overexposed: staining can't be measured where colours are clipped"),
    "missing-tiles": ("quality", "parts of the tissue have no image"),
    "bit-depth-assumed": ("quality", "the range of the 16-bit samples is assumed"),
    "folds": ("quality", "folded tissue"),
    "tissue-methods-disagree": ("quality", "it is uncertain which part of the slide is tissue"),
    "no-background": ("quality", "hardly any background: the white point can't be measured"),
    "uneven-background": ("quality", "uneven illumination"),
    "dark-background": ("quality", "dark background"),
    "mpp-sources-disagree": ("quality", "the file contradicts itself about its resolution (µm/px)"),
    "other-images": ("quality", "the file has another large image, which was not read"),
    "no-regions": ("scope", "no annotated regions: the whole tissue was scored"),
    "no-unstained-nuclei": ("quality", "hardly any unstained nucleus was found: is the counterstain too pale?"),
    "low-cellularity": ("quality", "hardly any cells: is the tumour on this slide?"),
    "unconfirmed-3-plus": ("borderline", "3+ by the area of the membranes, or by the cells, alone"),
    "near-10-percent": ("borderline", "a share of the membranes is near the guideline's 10\u00a0%"),
    "weak-complete": ("borderline", "weak but complete membranes in most cells: 2+ by the guideline"),
    "undecided": ("borderline", "several classes can't be ruled out"),
    "abstained": ("borderline", "the calibration leaves more than one class"),
    "too-few-labels": ("model", "too few labelled slides of a class for the coverage asked"),
    "outside-calibration": ("model", "outside the range of the calibration, which was not used"),
    "calibration-scanner": ("model", "the calibration has no labelled slide of its scanner or site"),
    "calibration-drift": ("model", "its counterstain lies outside the range of the calibration's slides: drift"),
    "calibration-evidence": ("model", "a measurement that the calibration needs is missing, such as tumour cells"),
    "method-asks": ("model", "a method asks for a review"),
    "uncalibrated": ("model", "a method without calibration of this laboratory"),
    "ultralow": ("borderline", "0 with traces of staining (ultralow)"),
    "low-positive": ("borderline", "ER low-positive: 1–10\u00a0% of the tumour cells"),
    "weak-nuclei": ("borderline", "ER-positive nuclei are stained weakly"),
    "cells-imported": ("scope", "its cells were detected by another program"),
    "microarray": ("scope", "a tissue microarray: each core has its own score, the slide has none"),
    "regions": ("scope", "scored in annotated regions only"),
    "marker-doubtful": ("marker", "no label states the marker, and many nuclei are brown: is it HER2?"),
    "marker-presumed": ("marker", "no label states the marker: HER2 is presumed"),
    "mpp-forced": ("scope", "the resolution of the file was replaced (--mpp-force)"),
}
"""Reason → its kind and its words, the weightiest first."""

WEIGHTS: Final = {code: position for position, code in enumerate(REASONS)}
"""Reason → its position in REASONS."""

NOT_ASKING: Final = frozenset(
    {"uncalibrated", "ultralow", "cells-imported", "marker-presumed", "regions", "mpp-forced"}
)
"""Reasons that are shown but do not ask for a review."""

KINDS: Final = {
    "failed": "no result",
    "control": "controls",
    "not-scorable": "not scorable",
    "ish": "ISH needed",
    "disagreement": "methods differ",
    "quality": "image quality",
    "borderline": "borderline",
    "model": "model",
    "scope": "part of the slide",
    "marker": "marker",
}
"""Kind of reasons → its name in filters."""
