"""Groups, classes with too few slides, and labels that cannot be used."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort, calibrate_slides
from her2batch.store.schemas import table_schema
from her2batch.tasks import IHC_SCORES
from tests.pipeline.calibration.laboratories import STRENGTH, add_slide, make_laboratory, predictions, write_sheet


def test_a_class_with_too_few_slides_leaves_all_classes_and_says_why(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", {"0": 9, "1+": 9, "2+": 1, "3+": 9})
    found = calibrate_cohort(
        CalibrationRequest(cohort.root, tmp_path / "c.toml", write_sheet(tmp_path / "l.csv", labels))
    )
    assert "needs labelled slides of 9 patients in every class; 2+ has 1" in found.notes[0]
    assert calibrate_slides(cohort.root, tmp_path / "c.toml").abstained == 28
    for tasks in predictions(cohort, found.calibration.id).values():
        row = tasks["her2-4way"]
        assert row["plausible"] == list(IHC_SCORES)
        assert {"abstained", "too-few-labels"} <= set(row["reasons"])
        assert row["review"]


def test_sites_are_calibrated_by_themselves(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 3), 1.0)
    rng = np.random.default_rng(9)
    sites = dict.fromkeys(labels, "north")
    for label in IHC_SCORES:
        for k in range(3):
            slide = f"{label[0]}y{k:03}-1"
            add_slide(cohort, slide, label, rng, STRENGTH)
            labels[slide], sites[slide] = label, "south"
    sheet = write_sheet(tmp_path / "l.csv", labels, sites)
    found = calibrate_cohort(CalibrationRequest(cohort.root, tmp_path / "c.toml", sheet, per="site"))
    north, south = found.calibration.methods
    assert (north.group, south.group) == ("north", "south")
    assert south.model.shift < north.model.shift
    with pytest.raises(InputError, match="has no site, which --per site needs"):
        calibrate_cohort(
            CalibrationRequest(cohort.root, tmp_path / "d.toml", write_sheet(tmp_path / "m.csv", labels), per="site")
        )


@pytest.mark.parametrize(
    ("labels", "words"),
    [({}, "labels"), ({"other-1": "1+"}, "no labelled slide"), ({"0x000-1": ""}, "has no labelled slide")],
)
def test_without_a_usable_label_nothing_is_written(laboratory, labels, words, tmp_path: Path) -> None:
    sheet = write_sheet(tmp_path / "l.csv", labels)
    with pytest.raises(InputError, match=words):
        calibrate_cohort(CalibrationRequest(laboratory[0].root, tmp_path / "c.toml", sheet))
    assert not (tmp_path / "c.toml").exists()


@pytest.mark.parametrize(("without", "used"), [(1, 7), (3, 5), (4, 8), (8, 8)])
def test_a_labelled_slide_without_tumour_cells_takes_no_evidence_from_the_others(
    tmp_path: Path, without: int, used: int
) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 2))
    for k, slide_id in enumerate(sorted(labels)):
        row = cohort.rows()[slide_id]
        names = table_schema("predictions/cells").names
        scored = {"p": [0.25] * 4, "predicted": "0"} if k >= without else {"p": []}
        one = dict.fromkeys(names) | {"slide_id": slide_id, "task": "her2-4way", "method": "cells", **scored}
        table = pa.Table.from_pylist([one], table_schema("predictions/cells"))
        cohort.add_tables(row, {"predictions/cells": table})
    sheet = write_sheet(tmp_path / "labels.csv", labels)
    found = calibrate_cohort(CalibrationRequest(cohort.root, tmp_path / "c.toml", sheet))
    (method,) = found.calibration.methods
    assert len(method.labelled) == used
    assert ("cells" in method.centre) == (without < 4)
    assert any(f"{without} of 8 labelled slides have no tumour cells" in note for note in found.notes) == (used < 8)
