"""Join the rows of the GPU benchmark's steps into gpu.json and gpu.md, or put its figures into the documents.

usage: gpu_report.py join FOLDER [--cpu] [--failed STEP:CODE ...]
       gpu_report.py docs [gpu.json]

docs: writes the parts between the markers `<!-- gpu: NAME -->` and `<!-- end gpu -->` of docs/performance.md and
docs/sizing.md from the file, default benchmarks/gpu.json, and says "estimated" or "not measured" where there is none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from her2batch.pipeline.cost_model import GPU_TILES_S, available_cores

Figures = dict[str, Any]

STEPS = ("gpu_slides", "gpu_decode", "gpu_networks", "gpu_ingest", "gpu_training", "gpu_kill", "gpu_compiled")

EXPECTED = {
    "gpu_slides": {"slides.seconds": "synthetic slides made"},
    "gpu_decode": {
        "decode.jpeg.cores": "decode jpeg, CPU cores",
        "decode.jpeg.nvimgcodec": "decode jpeg, nvImageCodec",
        "decode.jpeg2000.cores": "decode jpeg2000, CPU cores",
        "decode.jpeg2000.nvimgcodec": "decode jpeg2000, nvImageCodec",
        "decode.jpeg.cucim": "decode jpeg, cuCIM",
        "decode.jpeg.tiles": "tiles decoded, checked, shrunk and cut on the device",
        "decode.jpeg.cucim-tiles": "the same with cuCIM (--reader cucim)",
    },
    "gpu_networks": {
        "network.uni.feed": "ViT-L of UNI's size, through our feed",
        "network.uni2-h.feed": "ViT-H of UNI2's size, through our feed",
        "network.convnext-small.feed": "ConvNeXt-S, through our feed",
        "network.uni.found": "ViT-L of UNI's size, tiles at once",
        "measure.tiles": "tiles measured on the device",
        "networks.three": "three networks at once, a process each",
    },
    "gpu_ingest": {"ingest.tiles": "ingest with UNI's network", "ingest.busy": "GPU busy once warm",
                   "ingest.time": "ingest without Ray's start and stop"},
    "gpu_training": {"training.convnext-small": "training of ConvNeXt-S", "training.clam-sb": "training of CLAM-SB"},
    "gpu_kill": {"kill.seconds": "ingest with a killed model worker"},
    "gpu_compiled": {
        "network.uni.batch": "ViT-L of UNI's size, fastest batch",
        "network.uni.compiled": "ViT-L of UNI's size, torch.compile",
        "network.uni.graphs": "ViT-L of UNI's size, torch.compile with CUDA graphs",
    },
}  # fmt: skip
"""Figures of each step, key → what it is: a step that ended early has a row for each that is missing."""

LACKING = {
    "ingest.shared-batch": (
        "networks of tiles, patches and thumbnails on the same decoded batch",
        "encoders share a batch; patches and thumbnails have resolutions of their own",
    ),
}  # fmt: skip
"""What the engine cannot do yet, so that it cannot be measured: key → what, why."""

PACKAGES = ("torch", "timm", "ray", "cucim-cu13", "nvidia-nvimgcodec-cu13", "simplejpeg", "imagecodecs")


def machine(cpu: bool) -> Figures:
    """Return the hardware and the versions that the figures belong to."""
    found: Figures = {"gpu": None, "cores": available_cores(), "python": platform.python_version(), "versions": {}}
    for package in PACKAGES:
        try:
            found["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][package] = None
    if not cpu and importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return found


def join(folder: Path, cpu: bool, failed: dict[str, int]) -> Figures:
    """Join the rows of all steps; what is missing gets a row that says why."""
    rows: list[Figures] = []
    for step in STEPS:
        path = folder / f"{step}.json"
        found = json.loads(path.read_text()) if path.exists() else []
        rows += found
        why = {124: "its time limit ended the step", 137: "the step was killed"}.get(failed.get(step, 0))
        why = why or (f"the step ended with code {failed[step]}, see {step}.log" if step in failed else "no result")
        keys = {row["key"] for row in found}
        rows += [_unmeasured(key, what, why) for key, what in EXPECTED[step].items() if key not in keys]
    rows += [_unmeasured(key, what, why) for key, (what, why) in LACKING.items()]
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"dry_run": cpu, "date": when, "machine": machine(cpu), "rows": rows}


def _unmeasured(key: str, what: str, why: str) -> Figures:
    return {"key": key, "what": what, "value": None, "unit": "", "ratio": None, "baseline": "", "note": why}


def table(figures: Figures) -> str:
    """Return the Markdown table of all figures."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in figures["machine"]["versions"].items())
    head = "Dry run on the CPU with tiny sizes: no figure says anything about a GPU.\n\n" if figures["dry_run"] else ""
    gpu = figures["machine"]["gpu"] or "no GPU"
    lines = [f"{head}{gpu}, {figures['machine']['cores']} CPU cores, {figures['date']}; {versions}.", ""]
    lines += ["| what | result | ratio | remarks |", "| --- | --- | --- | --- |"]
    for row in figures["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} × {row['baseline']}"
        result = (
            f"{_number(row['value'])} {row['unit']}" if row["value"] is not None else "not measured: " + row["note"]
        )
        note = row["note"] if row["value"] is not None else ""
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in (row["what"], result, ratio, note)) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value / 1e6:,.0f} million" if value >= 1e7 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def read_figures(path: Path) -> Figures | None:
    """Return the figures of a file; None without a file. A dry run is refused: its figures are no GPU's."""
    if not path.exists():
        return None
    figures: Figures = json.loads(path.read_text())
    if figures["dry_run"]:
        raise SystemExit(f"{path} is of a dry run on the CPU; the documents take figures of a GPU alone")
    return figures


def value_of(figures: Figures | None, key: str) -> Figures | None:
    """Return the row of a key that has a value."""
    rows = figures["rows"] if figures else []
    return next((row for row in rows if row["key"] == key and row["value"] is not None), None)


def parts(figures: Figures | None) -> dict[str, str]:
    """Return the text of every part of the documents that depends on the figures."""
    gpu = figures["machine"]["gpu"] if figures else None
    ingest, uni = value_of(figures, "ingest.tiles"), value_of(figures, "network.uni.feed")
    rate = f"{_number(ingest['value'])} tiles/s with UNI's network on one {gpu}" if ingest else "not measured"
    bound = f"{uni['value'] / uni['ratio']:,.0f} tiles/s" if uni else "–"
    result = f"{_number(uni['value'])} tiles/s: {uni['ratio']:.2f} ×" if uni else "**not measured**"
    cost = (f"{_number(uni['value'])} tiles/s", f"measured on one {gpu} (`benchmarks/on_gpu.sh`)") if uni else (
        f"{GPU_TILES_S['uni']:,.0f} tiles/s", "**estimated**: 55 % of its bf16 peak; never measured")  # fmt: skip
    whole = table(figures) if figures else "No speed was measured on a GPU.\n"
    return {
        "summary": rate,
        "bound": bound,
        "result": result,
        "table": f"\n{whole}",
        "cost": cost[0],
        "source": cost[1],
        "embeds": _embeds(uni, gpu),
    }


def _embeds(uni: Figures | None, gpu: str | None) -> str:
    """Return the rate of one GPU as docs/sizing.md states it; a typical slide has 7,972 tiles."""
    rate = uni["value"] if uni else GPU_TILES_S["uni"]
    slides = round(rate * 3600 / 7972, -2)
    how = f"measured on one {gpu}" if uni else "estimated"
    return f"**One {gpu or 'H200'} embeds {slides:,.0f} slides per hour** ({how})"


MARKED = re.compile(r"(<!-- gpu: (\w+) -->)(.*?)(<!-- end gpu -->)", re.DOTALL)


def fill(text: str, figures: Figures | None) -> str:
    """Return a document with its marked parts written anew."""
    texts = parts(figures)
    return MARKED.sub(lambda found: found[1] + texts[found[2]] + found[4], text)


def main() -> None:
    """Join the steps, or write the documents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=Path)
    joining.add_argument("--cpu", action="store_true")
    joining.add_argument("--failed", nargs="*", default=[])
    documents = commands.add_parser("docs")
    here = Path(__file__).resolve().parent
    documents.add_argument("figures", type=Path, nargs="?", default=here / "gpu.json")
    args = parser.parse_args()
    if args.command == "docs":
        figures = read_figures(args.figures)
        for page in (here.parent / "docs" / name for name in ("performance.md", "sizing.md")):
            page.write_text(fill(page.read_text(), figures))
        return
    failed = {step: int(code) for step, _, code in (one.partition(":") for one in args.failed)}
    figures = join(args.folder, args.cpu, failed)
    (args.folder / "gpu.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    (args.folder / "gpu.md").write_text(table(figures))
    print(table(figures))


if __name__ == "__main__":
    main()
