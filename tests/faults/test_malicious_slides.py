"""A malicious slide gets an error code within 10 s and 1 GB, and does not affect other slides."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from her2batch.errors import REMEDIES
from her2batch.slides.discover import discover_slides
from tests.faults.corrupt_slides import LIMIT_BYTES, LIMIT_S, SlideInspector
from tests.faults.malicious_slides import MALICIOUS_SLIDES
from tests.runtime.test_ingest import run, store_contents

HARMLESS = frozenset(
    ("zero-size.tiff", "xml-bomb.ome.tiff", "xml-bomb-philips.tiff", "xml-bomb-leica.scn", "xml-bomb.bif",
     "philips-without-end.tiff", "philips-of-spaces.tiff", "lzw-bomb.tiff", "lzma-bomb.tiff")
)  # fmt: skip
"""Slides that can be read: their XML is not expanded, and a tile is decompressed up to its own size only."""

CRASHES = frozenset(("nested.dcm",))
"""Slides that end the process that opens them: OpenSlide's DICOM library recurses into nested sequences."""


USUAL = 800_000_000
"""Bytes that the driver process holds at most when it ingests one sound slide: Ray and the libraries."""


@pytest.fixture(scope="module")
def inspector() -> Iterator[SlideInspector]:
    with SlideInspector() as inspector:
        yield inspector


@pytest.mark.slow
@pytest.mark.parametrize("name", MALICIOUS_SLIDES)
def test_malicious_slide_gets_its_error_code_within_10_s_and_1_gb(
    name: str, tmp_path: Path, inspector: SlideInspector
) -> None:
    path = tmp_path / name
    path.write_bytes(MALICIOUS_SLIDES[name]())
    seen = inspector(path)
    expected = {"done"} if name in HARMLESS else {"crashed"} if name in CRASHES else REMEDIES.keys() - {"internal"}
    assert seen.code in expected
    assert seen.seconds < LIMIT_S
    assert seen.memory < LIMIT_BYTES


@pytest.mark.slow
def test_slide_discovery_unpacks_and_follows_nothing(tmp_path: Path) -> None:
    looked_into = [name for name in MALICIOUS_SLIDES if name.endswith((".dcm", ".vms", ".mrxs"))]
    for name in looked_into:
        (tmp_path / name).write_bytes(MALICIOUS_SLIDES[name]())
    before = psutil.Process().memory_info().rss
    found = discover_slides(tmp_path)
    assert len(found.slides) == len(looked_into)
    assert psutil.Process().memory_info().rss - before < 100_000_000


def ingest_and_peak_memory(scans: Path, out: Path) -> tuple[dict, int]:
    """Return the JSON of an ingest, and the peak memory of its driver process."""
    code = (  # VmHWM, not ru_maxrss: a program's own, without what the process that started it held
        "import sys; from her2batch.cli import app as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: pass\n"
        "sys.stderr.write('PEAK ' + open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, "ingest", str(scans), "--out", str(out), "--workers", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.stdout.startswith("{"), done.stdout[:500] + done.stderr
    return json.loads(done.stdout), int(done.stderr.rsplit("PEAK ", 1)[1]) * 1024


@pytest.mark.long
def test_malicious_slides_in_a_folder_leave_sound_slides_and_driver_unharmed(
    tmp_path: Path, make_slide: Callable
) -> None:
    for k in range(3):
        make_slide(f"good{k}.tiff", seed=k, size=(900, 900))
    run(tmp_path / "scans", tmp_path / "quiet")
    for name, make in MALICIOUS_SLIDES.items():
        (tmp_path / "scans" / name).write_bytes(make())
    summary, peak = ingest_and_peak_memory(tmp_path / "scans", tmp_path / "c")
    assert (summary["seen"], summary["done"], summary["exit_code"]) == (
        len(MALICIOUS_SLIDES) + 3,
        3,
        3,
    )  # no resolution: no-mpp
    assert peak < USUAL + 250_000_000
    codes = {row["slide_id"]: row["error_code"] for row in summary["failures"]}
    assert codes["nested"] == "worker-lost"
    assert "internal" not in codes.values()
    ours, theirs = store_contents(tmp_path / "quiet"), store_contents(tmp_path / "c")
    assert ours == {name: theirs.get(name) for name in ours}
