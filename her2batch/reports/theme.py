"""How every page looks: one shell with its style and script inside, lists that sort and filter, pictures as data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from her2batch.reports.figures import HUES, LOOK, Figure
from her2batch.store.cohort import Cohort

PAGE: Final = 50
"""Rows of a list on the screen at once."""

PRINTED: Final = 12
"""Rows of a list where no script runs."""

PICTURE: Final = 96
"""Edge of a list's pictures, px."""

NBSP: Final = "\u00a0"

THREADS: Final = 4
"""That shrink pictures."""

Kind = str
"""Of a column: slide · text · class · number · share · words · slides."""


@dataclass(frozen=True)
class Listing:
    """A table to sort and filter. columns: (label, kind, source).  rows: a value a column, None for none.

    Kinds: `slide`, an id with its picture · `class` · `number` · `share`, 0–1 · `words`, a list · `slides`, a list of
    [id, what to say of it] · `text`.
    """

    name: str
    title: str
    note: str
    columns: tuple[tuple[str, Kind, str], ...]
    rows: list[list[Any]]

    @property
    def data(self) -> Markup:
        """The list as JSON that may stand in a <script>."""
        return as_json({"page": PAGE, "columns": [list(one) for one in self.columns], "rows": self.rows})

    @property
    def slides(self) -> list[str]:
        """Every slide that it shows, in order."""
        found: dict[str, None] = {}
        for (_, kind, _), values in zip(self.columns, zip(*self.rows, strict=True), strict=False):
            for value in values if kind in ("slide", "slides") else ():
                found |= dict.fromkeys([value] if kind == "slide" else [one[0] for one in value])
        return list(found)


@dataclass(frozen=True)
class Part:
    """What a section comes to: its HTML, the figures and the lists in it."""

    html: Markup
    figures: tuple[Figure, ...] = ()
    lists: tuple[Listing, ...] = ()


def as_json(value: Any) -> Markup:
    """JSON that neither ends nor begins a tag."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("her2batch.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    made.filters["percent"] = percent
    made.filters["number"] = number
    made.filters["hue"] = lambda name: HUES.get(name, "bar")
    made.globals["PRINTED"] = PRINTED
    return made


def render(template: str, **values: Any) -> Markup:
    """A template's HTML; whatever is put into it is escaped."""
    return Markup(_templates().get_template(template).render(**values))  # noqa: S704  (autoescape is on)


def number(value: Any, digits: int = 2) -> str:
    """A number as it is read; – for none."""
    if value is None:
        return "–"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; – for none."""
    return "–" if value is None else f"{100 * value:.{digits}f}{NBSP}%"


def shell(title: str, body: Markup, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
    """A whole page. pictures: slide_id → data: address.  links: slide_id → its evidence."""
    script = _asset("report.js").strip()
    data = as_json({"pictures": pictures, "links": links, "hues": HUES})
    return render(
        "shell.html", title=title, body=body, data=data, script=Markup(script), policy=for_file(script),  # noqa: S704
        style=Markup(_colours() + _asset("report.css")),  # noqa: S704  (our own files)
    )  # fmt: skip


def _asset(name: str) -> str:
    return resources.files("her2batch.reports").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _colours() -> str:
    """The palette as CSS variables. Paper is always light."""
    light, dark = ("".join(f"--{name}:{pair[k]};" for name, pair in LOOK.items()) for k in (0, 1))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


# -- pictures ----------------------------------------------------------------------------------------------------


def pictures(cohort: Cohort, slide_ids: Sequence[str], edge: int = PICTURE) -> dict[str, str]:
    """Small pictures of slides as data: addresses; those whose thumbnail can't be read are left out."""

    def small(slide_id: str) -> str | None:
        try:
            packed = np.frombuffer(cohort.thumbnail(slide_id).read_bytes(), np.uint8)
        except OSError:
            return None
        flag = cv2.IMREAD_REDUCED_COLOR_8 if edge <= 2 * PICTURE else cv2.IMREAD_REDUCED_COLOR_2
        picture = cv2.imdecode(packed, flag)
        return None if picture is None else data_jpeg(within(picture, edge)[..., ::-1], 70)

    with ThreadPoolExecutor(THREADS) as pool:
        found = zip(slide_ids, pool.map(small, slide_ids), strict=True)
        return {slide_id: one for slide_id, one in found if one is not None}


def within(picture: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    """(H, W, 3) shrunk so that its long edge is at most `edge`."""
    scale = edge / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def data_jpeg(picture: NDArray[np.uint8], quality: int = 82) -> str:
    """(H, W, 3) uint8 RGB as a data: address."""
    coded = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return data_uri("image/jpeg", coded.tobytes())


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figures(html: Iterable[Figure]) -> Markup:
    """Figures side by side, each with its caption, its source and its table."""
    return render("figures.html", figures=list(html))


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
