"""Replay of a power loss: the content of a disk that keeps only what was forced to it, after each step of a run.

strace records every change below a folder. A file's bytes are on the disk as they were at its last fsync; a name (new,
renamed, removed) once its folder was fsynced. Two disks are played: a strict one, and one that keeps every name at
once but no bytes before their fsync, which is what leaves empty files behind.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,write,pwrite64,ftruncate,fsync,close,rename,unlink,unlinkat,mkdir,rmdir"
LINE = re.compile(r"^\d+ +(\w+)\((.*)\) = (-?\d+)(?:<(.*)>)?", re.S)
QUOTED = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
OPENED = re.compile(r"^(-?\d+|AT_FDCWD)<([^>]*)>")


@dataclass(frozen=True)
class Operation:
    """A system call below the folder: its paths, and the bytes written at an offset (None: at the end)."""

    call: str
    path: str
    other: str = ""
    data: bytes = b""
    offset: int | None = None


def record_operations(command: list[str], root: Path, log: Path) -> list[Operation]:
    """Return the operations of a command on a folder, in order."""
    strace = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-y",
        "-xx",
        "-s",
        "100000000",
        "-o",
        str(log),
        f"--trace={CALLS}",
    ]
    subprocess.run([*strace, *command], check=True, capture_output=True)
    found = (_operation(line, str(root)) for line in log.read_text(errors="replace").splitlines())
    return [one for one in found if one is not None]


def _text(quoted: str) -> bytes:
    return bytes.fromhex(quoted.replace("\\x", ""))


def _operation(line: str, root: str) -> Operation | None:
    match = LINE.match(line)
    if match is None or int(match[3]) < 0:
        return None
    call, arguments = match[1], match[2]
    strings = [_text(one) for one in QUOTED.findall(arguments)]
    handle = OPENED.match(arguments)
    place = _text(handle[2]).decode() if handle and handle[2].startswith("\\x") else handle[2] if handle else ""
    if call in ("rename",):
        paths = [one.decode() for one in strings]
    elif call in ("write", "pwrite64", "ftruncate", "fsync", "close"):
        paths = [place]
    else:
        name = strings[0].decode(errors="replace")
        paths = [name if name.startswith("/") else f"{place}/{name}"]
    if not any(one == root or one.startswith(root + "/") for one in paths):
        return None
    if call == "openat" and not ("O_CREAT" in arguments or "O_TRUNC" in arguments):
        return None
    offset = int(arguments.rsplit(", ", 1)[1]) if call in ("pwrite64", "ftruncate") else None
    data = strings[0] if call in ("write", "pwrite64") else b""
    if call == "unlinkat" and "AT_REMOVEDIR" in arguments:
        call = "rmdir"
    if call == "openat" and "O_TRUNC" in arguments:
        call = "create"
    return Operation(call, paths[0], paths[1] if len(paths) > 1 else "", data, offset)


@dataclass
class _File:
    now: bytearray = field(default_factory=bytearray)
    kept: bytes = b""


@dataclass
class _Folder:
    now: dict[str, "_File | _Folder"] = field(default_factory=dict)
    kept: dict[str, "_File | _Folder"] = field(default_factory=dict)


class Disk:
    """The changes of a run, and those that would survive. eager: names survive at once."""

    def __init__(self, root: str, eager: bool) -> None:
        self.top, self._root, self._eager = _Folder(), root, eager

    def _folder(self, path: str) -> tuple[_Folder, str]:
        folder = self.top
        *above, name = path[len(self._root) :].strip("/").split("/")
        for one in above:
            found = folder.now[one]
            assert isinstance(found, _Folder)
            folder = found
        return folder, name

    def play(self, one: Operation) -> bool:
        """Apply an operation. Returns True when the surviving content may have changed."""
        if one.path == self._root:
            if one.call == "fsync":
                self.top.kept = dict(self.top.now)
            return one.call == "fsync"
        folder, name = self._folder(one.path)
        if one.call in ("openat", "create"):
            file = folder.now.setdefault(name, _File())
            if one.call == "create" and isinstance(file, _File):
                file.now.clear()
        elif one.call == "mkdir":
            folder.now[name] = _Folder()
        elif one.call in ("unlink", "unlinkat", "rmdir"):
            folder.now.pop(name)
        elif one.call == "rename":
            moved = folder.now.pop(name)
            target, new = self._folder(one.other)
            target.now[new] = moved
            if self._eager:
                target.kept = dict(target.now)
        elif one.call != "close":
            self._write(folder.now.get(name), one)
        if self._eager:
            folder.kept = dict(folder.now)
        return one.call == "fsync" or (self._eager and one.call not in ("write", "pwrite64", "ftruncate", "close"))

    def _write(self, found: "_File | _Folder | None", one: Operation) -> None:
        if isinstance(found, _Folder):
            found.kept = dict(found.now)
        elif found is not None and one.call == "fsync":
            found.kept = bytes(found.now)
        elif found is not None and one.call == "ftruncate":
            del found.now[one.offset :]
        elif found is not None:
            at = len(found.now) if one.offset is None else one.offset
            found.now[at : at + len(one.data)] = one.data

    def survives(self) -> dict[str, bytes | None]:
        """Return path below the root → bytes, None for a folder."""
        found: dict[str, bytes | None] = {}

        def walk(folder: _Folder, where: str) -> None:
            for name, one in folder.kept.items():
                if isinstance(one, _File):
                    found[where + name] = one.kept
                else:
                    found[where + name] = None
                    walk(one, f"{where}{name}/")

        walk(self.top, "")
        return found


def crash_states(operations: list[Operation], root: Path, place: Path) -> Iterator[Path]:
    """Yield what is left of the folder after a power loss behind each operation, on both disks; equal states once."""
    for eager in (False, True):
        disk, last = Disk(str(root), eager), None
        for one in operations:
            if not disk.play(one):
                continue
            left = disk.survives()
            if left == last:
                continue
            last = left
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for name in sorted(left):
                data = left[name]
                if data is None:
                    (place / name).mkdir(parents=True, exist_ok=True)
                else:
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    (place / name).write_bytes(data)
            yield place
