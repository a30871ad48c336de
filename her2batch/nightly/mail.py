"""The mail at the end of a night: readable text and HTML, with a link to the report. It contains no patient data."""

from __future__ import annotations

import os
import smtplib
import ssl
from datetime import datetime
from email import policy
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from importlib import resources
from typing import Any, Final

import jinja2

from her2batch.errors import InputError
from her2batch.job_settings import NotificationSettings
from her2batch.nightly import messages
from her2batch.nightly.summary import NightSummary, counts_equation

TIMEOUT_S: Final = 20.0
"""Time limit for an answer of the mail server."""

LINE_CHARACTERS: Final = 500
"""Length from which a line is folded; RFC 5322 allows 998. Python folds a subject of 70 characters to an empty line."""

USER_VARIABLE, PASSWORD_VARIABLE = "HER2BATCH_SMTP_USER", "HER2BATCH_SMTP_PASSWORD"
"""Environment variables with the login of the mail server."""


def check_mail_settings(hook: NotificationSettings) -> None:
    """Check the mail settings. Raises InputError for an address without a port, and for a login without encryption."""
    if not hook.mail_to:
        return
    if not hook.smtp.rpartition(":")[2].isdigit():
        raise InputError(f"hook.smtp: {hook.smtp!r} has no port", None, "give HOST:PORT, for example localhost:25")
    user, password = _login()
    if (user is None) != (password is None):
        missing = USER_VARIABLE if user is None else PASSWORD_VARIABLE
        raise InputError(f"{missing} is not set", None, f"set {USER_VARIABLE} and {PASSWORD_VARIABLE}, or neither")
    if user is not None and hook.smtp_security == "none":
        what = "hook.smtp_security: a password is not sent without encryption"
        raise InputError(what, None, 'give smtp_security = "starttls" (port 587) or "tls" (port 465)')


def _login() -> tuple[str | None, str | None]:
    return os.environ.get(USER_VARIABLE) or None, os.environ.get(PASSWORD_VARIABLE) or None


def connect_to_server(hook: NotificationSettings) -> smtplib.SMTP:
    """Connect to the mail server, encrypted and logged in as the settings and the environment ask for.

    The server's certificate must be valid for its name. A hospital's own authority is given by SSL_CERT_FILE.
    Raises OSError, SMTPException.
    """
    host, _, port = hook.smtp.rpartition(":")
    host = host.strip("[]")
    if hook.smtp_security == "tls":
        context = ssl.create_default_context()
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, int(port), timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(host, int(port), timeout=TIMEOUT_S)
    try:
        if hook.smtp_security == "starttls":
            server.starttls(context=ssl.create_default_context())
        user, password = _login()
        if user is not None and password is not None:
            server.login(user, password)
    except BaseException:
        server.close()
        raise
    return server


def send_mail(hook: NotificationSettings, night: NightSummary) -> None:
    """Mail the summary. Raises OSError, SMTPException."""
    message = compose_mail(hook, night)
    with connect_to_server(hook) as server:
        server.send_message(message)


def compose_mail(hook: NotificationSettings, night: NightSummary) -> EmailMessage:
    """Return the mail of a night, with the same content as text and as HTML."""
    message = EmailMessage(policy.SMTP.clone(max_line_length=LINE_CHARACTERS))
    message["Subject"] = f"her2batch: {messages.headline(night)} ({_date(night)})"
    message["From"], message["To"] = hook.mail_from, ", ".join(hook.mail_to)
    message["Date"], message["Message-ID"] = formatdate(localtime=True), make_msgid(domain="her2batch.local")
    message["Auto-Submitted"] = "auto-generated"  # no answers from absent recipients
    content = mail_content(hook, night)
    message.set_content(_template("mail.txt").render(content))
    message.add_alternative(_template("mail.html").render(content), subtype="html")
    return message


def mail_content(hook: NotificationSettings, night: NightSummary) -> dict[str, Any]:
    """Return what the templates of the mail show."""
    link = hook.link.rstrip("/") if hook.link is not None else None
    return {
        "night": night,
        "date": _date(night),
        "headline": messages.headline(night),
        "outcome": night.reason or messages.OUTCOMES.get(night.exit_code, "The night ended early."),
        "is_bad": not messages.went_well(night),
        "counts": counts_equation(night),
        "failures": messages.failure_sentences(night),
        "disk": messages.disk_sentence(night),
        "link": link,
        "report": f"{link}/nights/{night.night}/report.html" if link is not None and night.ended else None,
    }


def _date(night: NightSummary) -> str:
    return f"night of {datetime.fromisoformat(night.started):%-d %B %Y}"


def _template(name: str) -> jinja2.Template:
    text = resources.files("her2batch.nightly").joinpath(f"templates/{name}").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=name.endswith(".html"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(text)
