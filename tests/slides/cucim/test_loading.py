"""cuCIM is loaded, in this process or another; without it the remedy is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.slides.cucim.slide import CucimSlide

if "cucim" not in sys.modules and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")


def test_missing_cucim_is_an_error_with_remedy(monkeypatch: pytest.MonkeyPatch, real_data: Path) -> None:
    monkeypatch.setitem(sys.modules, "cucim.clara", None)
    with pytest.raises(InputError, match="pip install cucim"):
        CucimSlide(real_data / "slides/CMU-1-Small-Region.svs")


TORCH_FIRST = """
import torch, sys
from pathlib import Path
import numpy as np
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
path = Path(sys.argv[1])
with open_slide(path, "cucim") as cucim, open_slide(path, "tiff") as tiff:
    box = Box(100, 200, 700, 500)
    assert np.array_equal(cucim.read(box, 0), tiff.read(box, 0))
    print(cucim.info.reader, cucim._image.__class__.__name__, "cucim" in sys.modules)
"""


@pytest.mark.slow
def test_slides_are_read_after_torch_was_imported(real_data: Path) -> None:
    """cuCIM does not return when it is loaded after some versions of torch, so it gets a process of its own."""
    slide = real_data / "slides/CMU-1-Small-Region.svs"
    command = [sys.executable, "-c", TORCH_FIRST, slide]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.split() == ["cucim", "ImageInProcess", "False"], run.stderr[-2000:]
