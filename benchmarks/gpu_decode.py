"""Step of the GPU benchmark: how many px/s do nvImageCodec, cuCIM and the CPU cores decode?

usage: gpu_decode.py SCRATCH OUT [--cpu]

The compressed tiles of a slide lie in memory for nvImageCodec and the cores; cuCIM reads blocks of the file, which is
in the page cache. nvImageCodec and cuCIM decode to device memory. With --cpu they decode on the CPU.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from functools import partial
from pathlib import Path

from her2batch.slides.cucim.loading import load_cucim

with contextlib.suppress(Exception):  # without cuCIM its row says so
    load_cucim()  # before torch, after which it may not load

# isort: split
import imagecodecs
import numpy as np
import simplejpeg
from gpu_record import Row, StepRecord, step_record
from rounds import median_seconds, run_on_cores, warm_processes

from her2batch.pipeline.cost_model import available_cores
from her2batch.pipeline.tile_reader import plan_reads
from her2batch.slides.jpeg import complete_jpeg
from her2batch.slides.readers import open_slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.vision.tile_grid import TileGrid

BLOCK_PX = 2048
"""Edge of the blocks that cuCIM reads."""

TILES_ROWS = {
    "nvimgcodec": "tiles decoded, checked, shrunk and cut on the device",
    "cucim": "the same with cuCIM (--reader cucim)",
}
TILES_KEYS = {"nvimgcodec": "decode.jpeg.tiles", "cucim": "decode.jpeg.cucim-tiles"}
"""Reader → its row."""


def streams_of(path: Path, most: int) -> tuple[list[bytes], int]:
    """Return complete streams of the first tiles of level 0, and the px of one."""
    with open_slide(path, "tiff") as slide:
        assert isinstance(slide, TiledTiffSlide)
        table = slide.table(0)
        streams = [slide.raw_tile(0, k) for k in range(min(most, table.across * table.down))]
        if table.compression == "jpeg":
            streams = [complete_jpeg(one, table.jpeg_tables, table.colorspace) for one in streams]
        return streams, table.tile_width * table.tile_height


def time_cores(path: Path, codec: str, lo: int, hi: int) -> float:
    """Return the seconds of one process for its part of the tiles."""
    streams, _ = streams_of(path, hi)
    decode = partial(simplejpeg.decode_jpeg, colorspace="RGB") if codec == "jpeg" else imagecodecs.jpeg2k_decode
    started = time.perf_counter()
    for stream in streams[lo:]:
        decode(stream)
    return time.perf_counter() - started


def measure_codec(record: StepRecord, path: Path, codec: str, most: int) -> None:
    """Add the rows of one codec: the cores, then nvImageCodec."""
    streams, tile_px = streams_of(path, most)
    workers, total = available_cores(), len(streams) * tile_px
    bounds = np.linspace(0, len(streams), workers + 1).astype(int).tolist()
    parts = [(path, codec, lo, hi) for lo, hi in itertools.pairwise(bounds) if hi > lo]
    with warm_processes(workers) as pool:
        seconds = median_seconds({"cores": lambda: run_on_cores(pool, time_cores, parts)}, 3)["cores"]
    cores = total / seconds
    record.add(Row(f"decode.{codec}.cores", f"decode {codec}, {workers} CPU cores", cores, "px/s"))

    def on_device() -> None:
        rate = total / nvimgcodec_seconds(streams, record.cpu)
        what = f"decode {codec}, nvImageCodec"
        record.add(Row(f"decode.{codec}.nvimgcodec", what, rate, "px/s", rate / cores, "the cores"))

    record.attempt(f"decode.{codec}.nvimgcodec", f"decode {codec}, nvImageCodec", "px/s", on_device)


def nvimgcodec_seconds(streams: list[bytes], cpu: bool, batch: int = 256) -> float:
    """Return the seconds of nvImageCodec for all streams, in batches. Raises ValueError when it cannot decode them."""
    from nvidia import nvimgcodec as codec

    if cpu:
        backends = [codec.Backend(codec.CPU_ONLY)]
        decoder = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)
    else:  # no CPU backend: a fallback to it would be measured unseen
        decoder = codec.Decoder(backends=[codec.Backend(kind) for kind in (codec.HW_GPU_ONLY, codec.GPU_ONLY,
                                                                           codec.HYBRID_CPU_GPU)])  # fmt: skip
    sources = [codec.CodeStream(stream) for stream in streams]

    def decode_all() -> float:
        started = time.perf_counter()
        for k in range(0, len(sources), batch):
            images = decoder.decode(sources[k : k + batch])
            if any(image is None for image in images):
                raise ValueError("nvImageCodec decodes no tile of this kind here")
        if not cpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter() - started

    return median_seconds({"nvimgcodec": decode_all}, 3)["nvimgcodec"]


def measure_cucim(record: StepRecord, path: Path, most: int) -> None:
    """Add the row of cuCIM's read_region over blocks of level 0."""
    image = load_cucim()(str(path))
    width, height = image.resolutions["level_dimensions"][0]
    block = min(BLOCK_PX, width, height)
    corners = [(x, y) for y in range(0, height - block + 1, block) for x in range(0, width - block + 1, block)][:most]
    workers = available_cores()

    def read_all() -> float:
        started = time.perf_counter()
        for corner in corners:
            image.read_region(corner, (block, block), 0, device=record.device, num_workers=workers)
        return time.perf_counter() - started

    rate = len(corners) * block**2 / median_seconds({"cucim": read_all}, 2)["cucim"]
    cores = next((row.value for row in record.rows if row.key == "decode.jpeg.cores"), None)
    ratio = rate / cores if cores else None
    note = f"read_region(device={record.device!r}), file in the page cache"
    record.add(Row("decode.jpeg.cucim", "decode jpeg, cuCIM", rate, "px/s", ratio, "the cores", note))


def measure_tiles_read(record: StepRecord, path: Path, most: int, reader: str) -> None:
    """Add the row of the ingest's own reader: tiles of 224 px at 0.5 µm/px on the device, of some batches.

    reader: `nvimgcodec`, or `cucim`, whose ratio is to the former.
    """
    import torch

    from her2batch.models.device import gpu_number
    from her2batch.pipeline.tile_batches.device_reader import read_tiles_on_device
    from her2batch.pipeline.tile_batches.tile_stages import DEVICE_READERS

    with open_slide(path, reader) as slide:
        assert slide.info.mpp is not None
        size = round(224 * 0.5 / slide.info.mpp)
        columns, rows = (range(0, edge - size + 1, size) for edge in (slide.info.width, slide.info.height))
        tiles = np.array([(x, y, size) for y in rows for x in columns][:most], np.int32)
        reads = plan_reads(slide, TileGrid(0.5, 224, tiles))
        device = torch.device(record.device)
        decoder = DEVICE_READERS[reader](slide, reads.source[0], gpu_number(str(device)))
        if decoder is None:
            raise ValueError(f"{reader} decodes no tile of this kind to memory of the device")

        def read_all() -> float:
            started = time.perf_counter()
            for _ in read_tiles_on_device(decoder, reads, str(device), 1, None):
                pass
            return time.perf_counter() - started

        rate = len(tiles) / median_seconds({"tiles": read_all}, 2)["tiles"]
    first = next((row.value for row in record.rows if row.key == TILES_KEYS["nvimgcodec"]), None)
    ratio = rate / first if first and reader != "nvimgcodec" else None
    note = "one call of the ingest's reader"
    record.add(Row(TILES_KEYS[reader], TILES_ROWS[reader], rate, "tiles/s", ratio, "nvImageCodec", note))


def main() -> None:
    """Add the rows of JPEG and JPEG 2000."""
    record, scratch = step_record(__doc__.splitlines()[0])
    large, j2k = (sorted((scratch / name).glob("*.tiff"))[0] for name in ("large", "jpeg2000"))
    tiles, tiles_j2k, blocks = (16, 4, 1) if record.cpu else (4096, 192, 48)
    for codec, path, most in (("jpeg", large, tiles), ("jpeg2000", j2k, tiles_j2k)):
        record.attempt(f"decode.{codec}.cores", f"decode {codec}, CPU cores", "px/s",
                       partial(measure_codec, record, path, codec, most))  # fmt: skip
    for reader, what in TILES_ROWS.items():
        run = partial(measure_tiles_read, record, large, tiles, reader)
        record.attempt(TILES_KEYS[reader], what, "tiles/s", run)
    what = "decode jpeg, cuCIM"
    record.attempt("decode.jpeg.cucim", what, "px/s", partial(measure_cucim, record, large, blocks))


if __name__ == "__main__":
    main()
