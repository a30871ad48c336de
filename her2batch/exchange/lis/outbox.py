"""The outbox: sends every slide's result to a laboratory information system, each content once.

Before a message leaves, its delivery is written to `outbox/RECEIVER/SLIDE.json` in the cohort, with the control id of
the message. After a kill, a lost connection or a missing answer the same message is sent again under the same control
id, by which the receiver recognises it: nothing is lost, and nothing counts twice. The files contain digests, no
identities.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from her2batch.errors import InputError, StoreError
from her2batch.exchange.lis import hl7, transport
from her2batch.exchange.lis.fhir import result_bundle
from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.slide_result import SlideResult, Unreported, cohort_results
from her2batch.exchange.lis.transport import Answer, Receiver
from her2batch.files.atomic import atomic_write, make_folder
from her2batch.files.locks import lock_folder
from her2batch.store.cohort import Cohort
from her2batch.store.erase import OUTBOX

ATTEMPTS: Final = 4
"""Attempts to send one message in one run."""

PAUSE_S: Final = 1.0
"""Pause before the second attempt; it doubles for each further one."""

EXAMPLES: Final = 5
"""Slides that are named for each reason."""

GIVE_UP_AFTER: Final = 3
"""Slides in a row without any answer after which the receiver counts as away, and the rest waits for the next run."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Delivery:
    """A message about a slide.

    number: from 1.  control_id: MSH-10 of HL7, the same in every attempt.  report: identifies the slide's report at the
    receiver, the same in all of its deliveries.  status: preliminary, final or corrected.
    content: digest of the result.  identity: salted digest of the identity.  prepared: time, ISO 8601.  state:
    prepared, accepted or rejected.  answer: the receiver's words.
    """

    number: int
    control_id: str
    report: str
    status: str
    content: str
    identity: str
    prepared: str
    state: str = "prepared"
    answer: str = ""


@dataclass
class SendSummary:
    """What a run sent.

    accepted: slides by status.  unchanged: the receiver has their present results.  rejected, unanswered: slide id →
    the receiver's words.  without_identity: slides that the sheet does not name.  held: slide id → why it is not sent.
    not_tried: slides that wait because the receiver is away.
    """

    accepted: dict[str, list[str]] = field(default_factory=dict)
    unchanged: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)
    without_identity: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    not_tried: list[str] = field(default_factory=list)

    @property
    def open_ends(self) -> int:
        """Number of slides with a result that the receiver does not have, and may never get without a person."""
        waiting = (self.rejected, self.unanswered, self.without_identity, self.not_tried)
        return sum(map(len, waiting)) + sum("identity" in reason for reason in self.held.values())

    @property
    def exit_code(self) -> int:
        """0: every slide with a result is at the receiver; 3: some are not."""
        return 3 if self.open_ends else 0


def send_lines(summary: SendSummary, dry_run: bool) -> list[str]:
    """Return what was sent, and every slide that was not sent with the reason, as lines of text."""
    verb = "would be sent" if dry_run else "sent"
    lines = [
        f"{len(slides)} {status} {'result' if len(slides) == 1 else 'results'} {verb}"
        for status, slides in sorted(summary.accepted.items())
    ]
    lines.append(f"{summary.unchanged} unchanged: the receiver has their present results")
    for words, answers in (("rejected by the receiver", summary.rejected), ("without an answer", summary.unanswered)):
        lines += [f"{slide_id} {words}: {answer}" for slide_id, answer in sorted(answers.items())]
    if summary.not_tried:
        lines.append(f"{len(summary.not_tried)} not tried, because the receiver does not answer; send them again later")
    if summary.without_identity:
        lines.append(f"{len(summary.without_identity)} without identity, not sent: {_some(summary.without_identity)}")
    for reason, count in Counter(summary.held.values()).most_common():
        slides = [slide_id for slide_id, cause in sorted(summary.held.items()) if cause == reason]
        lines.append(f"{count} not sent, {reason}: {_some(slides)}")
    return lines


def _some(slides: list[str]) -> str:
    return ", ".join(slides[:EXAMPLES]) + (", …" if len(slides) > EXAMPLES else "")


def send_results(
    cohort: Cohort,
    receiver: Receiver,
    identities: Mapping[str, Identity],
    progress: Progress = lambda *_: None,
    pause: float = PAUSE_S,
    dry_run: bool = False,
) -> SendSummary:
    """Send the results of a cohort that the receiver does not have yet.

    identities: slide id → identity.  pause: seconds before a second attempt.  dry_run: say what would be sent.
    Raises InputError for a cohort on object storage or a missing package, StoreError when another run sends to this
    receiver or the outbox is damaged, OSError when the outbox cannot be written.
    """
    cohort.check()
    if cohort.remote:
        raise InputError("results are sent from a cohort in a folder", cohort.root, "copy the cohort to a folder")
    results = list(cohort_results(cohort))
    if dry_run:
        return _send_all(_Outbox(cohort, receiver), results, identities, progress, pause, dry_run)
    folder = cohort.root / OUTBOX / receiver.name
    make_folder(folder)
    with lock_folder(folder):
        return _send_all(_Outbox(cohort, receiver), results, identities, progress, pause, dry_run)


def next_delivery(
    earlier: list[Delivery], result: SlideResult, identity: str, salt: str, now: datetime
) -> Delivery | str | None:
    """Return the delivery that is due for a slide; None if there is none, or the reason why it is held.

    salt: of the slide's digests. The newest delivery is due again until the receiver has accepted it. A new content is
    a new delivery: preliminary without a verdict, final with one, corrected where a final one may have arrived before.
    """
    newest = earlier[-1] if earlier else None
    if any(one.identity != identity and one.state != "rejected" for one in earlier):
        return "its identity differs from that of an earlier message: have that one withdrawn by hand"
    if newest is not None and newest.content == result.digest:
        return newest if newest.state != "accepted" else None
    was_final = any(one.status != "preliminary" for one in earlier)
    if was_final and not result.final:
        return "a final result was sent, and its verdict is gone"
    status = "preliminary" if not result.final else "corrected" if was_final else "final"
    number = len(earlier) + 1
    ids = _control_id(salt, number), _control_id(salt, 0)
    return Delivery(number, *ids, status, result.digest, identity, now.isoformat())


def send_once(receiver: Receiver, result: SlideResult, identity: Identity, delivery: Delivery) -> Answer:
    """Build the message of a delivery and send it once."""
    prepared = datetime.fromisoformat(delivery.prepared)
    if receiver.protocol == "hl7":
        message = hl7.oru_message(result, identity, delivery.control_id, delivery.status, prepared)
        return transport.send_hl7(receiver, message, delivery.control_id)
    return transport.send_fhir(receiver, result_bundle(result, identity, delivery.report, delivery.status, prepared))


class _Outbox:
    """The files of one receiver."""

    def __init__(self, cohort: Cohort, receiver: Receiver) -> None:
        self.receiver = receiver
        self._folder = cohort.root / OUTBOX / receiver.name

    def read(self, slide_id: str) -> tuple[str, list[Delivery]]:
        """Return the salt of a slide's digests and its deliveries. Raises StoreError for a damaged file."""
        path = self._path(slide_id)
        if not path.exists():
            return secrets.token_hex(16), []
        try:
            content = json.loads(path.read_text("utf-8"))
            return content["salt"], [Delivery(**one) for one in content["deliveries"]]
        except (ValueError, TypeError, KeyError) as error:
            remedy = "find out at the receiver what it has of this slide, then remove the file"
            raise StoreError("is damaged", path, remedy) from error

    def write(self, slide_id: str, salt: str, deliveries: list[Delivery]) -> None:
        """Replace a slide's file; the old one stays until the new one is whole on the disk."""
        content = {"slide_id": slide_id, "salt": salt, "deliveries": [asdict(one) for one in deliveries]}
        with atomic_write(self._path(slide_id)) as part:
            part.write_text(json.dumps(content, indent=1), "utf-8")

    def _path(self, slide_id: str) -> Path:
        return self._folder / f"{slide_id}.json"


def _send_all(
    outbox: _Outbox,
    results: list[SlideResult | Unreported],
    identities: Mapping[str, Identity],
    progress: Progress,
    pause: float,
    dry_run: bool,
) -> SendSummary:
    summary, silent = SendSummary(), 0
    for k, result in enumerate(results):
        progress(k, len(results))
        if isinstance(result, Unreported):
            summary.held[result.slide_id] = result.reason
        elif result.slide_id not in identities:
            summary.without_identity.append(result.slide_id)
        elif silent >= GIVE_UP_AFTER:
            summary.not_tried.append(result.slide_id)
        else:
            answered = _send_one(outbox, result, identities[result.slide_id], summary, pause, dry_run)
            silent = 0 if answered else silent + 1
    progress(len(results), len(results))
    return summary


def _send_one(
    outbox: _Outbox, result: SlideResult, identity: Identity, summary: SendSummary, pause: float, dry_run: bool
) -> bool:
    """Send one slide's result, if one is due. Returns False when the receiver gave no answer."""
    slide_id = result.slide_id
    salt, earlier = outbox.read(slide_id)
    identity_digest = hashlib.sha256(f"{salt}{sorted(asdict(identity).items())}".encode()).hexdigest()
    due = next_delivery(earlier, result, identity_digest, salt, datetime.now(UTC))
    if due is None:
        summary.unchanged += 1
        return True
    if isinstance(due, str):
        summary.held[slide_id] = due
        return True
    if dry_run:
        summary.accepted.setdefault(due.status, []).append(slide_id)
        return True
    before = [one for one in earlier if one.number != due.number]
    outbox.write(slide_id, salt, [*before, due])
    answer = transport.with_retries(lambda: send_once(outbox.receiver, result, identity, due), ATTEMPTS, pause)
    if answer.state == "unknown":
        summary.unanswered[slide_id] = answer.text
        return False
    outbox.write(slide_id, salt, [*before, replace(due, state=answer.state, answer=answer.text[:300])])
    if answer.state == "accepted":
        summary.accepted.setdefault(due.status, []).append(slide_id)
    else:
        summary.rejected[slide_id] = answer.text
    return True


def _control_id(salt: str, number: int) -> str:
    """Return the id of a slide's delivery, of its report for number 0: 20 characters, the same whenever it is made."""
    return hashlib.sha256(f"{salt}.{number}".encode()).hexdigest()[:20].upper()
