"""Features files of STAMP and marugoto, version by version, and what must be refused."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.exchange.incoming import ImportRequest, ImportSummary, import_embeddings
from her2batch.exchange.stamp_h5 import nearest_rows, tile_um_and_scale
from her2batch.store.cohort import Cohort
from tests.exchange.stored_examples import make_stored_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return make_stored_cohort(tmp_path / "cohort", "S1", dim=8)


def corners_um(cohort: Cohort) -> np.ndarray:
    """Corners of the slide's tiles in µm, (n, 2)."""
    tiles, mpp = cohort.read("tiles", "S1"), cohort.rows()["S1"]["mpp"]
    return np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], axis=1) * mpp


def write_stamp(path: Path, coords: np.ndarray, dim: int = 6, **attributes: object) -> np.ndarray:
    """Write a features file in a random order of rows; returns the features in the order of `coords`."""
    rng = np.random.default_rng(0)
    features, order = rng.normal(size=(len(coords), dim)).astype(np.float16), rng.permutation(len(coords))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"], file["feats"] = coords[order], features[order]
        file.attrs.update(attributes)
    return features


def run_import(cohort: Cohort, path: Path, encoder: str | None = "stamped") -> ImportSummary:
    return import_embeddings(ImportRequest(cohort.root, (path,), encoder), lambda _: None)


def stored(cohort: Cohort, encoder: str = "stamped") -> np.ndarray:
    return np.stack(cohort.read(f"embeddings/{encoder}", "S1")["embedding"].to_numpy())


TILE_UM = 112.0

VERSIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, object]]] = {
    "2.1 and later": (np.float32, {"unit": "um", "tile_size_um": TILE_UM, "tile_size_px": 224, "feat_type": "tile"}),
    "2.0": (np.float32, {"unit": "um", "tile_size": TILE_UM}),
    "doubles": (np.float64, {"tile_size_um": np.float64(TILE_UM)}),
    "rounded": (lambda um: np.round(um).astype(np.int64), {"unit": "um", "tile_size_um": TILE_UM}),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_features_of_every_version_reach_their_tiles(cohort: Cohort, tmp_path: Path, version: str) -> None:
    convert, attributes = VERSIONS[version]
    features = write_stamp(tmp_path / "S1.h5", convert(corners_um(cohort)), **attributes)
    found = run_import(cohort, tmp_path / "S1.h5")
    assert (found.slides, found.passed, found.shifted, found.failures) == (["S1"], {}, {}, {})
    assert np.array_equal(stored(cohort), features)


def test_name_of_the_extractor_is_used(cohort: Cohort, tmp_path: Path) -> None:
    write_stamp(tmp_path / "S1.h5", corners_um(cohort), tile_size_um=TILE_UM, extractor="mahmood-conch-1a2b")
    assert run_import(cohort, tmp_path / "S1.h5", encoder=None).encoders == {"mahmood-conch-1a2b"}


@pytest.mark.parametrize("attributes", [{}, {"tile_size": 224}, {"extractor": "xiyuewang-ctranspath"}])
def test_historic_files_are_in_px_of_tiles_that_are_256_um_wide(attributes: dict[str, object]) -> None:
    coords = np.array([[0, 0], [224, 0], [448, 672]])
    assert tile_um_and_scale(Path("a.h5"), attributes, coords) == (256.0, 256 / 224)


def test_files_in_folders_like_those_of_the_slides_are_found(cohort: Cohort, tmp_path: Path) -> None:
    write_stamp(tmp_path / "out" / "site" / "S1.h5", corners_um(cohort), tile_size_um=TILE_UM)
    assert run_import(cohort, tmp_path / "out").slides == ["S1"]


def test_further_tiles_of_stamp_are_counted(cohort: Cohort, tmp_path: Path) -> None:
    coords = np.concatenate([corners_um(cohort), [[1e5, 1e5], [2e5, 0]]])
    write_stamp(tmp_path / "S1.h5", coords, tile_size_um=TILE_UM)
    assert run_import(cohort, tmp_path / "S1.h5").passed == {"S1": 2}


def test_a_drifting_grid_gives_the_nearest_tile_and_says_so(cohort: Cohort, tmp_path: Path) -> None:
    """STAMP rounds a group of tiles up to whole px: at 443.04 px a tile, tile 40 starts 38 px late."""
    coords = corners_um(cohort) * (444 / 443.04)
    features = write_stamp(tmp_path / "S1.h5", coords, tile_size_um=TILE_UM)
    found = run_import(cohort, tmp_path / "S1.h5")
    assert 0 < found.shifted["S1"] < len(coords)
    assert np.array_equal(stored(cohort), features)


REFUSED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, object], str]] = {
    "other tiles": (
        lambda um: um,
        {"tile_size_um": 256.0},
        r"256 µm wide, those of the slide 112 µm.*tile_size_um = 112",
    ),
    "no unit": (lambda um: um, {}, "does not state the unit"),
    "tiles left out": (lambda um: um[3:], {"tile_size_um": TILE_UM}, r"no row for 3 of .*canny_cutoff: 0"),
    "not finite": (lambda um: np.where(um == um.max(), np.nan, um), {"tile_size_um": TILE_UM}, "not a finite number"),
    "twice": (lambda um: np.concatenate([um, um[:1]]), {"tile_size_um": TILE_UM}, "same coordinates"),
    "of patients": (lambda um: um, {"tile_size_um": TILE_UM, "feat_type": "patient"}, "of a patient, not of tiles"),
    "text as size": (lambda um: um, {"tile_size_um": "wide"}, "does not state the unit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_file_that_does_not_fit_is_refused_with_the_remedy(cohort: Cohort, tmp_path: Path, case: str) -> None:
    change, attributes, message = REFUSED[case]
    write_stamp(tmp_path / "S1.h5", change(corners_um(cohort)), **attributes)
    with pytest.raises(InputError, match=message):
        raise InputError(run_import(cohort, tmp_path / "S1.h5").failures[str(tmp_path / "S1.h5")])
    assert "stamped" not in str(cohort.rows()["S1"]["files"])


def test_slide_without_tiles_needs_no_rows() -> None:
    rows, shifted = nearest_rows(Path("a.h5"), np.zeros((1, 2)), np.empty((0, 2), np.int32), 0, 0.25)
    assert (len(rows), shifted) == (0, 0)
