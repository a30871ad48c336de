"""Which slide a file is: by its path, size and time, and where these differ, by its content."""

from pathlib import Path

import pytest

from her2batch.pipeline.resume.seen_files import SeenFiles
from her2batch.slides.discover import slide_files
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.store.cohort import Row
from her2batch.store.pseudonyms import Pseudonymizer


def test_equal_content_is_one_slide_and_equal_names_are_two(tmp_path: Path) -> None:
    contents = {"a/s.svs": "one", "b/s.svs": "two", "c/copy.svs": "one"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    seen = SeenFiles([], {}, Pseudonymizer())
    seen.note_slides([slide_files((tmp_path / name,)) for name in contents])
    entries = {name: seen.entries[str(tmp_path / name)] for name in contents}
    assert [entries[name]["outcome"] for name in contents] == ["slide", "slide", "duplicate"]
    assert entries["a/s.svs"]["slide_id"] == entries["c/copy.svs"]["slide_id"] == "s"
    assert entries["b/s.svs"]["slide_id"].startswith("s-")


class Folder:
    """A scan folder of text files, and the intake table that runs hand on. Every file is a finished slide at once."""

    def __init__(self, root: Path, key: bytes | None = None) -> None:
        self.root, self.names = root, Pseudonymizer(key)
        self.rows: dict[str, Row] = {}
        self.entries: list[Row] = []
        self.paths: dict[str, str] = {}

    def write(self, **files: str) -> None:
        """Write files: name (without suffix; __ for a subfolder) → content."""
        for name, content in files.items():
            path = self._path(name)
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(content)

    def move(self, **names: str) -> None:
        """Rename files, all at once: old name → new name."""
        contents = {new: self._path(old).read_text() for old, new in names.items()}
        for old in names:
            self._path(old).unlink()
        self.write(**contents)

    def _path(self, name: str) -> Path:
        return self.root / f"{name.replace('__', '/')}.svs"

    def run(self) -> dict[str, tuple[str, str]]:
        """Do what an ingest does with the files; returns outcome and slide id of each entry by its name."""
        seen = SeenFiles(self.entries, self.rows, self.names)
        found = [slide_files((path,)) for path in sorted(self.root.rglob("*.svs"))]
        seen.note_present(source.path for source in found)
        seen.note_slides(found)
        text = {self.names.path(source.path): source.path.read_text() for source in found}
        for path, content in text.items():
            if seen.entries[path]["outcome"] == "slide":
                sha = fingerprint_slide((Path(next(s.path for s in found if self.names.path(s.path) == path)),)).sha256
                slide_id = seen.entries[path]["slide_id"]
                self.rows[slide_id] = {"slide_id": slide_id, "path": path, "sha256": sha, "bytes": len(content),
                                       "status": "done"}  # fmt: skip
                seen.set_digest(path, sha)
        seen.note_absent(lambda path: self.names.key is not None or path.startswith(str(self.root)))
        self.entries = [dict(entry) for entry in seen.entries.values()]
        return {
            entry["path"].removeprefix(f"{self.root}/").removesuffix(".svs"): (entry["outcome"], entry["slide_id"])
            for entry in self.entries
        }


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "scans")
    made.write(a="content of a", b="content of b", c="content of c, longer")
    made.run()
    return made


SLIDES = {"a": ("slide", "a"), "b": ("slide", "b"), "c": ("slide", "c")}


def test_a_renamed_slide_keeps_its_id(folder: Folder) -> None:
    folder.move(a="z")
    assert folder.run() == {"b": SLIDES["b"], "c": SLIDES["c"], "z": ("slide", "a")}
    assert folder.run()["z"] == ("slide", "a")


def test_slides_that_are_moved_to_a_subfolder_keep_their_ids(folder: Folder) -> None:
    folder.move(a="2026__a", b="2026__b")
    assert folder.run() == {"2026/a": SLIDES["a"], "2026/b": SLIDES["b"], "c": SLIDES["c"]}


@pytest.mark.parametrize("names", [{"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}, {"a": "b", "b": "z"}])
def test_slides_that_change_names_among_themselves_follow_their_content(folder: Folder, names: dict[str, str]) -> None:
    folder.move(**names)
    found = folder.run()
    for old, new in names.items():
        assert found[new] == ("slide", old)
    assert len(found) == 3


def test_a_copy_is_a_duplicate_until_its_original_is_gone(folder: Folder) -> None:
    folder.write(copy1="content of a", copy2="content of a")
    found = folder.run()
    assert (found["copy1"], found["copy2"], found["a"]) == (("duplicate", "a"), ("duplicate", "a"), ("slide", "a"))
    (folder.root / "a.svs").unlink()
    found = folder.run()
    assert (found["copy1"], found["copy2"]) == (("slide", "a"), ("duplicate", "a"))
    assert "a" not in found


def test_a_slide_whose_file_was_replaced_is_processed_again_under_its_id(folder: Folder) -> None:
    folder.write(a="quite another content")
    assert folder.run() == SLIDES


def test_a_new_file_under_the_name_of_a_moved_slide_is_a_new_slide(folder: Folder) -> None:
    folder.move(a="old__a")
    folder.write(a="the next slide of the scanner")
    found = folder.run()
    assert found["old/a"] == ("slide", "a")
    assert found["a"][0] == "slide"
    assert found["a"][1].startswith("a-")


def test_slides_that_left_are_archived_and_come_back(folder: Folder) -> None:
    (folder.root / "a.svs").unlink()
    folder.write(copy="content of b")
    folder.run()
    (folder.root / "copy.svs").unlink()
    assert folder.run() == {**SLIDES, "a": ("archived", "a")}  # the copy is not said to be anything any more
    folder.write(elsewhere="content of a")
    assert folder.run() == {"elsewhere": ("slide", "a"), "b": SLIDES["b"], "c": SLIDES["c"]}


def test_a_new_slide_with_the_name_of_an_archived_one_does_not_replace_it(folder: Folder) -> None:
    (folder.root / "a.svs").unlink()
    folder.run()
    folder.write(a="the scanner counts from one again")
    found = folder.run()
    assert found["archived:a"] == ("archived", "a")
    assert found["a"][1].startswith("a-")
    folder.write(back="content of a")
    found = folder.run()
    assert found["back"] == ("slide", "a")
    assert "archived:a" not in found


def test_a_slide_is_not_lost_when_another_one_takes_its_place(folder: Folder) -> None:
    folder.move(b="a")  # over a
    assert folder.run() == {"a": ("slide", "b"), "archived:a": ("archived", "a"), "c": SLIDES["c"]}
    folder.write(c="content of b")
    assert folder.run()["c"] == ("duplicate", "b")


def test_with_a_lost_intake_table_slides_are_found_by_their_rows(folder: Folder) -> None:
    folder.move(a="z")
    folder.entries = []
    assert folder.run() == {"b": SLIDES["b"], "c": SLIDES["c"], "z": ("slide", "a")}


def test_files_of_another_scan_folder_are_left_alone(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    other.entries, other.rows = folder.entries, folder.rows
    other.write(d="content of d", e="content of a")
    found = other.run()
    assert (found["d"], found["e"]) == (("slide", "d"), ("duplicate", "a"))
    assert sorted(found.values())[-4:] == [SLIDES["a"], SLIDES["b"], SLIDES["c"], ("slide", "d")]


def test_a_slide_that_was_never_finished_is_processed_in_the_folder_that_is_searched(
    folder: Folder, tmp_path: Path
) -> None:
    """The same share under another path, after a run that was killed: its slides are no copies of unfinished ones."""
    other = Folder(tmp_path / "other")
    other.entries, other.rows = folder.entries, {name: row for name, row in folder.rows.items() if name != "a"}
    other.write(e="content of a", f="content of b")
    found = other.run()
    assert (found["e"], found["f"]) == (("slide", "a"), ("duplicate", "b"))
    assert len(found) == 4


def test_pseudonyms_follow_the_content_too(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "scans", key=b"k" * 32)
    folder.write(a="content of a", b="content of b")
    before = sorted(folder.run().values())
    folder.move(a="z")
    assert sorted(folder.run().values()) == before
    assert len(folder.rows) == 2


def test_a_folder_without_slides_archives_nothing(folder: Folder) -> None:
    seen = SeenFiles(folder.entries, folder.rows, Pseudonymizer())
    assert seen.note_lost_folder(lambda _: True) == 3
    assert {entry["outcome"] for entry in seen.entries.values()} == {"slide"}
    folder.entries = list(seen.entries.values())
    assert folder.run() == SLIDES
    assert [entry["reason"] for entry in folder.entries] == [None] * 3
