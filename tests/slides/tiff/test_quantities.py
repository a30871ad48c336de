"""Numbers and units as slide files write them."""

import pytest

from her2batch.slides.tiff.quantities import length_in_um, parse_number, um_per_unit


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.25", 0.25), ("0,2508", 0.2508), (" 2.5e-1 ", 0.25), ("20x", 20), ("40X", 40), ('"0.5"', 0.5), ("40", 40),
        ("1,000.5", None), ("1,2,3", None), ("nan", None), ("inf", None), ("", None), (None, None), ("9" * 50, None),
    ],
)  # fmt: skip
def test_numbers_may_have_a_decimal_comma(text: str | None, number: float | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "unit",
    ["µm", "μm", "um", "micron", "Microns", "micrometer", "micrometre", r"\u00B5m", "&#181;m", "Âµm", "Î¼m", "?m", "µ"],
)
def test_micrometres_are_written_in_many_ways(unit: str) -> None:
    assert um_per_unit(unit) == 1.0


def test_other_units_of_length() -> None:
    found = {
        unit: length_in_um("1", unit) for unit in ("nm", "mm", "cm", "m", "inch", "inches", "in", "Å", "pixel", "")
    }
    assert found == {
        "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25_400, "inches": 25_400, "in": 25_400, "Å": 1e-4,
        "pixel": None, "": None,
    }  # fmt: skip
