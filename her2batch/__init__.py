"""HER2 scoring of whole-slide images, a cohort a night.

The public Python API. Every name is imported when it is first used, so that `import her2batch` is fast and loads
neither Ray nor torch nor cuCIM. See docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from her2batch.api.cohort_reader import open_cohort, open_slide
    from her2batch.api.commands import ingest, report, score, train
    from her2batch.models.encoders import register_encoder
    from her2batch.models.mil_registry import register_mil
    from her2batch.task_files import read_tasks

__all__ = [
    "ingest",
    "open_cohort",
    "open_slide",
    "read_tasks",
    "register_encoder",
    "register_mil",
    "report",
    "score",
    "train",
]

_MODULES = {
    **dict.fromkeys(("open_cohort", "open_slide"), "her2batch.api.cohort_reader"),
    **dict.fromkeys(("ingest", "report", "score", "train"), "her2batch.api.commands"),
    "register_encoder": "her2batch.models.encoders",
    "register_mil": "her2batch.models.mil_registry",
    "read_tasks": "her2batch.task_files",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use. Raises AttributeError for any other name."""
    if name == "__version__":
        from importlib.metadata import version

        return version("her2batch")
    if name not in _MODULES:
        raise AttributeError(f"module 'her2batch' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
