"""From what the stages gave to the slide's row and its files."""

from __future__ import annotations

from pathlib import Path

from her2batch.errors import SlideError
from her2batch.pipeline.slide_state import SlideState
from her2batch.slides.slide import SlideInfo
from her2batch.store.cohort import Draft, Row

DONE: Row = {"status": "done", "error_code": None, "error": None}

BLANK_LIMIT = 0.01
"""Share of a slide's tissue tiles that may be blank; beyond, the slide fails."""


def file_columns(info: SlideInfo) -> Row:
    """The columns of `slides` that the slide file determines."""
    return {
        "format": info.format,
        "reader": info.reader,
        "width": info.width,
        "height": info.height,
        "level_downsamples": list(info.level_downsamples),
        "mpp": info.mpp,
        "mpp_source": info.mpp_source,
        "objective": info.objective,
    }


def result_columns(state: SlideState, path: Path) -> Row:
    """The columns of `slides` that the stages determine.

    path: the slide file, for the error.  Raises SlideError `blank-tiles`.
    """
    n, tissue = len(state.tissue_tiles.grids["tiles"].tiles), state.tissue_tiles.tissue
    blank = int(state.measurements.column("blank").sum())
    if blank > BLANK_LIMIT * n:
        raise SlideError("blank-tiles", path, f"{blank} of {n} tiles inside its tissue hold no image")
    quality = state.quality.with_tile_blur(state.measurements.in_tile_order("blur", n))
    no_tissue = n == 0 and "no-tissue" not in quality.flags
    return {
        "tissue_mm2": float(tissue.mask.sum()) * state.overview.mpp**2 / 1e6,
        "tissue_method": tissue.method,
        "tissue_disagreement": tissue.disagreement,
        "n_tiles": n,
        "flags": [*state.notes, *quality.flags, *(["no-tissue"] if no_tissue else [])],
        "blur": quality.blur,
        "pen": quality.pen,
        "saturated": quality.saturated,
        "background": quality.background,
        "blank_tiles": blank,
        "stain": state.stain or state.stain_fit.marker,
        **DONE,
    }


def write_files(draft: Draft, state: SlideState) -> None:
    """Write the slide's tables and its thumbnail to the draft. Raises OSError when the disk refuses."""
    for name, table in state.tables.items():
        draft.write(name, table)
    draft.thumbnail().write_bytes(state.overview.jpeg)
