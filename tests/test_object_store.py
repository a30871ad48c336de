"""A cohort on an object store, an S3 server on loopback, has the bytes of a local cohort."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow.dataset
import pytest
import zarr
from moto.server import ThreadedMotoServer

from her2batch.errors import InputError, StoreError
from her2batch.exchange.incoming import ImportRequest as Incoming
from her2batch.exchange.incoming import import_embeddings
from her2batch.exchange.outgoing import ExportRequest as Outgoing
from her2batch.exchange.outgoing import export_cohort
from her2batch.files.locations import to_location
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.score import score
from her2batch.settings import Plan, Resources
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.store.erase import erase, files_naming
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.reviews import Review, append_review
from her2batch.web.catalog import Catalog
from tests.conftest import Synthetic
from tests.exchange.stored_examples import make_stored_cohort
from tests.models.bundles import untrained
from tests.runtime.test_ingest import store_contents

TEST_KEY = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in {**TEST_KEY, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    name = "b" + tmp_path.name.replace("_", "-").lower()[-50:]
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def scans(synthetic: Synthetic, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in sorted(synthetic.scans.iterdir())[:2]:
        shutil.copy(path, folder)
    return folder


def fetched(root: str, into: Path) -> dict[str, bytes]:
    """Download everything under a prefix, and return it as `contents` does for a folder."""
    far = to_location(root)
    far.fs.invalidate_cache()
    far.fs.get(str(far), str(into), recursive=True)
    return store_contents(into)


@pytest.mark.slow
def test_ingest_to_object_store_gives_the_files_of_a_local_one(bucket: str, scans: Path, tmp_path: Path) -> None:
    plan = Plan(cells="off")
    assert ingest(IngestRequest(scans, tmp_path / "here"), plan, Resources(workers=0)).done == 2
    order = IngestRequest(scans, to_location(f"{bucket}/cohort"))
    summary = ingest(order, plan, Resources(workers=0))
    assert (summary.done, summary.exit_code) == (2, 0)
    cohort = Cohort(to_location(f"{bucket}/cohort"))
    assert list(verify_cohort(cohort)) == []
    assert cohort_status(cohort).adds_up
    again = ingest(order, plan, Resources(workers=0))
    assert (again.already, again.fresh) == (2, [])
    assert not cohort.draft_root.exists()
    assert fetched(f"{bucket}/cohort", tmp_path / "there") == store_contents(tmp_path / "here")


@pytest.mark.long
def test_killed_ingest_to_object_store_resumes(bucket: str, scans: Path, synthetic: Synthetic, tmp_path: Path) -> None:
    for path in sorted(synthetic.scans.iterdir())[2:4]:
        shutil.copy(path, scans)
    command = [
        sys.executable,
        "-m",
        "her2batch.cli",
        "ingest",
        str(scans),
        "--out",
        f"{bucket}/cohort",
        "--workers",
        "1",
    ]
    cohort = Cohort(to_location(f"{bucket}/cohort"))
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not cohort.rows():
        assert killed.poll() is None
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    found = json.loads(run.stdout)
    assert (found["done"], found["exit_code"]) == (4, 0), run.stderr
    assert not cohort.draft_root.exists()  # what the killed run left here is gone too
    assert list(verify_cohort(cohort)) == []
    ingest(IngestRequest(scans, tmp_path / "here"), Plan(), Resources(workers=0))
    assert fetched(f"{bucket}/cohort", tmp_path / "there") == store_contents(tmp_path / "here")


@pytest.mark.long
def test_changed_slide_and_damaged_object_are_ingested_again(bucket: str, scans: Path, synthetic: Synthetic) -> None:
    order = IngestRequest(scans, to_location(f"{bucket}/cohort"))
    ingest(order, Plan(), Resources(workers=0))
    cohort = Cohort(order.out)
    first, second = sorted(cohort.rows())[:2]
    shutil.copy(sorted(synthetic.scans.iterdir())[7], scans / f"{first}.svs")
    table = cohort.table("tiles", second)
    data = table.read_bytes()
    table.write_bytes(data[:-9] + bytes(9))
    assert [one.slide_id for one in verify_cohort(cohort)] == [second]
    summary = ingest(order, Plan(), Resources(workers=0))
    assert summary.fresh == [first, second]
    assert table.read_bytes() == data
    assert list(verify_cohort(cohort)) == []


@pytest.mark.slow
def test_pyramids_and_tables_are_read_from_object_store(bucket: str, scans: Path, tmp_path: Path) -> None:
    for root in (tmp_path / "here", to_location(f"{bucket}/cohort")):
        ingest(IngestRequest(scans, root), Plan(), Resources(workers=0))
    here, there = Cohort(tmp_path / "here"), Cohort(to_location(f"{bucket}/cohort"))
    slide_id = sorted(here.rows())[0]
    with Pyramid(here.pyramid(slide_id)) as a, Pyramid(there.pyramid(slide_id)) as b:
        box = Box(300, 200, 600, 500)
        np.testing.assert_array_equal(a.read(box), b.read(box))
    far = zarr.open_group(str(there.pyramid(slide_id)), mode="r")
    near = zarr.open_group(str(here.pyramid(slide_id)), mode="r")
    np.testing.assert_array_equal(far["0"][:, 300:600, 300:600], near["0"][:, 300:600, 300:600])
    fs = there.root.fs
    tiles = pyarrow.dataset.dataset(str(there.root / "tables" / "tiles").removeprefix("s3://"), filesystem=fs)
    assert tiles.count_rows() == sum(row["n_tiles"] for row in there.rows().values())


@pytest.mark.slow
def test_bundle_scores_a_cohort_on_object_store(bucket: str, scans: Path, tmp_path: Path) -> None:
    order = IngestRequest(scans, to_location(f"{bucket}/cohort"))
    ingest(order, Plan(), Resources(workers=0))
    bundle = untrained(tmp_path / "bundle")
    found = score(order.out, bundle.path, Resources(workers=0))
    assert (found.scored, found.failures) == (2, {})
    assert list(verify_cohort(Cohort(order.out))) == []
    assert score(order.out, bundle.path, Resources(workers=0)).already == 2


@pytest.mark.long
def test_patient_is_removed_from_object_store(bucket: str, scans: Path, synthetic: Synthetic) -> None:
    order = IngestRequest(scans, to_location(f"{bucket}/cohort"), labels=synthetic.labels)
    ingest(order, Plan(), Resources(workers=0))
    cohort = Cohort(order.out)
    row = next(iter(cohort.rows().values()))
    for night, text in (("20260101-190000", row["slide_id"]), ("20260102-190000", "others")):
        (cohort.nights / night / "report.html").write_text(text)
    found = erase(cohort, row["patient_id"], Pseudonymizer())
    assert row["slide_id"] in found.slides
    assert (found.left, found.nights) == ([], ["20260101-190000"])
    cohort.root.fs.invalidate_cache()
    assert list(files_naming(cohort.root, {row["patient_id"], *found.slides})) == []
    assert [one.name for one in cohort.nights.iterdir()] == ["20260102-190000"]
    assert list(verify_cohort(cohort)) == []
    assert ingest(order, Plan(), Resources(workers=0)).fresh == []


@pytest.mark.long
def test_web_page_reads_and_reviews_on_object_store(bucket: str, scans: Path) -> None:
    root = to_location(f"{bucket}/cohort")
    ingest(IngestRequest(scans, root), Plan(), Resources(workers=0))
    cohort = Cohort(root)
    catalog = Catalog(cohort)
    slide_id = next(one for one in sorted(catalog.rows()) if catalog.predictions(one))
    assert catalog.tile(slide_id, catalog.deep_zoom(slide_id).max_level - 1, 1, 1).startswith(b"\xff\xd8")
    said = catalog.predictions(slide_id)[0]
    for _ in range(2):
        names = {name: said[name] for name in ("bundle", "task", "method", "predicted")}
        review = Review("A", slide_id, **names, verdict="agree", label=said["predicted"])
        number = append_review(cohort, review)["number"]
        assert [one["number"] for one in catalog.reviews()] == list(range(1, number + 1))
    assert list(verify_cohort(cohort)) == []


@pytest.mark.slow
def test_one_writer_at_a_time_and_a_dead_lock_expires(bucket: str) -> None:
    cohort = Cohort(to_location(f"{bucket}/cohort"))
    cohort.create(Plan())
    with cohort.lock(), pytest.raises(StoreError, match=f"pid {os.getpid()}"), cohort.lock():
        pass
    lock = cohort.root / ".lock"
    assert not lock.exists()
    with cohort.lock():
        kept = lock.read_text()
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock.write_text(kept.replace(f"pid {os.getpid()}", f"pid {gone.pid}"))  # of this start of this machine
    with cohort.lock():
        assert f"pid {os.getpid()}" in lock.read_text()
    lock.write_text("host elsewhere, pid 7, since 2026-01-01T00:00:00Z, boot x")
    with pytest.raises(StoreError, match=r"host elsewhere, pid 7.*delete the object"), cohort.lock():
        pass


@pytest.mark.slow
def test_unusable_object_store_is_reported(bucket: str, scans: Path) -> None:
    for name, words in (("s3://user:secret@bucket/x", "credentials"), ("gopher://x/y", "can't be reached")):
        with pytest.raises(InputError, match=words) as told:
            to_location(name)
        assert "secret" not in str(told.value)
    with pytest.raises(StoreError, match="can't be"):
        ingest(IngestRequest(scans, to_location("s3://there-is-no-such-bucket/x")), Plan(), Resources(workers=0))


@pytest.mark.slow
def test_exports_and_imports_equal_those_of_a_local_cohort(bucket: str, tmp_path: Path) -> None:
    cohorts = {
        "here": make_stored_cohort(tmp_path / "cohort", "S1"),
        "far": make_stored_cohort(to_location(f"{bucket}/cohort"), "S1"),
    }
    for where, cohort in cohorts.items():
        for to in ("clam-h5", "geojson", "csv"):
            assert export_cohort(Outgoing(cohort.root, to, tmp_path / where / to)).exit_code == 0
        features = tmp_path / where / "clam-h5" / "features_stain" / "h5_files"
        assert import_embeddings(Incoming(cohort.root, (features,), "mine"), lambda _: None).slides == ["S1"]
        assert list(verify_cohort(cohort)) == []
    assert store_contents(tmp_path / "here") == store_contents(tmp_path / "far")
    with pytest.raises(InputError, match="folder of this machine"):
        export_cohort(Outgoing(cohorts["here"].root, "csv", to_location(f"{bucket}/out")))
