"""Test of the generated page about synthetic slides."""

from pathlib import Path

from her2batch.synthetic.documentation import synthetic_slides_page
from her2batch.synthetic.specimen import UNSCORABLE


def test_the_page_is_current_and_names_every_kind():
    page = (Path(__file__).parents[2] / "docs" / "synthetic-slides.md").read_text(encoding="utf-8")
    assert page == synthetic_slides_page()
    assert all(f"| {kind} |" in page for kind in (*UNSCORABLE, "weak-complete"))
