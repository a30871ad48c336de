"""Tests of tile features: equal to a reference implementation, correct on synthetic rings, ordered on real cores."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import her2batch
from her2batch.models.membrane_rule import RuleResult, apply_rule
from her2batch.vision.membrane import (
    FEATURES,
    MEMBRANE_COLUMNS,
    TileBatch,
    brown_nuclei,
    feature_index,
    feature_page,
    magnitude,
    measure_tiles,
    membrane_thresholds,
    ridge_height,
)
from her2batch.vision.stain import DAB, HAEMATOXYLIN, Stains, optical_density, separate_stains
from tests.stand_ins import are_stand_ins
from tests.vision.real import CORES, load_core, tissue_tile_batch
from tests.vision.reference import reference_features

WHITE = (240.0, 240.0, 240.0)
STAINS = Stains(WHITE, nuclei=0.15)


def rings(density: float, share: float = 1.0, width_um: float = 1.0, veil: float = 0.0, side: int = 224) -> NDArray:
    """Return a tile of square cells of 11 µm with nucleus and DAB ring; `share` of the ring's length is stained.

    The tile has `side` × `side` px of 0.5 µm.
    """
    y, x = np.mgrid[: side * 4, : side * 4] * 0.5 / 4  # µm, four samples a px and axis
    u, v = x % 11 - 5.5, y % 11 - 5.5
    on_ring = np.maximum(abs(u), abs(v)) > 5.5 - width_um / 2
    stained = np.minimum(abs(u), abs(v)) < 5.5 * share  # the middle of each side
    h = 0.3 * (np.hypot(u, v) < 3)
    d = density * (on_ring & stained) + veil
    od = h[..., None] * np.asarray(HAEMATOXYLIN) + d[..., None] * np.asarray(DAB)
    light = (240 * 10**-od).reshape(side, 4, side, 4, 3).mean(axis=(1, 3))
    return np.round(light).astype(np.uint8)


def disc_grid(radius_um: float, pitch_um: float = 14.0) -> NDArray:
    """Return 1 in discs on a square grid, 0 elsewhere: (224, 224) at 0.5 µm/px."""
    at = (np.arange(448) + 0.5) * 0.25
    offset = (at + pitch_um / 2) % pitch_um - pitch_um / 2
    fine = (np.hypot(offset[:, None], offset) < radius_um).astype(float)
    return fine.reshape(224, 2, 224, 2).mean(axis=(1, 3))


def measure(tile: NDArray, name: str, stains: Stains = STAINS) -> float:
    return float(measure_tiles(tile[None], 0.5, stains)[0, feature_index(name)])


class TestReference:
    @pytest.mark.parametrize("name", ["0", "2+ b", "3+"])
    def test_features_equal_the_reference_on_real_tissue(self, real_data: Path, name: str) -> None:
        batch = tissue_tile_batch(load_core(real_data, name))
        batch = TileBatch(batch.pixels[10::30], 0.5, batch.stains)
        reference = [reference_features(tile, 0.5, batch.stains) for tile in batch.pixels]
        gaps = np.abs(batch.features - [[one[feature.name] for feature in FEATURES] for one in reference])
        # where single precision puts a px on the other side of a threshold, a mean over its mask moves by some 2e-5
        assert (gaps > 1e-5).sum() <= 1
        assert gaps.max() < 5e-5

    @pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
    def test_features_equal_the_reference_under_pen_at_any_resolution(self, mpp: float) -> None:
        tile = rings(0.5)
        tile[100:150, 60:90] = (25, 55, 170)
        reference = reference_features(tile, mpp, STAINS)
        assert measure_tiles(tile[None], mpp, STAINS)[0] == pytest.approx(
            [reference[one.name] for one in FEATURES], rel=0, abs=1e-5
        )


class TestRings:
    def test_intensities_follow_the_wording_of_the_guideline(self) -> None:
        assert measure(rings(0.0), "faint") == 0
        assert measure(rings(0.25, share=0.4), "faint") > 0.9
        assert measure(rings(0.25, share=0.4), "moderate_complete") == 0
        assert measure(rings(0.5), "moderate_complete") > 0.9
        assert measure(rings(0.5), "intense_complete") < 0.05
        assert measure(rings(1.2), "intense_complete") > 0.9

    def test_dark_brown_membranes_are_not_cut_out_as_pen(self) -> None:
        for density in (1.2, 2.0, 3.0):
            assert measure(rings(density), "ink") == 0
            assert measure(rings(density, veil=0.4), "intense_complete") > 0.9

    @pytest.mark.parametrize("density", [0.2, 0.5, 1.0, 2.0])
    def test_brown_nuclei_are_nuclei(self, density: float) -> None:
        """Nuclei of ER, PR and Ki-67 have too little haematoxylin under their DAB to be found by it."""
        od = disc_grid(3.5) * density
        tile = np.round(240 * 10 ** -(od[..., None] * np.asarray(DAB))).astype(np.uint8)
        stains = Stains(STAINS.white, nuclei=0.2)
        area = np.pi * 3.5**2 / 14**2
        assert measure(tile, "nuclei", stains) == pytest.approx(area, rel=0.2)
        assert measure(tile, "nuclear_dab", stains) > 0.8 * density
        assert measure(tile, "cytoplasm_dab", stains) < 0.4 * density

    @pytest.mark.parametrize("density", [0.3, 0.6, 1.2, 2.0])
    def test_membranes_and_brown_cytoplasm_are_no_nuclei(self, density: float) -> None:
        d = separate_stains(optical_density(rings(density), WHITE), STAINS).d
        assert not brown_nuclei(cv2.GaussianBlur(d, (0, 0), 1.0), 0.5).any()
        sheet = np.full((224, 224, 3), 240, np.uint8)
        sheet[30:190, 40:200] = np.round(240 * 10 ** -(density * np.asarray(DAB)))
        assert measure(sheet, "nuclei") < 0.02  # a rim of one px

    def test_a_dark_broken_ring_is_incomplete(self) -> None:
        assert measure(rings(1.2, share=0.35), "intense") > 0.7
        assert measure(rings(1.2, share=0.35), "intense_complete") < 0.05

    @given(st.floats(0.1, 1.2), st.floats(0.2, 1.0), st.floats(0.6, 1.6))
    @settings(max_examples=25, deadline=None)
    def test_shares_are_nested(self, density, share, width) -> None:
        row = measure_tiles(rings(density, share, width, side=112)[None], 0.5, STAINS)[0]
        value = {name: row[feature_index(name)] for name in MEMBRANE_COLUMNS}
        assert all(0 <= one <= 1 for one in value.values())
        for suffix in ("", "_complete"):
            assert value[f"faint{suffix}"] >= value[f"moderate{suffix}"] >= value[f"intense{suffix}"]
        for name in ("faint", "moderate", "intense"):
            assert value[name] >= value[f"{name}_complete"]

    @given(st.floats(0.0, 2.5), st.floats(0.02, 0.3))
    @settings(max_examples=25, deadline=None)
    def test_more_dab_never_lowers_a_share(self, density, more) -> None:
        less, darker = (measure_tiles(rings(one, side=112)[None], 0.5, STAINS)[0] for one in (density, density + more))
        for name in MEMBRANE_COLUMNS[1:]:
            assert darker[feature_index(name)] >= less[feature_index(name)] - 0.01

    def test_a_uniform_brown_veil_is_not_membrane(self) -> None:
        veiled = rings(0.0, veil=0.15)
        assert measure(veiled, "faint") == 0
        assert measure(veiled, "dab") == pytest.approx(0.15, abs=0.02)

    def test_a_known_brown_veil_does_not_darken_membranes(self) -> None:
        reference = measure(rings(0.5), "intense")
        known = Stains(WHITE, nuclei=0.15, background=0.15)
        assert measure(rings(0.5, veil=0.15), "intense", known) == pytest.approx(reference, abs=0.02)

    def test_darker_sections_need_darker_membranes(self) -> None:
        pale, usual, dark = (membrane_thresholds(Stains(nuclei=one)) for one in (0.05, 0.15, 0.6))
        assert pale < usual < dark
        assert membrane_thresholds(Stains(nuclei=0.0)) == usual

    def test_background_has_no_features(self) -> None:
        row = measure_tiles(np.full((1, 224, 224, 3), 240, np.uint8), 0.5, STAINS)[0]
        by_name = dict(zip((one.name for one in FEATURES), row.tolist(), strict=True))
        assert by_name.pop("white") == 1
        assert set(by_name.values()) == {0.0}

    def test_pen_is_excluded_from_the_cellular_area(self) -> None:
        tile = rings(0.0)
        tile[60:160, 60:160] = (20, 130, 60)
        tile[62:158:6, 60:160] = (60, 160, 100)
        assert measure(tile, "ink") == pytest.approx((108 / 224) ** 2, rel=0.02)
        assert measure(tile, "faint") < 0.01

    def test_black_padding_is_no_ink(self) -> None:
        tile = rings(0.3)
        tile[:, :90] = 0
        assert measure(tile, "ink") == 0
        tile[:, 90:150] = 30  # a black stroke beside it
        assert measure(tile, "ink") > 0.2


def test_ridge_height_is_the_height_of_the_line() -> None:
    x = np.arange(101) - 50
    line = np.tile(0.4 * np.exp(-(x**2) / 2), (101, 1)).astype(np.float32)  # σ = 1 px = 0.5 µm
    smooth = cv2.GaussianBlur(line, (0, 0), 1.0)
    assert ridge_height(smooth, 0.5)[50, 50] == pytest.approx(0.4, rel=0.2)
    assert ridge_height(np.full((20, 20), 0.3, np.float32), 0.5).max() < 1e-5


class TestBatch:
    def test_tiles_are_measured_independently(self) -> None:
        tiles = np.stack([rings(0.2), rings(0.9), rings(0.0)])
        batch_rows = measure_tiles(tiles, 0.5, STAINS)
        for tile, row in zip(tiles, batch_rows, strict=True):
            assert np.array_equal(measure_tiles(tile[None], 0.5, STAINS)[0], row)

    def test_no_tiles_give_no_rows(self) -> None:
        assert measure_tiles(np.empty((0, 64, 64, 3), np.uint8), 0.5, STAINS).shape == (0, len(FEATURES))

    def test_features_are_computed_once(self) -> None:
        batch = TileBatch(rings(0.3)[None], 0.5, STAINS)
        assert batch.features is batch.features
        assert batch.features.dtype == np.float32

    def test_another_process_gives_the_same_bytes(self) -> None:
        code = (
            "import sys, numpy as np; from her2batch.vision.membrane import *;"
            "t = np.random.default_rng(0).integers(90, 255, (2, 96, 96, 3), dtype=np.uint8);"
            "sys.stdout.buffer.write(measure_tiles(t, 0.5, Stains(nuclei=0.2)).tobytes())"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        tiles = np.random.default_rng(0).integers(90, 255, (2, 96, 96, 3), dtype=np.uint8)
        assert other == measure_tiles(tiles, 0.5, Stains(nuclei=0.2)).tobytes()
        assert len(other) == 2 * len(FEATURES) * 4


class TestVector:
    def test_features_have_unique_names_and_descriptions(self) -> None:
        assert len({one.name for one in FEATURES}) == len(FEATURES)
        assert all(one.unit in ("share", "OD") and one.description for one in FEATURES)
        assert [feature_index(name) for name in MEMBRANE_COLUMNS] == list(range(7))

    def test_the_generated_page_is_up_to_date(self) -> None:
        path = Path(her2batch.__file__).parents[1] / "docs" / "stain-encoder.md"
        assert path.read_text(encoding="utf-8") == feature_page()


@pytest.fixture(scope="module")
def results(real_data: Path) -> dict[str, RuleResult]:
    """Return the rule's result of the five real cores, read from their JPEG files. No threshold was fitted to them."""
    found = {}
    for name in CORES:
        features = tissue_tile_batch(load_core(real_data, name)).features
        found[name] = apply_rule({one: features[:, feature_index(one)] for one in MEMBRANE_COLUMNS})
    return found


def test_clear_staining_is_scored_on_real_cores(results: dict[str, RuleResult]) -> None:
    assert results["3+"].category == "3+"
    assert results["2+ b"].category == "2+"
    score = {name: one.score for name, one in results.items()}
    assert max(score["0"], score["1+"], score["2+ a"]) < score["2+ b"] < score["3+"]
    assert score["0"] < score["1+"]


def test_pale_staining_is_ordered_on_real_cores(
    results: dict[str, RuleResult], real_data: Path, request: pytest.FixtureRequest
) -> None:
    """The stand-ins are ordered. Of the real cores one is not, which is a known limit of the rule."""
    if not are_stand_ins(real_data):
        pale = "2+ a is as pale as 1+: 0.85 against 0.94 from the JPEG files; JPEG or the level read moves each by 0.2"
        request.applymarker(pytest.mark.xfail(strict=True, reason=pale))
    score = {name: one.score for name, one in results.items()}
    assert score["0"] < score["1+"] <= score["2+ a"]


def placed(values: NDArray, offset: int) -> NDArray:
    """A copy of float32 values that begins `offset` bytes after a multiple of 64 in memory."""
    room = np.empty(values.nbytes + 128, np.uint8)
    first = -room.ctypes.data % 64 + offset
    copy = room[first : first + values.nbytes].view(np.float32).reshape(values.shape)
    copy[...] = values
    return copy


def test_the_magnitude_does_not_depend_on_where_arrays_lie_in_memory() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 90, 91), dtype=np.float32)
    found = {magnitude(placed(x, k), placed(y, 4)).tobytes() for k in range(0, 64, 4)}
    assert found == {np.sqrt(x * x + y * y).tobytes()}
