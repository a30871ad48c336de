"""The check of a night before it runs: each part fails by itself, with a remedy, and nothing is changed or sent."""

import os
import socket
import threading
from pathlib import Path

import pytest

from her2batch.job_settings import NightlySettings
from her2batch.nightly import check as module
from her2batch.nightly.check import check_night, clock_is_synchronized
from her2batch.nightly.mail import PASSWORD_VARIABLE, USER_VARIABLE
from her2batch.runtime.doctor import Check
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from tests.conftest import MakeSlide
from tests.nightly.mail_server import PASSWORD, USER, mail_server, make_certificate


def checks(folder: Path, **more: object) -> dict[str, Check]:
    settings = {"scans": str(folder / "scans"), "cohort": str(folder / "data" / "cohort"), **more}
    return {check.name: check for check in check_night(NightlySettings.model_validate(settings))}


def test_a_good_night_passes_every_check_and_nothing_is_left(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("S1.tiff")
    (tmp_path / "data").mkdir()
    (tmp_path / "labels.csv").write_text("slide_id,patient_id\nS1,P1\n")
    before = sorted(tmp_path.rglob("*"))
    with mail_server() as server:
        hook = {"mail_to": ["lab@example.org"], "smtp": server.address}
        found = checks(tmp_path, hook=hook, labels=str(tmp_path / "labels.csv"), window={"until": "06:00"})
    assert {name for name, check in found.items() if check.ok is False} <= {"space"}  # of the disk of the tests
    assert found["slides"].what == "1 in the folder now"
    assert "will be made" in found["cohort"].what
    assert found["mail"].what == f"{server.address} takes mail to lab@example.org"
    assert found["window"].what.startswith("ends at 06:00, in ")
    assert server.mails == []
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "key").write_text("k" * 40)
    (tmp_path / "key").chmod(0o644)
    sentinels = {"folder": str(tmp_path / "none")}
    more = {name: str(tmp_path / "none") for name in ("labels", "bundle", "calibration", "weights")}
    plan = {"encoders": ["uni", "nonsense"]}
    found = checks(tmp_path, **more, pseudonymize=str(tmp_path / "key"), sentinels=sentinels, plan=plan)
    bad = {name for name, check in found.items() if check.ok is False} - {"space"}
    assert bad == {"labels", "bundle", "calibration", "pseudonymize", "sentinels", "encoder uni", "encoder nonsense"}
    assert all(found[name].remedy for name in bad)
    assert found["slides"].ok is None  # an empty folder may be a new scanner, or a share that is not mounted
    assert "mounted" in found["slides"].remedy


def test_a_share_that_is_not_mounted(tmp_path: Path) -> None:
    found = checks(tmp_path)
    assert (found["scans"].ok, found["scans"].remedy) == (False, "mount the share, or correct `scans`")
    assert "slides" not in found


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    assert "cannot write" in checks(tmp_path)["cohort"].what


def test_a_disk_that_refuses_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.tempfile, "NamedTemporaryFile", refuse)
    check = checks(tmp_path)["cohort"]
    assert (check.ok, "Read-only file system" in check.what) == (False, True)


def test_a_cohort_that_another_run_holds(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "data" / "cohort")
    cohort.create(Plan())
    with cohort.lock():
        assert "another run holds it" in checks(tmp_path)["cohort"].what
    assert checks(tmp_path)["cohort"].ok


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 30e9)
    assert checks(tmp_path)["space"].ok
    assert not checks(tmp_path, disk={"warn_gigabytes": 50})["space"].ok


def test_a_file_server_with_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = module.time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + 400)
    assert "differs by" in checks(tmp_path)["file server"].what


def test_mail_is_refused_for_a_recipient_a_login_and_a_silent_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    hook = {"mail_to": ["lab@example.org", "old@example.org"], "smtp_security": "starttls"}
    with mail_server(certificate, "starttls", login=True) as server:
        server.refused = ("old@example.org",)
        monkeypatch.setenv(USER_VARIABLE, USER)
        monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
        refused = checks(tmp_path, hook={**hook, "smtp": server.address})["mail"]
        assert refused.what == f"{server.address} refuses mail to old@example.org"
        monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
        wrong = checks(tmp_path, hook={**hook, "smtp": server.address})["mail"]
        assert (wrong.ok, wrong.what) == (False, f"{server.address}: the login is refused")
        assert "wrong" not in wrong.what
    gone = checks(tmp_path, hook={**hook, "smtp": server.address})["mail"]
    assert "Connection refused" in gone.what


def test_hosts_of_webhook_and_switch_are_reached_without_a_request(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        received: list[bytes] = []

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(100))

        thread = threading.Thread(target=accept)
        thread.start()
        found = checks(tmp_path, hook={"webhook": f"http://127.0.0.1:{port}/s3cret"})
        thread.join(10)
    assert (found["webhook"].ok, received) == (True, [b""])
    found = checks(tmp_path, hook={"ping": f"http://127.0.0.1:{port}/s3cret"})
    assert found["ping"].ok is False
    assert "s3cret" not in found["ping"].what


def test_a_run_that_never_ends_is_pointed_out(tmp_path: Path) -> None:
    assert checks(tmp_path)["window"].ok is None
    assert checks(tmp_path, window={"linger": False})["window"].ok


def test_the_kernel_is_asked_for_the_clock() -> None:
    assert clock_is_synchronized() in (True, False, None)
