"""Tests of the transport: addresses, and what an attempt says about its message."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.exchange.lis.transport import Answer, parse_receiver, send_hl7, with_retries
from tests.exchange.lis.examples import make_cohort, send
from tests.exchange.lis.receivers import LisServer, running


@pytest.mark.parametrize(
    "address", ["lis:2575", "mllp://lis", "ftp://lis/x", "https://user:secret@lis/fhir", "mllp://h:x"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="mllp://HOST:PORT"):
        parse_receiver(address)


@pytest.mark.parametrize("mood", ["lose", "drop", "garble", "refuse", "delay"])
def test_a_message_without_an_answer_is_sent_again_with_its_control_id(tmp_path: Path, mood: str) -> None:
    cohort = make_cohort(tmp_path / "c", 1)
    with running(LisServer((mood,), delay=0.5)) as lis:
        assert set(send(cohort, lis.address, timeout=0.3).unanswered) == {"S000"}
        lis.moods = ("accept",)
        assert send(cohort, lis.address).accepted == {"preliminary": ["S000"]}
        assert len(lis.kept) == 1


def test_answers_are_asked_for_again_until_they_are_known() -> None:
    answers = iter(
        [Answer("unknown", "lost"), Answer("unknown", "late"), Answer("accepted", "AA"), Answer("rejected", "")]
    )
    assert with_retries(lambda: next(answers), attempts=5, pause=0.0) == Answer("accepted", "AA")
    assert with_retries(lambda: Answer("unknown", "lost"), attempts=2, pause=0.0).text == "lost"


def test_nobody_listens() -> None:
    with running(LisServer()) as lis:
        receiver = parse_receiver(lis.address)
    assert send_hl7(receiver, "MSH|", "1") == Answer("unknown", "[Errno 111] Connection refused")
