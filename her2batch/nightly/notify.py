"""Notification at the end of a nightly run, by webhook and mail. It contains counts and times, no patient data."""

from __future__ import annotations

import json
import smtplib
import urllib.error
import urllib.request
from email.message import EmailMessage
from urllib.parse import urlsplit

from her2batch.errors import InputError
from her2batch.nightly.summary import NightSummary, counts_equation
from her2batch.settings import NotificationSettings

TIMEOUT_S = 20.0
"""Time limit for the web server and the mail server."""


def check_hook(hook: NotificationSettings) -> None:
    """Check the notification settings. Raises InputError when an address is not usable."""
    if hook.webhook is not None:
        parts = urlsplit(hook.webhook)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("hook.webhook is not an http address", None, "give https://HOST/PATH")
    port = hook.smtp.rpartition(":")[2]
    if hook.mail_to and not port.isdigit():
        raise InputError(f"hook.smtp: {hook.smtp!r} has no port", None, "give HOST:PORT, for example localhost:25")


def send_summary(hook: NotificationSettings, night: NightSummary) -> list[str]:
    """Post and mail the summary. Returns a message for each failure; a failure does not end the night."""
    failures = []
    if hook.webhook is not None:
        try:
            _post(hook.webhook, night)
        except (OSError, urllib.error.URLError, ValueError) as error:
            failures.append(f"the webhook did not accept the summary ({error})")
    if hook.mail_to:
        try:
            _mail(hook, night)
        except (OSError, smtplib.SMTPException) as error:
            failures.append(f"the mail server {hook.smtp} did not accept the summary ({error})")
    return failures


def _post(address: str, night: NightSummary) -> None:
    body = json.dumps(night.to_dict()).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "her2batch"}
    request = urllib.request.Request(address, body, headers)  # noqa: S310  (`check_hook` allows only http and https)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
        return


def _mail(hook: NotificationSettings, night: NightSummary) -> None:
    message = EmailMessage()
    outcome = (
        "ended with an error" if night.error else "held back" if night.held else "stopped" if night.stopped else "ended"
    )
    message["Subject"] = f"her2batch: night {night.night} {outcome}, {night.done} done, {night.failed} failed"
    message["From"], message["To"] = hook.mail_from, ", ".join(hook.mail_to)
    message.set_content(f"{counts_equation(night)}\n\n{json.dumps(night.to_dict(), indent=1)}\n")
    host, _, port = hook.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=TIMEOUT_S) as server:
        server.send_message(message)
