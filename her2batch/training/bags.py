"""A cohort's embeddings as one memory-mapped file: every fold reads the same pages, none holds a copy.

An Arrow file with one record batch a slide. Parquet can't be mapped: it is compressed and byte-split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.tables.files import whole
from her2batch.tables.store import Cohort

Half = NDArray[np.float16]


@dataclass(frozen=True)
class Bags:
    """Bags of one encoder, by position. `of(i)`: (N, dim) float16, a view of the file."""

    slide_ids: tuple[str, ...]
    dim: int
    file: pa.ipc.RecordBatchFileReader

    def of(self, position: int) -> Half:
        """The embeddings of one slide, in tile order."""
        column = self.file.get_batch(position).column(0)
        flat: Half = column.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(-1, self.dim)


def gather(cohort: Cohort, encoder: str, folder: str, slide_ids: Sequence[str], path: Path) -> Bags:
    """The bags of these slides, written to `path` unless it holds exactly them already.

    folder: name of the encoder's table folder.  Raises InputError, before anything is trained, for a slide without
    embeddings, without a tile, with another length than the others', or with values that are no numbers.
    """
    sources = [_source(cohort, encoder, folder, one) for one in slide_ids]
    key = hashlib.sha256(json.dumps([encoder, [(p.name, d) for p, d in sources]]).encode()).hexdigest()
    if (found := _open(path, key)) is not None:
        return found
    first = _vectors(cohort, folder, slide_ids[0], None)
    schema = pa.schema(
        [pa.field("embedding", first.type)], {"slides": json.dumps(list(slide_ids)), "key": key, "encoder": encoder}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for slide_id in slide_ids:
            vectors = _vectors(cohort, folder, slide_id, first.type.list_size)
            writer.write_batch(pa.record_batch([vectors], schema=schema))
    pa.default_memory_pool().release_unused()  # or the driver keeps 0.4 GB of it while it only waits
    opened = _open(path, key)
    assert opened is not None
    return opened


def reopen(path: Path) -> Bags:
    """The bags that `gather` wrote. Raises InputError when the file is gone or damaged."""
    found = _open(path, None)
    if found is None:
        raise InputError("can't be read", path, "run the same command again: it is made anew")
    return found


def _source(cohort: Cohort, encoder: str, folder: str, slide_id: str) -> tuple[Path, tuple[int, int]]:
    """A slide's file of embeddings, with what tells one version of it from another."""
    path = cohort.table(f"embeddings/{folder}", slide_id)
    try:
        facts = path.stat()
    except OSError as error:
        remedy = f"run: her2batch ingest SCANS --out {cohort.root} --encoder {encoder}"
        raise InputError(f"slide {slide_id} has no embeddings of {encoder}", path, remedy) from error
    return path, (facts.st_size, facts.st_mtime_ns)


def _vectors(cohort: Cohort, folder: str, slide_id: str, dim: int | None) -> pa.FixedSizeListArray:
    path = cohort.table(f"embeddings/{folder}", slide_id)
    again = "run `her2batch verify` on the cohort, then ingest again"
    try:
        column = cohort.read(f"embeddings/{folder}", slide_id).column("embedding").combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"can't be read ({type(error).__name__})", path, again) from error
    values: Half = column.flatten().to_numpy(zero_copy_only=True)
    if not len(values):
        raise InputError(f"slide {slide_id} has no tiles", path, "leave it out of the labels")
    if dim is not None and column.type.list_size != dim:
        what = f"its embeddings have length {column.type.list_size}, the other slides' {dim}"
        raise InputError(what, path, "ingest the cohort again with one version of the encoder")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).reshape(len(column), -1).any(axis=1).sum())
        raise InputError(f"{bad} of {len(column)} embeddings hold values that are no numbers", path, again)
    return column


def _open(path: Path, key: str | None) -> Bags | None:
    """None when there is no such file, or one of something else."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid):
        return None
    facts = file.schema.metadata or {}
    if key is not None and facts.get(b"key", b"").decode() != key:
        return None
    return Bags(tuple(json.loads(facts[b"slides"])), file.schema.field(0).type.list_size, file)
