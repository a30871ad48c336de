"""How fast do tiles reach a model, compared with the bare decode of the same chunks and an OpenSlide DataLoader?

usage: tiles.py CORES SCRATCH [--kind KIND ...] [--rounds N] [--plot SVG]

Slides of 21,504 px at 0.25 µm/px, tiles of 224 px at 0.5 µm/px. All sides on as many processes as there are cores, each
with half of the tissue's tiles; processes are warm, files in the page cache.

- ours: the ingest's own path: read, decode (reduced in the decoder), assemble, cut, batches of 256 for a model
- ours, full decode: the same, with every px decoded and averaged afterwards
- pyramid: ours, reading the cohort's pyramid of the slide
- bare decode: every chunk under those tiles once, libjpeg-turbo (OpenJPEG for JPEG 2000), full size, nothing else;
  the compressed chunks lie in memory
- cuCIM: the same blocks through cuCIM, then cut
- OpenSlide: a PyTorch DataLoader whose items are read_region and OpenCV's area resize, uint8
- OpenSlide, usual: the same with the transforms that feature extractors have: PIL resize, float tensor, normalised
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from her2batch.slides.cucim.loading import load_cucim  # before torch: after it, cuCIM needs its own process

load_cucim()

import cv2  # noqa: E402
import imagecodecs  # noqa: E402
import numpy as np  # noqa: E402
import simplejpeg  # noqa: E402
from rounds import draw_bars, median_seconds, run_on_cores, warm_processes  # noqa: E402
from slides import LAYOUTS, make_slide  # noqa: E402

from her2batch.pipeline.cost_model import available_cores  # noqa: E402
from her2batch.pipeline.tile_reader import plan_reads, read_tiles  # noqa: E402
from her2batch.settings import Plan  # noqa: E402
from her2batch.slides import pyramid  # noqa: E402
from her2batch.slides.jpeg import complete_jpeg  # noqa: E402
from her2batch.slides.readers import open_slide  # noqa: E402
from her2batch.slides.tiff_slide import TiledTiffSlide  # noqa: E402
from her2batch.vision.tile_grid import TileGrid, plan_tiles  # noqa: E402
from her2batch.vision.tissue import segment_tissue, tile_fractions  # noqa: E402

MPP, TILE = Plan().mpp, Plan().tile


def tissue_tiles(path: Path) -> np.ndarray:
    """Return the tiles that an ingest keeps."""
    with open_slide(path) as slide:
        info = slide.info
        assert info.mpp is not None
        mask = segment_tissue(slide.overview(8.0), 8.0).mask
        tiles = plan_tiles(info.width, info.height, info.mpp, MPP, TILE)
        return tiles[tile_fractions(mask, info.width, info.height, tiles) >= Plan().min_tissue]


def time_tiles(path: Path, reader: str, tiles: np.ndarray, source: tuple[int, int] | None = None) -> float:
    """Return the seconds for all batches of some tiles."""
    with open_slide(path, reader) if reader != "pyramid" else pyramid.Pyramid(path) as slide:
        started = time.perf_counter()
        for batch in read_tiles(slide, plan_reads(slide, TileGrid(MPP, TILE, tiles), source), 0, reader):
            assert batch.pixels.shape[1] == TILE
        return time.perf_counter() - started


def time_decode(path: Path, tiles: np.ndarray) -> float:
    """Return the seconds to decode the chunks under some tiles of level 0."""
    slide = open_slide(path, "tiff")
    assert isinstance(slide, TiledTiffSlide)
    table = slide.table(0)
    touched = np.zeros((table.down, table.across), bool)
    for x, y, size in tiles.tolist():
        rows = slice(y // table.tile_height, -(-(y + size) // table.tile_height))
        touched[rows, x // table.tile_width : -(-(x + size) // table.tile_width)] = True
    streams = [slide.raw_tile(0, int(k)) for k in np.flatnonzero(touched)]
    buffer = np.empty((table.tile_height, table.tile_width, 3), np.uint8)
    if table.compression == "jpeg":
        streams = [complete_jpeg(stream, table.jpeg_tables, table.colorspace) for stream in streams]
        decode = partial(simplejpeg.decode_jpeg, colorspace="RGB", buffer=buffer)
    else:
        decode = partial(imagecodecs.jpeg2k_decode, out=buffer)
    started = time.perf_counter()
    for stream in streams:
        decode(stream)
    return time.perf_counter() - started


class OpenSlideTiles:
    """A dataset as in most pipelines: opened in the worker, one tile per item."""

    def __init__(self, path: Path, tiles: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self._path, self._tiles, self._transform, self._slide = path, tiles, transform, None

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, k: int) -> Any:
        import openslide

        if self._slide is None:
            self._slide = openslide.OpenSlide(str(self._path))
        x, y, size = (int(one) for one in self._tiles[k])
        return self._transform(self._slide.read_region((x, y), 0, (size, size)).convert("RGB"))


def resize_only(region: Any) -> np.ndarray:
    """Resize a region without further transforms: (224, 224, 3) uint8."""
    return cv2.resize(np.asarray(region), (TILE, TILE), interpolation=cv2.INTER_AREA)


def usual_transforms() -> Callable[[Any], Any]:
    """Return the usual transforms: resize, (3, 224, 224) float32, normalize."""
    from torchvision import transforms

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return transforms.Compose([transforms.Resize(TILE), transforms.ToTensor(), transforms.Normalize(mean, std)])


def time_loader(path: Path, tiles: np.ndarray, workers: int, transform: Callable[[Any], Any]) -> float:
    """Return the seconds of a DataLoader over some tiles, without the start of its workers."""
    from torch.utils.data import DataLoader

    warm = np.concatenate([tiles[: 64 * workers], tiles])
    batches = iter(DataLoader(OpenSlideTiles(path, warm, transform), 64, num_workers=workers))
    for _ in range(workers):
        next(batches)
    started = time.perf_counter()
    for batch in batches:
        assert TILE in batch.shape
    return time.perf_counter() - started


def measure(path: Path, scratch: Path, workers: int, rounds: int) -> dict[str, float]:
    """Return the tiles per second of each side."""
    tiles = tissue_tiles(path)
    stored = scratch / f"{path.stem}.zarr"
    with open_slide(path) as slide:
        mask = np.ones((8, 8), bool)
        if not stored.exists():
            pyramid.write_pyramid(slide, mask, stored, Plan().jpeg_quality)
    parts = [part for part in np.array_split(tiles, workers) if len(part)]
    some = tiles[: max(256, len(tiles) // 4)]  # a quarter suffices for the slow sides
    with warm_processes(workers) as pool:

        def split(function: object, *before: object, after: tuple[object, ...] = ()) -> float:
            return run_on_cores(pool, function, [(*before, part, *after) for part in parts])  # type: ignore[arg-type]

        seconds = median_seconds(
            {
                "ours": lambda: split(time_tiles, path, "tiff"),
                "bare decode": lambda: split(time_decode, path),
                "ours, full decode": lambda: split(time_tiles, path, "tiff", after=((0, 1),)),
                "ours, pyramid": lambda: split(time_tiles, stored, "pyramid"),
                "cuCIM": lambda: split(time_tiles, path, "cucim"),
            },
            rounds,
        )
    sides = {"OpenSlide": resize_only, "OpenSlide, usual": usual_transforms()}
    slow = median_seconds({name: partial(time_loader, path, some, workers, one) for name, one in sides.items()}, rounds)
    rates = {name: len(tiles) / one for name, one in seconds.items()}
    return rates | {name: len(some) / one for name, one in slow.items()}


def main() -> None:
    """Print a row for each kind of slide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cores", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--kind", nargs="+", choices=sorted(LAYOUTS), default=["jpeg420", "jpeg444", "tiles240"])
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)  # a forked process would wait for threads of its parent
    groups = {}
    for kind in args.kind:
        groups[kind] = rates = measure(
            make_slide(args.cores, args.scratch, kind, 3), args.scratch, args.workers, args.rounds
        )
        ours = rates["ours"]
        against = " · ".join(
            f"{name} {rate:,.0f} ({ours / rate:.2f}×)" for name, rate in rates.items() if name != "ours"
        )
        print(f"{kind}: ours {ours:,.0f} tiles/s on {args.workers} cores · {against}", flush=True)
    if args.plot:
        draw_bars(args.plot, f"Tiles of 224 px at 0.5 µm/px, {args.workers} cores", "tiles a second", groups)


if __name__ == "__main__":
    main()
