"""JPEG as a codec of Zarr v3, by which `zarr.open` reads a pyramid.

The codec is an entry point: where this package (or imagecodecs ≥ 2026.5.10, which needs Python 3.12) is installed,
nothing has to be imported or registered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

from her2batch.slides.codecs import JpegChunks, encode_jpeg
from her2batch.slides.jpeg import decode_jpeg


@dataclass(frozen=True)
class JpegCodec(JpegChunks, ArrayBytesCodec):
    """Zarr codec that stores chunks of (h, w, 3) uint8 as JPEG streams."""

    is_fixed_size = False

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = decode_jpeg(chunk_bytes.to_bytes(), self.tables, self.colorspace_jpeg)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        if self.tables is not None:
            raise ValueError("a pyramid with the JPEG tiles of a slide is read-only")
        return chunk_spec.prototype.buffer.from_bytes(encode_jpeg(chunk_array.as_numpy_array(), self.level))

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Raise NotImplementedError: the size of a JPEG is not known before it is encoded."""
        raise NotImplementedError
