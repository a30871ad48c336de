"""Thumbnails and patches for training: memory-mapped arrays on disk, so that any number of them can be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.store.cohort import Cohort
from her2batch.store.pieces.patient_tiles import read_patient_tiles
from her2batch.vision.thumbnail import crop_to_tissue, decode_jpeg

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageStack:
    """Arrays (n_k, e, e, 3) uint8 of several files, joined; indexed by positions in all of them."""

    files: tuple[Pixels, ...]
    starts: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (n, e, e, 3)."""
        edge = self.files[0].shape[1]
        return int(self.starts[-1]), edge, edge, 3

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: NDArray[np.int64]) -> Pixels:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        for k in np.unique(of):
            positions = np.flatnonzero(of == k)
            out[positions] = self.files[k][rows[positions] - self.starts[k]]
        return out


def open_stack(paths: Sequence[Path]) -> ImageStack:
    """Open files that `save_images` wrote, in this order. Raises InputError for a missing or damaged one."""
    files = tuple(load_images(path) for path in paths)
    return ImageStack(files, np.cumsum([0, *(len(pixels) for pixels in files)]))


def save_images(pixels: Pixels, path: Path) -> None:
    """Write images, (n, e, e, 3) uint8, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, part.open("wb") as file:
        np.save(file, pixels, allow_pickle=False)


def load_images(path: Path) -> Pixels:
    """Open images that `save_images` wrote, memory-mapped. Raises InputError for a missing or damaged file."""
    try:
        pixels: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", path, "remove it, then resume the run") from error
    return pixels


@dataclass(frozen=True)
class TissueCrops:
    """Thumbnails of slides, cropped to the tissue: (n, e, e, 3), and the background colour of each, (n, 3)."""

    slide_ids: tuple[str, ...]
    pixels: Pixels
    fills: Pixels


def gather_thumbnails(
    cohort: Cohort, rows: Mapping[str, Mapping[str, Any]], slide_ids: Sequence[str], edge: int, path: Path
) -> None:
    """Write the thumbnails of these slides to `path` (.npy), unless it has exactly them already.

    Raises InputError naming a slide whose thumbnail or tiles are missing or damaged.
    """
    facts = {"slides": list(slide_ids), "edge": edge, "files": [_version(cohort, slide_id) for slide_id in slide_ids]}
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    beside = path.with_suffix(".json")
    if path.is_file() and beside.is_file() and json.loads(beside.read_text("utf-8")).get("key") == key:
        return
    crops = [read_tissue_crop(cohort, rows[slide_id], edge) for slide_id in slide_ids]
    save_images(np.stack([pixels for pixels, _ in crops]), path)
    with atomic_write(beside) as part:
        part.write_text(
            json.dumps({"key": key, "slides": list(slide_ids), "fills": [f.tolist() for _, f in crops]}), "utf-8"
        )


def open_thumbnails(path: Path) -> TissueCrops:
    """Open the thumbnails that `gather_thumbnails` wrote. Raises InputError for a missing or damaged file."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        what, remedy = f"cannot be read ({type(error).__name__})", "resume the run, which writes it again"
        raise InputError(what, path, remedy) from error
    return TissueCrops(tuple(facts["slides"]), load_images(path), np.array(facts["fills"], np.uint8))


def _version(cohort: Cohort, slide_id: str) -> list[int]:
    try:
        facts = cohort.thumbnail(slide_id).stat()
    except OSError as error:
        what = f"slide {slide_id} has no thumbnail ({type(error).__name__})"
        raise InputError(what, cohort.thumbnail(slide_id), "ingest the slide again") from error
    return [facts.st_size, facts.st_mtime_ns]


def read_tissue_crop(cohort: Cohort, row: Mapping[str, Any], edge: int) -> tuple[Pixels, Pixels]:
    """Return the input of thumbnail networks for a finished slide, and its background colour. Raises InputError."""
    slide_id = row["slide_id"]
    try:
        thumbnail = decode_jpeg(cohort.thumbnail(slide_id).read_bytes())
        table = read_patient_tiles(cohort, slide_id)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        what = f"slide {slide_id}: its thumbnail or tiles cannot be read ({type(error).__name__})"
        raise InputError(what, cohort.thumbnail(slide_id), "run `her2batch verify`, then ingest again") from error
    tiles = np.stack([table.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
    return crop_to_tissue(thumbnail, tiles, row["width"], row["height"], edge)
