"""The shell of every page: nothing from outside, nothing that a name could smuggle in."""

import base64
import json
import re

import cv2
import numpy as np

from her2batch.reports.theme import (
    Listing,
    as_json,
    data_jpeg,
    for_file,
    for_server,
    number,
    percent,
    pictures,
    render,
    script_hash,
    shell,
    within,
)
from her2batch.store.cohort import Cohort
from tests.reports.conftest import EVIL

LIST = Listing(
    "l", "List", EVIL, (("slide", "slide", "slides.slide_id"), ("n", "number", "x")), [[EVIL, 1], ["b", None]]
)


def test_json_can_stand_in_a_script() -> None:
    text = as_json({"name": "</script><!-- & é"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!-- & é"}


def test_names_are_never_markup() -> None:
    html = shell(EVIL, render("listing.html", list=LIST), {EVIL: "data:x"}, {EVIL: EVIL})
    assert html.count("<script>") == 1
    assert "alert('x')</script>" not in html


def test_the_policy_allows_the_pages_own_script_alone() -> None:
    html = shell("t", render("listing.html", list=LIST), {}, {})
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    assert script_hash(script) in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r'(src|href)="https?:', html)


def test_a_list_knows_the_slides_it_shows() -> None:
    columns = (("slide", "slide", "s"), ("others", "slides", "s"))
    assert Listing("l", "t", "n", columns, [["a", [["b", "x"], ["a", "y"]]]]).slides == ["a", "b"]
    assert Listing("l", "t", "n", columns, []).slides == []


def test_numbers_read_well() -> None:
    assert [number(one) for one in (None, 12345, 0.126, -0.05)] == ["–", "12,345", "0.13", "−0.05"]
    assert percent(0.1234) == "12.3\u00a0%"


def test_pictures_are_small_and_true(reported: Cohort) -> None:
    ids = [one for one, row in reported.rows().items() if row["status"] == "done"][:3]
    found = pictures(reported, [*ids, "nobody"])
    assert list(found) == ids
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(found[ids[0]].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) <= 96
    assert sum(map(len, found.values())) < 3 * 8000


def test_shrinking_keeps_the_shape_and_colours_their_order() -> None:
    red = np.zeros((100, 200, 3), np.uint8)
    red[..., 0] = 255
    assert within(red, 50).shape == (25, 50, 3)
    assert within(red, 500) is red
    back = cv2.imdecode(np.frombuffer(base64.b64decode(data_jpeg(red).split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert back[50, 100, 2] > 240


def test_a_script_is_allowed_by_the_hash_of_its_text_alone() -> None:
    # printf "alert('Hello, world.');" | openssl dgst -sha256 -binary | openssl base64
    known = "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
    assert script_hash("alert('Hello, world.');") == known
    assert f"script-src {known}" in for_file("alert('Hello, world.');")
    assert script_hash("a\r\nb") == script_hash("a\nb")


def test_a_page_without_scripts_runs_none() -> None:
    assert for_file().startswith("default-src 'none'")
    assert "script-src" not in for_file()


def test_neither_policy_names_another_host_or_lets_scripts_in_by_themselves() -> None:
    for policy in (for_file("x"), for_server("x", "y")):
        assert "http" not in policy
        assert "*" not in policy
        scripts = next(one for one in policy.split("; ") if one.startswith("script-src"))
        assert "unsafe" not in scripts
        assert "'self'" not in scripts
        assert '"' not in policy  # it stands in an attribute
    assert "'self'" not in for_file("x")
    assert "frame-ancestors 'none'" in for_server()
