"""What comes into a cohort: embeddings that CLAM or TRIDENT computed, as one more encoder of slides that are there.

A file is one slide's: its name says which. It goes in through the store's own commit, or is refused with the reason;
nothing of a refused file is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa

from her2batch.errors import InputError, StoreError
from her2batch.exchange import clam_h5
from her2batch.files.locations import to_location
from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.training_run import encoder_folder

SUFFIXES: Final = (".h5", ".hdf5")

ENCODER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}")
"""An encoder's name: it becomes a folder's."""

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class ImportRequest:
    """What to bring in. encoder: None: as each file says.  names: how the cohort calls slides."""

    cohort: Path
    files: tuple[Path, ...]
    encoder: str | None = None
    names: Pseudonymizer = field(default_factory=Pseudonymizer)


@dataclass
class ImportSummary:
    """What became of the files. slides: brought in now.  already: were there, with the same values.  passed: slide →
    rows on no tile, which were left out.  failures: file → why it was refused.
    """

    encoders: set[str] = field(default_factory=set)
    slides: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 all are in · 2 none is · 3 some were refused."""
        return 0 if not self.failures else 3 if self.slides or self.already else 2


def import_embeddings(
    order: ImportRequest, dim_of: Callable[[str], int | None], report: ProgressCallback = lambda *_: None
) -> ImportSummary:
    """Add embeddings to slides of a cohort. The same call goes on where it was stopped.

    dim_of: the length of an encoder's vectors, None where nobody knows.  Raises InputError, StoreError.
    """
    cohort = Cohort(to_location(order.cohort))
    plan = cohort.plan()
    files = find_embedding_files(order.files)
    if order.encoder is not None:
        choose_encoder_name(cohort.root, order.encoder, plan)  # what is wrong for all is said once
    found = ImportSummary()
    with cohort.lock():
        rows = cohort.rows()
        lengths: dict[str, int] = {}
        met: set[tuple[str, str]] = set()
        for count, path in enumerate(files, start=1):
            try:
                row = slide_for_file(path, rows, order.names)
                encoder, table, passed = match_to_tiles(cohort, plan, row, path, order.encoder)
                if encoder not in lengths and (known := dim_of(encoder) or _known_length(cohort, encoder, rows)):
                    lengths[encoder] = known
                check_length(path, encoder, table, lengths)
                if (row["slide_id"], encoder) in met:
                    raise InputError(f"slide {row['slide_id']} was given before", path, "give one file a slide")
            except InputError as error:
                found.failures[str(path)] = str(error)
            else:
                found.encoders.add(encoder)
                found.passed |= {row["slide_id"]: passed} if passed else {}
                met.add((row["slide_id"], encoder))
                added = _commit_table(cohort, row, encoder, table)
                (found.slides if added else found.already).append(row["slide_id"])
                rows[row["slide_id"]] = cohort.read("slides", row["slide_id"]).to_pylist()[0]
            report(count, len(files))
        cohort.update_row_cache()
    return found


def find_embedding_files(given: Sequence[Path]) -> list[Path]:
    """The files that were named, and those of folders that were. Raises InputError when there is none."""
    files = []
    for path in given:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and not one.name.startswith("."))
            if not inside:
                raise InputError("holds no .h5 file", path, "give the folder with SLIDE.h5 files, as h5_files/")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError("there is no such file", path, "give .h5 files, or a folder of them")
    return files


def match_to_tiles(cohort: Cohort, plan: Plan, row: Row, path: Path, name: str | None) -> tuple[str, pa.Table, int]:
    """A file as embeddings of a slide's tiles: the encoder, the table, how many rows lie on no tile.

    name: of the encoder; None: as the file says.  Raises InputError for anything that does not fit.
    """
    try:
        tiles = cohort.read("tiles", row["slide_id"])
    except (OSError, pa.ArrowInvalid) as error:
        what = f"its slide's tiles can't be read ({type(error).__name__})"
        raise InputError(what, path, "run her2batch verify, then ingest again") from error
    bag = clam_h5.read_features(path, max_tiles(row, tiles))
    encoder = choose_encoder_name(path, name or bag.encoder, plan)
    values, passed = clam_h5.match_features(path, bag, tiles)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return encoder, schemas.embeddings_table(row["slide_id"], tiles["tile"].combine_chunks(), vectors), passed


def check_length(path: Path, encoder: str, table: pa.Table, lengths: dict[str, int]) -> None:
    """Refuse embeddings of another length than the encoder's others have; the first ones say it. Raises InputError."""
    dim = table.schema.field("embedding").type.list_size
    if lengths.setdefault(encoder, dim) != dim:
        what = f"its embeddings have {dim} values, those of {encoder} {lengths[encoder]}"
        raise InputError(what, path, "give another --encoder name to embeddings of another encoder")


def _commit_table(cohort: Cohort, row: Row, encoder: str, table: pa.Table) -> bool:
    """Commit a slide's new table; False: it was there. Raises StoreError when the disk refuses."""
    name = f"embeddings/{encoder_folder(encoder)}"
    if _read_table(cohort, name, row) == table:
        return False
    try:
        cohort.add(row, {name: table})
    except OSError as error:
        raise StoreError(f"can't be written to ({error.strerror or error})", cohort.root, "check space") from error
    return True


def slide_for_file(path: Path, rows: Mapping[str, Row], names: Pseudonymizer) -> Row:
    """The slide a file belongs to, by its name. Raises InputError when the cohort has no such slide, or no tables."""
    for slide_id in (path.stem, names.slide(path.stem)):
        row = rows.get(slide_id)
        if row is not None and row["status"] == "done":
            return row
        if row is not None:
            raise InputError(f"slide {slide_id} is in the cohort as failed: {row['error_code']}", path, row["error"])
    remedy = "ingest the slide first (its tiles are what embeddings belong to); the file's name must be SLIDE.h5"
    raise InputError(f"the cohort holds no slide {path.stem}", path, remedy)


def max_tiles(row: Row, tiles: pa.Table) -> int:
    """How many tiles of this size a slide has room for, tissue or not."""
    size = tiles["size"][0].as_py() if len(tiles) else 0
    return math.ceil(row["width"] / size) * math.ceil(row["height"] / size) + len(tiles) if size else 0


def choose_encoder_name(path: Path, name: str | None, plan: Plan) -> str:
    """The name the embeddings get. Raises InputError where there is none, or it is one of the plan's own."""
    if name is None:
        raise InputError("does not say which encoder made it", path, "give --encoder NAME")
    if not ENCODER_NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for an encoder", path, "use letters, digits, '.', '_', '-'")
    if encoder_folder(name) in map(encoder_folder, plan.encoders):
        remedy = f"give it a name of its own: --encoder {encoder_folder(name)}-imported"
        raise InputError(f"{name} is what this cohort computes itself", path, remedy)
    return name


def _has_table(cohort: Cohort, name: str, row: Row) -> bool:
    path = cohort.table(name, row["slide_id"]).relative_to(cohort.root).as_posix()
    return any(file["path"] == path for file in row["files"])


def _read_table(cohort: Cohort, name: str, row: Row) -> pa.Table | None:
    """What the slide has of this encoder; None: nothing, or nothing that can be read."""
    try:
        return cohort.read(name, row["slide_id"]) if _has_table(cohort, name, row) else None
    except (OSError, pa.ArrowInvalid):
        return None


def _known_length(cohort: Cohort, encoder: str, rows: Mapping[str, Row]) -> int | None:
    """Length of the vectors that slides have of this encoder; None where none has any."""
    tables = (_read_table(cohort, f"embeddings/{encoder_folder(encoder)}", row) for row in rows.values())
    found = next((one for one in tables if one is not None), None)
    return None if found is None else int(found.schema.field("embedding").type.list_size)
