"""The common design of all report pages: the HTML page, sortable tables, images as data URIs, the security policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
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

from her2batch.reports.figures import CLASS_COLOURS, PALETTE, Figure
from her2batch.store.cohort import Cohort
from her2batch.task_names import stain_name, task_name

ROWS_PER_PAGE: Final = 50
"""Rows of a sortable table that are shown at once."""

ROWS_WITHOUT_SCRIPT: Final = 12
"""Rows of a sortable table that are shown where no script runs."""

LIST_THUMBNAIL_PX: Final = 96
"""Long edge of the thumbnails in tables, px."""

NBSP: Final = "\u00a0"

THUMBNAIL_THREADS: Final = 4
"""Threads that shrink thumbnails."""

ColumnKind = str
"""Kind of a table column: slide · text · class · number · share · words · slides · result · reasons."""


@dataclass(frozen=True)
class SortableTable:
    """A table that the reader can sort and filter.

    columns: (label, kind, source) each, where source is the table and column of the cohort.  rows: one value for each
    column, None where there is none.

    Kinds: `slide`, a slide id that is shown with its thumbnail · `class` · `number` · `share`, 0–1 · `words`, a list of
    strings · `slides`, a list of [slide id, caption] · `text`.
    """

    name: str
    title: str
    note: str
    columns: tuple[tuple[str, ColumnKind, str], ...]
    rows: list[list[Any]]
    filters: tuple[tuple[str, list[int]], ...] = ()

    @property
    def data(self) -> Markup:
        """The table as JSON that can stand in a <script> element."""
        return json_for_script(
            {
                "page": ROWS_PER_PAGE,
                "columns": [list(column) for column in self.columns],
                "rows": self.rows,
                "filters": [list(entry) for entry in self.filters],
            }
        )

    @property
    def slide_ids(self) -> list[str]:
        """All slides in the table, each once, in the order of the columns and rows."""
        ids: dict[str, None] = {}
        for (_, kind, _), values in zip(self.columns, zip(*self.rows, strict=True), strict=False):
            for value in values if kind in ("slide", "slides") else ():
                ids |= dict.fromkeys([value] if kind == "slide" else [slide_id for slide_id, _ in value])
        return list(ids)


@dataclass(frozen=True)
class SectionContent:
    """The content of a report section: its HTML, and the figures and tables in it."""

    html: Markup
    figures: tuple[Figure, ...] = ()
    tables: tuple[SortableTable, ...] = ()


def json_for_script(value: Any) -> Markup:
    """Return a value as JSON without the characters <, > and &, so that it can't end a <script> element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


@cache
def _template_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("her2batch.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["percent"] = format_percent
    environment.filters["number"] = format_number
    environment.filters["task_name"], environment.filters["stain_name"] = task_name, stain_name
    environment.filters["hue"] = lambda name: CLASS_COLOURS.get(name, "bar")
    environment.globals["ROWS_WITHOUT_SCRIPT"] = ROWS_WITHOUT_SCRIPT
    return environment


def render_template(template: str, **values: Any) -> Markup:
    """Render a template of this package. All values are escaped."""
    return Markup(_template_environment().get_template(template).render(**values))  # noqa: S704  (autoescape is on)


def format_number(value: Any, digits: int = 2) -> str:
    """Format a number for readers, with thousands separators; – for None."""
    if value is None:
        return "–"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def format_percent(value: float | None, digits: int = 1) -> str:
    """Format a share as a percentage; – for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}{NBSP}%"


def render_html_page(title: str, body: Markup, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
    """Return a complete HTML page with its style and script inside.

    pictures: slide_id → thumbnail as a data URI.  links: slide_id → address of its evidence.
    """
    script = _read_asset("report.js").strip()
    data = json_for_script({"pictures": pictures, "links": links, "classColours": CLASS_COLOURS})
    return render_template(
        "page.html", title=title, body=body, data=data, script=Markup(script), policy=csp_for_file(script),  # noqa: S704
        style=Markup(_palette_css() + _read_asset("report.css")),  # noqa: S704  (our own files)
    )  # fmt: skip


def _read_asset(name: str) -> str:
    return resources.files("her2batch.reports").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _palette_css() -> str:
    """Return the palette as CSS variables. Print is always light."""
    light, dark = ("".join(f"--{name}:{pair[k]};" for name, pair in PALETTE.items()) for k in (0, 1))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


# -- images ------------------------------------------------------------------------------------------------------


def thumbnail_uris(cohort: Cohort, slide_ids: Sequence[str], edge: int = LIST_THUMBNAIL_PX) -> dict[str, str]:
    """Return small thumbnails as data URIs: slide_id → URI. Slides without a readable thumbnail are left out.

    edge: long edge, px.
    """

    def small_uri(slide_id: str) -> str | None:
        try:
            jpeg = np.frombuffer(cohort.thumbnail(slide_id).read_bytes(), np.uint8)
        except OSError:
            return None
        flag = cv2.IMREAD_REDUCED_COLOR_8 if edge <= 2 * LIST_THUMBNAIL_PX else cv2.IMREAD_REDUCED_COLOR_2
        image = cv2.imdecode(jpeg, flag)
        return None if image is None else jpeg_data_uri(shrink_to_fit(image, edge)[..., ::-1], 70)

    with ThreadPoolExecutor(THUMBNAIL_THREADS) as pool:
        uris = zip(slide_ids, pool.map(small_uri, slide_ids), strict=True)
        return {slide_id: uri for slide_id, uri in uris if uri is not None}


def shrink_to_fit(image: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    """Shrink an image, (H, W, 3) uint8, so that its long edge has at most `edge` px."""
    scale = edge / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def jpeg_data_uri(image: NDArray[np.uint8], quality: int = 82) -> str:
    """Encode an image, (H, W, 3) uint8 RGB, as JPEG and return it as a data URI."""
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return data_uri("image/jpeg", jpeg.tobytes())


def data_uri(media_type: str, content: bytes) -> str:
    """Return bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


# -- content security policy -------------------------------------------------------------------------------------

BASE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def csp_for_file(*scripts: str) -> str:
    """Return the content security policy of a self-contained file, for its <meta http-equiv> element.

    scripts: the exact texts of the page's <script> elements. Without any, no script runs.
    """
    return "; ".join([BASE_POLICY, *_script_sources(scripts)])


def csp_for_server(*scripts: str) -> str:
    """Return the content security policy of a served page, for its header.

    Images and requests are allowed to the same server, and no other page can frame this one.
    """
    same_server = BASE_POLICY.replace("img-src data:", "img-src 'self' data:")
    return "; ".join([same_server, "connect-src 'self'", "frame-ancestors 'none'", *_script_sources(scripts)])


def script_hash(script: str) -> str:
    """Return the source expression of a script, 'sha256-…', computed over its text with LF line ends as browsers do."""
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _script_sources(scripts: tuple[str, ...]) -> list[str]:
    return [f"script-src {' '.join(map(script_hash, scripts))}"] if scripts else []
