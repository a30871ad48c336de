"""A column knows how it is stored."""

from her2batch.store.tables.column import F32, TEXT, Column


def test_columns_are_stored_as_they_are_by_default() -> None:
    plain = Column("slide_id", TEXT, "key")
    assert (plain.step, plain.byte_split) == (None, False)
    assert Column("x", F32, "level-0 px", 0.25, byte_split=True).step == 0.25
