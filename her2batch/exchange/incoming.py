"""Import of embeddings computed by CLAM, TRIDENT or STAMP, as an additional encoder of slides in a cohort.

A file belongs to the slide that it is named after. It is committed as a whole, or refused with the reason; nothing of
a refused file is stored.
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
from her2batch.exchange.slide_names import files_in, match_files
from her2batch.files.locations import to_location
from her2batch.settings import Plan
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.training_run import encoder_folder

SUFFIXES: Final = (".h5", ".hdf5")

ENCODER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}")
"""Valid name of an encoder. It becomes the name of a folder."""

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class ImportRequest:
    """Settings of an import.

    files: .h5 files, or folders of them.  encoder: name of the encoder; None: as stated in each file.  names: maps the
    names of slide files to the slide ids of the cohort.
    """

    cohort: Path
    files: tuple[Path, ...]
    encoder: str | None = None
    names: Pseudonymizer = field(default_factory=Pseudonymizer)


@dataclass
class ImportSummary:
    """Result of an import.

    slides: imported now.  already: slides that had the same embeddings before.  passed: slide → number of rows that
    match no tile and were left out.  shifted: slide → number of tiles whose embedding is of a tile up to half a tile
    away, because STAMP's grid differs.  failures: file → reason why it was refused.
    """

    encoders: set[str] = field(default_factory=set)
    slides: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    shifted: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: all files are imported; 2: none is; 3: some were refused."""
        return 0 if not self.failures else 3 if self.slides or self.already else 2


def import_embeddings(
    request: ImportRequest, dim_of: Callable[[str], int | None], progress: ProgressCallback = lambda *_: None
) -> ImportSummary:
    """Add embeddings to slides of a cohort. After an interruption, the same call resumes.

    dim_of: returns the embedding length of an encoder, None if it is unknown.  progress: called with the number of
    finished files and of all files.  Raises InputError, StoreError.
    """
    cohort = Cohort(to_location(request.cohort))
    plan = cohort.plan()
    files = find_embedding_files(request.files)
    if request.encoder is not None:
        choose_encoder_name(cohort.root, request.encoder, plan)  # reports an unsuitable name once, not for every file
    summary = ImportSummary()
    with cohort.lock():
        rows = cohort.rows()
        lengths: dict[str, int] = {}
        imported: set[tuple[str, str]] = set()
        for count, path in enumerate(files, start=1):
            try:
                row = slide_for_file(path, rows, request.names)
                encoder, table, passed, shifted = match_to_tiles(cohort, plan, row, path, request.encoder)
                if encoder not in lengths and (known := dim_of(encoder) or _known_length(cohort, encoder, rows)):
                    lengths[encoder] = known
                check_length(path, encoder, table, lengths)
                if (row["slide_id"], encoder) in imported:
                    what = f"slide {row['slide_id']} is in another of the files, too"
                    raise InputError(what, path, "give one file for each slide")
            except InputError as error:
                summary.failures[str(path)] = str(error)
            else:
                summary.encoders.add(encoder)
                summary.passed |= {row["slide_id"]: passed} if passed else {}
                summary.shifted |= {row["slide_id"]: shifted} if shifted else {}
                imported.add((row["slide_id"], encoder))
                is_new = _commit_table(cohort, row, encoder, table)
                (summary.slides if is_new else summary.already).append(row["slide_id"])
                rows[row["slide_id"]] = cohort.read("slides", row["slide_id"]).to_pylist()[0]
            progress(count, len(files))
        cohort.update_row_cache()
    return summary


def find_embedding_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the .h5 files of given folders. Raises InputError when one of them has none."""
    files = []
    for path in paths:
        if path.is_dir():
            in_folder = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.name[0] != ".")
            in_folder = in_folder or files_in(path, SUFFIXES)  # STAMP repeats the folders of the slides
            if not in_folder:
                what = "the folder has no .h5 file"
                raise InputError(what, path, "give the folder with SLIDE.h5 files, for example h5_files/")
            files += in_folder
        elif path.is_file():
            files.append(path)
        else:
            raise InputError("there is no such file", path, "give .h5 files, or a folder of them")
    return files


def match_to_tiles(
    cohort: Cohort, plan: Plan, row: Row, path: Path, name: str | None
) -> tuple[str, pa.Table, int, int]:
    """Read a file and match it to a slide's tiles: return the encoder, the table, and two numbers.

    The numbers are those of the rows that match no tile, and of the tiles whose row is of a tile beside it.

    name: of the encoder; None: as stated in the file.  Raises InputError when the file does not fit the slide.
    """
    try:
        tiles = cohort.read("tiles", row["slide_id"])
    except (OSError, pa.ArrowInvalid) as error:
        what = f"the tiles of slide {row['slide_id']} cannot be read ({type(error).__name__})"
        raise InputError(what, path, "run her2batch verify, then ingest again") from error
    features = clam_h5.read_features(path, max_tiles(row, tiles))
    encoder = choose_encoder_name(path, name or features.encoder, plan)
    shifted = 0
    if features.tile_um is not None:
        values, passed, shifted = clam_h5.match_stamp_features(path, features, tiles, row["mpp"])
    else:
        values, passed = clam_h5.match_features(path, features, tiles)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return encoder, schemas.embeddings_table(row["slide_id"], tiles["tile"].combine_chunks(), vectors), passed, shifted


def check_length(path: Path, encoder: str, table: pa.Table, lengths: dict[str, int]) -> None:
    """Refuse embeddings whose length differs from that of the encoder's other embeddings. Raises InputError.

    lengths: encoder → embedding length; an encoder that is not in it is added.
    """
    dim = table.schema.field("embedding").type.list_size
    if lengths.setdefault(encoder, dim) != dim:
        what = f"its embeddings have {dim} values, those of {encoder} {lengths[encoder]}"
        raise InputError(what, path, "import embeddings of another encoder under another --encoder name")


def _commit_table(cohort: Cohort, row: Row, encoder: str, table: pa.Table) -> bool:
    """Commit a slide's new table. Return False if the slide has the same table. Raises StoreError."""
    name = f"embeddings/{encoder_folder(encoder)}"
    if _read_table(cohort, name, row) == table:
        return False
    try:
        cohort.add_tables(row, {name: table})
    except OSError as error:
        what = f"the cohort cannot be written to ({error.strerror or error})"
        raise StoreError(what, cohort.root, "check the free disk space") from error
    return True


def slide_for_file(path: Path, rows: Mapping[str, Row], names: Pseudonymizer) -> Row:
    """Return the row of the slide that a file is named after. Raises InputError when it is missing, or has failed."""
    matches = match_files([path], {slide_id: row["path"] for slide_id, row in rows.items()}, (path.suffix.lower(),))
    for slide_id in (path.stem, names.slide(path.stem), *matches.found):
        row = rows.get(slide_id)
        if row is not None and row["status"] == "done":
            return row
        if row is not None:
            raise InputError(f"slide {slide_id} failed in the cohort: {row['error_code']}", path, row["error"])
    remedy = "ingest the slide first, because embeddings belong to its tiles; name the file SLIDE.h5"
    reason = matches.unmatched[path]
    what = f"the cohort has no slide {path.stem}" if reason.startswith("no slide") else reason
    raise InputError(what, path, remedy)


def max_tiles(row: Row, tiles: pa.Table) -> int:
    """Return an upper limit of the number of tiles of this size that a slide has room for, with or without tissue."""
    size = tiles["size"][0].as_py() if len(tiles) else 0
    return math.ceil(row["width"] / size) * math.ceil(row["height"] / size) + len(tiles) if size else 0


def choose_encoder_name(path: Path, name: str | None, plan: Plan) -> str:
    """Check the name of the encoder. Raises InputError if it is missing, invalid, or an encoder of the plan."""
    if name is None:
        raise InputError("the file does not state its encoder", path, "give --encoder NAME")
    if not ENCODER_NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a valid encoder name", path, "use letters, digits, '.', '_', ':', '-'")
    if encoder_folder(name) in map(encoder_folder, plan.encoders):
        remedy = f"import under another name: --encoder {encoder_folder(name)}-imported"
        raise InputError(f"{name} is an encoder that this cohort computes itself", path, remedy)
    return name


def _has_table(cohort: Cohort, name: str, row: Row) -> bool:
    path = cohort.table(name, row["slide_id"]).relative_to(cohort.root).as_posix()
    return any(file["path"] == path for file in row["files"])


def _read_table(cohort: Cohort, name: str, row: Row) -> pa.Table | None:
    """Return a table of a slide; None when it is missing or cannot be read."""
    try:
        return cohort.read(name, row["slide_id"]) if _has_table(cohort, name, row) else None
    except (OSError, pa.ArrowInvalid):
        return None


def _known_length(cohort: Cohort, encoder: str, rows: Mapping[str, Row]) -> int | None:
    """Return the length of the embeddings that slides have of this encoder; None when no slide has any."""
    tables = (_read_table(cohort, f"embeddings/{encoder_folder(encoder)}", row) for row in rows.values())
    known = next((table for table in tables if table is not None), None)
    return None if known is None else int(known.schema.field("embedding").type.list_size)
