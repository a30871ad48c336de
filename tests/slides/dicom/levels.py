"""Levels of one DICOM slide, written as archives and converters write them: files, folders, series, identifiers."""

from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.conftest import tissue_image
from tests.stand_ins.dicom_files import ROOT, Kind, make_image

MPP = 0.25
"""Resolution of level 0, µm/px."""


def level_picture(level: int, size: tuple[int, int] = (384, 256), seed: int = 0) -> np.ndarray:
    """The picture of a level, each half as large as the one before: (H, W, 3) uint8."""
    picture = tissue_image(*size, seed)
    for _ in range(level):
        picture = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return picture


def write_level(path: Path, level: int, glass: int = 1, series: int | None = None, **identifiers: object) -> Path:
    """Write one level of a glass, uncompressed.  series: of its own where given; else that of the glass.

    identifiers: attributes of the data set; None removes one. `specimen` is the identifier of a specimen, `origin` the
    position of the image on the glass in mm, `size` of level 0 in px.
    """
    size, origin = identifiers.pop("size", (384, 256)), identifiers.pop("origin", (0.0, 0.0))
    specimen = identifiers.pop("specimen", "A1")
    kind = Kind(series=glass, number=level + 1, tile=64, jpeg=False)
    image = make_image(level_picture(level, size, seed=glass), MPP * 2**level, kind)
    image.PatientName, image.ContainerIdentifier = "Doe^Jane", f"GLASS{glass}"
    if series is not None:
        image.SeriesInstanceUID = f"{ROOT}.{glass}.{series}"
    if specimen is not None:
        item = Dataset()
        item.SpecimenIdentifier = specimen
        image.SpecimenDescriptionSequence = Sequence([item])
    place = Dataset()
    place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem = origin
    image.TotalPixelMatrixOriginSequence = Sequence([place])
    for name, value in identifiers.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path
