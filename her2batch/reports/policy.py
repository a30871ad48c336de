"""Content-security policies: what a page of ours may load and run, which is its own text and nothing else.

https://www.w3.org/TR/CSP3/.  A script is allowed by the hash of its text; styles and pictures lie in the page.
"""

from __future__ import annotations

import base64
import hashlib

CLOSED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def for_file(*scripts: str) -> str:
    """The policy of a self-contained file, for its <meta http-equiv="Content-Security-Policy">.

    scripts: the texts between the page's <script> tags, to the byte; none: nothing runs.
    """
    return "; ".join([CLOSED, *_allowed(scripts)])


def for_server(*scripts: str) -> str:
    """The policy of a page we serve, for its header: pictures and answers from the same server too, in no frame."""
    own = CLOSED.replace("img-src data:", "img-src 'self' data:")
    return "; ".join([own, "connect-src 'self'", "frame-ancestors 'none'", *_allowed(scripts)])


def script_hash(script: str) -> str:
    """A script's source expression: 'sha256-…' of the text as a browser sees it, with LF alone."""
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _allowed(scripts: tuple[str, ...]) -> list[str]:
    return [f"script-src {' '.join(map(script_hash, scripts))}"] if scripts else []
