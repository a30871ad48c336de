"""Tests of notification with a real web server and a real mail server, and without."""

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.job_settings import NotificationSettings
from her2batch.nightly.notify import call_ping, check_hook, send_summary
from her2batch.nightly.summary import NightSummary
from tests.nightly.mail_server import mail_server

NIGHT = NightSummary("20260601-190000", "2026-06-01T19:00:00+02:00", seen=3, done=2, failed=1)


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
def webhook(received: list[dict], called: list[str] | None = None) -> Iterator[str]:
    """Run a web server that keeps the posted data, and the paths that are only called."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def do_GET(self) -> None:
            if called is not None:
                called.append(self.path)
            self.send_response(200)
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


def test_a_mail_is_sent_to_every_address() -> None:
    with mail_server() as server:
        hook = NotificationSettings(mail_to=("lab@example.org", "it@example.org"), smtp=server.address)
        assert send_summary(hook, NIGHT) == []
    assert [mail["To"] for mail in server.mails] == ["lab@example.org, it@example.org"]


def test_the_metrics_are_written(tmp_path: Path) -> None:
    path = tmp_path / "her2batch.prom"
    assert send_summary(NotificationSettings(textfile=str(path)), NIGHT) == []
    assert "her2batch_night_failed 1\n" in path.read_text()
    path.unlink()
    path.parent.rmdir()
    assert "could not be written" in send_summary(NotificationSettings(textfile=str(path)), NIGHT)[0]


@pytest.mark.parametrize(
    ("facts", "is_called"),
    [({}, True), ({"held": True}, False), ({"stopped": True}, False), ({"error": "StoreError"}, False),
     ({"seen": 4}, False)],
)  # fmt: skip
def test_the_dead_mans_switch_is_called_when_a_night_ended_well(
    facts: dict, is_called: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    night = NightSummary(**{**vars(NIGHT), **facts})
    with webhook([], called) as address:
        assert call_ping(NotificationSettings(ping=address), night) == []
        assert called == ["/night"] * is_called
        monkeypatch.setenv("HER2BATCH_PING", f"{address}/secret")  # replaces the address of the settings
        assert call_ping(NotificationSettings(ping="http://nowhere.invalid/"), night) == []
    assert called == ["/night", "/night/secret"] * is_called


def test_an_unreachable_server_is_a_note_and_not_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secret = f"http://127.0.0.1:{port}/s3cret"
    hook = NotificationSettings(webhook=secret, ping=secret, mail_to=("a@b",), smtp=f"127.0.0.1:{port}")
    found = [*send_summary(hook, NIGHT), *call_ping(hook, NIGHT)]
    assert len(found) == 3
    assert "s3cret" not in " ".join(found)


@pytest.mark.parametrize(
    "hook",
    [
        NotificationSettings(webhook="file:///etc/passwd"),
        NotificationSettings(webhook="x"),
        NotificationSettings(ping="ftp://x"),
        NotificationSettings(link="//host/path"),
        NotificationSettings(textfile="her2batch.txt"),
        NotificationSettings(mail_to=("a@b",), smtp="h"),
    ],
)
def test_unusable_addresses_are_refused_before_the_night(hook: NotificationSettings) -> None:
    with pytest.raises(InputError, match="hook"):
        check_hook(hook)
