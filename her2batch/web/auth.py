"""Who may come in: this machine's own users who hold the token, and no page of another origin in their name.

A client sends `Authorization: Bearer TOKEN`. A browser opens a link that works once, and gets a cookie that scripts
can't read and other sites can't send; what it sends to change something must bear a header that only our own page can
set. A name in `Host` that is not this machine's own is refused: it is how a page in the browser would reach a server
on loopback (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

OURS = "x-her2batch"
"""Header of our own page's writes. Another origin's page would have to ask first, and is refused."""

SAFE = frozenset({"GET", "HEAD"})

OPEN = ("/static/",)
"""What anybody on this machine may read: our scripts and styles, no data."""

LONGEST_BODY = 64_000
"""Bytes of a request."""

EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""Of nothing: an empty <style> is allowed, whose place in the page keeps OpenSeadragon from adding one of its own."""

HEADERS = {
    "content-security-policy": f"default-src 'self'; style-src 'self' {EMPTY}; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer. Nothing of a slide is kept on the disk of a browser."""

Spend = Callable[[str], Awaitable[bool]]
"""Whether a link's code has not been used before."""


class AuthMiddleware:
    """The application behind a door."""

    def __init__(self, app: ASGIApp, token: str, spend: Spend) -> None:
        self._app, self._token, self._spend = app, token, spend
        self._pass = hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = await self._stopped(request)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
        else:
            await self._app(scope, _limited(receive), _with_headers(send))

    async def _stopped(self, request: Request) -> Response | None:
        """The answer to whoever doesn't come in; None for who does."""
        if _hostname(request.headers.get("host", "")) not in HOSTS:
            return JSONResponse({"detail": "this server answers to 127.0.0.1 and localhost alone"}, 421)
        if int(request.headers.get("content-length") or 0) > LONGEST_BODY:
            return JSONResponse({"detail": f"a body has at most {LONGEST_BODY} bytes"}, 413)
        path = request.url.path
        if path.startswith(OPEN) and request.method in SAFE:
            return None
        if path == "/login" and request.method == "POST":
            return await self._login(request)
        if path == "/" and "token" in request.query_params:
            if await self._spend(request.query_params["token"]):
                return self._welcome(request)
            return _door("This link was used already, or is not one of this server.", 401)
        authorization = request.headers.get("authorization", "")
        if authorization.startswith("Bearer "):
            return None if _same(authorization.removeprefix("Bearer "), self._token) else _unknown(path)
        if not _same(request.cookies.get(_cookie(request), ""), self._pass):
            return _unknown(path)
        if request.method not in SAFE and not _own_page(request):
            return JSONResponse({"detail": f"a browser's writes need the header {OURS} and our own origin"}, 403)
        return None

    async def _login(self, request: Request) -> Response:
        body = (await request.body())[:LONGEST_BODY].decode(errors="replace")
        given = parse_qs(body).get("token", [""])[0].strip()
        return self._welcome(request) if _same(given, self._token) else _door("That is not the token.", 401)

    def _welcome(self, request: Request) -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(_cookie(request), self._pass, httponly=True, samesite="strict", path="/")
        return answer


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), known.encode())


def _hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host


def _cookie(request: Request) -> str:
    """Browsers share cookies among the ports of a host: each has its name."""
    return f"her2batch-{request.url.port or 80}"


def _own_page(request: Request) -> bool:
    origin = request.headers.get("origin")
    ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return ours and request.headers.get(OURS) is not None


def _unknown(path: str) -> Response:
    if path.startswith("/api/"):
        return JSONResponse({"detail": "give the server's token"}, 401, {"www-authenticate": "Bearer"})
    return _door("", 401)


def _door(words: str, status: int) -> Response:
    """A page that asks for the token."""
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>her2batch</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/static/style.css"><link rel="icon" href="/static/icon.svg">'
        f'<main class="door"><h1>her2batch</h1><p role="status">{words}</p>'
        '<form method="post" action="/login"><label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="off" required autofocus>'
        "<button>Come in</button></form><p>It stands in the file that <code>her2batch serve</code> named when it "
        "started.</p></main></html>",
        status,
    )


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


def _limited(receive: Receive) -> Receive:
    """A body that is longer than any of ours ends the connection's reading."""
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > LONGEST_BODY else message

    return receiving
