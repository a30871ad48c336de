"""Tests of locations: local paths and URLs. tests/test_object_store.py uses a server."""

from pathlib import Path

import pytest
from upath import UPath

from her2batch.errors import InputError
from her2batch.files.locations import draft_folder, file_size, free_bytes, is_remote, remove_tree, to_location


def test_a_folder_is_an_absolute_path_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = to_location("cohort")
    assert found == tmp_path / "cohort"
    assert type(found) is type(tmp_path)
    assert not is_remote(found)
    assert free_bytes(found) > 0


def test_a_url_is_far_away_and_has_no_disk_that_is_full() -> None:
    far = to_location("memory://store/cohort/")
    assert is_remote(far)
    assert is_remote(far / "tables")
    assert free_bytes(far) is None


def test_drafts_of_a_far_cohort_have_one_bench_a_machine() -> None:
    assert draft_folder(UPath("s3://b/c")) == draft_folder(UPath("s3://b/c"))
    assert draft_folder(UPath("s3://b/c")) != draft_folder(UPath("s3://b/d"))


def test_sizes_and_trees_are_the_same_words_for_both(tmp_path: Path) -> None:
    for root in (tmp_path / "here", to_location("memory://there")):
        if not is_remote(root):
            root.mkdir()
        (root / "x").write_bytes(b"123")
        assert file_size(root / "x") == 3
        remove_tree(root)
        remove_tree(root)  # gone already: no error
        assert not (root / "x").exists()


@pytest.mark.parametrize("name", ["s3://me:secret@bucket/x", "gopher://x/y"])
def test_names_that_cannot_be_used_are_refused_without_their_secrets(name: str) -> None:
    with pytest.raises(InputError) as told:
        to_location(name)
    assert "secret" not in str(told.value)
