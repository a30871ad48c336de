"""The choice of a resolution between statements that agree, disagree or are impossible."""

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
        ("COMPPANY = 5", None, None),
        ("", None, None),
    ],
)
def test_descriptions_in_the_manner_of_several_makers(text: str, mpp: object, objective: float | None) -> None:
    found = [(item.x, item.y) for item in description_statements(text)]
    assert found == ([] if mpp is None else [mpp if isinstance(mpp, tuple) else (mpp, mpp)])
    assert description_objective(text) == objective


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
