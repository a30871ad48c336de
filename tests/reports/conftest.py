"""A cohort with everything that a report can show."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.files.locations import remove_files
from her2batch.reports.cohort_page import add_worklists, render_cohort_page
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.runtime.score import score
from her2batch.settings import Resources
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import table_schema
from tests.conftest import Synthetic
from tests.models.bundles import untrained

FAILED = "P001-1"
"""The slide of the fixture that failed; its message is an attack."""

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="session")
def reported(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The synthetic cohort, scored with an untrained head, with patches of one slide, and one slide failed."""
    folder = tmp_path_factory.mktemp("reported")
    cohort = Cohort(Path(shutil.copytree(synthetic.cohort, folder / "cohort")))
    row = cohort.rows()[FAILED]
    failed = {"status": "failed", "error_code": "truncated", "error": f"/scans/{EVIL}: is cut; copy it again"}
    write_row(cohort, {**row, **failed, "files": [], "n_tiles": 0})
    remove_files(cohort.root, [file["path"] for file in row["files"]])
    assert score(cohort.root, untrained(folder / "bundle").path, Resources(workers=0)).exit_code == 0
    row = next(one for one in cohort.rows().values() if one["status"] == "done" and one["stain"] == "her2")
    cohort.add_tables(row, {"patches/net": patches_of(cohort, row["slide_id"])})
    return cohort


def patches_of(cohort: Cohort, slide_id: str) -> pa.Table:
    """One patch on each tile at the high resolution, their classes in turn."""
    tiles = cohort.read("tiles", slide_id)
    p = np.eye(4, dtype=np.float32)[np.arange(tiles.num_rows) % 4] * 0.9 + 0.025
    step = round(224 * 0.23 / cohort.rows()[slide_id]["mpp"])
    x, y = (pa.array(np.round(tiles[name].to_numpy() / step).astype(np.int32) * step) for name in ("x", "y"))
    columns = [
        tiles["slide_id"],
        pa.array(["high"] * tiles.num_rows),
        x,
        y,
        pa.array([step] * tiles.num_rows, pa.int32()),
    ]
    return pa.table([*columns, *(pa.array(p[:, k]) for k in range(4))], schema=table_schema("patches"))


@pytest.fixture(scope="session")
def report_data(reported: Cohort) -> ReportData:
    return add_worklists(load_report_data(reported))


@pytest.fixture(scope="session")
def report_html(report_data: ReportData) -> str:
    return render_cohort_page(report_data)[0]
