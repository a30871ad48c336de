"""The Python API: what docs/python.md shows, lazily imported, consistent beside a run, equal to the command line."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import her2batch as h2
from her2batch.api.cohort_reader import CohortReader
from her2batch.errors import InputError, StoreError
from her2batch.store.cohort import Cohort
from her2batch.synthetic.cohort import make_cohort
from tests.conftest import Synthetic

TUTORIAL = Path(__file__).parents[2] / "docs" / "python.md"


def test_import_is_light_and_lazy() -> None:
    heavy = "('ray', 'torch', 'cucim', 'pandas', 'pyarrow', 'dask', 'zarr', 'numpy')"
    code = f"import her2batch, sys; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_every_public_name_is_there_and_documented() -> None:
    for name in h2.__all__:
        assert inspect.getdoc(getattr(h2, name)), name
    assert set(h2.__all__) <= set(dir(h2))
    with pytest.raises(AttributeError, match="no_such_name"):
        h2.no_such_name  # noqa: B018


@pytest.mark.slow
def test_the_tutorial_runs_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_cohort(Path("scans"), 20, 3, (1700, 1400))
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testfile(str(TUTORIAL), module_relative=False, optionflags=options)
    assert result.attempted > 40
    assert result.failed == 0


@pytest.fixture(scope="module")
def cohort(synthetic: Synthetic) -> CohortReader:
    return h2.open_cohort(synthetic.cohort)


def test_tables_hold_the_committed_rows_of_all_slides(cohort: CohortReader, synthetic: Synthetic) -> None:
    store = Cohort(synthetic.cohort)
    assert list(cohort) == list(store.rows())
    expected = pa.concat_tables([store.read("tiles", slide_id) for slide_id in cohort])
    assert cohort.table("tiles").equals(expected)
    lazy = cohort.dask("tiles").compute().reset_index(drop=True)
    pd.testing.assert_frame_equal(lazy, expected.to_pandas(), check_dtype=False)  # dask has a string type of its own
    assert lazy.dtypes.drop("slide_id").equals(expected.to_pandas().dtypes.drop("slide_id"))
    assert cohort.slides.slide_id.tolist() == list(store.rows())


def test_columns_are_the_only_ones_read(cohort: CohortReader) -> None:
    assert cohort.table("tiles", columns=["dab"]).column_names == ["dab"]
    assert cohort.table("slides", columns=["mpp"]).column_names == ["mpp"]
    assert list(cohort.dask("tiles", columns=["dab"]).columns) == ["dab"]


def test_files_that_no_row_names_are_not_seen(synthetic: Synthetic, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "cohort"
    shutil.copytree(synthetic.cohort, copy)
    slide_id = next(iter(Cohort(copy).rows()))
    shutil.copy(Cohort(copy).table("tiles", slide_id), Cohort(copy).table("tiles", "half-written"))
    assert "half-written" not in set(h2.open_cohort(copy).table("tiles")["slide_id"].to_pylist())


def test_unknown_names_are_refused_with_the_known_ones(cohort: CohortReader) -> None:
    with pytest.raises(InputError, match=r"known: .*tiles"):
        cohort.table("nuclei")
    with pytest.raises(KeyError):
        cohort["no-such-slide"]
    with pytest.raises(StoreError, match="there is no cohort here"):
        h2.open_cohort("/nowhere")


def test_a_slide_has_equal_pixels_from_file_and_from_pyramid(cohort: CohortReader, synthetic: Synthetic) -> None:
    slide_id = next(row.slide_id for row in cohort.slides.itertuples() if row.n_tiles and row.path.endswith(".svs"))
    slide, path = cohort[slide_id], Path(cohort.slides.set_index("slide_id").loc[slide_id, "path"])
    x, y, size = slide.tiles[["x", "y", "size"]].iloc[0].tolist()
    with h2.open_slide(path) as file:
        assert np.array_equal(file.region((x, y), (size, size)), slide.region((x, y), (size, size)))
        assert np.array_equal(file.dask()[y : y + size, x : x + size].compute(), file.region((x, y), (size, size)))


def test_dask_blocks_are_read_by_threads_at_once(cohort: CohortReader, monkeypatch: pytest.MonkeyPatch) -> None:
    from her2batch.exchange import slide_arrays

    monkeypatch.setattr(slide_arrays, "BLOCK_PX", 500)
    slide = cohort[next(row.slide_id for row in cohort.slides.itertuples() if row.n_tiles)]
    array = slide.dask()
    assert array.numblocks[0] > 1
    whole = slide.region((0, 0), (slide.info.width, slide.info.height))
    assert np.array_equal(array.compute(scheduler="threads", num_workers=4), whole)


def test_a_bag_is_the_embeddings_in_tile_order(cohort: CohortReader, synthetic: Synthetic) -> None:
    slide_id = next(row.slide_id for row in cohort.slides.itertuples() if row.n_tiles)
    table = Cohort(synthetic.cohort).read("embeddings/stain", slide_id)
    bag = cohort.bag(slide_id, "stain")
    assert (bag.shape, bag.dtype) == ((table.num_rows, 29), np.float16)
    assert np.array_equal(bag, np.array(table["embedding"].to_pylist(), np.float16))


def test_bags_are_a_torch_dataset_of_the_labelled_slides(cohort: CohortReader, synthetic: Synthetic) -> None:
    own, given = cohort.bags("stain"), cohort.bags("stain", labels=synthetic.labels)
    assert isinstance(own, torch.utils.data.Dataset)
    assert own.slide_ids == given.slide_ids
    assert len(own) + len(own.excluded) == len(cohort.labels)
    bag, target = own[0]
    assert bag.equal(torch.from_numpy(cohort.bag(own.slide_ids[0], "stain")).float())
    assert own.classes[target] in ("0", "low", "high")
