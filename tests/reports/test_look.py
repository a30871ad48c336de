"""The shell of every page: nothing from outside, nothing that a name could smuggle in."""

import base64
import json
import re

import cv2
import numpy as np

from her2batch.reports.look import Listing, as_json, data_jpeg, number, percent, pictures, render, shell, within
from her2batch.reports.policy import script_hash
from her2batch.tables.store import Cohort
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
