"""Files that appear whole or not at all, and errors of the disk."""

import errno
from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.files.atomic import atomic_write, disk_errors, make_folder


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_write(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_names_the_folder_and_the_free_space(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=rf"{tmp_path}: can't be written to \(No space left .*GB are free"),
        disk_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(PermissionError), disk_errors(tmp_path):  # of a file elsewhere: no error of the store
        raise PermissionError(errno.EACCES, "no", "/scans/a.svs")


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b" / "c")
        assert (tmp_path / "a" / "b" / "c").is_dir()
