"""TIFF slides read from their tile tables: correct pixels, or an error."""

import io
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.slides.pyramid import Pyramid, write_pyramid
from her2batch.slides.readers import READERS
from her2batch.slides.slide import Box, Slide, resample
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import ASSOCIATED_DAMAGED, parse_tiff
from tests.conftest import tissue_image
from tests.contract.reader_contract import SlideContract
from tests.slides.damage import copies_with_hole, copies_with_zeroed_end, truncated_copies
from tests.slides.test_jpeg import JFIF_HEADER, adobe, as_stored, encode_components
from tests.slides.test_tiff_tables import write_philips


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth image, which JPEG preserves well: (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(100, 256, (height // 32 + 2, width // 32 + 2, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def read_level(slide: Slide, level: int = 0) -> np.ndarray:
    size = slide.info.levels[level]
    return slide.read(Box(0, 0, size.width, size.height), level)


def validation_result(path: Path) -> str:
    """Open and validate a file: return the error code, 'accepted', or the flag of one whose label is damaged."""
    try:
        with TiledTiffSlide(path) as slide:
            slide.validate(fingerprint_slide([path]).holes)
            return ASSOCIATED_DAMAGED if ASSOCIATED_DAMAGED in slide.info.notes else "accepted"
    except SlideError as error:
        return error.code


@pytest.mark.parametrize(
    "name",
    ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "CMU-1-small.tiff", "HE_example.tif", "boxes.tiff"],
)
class TestRealSlides(SlideContract):
    @pytest.fixture
    def slide(self, real_data: Path, name: str) -> Iterator[Slide]:
        with TiledTiffSlide(real_data / "slides" / name) as slide:
            yield slide


class TestRealCores(SlideContract):
    @pytest.fixture
    def slide(self, cores: dict[str, Path]) -> Iterator[Slide]:
        with TiledTiffSlide(cores["3+"]) as slide:
            yield slide


def differences(path: Path, most: int = 3000) -> list[tuple[int, float]]:
    """Return (max, mean) absolute difference from OpenSlide for each level, in a corner of at most `most` px."""
    found = []
    with TiledTiffSlide(path) as ours, openslide.OpenSlide(path) as theirs:
        for level, (width, height) in enumerate(theirs.level_dimensions):
            size = min(width, most), min(height, most)
            rgb = np.asarray(theirs.read_region((0, 0), level, size))[..., :3].astype(int)
            gap = np.abs(rgb - ours.read(Box(0, 0, *size), level))
            found.append((int(gap.max()), float(gap.mean())))
    return found


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "boxes.tiff", "😐.svs"])
def test_jpeg_pixels_are_identical_to_openslide(real_data: Path, name: str) -> None:
    assert set(differences(real_data / "slides" / name)) == {(0, 0.0)}


def test_pixels_of_cores_are_identical_to_openslide(cores: dict[str, Path]) -> None:
    assert set(differences(cores["1+"])) == {(0, 0.0)}


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_jpeg_shrunk_while_decoding_is_close_to_the_area_mean(
    tmp_path: Path, real_data: Path, subsampling: tuple[int, int], by: int
) -> None:
    core = next((real_data / "her2_cores").glob("3_*.jpg"))
    rgb = cv2.cvtColor(cv2.imread(str(core)), cv2.COLOR_BGR2RGB)[2000:3024, 2000:3024]
    tifffile.imwrite(
        tmp_path / "a.tiff", rgb, tile=(256, 256), photometric="rgb", compression="jpeg",
        compressionargs={"level": 90}, subsampling=subsampling, metadata=None,
    )  # fmt: skip
    with TiledTiffSlide(tmp_path / "a.tiff") as slide:
        half = slide.read(Box(0, 0, 1024 // by, 1024 // by), 0, by).astype(int)
        area = resample(slide.read(Box(0, 0, 1024, 1024)), 1024 // by, 1024 // by).astype(int)
    assert np.abs(half - area).mean() < 2.5  # the scaled transform preserves fine detail that the mean of pixels blurs
    assert np.abs((half - area).mean((0, 1))).max() < 0.3


@pytest.mark.parametrize("tile", [(112, 176), (240, 304), (48, 1008), (16, 16)])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_tiles_of_any_edge_can_be_shrunk(tmp_path: Path, tile: tuple[int, int], by: int) -> None:
    rgb = smooth(1008, 960)
    tifffile.imwrite(
        tmp_path / "a.tiff", rgb, tile=tile, photometric="rgb", compression="jpeg", metadata=None,
        compressionargs={"level": 95},
    )  # fmt: skip
    with TiledTiffSlide(tmp_path / "a.tiff") as slide:
        size = slide.info.levels[0].downscale(by)
        shrunk = slide.read(Box(0, 0, size.width, size.height), 0, by).astype(int)
        assert np.abs(shrunk - resample(rgb, size.width, size.height)).mean() < 4
        part = slide.read(Box(11, 7, 90, 80), 0, by).astype(int)
        assert np.abs(part - shrunk[7:87, 11:101]).mean() < 1


@pytest.mark.parametrize("tile", [(124, 116), (62, 74), (333, 257), (1000, 900)])
@pytest.mark.parametrize("quality", [None, 90])
def test_tile_edges_that_16_does_not_divide(tmp_path: Path, tile: tuple[int, int], quality: int | None) -> None:
    """tifffile writes multiples of 16 only: the tags are set afterwards, and the tiles encoded here."""
    rgb = smooth(1000, 900)
    path = write_odd_tiles(tmp_path / "a.tiff", rgb, tile, quality)
    with TiledTiffSlide(path) as slide:
        slide.validate()
        gap = np.abs(read_level(slide).astype(int) - rgb)
        assert gap.mean() < 4 if quality else gap.max() == 0
        for by in (2, 4, 8):
            view = slide.whole_slide(by).astype(int)
            assert np.abs(view - resample(rgb, view.shape[1], view.shape[0])).mean() < 4
    assert quality is None or differences(path) == [(0, 0.0)]


def write_odd_tiles(path: Path, rgb: np.ndarray, tile: tuple[int, int], quality: int | None) -> Path:
    """Write a TIFF of one level with tiles of any height and width: JPEG of a quality, or uncompressed."""
    height, width = tile
    streams = []
    for y in range(0, rgb.shape[0], height):
        for x in range(0, rgb.shape[1], width):
            part = rgb[y : y + height, x : x + width]
            full = np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)), mode="edge")
            jpeg = quality and cv2.imencode(".jpg", full[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            streams.append(full.tobytes() if jpeg is None else jpeg.tobytes())
    offsets = 8 + np.cumsum([0, *(len(stream) for stream in streams)])
    lists = [struct.pack(f"<{len(streams)}I", *values) for values in (offsets[:-1], map(len, streams))]
    at = int(offsets[-1])
    entries = [
        (256, 4, 1, rgb.shape[1]), (257, 4, 1, rgb.shape[0]), (258, 3, 1, 8), (259, 3, 1, 7 if quality else 1),
        (262, 3, 1, 6 if quality else 2), (277, 3, 1, 3), (322, 4, 1, width), (323, 4, 1, height),
        (324, 4, len(streams), at), (325, 4, len(streams), at + len(lists[0])),
    ]  # fmt: skip
    if len(streams) == 1:
        entries[-2:] = [(324, 4, 1, 8), (325, 4, 1, len(streams[0]))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = at + len(lists[0]) + len(lists[1])
    head = b"II*\0" + struct.pack("<I", start)
    path.write_bytes(head + b"".join(streams) + b"".join(lists) + directory + bytes(4))
    return path


def test_rgb_under_a_wrong_tag_is_shrunk_after_decoding(tmp_path: Path) -> None:
    rgb = np.full((512, 512, 3), 240, np.uint8)
    rgb[100:203, 100:301] = (150, 90, 60)
    tifffile.imwrite(tmp_path / "a.tiff", rgb, tile=(128, 128), photometric="ycbcr", compression="jpeg", metadata=None)
    with TiledTiffSlide(tmp_path / "a.tiff") as slide:
        assert slide.info.notes == ("colour-tag-mended",)
        half = slide.read(Box(0, 0, 256, 256), 0, 2)
        assert np.array_equal(half, resample(slide.read(Box(0, 0, 512, 512)), 256, 256))


def test_jpeg_2000_pixels_are_identical_to_openslide(real_data: Path) -> None:
    assert set(differences(real_data / "slides/tcga-cr-7395-01a-01-ts1.svs", most=1000)) == {(0, 0.0)}


def test_jpeg_2000_in_ycbcr_is_within_2_grey_levels_of_openslide(tmp_path: Path) -> None:
    rgb = smooth(256, 512)
    ycbcr = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]].copy()
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path, ycbcr, tile=(256, 256), photometric="rgb", compression=33003, metadata=None,
        compressionargs={"level": 0, "mct": False}, description="Aperio Image Library\r\n|MPP = 0.25",
    )  # fmt: skip
    with TiledTiffSlide(path) as slide:
        assert np.abs(read_level(slide).astype(int) - rgb).max() <= 3
    assert differences(path)[0][0] <= 2


def test_ome_pixels_are_identical_to_tifffile(real_data: Path) -> None:
    path = real_data / "slides/HE_example.tif"
    with TiledTiffSlide(path) as slide:
        assert np.array_equal(read_level(slide), tifffile.imread(path, key=0))


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [(None, False), ("lzw", True), ("zlib", False), ("adobe_deflate", True), ("zstd", False), ("lzma", False)],
)
def test_lossless_tiles_and_strips_are_read_exactly(tmp_path: Path, compression, predictor: bool) -> None:
    rgb = smooth(300, 500)
    packed = {"photometric": "rgb", "compression": compression, "predictor": predictor, "metadata": None}
    tifffile.imwrite(tmp_path / "tiles.tiff", rgb, tile=(128, 128), **packed)
    tifffile.imwrite(tmp_path / "strips.tiff", rgb, rowsperstrip=7, **packed)
    for name in ("tiles", "strips"):
        with TiledTiffSlide(tmp_path / f"{name}.tiff") as slide:
            slide.validate()
            assert np.array_equal(read_level(slide), rgb)
            assert np.array_equal(slide.read(Box(100, 90, 201, 133)), rgb[90:223, 100:301])


def test_strips_get_chunks_of_the_default_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", smooth(300, 500), rowsperstrip=2, photometric="rgb", metadata=None)
    with TiledTiffSlide(tmp_path / "a.tiff") as slide:
        assert (slide.info.levels[0].chunk_width, slide.info.levels[0].chunk_height) == (256, 256)
        assert not slide.table(0).full_tiles


def test_jpeg_strips_are_no_full_tiles(tmp_path: Path) -> None:
    rgb = smooth(300, 512)
    tifffile.imwrite(
        tmp_path / "a.tiff", rgb, rowsperstrip=64, photometric="rgb", compression="jpeg", metadata=None,
        compressionargs={"level": 95},
    )  # fmt: skip
    with TiledTiffSlide(tmp_path / "a.tiff") as slide:
        slide.validate()
        assert np.abs(read_level(slide).astype(int) - rgb).mean() < 2
        assert not slide.table(0).full_tiles


def test_raw_tile_returns_the_bytes_of_the_file(real_data: Path) -> None:
    path = real_data / "slides/CMU-1-Small-Region.svs"
    data = path.read_bytes()
    with TiledTiffSlide(path) as slide:
        slide.validate()
        table = slide.table(0)
        assert (table.across, table.down, table.full_tiles) == (10, 13, True)
        for index in (0, 77, 129):
            offset, count = int(table.offsets[index]), int(table.byte_counts[index])
            assert slide.raw_tile(0, index) == data[offset : offset + count]


def drop_tiles(path: Path, indices: Iterable[int], page: int = 0) -> Path:
    """Set offset and size of tiles or strips to 0, as sparse files do."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tiled = file.pages[page].is_tiled
        for tag in (324, 325) if tiled else (273, 279):
            entry = file.pages[page].tags[tag]
            width = {3: 2, 4: 4, 16: 8}[int(entry.dtype)]
            for index in indices:
                at = entry.valueoffset + width * index
                data[at : at + width] = bytes(width)
    path.write_bytes(data)
    return path


def test_missing_tile_of_a_sparse_slide_is_white(tmp_path: Path) -> None:
    path = drop_tiles(write_philips(tmp_path / "a.tiff", np.full((256, 384, 3), 90, np.uint8)), [1])
    with TiledTiffSlide(path) as slide:
        slide.validate()
        assert slide.raw_tile(0, 1) == b""
        assert (slide.read(Box(128, 0, 128, 128)) == 255).all()
        assert np.abs(slide.read(Box(0, 0, 128, 128)).astype(int) - 90).max() <= 2
        area = slide.missing_area()
        assert area is not None
        assert (np.argwhere(area.mask).tolist(), area.width, area.height) == ([[0, 1]], 384, 256)


def write_sparse(path: Path, rgb: np.ndarray, levels: int = 3, **packing: object) -> Path:
    """Write a pyramid, each level half as large as the one before, whose tile lists can be edited."""
    packing = packing or {"tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 95}}
    with tifffile.TiffWriter(path) as file:
        for k in range(levels):
            small = cv2.resize(rgb, None, fx=0.5**k, fy=0.5**k, interpolation=cv2.INTER_AREA)
            file.write(small, photometric="rgb", metadata=None, subfiletype=int(k > 0), **packing)
    return path


@pytest.mark.parametrize("shrink", [1, 2])
def test_tile_that_a_lower_level_lacks_is_rebuilt_from_the_finer_ones(tmp_path: Path, shrink: int) -> None:
    path = write_sparse(tmp_path / "a.tiff", smooth(512, 704))
    with TiledTiffSlide(path) as slide:
        size = slide.info.levels[2].downscale(shrink)
        expected = slide.read(Box(0, 0, size.width, size.height), 2, shrink).astype(int)
    drop_tiles(path, [0, 2, 3], page=2)
    drop_tiles(path, [0, 7, 16], page=1)
    with TiledTiffSlide(path) as slide:
        slide.validate()
        assert slide.missing_area() is None
        difference = np.abs(slide.read(Box(0, 0, size.width, size.height), 2, shrink) - expected)
        assert np.percentile(difference, 98) <= 12
        assert slide.present_tiles(2).all()
    drop_tiles(path, range(88), page=0)
    with TiledTiffSlide(path) as slide:
        assert slide.present_tiles(1).sum() == 24 - 3
        assert (slide.read(Box(0, 0, 60, 60), 1) == 255).all()


def test_pyramid_stores_the_rebuilt_tiles_of_a_level(tmp_path: Path) -> None:
    path = drop_tiles(write_sparse(tmp_path / "a.tiff", smooth(500, 700), levels=2), [1, 2, 9], page=1)
    drop_tiles(path, [14], page=0)
    with TiledTiffSlide(path) as slide:
        write_pyramid(slide, np.ones((4, 4), bool), tmp_path / "a.zarr", 95)
        with Pyramid(tmp_path / "a.zarr") as copy:
            assert np.array_equal(read_level(copy), read_level(slide))
            assert np.abs(read_level(copy, 1).astype(int) - read_level(slide, 1)).mean() < 1


def test_rebuilt_tiles_of_an_rgb_level_are_stored_as_rgb(tmp_path: Path) -> None:
    rgb = tissue_image(512, 512, seed=4, brown=0.6)
    path = drop_tiles(write_levels(tmp_path / "a.tiff", rgb, [encode_as("RGB")] * 2, 2), [1], page=1)
    with TiledTiffSlide(path) as slide:
        write_pyramid(slide, np.ones((4, 4), bool), tmp_path / "a.zarr", 95)
        with Pyramid(tmp_path / "a.zarr") as copy:
            assert np.abs(read_level(copy, 1).astype(int) - resample(rgb, 256, 256)).mean() < 3


@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
def test_missing_strips_are_white_and_reported(tmp_path: Path, compression: str | None) -> None:
    rgb = smooth(256, 300)
    path = write_sparse(tmp_path / "a.tiff", rgb, levels=1, rowsperstrip=32, compression=compression)
    with TiledTiffSlide(drop_tiles(path, [2, 7])) as slide:
        slide.validate()
        pixels = read_level(slide).astype(int)
        assert (pixels[64:96] == 255).all()
        assert (pixels[224:] == 255).all()
        assert np.abs(pixels[96:224] - rgb[96:224]).mean() < 3
        area = slide.missing_area()
        assert area is not None
        assert (np.flatnonzero(area.mask).tolist(), area.height) == ([2, 7], 256)


def test_lists_of_a_sparse_file_may_hold_pages_of_zeros(tmp_path: Path) -> None:
    """Where both lists are zero for the same tiles, the tiles are missing; where one is, the list is damaged."""
    path = tmp_path / "a.tiff"
    rgb = np.full((64 * 40, 64 * 40, 3), 120, np.uint8)
    write_sparse(path, rgb, levels=1)
    data = path.read_bytes()
    drop_tiles(path, range(300, 900))
    assert fingerprint_slide([path]).holes
    assert validation_result(path) == "accepted"
    with tifffile.TiffFile(path) as file:
        spot = -(-file.pages[0].tags[324].valueoffset // 512) * 512
    path.write_bytes(data[:spot] + bytes(512) + data[spot + 512 :])
    assert validation_result(path) == "truncated"


def test_rgb_under_a_ycbcr_tag_is_detected_by_the_background(tmp_path: Path) -> None:
    rgb = np.full((512, 512, 3), 240, np.uint8)
    rgb[100:200, 100:300] = (150, 90, 60)
    # for "ycbcr", tifffile stores the pixels without conversion; for "rgb" it converts them and sets the tag
    for name, photometric in (("wrong", "ycbcr"), ("right", "rgb")):
        path = tmp_path / f"{name}.tiff"
        tifffile.imwrite(path, rgb, tile=(128, 128), photometric=photometric, compression="jpeg", metadata=None)
    for name, notes in (("wrong", ("colour-tag-mended",)), ("right", ())):
        with TiledTiffSlide(tmp_path / f"{name}.tiff") as slide:
            assert slide.info.notes == notes
            assert np.abs(read_level(slide).astype(int) - rgb).mean() < 3


def write_levels(path: Path, rgb: np.ndarray, encode: list[Callable[[np.ndarray], bytes]], tag: int) -> Path:
    """Write one level for each encoder, each half as large as the one before, under the photometric tag 2 or 6."""
    with tifffile.TiffWriter(path) as tiff:
        for k, encode_level in enumerate(encode):
            small = cv2.resize(rgb, None, fx=0.5**k, fy=0.5**k, interpolation=cv2.INTER_AREA)
            height, width = small.shape[:2]
            tiles = (small[y : y + 128, x : x + 128] for y in range(0, height, 128) for x in range(0, width, 128))
            tiff.write(
                (encode_level(np.ascontiguousarray(tile)) for tile in tiles), shape=small.shape, dtype=np.uint8,
                tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None, subfiletype=int(k > 0),
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            page.tags["PhotometricInterpretation"].overwrite(tag)
    return path


def encode_as(colorspace: str, subsampling: str = "444", header: bytes = b"") -> Callable[[np.ndarray], bytes]:
    return lambda tile: encode_components(as_stored(tile, colorspace), subsampling, header)


@pytest.mark.parametrize(("tag", "truth"), [(2, "YCBCR"), (6, "RGB"), (2, "RGB"), (6, "YCBCR")])
@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_stream_decides_the_colours_of_a_slide(tmp_path: Path, tag: int, truth: str, reader: str) -> None:
    rgb = tissue_image(512, 512, seed=4, brown=0.6)
    right = {2: "RGB", 6: "YCBCR"}[tag] == truth
    for name, encode in {"bare": encode_as(truth), "jfif": encode_as(truth, "444", JFIF_HEADER)}.items():
        path = write_levels(tmp_path / f"{name}.tiff", rgb, [encode, encode], tag)
        if reader == "openslide" and truth == "RGB" and not right:
            continue  # OpenSlide's conversion of RGB clips, and cannot be undone
        with READERS[reader](path) as slide:
            assert slide.info.notes == (() if right else ("colour-tag-mended",)), name
            assert np.abs(read_level(slide).astype(int) - rgb).mean() < 3, name
            half = resample(rgb, 256, 256).astype(int)
            assert np.abs(slide.read(Box(0, 0, 256, 256), 0, 2) - half).mean() < 4
            slide.validate()


@pytest.mark.parametrize(("tag", "truth"), [(2, "YCBCR"), (6, "RGB"), (2, "RGB"), (6, "YCBCR")])
def test_pixels_decide_against_adobe_markers_that_state_the_other_colour_space(
    tmp_path: Path, tag: int, truth: str
) -> None:
    rgb = tissue_image(512, 512, seed=4, brown=0.6)
    encode = encode_as(truth, "444", adobe(1 if truth == "RGB" else 0))
    path = write_levels(tmp_path / "a.tiff", rgb, [encode, encode], tag)
    with TiledTiffSlide(path) as slide:
        assert slide.info.notes == ("colour-tag-mended",)
        assert np.abs(read_level(slide).astype(int) - rgb).mean() < 3
        write_pyramid(slide, np.ones((4, 4), bool), tmp_path / "a.zarr", 90)
        with Pyramid(tmp_path / "a.zarr") as copy:
            assert np.array_equal(read_level(copy), read_level(slide))


@pytest.mark.parametrize("kind", ["progressive", "4:4:4", "one component in tiles of glass", "optimised tables"])
def test_unusual_jpeg_tiles_are_read(tmp_path: Path, kind: str) -> None:
    rgb = tissue_image(512, 512, seed=4, brown=0.6)

    def encode(tile: np.ndarray) -> bytes:
        if kind.startswith("one") and tile.min() > 200:
            return imagecodecs.jpeg8_encode(tile[..., 1].copy(), 90)
        options = {"progressive": kind == "progressive", "optimize": kind.startswith("optimised")}
        with io.BytesIO() as file:
            Image.fromarray(tile).save(file, "JPEG", quality=90, subsampling=2 * (kind != "4:4:4"), **options)
            return file.getvalue()

    path = write_levels(tmp_path / "a.tiff", rgb, [encode, encode], 6)
    with TiledTiffSlide(path) as slide:
        slide.validate()
        assert slide.info.notes == ()
        assert np.abs(read_level(slide).astype(int) - rgb).mean() < 3
        assert np.abs(slide.read(Box(0, 0, 128, 128), 0, 4).astype(int) - resample(rgb, 128, 128)).mean() < 4


def test_levels_of_a_slide_may_have_different_colour_spaces(tmp_path: Path) -> None:
    """A converter may copy the scanner's tiles of level 0 and encode the other levels itself."""
    rgb = tissue_image(512, 512, seed=4, brown=0.6)
    path = write_levels(tmp_path / "a.tiff", rgb, [encode_as("RGB"), encode_as("YCBCR", "420")], 2)
    with TiledTiffSlide(path) as slide:
        assert [slide.table(k).colorspace for k in (0, 1)] == ["RGB", "YCBCR"]
        assert np.abs(read_level(slide).astype(int) - rgb).mean() < 3
        assert np.abs(read_level(slide, 1).astype(int) - resample(rgb, 256, 256)).mean() < 3


def test_pyramid_of_a_slide_with_a_wrong_tag_has_the_right_colours(tmp_path: Path) -> None:
    rgb = tissue_image(512, 512, seed=4, brown=0.6)
    path = write_levels(tmp_path / "a.tiff", rgb, [encode_as("YCBCR", "420", JFIF_HEADER)] * 2, 2)
    with TiledTiffSlide(path) as slide:
        write_pyramid(slide, np.ones((4, 4), bool), tmp_path / "a.zarr", 90)
        expected = read_level(slide)
    with Pyramid(tmp_path / "a.zarr") as copy:
        assert np.array_equal(read_level(copy), expected)


@pytest.mark.parametrize("compression", [33003, 33004, 33005, 34712])
@pytest.mark.parametrize("transform", [False, True])
def test_jpeg_2000_under_each_tag_has_the_right_colours(tmp_path: Path, compression: int, transform: bool) -> None:
    rgb = tissue_image(256, 256, seed=4, brown=0.6)
    for truth in ("RGB",) if transform else ("RGB", "YCBCR"):
        tifffile.imwrite(
            tmp_path / "a.tiff", as_stored(rgb, truth), tile=(128, 128), photometric="rgb", compression=compression,
            compressionargs={"level": 0, "mct": transform}, metadata=None,
        )  # fmt: skip
        with TiledTiffSlide(tmp_path / "a.tiff") as slide:
            assert np.abs(read_level(slide).astype(int) - rgb).max() <= 3
            wrong = (truth == "YCBCR") != (compression == 33003)
            assert slide.info.notes == (("colour-tag-mended",) if wrong else ())


# -- damage --------------------------------------------------------------------------------------------------------


def count_results(path: Path, variants: Iterator[bytes], original: Path | None = None) -> Counter[str]:
    """Count the results of damaged copies. original: a copy with a damaged label has all bytes of its levels."""
    found: Counter[str] = Counter()
    for data in variants:
        path.write_bytes(data)
        result = validation_result(path)
        found[result] += 1
        if result == ASSOCIATED_DAMAGED:
            assert original is not None
            assert level_bytes(original, data) == level_bytes(original, original.read_bytes())
    return found


def level_bytes(original: Path, data: bytes) -> list[bytes]:
    """Return the bytes of a file where the tiles of the levels of its original are."""
    tables = parse_tiff(original).levels
    spans = [span for table in tables for span in zip(table.offsets.tolist(), table.byte_counts.tolist(), strict=True)]
    return [data[start : start + count] for start, count in spans]


JPEG, J2K, LZW = "CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "HE_example.tif"


@pytest.mark.parametrize("size", [65536, 4096])
@pytest.mark.parametrize(("name", "times"), [(JPEG, 60), (J2K, 20), (LZW, 30)])
def test_slide_with_a_hole_in_a_level_is_refused(
    tmp_path: Path, real_data: Path, name: str, size: int, times: int
) -> None:
    original = real_data / "slides" / name
    copies = copies_with_hole(original.read_bytes(), size, times, seed=2026)
    found = count_results(tmp_path / name, copies, original)
    assert found.keys() <= {"truncated", "unreadable", ASSOCIATED_DAMAGED}, found


@pytest.mark.parametrize(("name", "times"), [(JPEG, 60), (J2K, 20), (LZW, 30)])
def test_truncated_slide_or_slide_with_zeroed_end_is_refused(
    tmp_path: Path, real_data: Path, name: str, times: int
) -> None:
    """A writer that puts label and macro image last leaves whole levels where the zeroed end is short."""
    original = real_data / "slides" / name
    data = original.read_bytes()
    assert count_results(tmp_path / name, truncated_copies(data, times, seed=1)).keys() <= {"truncated", "unreadable"}
    zeroed = count_results(tmp_path / name, copies_with_zeroed_end(data, times, seed=2), original)
    assert "truncated" in zeroed
    assert zeroed.keys() <= {"truncated", ASSOCIATED_DAMAGED}


def test_hole_in_a_directory_or_tile_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    rgb = smooth(2048, 2048)
    with tifffile.TiffWriter(path) as file:
        for image in (rgb, rgb[::2, ::2].copy()):
            file.write(image, tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        lists = [page.tags[tag] for page in file.pages for tag in (324, 325)]
        spots = [tag.valueoffset for tag in lists] + [page.offset for page in file.pages]
    assert validation_result(path) == "accepted"
    for spot in spots:
        start = -(-spot // 512) * 512
        path.write_bytes(data[:start] + bytes(512) + data[start + 512 :])
        assert validation_result(path) in ("truncated", "unreadable"), spot


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_zeros_that_fill_up_uncompressed_tiles_are_no_damage(tmp_path: Path, planes: str) -> None:
    """Tiles at the edge are filled with zeros by most writers: more than a page in a row."""
    path, rgb = tmp_path / "a.tiff", smooth(300, 700)
    shown = np.moveaxis(rgb, -1, 0) if planes == "separate" else rgb
    tifffile.imwrite(path, shown, tile=(256, 512), photometric="rgb", planarconfig=planes, metadata=None)
    with TiledTiffSlide(path) as slide:
        offset = int(slide.table(0).offsets[0])
    assert len(fingerprint_slide([path]).holes) >= 4
    assert validation_result(path) == "accepted"
    data = bytearray(path.read_bytes())
    data[offset + 2048 : offset + 4096] = bytes(2048)
    path.write_bytes(data)
    assert validation_result(path) == "truncated"


@pytest.mark.parametrize("compression", ["jpeg", "lzw", None])
@pytest.mark.parametrize("wiped", ["zeros", "other bytes", "header kept", "no bytes", "half", "description"])
def test_wiped_label_is_a_flag_and_no_failure(tmp_path: Path, compression: str | None, wiped: str) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        common = {"photometric": "rgb", "metadata": None}
        file.write(smooth(600, 500), tile=(128, 128), compression="jpeg", description="Aperio\r\n|MPP = 0.25", **common)
        label = {"compression": compression, "subfiletype": 1, "description": f"Aperio Image\r\nlabel{'.' * 1600}"}
        file.write(smooth(300, 300, seed=1), rowsperstrip=300, **label, **common)
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        (start,), (count,) = page.dataoffsets, page.databytecounts
        text, counts = page.tags[270].valueoffset, page.tags[279].valueoffset
    data = bytearray(path.read_bytes())
    if wiped == "no bytes":
        data[counts : counts + 4] = bytes(4)
    elif wiped == "description":
        data[text : text + 1600] = bytes(1600)
    else:
        kept = {"header kept": 40, "half": count // 2}.get(wiped, 0)
        data[start + kept : start + count] = (b"\x80" if wiped == "other bytes" else b"\0") * (count - kept)
    assert validation_result(path) == "accepted"
    path.write_bytes(data)
    # bytes of another picture can be told from this one only where they cannot be decoded
    harmless = {"accepted", ASSOCIATED_DAMAGED} if wiped == "other bytes" and compression != "jpeg" else set()
    assert validation_result(path) in harmless | {ASSOCIATED_DAMAGED}


def test_zeros_after_the_last_tile_are_accepted(tmp_path: Path, real_data: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes((real_data / "slides" / JPEG).read_bytes() + bytes(8192))
    assert validation_result(path) == "accepted"


def test_tiles_with_the_size_of_another_level_are_refused(tmp_path: Path) -> None:
    """Swapping the tile lists of two levels leaves every range a valid JPEG inside the file, but of another size."""
    path = tmp_path / "a.tiff"
    with tifffile.TiffWriter(path) as file:
        for edge in (128, 64):
            file.write(smooth(edge, edge), tile=(edge, edge), photometric="rgb", compression="jpeg", metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = [[page.tags[tag].valueoffset for tag in (324, 325)] for page in file.pages]
    for first, second in zip(*tags, strict=True):
        data[first : first + 4], data[second : second + 4] = data[second : second + 4], data[first : first + 4]
    path.write_bytes(data)
    assert validation_result(path) in ("unreadable", "truncated")


def test_damaged_tile_fails_only_reads_that_need_it(tmp_path: Path, real_data: Path) -> None:
    data = bytearray((real_data / "slides" / JPEG).read_bytes())
    with TiledTiffSlide(real_data / "slides" / JPEG) as slide:
        expected = slide.read(Box(240, 0, 240, 240))
        offset, count = int(slide.table(0).offsets[0]), int(slide.table(0).byte_counts[0])
    data[offset + count // 2 : offset + count - 2] = bytes(count - 2 - count // 2)
    (tmp_path / "a.svs").write_bytes(data)
    with TiledTiffSlide(tmp_path / "a.svs") as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match="tile 0"):
                slide.read(Box(0, 0, 480, 240))
            assert np.array_equal(slide.read(Box(240, 0, 240, 240)), expected)


def test_slide_with_damaged_first_tile_fails_on_read(real_data: Path) -> None:
    with TiledTiffSlide(real_data / "bad_slides/unreadable.svs") as slide, pytest.raises(SlideError, match="tile 0"):
        slide.read(Box(0, 0, 1, 1))


def test_refused_slide_leaves_no_file_open(tmp_path: Path, real_data: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in sorted((real_data / "bad_slides").iterdir()):
        validation_result(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
