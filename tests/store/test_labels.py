"""Tests of labels: read, or refused with line and remedy; contradictions and reviews are reported."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.store.labels import (
    COLUMNS,
    LABELS_SCHEMA,
    apply_reviews,
    check_labels,
    label_notes,
    label_slides,
    read_labels,
)
from her2batch.tasks import CLASSES, IHC_SCORES


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_empty_cells_are_null_and_unknown_columns_are_ignored(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "slide_id,patient_id,her2,ish,mood\na,P1,2+,-,good\nb,P1,,,\n"))
    assert table.to_pylist()[0]["ish"] == "-"
    assert table.to_pylist()[1]["her2"] is None
    assert "mood" not in table.column_names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient,her2\nP1,0\n", "no column slide_id"),
        ("slide_id,her2\na,4+\n", "line 2: her2 is '4\\+'"),
        ("slide_id,her2\na,0\na,0\n", "lines 2 and 3 are of one slide"),
        ("slide_id,her2\n,0\n", "line 2 has no slide_id"),
    ],
)
def test_errors_name_line_and_value(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_labels(write(tmp_path, text))


# -- tasks -----------------------------------------------------------------------------------------------------


def labelled(*rows: tuple[str, str | None, str | None]) -> pa.Table:
    """Slides s0, s1, … with (patient, IHC, ISH)."""
    known = [{"slide_id": f"s{k}", "patient_id": p, "her2": ihc, "ish": ish} for k, (p, ihc, ish) in enumerate(rows)]
    return pa.Table.from_pylist([{**dict.fromkeys(COLUMNS), **row} for row in known], LABELS_SCHEMA)


EVERY = labelled(*(("p", ihc, ish) for ihc in IHC_SCORES for ish in (None, "-", "+")))


@pytest.mark.parametrize(("task", "expected"), [
    ("her2-4way", {"0": 2, "1+": 2, "2+": 3, "3+": 2}),
    ("her2-3way", {"0": 2, "low": 3, "high": 3}),
    ("her2-binary", {"negative": 5, "positive": 3}),
])  # fmt: skip
def test_labels_map_to_the_classes_of_the_paper(task: str, expected: dict[str, int]) -> None:
    good, bad = label_slides(EVERY, task, {})
    assert Counter(good["truth"].to_pylist()) == expected
    assert [CLASSES[task][k] for k in good["label"].to_pylist()] == good["truth"].to_pylist()
    reasons = Counter(bad["reason"].to_pylist())
    assert reasons == {"contradiction": 3} | ({} if task == "her2-4way" else {"needs-ish": 1})


def test_the_five_way_task_needs_the_sub_score_of_0() -> None:
    rows = [("S0", "0", "null"), ("S1", "0", "ultralow"), ("S2", "0", None), ("S3", "1+", None), ("S4", "3+", None)]
    labels = pa.Table.from_pylist([{"slide_id": s, "her2": h, "her2_detail": d} for s, h, d in rows], LABELS_SCHEMA)
    good, bad = label_slides(labels, "her2-5way", {})
    assert good["truth"].to_pylist() == ["null", "ultralow", "1+", "3+"]
    assert good["stratum"].to_pylist() == ["null/?", "ultralow/?", "1+/?", "3+/?"]
    assert [(row["slide_id"], row["reason"]) for row in bad.to_pylist()] == [("S2", "no-detail")]


def test_contradictions_are_kept_on_request() -> None:
    good, bad = label_slides(EVERY, "her2-4way", {}, keep_contradictions=True)
    assert (len(good), len(bad)) == (12, 0)


def test_the_stratum_is_the_finest_label() -> None:
    good, _ = label_slides(labelled(("a", "2+", "-"), ("b", "2+", "+"), ("c", "0", None)), "her2-3way", {})
    assert good["stratum"].to_pylist() == ["2+/-", "2+/+", "0/?"]


@pytest.mark.parametrize(("slide", "reason"), [
    ({"status": "failed", "error_code": "no-mpp"}, "failed"), ({"status": "done", "n_tiles": 0}, "no-tiles"),
    ({"status": "done", "n_tiles": 5, "stain": "er"}, "other-stain"),
    ({"status": "done", "n_tiles": 5, "flags": ["microarray"]}, "microarray"),
    ({"status": "done", "n_tiles": 5, "flags": ["control-slide"]}, "control"),
    ({"status": "done", "n_tiles": 5, "flags": ["only-controls"]}, "control"),
])  # fmt: skip
def test_slides_without_usable_tiles_of_one_patient_are_excluded_with_the_reason(slide: dict, reason: str) -> None:
    good, bad = label_slides(labelled(("a", "3+", None)), "her2-3way", {"s0": slide})
    assert len(good) == 0
    assert bad["reason"].to_pylist() == [reason]
    assert "s0" in bad["words"].to_pylist()[0]


def test_without_patient_ids_each_slide_is_a_patient() -> None:
    good, _ = label_slides(labelled((None, "0", None), (None, "3+", None)), "her2-3way", {})
    assert good["patient_id"].to_pylist() == ["s0", "s1"]


def test_labels_of_slides_that_the_cohort_lacks_are_excluded_with_the_reason() -> None:
    labels = labelled(("a", "3+", None), ("b", "0", None))
    rows = {"s0": {"patient_id": None, "status": "done", "n_tiles": 5, "stain": "her2"}, "s9": {"patient_id": "p"}}
    good, bad = label_slides(labels, "her2-3way", rows)
    assert good["slide_id"].to_pylist() == ["s0"]
    assert [(row["slide_id"], row["reason"]) for row in bad.to_pylist()] == [("s1", "not-in-cohort")]
    check_labels(labels, rows, Path("labels.parquet"), partly=True)
    assert label_notes(labels, rows) == [
        "1 label of slides that the cohort does not have: s1", "1 slide of the cohort without a label: s9",
    ]  # fmt: skip


def test_a_label_without_a_patient_leaves_the_patient_that_the_cohort_knows() -> None:
    done = {"status": "done", "n_tiles": 5, "stain": "her2"}
    rows = {"s0": {"patient_id": "P7", **done}, "s1": {"patient_id": "P7", **done}, "s2": {"patient_id": "NA", **done}}
    good, _ = label_slides(labelled((None, "0", None), (None, "3+", None), (None, "3+", None)), "her2-3way", rows)
    assert good["patient_id"].to_pylist() == ["P7", "P7", "s2"]


def test_slides_of_patients_who_are_not_known_are_patients_of_their_own() -> None:
    rows = [
        {"slide_id": "a", "patient_id": "P1"},
        {"slide_id": "b", "patient_unknown": True},
        {"slide_id": "c", "patient_unknown": True},
    ]
    labels = pa.Table.from_pylist([{**row, "her2": "0"} for row in rows], LABELS_SCHEMA)
    slides = {row["slide_id"]: {"patient_id": None} for row in rows}
    check_labels(labels, slides, Path("labels.csv"))
    assert label_slides(labels, "her2-3way", {})[0]["patient_id"].to_pylist() == ["P1", "b", "c"]
    assert label_notes(labels, slides) == [
        "the patient of 2 slides is not known: each counts as a patient of its own (b, c)"
    ]


@pytest.mark.parametrize(("rows", "known", "words"), [
    ((("a", "0", None),), {}, "s0, which the cohort does not contain"),
    ((("a", "0", None),), {"s0": {"patient_id": "b"}}, "s0 is of patient a here, but of patient b in the cohort"),
    ((("a", "0", None), (None, "0", None)), {f"s{k}": {"patient_id": None} for k in (0, 1)}, "s1 has no patient_id"),
])  # fmt: skip
def test_labels_that_do_not_fit_the_cohort_are_refused(rows: tuple, known: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_labels(labelled(*rows), known, Path("labels.csv"))


# -- TCGA ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tcga(real_data: Path) -> Path:
    return real_data / "labels" / "tcga_brca_her2_first100.tsv"


def test_tcgas_clinical_table_is_read(tcga: Path) -> None:
    table = read_labels(tcga)
    assert len(table) == 100
    row = next(one for one in table.to_pylist() if one["slide_id"] == "TCGA-4H-AAAK")
    assert (row["her2"], row["ish"], row["er"], row["pr"]) == ("2+", None, "+", "+")
    good, bad = label_slides(table, "her2-3way", {})
    reasons = {one["slide_id"]: one["reason"] for one in bad.to_pylist()}
    assert reasons["TCGA-A2-A04U"] == reasons["TCGA-A2-A0EQ"] == "contradiction"
    assert Counter(reasons.values()) == {"no-label": 33, "needs-ish": 2, "contradiction": 2}
    assert len(good) == 63


def test_tcga_patients_are_matched_to_slides_by_barcode(tcga: Path) -> None:
    slides = ["tcga-4h-aaak-01Z-00-DX1", "TCGA-4H-AAAK-01A-01-TS1", "TCGA-ZZ-9999-01"]
    table = read_labels(tcga, slides)
    assert table["slide_id"].to_pylist() == sorted(slides[:2])
    assert set(table["patient_id"].to_pylist()) == {"TCGA-4H-AAAK"}


def test_an_unknown_value_in_a_tcga_table_is_refused(tcga: Path, tmp_path: Path) -> None:
    lines = tcga.read_text().splitlines()
    column = lines[0].split("\t").index("her2_ihc_score")
    cells = lines[10].split("\t")
    cells[column] = "2++"
    (tmp_path / "a.tsv").write_text("\n".join([*lines[:10], "\t".join(cells), *lines[11:]]))
    with pytest.raises(InputError, match=r"line 11: her2_ihc_score is '2\+\+'"):
        read_labels(tmp_path / "a.tsv")


def entry(slide_id: str, label: str | None, number: int, task: str = "her2-4way", **more: str) -> dict:
    verdict = "change" if label is not None else "needs-ish"
    return {"slide_id": slide_id, "task": task, "verdict": verdict, "label": label, "number": number,
            "reviewer": "A", **more}  # fmt: skip


def test_the_newest_review_replaces_the_label_and_differences_are_reported() -> None:
    labels = pa.Table.from_pylist(
        [{"slide_id": one, "patient_id": f"P{one}", "her2": her2, "ish": ish, "er": "+"} for one, her2, ish in
         (("a", "1+", None), ("b", "2+", "+"), ("c", "3+", None), ("d", "0", None), ("e", "1+", None))], LABELS_SCHEMA
    )  # fmt: skip
    entries = [
        entry("a", "0", 1, reviewer="B"),
        entry("a", "2+", 2),
        entry("b", None, 3),
        entry("c", None, 4),
        entry("d", "negative", 5, task="er"),
        entry("e", "low", 6, task="her2-3way"),
        entry("new", "3+", 7),
        entry("gone", "3+", 8),
    ]
    rows = {one: {"patient_id": "PX"} for one in "abcde"} | {"new": {"patient_id": "P9"}}
    after, changes = apply_reviews(labels, entries, rows)
    found = {row["slide_id"]: (row["her2"], row["ish"], row["er"]) for row in after.to_pylist()}
    assert found == {
        "a": ("2+", None, "+"),
        "b": ("2+", "+", "+"),
        "c": ("2+", None, "+"),
        "d": ("0", None, "-"),
        "e": ("1+", None, "+"),
        "new": ("3+", None, None),
    }
    words = {row["slide_id"]: row["words"] for row in changes.to_pylist()}
    assert words == {
        "a": "the label was 1+; review 1 was 0 (her2-4way)",
        "b": None,
        "c": "the label was 3+",
        "d": "the label was +",
        "e": None,
        "gone": "the cohort does not contain it",
        "new": None,
    }
    good, bad = label_slides(after, "her2-3way", rows)
    assert {row["slide_id"]: row["truth"] for row in good.to_pylist()} == {
        "b": "high", "d": "0", "e": "low", "new": "high",
    }  # fmt: skip
    assert {row["slide_id"]: row["reason"] for row in bad.to_pylist()} == {"a": "needs-ish", "c": "needs-ish"}


def test_a_review_gives_takes_or_keeps_the_sub_score() -> None:
    rows = [("a", "0", "null"), ("b", "0", "ultralow"), ("c", "1+", None), ("d", "0", "null"), ("e", "0", "ultralow")]
    labels = pa.Table.from_pylist([{"slide_id": s, "her2": h, "her2_detail": d} for s, h, d in rows], LABELS_SCHEMA)
    five = [
        entry(name, label, k, "her2-5way")
        for k, (name, label) in enumerate(zip("abc", ("ultralow", "1+", "null"), strict=True))
    ]
    entries = [*five, entry("d", "0", 4), entry("e", "2+", 5)]
    after, _ = apply_reviews(labels, entries, {name: {} for name in "abcde"})
    assert [(row["her2"], row["her2_detail"]) for row in after.to_pylist()] == [
        ("0", "ultralow"), ("1+", None), ("0", "null"), ("0", "null"), ("2+", None),
    ]  # fmt: skip


def test_a_review_without_an_ihc_score_excludes_the_slide() -> None:
    labels = pa.Table.from_pylist([{"slide_id": one, "her2": "0"} for one in "ab"], LABELS_SCHEMA)
    entries = [entry("a", "low", 1, task="her2-3way"), entry("b", "0", 2, task="her2-3way")]
    after, changes = apply_reviews(labels, entries, {"a": {}, "b": {}})
    assert [row["her2"] for row in after.to_pylist()] == [None, "0"]
    assert [row["words"] for row in changes.to_pylist()] == ["the label was 0; low is not an IHC score", None]


def test_a_reviewed_slide_without_a_patient_is_not_added() -> None:
    labels = pa.Table.from_pylist([{"slide_id": "a", "patient_id": "P1", "her2": "0"}], LABELS_SCHEMA)
    after, changes = apply_reviews(labels, [entry("b", "3+", 1)], {"a": {}, "b": {"patient_id": None}})
    assert [row["slide_id"] for row in after.to_pylist()] == ["a"]
    assert [row["words"] for row in changes.to_pylist()] == ["its patient is not known: add it to the labels"]
