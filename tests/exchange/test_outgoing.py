"""Exports: the files of each format, and that no other file is changed."""

import json
from pathlib import Path
from types import SimpleNamespace

import h5py
import pyarrow as pa
import pytest

from her2batch.errors import InputError, StoreError
from her2batch.exchange import outgoing
from her2batch.exchange.outgoing import MANIFEST, ExportRequest, ExportSummary, export_cohort
from her2batch.store.cohort import Cohort, write_row
from tests.exchange.stored_examples import BUNDLE, add_failed, make_stored_cohort
from tests.test_assessment import prediction, rule_rows, slide


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    made = make_stored_cohort(tmp_path / "cohort", "S1", "S2")
    add_failed(made, "S3")
    return made


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_export(cohort: Cohort, to: str, out: Path, **more: object) -> ExportSummary:
    return export_cohort(ExportRequest(cohort.root, to, out, **more))


FILE_NAMES = {
    "geojson": ["S1.tiles.geojson", "S2.tiles.geojson"],
    "clam-h5": [
        "features_stain/h5_files/S1.h5", "features_stain/h5_files/S2.h5", "patches/S1.h5", "patches/S2.h5",
    ],
    "csv": [
        f"attention-{BUNDLE}.csv", "files.csv", "membrane.csv", f"patches-{BUNDLE}.csv", "slides.csv", "tiles.csv",
    ],
}  # fmt: skip


@pytest.mark.parametrize("to", FILE_NAMES)
def test_each_format_writes_and_lists_its_files(to: str, cohort: Cohort, tmp_path: Path) -> None:
    found = run_export(cohort, to, tmp_path / "out")
    there = read_files(tmp_path / "out")
    assert sorted(there) == sorted([*FILE_NAMES[to], MANIFEST])
    assert json.loads(there[MANIFEST]) == {"format": to, "files": FILE_NAMES[to]}
    assert found.files == len(FILE_NAMES[to])
    assert found.bytes == sum(len(data) for name, data in there.items() if name != MANIFEST)
    assert (found.exit_code, found.failures) == (0, {})


@pytest.mark.parametrize("to", FILE_NAMES)
def test_repeated_export_gives_the_same_bytes(to: str, cohort: Cohort, tmp_path: Path) -> None:
    run_export(cohort, to, tmp_path / "out")
    before = read_files(tmp_path / "out")
    run_export(cohort, to, tmp_path / "out")
    assert read_files(tmp_path / "out") == before


@pytest.mark.parametrize("to", FILE_NAMES)
def test_export_does_not_change_the_cohort(to: str, cohort: Cohort, tmp_path: Path) -> None:
    before = read_files(cohort.root)
    run_export(cohort, to, tmp_path / "out")
    assert read_files(cohort.root) == before


def test_failed_slide_is_left_out_but_is_in_the_csv(cohort: Cohort, tmp_path: Path) -> None:
    found = run_export(cohort, "geojson", tmp_path / "out")
    assert found.left_out == {"S3": "unreadable: it could not be ingested"}
    assert found.slides == 2
    run_export(cohort, "csv", tmp_path / "csv")
    assert "'=cmd() is no slide" in (tmp_path / "csv" / "slides.csv").read_text()


def test_selected_slide_is_exported_alone(cohort: Cohort, tmp_path: Path) -> None:
    run_export(cohort, "geojson", tmp_path / "out", slides=("S2",))
    assert sorted(read_files(tmp_path / "out")) == ["S2.tiles.geojson", MANIFEST]
    run_export(cohort, "geojson", tmp_path / "out", slides=("S1",))
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["files"] == FILE_NAMES["geojson"]


def test_embeddings_are_exported_to_csv_on_request(cohort: Cohort, tmp_path: Path) -> None:
    run_export(cohort, "csv", tmp_path / "out", encoders=("stain",))
    assert (tmp_path / "out" / "embeddings-stain.csv").read_text().startswith("slide_id,tile,embedding\n")


@pytest.mark.parametrize(("more", "words"), [
    ({"slides": ("S9",)}, "no slide 'S9'; choose from: S1, S2, S3"),
    ({"encoders": ("uni",)}, "no encoder 'uni'; choose from: stain"),
    ({"bundle": "beef"}, f"no bundle 'beef'; choose from: {BUNDLE}"),
])  # fmt: skip
def test_unknown_names_are_refused_with_the_known_ones(more: dict, words: str, cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        run_export(cohort, "geojson", tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_selected_bundle_is_exported_alone(cohort: Cohort, tmp_path: Path) -> None:
    for slide_id in ("S1", "S2"):
        other = cohort.read(f"attention/{BUNDLE}", slide_id)
        cohort.add_tables(cohort.rows()[slide_id], {"attention/cafe": other})
    run_export(cohort, "geojson", tmp_path / "all")
    run_export(cohort, "geojson", tmp_path / "one", bundle=BUNDLE)
    assert b"(cafe)" in read_files(tmp_path / "all")["S1.tiles.geojson"]
    assert b"(cafe)" not in read_files(tmp_path / "one")["S1.tiles.geojson"]


@pytest.mark.parametrize("where", ["", "export", "tables/tiles"])
def test_output_folder_inside_the_cohort_is_refused(where: str, cohort: Cohort) -> None:
    before = read_files(cohort.root)
    with pytest.raises(InputError, match="inside the cohort"):
        run_export(cohort, "csv", cohort.root / where)
    assert read_files(cohort.root) == before


def test_output_folder_linked_into_the_cohort_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cohort.root)
    with pytest.raises(InputError, match="inside the cohort"):
        run_export(cohort, "csv", tmp_path / "link" / "out")


def test_foreign_file_is_not_replaced(cohort: Cohort, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "slides.csv"
    mine.parent.mkdir()
    mine.write_text("my own work")
    with pytest.raises(InputError, match=r"slides\.csv: the file exists, and no export has written it"):
        run_export(cohort, "csv", tmp_path / "out")
    assert read_files(tmp_path / "out") == {"slides.csv": b"my own work"}


def test_damaged_table_fails_only_its_file(cohort: Cohort, tmp_path: Path) -> None:
    cohort.table("membrane", "S1").write_bytes(b"PAR1 no more")
    found = run_export(cohort, "geojson", tmp_path / "out")
    assert list(found.failures) == ["S1.tiles.geojson"]
    assert "her2batch verify" in found.failures["S1.tiles.geojson"]
    assert (found.files, found.exit_code) == (1, 3)
    assert sorted(read_files(tmp_path / "out")) == ["S2.tiles.geojson", MANIFEST]


def test_table_that_no_row_lists_is_not_exported(cohort: Cohort, tmp_path: Path) -> None:
    row = cohort.rows()["S1"]
    write_row(cohort, {**row, "files": [file for file in row["files"] if "embeddings" not in file["path"]]})
    run_export(cohort, "clam-h5", tmp_path / "out")
    assert "features_stain/h5_files/S1.h5" not in read_files(tmp_path / "out")


def test_cohort_without_slides_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing to export to geojson; the cohort has no finished slide"):
        run_export(make_stored_cohort(tmp_path / "cohort"), "geojson", tmp_path / "out")
    with pytest.raises(StoreError, match="no cohort here"):
        run_export(Cohort(tmp_path / "nowhere"), "geojson", tmp_path / "out")


@pytest.mark.parametrize("to", FILE_NAMES)
def test_export_with_pseudonyms_has_no_paths(to: str, tmp_path: Path) -> None:
    """The row of a pseudonymized slide has no path, and files are named after the slide id."""
    cohort = make_stored_cohort(tmp_path / "cohort", "s0123456789abcdef0123")
    row = cohort.rows()["s0123456789abcdef0123"]
    assert "secret" in row["path"]
    write_row(cohort, {**row, "path": None})
    run_export(cohort, to, tmp_path / "out", encoders=("stain",))
    for name, data in read_files(tmp_path / "out").items():
        assert b"secret" not in data, name
        assert str(tmp_path).encode() not in data, name


def test_h5_files_have_no_paths(cohort: Cohort, tmp_path: Path) -> None:
    run_export(cohort, "clam-h5", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.h5"):
        with h5py.File(path) as file:
            attributes = [str(value) for dataset in file.values() for value in dataset.attrs.values()]
        assert [text for text in attributes if "/" in text] == []


def test_a_report_of_a_2_plus_slide_has_its_score_and_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*rule_rows(complete=0.4), prediction("negative", "her2-binary", "clam-sb")]
    tables = {"membrane": rows[:3], "b" * 12: rows[-1:]}
    columns = ("task", "method", "predicted", "review", "reasons")
    stored = {bundle: pa.Table.from_pylist([{name: row[name] for name in columns} for row in own])
              for bundle, own in tables.items()}  # fmt: skip
    monkeypatch.setattr(outgoing, "_read_selected", lambda *_: stored)
    found = outgoing._reportable_predictions(SimpleNamespace(failed_runs=set()), slide())
    assert {bundle: [row["predicted"] for row in own] for bundle, own in found.items()} == {"membrane": ["2+"]}
