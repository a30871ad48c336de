"""Cores of a microarray: one score each, joined by case, missing ones said."""

import json
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.exchange.controls.tma_map import ArrayMap, MappedCore
from her2batch.pipeline.growth.ingest_request import IngestRequest
from her2batch.pipeline.pieces.tma_cores import update_cores
from her2batch.reports.controls.tma_section import tma_section
from her2batch.reports.report_data import load_report_data
from her2batch.runtime.ingest import ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.store.pieces.cores_table import read_cores
from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth, make_tissue
from her2batch.synthetic.svs import write_svs
from tests.pipeline.calibration.laboratories import add_slide

SCORES = {(1, 1): "0", (1, 2): "3+", (2, 2): "3+"}
"""Place → score. The core at (2, 1) was lost."""

EDGE, PITCH = 800, 1000
"""Edge of a core's field and distance of two cores, level-0 px at 0.5 µm/px."""


def write_array(path: Path) -> None:
    canvas = np.full((2 * PITCH, 2 * PITCH, 3), 240, np.uint8)
    for (row, column), score in SCORES.items():
        truth = SlideTruth(f"core-{row}-{column}", TYPICAL_MIXES[score], width=EDGE, height=EDGE, mpp=0.5)
        core = make_tissue(truth, 3)
        x, y = (column - 1) * PITCH + 100, (row - 1) * PITCH + 100
        canvas[y : y + EDGE, x : x + EDGE] = paint_slide(
            core.cells, core.fields, core.noise, core.appearance, (EDGE, EDGE)
        )
    write_svs(path, canvas, SlideTruth("TMA1", width=2 * PITCH, height=2 * PITCH, mpp=0.5))


def test_each_core_has_its_own_score_and_a_lost_core_is_missing(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    write_array(tmp_path / "scans/TMA1.svs")
    (tmp_path / "map.csv").write_text("row,column,case\nA,1,P1\nA,2,P2\nB,1,P1\nB,2,P2\n", encoding="utf-8")
    request = IngestRequest(tmp_path / "scans", tmp_path / "cohort", tma=tmp_path / "map.csv")
    summary = ingest(request, Plan(), Resources(workers=0))
    assert summary.cores is not None
    assert (summary.cores.found, summary.cores.missing, summary.cores.notes) == (3, 1, ())
    json.dumps(summary.cores._asdict())
    cohort = Cohort(tmp_path / "cohort")
    cores = {(core["row"], core["column"]): core for core in read_cores(cohort)}
    assert {place: core["predicted"] for place, core in cores.items()} == {**SCORES, (2, 1): None}
    assert cores[2, 1]["status"] == "missing"
    assert cores[1, 2]["x"] == pytest.approx(PITCH + 100 + EDGE / 2, abs=60)
    data = load_report_data(cohort)
    section = tma_section(data)
    assert section is not None
    assert "microarray" in cohort.rows()["TMA1"]["flags"]
    found = data.assessments["TMA1"]  # the score of all cores together is of no patient
    assert (found.result, found.state, found.meaning) == (
        None, "other", "tissue microarray: each core has its own score",
    )  # fmt: skip
    assert list(verify_cohort(cohort)) == []
    cases, missing = section.tables
    assert [row[:2] + row[3:5] for row in cases.rows] == [["P1", "0", 1, 1], ["P2", "3+", 2, 0]]
    assert missing.rows == [["TMA1", 2, 1, "P1", "no tissue at its place"]]


def test_the_flag_of_a_microarray_follows_the_map(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    for slide_id in ("TMA1", "TMA2", "biopsy"):
        add_slide(cohort, slide_id, "1+", np.random.default_rng(0), flags=["blurred"])

    def flagged() -> set[str]:
        return {slide_id for slide_id, row in cohort.rows().items() if "microarray" in row["flags"]}

    with cohort.lock():
        update_cores(cohort, None)
        assert flagged() == set()
        update_cores(cohort, ArrayMap((MappedCore(1, 1, "P1", "TMA*"),)))
        assert flagged() == {"TMA1", "TMA2"}
        update_cores(cohort, None)  # an ingest without a map changes nothing
        assert flagged() == {"TMA1", "TMA2"}
        update_cores(cohort, ArrayMap((MappedCore(1, 1, "P1", "TMA2"),)))
        assert flagged() == {"TMA2"}
    assert all(row["flags"][0] == "blurred" for row in cohort.rows().values())


def test_a_wrong_map_stops_the_run_before_it_writes_anything(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("row,case\n", encoding="utf-8")
    with pytest.raises(InputError, match="no column column"):
        ingest(IngestRequest(tmp_path, tmp_path / "cohort", tma=tmp_path / "map.csv"), Plan(), Resources(workers=0))
    assert not (tmp_path / "cohort").exists()
