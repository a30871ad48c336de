"""Authentication: only users of this machine who have the token are served, and no page of another origin.

A program sends `Authorization: Bearer TOKEN`. A browser opens a link that works once and gets a cookie that scripts
can't read and other sites can't send. A request of the browser that changes something needs a header that only our own
page can set. A `Host` other than the names of this machine is refused, which prevents DNS rebinding (a page of another
site that reaches a server on the loopback interface). A reverse proxy may be allowed further names and may authenticate
its users itself; see `web.proxy`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from her2batch.web.proxy import NO_PROXY, ProxyAccess, proxy_user

ALLOWED_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

WRITE_HEADER = "x-her2batch"
"""Header of writes by our own page. A page of another origin would need a CORS preflight, which is refused."""

SAFE_METHODS = frozenset({"GET", "HEAD"})

PUBLIC_PATHS = ("/static/",)
"""Paths that anyone on this machine may read: scripts and styles, no data."""

MAX_BODY_BYTES = 64_000
"""Largest body of a request, bytes."""

EMPTY_STYLE_HASH = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""Hash of the empty string. An empty <style> element in the page keeps OpenSeadragon from adding its own styles."""

RESPONSE_HEADERS = {
    "content-security-policy": f"default-src 'self'; style-src 'self' {EMPTY_STYLE_HASH}; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every response. Browsers must not store images or data of a slide."""

RedeemCode = Callable[[str], Awaitable[bool]]
"""Returns whether the one-time code of a link is valid and unused."""


class AuthMiddleware:
    """ASGI middleware that lets only authenticated requests reach the application."""

    def __init__(self, app: ASGIApp, token: str, redeem_code: RedeemCode, access: ProxyAccess = NO_PROXY) -> None:
        self._app, self._token, self._redeem_code, self._access = app, token, redeem_code, access
        self._hosts = ALLOWED_HOSTS | {host.lower() for host in access.hosts}
        self._cookie_value = hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._without_prefix(scope)
        scope.setdefault("state", {})["user"] = None
        request = Request(scope, receive)
        response = await self._response_without_app(request)
        if response is not None:
            await response(scope, receive, _add_headers(send))
        else:
            await self._app(scope, _limit_body(receive), _add_headers(send))

    async def _response_without_app(self, request: Request) -> Response | None:
        """Return the response to a sign-in or to a refused request; None for a request that reaches the application."""
        if _hostname(request.headers.get("host", "")).lower() not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            return JSONResponse({"detail": f"this server answers only to the names {names}"}, 421)
        if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            return JSONResponse({"detail": f"the body of a request has at most {MAX_BODY_BYTES} bytes"}, 413)
        path = request.url.path
        if path.startswith(PUBLIC_PATHS) and request.method in SAFE_METHODS:
            return None
        if path == "/login" and request.method == "POST":
            return await self._login(request)
        if path == "/" and "token" in request.query_params:
            if await self._redeem_code(request.query_params["token"]):
                return self._signed_in(request)
            return self._sign_in_page("This link was already used, or belongs to another server.", 401)
        if (user := proxy_user(request, self._access)) is not None:
            request.scope["state"]["user"] = user
            return _refused_write(request) if user.is_reviewer or request.method in SAFE_METHODS else _read_only()
        authorization = request.headers.get("authorization", "")
        if authorization.startswith("Bearer "):
            is_right = _equal_secrets(authorization.removeprefix("Bearer "), self._token)
            return None if is_right else self._unauthorized(path)
        if not _equal_secrets(request.cookies.get(_cookie_name(request), ""), self._cookie_value):
            return self._unauthorized(path)
        return _refused_write(request)

    def _without_prefix(self, scope: Scope) -> Scope:
        """Remove the prefix from the path: a proxy may pass it on or remove it itself."""
        prefix, path = self._access.prefix, str(scope["path"])
        if not prefix or not path.startswith(f"{prefix}/"):
            return {**scope}
        return {**scope, "path": path.removeprefix(prefix), "raw_path": None}

    async def _login(self, request: Request) -> Response:
        body = (await request.body())[:MAX_BODY_BYTES].decode(errors="replace")
        token = parse_qs(body).get("token", [""])[0].strip()
        return (
            self._signed_in(request)
            if _equal_secrets(token, self._token)
            else self._sign_in_page("The token is wrong.", 401)
        )

    def _signed_in(self, request: Request) -> Response:
        home = f"{self._access.prefix}/"
        response = RedirectResponse(home, 303)
        response.set_cookie(_cookie_name(request), self._cookie_value, httponly=True, samesite="strict", path=home)
        return response

    def _unauthorized(self, path: str) -> Response:
        if path.startswith("/api/"):
            return JSONResponse(
                {"detail": "the token of this server is missing or wrong"}, 401, {"www-authenticate": "Bearer"}
            )
        return self._sign_in_page("", 401)

    def _sign_in_page(self, message: str, status: int) -> Response:
        """Return a page that asks for the token. message: shown above the form."""
        prefix = self._access.prefix
        return HTMLResponse(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>her2batch</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="stylesheet" href="{prefix}/static/style.css">'
            f'<link rel="icon" href="{prefix}/static/icon.svg">'
            f'<main class="sign-in"><h1>her2batch</h1><p role="status">{message}</p>'
            f'<form method="post" action="{prefix}/login"><label for="token">Token</label>'
            '<input id="token" name="token" type="password" autocomplete="off" required autofocus>'
            "<button>Sign in</button></form><p>The token is in the file that <code>her2batch serve</code> printed when "
            "it started.</p></main></html>",
            status,
        )


def _refused_write(request: Request) -> Response | None:
    """Return the response to a write that a page of another origin may have caused, else None."""
    if request.method in SAFE_METHODS or _is_own_page(request):
        return None
    detail = f"writes from a browser need the header {WRITE_HEADER} and the origin of this server"
    return JSONResponse({"detail": detail}, 403)


def _read_only() -> Response:
    return JSONResponse({"detail": "you may read; only reviewers may enter reviews and post slides"}, 403)


def _equal_secrets(value: str, secret: str) -> bool:
    return hmac.compare_digest(value.encode(errors="replace"), secret.encode())


def _hostname(host: str) -> str:
    """Return the name in a Host header, without the port."""
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host


def _cookie_name(request: Request) -> str:
    """Return the name of the cookie. It contains the port, because browsers share cookies among the ports of a host."""
    return f"her2batch-{request.url.port or 80}"


def _is_own_page(request: Request) -> bool:
    origin = request.headers.get("origin")
    same_origin = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return same_origin and request.headers.get(WRITE_HEADER) is not None


def _add_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message["headers"]}
            added = [
                (name.encode(), value.encode()) for name, value in RESPONSE_HEADERS.items() if name.encode() not in own
            ]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return send_with_headers


def _limit_body(receive: Receive) -> Receive:
    """Stop reading a body that is longer than MAX_BODY_BYTES."""
    n_bytes = 0

    async def receive_limited() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        return {"type": "http.disconnect"} if n_bytes > MAX_BODY_BYTES else message

    return receive_limited
