"""Which slide a file is: by its path, size and time, and where these differ, by its content."""

from pathlib import Path

from her2batch.pipeline.resume.seen_files import SeenFiles
from her2batch.slides.discover import slide_files
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
