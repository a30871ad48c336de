"""Settings, each declared once: Plan decides results and is hashed; Resources only say how fast."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen value; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(Settings):
    """What is computed. Two cohorts with one plan id and the same slides hold the same bytes."""

    encoders: tuple[str, ...] = Field(
        ("stain",),
        description="encoder of the tiles: stain, uni, uni2-h, virchow2, h-optimus-0 or timm:NAME; repeatable",
    )
    mpp: float = Field(0.5, ge=0.1, le=10, description="tile resolution, µm/px")
    tile: int = Field(224, ge=32, le=4096, description="tile edge, px at --mpp")
    min_tissue: float = Field(0.25, ge=0, le=1, description="share of a tile that must be tissue")
    mpp_override: float | None = Field(
        None, ge=0.05, le=20, description="µm/px of slides whose file gives no resolution"
    )
    reader: Literal["auto", "tiff", "cucim", "openslide"] = Field(
        "auto", description="what opens the slides: auto, tiff, cucim or openslide"
    )
    jpeg_quality: int = Field(
        90, ge=50, le=100, description="JPEG quality of pyramids whose slide can't be copied as it is"
    )
    lossless: bool = Field(
        False,
        description="pyramids whose slide can't be copied as it is: zstd without loss, six times larger, not JPEG",
    )
    bundle: str | None = Field(None, description="id of the bundle whose nets classify patches and thumbnails")

    @property
    def id(self) -> str:
        """Twelve hex digits that name this plan."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def for_slide(self, mpp_source: str | None) -> Plan:
        """The plan as one slide sees it: --mpp-override is no part of it where the file has its own resolution.

        So an override given later brings in the slides that lacked one and leaves the others as they are.
        """
        if mpp_source in ("file", "objective"):
            return self.model_copy(update={"mpp_override": None})
        return self


class Resources(Settings):
    """How fast, never what: nothing here changes a byte of the tables."""

    address: str = Field("local", description="Ray cluster: local, auto or HOST:PORT")
    workers: int | None = Field(
        None, ge=0, description="worker processes; 0: a plain loop without Ray; default: one a core"
    )
    gpus: float | None = Field(None, ge=0, description="GPUs to use; default: all that are there")
    worker_memory: int = Field(4_000_000_000, ge=500_000_000, description="bytes a worker may hold")
