"""Images on disk: several files as one array, and the input of thumbnail networks from the cohort alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.store.cohort import Cohort
from her2batch.training.image_data import gather_thumbnails, load_images, open_stack, open_thumbnails, save_images
from tests.conftest import Synthetic


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any), data=st.data())
def test_a_stack_equals_the_joined_files(sizes: list[int], data: st.DataObject, tmp_path: Path) -> None:
    parts = [np.random.default_rng(k).integers(0, 256, (n, 3, 3, 3), np.uint8) for k, n in enumerate(sizes)]
    paths = [tmp_path / f"{k}.npy" for k in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        save_images(part, path)
    whole, found = np.concatenate(parts), open_stack(paths)
    assert (len(found), found.shape) == (len(whole), whole.shape)
    rows = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)), np.int64)
    assert np.array_equal(found[rows], whole[rows])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save_images(np.zeros((2, 3, 3, 3), np.uint8), tmp_path / "a.npy")
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"a\.npy"):
        load_images(tmp_path / "a.npy")


def test_thumbnails_are_written_once_and_show_tissue_on_the_background(synthetic: Synthetic, tmp_path: Path) -> None:
    cohort = Cohort(synthetic.cohort)
    rows = cohort.rows()
    ids = sorted(rows)[:3]
    path = tmp_path / "thumbnail-224.npy"
    gather_thumbnails(cohort, rows, ids, 224, path)
    found = open_thumbnails(path)
    assert found.slide_ids == tuple(ids)
    assert found.pixels.shape == (3, 224, 224, 3)
    for picture, fill in zip(found.pixels, found.fills, strict=True):
        assert fill.min() > 200  # glass
        assert (np.abs(picture.astype(int) - fill).max(axis=2) > 20).mean() > 0.2  # tissue
    before = path.stat().st_mtime_ns
    gather_thumbnails(cohort, rows, ids, 224, path)
    assert path.stat().st_mtime_ns == before


def test_a_missing_thumbnail_is_named(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort / "tables", tmp_path / "c" / "tables")
    cohort = Cohort(tmp_path / "c")
    slide_id = sorted(cohort.rows())[0]
    with pytest.raises(InputError, match=f"{slide_id} has no thumbnail"):
        gather_thumbnails(cohort, cohort.rows(), [slide_id], 224, tmp_path / "a.npy")
    with pytest.raises(InputError, match="writes it again"):
        open_thumbnails(tmp_path / "a.npy")
