"""A refused command leaves no new folder behind, and nothing that was there before is removed."""

from pathlib import Path

import pytest

from her2batch.errors import HeadLost, InputError
from her2batch.files.locks import lock_folder
from her2batch.files.new_folder import remove_if_refused


def refuse(root: Path, has_results: bool = False, error: type[Exception] = InputError) -> None:
    """A command that makes a folder with a file and a subfolder, and is then refused."""

    def command() -> None:
        with remove_if_refused(root, lambda: has_results):
            (root / "tables").mkdir(parents=True)
            (root / "tables" / "file").touch()
            with lock_folder(root):
                raise error("no")

    with pytest.raises(error):
        command()


def test_a_new_folder_goes_with_its_new_parents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    refuse(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_an_empty_folder_of_the_user_stays_with_its_hidden_files(tmp_path: Path) -> None:
    (tmp_path / ".keep").touch()
    refuse(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".keep"]


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    refuse(tmp_path)
    assert (tmp_path / "tables" / "file").exists()


def test_results_are_kept(tmp_path: Path) -> None:
    refuse(tmp_path / "a", has_results=True)
    assert (tmp_path / "a" / "tables" / "file").exists()


def test_nothing_is_removed_while_workers_of_a_lost_cluster_may_write(tmp_path: Path) -> None:
    refuse(tmp_path / "a", error=HeadLost)
    assert (tmp_path / "a" / "tables").is_dir()


def test_a_parent_that_somebody_used_meanwhile_stays(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"

    def command() -> None:
        with remove_if_refused(root, lambda: False):
            root.mkdir(parents=True)
            (tmp_path / "a" / "other").touch()
            with lock_folder(root):
                raise InputError("no")

    with pytest.raises(InputError):
        command()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_a_folder_that_took_the_place_of_ours_stays(tmp_path: Path) -> None:
    """As after unmounting, or when somebody moves the folder away."""
    root = tmp_path / "a"

    def command() -> None:
        with remove_if_refused(root, lambda: False):
            root.mkdir()
            with lock_folder(root):
                root.rename(tmp_path / "away")
                root.mkdir()
                (root / "thesis.docx").touch()
                raise InputError("no")

    with pytest.raises(InputError):
        command()
    assert (root / "thesis.docx").exists()


def test_the_folder_of_another_run_stays(tmp_path: Path) -> None:
    root = tmp_path / "a"

    def command() -> None:
        with remove_if_refused(root, lambda: False):
            (root / "tables").mkdir(parents=True)
            (root / ".lock").write_text("host elsewhere, pid 1, since 2026-01-01T00:00:00Z")
            raise InputError("in use")

    with pytest.raises(InputError):
        command()
    assert (root / "tables").is_dir()
