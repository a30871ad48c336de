"""Transport to a laboratory information system: HL7 over MLLP, FHIR over HTTP.

A sender gives one of three answers: accepted, rejected for good, or unknown. Unknown is whatever leaves open if the
receiver has taken the message: a connection that is lost, an answer that does not come, an error of the receiver. The
same message, with the same identifiers, is then sent again, and the receiver recognises it.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from her2batch.errors import InputError, one_line
from her2batch.exchange.lis.hl7 import ACCEPTED, REJECTED, parse_acknowledgement

START, END = b"\x0b", b"\x1c\r"
"""Bytes around a message (Minimal Lower Layer Protocol)."""

MAX_ANSWER_BYTES: Final = 1 << 20
"""An answer that is longer is not an acknowledgement."""

ANSWER_TIMEOUT_S: Final = 30.0
"""Seconds to wait for a connection, and for an answer."""

TOKEN_VARIABLE: Final = "HER2BATCH_LIS_TOKEN"  # noqa: S105  (a name, no secret)
"""Environment variable with the bearer token of a FHIR server."""

RETRIED_HTTP: Final = frozenset({401, 403, 404, 408, 409, 425, 429})
"""Answers of a web server below 500 that do not concern the result: rights, address, or load."""

REMEDY: Final = "give mllp://HOST:PORT, mllps://HOST:PORT (TLS) or the base address of a FHIR server, https://HOST/PATH"


class Answer(NamedTuple):
    """The outcome of an attempt. state: accepted, rejected or unknown.  text: the receiver's words, or the error."""

    state: str
    text: str


@dataclass(frozen=True)
class Receiver:
    """Where results are sent.  protocol: hl7 or fhir.  host, port, tls: of MLLP.  url: base address of a FHIR server.

    timeout: seconds to wait for an answer.
    """

    protocol: str
    name: str
    host: str = ""
    port: int = 0
    tls: bool = False
    url: str = ""
    timeout: float = ANSWER_TIMEOUT_S


def parse_receiver(address: str, timeout: float = ANSWER_TIMEOUT_S) -> Receiver:
    """Return the receiver of an address. Raises InputError for an address that is none."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme in ("mllp", "mllps") and parts.hostname and port:
        return Receiver("hl7", _folder_name(parts), parts.hostname, port, parts.scheme == "mllps", timeout=timeout)
    if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
        return Receiver("fhir", _folder_name(parts), url=address.rstrip("/"), timeout=timeout)
    raise InputError(f"{address!r} is not the address of a receiver", None, REMEDY)


def send_hl7(receiver: Receiver, message: str, control_id: str) -> Answer:
    """Send one message over a new connection and wait for its acknowledgement.

    Acknowledgements of other messages, which a receiver delivers late or twice, are passed over.
    """
    deadline = time.monotonic() + receiver.timeout
    try:
        with _connect(receiver) as connection:
            connection.sendall(START + message.encode() + END)
            received = b""
            while (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                data = connection.recv(65536)
                if not data:
                    return Answer("unknown", "the connection was closed before the acknowledgement")
                received += data
                while END[:1] in received:
                    frame, _, received = received.partition(END[:1])
                    if (answer := _answer_of(frame, control_id)) is not None:
                        return answer
                if len(received) > MAX_ANSWER_BYTES:
                    return Answer("unknown", "the answer is longer than an acknowledgement")
    except (OSError, UnicodeError) as error:  # ssl.SSLError and time-outs are OSErrors
        return Answer("unknown", one_line(error) or type(error).__name__)
    return Answer("unknown", f"no acknowledgement within {receiver.timeout:g} s")


def send_fhir(receiver: Receiver, bundle: dict[str, Any]) -> Answer:
    """Post one transaction. A server error, and whatever prevents an answer, leaves the outcome unknown."""
    headers = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json", "User-Agent": "her2batch"}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(receiver.url, json.dumps(bundle).encode(), headers)  # noqa: S310  (http or https)
    try:
        with urllib.request.urlopen(request, timeout=receiver.timeout) as response:  # noqa: S310
            response.read(MAX_ANSWER_BYTES)
            return Answer("accepted", str(response.status))
    except urllib.error.HTTPError as error:
        with error:
            words = one_line(ValueError(error.read(2000).decode(errors="replace")))
        known = error.code < 500 and error.code not in RETRIED_HTTP
        return Answer("rejected" if known else "unknown", f"HTTP {error.code} {words}"[:300])
    except (OSError, ValueError) as error:
        return Answer("unknown", one_line(error) or type(error).__name__)


def with_retries(send: Callable[[], Answer], attempts: int, pause: float) -> Answer:
    """Call `send` until its answer is known, at most `attempts` times; the pause in seconds doubles each time."""
    answer = Answer("unknown", "")
    for k in range(attempts):
        if k:
            time.sleep(pause * 2 ** (k - 1))
        answer = send()
        if answer.state != "unknown":
            break
    return answer


def _connect(receiver: Receiver) -> socket.socket:
    connection = socket.create_connection((receiver.host, receiver.port), receiver.timeout)
    if not receiver.tls:
        return connection
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=receiver.host)
    except BaseException:
        connection.close()
        raise


def _answer_of(frame: bytes, control_id: str) -> Answer | None:
    """Return the answer in a frame; None if it answers another message."""
    try:
        found = parse_acknowledgement(frame.strip(b"\r\n\x0b").decode())
    except ValueError:
        return None
    if found.control_id != control_id:
        return None
    state = "accepted" if found.code in ACCEPTED else "rejected" if found.code in REJECTED else "unknown"
    return Answer(state, f"{found.code} {found.text}".strip())


def _folder_name(parts: SplitResult) -> str:
    """Return the name of a receiver's folder in the outbox: letters, digits, dots and dashes."""
    text = f"{parts.scheme}-{parts.hostname}-{parts.port or ''}{parts.path.rstrip('/')}"
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in text)
