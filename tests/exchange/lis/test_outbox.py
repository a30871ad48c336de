"""Tests of the outbox: each result reaches the laboratory information system once, whatever the receiver does."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.errors import StoreError
from her2batch.exchange.lis.outbox import Delivery, next_delivery, send_results
from her2batch.exchange.lis.slide_result import SlideResult
from her2batch.exchange.lis.transport import parse_receiver
from her2batch.store.audit import verify_cohort
from her2batch.store.erase import erase
from her2batch.store.pseudonyms import Pseudonymizer
from tests.exchange.lis.examples import CLASSES, decide, identities, make_cohort, send
from tests.exchange.lis.receivers import LisServer, running

HOSTILE = ("accept", "accept", "drop", "lose", "refuse", "delay", "repeat", "garble")


def test_results_are_preliminary_final_and_corrected(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 3)
    with running(LisServer()) as lis:
        assert send(cohort, lis.address).accepted == {"preliminary": ["S000", "S001", "S002"]}
        assert lis.fields("OBX", 5) == ["LA6111-4^0^LN", "LA11841-6^1+^LN", "LA11842-4^2+^LN"]
        assert send(cohort, lis.address).unchanged == 3
        first = decide(cohort, "S001", "2+")
        assert send(cohort, lis.address).accepted == {"final": ["S001"]}
        assert lis.fields("OBX", 5)[-1] == "LA11842-4^2+^LN"
        decide(cohort, "S001", "3+", supersedes=first)
        assert send(cohort, lis.address).accepted == {"corrected": ["S001"]}
        assert lis.fields("OBR", 25) == ["P", "P", "P", "F", "C"]
        assert lis.fields("PID", 3)[0] == "MRN-S000^^^LAB^MR"
        assert lis.fields("PID", 5)[0] == "O\\F\\Neil"
        assert len(lis.kept) == lis.tries == 5


@pytest.mark.slow
def test_hostile_receiver_gets_every_result_once_and_none_final_without_a_verdict(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 20)
    decided = {f"S{k:03d}" for k in range(0, 20, 5)}
    with running(LisServer(HOSTILE, seed=3, delay=1.0)) as lis:
        send(cohort, lis.address, timeout=0.5)
        for slide_id in sorted(decided):
            decide(cohort, slide_id, "3+")
        while send(cohort, lis.address, timeout=0.5).exit_code:
            pass
        status = Counter(zip(lis.fields("OBR", 3), lis.fields("OBR", 25), strict=True))
    newest = dict(zip(lis.fields("OBR", 3), lis.fields("OBR", 25), strict=True))
    assert {name.removeprefix("A26-") for name, letter in newest.items() if letter == "F"} == decided
    assert len(newest) == 20
    assert set(status.values()) == {1}
    assert lis.tries > len(lis.kept)
    assert send(cohort, lis.address).unchanged == 20  # nobody listens any more, and nothing is due


def test_a_rejected_result_is_reported_and_sent_again_once_its_identity_is_right(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 1)
    with running(LisServer(("reject",))) as lis:
        found = send(cohort, lis.address)
        assert (found.rejected, found.exit_code) == ({"S000": "AR no such patient"}, 3)
        lis.moods = ("accept",)
        right = {"S000": replace(identities(cohort)["S000"], patient_id="MRN-9")}
        receiver = parse_receiver(lis.address)
        assert send_results(cohort, receiver, right).accepted == {"preliminary": ["S000"]}
        assert lis.fields("PID", 3) == ["MRN-9^^^LAB^MR"]
        wrong = {"S000": replace(right["S000"], patient_id="MRN-10")}
        found = send_results(cohort, receiver, wrong)
        assert "identity differs" in found.held["S000"]
        assert found.exit_code == 3


def test_a_receiver_that_is_away_is_not_asked_for_every_slide(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 8)
    with running(LisServer()) as lis:
        address = lis.address
    found = send(cohort, address)
    assert (len(found.unanswered), len(found.not_tried)) == (3, 5)


def test_slides_without_identity_or_result_are_listed_and_not_sent(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 2)
    row = {**cohort.rows()["S001"], "slide_id": "S9", "status": "failed", "error_code": "no-mpp", "files": []}
    cohort.draft("S9").commit(row, None)
    with running(LisServer()) as lis:
        some = {"S000": identities(cohort)["S000"]}
        found = send_results(cohort, parse_receiver(lis.address), some)
    assert (found.without_identity, found.held) == (["S001"], {"S9": "failed: no-mpp"})
    assert len(lis.kept) == 1


@pytest.mark.slow
def test_a_killed_sender_sends_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 12)
    program = (
        "import sys; from pathlib import Path; from tests.exchange.lis.examples import send, Cohort;"
        "send(Cohort(Path(sys.argv[1])), sys.argv[2])"
    )
    with running(LisServer(("accept", "lose"), seed=1)) as lis:
        for k in range(2):
            process = subprocess.Popen([sys.executable, "-c", program, str(cohort.root), lis.address])
            deadline = time.monotonic() + 30
            while len(lis.kept) < 5 * k + 1 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        while send(cohort, lis.address).exit_code:
            pass
        assert sorted(lis.fields("OBR", 3)) == [f"A26-S{k:03d}" for k in range(12)]


def test_files_of_the_outbox_name_no_patient_and_go_with_the_slide(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 2)
    with running(LisServer()) as lis:
        send(cohort, lis.address)
    files = sorted(cohort.root.glob("outbox/*/*.json"))
    assert [path.name for path in files] == ["S000.json", "S001.json"]
    assert not any(word in path.read_text() for path in files for word in ("MRN-", "A26-", "Neil"))
    assert list(verify_cohort(cohort)) == []
    summary = erase(cohort, "P0", Pseudonymizer())
    assert (summary.left, files[0].exists(), files[1].exists()) == ([], False, True)


def test_two_senders_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    from her2batch.files.locks import lock_folder

    cohort = make_cohort(tmp_path / "c", 1)
    with running(LisServer()) as lis:
        send(cohort, lis.address)
        (file,) = cohort.root.glob("outbox/*/*.json")
        with lock_folder(file.parent), pytest.raises(StoreError, match="in use"):
            send(cohort, lis.address)
        file.write_text('{"salt": 1')
        with pytest.raises(StoreError, match=r"S000\.json"):
            send(cohort, lis.address)


RESULT = SlideResult("S", "her2", "2+", "", None, None, "membrane", (), None, None, "p", "1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(CLASSES), st.sampled_from(["prepared", "accepted"]))))
def test_no_delivery_is_final_without_a_verdict_nor_preliminary_after_a_final_one(steps) -> None:
    deliveries: list[Delivery] = []
    for final, label, state in steps:
        result = replace(RESULT, result=label, decided=NOW if final else None)
        due = next_delivery(deliveries, result, "identity", "salt", NOW)
        if isinstance(due, Delivery):
            assert (due.status == "preliminary") == (not final)
            deliveries = [*(one for one in deliveries if one.number != due.number), replace(due, state=state)]
    statuses = [one.status for one in deliveries]
    assert len({one.control_id for one in deliveries}) == len(deliveries)
    assert "preliminary" not in statuses[statuses.index("final") :] if "final" in statuses else True
    assert statuses.count("final") <= 1


def test_dry_run_sends_and_writes_nothing(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 2)
    with running(LisServer()) as lis:
        assert send(cohort, lis.address, dry_run=True).accepted == {"preliminary": ["S000", "S001"]}
    assert lis.tries == 0
    assert not (cohort.root / "outbox").exists()
