"""TIFF slides that contradict themselves or are damaged beside the slide, through an ingest."""

from pathlib import Path

import numpy as np
import tifffile

from her2batch.settings import Plan
from tests.conftest import tissue_image, write_slide
from tests.runtime.test_ingest import run

APERIO = "Aperio Image Library v12\r\n700x700 (256x256) JPEG|AppMag = 40|MPP = 1.0"


def test_forced_resolution_and_flags_of_the_reader_reach_the_row(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_slide(scans / "right.tif", tissue_image(700, 700, seed=1, brown=0.4))
    wrong = scans / "wrong.svs"
    with tifffile.TiffWriter(wrong) as file:
        common = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
        file.write(tissue_image(700, 700, brown=0.4), tile=(256, 256), description=APERIO, **common)
        label = {"description": "Aperio Image\r\nlabel 300x300", "subfiletype": 1}
        file.write(np.full((300, 300, 3), 200, np.uint8), rowsperstrip=300, **label, **common)
    with tifffile.TiffFile(wrong) as file:
        (start,), (count,) = file.pages[1].dataoffsets, file.pages[1].databytecounts
    data = wrong.read_bytes()
    wrong.write_bytes(data[:start] + bytes(count) + data[start + count :])

    first = run(scans, tmp_path / "c")
    (failure,) = first.failures
    assert (failure["slide_id"], failure["error_code"]) == ("wrong", "too-coarse")
    assert "--mpp-force" in failure["error"]

    second = run(scans, tmp_path / "c", Plan(mpp_force=0.25))
    rows = {row["slide_id"]: row for row in second.slides}
    assert (rows["wrong"]["mpp"], rows["wrong"]["mpp_source"], rows["wrong"]["status"]) == (0.25, "override", "done")
    assert {"mpp-forced", "associated-image-damaged"} <= set(rows["wrong"]["flags"])
    assert second.already == 1  # the other slide has this resolution anyway
