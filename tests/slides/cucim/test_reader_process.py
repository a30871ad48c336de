"""cuCIM in a process of its own behaves as in this one, and an ended process is replaced."""

import os
import sys
from pathlib import Path

import pytest

from her2batch.slides.cucim.reader_process import ImageInProcess, reader_process

if "cucim" not in sys.modules and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")


def test_file_that_cucim_cannot_open_raises_through_the_process_as_without_it() -> None:
    from cucim.clara import CuImage

    with pytest.raises(ValueError, match="no such image") as ours:
        ImageInProcess("no such image")
    with pytest.raises(ValueError, match="no such image") as theirs:
        CuImage("no such image")
    assert str(ours.value) == str(theirs.value)


def test_ended_process_is_an_error_of_its_images_and_the_next_image_has_a_new_one(cores: dict[str, Path]) -> None:
    path = str(cores["0"])
    image = ImageInProcess(path)
    reader_process().process.kill()
    with pytest.raises(RuntimeError, match="process of cuCIM has ended"):
        image.read_region((0, 0), (64, 64), 0)
    image.close()
    again = ImageInProcess(path)
    assert again.read_region((0, 0), (64, 32), 0).shape[:2] == (32, 64)
    again.close()
    reader_process().end()
