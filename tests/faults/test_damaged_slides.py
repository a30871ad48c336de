"""A slide that is cut, holed or never finished is refused; of one with a flipped bit nobody gets other pixels than its
bytes give; and whatever it does to a library, it does in its own process.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from her2batch.errors import REMEDIES
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from tests.conftest import tissue_image, write_slide
from tests.faults.corrupt_slides import MEMORY_FILLS, Inspection, SlideInspector, flip_bits, important_ranges
from tests.runtime.test_ingest import codes, store_contents
from tests.slides.damage import copies_with_hole, copies_with_zeroed_end, truncated_copies
from tests.slides.ndpi import write_ndpi

REFUSED = frozenset(("truncated", "unreadable", "not-a-slide", "out-of-memory"))

SEEDS = {
    "svs": "CMU-1-Small-Region.svs",
    "svs-j2k": "tcga-cr-7395-01a-01-ts1.svs",
    "tiff": "CMU-1-small.tiff",
    "ome": "HE_example.tif",
    "ndpi": "",
    "dicom": "multi_frame_jpeg_camelyon_challenge_image.dcm",
    "dicom-raw": "sm_image.dcm",
}
"""Format → a slide of the test data; NDPI is written by the tests, because no real file was available."""

USUAL = ("svs", "tiff", "ndpi", "dicom")

PAGE = 512

LOSSES = {
    "cut": truncated_copies,
    "tail zeroed": copies_with_zeroed_end,
    "hole of 64 kB": lambda data, times, seed: copies_with_hole(data, min(65536, len(data) // 2), times, seed),
    "hole of 4 kB": lambda data, times, seed: copies_with_hole(data, 4096, times, seed),
}


@pytest.fixture(scope="module")
def inspectors() -> Iterator[tuple[SlideInspector, SlideInspector]]:
    """Two processes that fill fresh memory with different values, so that pixels that were never written differ."""
    with SlideInspector(MEMORY_FILLS[0]) as first, SlideInspector(MEMORY_FILLS[1]) as second:
        yield first, second


@pytest.fixture(scope="module")
def seed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    ndpi = tmp_path_factory.mktemp("ndpi") / "seed.ndpi"
    write_ndpi(ndpi, tissue_image(4096, 768, brown=0.4), 0.25, levels=3)
    return lambda kind: real_data / "slides" / SEEDS[kind] if SEEDS[kind] else ndpi


def count_outcomes(look: SlideInspector, path: Path, copies: Iterator[bytes], whole: Inspection) -> Counter[str]:
    """Count the outcomes of damaged copies; `whole`: the pixels equal those of the undamaged slide."""
    found: Counter[str] = Counter()
    for data in copies:
        path.write_bytes(data)
        seen = look(path)
        found["whole" if seen.code == "done" and seen.pixels == whole.pixels else seen.code] += 1
        assert seen.seconds < 5
    return found


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", USUAL)
def test_cut_or_holed_slide_is_refused(
    kind: str, loss: str, seed: Callable, inspectors: tuple[SlideInspector, SlideInspector], tmp_path: Path
) -> None:
    check_loss(kind, loss, 4, seed(kind), inspectors[0], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", SEEDS)
def test_fifty_cut_or_holed_slides_are_refused(
    kind: str, loss: str, seed: Callable, inspectors: tuple[SlideInspector, SlideInspector], tmp_path: Path
) -> None:
    check_loss(kind, loss, 5 if kind == "svs-j2k" else 50, seed(kind), inspectors[0], tmp_path)


def check_loss(kind: str, loss: str, times: int, path: Path, look: SlideInspector, folder: Path) -> None:
    copies, whole = LOSSES[loss](path.read_bytes(), times, 7), look(path)
    if kind == "dicom-raw" and loss == "tail zeroed":  # below a page, zeros in plain pixels are black like any other
        copies = (one for one in copies if not any(one[-PAGE - len(one) % PAGE :]))
    found = count_outcomes(look, folder / f"a{path.suffix}", copies, whole)
    assert whole.code == "done"
    # a hole in the label or macro image, which are never used, leaves every pixel of the slide as it is
    harmless = {"whole"} if kind.startswith("svs") and loss.startswith("hole") else set()
    assert found.keys() <= REFUSED | harmless, found


@pytest.mark.parametrize("kind", USUAL)
def test_slide_with_flipped_bit_gives_the_same_result_twice(
    kind: str, seed: Callable, inspectors: tuple[SlideInspector, SlideInspector], tmp_path: Path
) -> None:
    check_flips(12, seed(kind), inspectors, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", USUAL)
def test_two_hundred_slides_with_flipped_bits_give_the_same_result_twice(
    kind: str, seed: Callable, inspectors: tuple[SlideInspector, SlideInspector], tmp_path: Path
) -> None:
    check_flips(200, seed(kind), inspectors, tmp_path)


def check_flips(times: int, path: Path, inspectors: tuple[SlideInspector, SlideInspector], folder: Path) -> None:
    """Flip bits in tags, lists of tiles and data in turn; a crash of the slide's own process is allowed."""
    flips, place = flip_bits(path.read_bytes(), important_ranges(path), times, seed=11), folder / f"a{path.suffix}"
    for data in flips:
        place.write_bytes(data)
        first, second = (look(place) for look in inspectors)
        assert (first.code, first.pixels) == (second.code, second.pixels)
        assert first.code in {"done", "crashed", *REFUSED, "no-mpp"} & {"done", "crashed", *REMEDIES}


@pytest.mark.slow
def test_damaged_slides_in_a_folder_leave_the_sound_ones_unchanged(
    tmp_path: Path, seed: Callable, ray_session: RaySession
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    good = [write_slide(scans / f"good{k}.tiff", tissue_image(1400, 1200, seed=k, brown=0.3)) for k in range(2)]
    run = partial(ingest, plan=Plan(mpp_override=0.5), resources=Resources(workers=2), session=ray_session)
    assert ingest(IngestRequest(scans, tmp_path / "quiet"), Plan(mpp_override=0.5), Resources(workers=0)).exit_code == 0
    for kind in USUAL:
        for k, harm in enumerate(
            LOSSES.values() if kind != "dicom" else [truncated_copies]
        ):  # files of one series are one slide
            path = seed(kind)
            (scans / f"{kind}-{k}{path.suffix}").write_bytes(next(harm(path.read_bytes(), 1, 3)))
    damaged = len(list(scans.iterdir())) - len(good)
    summary = run(IngestRequest(scans, tmp_path / "c"))
    done = {name: row for name, row in Cohort(tmp_path / "c").rows().items() if row["status"] == "done"}
    unused = [name for name, row in done.items() if "associated-image-damaged" in row["flags"]]
    assert all(name.startswith("svs-") for name in unused)  # their damage lies in a label, macro image or thumbnail
    assert done.keys() - unused == {path.stem for path in good}
    assert (summary.failed, summary.exit_code) == (damaged - len(unused), 3)
    assert set(codes(summary).values()) <= REFUSED
    ours, theirs = store_contents(tmp_path / "quiet"), store_contents(tmp_path / "c")
    assert ours == {name: theirs.get(name) for name in ours}


def test_check_detects_memory_that_was_never_written() -> None:
    code = "import numpy, sys; sys.stdout.buffer.write(numpy.empty(100_000, numpy.uint8)[50_000])"
    told = {subprocess.check_output([sys.executable, "-c", code], env={"MALLOC_PERTURB_": one}) for one in MEMORY_FILLS}
    assert len(told) == 2
