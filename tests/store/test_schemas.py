"""Tests of the schemas: the columns of the contract, in one place."""

import numpy as np
import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.store import schemas
from her2batch.vision.membrane import MEMBRANE_COLUMNS


def test_tables_have_the_columns_of_the_contract() -> None:
    tiles = schemas.table_schema("tiles")
    assert tiles.names == ["slide_id", "tile", "x", "y", "size", "tissue", "dab", "blur", "piece"]
    assert [str(tiles.field(name).type) for name in ("tile", "x", "tissue")] == ["int32", "int32", "float"]
    assert str(schemas.table_schema("embeddings", 1024).field("embedding").type).startswith("fixed_size_list<")
    wanted = ["slide_id", "patient_id", "task", "method", "classes", "p", "predicted", "plausible", "review", "reasons"]
    assert schemas.table_schema("predictions").names[: len(wanted)] == wanted


def test_predictions_of_a_calibration_say_what_was_promised() -> None:
    calibrated, cells = (schemas.table_schema(f"predictions/{source}") for source in ("cal-0123456789ab", "cells"))
    assert calibrated.names == [*schemas.table_schema("predictions").names, "coverage"]
    assert "coverage" not in {*cells.names, *schemas.table_schema("predictions/membrane").names}


def test_the_membrane_table_has_the_measured_columns() -> None:
    assert tuple(schemas.table_schema("membrane").names[2:]) == MEMBRANE_COLUMNS


def test_tables_have_standard_arrow_types_only() -> None:
    for name in schemas.TABLES:
        for field in schemas.table_schema(name, 8 if name == "embeddings" else None):
            assert not isinstance(field.type, pa.ExtensionType)


def test_a_table_without_a_column_is_refused() -> None:
    with pytest.raises(InputError, match="the table tiles has no column blur"):
        schemas.conform_to_schema(pa.table({"slide_id": ["a"]}), "tiles")


def test_embeddings_have_a_fixed_length() -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12, np.float16)), 4)
    table = schemas.embeddings_table("a", pa.array(np.arange(3, dtype=np.int32)), vectors)
    assert table.num_rows == 3
    assert table.schema.field("embedding").type.list_size == 4
