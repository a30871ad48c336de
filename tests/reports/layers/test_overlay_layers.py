"""Overlays of the slide image: attention by head, and saliency maps at their place."""

import numpy as np
import pyarrow as pa
import pytest

from her2batch.reports.layers.overlay_layers import saliency_layers, split_by_head
from her2batch.reports.report_data import ReportData
from her2batch.store.cohort import tables_of
from her2batch.store.schemas import table_schema
from tests.reports.test_slide_page import decode_data_uri


def test_attention_is_split_by_head(report_data: ReportData) -> None:
    name = next(tables_of(row, "attention")[0] for row in report_data.rows.values() if tables_of(row, "attention"))
    slide_id = next(one for one, row in report_data.rows.items() if name in tables_of(row, "attention"))
    (keys, part), = split_by_head(report_data.cohort.read(name, slide_id))  # fmt: skip
    assert keys == ("her2-3way", "clam-sb", "stain")
    assert sum(part["attention"].to_pylist()) == pytest.approx(1, abs=1e-3)
    assert split_by_head(None) == []


def test_a_saliency_map_lies_over_the_tissue(report_data: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"slide_id": "a", "task": "her2-3way", "method": "resnet50", "input": "thumbnail-224"}
    places = [
        {**head, "x": 1000 + 300 * (k % 4), "y": -30 + 300 * (k // 4), "size": 300, "saliency": k / 7} for k in range(8)
    ]
    table = pa.Table.from_pylist(places, table_schema("saliency"))
    monkeypatch.setattr(type(report_data.cohort), "read", lambda *_: table)
    row = {"slide_id": "a", "files": [{"path": "tables/saliency/b0/a.parquet"}]}
    (layer,) = saliency_layers(report_data, row)
    assert (layer.origin, layer.size) == ((1000, -30), (1200, 600))
    opacity = decode_data_uri(layer.image_uri)[..., 3]
    assert opacity.ravel().tolist() == np.round(255 * np.arange(8) / 7).tolist()
