"""JPEG chunks in Zarr: under the name and configuration that other readers know."""

from pathlib import Path

import imagecodecs
import numpy as np
import zarr

from her2batch.slides.codecs import JpegCodec, encode
from tests.conftest import tissue_image


def test_a_plain_zarr_array_of_jpeg_chunks_is_written_and_read(tmp_path: Path) -> None:
    image = tissue_image(512, 256, brown=0.3)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, chunks=(256, 256, 3), dtype="uint8", serializer=JpegCodec(level=95),
        compressors=None, filters=None,
    )  # fmt: skip
    array[:] = image
    again = zarr.open_array(tmp_path / "a.zarr")[:]
    assert np.abs(again.astype(int) - image).mean() < 2


def test_the_configuration_goes_round() -> None:
    for codec in (JpegCodec(level=80), JpegCodec(tables=b"\xff\xd8tables\xff\xd9", colorspace_jpeg="RGB")):
        assert JpegCodec.from_dict(codec.to_dict()).to_dict() == codec.to_dict()


def test_imagecodecs_reads_what_we_encode_to_the_same_pixels() -> None:
    image = tissue_image(256, 256, brown=0.3)
    data = encode(image, 90)
    from her2batch.slides.jpeg import decode

    assert np.array_equal(decode(data), imagecodecs.jpeg8_decode(data))
