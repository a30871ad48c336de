"""The HTML page of every report: no external resources, and all names escaped."""

import base64
import json
import re

import cv2
import numpy as np

from her2batch.reports.theme import (
    SortableTable,
    csp_for_file,
    csp_for_server,
    format_number,
    format_percent,
    jpeg_data_uri,
    json_for_script,
    render_html_page,
    render_template,
    script_hash,
    shrink_to_fit,
    thumbnail_uris,
)
from her2batch.store.cohort import Cohort
from tests.reports.conftest import EVIL

TABLE = SortableTable(
    "l", "List", EVIL, (("slide", "slide", "slides.slide_id"), ("n", "number", "x")), [[EVIL, 1], ["b", None]]
)


def test_json_can_stand_in_a_script_element() -> None:
    text = json_for_script({"name": "</script><!-- & é"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!-- & é"}


def test_names_are_escaped() -> None:
    html = render_html_page(EVIL, render_template("sortable_table.html", table=TABLE), {EVIL: "data:x"}, {EVIL: EVIL})
    assert html.count("<script>") == 1
    assert "alert('x')</script>" not in html


def test_policy_allows_only_the_script_of_the_page() -> None:
    html = render_html_page("t", render_template("sortable_table.html", table=TABLE), {}, {})
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    assert script_hash(script) in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r'(src|href)="https?:', html)


def test_table_returns_the_slides_it_shows() -> None:
    columns = (("slide", "slide", "s"), ("others", "slides", "s"))
    assert SortableTable("l", "t", "n", columns, [["a", [["b", "x"], ["a", "y"]]]]).slide_ids == ["a", "b"]
    assert SortableTable("l", "t", "n", columns, []).slide_ids == []


def test_numbers_and_percentages_are_formatted() -> None:
    assert [format_number(one) for one in (None, 12345, 0.126, -0.05)] == ["–", "12,345", "0.13", "−0.05"]
    assert format_percent(0.1234) == "12.3\u00a0%"


def test_thumbnails_are_small(reported: Cohort) -> None:
    ids = [one for one, row in reported.rows().items() if row["status"] == "done"][:3]
    found = thumbnail_uris(reported, [*ids, "nobody"])
    assert list(found) == ids
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(found[ids[0]].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) <= 96
    assert sum(map(len, found.values())) < 3 * 8000


def test_shrinking_keeps_aspect_ratio_and_channel_order() -> None:
    red = np.zeros((100, 200, 3), np.uint8)
    red[..., 0] = 255
    assert shrink_to_fit(red, 50).shape == (25, 50, 3)
    assert shrink_to_fit(red, 500) is red
    back = cv2.imdecode(np.frombuffer(base64.b64decode(jpeg_data_uri(red).split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert back[50, 100, 2] > 240


def test_script_is_allowed_by_the_hash_of_its_text() -> None:
    # printf "alert('Hello, world.');" | openssl dgst -sha256 -binary | openssl base64
    known = "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
    assert script_hash("alert('Hello, world.');") == known
    assert f"script-src {known}" in csp_for_file("alert('Hello, world.');")
    assert script_hash("a\r\nb") == script_hash("a\nb")


def test_page_without_scripts_allows_none() -> None:
    assert csp_for_file().startswith("default-src 'none'")
    assert "script-src" not in csp_for_file()


def test_policies_allow_no_other_host_and_no_unlisted_script() -> None:
    for policy in (csp_for_file("x"), csp_for_server("x", "y")):
        assert "http" not in policy
        assert "*" not in policy
        scripts = next(one for one in policy.split("; ") if one.startswith("script-src"))
        assert "unsafe" not in scripts
        assert "'self'" not in scripts
        assert '"' not in policy  # it stands in an attribute
    assert "'self'" not in csp_for_file("x")
    assert "frame-ancestors 'none'" in csp_for_server()
