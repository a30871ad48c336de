"""How many slides per hour does a cluster process, and what limits it? The cost model of --dry-run for many clusters.

usage: cluster.py [--tissue MM2] [--mpp MPP] [--plot SVG]

No slide is processed: the costs are those of her2batch/pipeline/cost_model.py. GPU rates are estimates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from rounds import load_pyplot

from her2batch.pipeline.cost_model import Cluster, SlideLoad, bottleneck, slide_seconds, typical_slide

CORES = (8, 16, 32, 64, 128, 256, 512)
GPUS = (0, 1, 2, 4, 8, 16, 32, 64)
LINKS = {"1 GbE": 0.125e9, "10 GbE": 1.25e9, "100 GbE": 12.5e9}
COLOURS = {"cores": "#3b75a8", "GPUs": "#6aa84f", "link": "#d98c3f"}
ENCODERS = ("stain", "uni")


def make_cluster(cores: int, gpus: int, link: float) -> Cluster:
    """Return a cluster whose store writes at the speed of its link; without a GPU the encoders run on cores."""
    return Cluster(cores, gpus, link, 2 * link)


def draw_map(path: Path, load: SlideLoad, tissue: float) -> None:
    """Draw a map of slides per hour for each link. The colour shows the bottleneck."""
    names = list(COLOURS)
    plt = load_pyplot()
    figure, panels = plt.subplots(1, len(LINKS), figsize=(12, 4.2), sharey=True)
    palette = ListedColormap([COLOURS[name] for name in names])
    for axes, (title, link) in zip(panels, LINKS.items(), strict=True):
        limits = np.zeros((len(GPUS), len(CORES)))
        for row, gpus in enumerate(GPUS):
            for column, cores in enumerate(CORES):
                parts = slide_seconds(load, ENCODERS, make_cluster(cores, gpus, link))
                limits[row, column] = names.index(bottleneck(parts))
                rate = 3600 / max(parts.values())
                text = f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.{0 if rate >= 10 else 1}f}"
                axes.text(column, row, text, ha="center", va="center", color="white", fontsize=8)
        axes.imshow(
            limits,
            cmap=palette,
            norm=BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names)),
            origin="lower",
            aspect="auto",
        )
        axes.set_xticks(range(len(CORES)), [str(cores) for cores in CORES])
        axes.set_yticks(range(len(GPUS)), [str(gpus) for gpus in GPUS])
        axes.set_xlabel("CPU cores")
        axes.set_title(f"store on {title}", loc="left", fontsize=11)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("GPUs (H200 class, estimated)")
    figure.suptitle(
        f"Slides per hour, {tissue:g} mm² of tissue at 0.25 µm/px, encoders stain and UNI", x=0.05, ha="left"
    )
    keys = [Patch(color=COLOURS[name], label=f"limited by {name}") for name in names]
    figure.legend(handles=keys, ncols=len(keys), loc="lower center", frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print a table for each link."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tissue", type=float, default=100.0)
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    load = typical_slide(args.tissue, args.mpp)
    print(
        f"a slide: {load.tiles:,.0f} tiles, {load.px / 1e9:.1f} GP to decode, {load.read_bytes / 1e6:,.0f} MB read, "
        f"{load.written_bytes / 1e6:,.0f} MB written"
    )
    for title, link in LINKS.items():
        print(
            f"\nstore on {title}: slides per hour (bottleneck)\nGPUs  "
            + "".join(f"{cores:>14} cores" for cores in CORES)
        )
        for gpus in GPUS:
            cells = []
            for cores in CORES:
                parts = slide_seconds(load, ENCODERS, make_cluster(cores, gpus, link))
                cells.append(f"{3600 / max(parts.values()):>12,.0f} {bottleneck(parts):>7}")
            print(f"{gpus:>4}  " + "".join(cells))
    if args.plot:
        draw_map(args.plot, load, args.tissue)


if __name__ == "__main__":
    main()
