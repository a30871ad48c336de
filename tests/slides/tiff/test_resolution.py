"""The choice of a resolution between statements that agree, disagree or are impossible."""

from pathlib import Path

import pytest
import tifffile

from her2batch.slides.slide import DISAGREE
from her2batch.slides.tiff.resolution import (
    Statement,
    choose_resolution,
    description_objective,
    description_statements,
    iscan_statements,
)
from her2batch.slides.tiff_slide import TiledTiffSlide
from tests.slides.tiff.pyramids import picture, write_pages


def said(*values: float | tuple[float | None, float | None]) -> list[Statement]:
    """Return statements, the most specific first."""
    pairs = [value if isinstance(value, tuple) else (value, value) for value in values]
    return [Statement(f"source {k} states", x, y) for k, (x, y) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("statements", "objective", "mpp", "flagged"),
    [
        (said(0.25), None, 0.25, False),
        (said(0.25, 0.26), 40, 0.25, False),
        (said(352.8, 0.25), None, 0.25, False),  # 72 dpi is no resolution, and no doubt either
        (said(0.25, 0.5), None, 0.25, True),  # the more specific one
        (said(0.5, 0.25), 40, 0.25, True),  # the one that the objective supports
        (said(1.0, 0.25, 0.25), None, 0.25, True),  # the one that another statement supports
        (said(1.0), 40, 1.0, True),
        (said(0.5), 40, 0.5, True),
        (said(0.22), 20, 0.22, False),  # a camera with small pixels
        (said((0.25, None)), None, 0.25, False),
        (said((0.25, 0.5), 0.25), None, 0.25, True),
        (said(), 40, None, False),
    ],
)
def test_the_best_supported_statement_counts(
    statements: list[Statement], objective: float | None, mpp: float | None, flagged: bool
) -> None:
    found = choose_resolution(statements, objective)
    assert (found.x, found.notes) == (mpp, (DISAGREE,) if flagged else ())
    assert found.objective == objective


def test_unequal_axes_are_named_and_not_replaced_by_the_objective() -> None:
    found = choose_resolution(said((0.25, 0.5)), 40)
    assert found.objective is None
    assert found.problem == "source 0 states 0.25 µm/px along x and 0.5 µm/px along y, which differ"


def test_implausible_resolution_is_named() -> None:
    assert "352.8 µm/px, which is implausible" in str(choose_resolution(said(352.8), None).problem)


@pytest.mark.parametrize(
    ("text", "mpp", "objective"),
    [
        ("Aperio Image Library\r\n9x9|AppMag = 40|MPP = 0,2508|x = 1", 0.2508, 40),
        ("OtherScanner 2\r\n[256x256] JPEG|AppMag = 20|MPP = 0.5", 0.5, 20),
        ("mpp-x: 0.25; mpp-y: 0.5", (0.25, 0.5), None),
        ('{"mpp": 0.25, "objective_power": 40}', 0.25, 40),
        ("<name>openslide.mpp-x</name><value type='VipsRefString'>0.499</value>", (0.499, None), None),
        ("<PixelSizeMicrons>0.5</PixelSizeMicrons><Objective>20x</Objective>", 0.5, 20),
        ("<Objective>an objective</Objective>", None, None),
        ("MicronsPerPixel=0.25;Stain=HER2", 0.25, None),
        ("um per pixel: 0,25", 0.25, None),
        ('{"pixel_size_um": 0.25}', 0.25, None),
        ("COMPPANY = 5", None, None),
        ("", None, None),
    ],
)
def test_descriptions_in_the_manner_of_several_makers(text: str, mpp: object, objective: float | None) -> None:
    found = [(item.x, item.y) for item in description_statements(text)]
    assert found == ([] if mpp is None else [mpp if isinstance(mpp, tuple) else (mpp, mpp)])
    assert description_objective(text) == objective


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("Aperio|Macro MPP = 8.0|AppMag = 40|MPP = 0.25", [(0.25, 0.25)]),
        ("Label: MPP = 10.5; Slide: MPP = 0.25; AppMag = 40", [(0.25, 0.25)]),
        ('{"macro": {"mpp": 12.0}, "scan": {"mpp": 0.25}}', [(0.25, 0.25)]),
        ('{"scan": {"mpp": 0.25}, "thumbnail": {"width": 1024, "mpp": 12.0}}', [(0.25, 0.25)]),
        ("level 2 mpp=1.0; level 1 mpp=0.5; level 0 mpp=0.25", [(0.25, 0.25)]),
        ("level[1].mpp-x=0.5; level[1].mpp-y=0.5; mpp-x=0.25; mpp-y=0.25", [(0.25, 0.25)]),
        ("MPP = 0.25|Camera|MPP = 0.5|MPP = 0.25", [(0.25, 0.25), (0.5, 0.5)]),
        ("mpp-y=0.5; mpp-x=0.25", [(0.25, 0.5)]),
        ("aperio.mpp=0.25 openslide.mpp-x=0.251 openslide.mpp-y=0.252", [(0.25, 0.25)]),
        ("macro mpp=8", []),
        ("Title = relabelled label|MPP = 0.25", [(0.25, 0.25)]),
    ],
)
def test_resolutions_of_other_images_in_a_description_do_not_count(
    text: str, stated: list[tuple[float, float]]
) -> None:
    assert [(item.x, item.y) for item in description_statements(text)] == stated


def test_first_of_two_resolutions_in_a_description_counts_unless_the_objective_supports_the_other(
    tmp_path: Path,
) -> None:
    for text in ("MPP = 0.25|MPP = 0.5", "MPP = 2.0|AppMag = 40|MPP = 0.25"):
        write_pages(tmp_path / "a.tif", [(picture(256, 256), {"description": text})])
        with TiledTiffSlide(tmp_path / "a.tif") as slide:
            assert (slide.info.mpp, slide.info.notes) == (0.25, (DISAGREE,)), text


def test_xmp_of_a_ventana_scanner() -> None:
    xmp = '<Metadata><iScan Magnification="40" ScanRes="0.25" UnitNumber="1"/></Metadata>'
    assert iscan_statements(xmp)[0].mpp == 0.25
    assert description_objective("", xmp) == 40


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("unit", "per_unit"),
    [("um", 4.0), ("micron", 4.0), (r"\u00B5m", 4.0), ("inch", 101_600.0), ("cm", 40_000.0), ("nm", 0.004)],
)  # fmt: skip
def test_imagej_states_px_per_unit(tmp_path, unit: str, per_unit: float, byteorder: str) -> None:
    from her2batch.slides.tiff_tables import parse_tiff

    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, picture(300, 200), imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit},
        byteorder=byteorder,
    )  # fmt: skip
    assert parse_tiff(path).mpp == (pytest.approx(0.25, rel=1e-3), pytest.approx(0.25, rel=1e-3))
    assert parse_tiff(path).notes == ()


def test_imagej_pixels_are_no_length(tmp_path) -> None:
    from her2batch.slides.tiff_tables import parse_tiff

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(300, 200), imagej=True, resolution=(4, 4), metadata={"unit": "pixel"})
    assert parse_tiff(path).mpp == (None, None)


def test_tags_in_millimetres_and_micrometres(tmp_path) -> None:
    from her2batch.slides.tiff_tables import parse_tiff

    for unit, per_unit in (("CENTIMETER", 40_000), ("INCH", 101_600), ("MILLIMETER", 4_000), ("MICROMETER", 4)):
        more = {"resolution": (per_unit, per_unit), "resolutionunit": unit}
        path = write_pages(tmp_path / f"{unit}.tif", [(picture(300, 200), more)])
        assert parse_tiff(path).mpp[0] == pytest.approx(0.25)
