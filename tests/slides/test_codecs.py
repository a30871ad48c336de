"""Chunks of pyramids: JPEG and lossless ones are compatible with other readers."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr

from her2batch.slides.codecs import ZSTD_CODECS, JpegChunks, compress_lossless, decompress_lossless, encode_jpeg
from tests.conftest import tissue_image


def test_codec_configuration_round_trips() -> None:
    tables = b"\xff\xd8tables\xff\xd9"
    for codec in (JpegChunks(level=80), JpegChunks(tables=tables, colorspace_jpeg="RGB"), JpegChunks(tables=b"")):
        assert JpegChunks.from_dict(codec.to_dict()) == codec


def test_lossless_chunks_equal_those_of_zarrs_own_codecs(tmp_path: Path) -> None:
    image = tissue_image(256, 192, brown=0.3)
    assert np.array_equal(decompress_lossless(compress_lossless(image), 192, 256), image)
    serializer, compressor = ZSTD_CODECS
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, chunks=image.shape, dtype="uint8", serializer=serializer,
        compressors=[compressor], filters=None,
    )  # fmt: skip
    array[:] = image
    assert (tmp_path / "a.zarr/c/0/0/0").read_bytes() == compress_lossless(image)


def test_damaged_lossless_chunk_raises() -> None:
    image = tissue_image(256, 192, brown=0.3)
    data = bytearray(compress_lossless(image))
    for at in range(20, len(data), len(data) // 40):
        flipped = data.copy()
        flipped[at] ^= 4
        with pytest.raises(RuntimeError):
            decompress_lossless(bytes(flipped), 192, 256)
    with pytest.raises(ValueError, match="reshape"):
        decompress_lossless(bytes(data), 256, 256)


def test_imagecodecs_decodes_our_jpeg_to_the_same_pixels() -> None:
    image = tissue_image(256, 256, brown=0.3)
    data = encode_jpeg(image, 90)
    from her2batch.slides.jpeg import decode_jpeg

    assert np.array_equal(decode_jpeg(data), imagecodecs.jpeg8_decode(data))
