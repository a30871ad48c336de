"""A scans folder in which every name, tag, property, comment and side image has a marker, and the search for markers.

A marker is a word that nothing else contains. The search covers every byte of every file, and its unpacked content:
columns of tables, arrays of pyramids, pixels of images, data: addresses of pages, datasets and attributes of HDF5,
elements of DICOM.
"""

import base64
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import tifffile
import zarr
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from tests.conftest import tissue_image

SCAN_TIME_NS = 549_882_123_456_789_000
"""Modification time of every slide, the day of the scan: 5 June 1987."""

BARCODE = "7391846205738"
UID = f"1.2.{BARCODE}"
DATES = (
    b"1987:06:05",
    b"1987-06-05",
    b"06/05/87",
    b"19870605",
    str(SCAN_TIME_NS).encode(),
    struct.pack("<q", SCAN_TIME_NS),
)
MARKER = re.compile(rb"(?i)qxj\w{2,24}zyk")
MARKER_UTF16 = re.compile(b"(?i)q\0x\0j\0(?:\\w\0){2,24}z\0y\0k|\0q\0x\0j(?:\0\\w){2,24}\0z\0y\0k")
DATA = re.compile(rb"data:([\w/+.-]+);base64,([A-Za-z0-9+/=]+)")
MAGENTA = (255, 0, 255)
MPP = 0.25
SIZE = (900, 800)


def marker(kind: str) -> str:
    """Return a word that only one place of the source contains."""
    return f"QXJ{kind}ZYK"


# -- what is searched ------------------------------------------------------------------------------------------


def find_markers(data: bytes, extra: tuple[bytes, ...] = ()) -> set[str]:
    """Return the markers in bytes: words in UTF-8 and UTF-16, the barcode, dates."""
    found = {one.group().decode() for one in MARKER.finditer(data)}
    found |= {one.group().replace(b"\0", b"").decode() for one in MARKER_UTF16.finditer(data)}
    return found | {repr(one) for one in (*DATES, BARCODE.encode(), *extra) if one in data}


def find_leaks(folder: Path, extra: tuple[bytes, ...] = ()) -> dict[str, set[str]]:
    """Return the files under a folder with a marker in path or content, packed or not: path → markers."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        said = find_markers(os.fsencode(name))
        if path.is_file():
            for text in text_parts(path):
                said |= find_markers(text, extra)
            if any(has_magenta(rgb) for rgb in images_in_file(path)):
                said.add("label image")
        if said:
            found[name] = said
    return found


def text_parts(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and its content once it is unpacked."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        yield str(file.schema_arrow).encode() + str(file.metadata.metadata).encode()
        yield from column_texts(file.read())
    if path.suffix == ".memo":
        yield from column_texts(pa.ipc.open_stream(data[32:]).read_all())
    if path.suffix == ".html":
        yield from (part for _, part in inline_data(data))
    if path.suffix == ".h5":
        yield from hdf5_datasets(path)
    if path.suffix == ".dcm":
        yield from dicom_elements(path)
    if path.name == "zarr.json" and json.loads(data)["node_type"] == "array":
        for codec in json.loads(data)["codecs"][0]["configuration"]["codecs"]:
            yield base64.b64decode(codec.get("configuration", {}).get("tables", ""))


def column_texts(table: pa.Table) -> Iterator[bytes]:
    """Yield every value of a table, one column at a time."""
    for column in table.columns:
        yield "\n".join(map(str, column.to_pylist())).encode()


def inline_data(page: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the data: addresses of a page as (kind, bytes)."""
    for kind, packed in DATA.findall(page):
        yield kind.decode(), base64.b64decode(packed)


def hdf5_datasets(path: Path) -> Iterator[bytes]:
    """Yield every name, attribute and dataset of an HDF5 file."""
    with h5py.File(path) as file:
        every = [file]
        file.visititems(lambda _, one: every.append(one))
        for one in every:
            yield f"{one.name} {dict(one.attrs)}".encode()
            if isinstance(one, h5py.Dataset):
                yield np.asarray(one[()]).tobytes()  # texts of any length are never packed


def dicom_elements(path: Path) -> Iterator[bytes]:
    """Yield every element of a DICOM file, including those in sequences."""
    whole = pydicom.dcmread(path)
    for element in (*whole.file_meta, *whole.iterall()):
        yield f"{element.keyword} {element.value}".encode()


def images_in_file(path: Path) -> Iterator[np.ndarray]:
    """Yield the images in a file or an array: (h, w, 3) uint8."""
    if path.suffix in (".jpg", ".png"):
        yield decode_image(path.read_bytes())
    if path.suffix == ".html":
        yield from (
            decode_image(data) for kind, data in inline_data(path.read_bytes()) if kind in ("image/jpeg", "image/png")
        )
    if path.name == "zarr.json" and json.loads(path.read_text())["node_type"] == "array":
        yield np.moveaxis(np.asarray(zarr.open_array(path.parent, mode="r")[:]), 0, -1)


def decode_image(packed: bytes) -> np.ndarray:
    """Decode a JPEG or PNG: (h, w, 3) uint8."""
    return cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_COLOR_RGB)


def has_magenta(rgb: np.ndarray) -> bool:
    """True when an image contains magenta, the colour of labels and macros here; no stain has it."""
    r, g, b = (rgb[..., k].astype(int) for k in range(3))
    return bool(((r > 180) & (b > 180) & (g < 90)).any())


# -- what bears marks ------------------------------------------------------------------------------------------


def write_marked_slides(scans: Path) -> list[bytes]:
    """Fill a scans folder. Returns bytes of the label images, which must not be found anywhere.

    Some slides can be ingested; each of the others fails in another way.
    """
    folder = scans / marker("folder")
    folder.mkdir(parents=True)
    labels = [
        write_svs(folder / f"{marker('aperio')}.svs", seed=1),
        write_svs(folder / f"{marker('second')}.svs", seed=2),
    ]
    (folder / f"{marker('copy')}.svs").write_bytes((folder / f"{marker('aperio')}.svs").read_bytes())
    (scans / marker("other")).mkdir()
    write_svs(scans / marker("other") / f"{marker('aperio')}.svs", seed=3)  # one stem twice
    write_svs(folder / f"{marker('nompp')}.svs", seed=4, mpp=None)
    whole = (folder / f"{marker('second')}.svs").read_bytes()
    (folder / f"{marker('cut')}.svs").write_bytes(whole[: len(whole) // 2])
    (folder / f"{marker('damaged')}.svs").write_bytes(b"II*\0" + marker("nodirectory").encode() * 40)
    (folder / f"{marker('noslide')}.svs").write_text(marker("text"))
    (folder / f"{marker('notes')}.txt").write_text(marker("text"))
    (folder / f".{marker('hidden')}.svs").write_text(marker("text"))
    (folder / f"{marker('dead')}.svs").symlink_to(scans / f"{marker('nowhere')}.svs")
    write_ome_tiff(folder / f"{marker('ome')}.ome.tiff", seed=5)
    write_dicom(folder / f"{marker('dicom')}.dcm")
    write_dicom_scan(folder / f"{marker('archive')}.dcm", folder / f"{marker('archivelabel')}.dcm", seed=8)
    for path in scans.rglob("*"):
        os.utime(path, ns=(SCAN_TIME_NS, SCAN_TIME_NS), follow_symlinks=False)
    return labels


def write_svs(path: Path, seed: int, mpp: float | None = MPP) -> bytes:
    """Write an Aperio slide with all that a scanner writes, and comments inside each of its JPEG tiles."""
    rgb = tissue_image(*SIZE, seed=seed)
    size = "x".join(map(str, SIZE))
    resolution = "" if mpp is None else f"|AppMag = 40|MPP = {mpp}"
    described = (
        f"Aperio Image Library v12.0.15\r\n{size} [0,0 {size}] (256x256) JPEG/RGB Q=70{resolution}"
        f"|User = {marker('user')}|Date = 06/05/87|Time = 12:34:56|Title = {marker('title')}|Barcode = {BARCODE}"
        f"|Filename = {marker('filename')}|ScanScope ID = {marker('scanner')}|ImageID = {marker('imageid')}"
        f"|Patient = {marker('patient')}"
    )
    tags = [
        (315, "s", 0, marker("artist"), True), (316, "s", 0, marker("host"), True),
        (33432, "s", 0, marker("copy"), True), (65000, "s", 0, marker("private"), True),
        (700, "B", 40, marker("xmp").encode().ljust(40), True),
    ]  # fmt: skip
    common = {"metadata": None, "photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}
    label = side_image(marker("label"))
    stream = cv2.imencode(".jpg", label[..., ::-1])[1].tobytes()
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            jpeg_tiles(rgb), shape=rgb.shape, dtype=np.uint8, tile=(256, 256), description=described, extratags=tags,
            datetime="1987:06:05 12:34:56", software=marker("software"), iccprofile=marker("icc").encode() * 4,
            **common,
        )  # fmt: skip
        for name in ("label", "macro"):
            words = f"Aperio Image Library v12.0.15\r\n{name} 400x300|Barcode = {BARCODE}|{marker(name)}"
            tiff.write(iter([stream]), shape=label.shape, dtype=np.uint8, rowsperstrip=300, description=words, **common)
    start = stream.index(b"\xff\xda") + 14
    return stream[start : start + 64]


def jpeg_tiles(rgb: np.ndarray) -> Iterator[bytes]:
    """Yield JPEG tiles with markers in a comment, in EXIF and in a colour profile."""
    said = [
        (0xFE, marker("comment")),
        (0xE1, "Exif\0\0" + marker("exif")),
        (0xE2, "ICC_PROFILE\0\1\1" + marker("profile")),
    ]
    segments = b"".join(struct.pack(">BBH", 0xFF, kind, 2 + len(text)) + text.encode() for kind, text in said)
    for y in range(0, rgb.shape[0], 256):
        for x in range(0, rgb.shape[1], 256):
            tile = rgb[y : y + 256, x : x + 256]
            tile = np.pad(tile, ((0, 256 - tile.shape[0]), (0, 256 - tile.shape[1]), (0, 0)), mode="edge")
            stream = cv2.imencode(".jpg", tile[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            yield stream[:2] + segments + stream[2:]


def side_image(text: str) -> np.ndarray:
    """Return a label image: a name in black on paper of a colour that no tissue has."""
    rgb = np.full((300, 400, 3), MAGENTA, np.uint8)
    cv2.putText(rgb, text, (10, 150), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2)
    return rgb


def write_ome_tiff(path: Path, seed: int) -> None:
    """Write an OME-TIFF with markers in its XML."""
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Experimenter ID="Experimenter:0" LastName="{marker("experimenter")}"/>'
        f'<Image ID="Image:0" Name="{marker("imagename")}"><AcquisitionDate>1987-06-05T12:34:56</AcquisitionDate>'
        f"<Description>{marker('describes')}</Description>"
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{SIZE[0]}" SizeY="{SIZE[1]}" SizeC="3"'
        f' SizeZ="1" SizeT="1" PhysicalSizeX="{MPP}" PhysicalSizeY="{MPP}">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/>'
        "</Pixels></Image></OME>"
    )
    how = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, tissue_image(*SIZE, seed=seed), description=xml, **how)


def write_dicom(path: Path) -> None:
    """Write a DICOM slide that names its patient and has invalid UIDs, about which pydicom warns."""
    facts = dicom_with_names(pydicom.uid.ExplicitVRLittleEndian, "1.2.3", marker("series"))
    facts.save_as(path, enforce_file_format=True)


def write_dicom_scan(path: Path, label: Path, seed: int) -> None:
    """Write a DICOM slide, and its label image in a file of the same series."""
    rgb = tissue_image(1024, 1024, seed=seed, brown=0.7)
    dicom_image(rgb, "VOLUME").save_as(path, enforce_file_format=True)
    dicom_image(side_image(marker("label"))[:256, :256], "LABEL").save_as(label, enforce_file_format=True)


def dicom_image(rgb: np.ndarray, kind: str, tile: int = 256) -> FileDataset:
    """Return an image of one level with markers in all attributes about people."""
    height, width = rgb.shape[:2]
    facts = dicom_with_names(pydicom.uid.JPEGBaseline8Bit, f"{UID}.1.{len(kind)}", f"{UID}.2")
    facts.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    facts.StudyInstanceUID, facts.FrameOfReferenceUID, facts.Modality = f"{UID}.3", f"{UID}.4", "SM"
    facts.AccessionNumber, facts.StudyID, facts.StudyTime = marker("access"), marker("study"), "123456"
    facts.SpecimenDescriptionSequence = [Dataset()]
    facts.SpecimenDescriptionSequence[0].SpecimenIdentifier = marker("specimen")
    facts.SpecimenDescriptionSequence[0].SpecimenUID = f"{UID}.5"
    facts.add_new(0x00091001, "LO", marker("private"))
    facts.Rows = facts.Columns = tile
    facts.TotalPixelMatrixRows, facts.TotalPixelMatrixColumns = height, width
    facts.NumberOfFrames = (height // tile) * (width // tile)
    facts.DimensionOrganizationType, facts.PhotometricInterpretation = "TILED_FULL", "YBR_FULL_422"
    facts.SamplesPerPixel, facts.PlanarConfiguration, facts.PixelRepresentation = 3, 0, 0
    facts.BitsAllocated, facts.BitsStored, facts.HighBit = 8, 8, 7
    facts.SharedFunctionalGroupsSequence = [Dataset()]
    facts.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [Dataset()]
    facts.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [MPP / 1000, MPP / 1000]
    facts.PixelData = encapsulate(list(jpeg_tiles(rgb)))
    facts["PixelData"].is_undefined_length = True
    return facts


def dicom_with_names(syntax: str, uid: str, series: str) -> FileDataset:
    """Return the attributes of a whole slide image about people and places."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = syntax
    facts = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    facts.SOPClassUID, facts.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
    facts.add_new(0x0020000E, "UI", series)
    for name in (
        "PatientName",
        "PatientID",
        "InstitutionName",
        "OperatorsName",
        "SeriesDescription",
        "ContainerIdentifier",
    ):
        setattr(facts, name, marker(name.lower()[:20]))
    facts.PatientBirthDate = facts.StudyDate = "19870605"
    facts.BarcodeValue, facts.LabelText = BARCODE, marker("labeltext")
    return facts


def write_labels(path: Path) -> Path:
    """Write the labels of the laboratory, with names."""
    lines = ["slide_id,patient_id,her2,site,stain"]
    first = f"{marker('folder')}/{marker('aperio')}.svs"  # two slides have this stem
    for name, her2 in ((first, "2+"), (marker("second"), "0"), (marker("nompp"), "3+"), (marker("archive"), "3+")):
        lines.append(f"{name},{marker('labelled')},{her2},{marker('clinic')},her2")
    path.write_text("\n".join(lines) + "\n")
    return path
