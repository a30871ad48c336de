"""Names of tasks and stains for readers: pages, reports and mails name no task by its key."""

from __future__ import annotations

from typing import Final

TASK_NAMES: Final = {
    "her2-4way": "IHC score",
    "her2-5way": "IHC score with null and ultralow",
    "her2-3way": "HER2 group",
    "her2-binary": "HER2 status",
    "er": "ER",
    "pr": "PR",
    "ki67": "Ki-67",
}
"""Task → its name for readers."""

STAIN_NAMES: Final = {"her2": "HER2", "er": "ER", "pr": "PR", "ki67": "Ki-67", "he": "H&E", "ihc": "marker not known"}
"""Stain of a slide → its name for readers."""


def task_name(task: str) -> str:
    """Return the name of a task; that of a task of the user's own is its key."""
    return TASK_NAMES.get(task, task)


def stain_name(stain: str | None) -> str:
    """Return the name of a stain; None: the marker is not known."""
    return STAIN_NAMES.get(stain or "ihc", str(stain))
