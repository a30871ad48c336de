"""How fast is a whole ingest, beside the bare decode of the same chunks, and an OpenSlide loop over the same tiles?

usage: ingest_rate.py SLIDES [--workers N] [--rounds N]

Ours is the wall time of the ingest, from listing the folder to the last commit: hashing, tissue, pyramid, decode,
stain encoder, membrane rule, tables, fsync. It is shown with and without Ray's start. (a) decodes every JPEG chunk
that a tile touches, once, on as many processes, and throws the pixels away. (b) reads every tile with OpenSlide and
resizes it, on as many processes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import simplejpeg

from her2batch.flow.ingest import Order, ingest
from her2batch.flow.session import connect, cores
from her2batch.flow.work import OVERSAMPLING
from her2batch.settings import Plan, Resources
from her2batch.slides.jpeg import complete
from her2batch.slides.readers import open_slide
from her2batch.slides.tiffslide import TiffSlide
from her2batch.tables.store import Cohort

MPP, TILE = Plan().mpp, Plan().tile
Work = list[tuple[Path, np.ndarray]]


def tiles_of(cohort: Cohort) -> Work:
    """Slides that are done, each with its tiles (n, 3)."""
    rows = [row for row in cohort.rows().values() if row["status"] == "done"]
    columns = [cohort.read("tiles", row["slide_id"]).select(["x", "y", "size"]) for row in rows]
    return [
        (Path(row["path"]), np.stack([table[name].to_numpy() for name in ("x", "y", "size")], axis=1))
        for row, table in zip(rows, columns, strict=True)
    ]


def decode_chunks(path: Path, tiles: np.ndarray) -> int:
    """Bare libjpeg-turbo over the chunks under the tiles, at the level the ingest reads; returns how many."""
    slide = open_slide(path, "tiff")
    assert isinstance(slide, TiffSlide)
    assert slide.info.mpp is not None
    level = slide.level_for(MPP / slide.info.mpp / OVERSAMPLING)
    table = slide.table(level)
    touched = np.zeros((table.down, table.across), bool)
    for x, y, size in (tiles / slide.info.level_downsamples[level]).round().astype(int):
        rows = slice(y // table.tile_height, -(-(y + size) // table.tile_height))
        touched[rows, x // table.tile_width : -(-(x + size) // table.tile_width)] = True
    streams = [complete(slide.raw(level, i), table.jpeg_tables, table.colorspace) for i in np.flatnonzero(touched)]
    buffer = np.empty(table.tile_width * table.tile_height * 3, np.uint8)
    for stream in streams:
        simplejpeg.decode_jpeg(stream, "RGB", buffer=buffer)
    return len(streams)


def read_tiles(path: Path, tiles: np.ndarray) -> int:
    """An OpenSlide loop: each tile read at the same level and resized."""
    slide = openslide.OpenSlide(str(path))
    level = slide.get_best_level_for_downsample(tiles[0, 2] / TILE / OVERSAMPLING * 1.01)
    for x, y, size in tiles.tolist():
        edge = round(size / slide.level_downsamples[level])
        region = np.asarray(slide.read_region((x, y), level, (edge, edge)))[..., :3]
        cv2.resize(region, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return len(tiles)


def timed(work: Work, function: object, workers: int) -> float:
    """Seconds for a function over parts of all slides, on warm processes."""
    parts = [(path, part) for path, tiles in work for part in np.array_split(tiles, 4) if len(part)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(abs, range(workers)))
        started = time.perf_counter()
        list(pool.map(function, *zip(*parts, strict=True)))
        return time.perf_counter() - started


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    seconds: dict[str, list[float]] = {"ingest": [], "start": [], "decode": [], "openslide": []}
    tiles = 0
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            summary = ingest(Order(args.slides, Path(folder) / "c"), Plan(), Resources(workers=args.workers))
            work = tiles_of(Cohort(Path(folder) / "c"))
        tiles = summary.tiles
        seconds["ingest"].append(summary.seconds)
        seconds["start"].append(ray_start(args.workers))
        seconds["decode"].append(timed(work, decode_chunks, args.workers))
        seconds["openslide"].append(timed(work, read_tiles, args.workers))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ours, warm = tiles / median["ingest"], tiles / (median["ingest"] - median["start"])
    floor, loop = tiles / median["decode"], tiles / median["openslide"]
    print(
        f"{tiles} tiles, {args.workers} workers: ingest {ours:.0f} tiles/s ({warm:.0f} without Ray's start of "
        f"{median['start']:.1f} s) · bare decode {floor:.0f} · OpenSlide loop {loop:.0f} · "
        f"ratio to decode {ours / floor:.2f} ({warm / floor:.2f}) · to OpenSlide {ours / loop:.1f} ({warm / loop:.1f})"
    )


def ray_start(workers: int) -> float:
    """Seconds until Ray and its actors are there."""
    started = time.perf_counter()
    with connect(Resources(workers=workers)) as session:
        ray = session.ray
        ray.get([ray.remote(Ready).options(num_cpus=1).remote().ready.remote() for _ in range(workers)])
        return time.perf_counter() - started


class Ready:
    """An actor that has imported what a worker imports."""

    def ready(self) -> bool:
        """Whether it has."""
        import her2batch.flow.work

        return her2batch.flow.work is not None


if __name__ == "__main__":
    main()
