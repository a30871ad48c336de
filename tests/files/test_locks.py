"""Locks of folders: one writer at a time, and workers that outlive their run."""

import errno
import os
import threading
from pathlib import Path

import pytest

from her2batch.errors import StoreError
from her2batch.files import locks
from her2batch.files.locks import is_locked, lock_folder, wait_for_workers, worker_lock


def test_the_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as holder:
        assert is_locked(tmp_path)
        with pytest.raises(StoreError, match=f"is in use by {holder}; wait"), lock_folder(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_asking_whether_a_folder_is_locked_keeps_no_writer_out(tmp_path: Path) -> None:
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            is_locked(tmp_path)

    with lock_folder(tmp_path):
        pass
    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(30):
            with lock_folder(tmp_path):
                pass
    finally:
        ended.set()
        for thread in asking:
            thread.join()


def test_a_worker_of_an_ended_run_does_not_write(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as holder, worker_lock(tmp_path, tmp_path / ".workers", holder):
        pass
    with pytest.raises(StoreError, match="taken over by"), worker_lock(tmp_path, tmp_path / ".workers", "another run"):
        pass


def test_a_run_waits_for_workers_of_the_run_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WORKER_EXIT_S", 0.1)
    with (
        lock_folder(tmp_path) as holder,
        worker_lock(tmp_path, tmp_path / ".workers", holder),
        pytest.raises(StoreError, match="a worker of an earlier run"),
    ):
        wait_for_workers(tmp_path, tmp_path / ".workers")
    wait_for_workers(tmp_path, tmp_path / ".workers")


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    with lock_folder(tmp_path) as holder, worker_lock(tmp_path, tmp_path / ".workers", holder):
        pass

    def flock(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    uses = (
        lambda: lock_folder(tmp_path).__enter__(),
        lambda: worker_lock(tmp_path, tmp_path / ".workers", holder).__enter__(),
        lambda: wait_for_workers(tmp_path, tmp_path / ".workers"),
    )
    for use in uses:
        with pytest.raises(StoreError, match=r"its file system gives no locks .*; mount the share with locks"):
            use()
    assert not is_locked(tmp_path)  # readers go on


def test_a_full_disk_is_not_taken_for_missing_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(StoreError, match="can't be written to"), lock_folder(tmp_path):
        pass
