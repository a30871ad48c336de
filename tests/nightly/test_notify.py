"""Tests of notification with a real web server and a real mail server, and without."""

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from her2batch.errors import InputError
from her2batch.nightly.notify import check_hook, send_summary
from her2batch.nightly.summary import NightSummary
from her2batch.settings import NotificationSettings

NIGHT = NightSummary("20260601-190000", "t", seen=3, done=2, failed=1)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def webhook(received: list[dict]) -> Iterator[str]:
    """Run a web server that keeps the posted data."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield f"http://{address}/night"


def test_a_webhook_receives_the_summary_as_json() -> None:
    received: list[dict] = []
    with webhook(received) as address:
        assert send_summary(NotificationSettings(webhook=address), NIGHT) == []
    assert received == [json.loads(NIGHT.to_json())]


def test_a_mail_contains_the_counts() -> None:
    received: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            body = False
            for raw in self.rfile:
                line = raw.decode().rstrip()
                received.append(line)
                if body and line != ".":
                    continue
                body = line.upper() == "DATA"
                self.wfile.write({"DATA": b"354 go\r\n", "QUIT": b"221 bye\r\n"}.get(line.upper(), b"250 ok\r\n"))
                if line.upper() == "QUIT":
                    return

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as address:
        assert send_summary(NotificationSettings(mail_to=("lab@example.org",), smtp=address), NIGHT) == []
    assert any(
        line.startswith("Subject: her2batch: night 20260601-190000 ended, 2 done, 1 failed") for line in received
    )
    assert any("lab@example.org" in line for line in received)


def test_an_unreachable_server_is_a_note_and_not_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secret = f"http://127.0.0.1:{port}/s3cret"
    found = send_summary(NotificationSettings(webhook=secret, mail_to=("a@b",), smtp=f"127.0.0.1:{port}"), NIGHT)
    assert len(found) == 2
    assert "s3cret" not in " ".join(found)


@pytest.mark.parametrize(
    "hook",
    [
        NotificationSettings(webhook="file:///etc/passwd"),
        NotificationSettings(webhook="x"),
        NotificationSettings(mail_to=("a@b",), smtp="h"),
    ],
)
def test_unusable_addresses_are_refused_before_the_night(hook: NotificationSettings) -> None:
    with pytest.raises(InputError, match="hook"):
        check_hook(hook)
