"""The JPEG codec for zarr: arrays are written and read."""

from pathlib import Path

import numpy as np
import zarr

from her2batch.slides.zarr_codec import JpegCodec
from tests.conftest import tissue_image


def test_zarr_writes_and_reads_arrays_of_jpeg_chunks(tmp_path: Path) -> None:
    image = tissue_image(512, 256, brown=0.3)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, chunks=(256, 256, 3), dtype="uint8", serializer=JpegCodec(level=95),
        compressors=None, filters=None,
    )  # fmt: skip
    array[:] = image
    again = zarr.open_array(tmp_path / "a.zarr")[:]
    assert np.abs(again.astype(int) - image).mean() < 2


def test_configuration_round_trips() -> None:
    codec = JpegCodec(tables=b"\xff\xd8tables\xff\xd9", colorspace_jpeg="RGB")
    assert JpegCodec.from_dict(codec.to_dict()) == codec
