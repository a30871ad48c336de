"""Tasks, their classes, methods and inputs; the class of a label; the slides that a task applies to."""

from __future__ import annotations

from typing import Final

IHC_SCORES: Final = ("0", "1+", "2+", "3+")

HER2_DETAILS: Final = ("null", "ultralow")
"""Sub-scores of 0: no membrane staining; faint, incomplete staining in at most 10 % of the tumour cells."""

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "her2-4way": IHC_SCORES,
    "her2-3way": ("0", "low", "high"),
    "her2-binary": ("negative", "positive"),
    "er": ("negative", "positive"),
    "pr": ("negative", "positive"),
}
"""Task → its classes, in the order of every probability list."""

HER2_TASKS: Final = ("her2-4way", "her2-3way", "her2-binary")

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


def her2_class(task: str, ihc: str, ish: str | None) -> str | None:
    """The class of an IHC score ('0' … '3+') and an ISH result ('+', '-' or None) in a HER2 task.

    None: 2+ without ISH, where the task needs it.  Source: paper, table 2; ASCO/CAP 2018, affirmed 2023.
    Raises ValueError for other tasks.
    """
    if task == "her2-4way":
        return ihc
    if ihc == "2+" and ish is None:
        return None
    high = ihc == "3+" or (ihc == "2+" and ish == "+")
    if task == "her2-binary":
        return "positive" if high else "negative"
    if task == "her2-3way":
        return "high" if high else "0" if ihc == "0" else "low"
    raise ValueError(f"{task} is no HER2 task; known: {', '.join(HER2_TASKS)}")


def task_applies(task: str, stain: str | None) -> bool:
    """Whether a task applies to slides of a stain. Training and scoring select their slides by this rule.

    stain: of the labels, or of the slides table where the labels give none.  HER2 tasks apply to HER2 slides and to IHC
    slides whose marker is not known (`ihc` or None), which are presumed to be HER2; ER and PR to slides of that marker.
    """
    return stain in ("her2", "ihc", None) if task in HER2_TASKS else stain == task
