"""Fingerprints of slides, holes, and completeness of TIFF directories."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import (
    PAGE_BYTES,
    READ_CHUNK_BYTES,
    check_directories,
    fingerprint_slide,
    is_tiff,
    read_directories,
)


def test_one_file_has_its_plain_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"slide" * 1000)
    found = fingerprint_slide([path])
    assert found.sha256 == hashlib.sha256(b"slide" * 1000).hexdigest()
    assert (found.bytes, found.holes) == (5000, ())


def test_fingerprint_of_several_files_ignores_their_names(tmp_path: Path) -> None:
    for name, data in (("a", b"1"), ("b", b"2"), ("c", b"2"), ("d", b"1")):
        (tmp_path / name).write_bytes(data)
    first, second = (fingerprint_slide([tmp_path / name for name in names]) for names in ("ab", "cd"))
    assert first.sha256 == second.sha256
    assert first.sha256 != fingerprint_slide([tmp_path / "a"]).sha256
    assert first.bytes == 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6), st.integers(0, PAGE_BYTES - 1)
)
def test_holes_are_ranges_of_complete_zero_pages(tmp_path_factory, runs: list[tuple[int, int]], tail: int) -> None:
    data, expected = b"", []
    for full, empty in runs:
        data += b"\1" * full * PAGE_BYTES
        expected.append((len(data), len(data) + empty * PAGE_BYTES))
        data += bytes(empty * PAGE_BYTES)
    path = tmp_path_factory.mktemp("holes") / "a"
    path.write_bytes(data + b"\1" * tail)
    assert fingerprint_slide([path]).holes == tuple(expected)


def test_hole_may_cross_the_end_of_a_read_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\1" * (READ_CHUNK_BYTES - PAGE_BYTES) + bytes(2 * PAGE_BYTES) + b"\1" * PAGE_BYTES)
    assert fingerprint_slide([path]).holes == ((READ_CHUNK_BYTES - PAGE_BYTES, READ_CHUNK_BYTES + PAGE_BYTES),)


def test_page_that_only_starts_with_zeros_is_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(PAGE_BYTES - 1) + b"\1" + b"\1" * PAGE_BYTES)
    assert fingerprint_slide([path]).holes == ()


def test_directories_of_real_tiffs_are_complete(real_data: Path) -> None:
    for path in sorted((real_data / "slides").glob("*.[st][vi][sf]*")):
        fixed, lists = check_directories(path)
        assert len(fixed) > 2
        assert len(lists) >= 2
        assert max(end for _, end in (*fixed, *lists)) <= path.stat().st_size


def test_tiff_is_detected_by_its_first_bytes(real_data: Path) -> None:
    assert is_tiff(real_data / "slides/CMU-1-Small-Region.svs")
    assert not is_tiff(real_data / "bad_slides/broken.svs")
    assert not is_tiff(real_data / "slides/sm_image.dcm")


def build_tiff(*directories: list[tuple[int, int, int, int]], then: int = 0) -> bytes:
    """Build a little-endian TIFF of directories with entries (tag, type, count, value). then: offset after the last."""
    data = b"II*\0" + struct.pack("<I", 8)
    for number, entries in enumerate(directories):
        end = len(data) + 2 + 12 * len(entries) + 4
        following = end if number + 1 < len(directories) else then
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        data += struct.pack("<I", following)
    return data


WIDTH = (256, 4, 1, 100)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"II*\0", "truncated", "ends after its header"),
        (build_tiff([WIDTH], then=10_000), "truncated", "before its directory"),
        (struct.pack("<4sHHQ", b"II+\0", 8, 0, 2**63), "truncated", "before its directory"),
        (build_tiff([WIDTH])[:-6], "truncated", "inside a directory"),
        (build_tiff([]) + bytes(8), "truncated", "0 entries"),
        (build_tiff([(0, 0, 0, 0)]), "truncated", "empty"),
        (build_tiff([(270, 2, 5000, 100)]), "truncated", "before the value of tag 270"),
        (build_tiff([(324, 4, 2**32 - 1, 100)]), "truncated", "before the value of tag 324"),
        (build_tiff([WIDTH], [WIDTH], then=8), "unreadable", "loop"),
        (build_tiff([(330, 4, 1, 8)]), "unreadable", "loop"),
        (build_tiff([(330, 4, 1, 26)], [WIDTH], [WIDTH], then=26), "unreadable", "loop"),
        (build_tiff([(330, 13, 20_000, 8)]) + bytes(90_000), "unreadable", "20000 directories"),
        (b"hello, no picture here", "unreadable", "not a TIFF"),
    ],
)  # fmt: skip
def test_truncated_or_implausible_directories_are_refused(tmp_path: Path, data: bytes, code: str, words: str) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(data)
    with pytest.raises(SlideError, match=words) as caught:
        check_directories(path)
    assert caught.value.code == code


def test_directories_that_are_pointed_to_twice_are_no_loop(tmp_path: Path) -> None:
    """The first directory lists the second and third as SubIFDs; both also stand in a chain."""
    path = tmp_path / "a.tiff"
    data = build_tiff([(330, 4, 2, 200)], [WIDTH], [WIDTH]).ljust(200, b"\0") + struct.pack("<II", 26, 44)
    path.write_bytes(data)
    assert [item.at for item in read_directories(path)] == [8, 26, 44]
    unchained = data[:22] + bytes(4) + data[26:]  # the first directory ends the main chain
    path.write_bytes(unchained)
    found = read_directories(path)
    assert [(item.at, item.parent) for item in found] == [(8, None), (26, 8), (44, 8)]
    path.write_bytes(unchained[:40] + struct.pack("<I", 8) + unchained[44:])  # a SubIFD is followed by its parent
    with pytest.raises(SlideError, match="loop"):
        read_directories(path)


def test_many_pointers_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    nested = b"".join(
        struct.pack("<HHHIII", 1, 330, 4, 1, 8 + 18 * (k + 1), 0) for k in range(20)
    )  # fmt: skip
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + nested + struct.pack("<HHHIII", 1, *WIDTH, 0))
    with pytest.raises(SlideError, match="too many"):
        read_directories(path)


def test_big_endian_and_bigtiff_directories_are_read(tmp_path: Path) -> None:
    classic = b"MM\0*" + struct.pack(">IHHHII", 8, 1, 256, 4, 1, 100) + struct.pack(">I", 0)
    big = b"II+\0" + struct.pack("<HHQQHHQQQ", 8, 0, 16, 1, 256, 16, 1, 100, 0)
    for name, data in (("classic", classic), ("big", big)):
        (tmp_path / name).write_bytes(data)
        fixed, lists = check_directories(tmp_path / name)
        assert fixed[0][1] == len(data)
        assert (len(fixed), lists) == (2, ())


def test_random_bytes_after_a_tiff_header_raise_slide_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for k in range(100):
        path = tmp_path / f"{k}"
        path.write_bytes(b"II*\0\x08\0\0\0" + rng.bytes(400))
        with pytest.raises(SlideError):
            check_directories(path)
