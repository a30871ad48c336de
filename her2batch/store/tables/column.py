"""A column of a table: its Arrow type and its description."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TEXT, I32, I64, F32, F64 = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
FILES_TYPE = pa.list_(pa.struct([("path", TEXT), ("bytes", I64), ("sha256", TEXT)]))


@dataclass(frozen=True)
class Column:
    """A column: its name, Arrow type and description, with the unit.

    step: values are stored as multiples of it, which makes the file smaller; None: as they are.  byte_split: the bytes
    of its values are stored apart from each other, which suits values that hardly repeat.
    """

    name: str
    type: pa.DataType
    description: str
    step: float | None = None
    byte_split: bool = False
