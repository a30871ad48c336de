"""The readers of the labels in reports: every column with two readers, every pair, every slide without a majority."""

from her2batch.reports.agreement.readers import agreement_of_readers, render_readers, slides_without_majority
from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS


def label(slide_id: str, **readers: str) -> dict:
    readings = [{"reader": name, **dict.fromkeys(READ_COLUMNS), "her2": score} for name, score in readers.items()]
    return {"slide_id": slide_id, "readings": readings or None}


LABELS = [
    label("S1", A="0", B="0", C="0"), label("S2", A="1+", B="0", C="1+"), label("S3", A="2+", B="3+"),
    label("S4", A="3+"), label("S5"),
]  # fmt: skip


def test_agreement_is_that_of_the_slides_with_two_readers() -> None:
    (found,) = agreement_of_readers(LABELS, {row["slide_id"]: row["slide_id"] for row in LABELS})
    assert (found.column, found.readers, found.slides, found.unanimous) == ("her2", ("A", "B", "C"), 3, 1)
    assert {pair["first"] + pair["second"]: (pair["agreed"], pair["slides"]) for pair in found.pairs} == {
        "AB": (1, 3), "AC": (2, 2), "BC": (1, 2),
    }  # fmt: skip
    assert found.as_json["krippendorff_alpha"]["value"] > 0
    assert agreement_of_readers([label("S1", A="0")], {}) == []


def test_section_names_pairs_and_slides_without_a_majority() -> None:
    tied = slides_without_majority(LABELS)
    assert tied == {"her2": ["S3"]}
    html = render_readers(agreement_of_readers([*LABELS, label("S6", **{"<b>": "0", "A": "0"})], {}), tied)
    for words in ("A and B", "B and C", "Krippendorff", "No majority for her2 on 1 slides: S3", "&lt;b&gt;"):
        assert words in html, words
