"""Notification at the end of a nightly run: webhook, mail, dead-man's switch, metrics. It contains no patient data."""

from __future__ import annotations

import json
import os
import smtplib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from her2batch.errors import InputError
from her2batch.job_settings import NotificationSettings
from her2batch.nightly.mail import check_mail_settings, send_mail
from her2batch.nightly.messages import went_well
from her2batch.nightly.metrics import check_textfile, write_textfile
from her2batch.nightly.summary import NightSummary

TIMEOUT_S: Final = 20.0
"""Time limit for the web servers."""

ADDRESS_VARIABLES: Final = {"webhook": "HER2BATCH_WEBHOOK", "ping": "HER2BATCH_PING"}
"""Setting → environment variable that replaces it: such an address often contains a secret."""


def hook_address(hook: NotificationSettings, name: str) -> str | None:
    """Return the address of the webhook or of the dead-man's switch, from the environment or the settings."""
    address: str | None = os.environ.get(ADDRESS_VARIABLES[name]) or getattr(hook, name)
    return address


def check_hook(hook: NotificationSettings) -> None:
    """Check the notification settings. Raises InputError, without the address, when one is not usable."""
    for name in (*ADDRESS_VARIABLES, "link"):
        address = hook_address(hook, name) if name in ADDRESS_VARIABLES else hook.link
        if address is None:
            continue
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"hook.{name} is not an http address", None, "give https://HOST/PATH")
    check_mail_settings(hook)
    check_textfile(hook.textfile)


def send_summary(hook: NotificationSettings, night: NightSummary) -> list[str]:
    """Post and mail the summary, and write the metrics.

    Returns a message for each failure; a failure does not end the night.
    """
    failures = []
    if (webhook := hook_address(hook, "webhook")) is not None:
        failures += _call(webhook, json.dumps(night.to_dict()).encode(), "the webhook did not accept the summary")
    if hook.mail_to:
        try:
            send_mail(hook, night)
        except (OSError, smtplib.SMTPException) as error:
            failures.append(f"the mail server {hook.smtp} did not accept the summary ({error})")
    if hook.textfile is not None:
        try:
            write_textfile(Path(hook.textfile), night)
        except OSError as error:
            failures.append(f"the metrics could not be written to {hook.textfile} ({error.strerror})")
    return failures


def call_ping(hook: NotificationSettings, night: NightSummary) -> list[str]:
    """Call the dead-man's switch if a night ended well: whoever watches it raises an alarm when no call comes.

    It is the last step of a night, after its report is written. Returns a message if it fails.
    """
    address = hook_address(hook, "ping")
    if address is None or not went_well(night):
        return []
    return _call(address, None, "the dead-man's switch could not be called")


def _call(address: str, body: bytes | None, failure: str) -> list[str]:
    """Get an address, or post JSON to it. Returns a message if that fails; it does not contain the address."""
    headers = {"User-Agent": "her2batch", **({"Content-Type": "application/json"} if body is not None else {})}
    request = urllib.request.Request(address, body, headers)  # noqa: S310  (`check_hook` allows only http and https)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            return []
    except (OSError, urllib.error.URLError, ValueError) as error:
        return [f"{failure} ({error})"]
