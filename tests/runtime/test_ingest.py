"""Ingest from end to end: real slides, small slides, Ray and the serial loop, killed and resumed."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tifffile

from her2batch.errors import InputError, StoreError
from her2batch.pipeline import worker
from her2batch.runtime.ingest import IngestRequest, IngestSummary, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Plan, Resources, RunWindow
from her2batch.store import cohort as cohort_module
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from tests.conftest import MakeSlide, tissue_image, write_slide
from tests.models.bundles import untrained

PLAIN = Resources(workers=0)


def run(scans: Path, out: Path, plan: Plan | None = None, **more: object) -> IngestSummary:
    return ingest(IngestRequest(scans, out, **more), plan or Plan(), PLAIN)


def run_without_cells(scans: Path, out: Path, **more: object) -> IngestSummary:
    return run(scans, out, Plan(cells="off"), **more)


def store_contents(cohort: Path) -> dict[str, bytes]:
    """All files whose bytes must be the same in every run."""
    files = [path for path in cohort.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path.relative_to(cohort)): path.read_bytes() for path in files if path.name != ".lock"}


def codes(summary: IngestSummary) -> dict[str, str]:
    return {row["slide_id"]: row["error_code"] for row in summary.failures}


def test_real_slides_are_done_or_fail_with_the_right_code(real_data: Path, tmp_path: Path) -> None:
    summary = run(real_data / "slides", tmp_path / "c")
    assert codes(summary) == {
        "boxes": "no-mpp",
        "tcga-cr-7395-01a-01-ts1": "no-mpp",
        "multi_frame_jpeg_camelyon_challenge_image": "no-mpp",
        "CMU-1-small": "too-coarse",
        "jpeg": "too-coarse",
    }
    done = {row["slide_id"]: row for row in summary.slides if row["status"] == "done"}
    assert done.keys() == {"CMU-1-Small-Region", "HE_example", "sm_image", "boxes_0", "small"}
    assert done["CMU-1-Small-Region"]["n_tiles"] > 50
    assert "no-tissue" in done["small"]["flags"]
    assert (summary.seen, summary.duplicate, summary.exit_code) == (11, 1, 3)
    assert list(verify_cohort(Cohort(tmp_path / "c"))) == []

    again = run(real_data / "slides", tmp_path / "c", Plan(mpp_override=0.25))
    rows = {row["slide_id"]: row for row in again.slides}
    assert rows["tcga-cr-7395-01a-01-ts1"]["mpp_source"] == "override"
    assert rows["boxes"]["status"] == "done"
    assert again.already == 7
    assert cohort_status(Cohort(tmp_path / "c")).adds_up


def test_bad_slides_fail_and_the_others_are_done(real_data: Path, tmp_path: Path, make_slide: Callable) -> None:
    good = make_slide("good.tiff")
    for path in (real_data / "bad_slides").iterdir():
        shutil.copy(path, good.parent)
    summary = run(good.parent, tmp_path / "c")
    assert codes(summary) == {
        "broken": "unreadable", "unreadable": "unreadable", "unopenable": "unreadable", "mask_test": "not-a-slide",
    }  # fmt: skip
    assert summary.done == 1
    assert all(str(good.parent) in row["error"] for row in summary.failures)


def test_ray_and_the_serial_loop_give_the_same_bytes(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    for k in range(4):
        make_slide(f"s{k}.tiff", seed=k, brown=0.2 * k, levels=1 + k % 2)
    make_slide("broken.tiff").write_bytes(b"II*\0nothing")
    scans = tmp_path / "scans"
    run(scans, tmp_path / "plain")
    ingest(IngestRequest(scans, tmp_path / "ray"), Plan(), Resources(workers=2))
    assert store_contents(tmp_path / "plain") == store_contents(tmp_path / "ray")


def test_second_run_opens_no_slide(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide()
    run(path.parent, tmp_path / "c")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "c" / "tables").rglob("*.parquet")}
    path.chmod(0)
    summary = run(path.parent, tmp_path / "c")
    assert (summary.already, summary.done, summary.exit_code) == (1, 1, 0)
    after = {file: file.stat().st_mtime_ns for file in before}
    assert {file for file in before if before[file] != after[file]} == {Cohort(tmp_path / "c").intake}


def test_changed_slide_is_processed_again_under_its_id(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide(size=(1400, 1200))
    first = run(path.parent, tmp_path / "c").slides[0]
    time.sleep(0.01)
    make_slide(size=(1500, 1200), seed=5)
    second = run(path.parent, tmp_path / "c").slides[0]
    assert (first["slide_id"], first["width"]) == ("a", 1400)
    assert (second["slide_id"], second["width"]) == ("a", 1500)
    assert list(verify_cohort(Cohort(tmp_path / "c"))) == []


def test_touched_slide_is_recognised_by_its_content(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide()
    run(path.parent, tmp_path / "c")
    path.touch()
    assert run(path.parent, tmp_path / "c").already == 1


def test_slides_of_one_name_and_copies_get_ids(tmp_path: Path, make_slide: Callable) -> None:
    first = make_slide("x/a.tiff", seed=1)
    make_slide("y/A.tiff", seed=2)
    for name in ("b.tiff", "c.tiff"):
        shutil.copy(first, tmp_path / "scans" / name)
    summary = run(tmp_path / "scans", tmp_path / "c")
    ids = sorted(row["slide_id"] for row in summary.slides)
    assert len(ids) == 2
    assert len({one.lower() for one in ids}) == 2
    assert (summary.seen, summary.done, summary.duplicate) == (4, 2, 2)
    assert cohort_status(Cohort(tmp_path / "c")).adds_up


def test_damaged_store_is_repaired(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide(brown=0.3)
    run(path.parent, tmp_path / "c")
    before = store_contents(tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    cohort.table("tiles", "a").unlink()
    assert [problem.slide_id for problem in verify_cohort(cohort)] == ["a"]
    run(path.parent, tmp_path / "c")
    assert store_contents(tmp_path / "c") == before


def test_damage_of_the_same_size_is_repaired_after_verify(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide(brown=0.3)
    make_slide("b.tiff", seed=2, size=(900, 900))
    run(path.parent, tmp_path / "c")
    before = store_contents(tmp_path / "c")
    cohort = Cohort(tmp_path / "c")
    data = bytearray(cohort.table("tiles", "a").read_bytes())
    data[len(data) // 2] ^= 1
    cohort.table("tiles", "a").write_bytes(data)
    assert [problem.slide_id for problem in verify_cohort(cohort)] == ["a"]
    assert cohort.damaged_slides() == {"a"}
    assert run(path.parent, tmp_path / "c").already == 1
    assert store_contents(tmp_path / "c") == before
    assert cohort.damaged_slides() == set()
    assert run(path.parent, tmp_path / "c").already == 2


def test_resume_after_kill_gives_identical_tables(tmp_path: Path, make_slide: Callable) -> None:
    for k in range(3):
        make_slide(f"s{k}.tiff", seed=k, brown=0.1 * k)
    scans = tmp_path / "scans"
    run(scans, tmp_path / "whole")
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(scans), "--out", str(tmp_path / "c")]
    process = subprocess.Popen([*command, "--workers", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # one slide is done
    process.kill()
    process.communicate()
    assert len(Cohort(tmp_path / "c").rows()) < 3
    summary = run(scans, tmp_path / "c")
    assert summary.done == 3
    assert store_contents(tmp_path / "c") == store_contents(tmp_path / "whole")
    assert not list((tmp_path / "c").glob(".draft-*"))


def test_moved_and_archived_slides_keep_their_rows(tmp_path: Path, make_slide: Callable) -> None:
    scans, cohort = make_slide("a.tiff").parent, Cohort(tmp_path / "c")
    make_slide("b.tiff", seed=1)
    sheet = tmp_path / "labels.csv"
    sheet.write_text("slide_id,patient_id\nrenamed,P1\n")  # the label has the new name
    assert run(scans, cohort.root).done == 2
    before = store_contents(cohort.root)
    (scans / "2026").mkdir()
    (scans / "a.tiff").rename(scans / "2026" / "renamed.tiff")
    summary = run(scans, cohort.root)
    assert (summary.already, summary.moved, summary.fresh, summary.exit_code) == (2, ["a"], [], 0)
    row = cohort.rows()["a"]
    assert row["path"] == str(scans / "2026" / "renamed.tiff")
    changed = {name for name, data in store_contents(cohort.root).items() if before.get(name) != data}
    assert changed == {"tables/slides/a.parquet"}
    assert run(scans, cohort.root, labels=sheet).relabelled == ["a"]
    (scans / "b.tiff").unlink()
    summary = run(scans, cohort.root)
    assert (summary.seen, summary.done, summary.archived, summary.exit_code) == (1, 1, 1, 0)
    status = cohort_status(cohort)
    assert (status.done, status.failed, status.archived, status.unreachable, status.strays) == (2, 0, 1, 0, [])
    assert status.adds_up
    shutil.rmtree(scans / "2026")
    assert run(scans, cohort.root).unreachable == 1
    assert (cohort_status(cohort).archived, cohort_status(cohort).unreachable) == (1, 1)
    assert list(verify_cohort(cohort)) == []


def test_second_ingest_is_refused_during_a_run(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide()
    run(path.parent, tmp_path / "c")
    with Cohort(tmp_path / "c").lock(), pytest.raises(StoreError, match=r"in use by host .*, pid"):
        run(path.parent, tmp_path / "c")


def test_missing_scan_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "c")


def test_pseudonymized_cohort_contains_no_name(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("Jane Doe 1970.tiff", brown=0.3)
    make_slide("Jane Doe broken.tiff").write_bytes(b"II*\0")
    (tmp_path / "scans" / "Jane Doe notes.txt").write_text("x")
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id,her2\nJane Doe 1970,Doe-Jane,3+\n")
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    summary = run(tmp_path / "scans", tmp_path / "c", key=key, labels=labels)
    assert (summary.done, summary.failed, summary.ignored) == (1, 1, 1)
    assert next(row for row in summary.slides if row["status"] == "done")["patient_id"].startswith("p")
    for name, data in store_contents(tmp_path / "c").items():
        assert "Doe" not in name
        assert b"Doe" not in data, name
    runs = Cohort(tmp_path / "c").runs
    assert not [path for path in runs.rglob("*") if b"Doe" in path.read_bytes()]
    assert run(tmp_path / "scans", tmp_path / "c", key=key).already == 2


def test_labels_are_written_to_the_rows(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide("a.tiff", brown=0.3)
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id,her2,stain\na,P1,2+,her2\n")
    row = run(path.parent, tmp_path / "c", labels=labels).slides[0]
    assert (row["patient_id"], row["stain"]) == ("P1", "her2")
    found = Cohort(tmp_path / "c").read("predictions/membrane", "a").to_pylist()
    assert {one["task"] for one in found} == {"her2-4way", "her2-3way", "her2-binary"}
    assert {one["patient_id"] for one in found} == {"P1"}


LABELS = """slide_id,patient_id,her2,er,stain
her2,P1,3+,,her2
er,P2,,+,er
patient,P3,0,,
ihc,,0,,ihc
broken,P5,3+,,her2
"""


class Relabelled(NamedTuple):
    """Slides that change with their labels in all ways, one that is not labelled and one that fails.

    first: ingested with the labels.  plain: ingested without.
    """

    scans: Path
    labels: Path
    first: Path
    plain: Path


@pytest.fixture(scope="module")
def relabelled(tmp_path_factory: pytest.TempPathFactory) -> Relabelled:
    """Tests do not change the cohorts; they copy them."""
    folder = tmp_path_factory.mktemp("relabelled")
    (folder / "scans").mkdir()
    for seed, name in enumerate(("her2", "er", "patient", "ihc", "unnamed")):
        write_slide(folder / "scans" / f"{name}.tiff", tissue_image(1100, 1000, seed=seed, brown=0.3))
    (folder / "scans" / "broken.tiff").write_bytes(b"II*\0")
    (folder / "labels.csv").write_text(LABELS)
    found = Relabelled(folder / "scans", folder / "labels.csv", folder / "first", folder / "plain")
    run_without_cells(found.scans, found.first, labels=found.labels)
    run_without_cells(found.scans, found.plain)
    plain = Cohort(found.plain)
    assert {row["stain"] for row in plain.rows().values()} == {"ihc", None}
    assert all(plain.read("predictions/membrane", name).num_rows == 3 for name in ("her2", "er", "patient", "ihc"))
    return found


@pytest.fixture
def later(relabelled: Relabelled, tmp_path: Path) -> Path:
    """A cohort that was ingested without labels."""
    return Path(shutil.copytree(relabelled.plain, tmp_path / "later"))


def test_labels_given_later_give_the_bytes_of_labels_given_first(
    relabelled: Relabelled, later: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_contents(relabelled.first)
    changed = {name for name, data in first.items() if store_contents(later).get(name) != data}
    assert all(name.startswith(("tables/slides", "tables/pieces", "tables/predictions", "labels")) for name in changed)
    monkeypatch.setattr(worker, "open_slide", None)  # no slide is read again
    times = {path: path.stat().st_mtime_ns for path in later.rglob("*") if path.is_file()}
    summary = run_without_cells(relabelled.scans, later, labels=relabelled.labels)
    assert (summary.fresh, summary.relabelled) == ([], ["broken", "er", "her2", "ihc", "patient"])
    assert store_contents(later) == first
    assert list(verify_cohort(Cohort(later))) == []
    untouched = [path for path in times if path.name.startswith("unnamed")]
    assert len(untouched) > 5
    assert all(path.stat().st_mtime_ns == times[path] for path in untouched)


def test_labels_given_later_reach_the_predictions_of_the_bundle(relabelled: Relabelled, tmp_path: Path) -> None:
    bundle = untrained(tmp_path / "bundle")
    run_without_cells(relabelled.scans, tmp_path / "first", labels=relabelled.labels, bundle=bundle.path)
    run_without_cells(relabelled.scans, tmp_path / "later", bundle=bundle.path)
    assert Cohort(tmp_path / "later").table(f"attention/{bundle.id}", "er").exists()
    summary = run_without_cells(relabelled.scans, tmp_path / "later", labels=relabelled.labels, bundle=bundle.path)
    assert summary.fresh == []
    assert store_contents(tmp_path / "later") == store_contents(tmp_path / "first")
    assert not Cohort(tmp_path / "later").table(f"attention/{bundle.id}", "er").exists()


def test_labels_are_applied_once(relabelled: Relabelled, tmp_path: Path) -> None:
    out = Path(shutil.copytree(relabelled.first, tmp_path / "c"))
    times = {path: path.stat().st_mtime_ns for path in (out / "tables").rglob("*.parquet") if "runs" not in path.parts}
    for labels in (relabelled.labels, None):
        assert run_without_cells(relabelled.scans, out, labels=labels).relabelled == []
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_corrected_labels_reach_the_slides(relabelled: Relabelled, tmp_path: Path) -> None:
    labels, first, later = tmp_path / "labels.csv", tmp_path / "first", tmp_path / "later"
    labels.write_text(LABELS.replace("her2,P1,3+,,her2", "her2,P9,,-,er").replace("er,P2,,+,er", "er,P2,1+,,her2"))
    run_without_cells(relabelled.scans, first, labels=labels)
    shutil.copytree(relabelled.first, later)
    summary = run_without_cells(relabelled.scans, later, labels=labels)
    assert (summary.fresh, summary.relabelled) == ([], ["er", "her2"])
    assert store_contents(later) == store_contents(first)


def test_empty_labels_change_nothing(relabelled: Relabelled, tmp_path: Path) -> None:
    """The labels of one night, or a file with ISH results alone, remove no patient."""
    out = Path(shutil.copytree(relabelled.first, tmp_path / "c"))
    (tmp_path / "labels.csv").write_text("slide_id,ish\nher2,+\n")
    run_without_cells(relabelled.scans, out, labels=tmp_path / "labels.csv")
    before, after = store_contents(relabelled.first), store_contents(out)
    assert before.pop("labels.parquet") != after.pop("labels.parquet")
    assert after == before


@pytest.mark.parametrize("survives", [0, 1, 3])
def test_labels_half_applied_by_a_crash_are_completed(
    relabelled: Relabelled, later: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    """The process ends between the tables of a slide and its row."""
    written: list[str] = []
    write = cohort_module.write_row

    def crash(cohort: Cohort, row: dict) -> None:
        if len(written) == survives:
            raise KeyboardInterrupt
        written.append(row["slide_id"])
        write(cohort, row)

    with monkeypatch.context() as patch:
        patch.setattr(cohort_module, "write_row", crash)
        with pytest.raises(KeyboardInterrupt):
            run_without_cells(relabelled.scans, later, labels=relabelled.labels)
    assert len(written) == survives
    assert run_without_cells(relabelled.scans, later).fresh == []
    assert store_contents(later) == store_contents(relabelled.first)
    assert list(verify_cohort(Cohort(later))) == []


def test_slide_with_damaged_tables_is_processed_with_its_new_labels(relabelled: Relabelled, later: Path) -> None:
    path = Cohort(later).table("membrane", "her2")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    assert run_without_cells(relabelled.scans, later, labels=relabelled.labels).fresh == ["her2"]
    assert store_contents(later) == store_contents(relabelled.first)


def test_labels_of_another_marker_measure_the_cells_again(tmp_path: Path, make_slide: Callable) -> None:
    """Nuclei are measured in place of membranes, which needs the slide's pixels, unlike all other labels."""
    scans = make_slide("er.tiff", brown=0.3).parent
    (tmp_path / "labels.csv").write_text("slide_id,er,stain\ner,+,er\n")
    run(scans, tmp_path / "first", labels=tmp_path / "labels.csv")
    run(scans, tmp_path / "later")
    summary = run(scans, tmp_path / "later", labels=tmp_path / "labels.csv")
    assert (summary.fresh, summary.relabelled) == (["er"], ["er"])
    assert store_contents(tmp_path / "later") == store_contents(tmp_path / "first")


def test_every_table_can_be_read_with_a_glob(tmp_path: Path, make_slide: Callable) -> None:
    import duckdb
    import pandas as pd

    for k in range(2):
        make_slide(f"s{k}.tiff", seed=k, brown=0.3)
    run(tmp_path / "scans", tmp_path / "c")
    for name in Cohort(tmp_path / "c").table_names():
        pattern = str(tmp_path / "c" / "tables" / name / "*.parquet")
        assert duckdb.sql(f"select count(*) from '{pattern}'").fetchall()[0][0] >= 2
        assert len(pd.concat(pd.read_parquet(file) for file in Path(pattern).parent.glob("*.parquet"))) >= 2


def test_blank_hole_inside_tissue_fails_the_slide(tmp_path: Path) -> None:
    image = tissue_image(2000, 2000, brown=0.4)
    image[750:1250, 750:1250] = 255  # 0.016 mm²: the tissue mask closes over it
    (tmp_path / "scans").mkdir()
    write_slide(tmp_path / "scans" / "a.tiff", image)
    summary = run(tmp_path / "scans", tmp_path / "c", Plan(min_tissue=0.0, tile=64))
    assert codes(summary) == {"a": "blank-tiles"}


def test_json_is_one_object_on_stdout(tmp_path: Path, make_slide: Callable) -> None:
    path = make_slide()
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(path.parent), "--out", str(tmp_path / "c")]
    done = subprocess.run([*command, "--workers", "0", "--json"], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["done"] == 1


def wrap_core(path: Path, rgb: np.ndarray) -> None:
    """Write a core as a tiled JPEG pyramid at 0.25 µm/px that stores RGB under a tag that says YCbCr."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for k in range(5):
            level = cv2.resize(rgb, None, fx=0.5**k, fy=0.5**k, interpolation=cv2.INTER_AREA) if k else rgb
            tiff.write(
                level, tile=(256, 256), photometric="ycbcr", compression="jpeg", compressionargs={"level": 90},
                metadata=None, subfiletype=int(k > 0), resolution=(40_000 / 2**k,) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip


@pytest.mark.slow
def test_membrane_rule_orders_the_cores_as_slides(real_data: Path, tmp_path: Path) -> None:
    """0 < 1+ ≤ 2+ < 3+, and 3+ is called 3+. No threshold was fitted to these five."""
    scans = tmp_path / "cores"
    scans.mkdir()
    for jpg in sorted((real_data / "her2_cores").glob("*.jpg")):
        wrap_core(scans / f"{jpg.stem}.tiff", cv2.cvtColor(cv2.imread(str(jpg)), cv2.COLOR_BGR2RGB))
    summary = run(scans, tmp_path / "c")
    found: dict[str, list[dict]] = {}
    for row in summary.slides:
        assert "colour-tag-mended" in row["flags"]
        rows = Cohort(tmp_path / "c").read("predictions/membrane", row["slide_id"]).to_pylist()
        found.setdefault(row["slide_id"][0], []).append(next(one for one in rows if one["task"] == "her2-4way"))
    score = {ihc: [one["score"] for one in rows] for ihc, rows in found.items()}
    assert score["0"][0] < score["1"][0] <= min(score["2"]) <= max(score["2"]) < score["3"][0]
    assert found["3"][0]["predicted"] == "3+"


@pytest.mark.slow
def test_cucim_is_loaded_before_the_heads_of_a_bundle(make_slide: MakeSlide, tmp_path: Path) -> None:
    scans = make_slide("a.tiff").parent
    bundle = untrained(tmp_path / "bundle")
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(scans), "--out", str(tmp_path / "c")]
    more = ["--workers", "0", "--reader", "cucim", "--bundle", str(bundle.path), "--quiet"]
    run = subprocess.run([*command, *more], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert Cohort(tmp_path / "c").rows()["a"]["reader"] == "cucim"


def test_missing_slides_of_a_project_are_listed_and_change_the_exit_code(tmp_path: Path, make_slide: Callable) -> None:
    slide = make_slide("a.tiff", size=(600, 500))
    images = [{"serverBuilder": {"uri": f"file:{path}"}} for path in (slide, tmp_path / "gone.svs")]
    project = tmp_path / "project.qpproj"
    project.write_text(json.dumps({"images": images}))
    summary = run(project, tmp_path / "c")
    assert (summary.seen, summary.done, summary.ignored, summary.exit_code) == (2, 1, 1, 3)
    (text,) = summary.missing
    assert text.startswith(f"{tmp_path / 'gone.svs'}: there is no such file, but project.qpproj lists it; copy the")
    with pytest.raises(InputError, match="only a folder can be watched"):
        ingest(IngestRequest(project, tmp_path / "c"), Plan(), Resources(workers=0), window=RunWindow(watch=True))


def write_regions(folder: Path, name: str, *regions: tuple[str, int, int, int, int]) -> Path:
    """Write regions as QuPath exports them: class, left, top, right, bottom in level-0 px."""
    features = []
    for label, left, top, right, bottom in regions:
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        properties = {"objectType": "annotation", "classification": {"name": label}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return folder / name


def test_tiles_lie_in_regions_and_everything_says_so(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff", size=(1600, 1400), seed=1, brown=0.5)
    for name in ("b.tiff", "c.tiff", "d.tiff"):
        make_slide(name, size=(1100, 900), seed=ord(name[0]), brown=0.5)
    regions = tmp_path / "regions"
    write_regions(regions, "a.tiff.geojson", ("Tumor", 0, 0, 800, 1400), ("DCIS", 0, 0, 800, 700))
    write_regions(regions, "b.geojson", ("Stroma", 0, 0, 300, 500))
    write_regions(regions, "d.geojson", ("Tumor", 0, 0, 20, 20))
    write_regions(regions, "x.geojson")
    summary = run(tmp_path / "scans", tmp_path / "c", regions=regions)
    rows = {row["slide_id"]: row for row in summary.slides}
    assert (summary.done, summary.failed, summary.unused_regions) == (3, 1, ["x.geojson: no slide has this name"])
    assert [rows[key]["flags"][-1] for key in "abc"] == ["regions", "no-regions", "no-regions"]
    assert rows["a"]["region_mm2"] == pytest.approx(rows["a"]["tissue_mm2"] / 4, rel=0.1)
    assert rows["d"]["error_code"] == "bad-regions"
    assert "hold no tissue" in rows["d"]["error"]
    cohort = Cohort(tmp_path / "c")
    tiles = cohort.read("tiles", "a").to_pylist()
    assert tiles
    assert all(tile["x"] < 800 and tile["y"] + tile["size"] > 700 for tile in tiles)
    reasons = {key: cohort.read("predictions/membrane", key)["reasons"].to_pylist()[0] for key in "abc"}
    assert all(("regions" if key == "a" else "no-regions") in reasons[key] for key in "abc")
    assert list(verify_cohort(cohort)) == []


def test_only_slides_whose_regions_changed_are_processed_again(tmp_path: Path, make_slide: Callable) -> None:
    for name in ("a.tiff", "b.tiff"):
        make_slide(name, size=(900, 800), seed=ord(name[0]))
    scans, regions, out = tmp_path / "scans", tmp_path / "regions", tmp_path / "c"
    for name in ("a", "b"):
        write_regions(regions, f"{name}.geojson", ("Tumor", 0, 0, 900, 800))
    assert run(scans, out, regions=regions).fresh == ["a", "b"]
    assert run(scans, out, regions=regions).fresh == []
    write_regions(regions, "a.geojson", ("Invasive", 0, 0, 600, 800))
    assert run(scans, out, regions=regions).fresh == ["a"]
    write_regions(regions, "b.geojson").write_text(
        '[{"geometry": {"type": "Polygon"}, "properties": {"name": "Tumor"}}]'
    )
    summary = run(scans, out, regions=regions)
    assert (summary.fresh, codes(summary)) == (["b"], {"b": "bad-regions"})
    assert "feature 1 (Tumor) cannot be read" in summary.failures[0]["error"]
    with pytest.raises(InputError, match=r"restricts tiles to regions \(Tumor, Invasive\).*--regions"):
        run(scans, out)


def test_regions_on_a_finished_cohort_are_a_changed_plan(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff", size=(900, 800))
    run(tmp_path / "scans", tmp_path / "c")
    write_regions(tmp_path / "regions", "a.geojson", ("Tumor", 0, 0, 900, 800))
    with pytest.raises(InputError, match=r"include_regions none → Tumor, Invasive.*--replan"):
        run(tmp_path / "scans", tmp_path / "c", regions=tmp_path / "regions")
    assert run(tmp_path / "scans", tmp_path / "c", regions=tmp_path / "regions", replan=True).fresh == ["a"]


def test_classes_of_regions_can_be_chosen(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff", size=(1200, 800))
    write_regions(tmp_path / "regions", "a.geojson", ("Stroma", 0, 0, 600, 800), ("Tumor", 600, 0, 1200, 800))
    plan = Plan(include_regions=("stroma",))
    run(tmp_path / "scans", tmp_path / "c", plan, regions=tmp_path / "regions")
    assert max(Cohort(tmp_path / "c").read("tiles", "a")["x"].to_pylist()) < 600
    assert Cohort(tmp_path / "c").plan() == plan
