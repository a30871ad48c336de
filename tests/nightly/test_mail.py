"""The mail of a night, received by a real mail server on loopback: readable, encrypted, and free of patient data."""

import smtplib
import ssl
from html.parser import HTMLParser
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.job_settings import NotificationSettings
from her2batch.nightly.mail import PASSWORD_VARIABLE, USER_VARIABLE, check_mail_settings, compose_mail, send_mail
from her2batch.nightly.summary import NightSummary
from tests.nightly.mail_server import PASSWORD, USER, mail_server, make_certificate

NIGHT = NightSummary(
    "20260601-190000", "2026-06-01T19:00:00+02:00", "2026-06-02T03:00:00+02:00", seen=7, done=5, failed=2, review=3,
    failures={"truncated": 2}, free_bytes=15_000_000_000, written_bytes=5_000_000_000, disk_low=True,
)  # fmt: skip
HOOK = NotificationSettings(mail_to=("lab@example.org", "it@example.org"), link="https://her2.example.org/")


class _Text(HTMLParser):
    """Text and links of a page, and the order of its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.links, self.open = "", [], []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER_VARIABLE, USER)
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)


def test_a_mail_is_readable_as_text_and_as_html() -> None:
    mail = compose_mail(HOOK, NIGHT)
    assert mail["Subject"] == "her2batch: 3 to look at, 2 failed, disk nearly full (night of 1 June 2026)"
    assert mail["To"] == "lab@example.org, it@example.org"
    text = mail.get_body(("plain",)).get_content()
    page = _Text()
    page.feed(mail.get_body(("html",)).get_content())
    assert page.open == []
    report = "https://her2.example.org/nights/20260601-190000/report.html"
    for content in (text, page.text):
        assert "3 to look at, 2 failed" in content
        assert "Finished; some slides failed." in content
        assert "2 slides end too early: the file was not copied completely (truncated)." in content
        assert "room for about 3 nights" in content
    assert report in text
    assert report in page.links
    assert {link.split("/")[2] for link in page.links} == {"her2.example.org"}  # no picture of another host
    assert max(map(len, text.splitlines())) < 200
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"held": True}, "Do not use them"),
        ({"stopped": True}, "The next night continues"),
        ({"error": "InputError", "reason": "The scan folder is not there: mount the share.", "ended": ""}, "mount the"),
        ({"done": 4}, "The counts do not add up"),
    ],
)
def test_a_night_that_did_not_end_well_says_what_happened(facts: dict, words: str) -> None:
    night = NightSummary(**{**vars(NIGHT), **facts})
    mail = compose_mail(HOOK, night)
    for kind in ("plain", "html"):
        content = mail.get_body((kind,)).get_content()
        assert words in content
        assert ("report.html" in content) == bool(night.ended)


def test_a_mail_arrives_without_encryption_where_none_is_asked_for() -> None:
    with mail_server() as server:
        send_mail(HOOK.model_copy(update={"smtp": server.address}), NIGHT)
    assert [mail["Subject"].startswith("her2batch: 3 to look at") for mail in server.mails] == [True]
    assert server.mails[0].get_content_type() == "multipart/alternative"


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_is_encrypted_with_a_login_of_the_environment(
    security: str, login: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with mail_server(certificate, security, login=True) as server:
        hook = HOOK.model_copy(update={"smtp": server.address, "smtp_security": security})
        send_mail(hook, NIGHT)
        monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            send_mail(hook, NIGHT)
    assert len(server.mails) == 1
    assert server.logins == [(USER, True)]
    assert PASSWORD not in server.mails[0].as_string()


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_server_with_another_certificate_gets_neither_password_nor_mail(
    security: str, login: None, tmp_path: Path
) -> None:
    with mail_server(make_certificate(tmp_path), security, login=True) as server, pytest.raises(ssl.SSLError):
        send_mail(HOOK.model_copy(update={"smtp": server.address, "smtp_security": security}), NIGHT)
    assert (server.mails, server.logins) == ([], [])


def test_a_server_without_starttls_gets_neither_password_nor_mail(login: None) -> None:
    """Somebody on the way may remove the offer of encryption from the server's greeting."""
    with mail_server() as server, pytest.raises(smtplib.SMTPNotSupportedError):
        send_mail(HOOK.model_copy(update={"smtp": server.address, "smtp_security": "starttls"}), NIGHT)
    assert (server.mails, server.logins) == ([], [])


def test_a_password_without_encryption_is_refused(login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not sent without encryption"):
        check_mail_settings(HOOK)
    check_mail_settings(HOOK.model_copy(update={"smtp_security": "tls"}))
    monkeypatch.delenv(PASSWORD_VARIABLE)
    with pytest.raises(InputError, match=f"{PASSWORD_VARIABLE} is not set"):
        check_mail_settings(HOOK.model_copy(update={"smtp_security": "tls"}))


def test_a_login_cannot_stand_in_the_settings_file() -> None:
    assert not {name for name in NotificationSettings.model_fields if "password" in name or "user" in name}


@pytest.mark.parametrize(("count", "words"), [(1, "1 slide finished"), (2, "2 slides finished")])
def test_the_text_of_a_mail_counts_in_the_singular_too(count: int, words: str) -> None:
    settings = NotificationSettings(mail_to=("night@lab.example",))
    text = compose_mail(settings, NightSummary("n", "2026-06-01T19:00:00+00:00", fresh=count)).get_body(("plain",))
    assert text is not None
    assert words in text.get_content()
