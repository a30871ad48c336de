"""Reads the tiles of a grid on a device: the compressed tiles of the slide are decoded, shrunk and cut there.

The counterpart of `tile_reader.read_tiles`. No px visits the host, except for the stages over blocks (cells), which get
a copy of each block, and for decoded tiles that are compared to their strict decode: the first of each call, one of
CHECKED_OF, and every one with a square of one colour.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.models.device_measurements.cut_tiles import cut_tiles_on_device, has_flat_square, shrink
from her2batch.pipeline.cells.block_image import BlockFrames
from her2batch.pipeline.tile_reader import ReadPlan
from her2batch.slides.nvimgcodec.chunk_decoder import ChunkDecoder, DeviceDecodeRefused
from her2batch.vision.tile_grid import OUTSIDE_GREY, Block, Rect

BATCHES_AHEAD = 2
"""Batches that are decoded while the models work on one."""

CHECKED_OF = 256
"""Of so many tiles of a slide's level, one is decoded strictly as well."""


class DeviceTiles(NamedTuple):
    """Decoded tiles.  rows: (n,) in the grid.  tensor: (n, edge, edge, 3) uint8 on the device.  found: of frames."""

    rows: NDArray[np.int64]
    tensor: torch.Tensor
    found: tuple[Any, ...]


def read_tiles_on_device(
    decoder: ChunkDecoder, reads: ReadPlan, device: str, threads: int, frames: BlockFrames | None
) -> Iterator[DeviceTiles]:
    """Read the batches in order.

    threads: that work on the frames, while one more decodes ahead; 0: all in this thread.  Raises DeviceDecodeRefused,
    after which the caller reads the tiles on the host, and SlideError.
    """
    reader = _DeviceReader(decoder, reads, device, frames)
    if threads == 0:
        for number, batch in enumerate(reads.batches):
            tensor, blocks = reader.read(batch, number == 0)
            yield DeviceTiles(_rows(batch), tensor, tuple(reader.examine(*each) for each in blocks))
        return
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as decoding:

        def work(batch: Sequence[Block], is_first: bool) -> tuple[torch.Tensor, list[Future[Any]]]:
            tensor, blocks = reader.read(batch, is_first)
            return tensor, [pool.submit(reader.examine, *each) for each in blocks]

        pending: deque[tuple[Sequence[Block], Future[tuple[torch.Tensor, list[Future[Any]]]]]] = deque()
        for number, batch in enumerate(reads.batches):
            pending.append((batch, decoding.submit(work, batch, number == 0)))
            if len(pending) > BATCHES_AHEAD:
                yield _collect(*pending.popleft())
        while pending:
            yield _collect(*pending.popleft())


def _collect(batch: Sequence[Block], future: Future[tuple[torch.Tensor, list[Future[Any]]]]) -> DeviceTiles:
    tensor, examined = future.result()
    return DeviceTiles(_rows(batch), tensor, tuple(each.result() for each in examined))


def _rows(batch: Sequence[Block]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(block.tiles, np.int64) for block in batch])


_BlockPixels = tuple[Block, Rect, NDArray[np.uint8] | None]
"""A block, the area that was read around it, and a copy of its px for the frames."""


@dataclass(frozen=True)
class _DeviceReader:
    """Reads batches of blocks.  frames: None where no stage works on blocks."""

    decoder: ChunkDecoder
    reads: ReadPlan
    device: str
    frames: BlockFrames | None

    def read(self, batch: Sequence[Block], is_first: bool) -> tuple[torch.Tensor, list[_BlockPixels]]:
        """Decode and cut the tiles of a batch. Raises DeviceDecodeRefused."""
        areas = [block.box if self.frames is None else self.frames.area(block) for block in batch]
        wanted = [self._numbers(*each) for each in zip(batch, areas, strict=True)]
        numbers = sorted(set().union(*wanted))
        with self._own_stream() as stream, _errors_as_refusal():
            chunks = self._decode(numbers, is_first)
            places = {number: k for k, number in enumerate(numbers)}
            tiles: list[torch.Tensor] = []
            blocks: list[_BlockPixels] = []
            for block, area, own in zip(batch, areas, wanted, strict=True):
                pixels = self._assemble(area, {number: chunks[places[number]] for number in own})
                left, top = block.box.x - area.x, block.box.y - area.y
                inside = pixels[top : top + block.box.height, left : left + block.box.width]
                tiles.append(cut_tiles_on_device(inside, block.tile_rects.tolist(), self.reads.edge))
                blocks.append((block, area, pixels.cpu().numpy() if self.frames is not None else None))
            tensor = torch.cat(tiles)
            if stream is not None:  # the tiles are complete, and their memory is kept while the models read it
                stream.synchronize()
                tensor.record_stream(torch.cuda.default_stream(tensor.device))
        return tensor, blocks

    def examine(self, block: Block, area: Rect, pixels: NDArray[np.uint8] | None) -> Any:
        """Return what the frames give for a block."""
        return None if self.frames is None or pixels is None else self.frames(block, area, pixels)

    @contextmanager
    def _own_stream(self) -> Iterator[Any]:
        """Make a CUDA stream beside that of the models current, and return it; None on the CPU."""
        if torch.device(self.device).type != "cuda":
            yield None
            return
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # of torch
        with torch.cuda.stream(stream):
            yield stream

    def _numbers(self, block: Block, area: Rect) -> set[int]:
        """Return the numbers of the compressed tiles that a block needs, those of its margin included."""
        rects = block.tile_rects if self.frames is None else self.frames.needed(block, area)
        table, factor = self.decoder.table, self.reads.source[1]
        found: set[int] = set()
        for x, y, width, height in rects.tolist():
            right, bottom = (
                (area.x + min(x + width, area.width)) * factor,
                (area.y + min(y + height, area.height)) * factor,
            )
            columns = range((area.x + x) * factor // table.tile_width, -(-right // table.tile_width))
            rows = range((area.y + y) * factor // table.tile_height, -(-bottom // table.tile_height))
            found |= {row * table.across + column for row in rows for column in columns}
        return found

    def _decode(self, numbers: Sequence[int], is_first: bool) -> torch.Tensor:
        """Decode compressed tiles, and check some of them: (n, h, w, 3) uint8 on the device."""
        on_gpu, table = torch.device(self.device).type == "cuda", self.decoder.table
        images = self.decoder.decode(numbers, torch.cuda.current_stream().cuda_stream if on_gpu else 0)
        shape = (-1, table.tile_height, table.tile_width, 3)
        chunks = torch.cat([_as_tensor(each, self.device)[..., :3].reshape(shape) for each in images])
        flat, suspects = has_flat_square(chunks).tolist(), self.decoder.suspects(numbers)
        for k, number in enumerate(numbers):
            if flat[k] or number in suspects or number % CHECKED_OF == 0 or (is_first and k == 0):
                self.decoder.check(number, chunks[k].cpu().numpy())
        return chunks

    def _assemble(self, area: Rect, chunks: dict[int, torch.Tensor]) -> torch.Tensor:
        """Assemble an area, px of the shrunk level, from decoded tiles by their numbers: (height, width, 3) uint8."""
        factor, table = self.reads.source[1], self.decoder.table
        x0, y0, width, height = (edge * factor for edge in area)
        padded = table.compression == "jpeg" and self.decoder.has_padding
        if not padded:  # the strict reader shrinks JPEG tiles with their padding, and others without
            width, height = min(width, table.width - x0), min(height, table.height - y0)
        canvas = torch.full((height, width, 3), OUTSIDE_GREY, dtype=torch.uint8, device=self.device)
        for number, chunk in chunks.items():
            row, column = divmod(number, table.across)
            x, y = column * table.tile_width - x0, row * table.tile_height - y0
            left, top = max(x, 0), max(y, 0)
            right, bottom = min(x + table.tile_width, width), min(y + table.tile_height, height)
            canvas[top:bottom, left:right] = chunk[top - y : bottom - y, left - x : right - x]
        return shrink(canvas, area.width, area.height)


@contextmanager
def _errors_as_refusal() -> Iterator[None]:
    """Leave the tiles to the host where the device fails, whatever the error: the slide itself may be sound."""
    try:
        yield
    except (DeviceDecodeRefused, SlideError):
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceDecodeRefused("the GPU has no memory to decode its tiles") from error
    except Exception as error:
        what = f"unexpected error on the device ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise DeviceDecodeRefused(what) from error


def _as_tensor(image: Any, device: str) -> torch.Tensor:
    """Return a decoded image or batch as a tensor, without a copy where it lies on the device."""
    if torch.device(device).type != "cuda":  # nvImageCodec's DLPack requires a GPU
        return torch.from_numpy(np.asarray(image))
    if hasattr(image, "__dlpack__"):
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(image)
        return tensor
    torch.cuda.synchronize(device)  # cuCIM decodes on a stream of its own
    return torch.as_tensor(image, device=device)
