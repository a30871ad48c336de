"""A cohort's embeddings as one memory-mapped file: all folds read the same pages, and none copies them.

The file is an Arrow file with one record batch per slide, in the dtype that this machine multiplies fastest (bfloat16
as int16 of the same bits), each bag padded with zeros to one of few sizes, so that a training step reads it from the
page cache without conversion. Parquet cannot be mapped, because it is compressed and byte-split.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.models.attention import padded_size, product_dtype
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.patient_tiles import read_patient_tiles
from her2batch.tasks import Task, as_task

if TYPE_CHECKING:
    import pandas as pd

READERS = 4
"""Threads that decode and convert Parquet, which releases the GIL."""

EXPONENT = 0x7C00
"""Exponent bits of float16, all set in values that are not finite: 1 ms for two million values, isfinite takes 9 ms."""


@dataclass(frozen=True)
class Bags:
    """The bags of one encoder, by position. sizes: instances of each bag.  pages: the mapped file."""

    slide_ids: tuple[str, ...]
    sizes: tuple[int, ...]
    dim: int
    file: pa.ipc.RecordBatchFileReader
    pages: mmap.mmap

    def of(self, position: int) -> torch.Tensor:
        """Return a slide's bag, (padded_size(N), dim): embeddings in tile order, then zeros; a view of the file."""
        values = self.file.get_batch(position).column(0).flatten().to_numpy(zero_copy_only=True)
        with warnings.catch_warnings():  # torch warns of read-only memory; nothing here writes to it
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.from_numpy(values)
        return (flat.view(torch.bfloat16) if flat.dtype == torch.int16 else flat).view(-1, self.dim)

    def release(self) -> None:
        """Release the pages that were read. They stay in the page cache until the system needs the memory.

        Without it, a process would hold the whole file after an epoch: 2 GB for 500 bags.
        """
        self.pages.madvise(mmap.MADV_DONTNEED)


def gather_bags(cohort: Cohort, encoder: str, folder: str, slide_ids: Sequence[str], path: Path) -> Bags:
    """Write the bags of these slides to `path`, unless it has exactly them already, and open it.

    folder: name of the encoder's table folder.  Raises InputError for a slide without embeddings or tiles, with
    embeddings of another length than the first slide's, or with values that are not finite.
    """
    dtype = product_dtype("cpu")
    sources = [_source(cohort, encoder, folder, slide_id) for slide_id in slide_ids]
    facts = [encoder, str(dtype), [(file.name, version) for file, version in sources]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if (found := _open(path, key)) is not None:
        return found
    dim = _vectors(cohort, folder, None, slide_ids[0]).shape[1]
    read = partial(_read_column, cohort, folder, dim, dtype)
    kind = pa.int16() if dtype == torch.bfloat16 else pa.float32()
    sizes: list[int] = []
    schema = pa.schema([pa.field("embedding", pa.list_(kind, dim))])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, ThreadPoolExecutor(READERS) as pool:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for lo in range(0, len(slide_ids), 4 * READERS):  # number of bags in memory at once
                for size, column in pool.map(read, slide_ids[lo : lo + 4 * READERS]):
                    sizes.append(size)
                    writer.write_batch(pa.record_batch([column], schema=schema))
        with atomic_write(path.with_suffix(".json")) as beside:
            beside.write_text(json.dumps({"key": key, "slides": list(slide_ids), "sizes": sizes}), "utf-8")
    pa.default_memory_pool().release_unused()  # otherwise the driver keeps 0.4 GB while it waits
    opened = _open(path, key)
    assert opened is not None
    return opened


def _read_column(
    cohort: Cohort, folder: str, dim: int, dtype: torch.dtype, slide_id: str
) -> tuple[int, pa.FixedSizeListArray]:
    """Return the size of a slide's bag, and the bag as a column of the file, padded with zeros."""
    vectors = _vectors(cohort, folder, dim, slide_id)
    filled = torch.zeros(padded_size(len(vectors)), vectors.shape[1], dtype=dtype)
    filled[: len(vectors)] = torch.from_numpy(vectors).float()
    flat = (filled.view(torch.int16) if dtype == torch.bfloat16 else filled).numpy().reshape(-1)
    return len(vectors), pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)


def open_bags(path: Path) -> Bags:
    """Open the bags that `gather_bags` wrote. Raises InputError when the file is missing or damaged."""
    found = _open(path, None)
    if found is None:
        raise InputError("cannot be read", path, "run the same command again, which writes it again")
    return found


def _source(cohort: Cohort, encoder: str, folder: str, slide_id: str) -> tuple[Path, tuple[int, int]]:
    """Return a slide's file of embeddings with the size and time of the file and of that of the pieces: its version."""
    path = cohort.table(f"embeddings/{folder}", slide_id)
    try:
        facts = path.stat()
    except OSError as error:
        remedy = f"run `her2batch ingest SCANS --out {cohort.root} --encoder {encoder}`, or import them"
        raise InputError(f"slide {slide_id} has no embeddings of {encoder}", path, remedy) from error
    return path, (facts.st_size, facts.st_mtime_ns)


def _vectors(cohort: Cohort, folder: str, dim: int | None, slide_id: str) -> NDArray[np.float16]:
    """Return a slide's embeddings, (N, D). dim: the required D; None: any."""
    path = cohort.table(f"embeddings/{folder}", slide_id)
    remedy = "run `her2batch verify` on the cohort, then ingest again"
    try:
        column = read_patient_tiles(cohort, slide_id, f"embeddings/{folder}").column("embedding").combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", path, remedy) from error
    if not len(column):
        raise InputError(f"slide {slide_id} has no tiles", path, "remove it from the labels")
    if dim is not None and column.type.list_size != dim:
        what = f"its embeddings have length {column.type.list_size}, those of other slides {dim}"
        raise InputError(what, path, "ingest the cohort again with one version of the encoder")
    values: NDArray[np.float16] = column.flatten().to_numpy().reshape(len(column), -1).copy()
    bad = int(((values.view(np.uint16) & EXPONENT) == EXPONENT).any(axis=1).sum())
    if bad:
        raise InputError(f"{bad} of {len(column)} embeddings contain values that are not finite", path, remedy)
    return values


def _open(path: Path, key: str | None) -> Bags | None:
    """Open a file of bags. None: it does not exist, cannot be read, or has another key."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text("utf-8"))
        with path.open("rb") as opened:
            pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        file = pa.ipc.open_file(pa.py_buffer(pages))
    except (OSError, ValueError, pa.ArrowInvalid):
        return None
    if key is not None and facts["key"] != key:
        return None
    return Bags(tuple(facts["slides"]), tuple(facts["sizes"]), file.schema.field(0).type.list_size, file, pages)


class BagDataset(torch.utils.data.Dataset[tuple[torch.Tensor, int | float]]):
    """A torch Dataset of slides with a label: item k is (embeddings (N, D) float32, class index or number).

    classes: names of the classes, by index.  slide_ids, patient_ids: of the items.  excluded: slides without a usable
    label, with the reason.  Bags differ in length: use batch_size=1 or a collate function of your own.
    """

    def __init__(
        self,
        task: str | Task,
        labelled: Sequence[Row],
        excluded: pd.DataFrame,
        read: Callable[[str], NDArray[np.float16]],
    ) -> None:
        """labelled: rows with slide_id, patient_id, label and truth.  read: slide_id → (N, D) float16."""
        self.classes, number = as_task(task).classes, as_task(task).is_number
        self.slide_ids = [str(row["slide_id"]) for row in labelled]
        self.patient_ids = [str(row["patient_id"]) for row in labelled]
        self.targets = [float(row["truth"]) if number else int(row["label"]) for row in labelled]
        self.excluded = excluded
        self._read = read

    def __len__(self) -> int:
        return len(self.slide_ids)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int | float]:
        bag = torch.from_numpy(self._read(self.slide_ids[position]).astype(np.float32))
        return bag, self.targets[position]
