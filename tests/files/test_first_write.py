"""Of several writers of a file the first one wins, and nobody reads half of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from her2batch.files.first_write import write_first
from her2batch.files.locations import to_location


def test_the_first_writer_wins(tmp_path: Path) -> None:
    path = tmp_path / "sizes" / "uni.json"
    assert write_first(path, "128") == "128"
    assert write_first(path, "64") == path.read_text() == "128"
    assert [each.name for each in path.parent.iterdir()] == ["uni.json"]


def test_writers_at_the_same_time_read_one_text(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        read = set(pool.map(lambda k: write_first(tmp_path / "a", f"{k}" * 1000), range(64)))
    assert read == {(tmp_path / "a").read_text()}
    assert len(next(iter(read))) in (1000, 2000)


def test_a_disk_without_hard_links_has_a_first_writer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert [write_first(tmp_path / "a", text) for text in ("1", "2")] == ["1", "1"]


def test_the_first_writer_wins_on_an_object_store() -> None:
    pytest.importorskip("upath")
    path = to_location("memory://her2batch-first-write/sizes/uni.json")
    assert [write_first(path, text) for text in ("128", "64")] == ["128", "128"]
