"""Whatever stands in a file, our own parsers read it or refuse it in their own words: nothing else comes out of them.

Small corpora, fixed seeds: hypothesis derandomized, so that a run is the same on every machine.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2batch.errors import Her2BatchError, InputError, SlideError
from her2batch.exchange.annotations import read_annotations
from her2batch.job_settings import NightlySettings, read_settings
from her2batch.slides import jpeg
from her2batch.slides.discover import discover_slides
from her2batch.slides.fingerprint import check_directories
from her2batch.slides.ndpi import NdpiSlide
from her2batch.slides.slide import Box
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import TileTable, detect_tiff_format
from her2batch.store import row_cache
from her2batch.store.labels import COLUMNS, read_labels
from her2batch.store.run_log import log_entries
from tests.conftest import tissue_image
from tests.slides.ndpi import write_ndpi

fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
FUZZ_LONG = settings(fuzz, max_examples=600)

EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(st.binary(min_size=1, max_size=9), st.integers(1, 64))),
    min_size=1, max_size=6,
)  # fmt: skip
"""Place of an edit (as a share of the file), and the bytes put there, or the number of bytes removed."""


def apply_edits(data: bytes, edits: list) -> bytes:
    for place, what in edits:
        at = int(place * len(data))
        data = data[:at] + what + data[at + len(what) :] if isinstance(what, bytes) else data[:at] + data[at + what :]
    return data


def tiff_bytes() -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for edge in (64, 32):
            file.write(np.full((edge, edge, 3), 200, np.uint8), tile=(16, 16), photometric="rgb", compression="jpeg",
                       description="Aperio x|MPP = 0.5|AppMag = 20", metadata=None)  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="module")
def tiff() -> bytes:
    return tiff_bytes()


@pytest.fixture(scope="module")
def ndpi(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ndpi") / "a.ndpi"
    return write_ndpi(path, tissue_image(512, 64), 0.25, levels=1).read_bytes()


def assert_table_is_sound(table: TileTable, size: int) -> None:
    """Assert what holds for every tile table that the parser accepts."""
    there = table.byte_counts > 0
    assert len(table.offsets) == len(table.byte_counts) == table.across * table.down
    assert (table.offsets[there] >= 0).all()
    assert (table.offsets[there] + table.byte_counts[there] <= size).all()


def check_tiff(path: Path, opener: Callable[[Path], TiledTiffSlide]) -> None:
    try:
        detect_tiff_format(path)
        check_directories(path, high_words=path.suffix == ".ndpi")
        with opener(path) as slide:
            slide.validate()
            size = slide.info.levels[0]
            if size.width * size.height < 1_000_000:
                for level in range(len(slide.info.levels)):
                    assert_table_is_sound(slide.table(level), path.stat().st_size)
                    slide.read(Box(0, 0, slide.info.levels[level].width, slide.info.levels[level].height), level)
    except SlideError:
        pass


class TestSlides:
    @fuzz
    @given(edits=EDITS)
    def test_edited_tiff_is_refused_or_has_a_checked_table(
        self, edits: list, tiff: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.tiff"
        path.write_bytes(apply_edits(tiff, edits))
        check_tiff(path, TiledTiffSlide)

    @fuzz
    @given(edits=EDITS)
    def test_edited_ndpi_is_refused_or_has_a_checked_table(
        self, edits: list, ndpi: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.ndpi"
        path.write_bytes(apply_edits(ndpi, edits))
        check_tiff(path, NdpiSlide)

    @pytest.mark.slow
    @FUZZ_LONG
    @given(edits=EDITS)
    def test_600_edited_tiffs_are_refused_or_have_checked_tables(
        self, edits: list, tiff: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.tiff"
        path.write_bytes(apply_edits(tiff, edits))
        check_tiff(path, TiledTiffSlide)

    @pytest.mark.slow
    @FUZZ_LONG
    @given(edits=EDITS)
    def test_600_edited_ndpis_are_refused_or_have_checked_tables(
        self, edits: list, ndpi: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.ndpi"
        path.write_bytes(apply_edits(ndpi, edits))
        check_tiff(path, NdpiSlide)

    @fuzz
    @given(data=st.binary(max_size=200), start=st.sampled_from([b"", jpeg.SOI, jpeg.SOI + b"\xff\xc0", jpeg.J2K_START]))
    def test_arbitrary_jpeg_headers_raise_nothing_unexpected(self, data: bytes, start: bytes) -> None:
        for size in (jpeg.frame_size(start + data), jpeg.codestream_size(start + data)):
            assert size is None or len(size) == 2
        assert isinstance(jpeg.has_end_marker(data), bool)
        with pytest.raises(ValueError):  # noqa: PT011  (simplejpeg's words are its own)
            jpeg.decode_jpeg(start + data + jpeg.EOI)

    @fuzz
    @given(edits=EDITS, head=st.sampled_from(["dicom", "vms"]))
    def test_discovery_survives_edited_slide_files(
        self, edits: list, head: str, real_data: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "searched"
        folder.mkdir(exist_ok=True)
        whole = (real_data / "slides/sm_image.dcm").read_bytes()[:4000]
        data = whole if head == "dicom" else b"[VMS]\nImageFile(0,1)=../a.jpg\nMapFile=/etc/passwd\n"
        (folder / f"a.{'dcm' if head == 'dicom' else 'vms'}").write_bytes(apply_edits(data, edits))
        assert len(discover_slides(folder).slides) + len(discover_slides(folder).ignored) >= 1


def read_or_refuse(reader: Callable[[Path], object], path: Path) -> object:
    """Return what a reader returns, or None when it raises our own error, which names the file and a remedy."""
    try:
        return reader(path)
    except Her2BatchError as error:
        refusal = error
    assert refusal.path == path
    assert refusal.remedy
    return None


def check_annotations(path: Path) -> None:
    regions, notes = read_or_refuse(read_annotations, path) or ((), ())
    assert all(one.shape.is_valid and one.shape.area > 0 for one in regions)
    assert all(path.name in note for note in notes)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(), st.text(max_size=4),
              st.sampled_from(["Polygon", "MultiPolygon", "3+", "Feature", "0", "NaN"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["type", "geometry", "coordinates", "properties", "classification", "name", "features",
                             "names", "geometries"]), inner, max_size=5),
    ),
    max_leaves=20,
)  # fmt: skip


class TestGeoJson:
    @fuzz
    @given(geometry=JSON, properties=JSON)
    def test_arbitrary_geojson_features_are_read_or_refused(
        self, geometry: object, properties: object, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.geojson"
        ring = {"type": "Polygon", "coordinates": geometry} if not isinstance(geometry, dict) else geometry
        path.write_text(json.dumps({"type": "Feature", "geometry": ring, "properties": properties}))
        check_annotations(path)

    @fuzz
    @given(edits=EDITS)
    def test_edited_geojson_exports_are_read_or_refused(
        self, edits: list, real_data: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.geojson"
        path.write_bytes(apply_edits((real_data / "geojson/qupath05.geojson").read_bytes(), edits))
        check_annotations(path)

    @pytest.mark.parametrize("depth", [1000, 100_000])
    @pytest.mark.parametrize("one", ["[", '{"geometry":', '{"type":"FeatureCollection","features":['])
    def test_deeply_nested_geojson_is_refused(self, tmp_path: Path, one: str, depth: int) -> None:
        (tmp_path / "deep.geojson").write_text(one * depth)
        with pytest.raises(InputError, match=r"deep\.geojson"):
            read_annotations(tmp_path / "deep.geojson")
        close = {"[": "]", "{": "}"}
        shut = "".join(close[letter] for letter in reversed(one) if letter in close)
        (tmp_path / "deep.geojson").write_text(one * depth + "1" + shut * depth)
        with pytest.raises(InputError, match=r"deep\.geojson"):
            read_annotations(tmp_path / "deep.geojson")

    def test_nested_coordinates_and_collections_are_read(self, tmp_path: Path) -> None:
        for geometry in (
            '{"type":"Polygon","coordinates":' + "[" * 900 + "1" + "]" * 900 + "}",
            '{"type":"GeometryCollection","geometries":[' * 400 + "]}" * 400,
        ):
            text = '{"type":"Feature","properties":{"name":"3+"},"geometry":' + geometry + "}"
            (tmp_path / "deep.geojson").write_text(text)
            check_annotations(tmp_path / "deep.geojson")


CELLS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "0", "3+", "+", "her2", "=1+1", "\0", '"', "\n", ",", "a" * 200_000]),
)


def check_labels(path: Path) -> None:
    table = read_or_refuse(read_labels, path)
    if table is None:
        return
    assert table.column_names == list(COLUMNS)
    ids = table["slide_id"].to_pylist()
    assert None not in ids
    assert len(set(ids)) == len(ids)


class TestLabels:
    @fuzz
    @given(rows=st.lists(st.lists(CELLS, max_size=9), max_size=5), head=st.booleans())
    def test_arbitrary_label_cells_are_read_or_refused(
        self, rows: list, head: bool, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.csv"
        first = [",".join(COLUMNS)] if head else []
        text = "\n".join([*first, *(",".join(row) for row in rows)])
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        check_labels(path)

    @fuzz
    @given(edits=EDITS)
    def test_edited_clinical_tables_are_read_or_refused(
        self, edits: list, real_data: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.tsv"
        path.write_bytes(apply_edits((real_data / "labels/tcga_brca_her2_first100.tsv").read_bytes(), edits))
        check_labels(path)

    @pytest.mark.parametrize(
        "data",
        [
            "slide_id,her2\na,3+\nb\x81,0\n".encode("latin-1"),
            "slide_id,her2\na,3+\n".encode("utf-16")[:-1],
            b"slide_id,her2\na,3+\n" + "ä,0\n".encode("latin-1") + "ä,1+\n".encode(),
            b"slide_id,her2\na\0b,3+\n",
            b'slide_id,her2\n"a,3+\n',
            b"\0" * 1000,
            b"slide_id," * 10_000,
            b"slide_id\n" + b'"' + b"x" * 300_000 + b'"\n',
            b"",
        ],
    )
    def test_labels_in_broken_encodings_are_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "labels.csv").write_bytes(data)
        with pytest.raises(InputError, match=r"labels\.csv"):
            read_labels(tmp_path / "labels.csv")

    def test_spreadsheet_formula_stays_text(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text('slide_id,patient_id\n=1+1,"@SUM(A1)"\n')
        assert read_labels(tmp_path / "labels.csv").to_pylist()[0]["patient_id"] == "@SUM(A1)"


class TestSettings:
    @fuzz
    @given(edits=EDITS)
    def test_edited_night_settings_are_read_or_refused(
        self, edits: list, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.toml"
        path.write_bytes(apply_edits((Path(__file__).parents[2] / "jobs/night.toml").read_bytes(), edits))
        assert isinstance(read_or_refuse(lambda one: read_settings(one, NightlySettings), path), NightlySettings | None)

    @pytest.mark.parametrize("text", ["a=" + "[" * 100_000, "[" + "a." * 5000 + "a]", "a=\0", "a=1\na=2"])
    def test_settings_that_are_no_toml_are_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "night.toml").write_text(text)
        with pytest.raises(InputError, match=r"night\.toml"):
            read_settings(tmp_path / "night.toml", NightlySettings)


class TestOwnFiles:
    @fuzz
    @given(data=st.binary(max_size=400), cut=st.integers(0, 400))
    def test_row_cache_with_arbitrary_bytes_is_empty(
        self, data: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.memo"
        path.write_bytes(data[:cut])
        assert row_cache.load_cache(path, row_cache.cached_row_schema()).num_rows == 0

    @fuzz
    @given(edits=EDITS)
    def test_edited_run_log_is_read_up_to_the_damage(
        self, edits: list, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
        whole = b'{"at": "x", "event": "started"}\n{"at": "y", "event": "slide", "slide_id": "a"}\n' * 3
        path.write_bytes(apply_edits(whole, edits))
        assert all(isinstance(event, dict) and event["event"] for _, event in log_entries(path))
