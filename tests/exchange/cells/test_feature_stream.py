"""Features are read one after the other, from the dialects of QuPath, and damage is named with its place."""

import json
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.exchange.cells import feature_stream
from her2batch.exchange.cells.feature_stream import stream_features

FEATURES = [
    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [k, k]}, "properties": {"name": "é] {" * (k % 7)}}
    for k in range(200)
]


@pytest.mark.parametrize("chunk", [40, 1000, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("collection", [True, False])
def test_all_features_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None, collection: bool
) -> None:
    monkeypatch.setattr(feature_stream, "CHUNK", chunk)
    value = {"type": "FeatureCollection", "features": FEATURES} if collection else FEATURES
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8-sig")
    if chunk == 40 and collection:
        monkeypatch.setattr(feature_stream, "CHUNK", 60)  # the head of the file is in the first part
    assert list(stream_features(path)) == FEATURES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "FeatureCollection"}', "not GeoJSON"),
        ("plain text", "not GeoJSON"),
        ('[{"geometry": {}}, {"geometry": ', "feature 2 is not valid JSON"),
        ('[{"geometry": {}}, 5]', "feature 2 has no geometry"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(stream_features(path))
