"""Files from the npm registry are those of the lock file, unchanged, with their licence."""

import hashlib
import json
from pathlib import Path

import her2batch

STATIC = Path(her2batch.__file__).parent / "web" / "static"
LOCK = Path(__file__).parents[2] / "web-src" / "package-lock.json"


def test_vendored_files_equal_those_built_from_the_lock_file() -> None:
    listed = json.loads((STATIC / "vendor" / "vendored.json").read_text())
    found = {path.name: path for path in (STATIC / "vendor").iterdir() if path.name != "vendored.json"}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == listed["files"]
    locked = json.loads(LOCK.read_text())["packages"]
    for name, one in listed["packages"].items():
        assert locked[f"node_modules/{name}"]["integrity"] == one["integrity"]
        assert (STATIC / "vendor" / f"{name}.LICENSE.txt").read_text()
        assert one["version"] in found[f"{name}.js"].read_text()[:2000]


def test_pages_use_no_other_server() -> None:
    for path in STATIC.glob("*.*"):
        for word in ("https://", "//cdn", "@import", "<script>", "javascript:", "eval("):
            assert word not in path.read_text(), path
