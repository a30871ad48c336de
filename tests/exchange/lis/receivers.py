"""Receivers on the loopback interface, as laboratory information systems are on their worst days."""

import json
import random
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message


class LisServer(socketserver.ThreadingTCPServer):
    """An MLLP receiver that keeps what it accepts, each control id once, as HL7 asks of it.

    moods: what it does with a message, drawn at random: `accept`; `drop`, close before anything is kept; `lose`, keep
    and close without an answer; `refuse`, answer AE; `delay`, keep and answer after the sender has given up; `repeat`,
    keep and acknowledge an older message first, then this one twice; `garble`, keep and answer with noise.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, moods: Sequence[str] = ("accept",), seed: int = 0, delay: float = 1.0) -> None:
        super().__init__(("127.0.0.1", 0), _LisHandler)
        self.moods, self.random, self.delay = moods, random.Random(seed), delay
        self.kept: dict[str, str] = {}
        self.order: list[str] = []
        self.tries = 0
        self.guard = threading.Lock()

    @property
    def address(self) -> str:
        return f"mllp://127.0.0.1:{self.server_address[1]}"

    def fields(self, segment: str, number: int) -> list[str]:
        """A field of the first segment of this name, of every kept message, in the order of arrival."""
        found = []
        for control_id in self.order:
            lines = [line.split("|") for line in self.kept[control_id].split("\r")]
            found.append(next(line[number] for line in lines if line[0] == segment))
        return found


class _LisHandler(socketserver.BaseRequestHandler):
    server: LisServer

    def handle(self) -> None:
        data = b""
        while not data.endswith(b"\x1c\r"):
            more = self.request.recv(4096)
            if not more:
                return
            data += more
        text = data.strip(b"\x0b\x1c\r").decode()
        parse_message(text, validation_level=VALIDATION_LEVEL.STRICT).validate()
        control_id = text.split("|")[9]
        with self.server.guard:
            self.server.tries += 1
            mood = self.server.random.choice(self.server.moods)
            older = self.server.order[-1] if self.server.order else "NOBODY"
            if mood not in ("drop", "refuse", "reject") and control_id not in self.server.kept:
                self.server.kept[control_id] = text
                self.server.order.append(control_id)
        answers = {
            "drop": [],
            "lose": [],
            "refuse": [self._ack("AE", control_id)],
            "reject": [self._ack("AR", control_id)],
            "repeat": [self._ack("AA", older), self._ack("AA", control_id), self._ack("AA", control_id)],
            "garble": [b"\x0b\xff\xfe noise \x1c\r"],
        }.get(mood, [self._ack("AA", control_id)])
        if mood == "delay":
            threading.Event().wait(self.server.delay)
        with suppress(OSError):
            self.request.sendall(b"".join(answers))

    def _ack(self, code: str, control_id: str) -> bytes:
        text = f"MSH|^~\\&|LIS|LAB|HER2BATCH||20261129||ACK|A1|P|2.5.1\rMSA|{code}|{control_id}|no such patient\r"
        return b"\x0b" + text.encode() + b"\x1c\r"


class FhirServer(ThreadingHTTPServer):
    """A FHIR server that applies the conditional updates of transactions. moods as for LisServer, without delay."""

    daemon_threads = True

    def __init__(self, moods: Sequence[str] = ("accept",), seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _FhirHandler)
        self.moods, self.random = moods, random.Random(seed)
        self.resources: dict[tuple[str, str], dict[str, Any]] = {}
        self.history: dict[tuple[str, str], list[str]] = {}
        self.tokens: set[str | None] = set()
        self.guard = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/fhir"

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [resource for (name, _), resource in self.resources.items() if name == kind]


class _FhirHandler(BaseHTTPRequestHandler):
    server: FhirServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        bundle = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert bundle["type"] == "transaction"
        with self.server.guard:
            self.server.tokens.add(self.headers.get("Authorization"))
            mood = self.server.random.choice(self.server.moods)
            if mood not in ("drop", "refuse", "reject"):
                for entry in bundle["entry"]:
                    self._update(entry)
        if mood in ("drop", "lose"):
            self.close_connection = True
            return
        self.send_response({"refuse": 503, "reject": 422}.get(mood, 200))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _update(self, entry: dict[str, Any]) -> None:
        assert entry["request"]["method"] == "PUT"
        parts = urlsplit(entry["request"]["url"])
        (token,) = parse_qs(parts.query)["identifier"]
        key = parts.path, token
        self.server.resources[key] = entry["resource"]
        history = self.server.history.setdefault(key, [])
        status = entry["resource"].get("status", "")
        if not history or history[-1] != status:
            history.append(status)


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """Run a server in a thread."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
