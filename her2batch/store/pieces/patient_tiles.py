"""Tiles of the patient's tissue, which count towards a slide's score: all but those of controls and excluded pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.store.cohort import Cohort

TISSUE = "tissue"
"""Role of the pieces that count."""


def patient_tiles(read: Callable[[str], pa.Table]) -> NDArray[np.bool_] | None:
    """Return the tiles of a slide that count, (n,) bool in the order of the table tiles; None: all do.

    read: reads the slide's tables by name.  A slide of a cohort that was made without pieces has none that do not
    count.  Raises what `read` raises, except FileNotFoundError and KeyError for the table pieces.
    """
    try:
        pieces = read("pieces")
    except (FileNotFoundError, KeyError):
        return None
    counts = np.array([role == TISSUE for role in pieces["role"].to_pylist()], bool)
    if counts.all():
        return None
    return np.asarray(np.append(counts, True)[read("tiles")["piece"].to_numpy()])  # −1: on no piece


def patient_tiles_of(cohort: Cohort, slide_id: str) -> NDArray[np.bool_] | None:
    """Return the tiles of a committed slide that count; None: all do. Raises OSError, pa.ArrowInvalid."""
    return patient_tiles(lambda name: cohort.read(name, slide_id))


def read_patient_tiles(cohort: Cohort, slide_id: str, name: str = "tiles") -> pa.Table:
    """Read a table of a committed slide with one row a tile, without the tiles that do not count.

    Raises OSError, pa.ArrowInvalid.
    """
    table, own = cohort.read(name, slide_id), patient_tiles_of(cohort, slide_id)
    return table if own is None else table.filter(pa.array(own))
