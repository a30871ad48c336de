"""Tasks, their classes, methods and inputs; the class of a label; the slides that a task applies to."""

from __future__ import annotations

from typing import Final

IHC_SCORES: Final = ("0", "1+", "2+", "3+")

HER2_DETAILS: Final = ("null", "ultralow")
"""Sub-scores of 0: no membrane staining; faint, incomplete staining in at most 10 % of the tumour cells."""

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "her2-4way": IHC_SCORES,
    "her2-5way": (*HER2_DETAILS, *IHC_SCORES[1:]),
    "her2-3way": ("0", "low", "high"),
    "her2-binary": ("negative", "positive"),
    "er": ("negative", "positive"),
    "pr": ("negative", "positive"),
}
"""Task → its classes, in the order of every probability list."""

RULE_TASKS: Final = ("her2-4way", "her2-3way", "her2-binary")
"""HER2 tasks whose class follows from the IHC score and the ISH result: those of the membrane rule."""

DETAIL_TASK: Final = "her2-5way"
"""HER2 task that divides the score 0 into its sub-scores, which labels must state."""

HER2_TASKS: Final = (*RULE_TASKS, DETAIL_TASK)

SCORE_TASKS: Final = ("her2-4way", DETAIL_TASK)
"""Tasks whose classes are IHC scores, or sub-scores of 0."""

MEMBRANE_RULE: Final = "membrane"
"""Name of the membrane rule, as a method and as a bundle."""

RESOLUTIONS: Final[dict[str, float]] = {"low": 3.24, "moderate": 1.17, "high": 0.23}
"""Patch resolution → µm/px (paper, section 3: mean slide sizes at 0.23 µm/px)."""

IMAGE_METHODS: Final = ("convnext-small", "resnet50", "densenet201", "vit-base")
"""Approach 2 of the paper: on the thumbnail of a slide."""

COUNTS_METHODS: Final = ("random-forest", "svm", "mlp", "majority-vote")
"""Approach 3 of the paper: on the counts of patch classes, which a convnext-small predicts."""

THUMBNAIL_INPUTS: Final[dict[str, int]] = {"thumbnail-224": 224, "thumbnail-512": 512}
"""Input of approach 2 → its edge in px."""

PATCH_INPUTS: Final[dict[str, float]] = {f"patches-{name}": mpp for name, mpp in RESOLUTIONS.items()}
"""Input of approach 3 → µm/px of its patches."""

PATCH_PX: Final = 224
"""Edge of a patch (paper, 2.3)."""

STAINS: Final = ("her2", "er", "pr", "ki67", "he", "ihc")
"""Stains of a slide: a marker, H&E (`he`), or haematoxylin and DAB with an unknown marker (`ihc`)."""


def her2_class(task: str, ihc: str, ish: str | None, detail: str | None = None) -> str | None:
    """The class of an IHC score ('0' … '3+') and an ISH result ('+', '-' or None) in a HER2 task.

    detail: sub-score of 0, `null` or `ultralow`; None where it is not known.  None: 2+ without ISH, or 0 without
    sub-score, where the task needs it.  Source: paper, table 2; ASCO/CAP 2018, affirmed 2023; for the sub-scores the
    ESMO consensus of 2023 and CAP 2024, as DESTINY-Breast06 used them.  Raises ValueError for other tasks.
    """
    if task == "her2-4way":
        return ihc
    if task == DETAIL_TASK:
        return detail if ihc == "0" else ihc
    if ihc == "2+" and ish is None:
        return None
    high = ihc == "3+" or (ihc == "2+" and ish == "+")
    if task == "her2-binary":
        return "positive" if high else "negative"
    if task == "her2-3way":
        return "high" if high else "0" if ihc == "0" else "low"
    raise ValueError(f"{task} is no HER2 task; known: {', '.join(HER2_TASKS)}")


def ihc_score(label: str) -> str:
    """The IHC score of a class of SCORE_TASKS: its own, and 0 of a sub-score."""
    return "0" if label in HER2_DETAILS else label


def task_applies(task: str, stain: str | None) -> bool:
    """Whether a task applies to slides of a stain. Training and scoring select their slides by this rule.

    stain: of the labels, or of the slides table where the labels give none.  HER2 tasks apply to HER2 slides and to IHC
    slides whose marker is not known (`ihc` or None), which are presumed to be HER2; ER and PR to slides of that marker.
    """
    return stain in ("her2", "ihc", None) if task in HER2_TASKS else stain == task
