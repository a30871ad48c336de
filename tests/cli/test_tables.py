"""Tables fit their width, and no word is broken."""

from hypothesis import given
from hypothesis import strategies as st

from her2batch.cli.tables import Column, layout, shorten

COLUMNS = (Column("slide", shorten=True), Column("label"), Column("kappa", drop=2, right=True), Column("F1", drop=1))


def test_a_table_that_fits_is_aligned_in_columns() -> None:
    lines = layout(COLUMNS, [["S1", "3+", "0.91", "88.2"], ["S2-long", "0", "1", "7"]], 80)
    assert lines == ["slide    label  kappa  F1", "S1       3+      0.91  88.2", "S2-long  0          1  7"]


def test_least_important_columns_are_dropped_first_and_named() -> None:
    lines = layout(COLUMNS, [["S1", "3+", "0.91", "88.2"]], 20)
    assert lines == [
        "slide  label  F1",
        "S1     3+     88.2",
        "(not shown at this width: kappa; --json has every column)",
    ]


def test_long_text_moves_to_a_second_line_between_words() -> None:
    columns = (Column("check"), Column("remedy", second_line=True))
    lines = layout(columns, [["cuCIM", "install cucim-cu13 that matches the driver"]], 24)
    assert lines == ["check  remedy", "cuCIM", "    install cucim-cu13", "    that matches the", "    driver"]


def test_a_short_text_stays_on_the_line_of_its_row() -> None:
    columns = (Column("check"), Column("found", second_line=True), Column("remedy", second_line=True))
    lines = layout(columns, [["ray", "2.60", ""], ["disk", "3 GB free at /data", "make room"]], 24)
    assert lines == ["check  found", "ray    2.60", "disk", "    3 GB free at /data", "    make room"]


def test_identifiers_lose_their_middle_only_where_nothing_else_is_left() -> None:
    lines = layout((Column("slide", shorten=True), Column("label")), [["TCGA-A1-A0SB-01A-01-TS1", "3+"]], 24)
    assert lines[1] == "TCGA-A1-…A-01-TS1  3+"
    assert shorten("short", 5) == "short"


words = st.text("abcdefgh-", min_size=1, max_size=12)


@given(st.lists(st.tuples(words, words, words, words), max_size=5), st.integers(40, 120))
def test_no_row_is_wider_than_the_terminal_and_no_kept_word_is_changed(rows: list[tuple[str, ...]], width: int) -> None:
    lines = layout((*COLUMNS[:3], Column("note", second_line=True)), rows, width)
    table = [line for line in lines if not line.startswith("(not shown")]
    assert all(len(line) <= width for line in table)
    text = "\n".join(table).split()
    assert all(word in text for row in rows for word in (row[0], row[1], row[3]))
