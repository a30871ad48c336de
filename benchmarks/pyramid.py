"""How fast is a pyramid written, compared with `cp` of the same bytes, or with decoding and encoding them once?

usage: pyramid.py CORES SCRATCH [--kind KIND ...] [--rounds N] [--plot SVG]

Slides of 21,504 px, the chunks that their tissue touches, files in the page cache, one process. SCRATCH is on the
disk to be measured.

Slides of JPEG tiles, which are copied:
- write: the pyramid, compared with `cp` of a file of as many bytes; both without fsync, and both with an fsync of every
  file and folder, as in the commit of a cohort
- SHA-256 of the pyramid's files, which the commit computes in addition
- bytes on disk compared with the bytes of those chunks in the slide

Slides of JPEG 2000, whose tiles are decoded and encoded, as JPEG and lossless:
- write, compared with the bare decode and encode of the same chunks in memory
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import imagecodecs
import numpy as np
from rounds import draw_bars, median_seconds
from slides import LAYOUTS, make_slide

from her2batch.settings import Plan
from her2batch.slides import pyramid
from her2batch.slides.codecs import compress_lossless, encode_jpeg
from her2batch.slides.readers import open_slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.vision.tissue import segment_tissue

QUALITY = Plan().jpeg_quality


def sync_files(root: Path) -> None:
    """Force everything under a path to the disk."""
    for path in [root, *root.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def time_write(
    slide: TiledTiffSlide, tissue: np.ndarray, out: Path, lossless: bool = False, flush: bool = False
) -> float:
    """Return the seconds to write a pyramid."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    pyramid.write_pyramid(slide, tissue, out, QUALITY, lossless)
    if flush:
        sync_files(out)
    return time.perf_counter() - started


def time_copy(source: Path, out: Path, flush: bool) -> float:
    """Return the seconds for cp of a file."""
    out.unlink(missing_ok=True)
    started = time.perf_counter()
    subprocess.run(["cp", source, out], check=True)
    if flush:
        sync_files(out)
    return time.perf_counter() - started


def time_sha256(root: Path) -> float:
    """Return the seconds for SHA-256 of every file."""
    started = time.perf_counter()
    for path in list_files(root):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return time.perf_counter() - started


def time_recode(streams: list[bytes], lossless: bool) -> float:
    """Return the seconds to decode and encode chunks in memory."""
    buffer = np.empty((256, 256, 3), np.uint8)
    started = time.perf_counter()
    for stream in streams:
        imagecodecs.jpeg2k_decode(stream, out=buffer)
        compress_lossless(buffer) if lossless else encode_jpeg(buffer, QUALITY)
    return time.perf_counter() - started


def list_files(root: Path) -> list[Path]:
    """Return all files under a folder."""
    return [path for path in root.rglob("*") if path.is_file()]


def stored_chunks(slide: TiledTiffSlide, tissue: np.ndarray) -> list[tuple[int, int]]:
    """Return level and number of every chunk that is stored."""
    chunks = []
    for level, size in enumerate(slide.info.levels):
        stored = pyramid.tissue_chunks(tissue, size).ravel()
        chunks += [(level, int(index)) for index in np.flatnonzero(stored)]
    return chunks


def measure_moved(
    slide: TiledTiffSlide, tissue: np.ndarray, scratch: Path, rounds: int
) -> tuple[dict[str, float], str]:
    """Measure a slide whose tiles are copied. Returns milliseconds of each side, and a line of text."""
    out, same, copied = scratch / "out.zarr", scratch / "same.bin", scratch / "copied.bin"
    source = sum(int(slide.table(level).byte_counts[index]) for level, index in stored_chunks(slide, tissue))
    same.write_bytes(b"".join(slide.raw_tile(*one) for one in stored_chunks(slide, tissue)))
    sides = {
        "ours": lambda: time_write(slide, tissue, out),
        "cp": lambda: time_copy(same, copied, False),
        "ours, fsync": lambda: time_write(slide, tissue, out, flush=True),
        "cp, fsync": lambda: time_copy(same, copied, True),
        "SHA-256": lambda: time_sha256(out),
    }
    ms = {name: 1e3 * one for name, one in median_seconds(sides, rounds).items()}
    stored = sum(path.stat().st_size for path in list_files(out))
    line = (
        f"{source / 1e6:.1f} MB of tissue, stored {stored / source:.4f}× in {len(list_files(out))} files · "
        f"ours {ms['ours']:.0f} ms, cp {ms['cp']:.0f} ms: {ms['cp'] / ms['ours']:.2f}× of its speed · with fsync "
        f"{ms['ours, fsync']:.0f} and {ms['cp, fsync']:.0f} ms: {ms['cp, fsync'] / ms['ours, fsync']:.2f}× · "
        f"SHA-256 {ms['SHA-256']:.0f} ms"
    )
    return ms, line


def measure_recoded(
    slide: TiledTiffSlide, tissue: np.ndarray, scratch: Path, rounds: int, lossless: bool
) -> tuple[dict[str, float], str]:
    """Measure a slide whose tiles are encoded again. Returns milliseconds of each side, and a line of text."""
    out = scratch / "out.zarr"
    streams = [slide.raw_tile(*one) for one in stored_chunks(slide, tissue)]
    sides = {
        "ours": lambda: time_write(slide, tissue, out, lossless),
        "bare decode and encode": lambda: time_recode(streams, lossless),
    }
    ms = {name: 1e3 * one for name, one in median_seconds(sides, rounds).items()}
    mp = len(streams) * 256 * 256 / 1e6
    stored = sum(path.stat().st_size for path in list_files(out))
    bare = ms["bare decode and encode"]
    line = (
        f"{mp:.0f} MP of tissue, {sum(map(len, streams)) / 1e6:.1f} MB in the slide, {stored / 1e6:.1f} MB stored · "
        f"ours {mp / ms['ours'] * 1e3:.0f} MP/s, bare decode and encode {mp / bare * 1e3:.0f} MP/s: "
        f"{bare / ms['ours']:.2f}×"
    )
    return ms, line


def main() -> None:
    """Print a row for each kind of slide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cores", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument(
        "--kind", nargs="+", choices=sorted(LAYOUTS), default=["jpeg420", "jpeg444", "tiles240", "jpeg2000"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    groups: dict[str, dict[str, float]] = {}
    work = args.scratch / "pyramid"
    work.mkdir(parents=True, exist_ok=True)
    for kind in args.kind:
        with open_slide(make_slide(args.cores, args.scratch, kind, 3)) as slide:
            assert isinstance(slide, TiledTiffSlide)
            tissue = segment_tissue(slide.overview(8.0), 8.0).mask
            if slide.table(0).compression == "jpeg":
                groups[kind], line = measure_moved(slide, tissue, work, args.rounds)
                print(f"{kind}: {line}", flush=True)
                continue
            for name, lossless in (("JPEG", False), ("lossless", True)):
                _, line = measure_recoded(slide, tissue, work, max(1, args.rounds // 2), lossless)
                print(f"{kind}, {name}: {line}", flush=True)
    shutil.rmtree(work)
    if args.plot and groups:
        draw_bars(args.plot, "A pyramid of a slide's own JPEG tiles", "ms", groups)


if __name__ == "__main__":
    main()
