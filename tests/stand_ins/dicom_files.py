"""Stand-ins in DICOM: VL whole slide microscopy images of one file, and one of two files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from tests.stand_ins.tissue import paint_he_slide

Image = NDArray[np.uint8]

ROOT = "1.2.826.0.1.3680043.8.498"
"""Root of unique identifiers that pydicom has for tests."""


class Kind(NamedTuple):
    """How an image is stored. series, number: which image of which slide it is."""

    series: int
    number: int = 1
    tile: int = 256
    jpeg: bool = True
    objective: int | None = None
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")


def write_dicom_slides(folder: Path) -> None:
    """Write three slides of one file each, and one whose second file is its thumbnail."""
    picture = paint_he_slide((1152, 715), 0.55, 4.0, seed=5)
    image = make_image(picture[:, :957], 16.783, Kind(series=1))
    image.save_as(folder / "jpeg.dicom", enforce_file_format=True)
    resampled = ("DERIVED", "PRIMARY", "VOLUME", "RESAMPLED")
    image = make_image(picture[:700], 28.969, Kind(series=2, image_type=resampled))
    image.save_as(folder / "multi_frame_jpeg_camelyon_challenge_image.dcm", enforce_file_format=True)
    image = make_image(picture[300:350, 500:550], 0.499, Kind(series=3, tile=10, jpeg=False))
    _describe_specimen(image)
    image.save_as(folder / "sm_image.dcm", enforce_file_format=True)
    (folder / "dicom_boxes").mkdir(exist_ok=True)
    boxes = np.full((16, 16, 3), 255, np.uint8)
    boxes[2:9, 3:12] = (200, 40, 40)
    boxes[10:14, 5:15] = (50, 70, 200)
    image = make_image(boxes, 0.499, Kind(series=4, tile=64, jpeg=False, objective=20))
    image.save_as(folder / "dicom_boxes" / "boxes_0.dcm", enforce_file_format=True)
    reduced = ("DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED")
    image = make_image(boxes, 0.499, Kind(series=4, number=2, tile=16, jpeg=False, image_type=reduced))
    image.save_as(folder / "dicom_boxes" / "boxes_1.dcm", enforce_file_format=True)


def make_image(picture: Image, mpp: float, kind: Kind) -> FileDataset:
    """A picture (H, W, 3) as one image of a slide, in frames of one size."""
    height, width = picture.shape[:2]
    image = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    image.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.SOPInstanceUID = f"{ROOT}.{kind.series}.{kind.number}"
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{ROOT}.{kind.series}.100", f"{ROOT}.{kind.series}.200"
    image.FrameOfReferenceUID = f"{ROOT}.{kind.series}.300"
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if kind.jpeg else ExplicitVRLittleEndian
    image.ImageType, image.Modality, image.InstanceNumber = list(kind.image_type), "SM", kind.number
    image.ContentDate, image.ContentTime = "20230314", "092653"
    image.DimensionOrganizationType = "TILED_FULL"
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width, height
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    image.Rows = image.Columns = kind.tile
    image.SamplesPerPixel, image.PlanarConfiguration = 3, 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PhotometricInterpretation = "YBR_FULL_422" if kind.jpeg else "RGB"
    if kind.objective is not None:
        path = Dataset()
        path.ObjectiveLensPower = kind.objective
        image.OpticalPathSequence = Sequence([path])
    image.LossyImageCompression = "01" if kind.jpeg else "00"
    image.BurnedInAnnotation = "NO"
    measures, group = Dataset(), Dataset()
    measures.PixelSpacing = [f"{mpp / 1000:.9g}", f"{mpp / 1000:.9g}"]
    group.PixelMeasuresSequence = Sequence([measures])
    image.SharedFunctionalGroupsSequence = Sequence([group])
    frames = _frames(picture, kind.tile)
    image.NumberOfFrames = len(frames)
    if kind.jpeg:
        image.PixelData = encapsulate([simplejpeg.encode_jpeg(one, 80, "RGB", "422") for one in frames])
    else:
        image.PixelData = np.stack(frames).tobytes()
    return image


def _frames(picture: Image, tile: int) -> list[Image]:
    """Frames row by row; those at the border are filled up with white."""
    down, across = -(-picture.shape[0] // tile), -(-picture.shape[1] // tile)
    whole = np.full((down * tile, across * tile, 3), 255, np.uint8)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    return [whole[y * tile :, x * tile :][:tile, :tile].copy() for y in range(down) for x in range(across)]


def _describe_specimen(image: Dataset) -> None:
    """Add patient, study and specimen, as a scanner does that the hospital's worklist is connected to."""
    image.PatientName, image.PatientID = "Test^Patient", "AA01"
    image.PatientBirthDate, image.PatientSex = "17890505", "O"
    image.StudyDate, image.StudyTime, image.StudyID = "20230314", "080000", "S19-1"
    image.AccessionNumber, image.SeriesNumber, image.ReferringPhysicianName = "S19-1", 1, "Test^Physician"
    image.Manufacturer, image.ManufacturerModelName = "Test Manufacturer", "Test Model"
    image.DeviceSerialNumber, image.SoftwareVersions = "abcd", "1.0"
    image.ContainerIdentifier = "S19-1_A_1_1"
    image.ContainerTypeCodeSequence = Sequence([_code("433466003", "SCT", "Microscope slide")])
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "S19-1_A_1_1", f"{ROOT}.400"
    specimen.SpecimenTypeCodeSequence = Sequence([_code("430856003", "SCT", "Tissue section")])
    specimen.SpecimenPreparationSequence = Sequence([])
    image.SpecimenDescriptionSequence = Sequence([specimen])


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
