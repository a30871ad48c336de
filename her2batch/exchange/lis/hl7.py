"""HL7 v2.5.1: a slide's result as an ORU^R01 message, and the acknowledgement of the receiver.

Source: HL7 version 2.5.1, chapters 2 (control, escaping, acknowledgement), 3 (PID) and 7 (OBR, OBX, SPM).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from her2batch.errors import InputError, install_extra
from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.slide_result import ANSWERS, CODES, PATHOLOGIST, SlideResult

STATUS: Final = {"preliminary": "P", "final": "F", "corrected": "C"}
"""Status of a delivery → result status of OBR-25 and OBX-11 (tables 0123 and 0085)."""

ESCAPES: Final = str.maketrans(
    {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\r": " ", "\n": " "}
)
"""Delimiters → their escape sequences (chapter 2.7)."""

LOCAL: Final = "99HER2BATCH"
"""Coding system of codes that are our own (table 0396: a local system begins with 99)."""

ACCEPTED: Final = frozenset({"AA", "CA"})
"""Acknowledgement codes (table 0008) with which the receiver has taken the message."""

REJECTED: Final = frozenset({"AR", "CR"})
"""Codes with which the receiver will never take this message. AE and CE are errors of the receiver, tried again."""


class Acknowledgement(NamedTuple):
    """The answer of a receiver. control_id: of the message that it answers.  code: of table 0008.  text: its words."""

    control_id: str
    code: str
    text: str


def oru_message(result: SlideResult, identity: Identity, control_id: str, status: str, sent: datetime) -> str:
    """Return the ORU^R01 message of a result, segments ended by carriage returns.

    control_id: MSH-10, at most 20 characters.  status: key of STATUS.  sent: time of the message.
    Raises InputError when hl7apy is not installed.
    """
    message = _new_message("ORU_R01")
    message.msh.msh_3, message.msh.msh_4 = "HER2BATCH", _escape(identity.authority)
    message.msh.msh_7 = _time(sent)
    message.msh.msh_9 = "ORU^R01^ORU_R01"
    message.msh.msh_10 = control_id
    message.msh.msh_11 = "P"
    message.msh.msh_18 = "UNICODE UTF-8"
    group = message.add_group("ORU_R01_PATIENT_RESULT")
    _add_patient(group.add_group("ORU_R01_PATIENT").add_segment("PID"), identity)
    order = group.add_group("ORU_R01_ORDER_OBSERVATION")
    _add_order(order.add_segment("OBR"), result, identity, status, sent)
    for k, (kind, code, value) in enumerate(_observations(result), 1):
        part = order.add_group("ORU_R01_OBSERVATION")
        _add_observation(part.add_segment("OBX"), k, kind, code, value, result, status, sent)
        if k == 1:
            note = part.add_segment("NTE")
            note.nte_1, note.nte_3 = "1", _escape(note_of(result))
    specimen = order.add_group("ORU_R01_SPECIMEN").add_segment("SPM")
    specimen.spm_1, specimen.spm_2, specimen.spm_4 = "1", f"^{_escape(identity.specimen)}", "TISS^Tissue^HL70487"
    message.validate()
    return str(message.to_er7())


def parse_acknowledgement(text: str) -> Acknowledgement:
    """Return the acknowledgement in an ACK message. Raises ValueError for any other text."""
    segments = [line.split("|") for line in text.replace("\n", "\r").split("\r") if line.strip()]
    answer = next((fields for fields in segments if fields[0] == "MSA"), None)
    if answer is None or len(answer) < 3 or not segments[0][0].startswith("MSH"):
        raise ValueError("the answer is not an HL7 acknowledgement")
    words = [answer[3]] if len(answer) > 3 and answer[3] else []
    words += ["|".join(fields[1:]).strip("|") for fields in segments if fields[0] == "ERR"]
    return Acknowledgement(answer[2].strip(), answer[1].strip(), " ".join(words))


def note_of(result: SlideResult) -> str:
    """Return the note beside the result: who decided it, and why a pathologist should look."""
    if result.final:
        return "Verdict of a pathologist."
    why = f" For review: {'; '.join(result.reasons)}." if result.reasons else ""
    return f"Automated result, not reviewed by a pathologist. For research use.{why}"


def _new_message(structure: str) -> Any:
    try:
        from hl7apy.consts import VALIDATION_LEVEL
        from hl7apy.core import Message
    except ImportError as error:
        raise InputError("HL7 messages need the package hl7apy", None, install_extra("lis")) from error
    return Message(structure, version="2.5.1", validation_level=VALIDATION_LEVEL.STRICT)


def _add_patient(pid: Any, identity: Identity) -> None:
    pid.pid_1 = "1"
    pid.pid_3 = f"{_escape(identity.patient_id)}^^^{_escape(identity.authority)}^MR"
    pid.pid_5 = f"{_escape(identity.family_name)}^{_escape(identity.given_name)}".rstrip("^") or '""'
    if identity.birth_date:
        pid.pid_7 = identity.birth_date.replace("-", "")
    if identity.sex:
        pid.pid_8 = identity.sex


def _add_order(obr: Any, result: SlideResult, identity: Identity, status: str, sent: datetime) -> None:
    obr.obr_1 = "1"
    if identity.order:
        obr.obr_2 = _escape(identity.order)
    obr.obr_3 = _escape(identity.accession)
    obr.obr_4 = _coded(*CODES[result.marker], "LN")
    obr.obr_22 = _time(result.decided or sent)
    obr.obr_25 = STATUS[status]


def _observations(result: SlideResult) -> list[tuple[str, str, str]]:
    """Return (type, code, value) of every OBX: the class, its meaning, the HER2 status and ISH where they are known."""
    score = _coded(ANSWERS[result.result], result.result, "LN")
    found = [("CWE", _coded(*CODES[result.marker], "LN"), score)]
    if result.meaning:
        found.append(("TX", _coded("meaning", "Meaning of the result", LOCAL), _escape(result.meaning)))
    if result.status_class is not None:
        status = _coded(ANSWERS[result.status_class], result.status_class, "LN")
        found.append(("CWE", _coded("her2-binary", "HER2 status", LOCAL), status))
    if result.ish is not None:
        word = "positive" if result.ish == "+" else "negative"
        found.append(("CWE", _coded("ish", "ISH result of the laboratory", LOCAL), _coded(ANSWERS[word], word, "LN")))
    return found


def _add_observation(
    obx: Any, number: int, kind: str, code: str, value: str, result: SlideResult, status: str, sent: datetime
) -> None:
    obx.obx_1, obx.obx_2, obx.obx_3, obx.obx_4 = str(number), kind, code, "1"
    obx.obx_5 = value
    obx.obx_11 = STATUS[status]
    obx.obx_14 = _time(result.decided or sent)
    if result.reviewer is not None:
        obx.obx_16 = f"^{_escape(result.reviewer)}"
    if result.by and result.by != PATHOLOGIST:
        obx.obx_17 = _coded(result.by, result.by, LOCAL)
    obx.obx_18 = f"her2batch {result.software}^plan {result.plan_id}"


def _coded(code: str, name: str, system: str) -> str:
    return f"{_escape(code)}^{_escape(name)}^{system}"


def _escape(text: str) -> str:
    return text.translate(ESCAPES)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")
