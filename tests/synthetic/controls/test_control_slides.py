"""Slides with controls: what is painted is where the truth says."""

from pathlib import Path

import tifffile

from her2batch.synthetic.controls.control_slides import make_control_slide
from her2batch.synthetic.specimen import SlideTruth


def test_controls_lie_in_a_column_at_the_end_that_is_asked_for(tmp_path: Path) -> None:
    patient = SlideTruth("S1", width=900, height=700, mpp=1.0)
    left = make_control_slide(tmp_path / "left.svs", patient, ["0", "3+"])
    right = make_control_slide(tmp_path / "right.svs", patient, ["0", "3+"], end="right")
    image = tifffile.imread(tmp_path / "left.svs")
    assert image.shape == (left.height, left.width, 3)
    assert left.controls.sum() == right.controls.sum() > 0
    assert left.tissue.sum() == right.tissue.sum()
    assert left.controls.nonzero()[1].max() < left.tissue.nonzero()[1].min()
    assert right.controls.nonzero()[1].min() > right.tissue.nonzero()[1].max()
    y, x = (int(one.mean()) * left.px for one in left.controls[: left.controls.shape[0] // 3].nonzero())
    assert image[y : y + left.px, x : x + left.px].mean() < image[:8, -8:].mean()
