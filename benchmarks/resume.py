"""How long do a second ingest and `status` take over thousands of finished slides, and do they open any slide?

usage: resume.py SCRATCH [--slides N ...] [--real] [--rounds N] [--plot SVG]

Both commands run as a user runs them, including process start. A few tiny slides are ingested; the others are copies
with different bytes, whose rows and files are committed through the store's own draft, so that a resumed run treats
them like ingested ones (`verify` finds no problem). With --real every slide is ingested, which takes some minutes for
5,000. SCRATCH is kept and grows from one size to the next.

- without memos: the same command after removing the row caches `tables/runs/*.memo`: every slide and row is opened
- bound: the same command on an empty cohort, plus one stat for every slide and every file of the cohort
- opened: files below the scans folder that one more ingest opens, counted by the interpreter's audit hook
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
from rounds import load_pyplot, median_seconds

from her2batch.files.atomic import file_sha256
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import cohort_status
from her2batch.store.cohort import Cohort, Row

EDGE, MPP = 1000, 0.25
DISTINCT = 4

AUDIT_SCRIPT = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from her2batch.cli.app import main
try:
    main()
finally:
    print(sum(one.startswith(SCANS) for one in opened), int("ray" in sys.modules), file=sys.stderr)
"""


def write_tiny_slide(path: Path, shade: int) -> None:
    """Write a slide of 0.25 × 0.25 mm: a round piece of tissue with nuclei, 110 kB."""
    y, x = np.mgrid[:EDGE, :EDGE].astype(np.float32)
    tissue = np.hypot(x - EDGE / 2, y - EDGE / 2) < 0.45 * EDGE
    rgb = np.full((EDGE, EDGE, 3), 240, np.uint8)
    rgb[tissue] = (225, 200, 210 - shade)
    rgb[tissue & (np.cos(x / 7) * np.cos(y / 7) > 0.3)] = (120, 110, 170)
    tifffile.imwrite(
        path, rgb, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 60},
        metadata=None, resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER",
    )  # fmt: skip


def copy_slide(original: Path, number: int) -> Path:
    """Copy a slide and append eight bytes, so that its content differs."""
    path = original.with_name(f"t{number:06}.tiff")
    if not path.exists():
        path.write_bytes(original.read_bytes() + number.to_bytes(8, "little"))
    return path


def commit_copy(cohort: Cohort, row: Row, path: Path) -> None:
    """Commit the result of a copy: that of its original, under its own name."""
    draft = cohort.draft(path.stem)
    for file in row["files"]:
        place = Path(file["path"])
        if place.parts[0] == "tables":
            name = place.parent.relative_to("tables").as_posix()
            table = cohort.read(name, row["slide_id"])
            ids = [path.stem] * table.num_rows
            draft.write(name, table.set_column(0, table.schema.field(0), [ids]))
    shutil.copy(cohort.thumbnail(row["slide_id"]), draft.thumbnail())
    shutil.copytree(cohort.pyramid(row["slide_id"]), draft.pyramid())
    own = {"slide_id": path.stem, "path": str(path), "sha256": file_sha256(path), "bytes": path.stat().st_size}
    draft.commit({**row, **own}, None)


def grow_cohort(scans: Path, cohort: Cohort, slides: int, real: bool) -> None:
    """Add slides and their results until the cohort has the given number."""
    scans.mkdir(parents=True, exist_ok=True)
    originals = [scans / f"t{k:06}.tiff" for k in range(DISTINCT)]
    for k, path in enumerate(originals):
        if not path.exists():
            write_tiny_slide(path, 8 * k)
    workers = Resources(workers=None if real else 0)
    if not real:
        ingest(IngestRequest(scans, cohort.root), Plan(), workers)
    rows = cohort.rows() if not real else {}
    for number in range(DISTINCT, slides):
        original = originals[number % DISTINCT]
        path = copy_slide(original, number)
        if not real and path.stem not in rows:
            commit_copy(cohort, rows[original.stem], path)
    started = time.perf_counter()
    summary = ingest(
        IngestRequest(scans, cohort.root), Plan(), workers
    )  # the copies have rows: they are hashed and recorded
    assert (summary.seen, summary.done) == (slides, slides), summary.failures
    if real:
        print(f"first ingest of {slides - summary.already} slides: {time.perf_counter() - started:.0f} s")
    assert cohort_status(cohort).adds_up


def time_command(*arguments: object) -> float:
    """Return the wall seconds of a command, including process start."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "her2batch.cli", *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - started


def time_without_cache(cohort: Cohort, *arguments: object) -> float:
    """Return the wall seconds of a command without row caches."""
    for path in cohort.runs.glob("*.memo"):
        path.unlink()
    return time_command(*arguments)


def time_stats(*folders: Path) -> float:
    """Return the seconds of one stat for every file below some folders."""
    started = time.perf_counter()
    for folder in folders:
        for top, _, files in os.walk(folder):
            for name in files:
                os.stat(f"{top}/{name}")  # noqa: PTH116  (the fastest way)
    return time.perf_counter() - started


def count_opened_files(scans: Path, cohort: Cohort) -> tuple[int, int]:
    """Return the number of slide files that an ingest opens, and whether it imports Ray."""
    code = AUDIT_SCRIPT.replace("SCANS", repr(str(scans)))
    command = [sys.executable, "-c", code, "ingest", str(scans), "--out", str(cohort.root), "--json"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    slides, ray = run.stderr.split()[-2:]
    return int(slides), int(ray)


def measure_sides(scans: Path, cohort: Cohort, empty: Path, rounds: int) -> dict[str, float]:
    """Return the seconds of every side."""
    again, count = ("ingest", scans, "--out", cohort.root, "--json"), ("status", cohort.root, "--json")
    nothing = ("ingest", empty / "scans", "--out", empty / "c", "--json")
    (empty / "scans").mkdir(parents=True, exist_ok=True)
    time_command(*nothing)
    return median_seconds(
        {
            "status without memos": lambda: time_without_cache(cohort, *count),
            "ingest without memos": lambda: time_without_cache(cohort, *again),  # which writes the caches again
            "ingest": lambda: time_command(*again),
            "status": lambda: time_command(*count),
            "ingest of nothing": lambda: time_command(*nothing),
            "status of nothing": lambda: time_command("status", empty / "c", "--json"),
            "stats": lambda: time_stats(scans, cohort.root),
        },
        rounds,
    )


def draw_chart(path: Path, found: dict[int, dict[str, float]]) -> None:
    """Draw seconds over the number of slides."""
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.6))
    colours = plt.colormaps["viridis"]
    for k, side in enumerate(("ingest without memos", "status without memos", "ingest", "status")):
        style = "--" if "without" in side else "-"
        axes.plot(
            list(found), [one[side] for one in found.values()], style, marker="o", color=colours(k / 4), label=side
        )
    axes.set(xscale="log", yscale="log", xlabel="finished slides", ylabel="seconds, process start included")
    axes.set_title("A second ingest, and status", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Print the rows of each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--slides", type=int, nargs="+", default=[500, 1000, 5000])
    parser.add_argument("--real", action="store_true", help="ingest every slide, commit no copies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    scans, cohort = args.scratch.absolute() / "scans", Cohort(args.scratch.absolute() / "cohort")
    found: dict[int, dict[str, float]] = {}
    for slides in sorted(args.slides):
        grow_cohort(scans, cohort, slides, args.real)
        one = found[slides] = measure_sides(scans, cohort, args.scratch.absolute() / "nothing", args.rounds)
        for name in ("ingest", "status"):
            bound = one[f"{name} of nothing"] + (one["stats"] if name == "ingest" else 0)
            before = one[f"{name} without memos"]
            print(
                f"{slides:6} slides, {name}: {one[name]:5.2f} s · without memos {before:6.2f} s, "
                f"{before / one[name]:.1f} × as long · bound {bound:.2f} s, {one[name] / bound:.2f} × the bound"
            )
        files, ray = count_opened_files(scans, cohort)
        held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"{'':14} opened: {files} slide files; Ray {'started' if ray else 'not imported'}; {held:.2f} GB at most")
    if args.plot:
        draw_chart(args.plot, found)


if __name__ == "__main__":
    main()
