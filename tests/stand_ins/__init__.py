"""Stand-ins for the real test data: the same files with synthetic tissue, made by the tests themselves.

    slides/          SVS (JPEG, JPEG 2000), generic TIFF, OME-TIFF, DICOM in one and in two files, a duplicate
    bad_slides/      a file that is no TIFF, a damaged tile, an unknown compression, a greyscale mask
    her2_cores/      five HER2 cores as JPEG files, one for 0, 1+ and 3+, two for 2+, with their scores in train.csv
    ihc/, geojson/, labels/

Every file has the name, the container, the size in pixels, the resolution and the role of the real file it stands for,
so that the tests expect the same values of both.
"""

from pathlib import Path

from tests.stand_ins.dicom_files import write_dicom_slides
from tests.stand_ins.text_files import write_geojson, write_labels
from tests.stand_ins.tiff_files import write_bad_slides, write_cores, write_ihc_image, write_tiff_slides

MARK = "these-are-stand-ins"
"""An empty file beside them."""


def make_stand_ins(folder: Path) -> Path:
    """Write all stand-ins under `folder` and return `folder`. Takes about ten seconds of one core."""
    for name in ("slides", "bad_slides", "her2_cores", "ihc", "geojson", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_tiff_slides(folder / "slides")
    write_dicom_slides(folder / "slides")
    write_bad_slides(folder / "bad_slides", sound=folder / "slides" / "small.svs")
    write_cores(folder / "her2_cores")
    write_ihc_image(folder / "ihc" / "ihc.png")
    write_geojson(folder / "geojson")
    write_labels(folder / "labels" / "tcga_brca_her2_first100.tsv")
    (folder / MARK).touch()
    return folder


def are_stand_ins(folder: Path) -> bool:
    """True for a folder that `make_stand_ins` has filled, False for real data."""
    return (folder / MARK).exists()
