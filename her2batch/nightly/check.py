"""Check of a nightly run before its first night: mounts, rights, space, mail, weights and clock. It changes nothing."""

from __future__ import annotations

import ctypes
import os
import smtplib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from her2batch.errors import Her2BatchError
from her2batch.files.locations import free_bytes, is_remote, to_location
from her2batch.files.locks import is_locked
from her2batch.job_settings import NightlySettings, NotificationSettings
from her2batch.models.bundle import check_bundle_fits, read_bundle
from her2batch.models.encoders import TimmEncoder, encoder_spec
from her2batch.models.predictor import BundlePredictor
from her2batch.models.weights import find_cached_weights
from her2batch.nightly import mail
from her2batch.nightly.notify import ADDRESS_VARIABLES, check_hook, hook_address
from her2batch.pipeline.calibration.apply import load_calibration
from her2batch.pipeline.queue import local_now, next_occurrence
from her2batch.runtime.doctor import Check
from her2batch.runtime.ingest import MIN_FREE_BYTES
from her2batch.slides.discover import discover_slides
from her2batch.store.cohort import Cohort
from her2batch.store.labels import read_labels
from her2batch.store.pseudonyms import read_key

CONNECT_S: Final = 5.0
"""Time limit for a connection to a web server."""

CLOCK_S: Final = 5.0
"""Largest accepted difference between the clock of this machine and that of a file server."""

TIME_ERROR: Final = 5
"""Value of adjtimex(2) for a clock that nothing synchronizes."""


def check_night(settings: NightlySettings) -> list[Check]:
    """Return all checks of a settings file.

    Slides are looked for but not opened, the mail server is asked whether it would take the mail, and nothing is sent
    or downloaded. A file in the cohort's folder is made and removed.
    """
    steps: tuple[Callable[[NightlySettings], Iterator[Check]], ...] = (
        _scans, _cohort, _space, _files, _bundle, _calibration, _weights, _mail, _web, _clock, _window
    )  # fmt: skip
    return [check for step in steps for check in step(settings)]


def _failed(name: str, error: Exception) -> Check:
    if isinstance(error, Her2BatchError):
        where = f"{error.path}: " if error.path is not None else ""
        return Check(name, False, f"{where}{error.message}", error.remedy)
    return Check(name, False, f"{type(error).__name__}: {error}")


def _scans(settings: NightlySettings) -> Iterator[Check]:
    """Check that the scan folder is mounted, can be read, and holds slides."""
    folder = Path(settings.scans)
    if not folder.is_dir():
        yield Check("scans", False, f"{folder}: there is no such folder", "mount the share, or correct `scans`")
        return
    if not os.access(folder, os.R_OK | os.X_OK):
        yield Check("scans", False, f"{folder}: {_user()} may not read it", "give this user the right to read it")
        return
    mount = _mount_of(folder)
    yield Check("scans", True, f"{folder} on {mount}")
    try:
        found = discover_slides(folder)
    except (Her2BatchError, OSError) as error:
        yield _failed("slides", error)
        return
    unreadable = [slide.path for slide in found.slides if not os.access(slide.path, os.R_OK)]
    if unreadable:
        what = f"{len(unreadable)} of {len(found.slides)} slides may not be read by {_user()}, first {unreadable[0]}"
        yield Check("slides", False, what, "give this user the right to read them")
    elif not found.slides:
        remedy = "look whether the share is mounted; a new scanner may not have written yet"
        yield Check("slides", None, f"there is none in {folder} now", remedy)
    else:
        yield Check("slides", True, f"{len(found.slides)} in the folder now")


def _mount_of(path: Path) -> str:
    """Return kind and place of the file system that a path lies on."""
    resolved = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    if not mounts:
        return "an unknown file system"
    mount = max(mounts, key=lambda part: len(part.mountpoint))
    return f"{mount.fstype or 'unknown'} mounted at {mount.mountpoint}"


def _user() -> str:
    return f"user {psutil.Process().username()}"


def _cohort(settings: NightlySettings) -> Iterator[Check]:
    """Check that the cohort's folder can be written to and is free, and that its server has the same time."""
    root = to_location(settings.cohort)
    if is_remote(root):
        yield Check("cohort", None, f"{root} is an object store; it is not written to by this check")
        return
    there = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(prefix=".her2batch-check-", dir=there) as file:
            os.fsync(file.fileno())
            apart = abs(Path(file.name).stat().st_mtime - time.time())
    except OSError as error:
        what = f"{there}: {_user()} cannot write to it ({error.strerror})"
        yield Check("cohort", False, what, "give this user the right to write to it, or repair the disk")
        return
    if is_locked(root):
        yield Check("cohort", None, f"{root}: another run holds it now", "a night that starts now would be refused")
    else:
        yield Check("cohort", True, f"{root}" + ("" if root.exists() else " will be made") + f" on {_mount_of(there)}")
    if apart > CLOCK_S:
        remedy = "synchronize both with NTP: a file counts as finished by its time"
        yield Check("file server", False, f"its clock differs by {apart:.0f} s from this machine's", remedy)


def _space(settings: NightlySettings) -> Iterator[Check]:
    root = to_location(settings.cohort)
    free = free_bytes(root)
    if free is None:
        return
    limit = max(settings.disk.warn_gigabytes * 1e9, MIN_FREE_BYTES)
    remedy = "make room, or limit the pyramids with [retention]; `her2batch ingest --dry-run` estimates what is needed"
    what = f"{free / 1e9:,.0f} GB free; a night warns below {limit / 1e9:,.0f} GB and refuses below 1 GB"
    yield Check("space", free >= limit, what, "" if free >= limit else remedy)


def _files(settings: NightlySettings) -> Iterator[Check]:
    """Check labels, key and sentinels."""
    if settings.labels is not None:
        try:
            labels = read_labels(Path(settings.labels), columns=settings.columns)
            yield Check("labels", True, f"{len(labels)} slides in {settings.labels}")
        except (Her2BatchError, OSError) as error:
            yield _failed("labels", error)
    if settings.pseudonymize is not None:
        try:
            read_key(Path(settings.pseudonymize))
            yield Check("pseudonymize", True, f"{settings.pseudonymize}, readable by its owner alone")
        except (Her2BatchError, OSError) as error:
            yield _failed("pseudonymize", error)
    if settings.sentinels is not None:
        folder = Path(settings.sentinels.folder)
        count = len(discover_slides(folder).slides) if folder.is_dir() else 0
        remedy = "" if count else "put slides there that never change, or remove the section [sentinels]"
        yield Check("sentinels", count > 0, f"{count} slides in {folder}", remedy)


def _bundle(settings: NightlySettings) -> Iterator[Check]:
    if settings.bundle is None:
        yield Check("bundle", None, "none: only the membrane rule scores the slides")
        return
    try:
        bundle = read_bundle(Path(settings.bundle))
        check_bundle_fits(bundle, settings.plan)
        BundlePredictor(bundle)
        yield Check("bundle", True, f"{bundle.id} in {settings.bundle}")
    except (Her2BatchError, OSError) as error:
        yield _failed("bundle", error)


def _calibration(settings: NightlySettings) -> Iterator[Check]:
    if settings.calibration is None:
        return
    try:
        cohort = Cohort(to_location(settings.cohort))
        stored = cohort.plan() if cohort.settings.is_file() else None  # has what the settings file does not state
        calibration = load_calibration(Path(settings.calibration), stored or settings.plan)
        yield Check("calibration", True, f"{calibration.id} in {settings.calibration}")
    except (Her2BatchError, OSError) as error:
        yield _failed("calibration", error)


def _weights(settings: NightlySettings) -> Iterator[Check]:
    """Check that the weights of each encoder lie on this machine, without downloading any."""
    from her2batch.models.encoders import locate_encoder_weights

    for name in settings.plan.encoders:
        try:
            spec = encoder_spec(name)
            if not isinstance(spec, TimmEncoder):
                yield Check(f"encoder {name}", True, "needs no weights from the hub")
            elif settings.weights is not None:
                path = locate_encoder_weights(name, Path(settings.weights))
                yield Check(f"encoder {name}", True, str(path))
            elif (cached := find_cached_weights(spec.source)) is not None:
                yield Check(f"encoder {name}", True, f"{cached.stat().st_size / 1e9:.2g} GB in {spec.source.place}")
            else:
                remedy = f"{spec.source.access}; or set `weights`"
                yield Check(f"encoder {name}", False, "its weights are not on this machine", remedy)
        except Her2BatchError as error:
            yield _failed(f"encoder {name}", error)


def _mail(settings: NightlySettings) -> Iterator[Check]:
    """Ask the mail server whether it takes a mail from this sender to these recipients; none is sent."""
    hook = settings.hook
    try:
        check_hook(hook)
    except Her2BatchError as error:
        yield _failed("hook", error)
        return
    if not hook.mail_to:
        yield Check("mail", None, "none is sent: hook.mail_to is empty")
        return
    try:
        refused = _refused_recipients(hook)
    except (OSError, smtplib.SMTPException) as error:
        remedy = "check hook.smtp, hook.smtp_security and the login in the environment"
        yield Check("mail", False, f"{hook.smtp}: {_smtp_words(error)}", remedy)
        return
    if refused:
        yield Check("mail", False, f"{hook.smtp} refuses mail to {', '.join(refused)}", "correct hook.mail_to")
    else:
        how = "" if hook.smtp_security == "none" else f", {hook.smtp_security}"
        yield Check("mail", True, f"{hook.smtp}{how} takes mail to {', '.join(hook.mail_to)}")


def _refused_recipients(hook: NotificationSettings) -> list[str]:
    with mail.connect_to_server(hook) as server:
        server.ehlo_or_helo_if_needed()
        code, answer = server.mail(hook.mail_from)
        if code != 250:
            raise smtplib.SMTPSenderRefused(code, answer, hook.mail_from)
        refused = [one for one in hook.mail_to if server.rcpt(one)[0] not in (250, 251)]
        server.rset()
    return refused


def _smtp_words(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return "the login is refused"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "it does not offer what the settings ask for (encryption or login)"
    return str(error) or type(error).__name__


def _web(settings: NightlySettings) -> Iterator[Check]:
    """Check that the hosts of the webhook and of the dead-man's switch can be connected to; nothing is requested."""
    for name in ADDRESS_VARIABLES:
        address = hook_address(settings.hook, name)
        if address is None:
            continue
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
            yield Check(name, True, f"{host}:{port} answers")
        except OSError as error:
            yield Check(name, False, f"{host}:{port} does not answer ({error})", "check the address and the firewall")


def _clock(_: NightlySettings) -> Iterator[Check]:
    """Check that something synchronizes the clock: the window, the sentinels and the drift check rely on it."""
    now = local_now()
    what = f"{now:%Y-%m-%d %H:%M:%S}, time zone {now.tzname()}"
    synchronized = clock_is_synchronized()
    if synchronized is None:
        yield Check("clock", None, f"{what}; this system does not tell whether it is synchronized")
    elif synchronized:
        yield Check("clock", True, f"{what}, synchronized")
    else:
        yield Check("clock", None, f"{what}, not synchronized", "install chrony, or enable systemd-timesyncd")


def clock_is_synchronized() -> bool | None:
    """Return whether the kernel's clock is synchronized, None where the kernel cannot be asked (adjtimex(2))."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))  # modes = 0: only read
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != TIME_ERROR)


def _window(settings: NightlySettings) -> Iterator[Check]:
    now = local_now()
    parts = [
        f"{word} at {time_of_day}, in {(next_occurrence(time_of_day, now) - now).total_seconds() / 3600:.1f} h"
        for word, time_of_day in (("begins", settings.start), ("ends", settings.window.until))
        if time_of_day is not None
    ]
    text = "; ".join(parts) or "no limit: the run begins at once, and ends when nothing is left"
    if not parts and settings.window.linger:
        yield Check("window", None, "it never ends by itself", 'set until = "06:00" or linger = false in [window]')
        return
    yield Check("window", True, text)
