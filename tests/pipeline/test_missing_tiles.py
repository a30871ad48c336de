"""Slides that lack parts of their image: background outside tissue, excluded and counted inside it."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.pipeline.slide_state import Overview, StageContext, TissueTiles
from her2batch.pipeline.stages import STAGES
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.slides.readers import READERS
from her2batch.store.cohort import Cohort
from tests.conftest import tissue_image, write_slide
from tests.slides.test_tiff_slide import drop_tiles

ACROSS = 8
"""Tiles in a row of the test slide: 2048 px, of which the tissue fills the middle."""

GRID = np.arange(ACROSS * ACROSS).reshape(ACROSS, ACROSS)
INSIDE = [GRID[3, 3], GRID[4, 5]]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return tissue_image(2048, 2048, seed=6, brown=0.5)


@pytest.fixture(scope="module")
def whole(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.tiff"
    write_slide(path, image, levels=3)
    return path


def without(whole: Path, path: Path, tiles: Iterable[int]) -> Path:
    path.write_bytes(whole.read_bytes())
    return drop_tiles(path, tiles)


def find_tiles(path: Path, reader: str = "tiff") -> tuple[Overview, TissueTiles]:
    context = StageContext(Plan())
    overview, tissue = (next(stage for stage in STAGES if stage.name == name) for name in ("look", "tissue"))
    with READERS[reader](path) as slide:
        found = overview.make(context)(slide=slide)
        return found, tissue.make(context)(slide=slide, slide_id="S", overview=found, regions=None, control_regions=())


@pytest.fixture(scope="module")
def intact(whole: Path) -> tuple[Overview, TissueTiles]:
    return find_tiles(whole)


def corners(tiles: TissueTiles) -> set[tuple[int, ...]]:
    return set(map(tuple, tiles.grids["tiles"].tiles[:, :2].tolist()))


@pytest.mark.parametrize("tiles", [GRID[0], [*GRID[:, 0], *GRID[7]], [GRID[0, 0], GRID[7, 7]]])
def test_missing_tiles_on_glass_are_background(whole: Path, intact, tmp_path: Path, tiles: list[int]) -> None:
    overview, found = find_tiles(without(whole, tmp_path / "a.tiff", tiles))
    assert overview.missing is not None
    assert found.missing == 0
    assert corners(found) == corners(intact[1])
    changed = (found.tissue.mask ^ intact[1].tissue.mask) & ~overview.missing
    assert changed.sum() < 0.01 * found.tissue.mask.sum()
    assert overview.background(found.tissue).sum() < intact[0].background(intact[1].tissue).sum()


def test_tiles_with_missing_tissue_are_left_out_and_counted(whole: Path, intact, tmp_path: Path) -> None:
    overview, found = find_tiles(without(whole, tmp_path / "a.tiff", INSIDE))
    lost = corners(intact[1]) - corners(found)
    assert corners(found) < corners(intact[1])
    assert found.missing == len(lost) > 0
    for tile in INSIDE:
        y, x = (int(k) * 256 for k in divmod(tile, ACROSS))
        assert any(left < x + 256 and left + 448 > x and top < y + 256 and top + 448 > y for left, top in lost)
    assert overview.missing is not None
    assert not (found.tissue.mask & overview.missing).any()


@pytest.mark.parametrize(
    "tiles", [GRID[4:], GRID[:, ::2], GRID[np.add.outer(range(8), range(8)) % 2 == 0], GRID[2:6, 2:5]]
)
def test_slide_that_lacks_more_than_a_tenth_of_its_tissue_is_refused(whole: Path, tmp_path: Path, tiles) -> None:
    with pytest.raises(SlideError, match=r"% of its tissue has no image") as refused:
        find_tiles(without(whole, tmp_path / "a.tiff", np.ravel(tiles)))
    assert refused.value.code == "blank-tiles"


def ring(mask: np.ndarray, tiles: int) -> np.ndarray:
    """Return which tiles hold a part of the edge of the tissue: (tiles, tiles) bool."""
    share = cv2.resize(mask.astype(np.float32), (tiles, tiles), interpolation=cv2.INTER_AREA)
    return (share > 0.02) & (share < 0.98)


def test_tissue_that_a_ring_of_missing_tiles_cuts_off_is_counted(image: np.ndarray, tmp_path: Path) -> None:
    """Most px around the ring are glass, but the tissue goes on into it."""
    write_slide(tmp_path / "whole.tiff", image, levels=2, tile=128)
    _, intact = find_tiles(tmp_path / "whole.tiff")
    edge, numbers = ring(intact.tissue.mask, 16), np.arange(256).reshape(16, 16)
    with pytest.raises(SlideError, match=r"% of its tissue has no image"):
        find_tiles(without(tmp_path / "whole.tiff", tmp_path / "a.tiff", numbers[edge]))
    quarter = edge & (np.add.outer(np.arange(16), np.arange(16)) < 16)
    _, found = find_tiles(without(tmp_path / "whole.tiff", tmp_path / "a.tiff", numbers[quarter]))
    assert found.missing > 0
    assert corners(found) < corners(intact)
    _, found = find_tiles(without(tmp_path / "whole.tiff", tmp_path / "a.tiff", numbers[~edge & (numbers < 32)]))
    assert (found.missing, corners(found)) == (0, corners(intact))


def test_slide_without_any_tile_is_no_slide_without_tissue(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="none of its tiles has an image") as refused:
        find_tiles(without(whole, tmp_path / "a.tiff", GRID.ravel()))
    assert refused.value.code == "blank-tiles"


@pytest.mark.parametrize("colour", [0, 255])
def test_tiles_filled_with_one_colour_count_as_missing(image: np.ndarray, intact, tmp_path: Path, colour: int) -> None:
    for tiles, lost in (([GRID[0, 0], GRID[0, 3]], False), (INSIDE, True)):
        filled = image.copy()
        for y, x in (divmod(int(tile), ACROSS) for tile in tiles):
            filled[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256] = colour
        write_slide(tmp_path / "a.tiff", filled, levels=2)
        _, found = find_tiles(tmp_path / "a.tiff")
        assert (found.missing > 0) == lost
        assert corners(found) < corners(intact[1]) if lost else corners(found) == corners(intact[1])


def test_lower_levels_without_tiles_change_nothing(whole: Path, intact, tmp_path: Path) -> None:
    path = drop_tiles(without(whole, tmp_path / "a.tiff", []), range(4), page=2)
    overview, found = find_tiles(drop_tiles(path, [5, 6], page=1))
    assert overview.missing is None
    assert corners(found) == corners(intact[1])


def test_openslide_reports_the_same_missing_tiles(whole: Path, tmp_path: Path) -> None:
    path = without(whole, tmp_path / "a.tiff", INSIDE)
    for page, tiles in ((1, [9]), (2, [])):  # OpenSlide shows the level that it reads
        drop_tiles(path, tiles, page)
    _, ours = find_tiles(path)
    _, theirs = find_tiles(path, "openslide")
    assert theirs.missing >= 0
    assert ours.missing > 0


def test_score_of_the_rest_is_that_of_the_whole_slide(whole: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    without(whole, scans / "whole.tiff", [])
    without(whole, scans / "inside.tiff", INSIDE)
    without(whole, scans / "glass.tiff", GRID[:, 7])
    without(whole, scans / "half.tiff", GRID[:, ::2].ravel())
    assert ingest(IngestRequest(scans, tmp_path / "c"), Plan(), Resources(workers=0)).exit_code == 3
    cohort = Cohort(tmp_path / "c")
    rows = {name: cohort.read("slides", name).to_pylist()[0] for name in ("whole", "inside", "glass", "half")}
    assert [rows[name]["status"] for name in rows] == ["done", "done", "done", "failed"]
    assert rows["half"]["error_code"] == "blank-tiles"
    assert ["missing-tiles" in rows[name]["flags"] for name in ("whole", "inside", "glass")] == [False, True, False]
    assert rows["inside"]["blank_tiles"] == rows["whole"]["n_tiles"] - rows["inside"]["n_tiles"] > 0
    assert rows["glass"]["blank_tiles"] == 0
    scores = {}
    for name in ("whole", "inside", "glass"):
        predictions = cohort.read("predictions/membrane", name).to_pylist()
        scores[name] = next(row["score"] for row in predictions if row["task"] == "her2-4way")
    assert scores["inside"] == pytest.approx(scores["whole"], abs=0.1)
    assert scores["glass"] == pytest.approx(scores["whole"], abs=0.01)
    assert rows["glass"]["background"] == pytest.approx(rows["whole"]["background"], abs=1)
