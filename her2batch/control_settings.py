"""Settings of control tissue, which are part of a plan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from her2batch.frozen_settings import Settings


class ControlPlace(Settings):
    """An area of a slide where control tissue is: a strip along a side, or a box, in mm from the label's edge.

    expected: class of the control; several are those of its pieces, in their order along the side.
    """

    side: Literal["left", "right", "top", "bottom"] = Field(
        "left", description="side of the image at which the label is, or from which distances are measured"
    )
    mm: float | None = Field(None, gt=0, le=80, description="depth of the strip along the side, mm")
    box: tuple[float, float, float, float] | None = Field(
        None, description="nearest and farthest distance from the side, first and last position along it, mm"
    )
    expected: tuple[str, ...] = Field((), description="expected class: 0, 1+, 2+ or 3+")


class ControlSlides(Settings):
    """Slides that consist of control tissue."""

    name: str = Field(min_length=1, description="slide id; `*` stands for any characters")
    expected: tuple[str, ...] = Field((), max_length=1, description="expected class: 0, 1+, 2+ or 3+")


class ControlAnnotations(Settings):
    """Classes of QuPath regions around control tissue, and around tissue that does not count."""

    control: tuple[str, ...] = Field(("Control",), description="classes of regions with control tissue")
    exclude: tuple[str, ...] = Field(("Exclude",), description="classes of regions that do not count")
    expected: tuple[str, ...] = Field((), max_length=1, description="expected class where the region's does not say it")


class Controls(Settings):
    """Where control tissue is. It never counts towards a slide's score.

    auto: pieces that are proposed are controls; else they are only flagged.
    """

    auto: bool = Field(False, description="pieces of tissue that are proposed as controls are controls")
    places: tuple[ControlPlace, ...] = Field((), description="areas of each slide")
    annotations: ControlAnnotations | None = Field(None, description="classes of QuPath regions")
    slides: tuple[ControlSlides, ...] = Field((), description="control slides, by their names")

    def __str__(self) -> str:
        counts = {"place": len(self.places), "name of control slides": len(self.slides)}
        parts = [f"{count} × {name}" for name, count in counts.items() if count]
        parts += ["annotations"] if self.annotations is not None else []
        return "auto" if self.auto else ", ".join(parts)
