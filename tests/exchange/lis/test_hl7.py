"""Tests of HL7 messages: valid by an independent library, with nothing that the page would not show."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.exchange.lis.hl7 import Acknowledgement, oru_message, parse_acknowledgement
from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.slide_result import SlideResult
from tests.exchange.lis.examples import make_cohort, send
from tests.exchange.lis.receivers import LisServer, running

NOW = datetime(2026, 1, 1, 3, 4, 5, tzinfo=UTC)
RESULT = SlideResult(
    "S", "her2", "3+", "HER2 positive", "positive", "+", "membrane", ("blurred",), None, None, "p", "1"
)

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)


def test_equivocal_slides_have_no_status(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 4)
    with running(LisServer()) as lis:
        send(cohort, lis.address)
        texts = list(lis.kept.values())
    assert "equivocal, ISH needed" in texts[2]
    assert ["her2-binary" in text for text in texts] == [True, True, False, True]
    assert "her2-binary^HER2 status^99HER2BATCH||LA6576-8^positive^LN" in texts[3].replace("|1|", "||")
    assert all("not reviewed by a pathologist" in text for text in texts)


@settings(max_examples=15, deadline=None)
@given(texts, texts, texts, texts)
def test_any_text_arrives_as_it_was_written(patient, accession, family, given_name) -> None:
    names = {"patient_id": f"1{patient}", "accession": f"1{accession}", "family_name": family, "given_name": given_name}
    text = oru_message(RESULT, Identity("S", specimen="B", **names), "ID", "preliminary", NOW)
    assert text.count("\r") == 8  # MSH, PID, OBR, four OBX, NTE, SPM
    message = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT)
    assert message.validate()
    pid, obr = (line.split("|") for line in text.split("\r")[1:3])
    assert unescaped(pid[3].split("^")[0]) == names["patient_id"]
    assert unescaped(obr[3]) == names["accession"]


def unescaped(text: str) -> str:
    for code, letter in (("\\F\\", "|"), ("\\S\\", "^"), ("\\T\\", "&"), ("\\R\\", "~"), ("\\E\\", "\\")):
        text = text.replace(code, letter)
    return text


@pytest.mark.parametrize(("status", "letter"), [("preliminary", "P"), ("final", "F"), ("corrected", "C")])
def test_status_is_that_of_the_order_and_of_every_observation(status: str, letter: str) -> None:
    decided = replace(RESULT, reviewer="Dr. Who", decided=NOW, by="pathologist", reasons=())
    lines = [line.split("|") for line in oru_message(decided, Identity("S", "1", "2"), "ID", status, NOW).split("\r")]
    assert [line[25] for line in lines if line[0] == "OBR"] == [letter]
    assert {line[11] for line in lines if line[0] == "OBX"} == {letter}
    assert {line[16] for line in lines if line[0] == "OBX"} == {"^Dr. Who"}


def test_acknowledgements() -> None:
    assert parse_acknowledgement("MSH|^~\\&|A\rMSA|AE|7|no bed\rERR|||207") == Acknowledgement("7", "AE", "no bed 207")
    for text in ("", "MSA|AA|7", "MSH|^~\\&|A\rPID|1", "GET / HTTP/1.1"):
        with pytest.raises(ValueError, match="acknowledgement"):
            parse_acknowledgement(text)
