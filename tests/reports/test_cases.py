"""Cases: the slides of a patient side by side, and their conflicts."""

import shutil
from pathlib import Path

from her2batch.reports.cases import SlidePrediction, conflicts_between_methods, conflicts_between_slides, find_cases
from her2batch.store.cohort import Cohort, write_row
from tests.conftest import Synthetic


def prediction(
    slide_id: str, predicted: str, method: str = "membrane", plausible: tuple[str, ...] = (), task: str = ""
) -> SlidePrediction:
    return SlidePrediction(slide_id, task or "her2-4way", method, predicted, plausible or (predicted,), False, None)


def test_slides_with_a_common_plausible_class_do_not_conflict() -> None:
    assert (
        conflicts_between_slides(
            [prediction("a", "1+", plausible=("1+", "2+")), prediction("b", "2+", plausible=("2+", "3+"))]
        )
        == []
    )


def test_slides_without_a_common_plausible_class_conflict() -> None:
    found = conflicts_between_slides(
        [prediction("a", "0"), prediction("b", "3+"), prediction("a", "negative", task="er")]
    )
    assert found == ["slides differ, IHC score by membrane: 0 on a, 3+ on b"]


def test_er_of_two_blocks_can_conflict() -> None:
    found = conflicts_between_slides([prediction("a", "negative", task="er"), prediction("b", "positive", task="er")])
    assert found == ["slides differ, ER by membrane: negative on a, positive on b"]


def test_methods_that_differ_on_a_slide_conflict() -> None:
    found = conflicts_between_methods(
        [
            prediction("a", "1+"),
            prediction("a", "2+", "clam-sb"),
            prediction("b", "1+"),
            prediction("b", "1+", "clam-sb"),
        ]
    )
    assert found == ["methods differ on a, IHC score: 1+ by membrane, 2+ by clam-sb"]


def test_a_case_has_all_slides_of_its_patient_and_its_highest_class(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    rows = cohort.rows()
    patient = max((row["patient_id"] for row in rows.values()), key=[r["patient_id"] for r in rows.values()].count)
    own = sorted(one for one, row in rows.items() if row["patient_id"] == patient)
    assert len(own) > 1
    found = find_cases(cohort, own[:1])
    assert [[row["slide_id"] for row in case.slides] for case in found] == [own]
    said = {one.slide_id: one.predicted for one in found[0].predictions if one.task == "her2-4way"}
    if said:
        assert found[0].highest_classes()["her2-4way", "membrane"] == max(said.values())
    write_row(cohort, {**rows[own[1]], "status": "failed", "error_code": "truncated", "files": []})
    assert f"{own[1]} failed: truncated" in find_cases(cohort, own[:1])[0].conflicts


def test_a_slide_without_a_patient_is_a_case_of_its_own(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    ids = sorted(cohort.rows())[:2]
    for one in ids:
        write_row(cohort, {**cohort.rows()[one], "patient_id": None})
    assert [case.name for case in find_cases(cohort, ids)] == ids
    assert find_cases(cohort, []) == []
