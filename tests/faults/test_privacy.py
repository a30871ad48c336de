"""No name, date, barcode, path or label image of the source is in anything that a pseudonymized cohort writes."""

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from her2batch.errors import InputError
from her2batch.exchange.outgoing import ExportRequest as Export
from her2batch.exchange.outgoing import export_cohort
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from her2batch.store.pseudonyms import Pseudonymizer
from tests.faults import phi_markers
from tests.faults.phi_markers import find_leaks, find_markers, marker

KEEP_RAYS_FOLDER = """
import os, shutil, sys
from pathlib import Path
away, rmtree = sys.argv.pop(1), shutil.rmtree
def keep(path, *args, **more):
    if Path(path).name.startswith(f"h2b-{os.getpid()}-"):
        sockets = lambda folder, names: [one for one in names if Path(folder, one).is_socket()]
        shutil.copytree(path, away, ignore=sockets, dirs_exist_ok=True)
    rmtree(path, *args, **more)
shutil.rmtree = keep
"""
ROOT = Path(__file__).parents[2]
SCANS = marker("scans")
MAIN = "\nfrom her2batch.cli.app import main\nmain()\n"


@dataclass
class MarkedScans:
    """A folder with marked scans, and what commands write: cohort, logs, temporary files, Ray's session."""

    root: Path
    labels: list[bytes] = field(default_factory=list)

    def run(
        self, name: str, *arguments: str, fault: str = "", enough: Callable[[], bool] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line in a separate process, and keep its output and Ray's folder.

        enough: when it is told to stop.
        """
        away = self.root / "made" / "ray" / name
        (self.root / "made" / "tmp").mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "TMPDIR": str(self.root / "made" / "tmp"), "COLUMNS": "300"}
        command = [sys.executable, "-c", KEEP_RAYS_FOLDER + fault + MAIN, str(away), *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, cwd=self.root) as process:
            while enough is not None and not enough() and process.poll() is None:
                time.sleep(0.2)
            if enough is not None:
                process.terminate()
            try:
                out, err = process.communicate(timeout=200)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        for kind, text in (("stdout", out), ("stderr", err)):
            (self.root / "made" / f"{name}.{kind}").write_text(text)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def ingest(self, name: str, *more: str, cohort: str = "cohort", fault: str = "") -> subprocess.CompletedProcess:
        given = ("--out", f"made/{cohort}", "--pseudonymize", "key", "--tile", "64", "--labels", "labels.csv")
        return self.run(name, "ingest", SCANS, *given, *more, fault=fault)


@pytest.fixture(scope="module")
def marked_scans(tmp_path_factory: pytest.TempPathFactory) -> MarkedScans:
    made = MarkedScans(tmp_path_factory.mktemp("marked"))
    made.labels = phi_markers.write_marked_slides(made.root / SCANS)
    phi_markers.write_labels(made.root / "labels.csv")
    key = made.root / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    return made


@pytest.fixture(scope="module")
def ingested(marked_scans: MarkedScans) -> subprocess.CompletedProcess[str]:
    """Ingest all marked scans with pseudonyms into made/cohort."""
    return marked_scans.ingest("ingest", "--json", "--workers", "1")


@pytest.fixture(scope="module")
def open_cohort(marked_scans: MarkedScans, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of the same slides without pseudonyms."""
    out = tmp_path_factory.mktemp("named") / "cohort"
    given = ("--out", str(out), "--workers", "0", "--tile", "64", "--labels", "labels.csv", "--json")
    assert marked_scans.run("open", "ingest", SCANS, *given).returncode == 3
    (marked_scans.root / "made" / "open.stdout").unlink()
    (marked_scans.root / "made" / "open.stderr").unlink()
    return out


@pytest.mark.slow
def test_search_finds_every_marker_of_an_open_cohort(marked_scans: MarkedScans, open_cohort: Path) -> None:
    """The source and a cohort without pseudonyms are full of markers; otherwise finding none would prove nothing."""
    found = set().union(*find_leaks(marked_scans.root / SCANS, tuple(marked_scans.labels)).values())
    assert len(found) > 45
    assert repr(marked_scans.labels[0]) in found
    assert (
        find_markers("QXJwideZYK".encode("utf-16-le"))
        == {"QXJwideZYK"}
        == find_markers("QXJwideZYK".encode("utf-16-be"))
    )
    kept = set().union(*find_leaks(open_cohort).values())
    assert {marker("aperio"), marker("folder"), marker("nompp"), marker("archive")} <= kept
    silent = {
        marker("user"),
        marker("artist"),
        marker("comment"),
        marker("exif"),
        marker("profile"),
        marker("patientname"),
    }
    assert not kept & (silent | {"label image"})


@pytest.mark.slow
def test_pseudonymized_ingest_leaks_no_marker(
    marked_scans: MarkedScans, ingested: subprocess.CompletedProcess[str]
) -> None:
    found = json.loads(ingested.stdout)
    assert ingested.returncode == 3
    assert (found["done"], found["duplicate"]) == (5, 1)
    assert {one["error_code"] for one in found["failures"]} >= {"truncated", "no-mpp", "unreadable"}
    assert (marked_scans.root / "made" / "ray" / "ingest" / "session_latest" / "logs").is_dir()
    for name, command in (("status", "status"), ("verify", "verify")):
        assert marked_scans.run(name, command, "made/cohort", "--json").returncode == 0
        assert marked_scans.run(f"{name}-screen", command, "made/cohort").returncode == 0
    assert marked_scans.ingest("dry", "--dry-run", "--retry-failed").returncode == 0
    assert find_leaks(marked_scans.root / "made", tuple(marked_scans.labels)) == {}


PACKED = {".html", ".h5", ".dcm", ".jpg", ".png"}
PLAIN = {".json", ".geojson", ".csv", ".svg", ".xml", ".headers", ".said"}


class Outputs(NamedTuple):
    """Reports, exports and responses of a cohort, with exit codes and counts."""

    out: Path
    codes: dict[str, int]
    answers: dict[str, int]


@pytest.fixture(scope="module")
def outputs(
    marked_scans: MarkedScans, ingested: object, open_cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outputs, Outputs]:
    """Reports, exports and responses of the cohort with pseudonyms, and of the one without."""
    cohorts, folder = (marked_scans.root / "made" / "cohort", open_cohort), tmp_path_factory.mktemp("outputs")
    outs = [folder / "hidden", folder / "named"]
    pairs = [str(path) for pair in zip(cohorts, outs, strict=True) for path in pair]
    command = [sys.executable, "-m", "tests.faults.output_search", marker("aperio"), *pairs]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stderr
    assert find_markers(run.stderr.encode()) == set()
    first, second = (Outputs(out, **json.loads(line)) for out, line in zip(outs, run.stdout.splitlines(), strict=True))
    return first, second


@pytest.mark.slow
def test_reports_exports_and_pages_leak_no_marker(marked_scans: MarkedScans, outputs: tuple[Outputs, Outputs]) -> None:
    out, codes, answers = outputs[0]
    assert list(codes.values()) == [0] * 7 + [2]  # DICOM: see the next test
    assert answers["200"] > 80
    assert find_leaks(out, tuple(marked_scans.labels)) == {}
    assert {path.suffix for path in out.rglob("*") if path.is_file()} <= PACKED | PLAIN
    names = Pseudonymizer((marked_scans.root / "key").read_bytes())
    for shown in (names.slide(marker("archive")), names.patient(marker("labelled")), names.site(marker("clinic"))):
        assert shown in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ingested")
def test_dicom_export_of_pseudonymized_cohort_is_refused(marked_scans: MarkedScans, tmp_path: Path) -> None:
    """A DICOM report would have to name the image and the patient as the archive does."""
    slide_id = Pseudonymizer((marked_scans.root / "key").read_bytes()).slide(marker("archive"))
    cohort = Cohort(marked_scans.root / "made" / "cohort")
    assert cohort.rows()[slide_id]["format"] == "dicom"
    with pytest.raises(
        InputError, match=f"{slide_id}: it has a pseudonym, and a report would have to identify its image"
    ):
        export_cohort(Export(cohort.root, "dicom", tmp_path / "out", slides=(slide_id,)))


@pytest.mark.slow
def test_search_finds_markers_in_reports_exports_and_pages(outputs: tuple[Outputs, Outputs]) -> None:
    out, codes, _ = outputs[1]
    assert list(codes.values()) == [0] * 8
    found = find_leaks(out)
    labelled = {marker("labelled"), marker("clinic")}
    assert found["report.html"] >= labelled | {marker("folder"), marker("nompp")}
    assert found[f"report_slides/{marker('second')}.html"] >= labelled | {marker("folder")}
    assert found["figures/sites-her2-4way.csv"] == found["figures/sites-her2-4way.svg"] == {marker("clinic")}
    assert found["csv/slides.csv"] >= {marker("labelled"), marker("folder")}
    assert found[f"clam-h5/patches/{marker('second')}.h5"] == {marker("second")}
    assert found[f"geojson/{marker('second')}.tiles.geojson"] == {marker("second")}
    assert found[f"dicom/{marker('archive')}.sr.dcm"] >= {marker("patientname"), marker("specimen"), "b'19870605'"}
    assert found["status.said"] >= {marker("folder"), marker("cut")}
    served = set().union(*(said for name, said in found.items() if name.startswith("served/")))
    assert served >= {marker("labelled"), marker("folder"), marker("archive")}
    assert not any("label image" in said for said in found.values())
    assert marker("patientname") not in found["export.said"]  # the report's own affair, and not a log's


@pytest.mark.slow
def test_search_finds_markers_in_packed_data(tmp_path: Path) -> None:
    """The raw bytes of packed data show no marker."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "coords", data=np.frombuffer(f"{marker('dataset')} ".encode() * 99, np.uint8), compression="gzip"
        )
    packed = phi_markers.dicom_with_names(DeflatedExplicitVRLittleEndian, "1.2.3", "1.2")
    packed.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    picture = cv2.imencode(".png", phi_markers.side_image("")[..., ::-1])[1].tobytes()
    inside = {"image/png": picture, "text/csv": marker("csv").encode()}
    addresses = [f"data:{kind};base64,{b64encode(data).decode()}" for kind, data in inside.items()]
    (tmp_path / "a.html").write_text(f'<img src="{addresses[0]}"><a href="{addresses[1]}">')
    assert [find_markers(path.read_bytes()) for path in sorted(tmp_path.iterdir())] == [set()] * 3
    found = find_leaks(tmp_path)
    assert found["a.h5"] == {marker("dataset")}
    assert found["a.dcm"] >= {
        marker("patientname"),
        marker("labeltext"),
        "b'19870605'",
        repr(phi_markers.BARCODE.encode()),
    }
    assert found["a.html"] == {marker("csv"), "label image"}


NOBODY_FORESAW = """
import her2batch.pipeline.inventory
def broken(paths):
    raise ValueError(f"odd bytes in {paths[0]}")
her2batch.pipeline.resume.seen_files.fingerprint_slide = broken
"""


@pytest.mark.slow
def test_traceback_of_an_internal_error_leaks_no_marker(marked_scans: MarkedScans) -> None:
    run = marked_scans.ingest("fault", "--workers", "0", cohort="broken", fault=NOBODY_FORESAW)
    assert run.returncode == 1
    assert "internal error" in run.stderr
    (trace,) = (marked_scans.root / "made" / "tmp").glob("her2batch-*.log")
    assert "inventory.py" in trace.read_text()  # where it was still stands there
    assert "ValueError" in trace.read_text()
    assert find_leaks(marked_scans.root / "made", tuple(marked_scans.labels)) == {}


NIGHT = f"""
scans = "{SCANS}"
cohort = "made/cohort"
labels = "labels.csv"
pseudonymize = "key"
[plan]
tile = 64
[resources]
workers = 1
[window]
settle = 0.3
linger = false
[sentinels]
folder = "sentinels"
"""


@pytest.mark.long
def test_nightly_run_leaks_no_marker(marked_scans: MarkedScans) -> None:
    assert (
        marked_scans.ingest("before", "--workers", "0").returncode == 3
    )  # done already where the tests above have run
    scans, sentinels = marked_scans.root / SCANS, marked_scans.root / "sentinels"
    sentinels.mkdir()
    source = scans / marker("folder") / f"{marker('second')}.svs"
    shutil.copy2(source, sentinels / f"{marker('sentinel')}.svs")
    phi_markers.write_svs(scans / f"{marker('tonight')}.svs", seed=6)
    phi_markers.write_svs(scans / f"{marker('coming')}.svs", seed=7)
    cohort, part = Cohort(marked_scans.root / "made" / "cohort"), scans / f"{marker('coming')}.svs.part"
    before = len(cohort.rows())

    def enough() -> bool:
        part.write_bytes(os.urandom(1000))  # it is being copied: left to the next night, and why
        return len(cohort.rows()) > before

    (marked_scans.root / "night.toml").write_text(NIGHT)
    run = marked_scans.run("night", "overnight", "night.toml", enough=enough)
    night = json.loads(run.stdout)
    assert run.returncode == 130
    assert (night["fresh"], night["deferred"], night["adds_up"]) == (1, 1, True)
    page = (marked_scans.root / "made/cohort/nights" / night["night"] / "report.html").read_text()
    assert "a partial copy lies beside it" in page
    assert "<h2>Failed slides</h2>" in page
    assert find_leaks(marked_scans.root / "made", tuple(marked_scans.labels)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_key_file_that_others_can_read_is_refused_before_any_work(
    marked_scans: MarkedScans, tmp_path: Path, mode: int
) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(mode)
    with pytest.raises(InputError, match="chmod 600"):
        ingest(IngestRequest(marked_scans.root / SCANS, tmp_path / "c", key=key), Plan(), Resources(workers=0))
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_changed_slide_is_detected_though_its_time_is_pseudonymized(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    slide = tmp_path / "scans" / "a.svs"
    slide.parent.mkdir()
    phi_markers.write_svs(slide, seed=1)
    order = IngestRequest(slide.parent, tmp_path / "c", key=key)
    runs = [ingest(order, Plan(tile=64), Resources(workers=0)) for _ in range(2)]
    phi_markers.write_svs(slide, seed=2)
    runs.append(ingest(order, Plan(tile=64), Resources(workers=0)))
    assert [(run.done, run.already, len(run.fresh)) for run in runs] == [(1, 0, 1), (1, 1, 0), (1, 0, 1)]
