"""Import of embeddings: as a whole into the slides that they belong to, or refused with the reason."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from her2batch.errors import InputError, StoreError
from her2batch.exchange.incoming import ImportRequest, ImportSummary, import_embeddings
from her2batch.exchange.outgoing import ExportRequest as Outgoing
from her2batch.exchange.outgoing import export_cohort
from her2batch.experiments.train import TrainingRequest, train
from her2batch.runtime.score import score
from her2batch.settings import Resources, Training, TrainingResources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.pseudonyms import Pseudonymizer
from tests.conftest import Synthetic
from tests.exchange.stored_examples import add_failed, make_stored_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return make_stored_cohort(tmp_path / "cohort", "S1", "S2", dim=8)


@pytest.fixture
def h5(cohort: Cohort, tmp_path: Path) -> Path:
    """The folder of features files from an export of the cohort."""
    export_cohort(Outgoing(cohort.root, "clam-h5", tmp_path / "out"))
    return tmp_path / "out" / "features_stain" / "h5_files"


def run_import(cohort: Cohort, *files: Path, encoder: str | None = "mine", **more: object) -> ImportSummary:
    return import_embeddings(
        ImportRequest(cohort.root, files, encoder, **more), lambda name: 1024 if name == "uni" else None
    )


def test_exported_embeddings_are_imported_identical(cohort: Cohort, h5: Path) -> None:
    found = run_import(cohort, h5)
    assert (found.slides, found.encoders, found.exit_code) == (["S1", "S2"], {"mine"}, 0)
    for slide_id in ("S1", "S2"):
        assert cohort.read("embeddings/mine", slide_id).equals(cohort.read("embeddings/stain", slide_id))
    assert list(verify_cohort(cohort)) == []


def test_second_import_changes_nothing(cohort: Cohort, h5: Path) -> None:
    run_import(cohort, h5)
    before = {path: path.stat().st_mtime_ns for path in cohort.root.rglob("*.parquet")}
    found = run_import(cohort, h5)
    assert (found.slides, found.already) == ([], ["S1", "S2"])
    assert {path: path.stat().st_mtime_ns for path in cohort.root.rglob("*.parquet")} == before


def test_new_values_replace_old_ones(cohort: Cohort, h5: Path) -> None:
    run_import(cohort, h5)
    with h5py.File(h5 / "S1.h5", "a") as file:
        file["features"][0, 0] = 42
    assert run_import(cohort, h5).slides == ["S1"]
    assert cohort.read("embeddings/mine", "S1")["embedding"][0].as_py()[0] == 42
    assert list(verify_cohort(cohort)) == []


def test_other_slides_are_imported_when_one_is_refused(cohort: Cohort, h5: Path) -> None:
    (h5 / "S1.h5").write_bytes(b"no HDF5")
    found = run_import(cohort, h5)
    assert (found.slides, list(found.failures), found.exit_code) == (["S2"], [str(h5 / "S1.h5")], 3)
    assert "mine" not in str(cohort.rows()["S1"]["files"])
    assert list(verify_cohort(cohort)) == []


def test_import_resumes_after_kill_between_table_and_row(cohort: Cohort, h5: Path) -> None:
    run_import(cohort, h5)
    left = cohort.table("embeddings/mine", "S1")
    write_row(
        cohort, {**(row := cohort.rows()["S1"]), "files": [file for file in row["files"] if "mine" not in file["path"]]}
    )
    left.write_bytes(left.read_bytes()[:100])
    assert [problem.path for problem in verify_cohort(cohort)] == [left]
    found = run_import(cohort, h5)
    assert (found.slides, found.already) == (["S1"], ["S2"])
    assert list(verify_cohort(cohort)) == []


def refusal_reason(cohort: Cohort, path: Path, **more: object) -> str:
    found = run_import(cohort, path, **more)
    assert found.exit_code == 2
    return found.failures[str(path)]


def test_file_of_an_unknown_slide_is_refused(cohort: Cohort, h5: Path) -> None:
    shutil.copy(h5 / "S1.h5", h5 / "S7.h5")
    assert "the cohort has no slide S7; ingest the slide first" in refusal_reason(cohort, h5 / "S7.h5")


def test_file_of_a_failed_slide_is_refused(cohort: Cohort, h5: Path) -> None:
    add_failed(cohort, "S3")
    shutil.copy(h5 / "S1.h5", h5 / "S3.h5")
    assert "slide S3 failed in the cohort: unreadable" in refusal_reason(cohort, h5 / "S3.h5")


def test_tiles_of_another_size_are_refused(tmp_path: Path, h5: Path) -> None:
    other = make_stored_cohort(tmp_path / "other", "S1", mpp=0.2306, dim=8)
    words = refusal_reason(other, h5 / "S1.h5")
    assert "its tiles are 448 level-0 px wide, those of the slide 486" in words
    assert "export COHORT --to clam-h5" in words


def test_encoder_of_the_plan_is_not_replaced(cohort: Cohort, h5: Path) -> None:
    words = refusal_reason(cohort, h5 / "S1.h5", encoder=None)
    assert (
        "stain is an encoder that this cohort computes itself; import under another name: --encoder stain-imported"
        in words
    )


def test_unsuitable_encoder_name_is_reported_once(cohort: Cohort, h5: Path) -> None:
    with pytest.raises(InputError, match="stain is an encoder that this cohort computes itself"):
        run_import(cohort, h5, encoder="stain")


def test_file_without_encoder_needs_a_name(cohort: Cohort, h5: Path) -> None:
    with h5py.File(h5 / "S1.h5", "a") as file:
        del file["features"].attrs["encoder"]
    assert "give --encoder NAME" in refusal_reason(cohort, h5 / "S1.h5", encoder=None)


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a" * 81, "a\n"])
def test_invalid_encoder_name_is_refused(name: str, cohort: Cohort, h5: Path) -> None:
    with h5py.File(h5 / "S1.h5", "a") as file:
        file["features"].attrs["encoder"] = name
    assert "encoder" in refusal_reason(cohort, h5 / "S1.h5", encoder=None)
    assert sorted(path.name for path in (cohort.root / "tables" / "embeddings").iterdir()) == ["stain"]


def test_length_of_a_known_encoder_is_checked(cohort: Cohort, h5: Path) -> None:
    assert "have 8 values, those of uni 1024" in refusal_reason(cohort, h5 / "S1.h5", encoder="uni")


def test_length_is_that_of_earlier_imports(cohort: Cohort, h5: Path) -> None:
    run_import(cohort, h5 / "S1.h5")
    with h5py.File(h5 / "S2.h5", "a") as file:
        values = file["features"][:, :5]
        del file["features"]
        file["features"] = values
    assert "have 5 values, those of mine 8" in refusal_reason(cohort, h5 / "S2.h5")


def test_rows_without_tile_are_counted(cohort: Cohort, h5: Path) -> None:
    with h5py.File(h5 / "S1.h5", "a") as file:
        coords, values = file["coords"][:], file["features"][:]
        del file["coords"], file["features"]
        file["coords"] = np.concatenate([coords, [[1, 1], [3, 3]]])
        file["features"] = np.concatenate([values, values[:2]])
    found = run_import(cohort, h5 / "S1.h5")
    assert found.passed == {"S1": 2}
    assert cohort.read("embeddings/mine", "S1").equals(cohort.read("embeddings/stain", "S1"))


def test_pseudonymized_slide_is_found_by_file_name_and_key(h5: Path, tmp_path: Path) -> None:
    names = Pseudonymizer(b"k" * 32)
    cohort = make_stored_cohort(tmp_path / "hidden", names.slide("S1"), dim=8)
    assert run_import(cohort, h5 / "S1.h5", names=names).slides == [names.slide("S1")]


def test_two_encoders_can_be_imported_in_one_command(cohort: Cohort, h5: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(h5 / "S1.h5", tmp_path / name)
        with h5py.File(tmp_path / name / "S1.h5", "a") as file:
            file["features"].attrs["encoder"] = name
    found = run_import(cohort, tmp_path / "one", tmp_path / "two", encoder=None)
    assert found.encoders == {"one", "two"}
    assert list(verify_cohort(cohort)) == []


def test_second_file_of_a_slide_is_refused(cohort: Cohort, h5: Path, tmp_path: Path) -> None:
    shutil.copy(h5 / "S1.h5", tmp_path)
    found = run_import(cohort, h5 / "S1.h5", tmp_path / "S1.h5")
    assert found.slides == ["S1"]
    assert "slide S1 is in another of the files, too" in found.failures[str(tmp_path / "S1.h5")]


def test_slide_with_damaged_tiles_is_refused_alone(cohort: Cohort, h5: Path) -> None:
    cohort.table("tiles", "S1").write_bytes(b"PAR1 no more")
    found = run_import(cohort, h5)
    assert found.slides == ["S2"]
    assert "the tiles of slide S1 cannot be read" in found.failures[str(h5 / "S1.h5")]


def test_slide_without_tiles_accepts_a_file_without_rows(tmp_path: Path) -> None:
    cohort = make_stored_cohort(tmp_path / "cohort", "S1", size=(100, 100))
    assert cohort.rows()["S1"]["n_tiles"] == 0
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"], file["coords"] = np.zeros((0, 8), np.float32), np.zeros((0, 2), np.int32)
    assert run_import(cohort, tmp_path / "S1.h5").slides == ["S1"]
    assert cohort.read("embeddings/mine", "S1").num_rows == 0


def test_missing_files_are_an_error(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder has no \.h5 file"):
        run_import(cohort, tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        run_import(cohort, tmp_path / "nothing.h5")


def test_locked_cohort_is_refused(cohort: Cohort, h5: Path) -> None:
    with cohort.lock(), pytest.raises(StoreError, match="is in use by"):
        run_import(cohort, h5)


@pytest.mark.slow
def test_imported_embeddings_train_and_score_like_computed_ones(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(synthetic.cohort, tmp_path / "cohort")
    cohort = Cohort(tmp_path / "cohort")
    export_cohort(Outgoing(cohort.root, "clam-h5", tmp_path / "out"))
    assert run_import(cohort, tmp_path / "out" / "features_stain" / "h5_files").exit_code == 0
    bundles = {}
    for encoder in ("stain", "mine"):
        training = Training(methods=("clam-sb",), inputs=(encoder,), folds=3, quick=True, options=("epochs=1",))
        trained = train(TrainingRequest(cohort.root, tmp_path / encoder), training, TrainingResources(workers=0))
        assert trained.exit_code == 0, trained.failed
        scored = score(cohort.root, tmp_path / encoder / "bundle", Resources(workers=0))
        assert (scored.exit_code, scored.failures) == (0, {})
        bundles[encoder] = scored.bundle
    assert "mine: not known here" in bundles["mine"].info.licence
    slide_id = next(slide_id for slide_id, row in cohort.rows().items() if row["stain"] == "her2" and row["n_tiles"])
    export_cohort(Outgoing(cohort.root, "geojson", tmp_path / "qupath", bundle=bundles["mine"].id, slides=(slide_id,)))
    assert f"Attention: her2-3way clam-sb mine ({bundles['mine'].id})" in "".join(
        path.read_text() for path in (tmp_path / "qupath").glob("*.geojson")
    )
    for slide_id, row in cohort.rows().items():
        if row["n_tiles"]:
            own, ours = (cohort.read(f"predictions/{bundle.id}", slide_id)["p"] for bundle in bundles.values())
            assert own.equals(ours)
    assert list(verify_cohort(cohort)) == []
