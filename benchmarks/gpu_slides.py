"""Step of the GPU benchmark: paint small pieces of tissue and make slides of them by mirroring.

usage: gpu_slides.py SCRATCH OUT [--cpu]

SCRATCH/large: slides of 21,504 px, JPEG 4:2:0, as many as the whole ingest reads.  SCRATCH/small: a few small slides,
for the killed worker.  SCRATCH/jpeg2000: one small slide, for the decoders. All at 0.25 µm/px.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
from gpu_record import Row, step_record
from slides import make_slide

from her2batch.pipeline.cost_model import available_cores
from her2batch.synthetic.cohort import paint_truth
from her2batch.synthetic.specimen import TYPICAL_MIXES, SlideTruth

PICTURE_PX = 1344
"""Edge of a painted piece: a multiple of 16 px times the tile of 224 px at half the resolution."""


def paint_picture(folder: Path, number: int) -> Path:
    """Paint a piece of tissue of another score for each number, and write it as a JPEG picture."""
    score = sorted(TYPICAL_MIXES)[number % len(TYPICAL_MIXES)]
    truth = SlideTruth(f"gpu{number}", TYPICAL_MIXES[score], width=PICTURE_PX, height=PICTURE_PX)
    rgb = paint_truth(truth, seed=number).rgb
    path = folder / f"{number}.jpg"
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return path


def main() -> None:
    """Make the slides; one row with the seconds."""
    record, scratch = step_record(__doc__.splitlines()[0])
    started = time.perf_counter()
    count, edge = (2, PICTURE_PX) if record.cpu else (8, 16 * PICTURE_PX)
    few, small = (2, PICTURE_PX) if record.cpu else (16, 3 * PICTURE_PX)
    pictures = scratch / "pictures"
    pictures.mkdir(exist_ok=True)
    with ProcessPoolExecutor(min(available_cores(), count)) as pool:
        list(pool.map(paint_picture, [pictures] * count, range(count)))
        work = [("large", "jpeg420", k, edge) for k in range(count)]
        work += [("small", "jpeg420", k, small) for k in range(few)]
        work += [("jpeg2000", "jpeg2000", 0, small)]
        made = [pool.submit(make_slide, pictures, scratch / name, kind, k, px) for name, kind, k, px in work]
        paths = [future.result() for future in made]
    size = sum(path.stat().st_size for path in paths)
    note = f"{count} of {edge:,} px, {few} of {small:,} px, {size / 1e6:,.0f} MB"
    record.add(Row("slides.seconds", "synthetic slides made", time.perf_counter() - started, "s", note=note))


if __name__ == "__main__":
    main()
