"""Access through a reverse proxy that knows its users: host names, path prefix, the user in a header, and roles.

A header is worth no more than who sends it. It counts only in a request that comes from a trusted address and carries
the secret that the proxy and this server share: every program of the same machine can connect to a port on loopback,
and every browser can send a header.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from her2batch.errors import InputError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

SECRET_HEADER: Final = "x-her2batch-proxy"  # noqa: S105  (the header's name)
"""Header with the secret that the proxy and this server share."""

MIN_SECRET_LENGTH: Final = 20
"""Least characters of the secret."""

MAX_USER_LENGTH: Final = 100
"""Most characters of a user's name, as of a reviewer's."""

HOST = re.compile(r"(?!-)[a-z0-9.-]{1,253}|\[[0-9a-f:]+\]")
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
HEADER = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True)
class ProxyAccess:
    """How a reverse proxy reaches the server. The default is none: this machine only, with the token.

    hosts: host names that requests may use besides those of this machine.  prefix: path under which the proxy shows the
    server, such as "/her2".  user_header, groups_header: headers that name the user, and the user's groups separated by
    commas.  reviewers: users and groups who may enter reviews and post slides; all others only read.  trusted: networks
    from which the headers are accepted.  secret: that the proxy sends with each request.
    """

    hosts: tuple[str, ...] = ()
    prefix: str = ""
    user_header: str | None = None
    groups_header: str | None = None
    reviewers: frozenset[str] = frozenset()
    trusted: tuple[str, ...] = ("127.0.0.1", "::1")
    secret: str = ""


NO_PROXY: Final = ProxyAccess()
"""This machine only, with the token."""


@dataclass(frozen=True)
class ProxyUser:
    """A user whom the proxy has authenticated."""

    name: str
    is_reviewer: bool


def check_access(access: ProxyAccess) -> None:
    """Check the settings before a port is opened. Raises InputError."""
    for host in access.hosts:
        if not HOST.fullmatch(host.lower()):
            raise InputError(f"--allowed-host {host!r} is not a host name", None, "give a name without port and path")
    if not PREFIX.fullmatch(access.prefix):
        raise InputError(
            f"--prefix {access.prefix!r} is not a path", None, "give a path such as /her2, without / at the end"
        )
    for network in access.trusted:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise InputError(f"--trusted-proxy {network!r}: {error}", None, "give an address or a network") from error
    if access.user_header is None:
        if access.reviewers or access.groups_header:
            raise InputError("--reviewer and --groups-header need --user-header", None, "name the header of the user")
        return
    for header in filter(None, (access.user_header, access.groups_header)):
        if not HEADER.fullmatch(header):
            raise InputError(f"{header!r} is not the name of a header", None, "give a name such as X-Forwarded-User")
    if len(access.secret) < MIN_SECRET_LENGTH:
        what = f"the secret of the proxy has {len(access.secret)} characters, it needs {MIN_SECRET_LENGTH}"
        raise InputError(what, None, "set HER2BATCH_PROXY_SECRET here, and let the proxy send it as X-Her2batch-Proxy")


def proxy_user(request: HTTPConnection, access: ProxyAccess) -> ProxyUser | None:
    """Return the user of a request that the proxy has authenticated; None for any other request.

    A header that is there twice, empty or not printable names nobody: the proxy has not set it alone.
    """
    if access.user_header is None or len(access.secret) < MIN_SECRET_LENGTH:
        return None
    if not is_trusted_peer(request, access.trusted) or not _has_secret(request, access.secret):
        return None
    names = request.headers.getlist(access.user_header)
    name = names[0].strip() if len(names) == 1 else ""
    if not name or len(name) > MAX_USER_LENGTH or not name.isprintable():
        return None
    groups: set[str] = set()
    if access.groups_header is not None:
        lists = request.headers.getlist(access.groups_header)
        groups = {group.strip() for group in lists[0].split(",")} - {""} if len(lists) == 1 else set()
    return ProxyUser(name, bool(({name} | groups) & access.reviewers))


def is_trusted_peer(request: HTTPConnection, trusted: tuple[str, ...]) -> bool:
    """Return whether the connection is from one of the networks. X-Forwarded-For is ignored: anyone can send it."""
    if request.client is None:
        return False
    try:
        peer = ipaddress.ip_address(request.client.host.partition("%")[0])
    except ValueError:
        return False
    peer = getattr(peer, "ipv4_mapped", None) or peer
    return any(peer in ipaddress.ip_network(network) for network in trusted)


def _has_secret(request: HTTPConnection, secret: str) -> bool:
    values = request.headers.getlist(SECRET_HEADER)
    return len(values) == 1 and hmac.compare_digest(values[0].encode(errors="replace"), secret.encode())
