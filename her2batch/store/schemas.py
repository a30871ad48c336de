"""Schemas of all tables: each column with its Arrow type, its description and its unit.

`docs/tables.md` is generated from this module. A table has one Parquet file per slide, `tables/NAME/SLIDE.parquet`.
NAME is a key of TABLES, for some tables followed by what made the rows (`embeddings/uni`).
"""

from __future__ import annotations

import pyarrow as pa

from her2batch.errors import InputError
from her2batch.files.parquet import ParquetLayout
from her2batch.store.tables.cells import CELL_COLUMNS, CELL_PREDICTION_COLUMNS
from her2batch.store.tables.column import F32, FILES_TYPE, I32, I64, TEXT, Column
from her2batch.store.tables.runs import METRIC_COLUMNS, NUMBER_METRIC_COLUMNS, RUN_TABLES
from her2batch.tasks import is_calibration

SLIDE_COLUMNS = (
    Column("slide_id", TEXT, "file name without suffix, made unique; a keyed hash with --pseudonymize"),
    Column("patient_id", TEXT, "from the labels; null without"),
    Column(
        "stain",
        TEXT,
        "her2 · er · pr · ki67 · he · ihc from the labels; without: he or ihc (unknown marker), from the colours",
    ),
    Column("path", TEXT, "path of the slide file; null with --pseudonymize"),
    Column("sha256", TEXT, "SHA-256 of the slide file; of several files, SHA-256 of their sorted digests"),
    Column("bytes", I64, "size of all files of the slide"),
    Column("format", TEXT, "aperio, philips, generic-tiff, ome-tiff, hamamatsu, dicom, …"),
    Column("reader", TEXT, "tiff · cucim · nvimgcodec · openslide"),
    Column("width", I32, "level-0 px"),
    Column("height", I32, "level-0 px"),
    Column("level_downsamples", pa.list_(pa.float64()), "level-0 px per px of each level of the slide file"),
    Column("mpp", pa.float64(), "µm per level-0 px"),
    Column("mpp_source", TEXT, "file · objective · override"),
    Column("objective", F32, "magnification of the scan"),
    Column("tissue_mm2", F32, "area of tissue, mm²"),
    Column("tissue_method", TEXT, "segmentation that was used: density, texture or union"),
    Column("tissue_disagreement", F32, "1 − Dice coefficient of the two segmentations"),
    Column("n_tiles", I32, "number of tiles in the table tiles"),
    Column("regions", TEXT, "SHA-256 of the file of regions to which the tiles are restricted; null: the whole tissue"),
    Column("region_mm2", F32, "area of tissue in the regions, mm²; null: the whole tissue"),
    Column("controls", TEXT, "SHA-256 of the file of annotated controls; null: none"),
    Column("control_mm2", F32, "area of controls and excluded pieces, mm²; null: none"),
    Column("blank_tiles", I32, "number of tiles inside tissue that have no image"),
    Column("flags", pa.list_(TEXT), "quality flags"),
    Column("blur", F32, "share of tissue out of focus"),
    Column("pen", F32, "share of the slide under pen ink, or of the area of its tiles where that is larger"),
    Column("saturated", F32, "share of the tissue px with a clipped channel"),
    Column("background", F32, "grey value of the background, 0–255"),
    Column("status", TEXT, "done · failed"),
    Column("error_code", TEXT, "null when done"),
    Column("error", TEXT, "file, what failed, and the remedy; null when done"),
    Column("plan_id", TEXT, "id of the plan: the settings that decide the results"),
    Column("her2_detail", TEXT, "sub-score of a HER2 score of 0, null · ultralow, from the labels; null without"),
    Column("files", FILES_TYPE, "path, size and SHA-256 of every other file of the slide in the cohort"),
)

TILE_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("tile", I32, "number of the tile in row-major order, from 0"),
    Column("x", I32, "left, level-0 px"),
    Column("y", I32, "top, level-0 px"),
    Column("size", I32, "edge, level-0 px"),
    Column("tissue", F32, "share of the tile that is tissue, 0–1"),
    Column("dab", F32, "mean optical density of DAB, base 10"),
    Column("blur", F32, "blur measure of the tile; see docs/stain-encoder.md"),
    Column("piece", pa.int16(), "piece of tissue that most of the tile's tissue belongs to, as in pieces"),
)

PIECE_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("piece", pa.int16(), "number of the connected piece of tissue, from 0"),
    Column("x", I32, "left of its bounding box, level-0 px"),
    Column("y", I32, "top of its bounding box, level-0 px"),
    Column("width", I32, "of its bounding box, level-0 px"),
    Column("height", I32, "of its bounding box, level-0 px"),
    Column("area_mm2", F32, "area of its tissue, mm²"),
    Column("n_tiles", I32, "number of its tiles in the table tiles"),
    Column("role", TEXT, "tissue (counts towards the slide's score) · control · excluded"),
    Column("expected", TEXT, "class that a control should have; null: not known, or no control"),
    Column("predicted", TEXT, "HER2 score of the piece alone by the membrane rule; null without one"),
    Column("score", F32, "continuous score of the membrane rule, 0–3"),
    Column("suspected", pa.bool_(), "the piece counts, but may be a control"),
)

PATCH_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("resolution", TEXT, "low · moderate · high: 3.24 · 1.17 · 0.23 µm/px"),
    Column("x", I32, "left, level-0 px"),
    Column("y", I32, "top, level-0 px"),
    Column("size", I32, "edge, level-0 px"),
    *(Column(f"p{k}", F32, f"probability of HER2 {ihc}") for k, ihc in enumerate(("0", "1+", "2+", "3+"))),
)

THUMBNAIL_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("task", TEXT, "her2-4way · her2-5way · her2-3way · her2-binary · er · pr"),
    Column("p", pa.list_(F32), "probability of each class, in the task's order"),
    Column("method", TEXT, "convnext-small, resnet50, densenet201, vit-base, efficientnet-lite0 or timm:NAME"),
    Column("input", TEXT, "thumbnail-224 or thumbnail-512"),
)

PREDICTION_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("patient_id", TEXT, "from the labels; null without"),
    Column("task", TEXT, "her2-4way · her2-5way · her2-3way · her2-binary · er · pr"),
    Column("method", TEXT, "membrane or cells (the rules), or a trained method of the bundle"),
    Column("classes", pa.list_(TEXT), "the task's classes, in order"),
    Column("p", pa.list_(F32), "probability of each class"),
    Column("predicted", TEXT, "most likely class; of the rules, the class by the guideline; null: not scorable"),
    Column("plausible", pa.list_(TEXT), "classes that can't be ruled out, with the predicted one"),
    Column("review", pa.bool_(), "a pathologist should review the slide"),
    Column(
        "reasons",
        pa.list_(TEXT),
        "reasons for a review, as stable words; the quality flags of the slide are among them",
    ),
    Column(
        "score",
        F32,
        "continuous score of a rule, 0–3; Allred score of ER and PR; number that is predicted; else null",
    ),
)

CALIBRATED_COLUMNS = (
    *PREDICTION_COLUMNS,
    Column(
        "coverage",
        F32,
        "least share of the slides of each class whose class is in plausible, as promised by `calibrate --coverage`; "
        "null: the calibration does not apply to the slide",
    ),
)

SLIDE_ATTENTION_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "encoder of the embeddings"),
    Column("tile", I32, "as in tiles"),
    Column("attention", F32, "share of the tile in the attention for the most likely class; the sum over tiles is 1"),
)

SALIENCY_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in thumbnails"),
    Column("input", TEXT, "as in thumbnails"),
    Column("x", I32, "left of a place of the network's map, level-0 px"),
    Column("y", I32, "top, level-0 px"),
    Column("size", I32, "edge, level-0 px"),
    Column("saliency", F32, "share of the place in the score of the most likely class (HiResCAM); the largest is 1"),
)

INTAKE_COLUMNS = (
    Column("path", TEXT, "path of the file; a keyed hash with --pseudonymize"),
    Column("bytes", I64, "size of all files of the slide"),
    Column("mtime_ns", I64, "latest modification time of the files"),
    Column("n_files", I32, "number of files (MRXS and DICOM: more than one)"),
    Column("sha256", TEXT, "of the content; null if it was not needed"),
    Column(
        "outcome",
        TEXT,
        "slide · duplicate · ignored · deferred (left to the next run) · archived (done, and its file has left)",
    ),
    Column("slide_id", TEXT, "the slide, or the slide of which the file is a copy"),
    Column("reason", TEXT, "why the file is ignored, deferred or not reachable, or of which it is a copy"),
)

TIME_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("status", TEXT, "done · failed"),
    Column("host", TEXT, "machine on which the slide was finished"),
    Column("pid", I32, "process id of the worker"),
    Column("finished", pa.timestamp("ms", tz="UTC"), "time at which the slide was finished"),
    Column("seconds", pa.float64(), "computing time of all worker calls"),
    Column("stages", pa.map_(TEXT, pa.float64()), "seconds per stage"),
    Column("control_failed", pa.bool_(), "a control of the slide did not score as expected"),
)

PROBE_COLUMNS = (
    Column("path", TEXT, "path, as in the intake table"),
    Column("rules", I32, "version of the rules that were applied"),
    Column("bytes", I64, "size when it was opened"),
    Column("mtime_ns", I64, "modification time when it was opened"),
    Column("kind", TEXT, "tiff · dicom · czi · mirax · hamamatsu · named; null: no slide"),
    Column("belongs", pa.list_(TEXT), "DICOM: its identifiers; VMS: files that it names, as in path"),
)
"""Results of the search for slides, cached in `tables/runs/looks.memo`; not a table of the cohort."""

MEMBRANE_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("tile", I32, "as in tiles"),
    Column(
        "cells",
        F32,
        "share of the tile that is cellular area, in or around nuclei; the shares below are shares of this area",
    ),
    Column("faint", F32, "share with faint or stronger membranes, complete or not"),
    Column("moderate", F32, "share with moderate or stronger membranes, complete or not"),
    Column("intense", F32, "share with intense membranes, complete or not"),
    Column("faint_complete", F32, "share with complete membranes, faint or stronger"),
    Column("moderate_complete", F32, "share with complete membranes, moderate or stronger"),
    Column("intense_complete", F32, "share with complete, intense membranes"),
)

EMBEDDING_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("tile", I32, "as in tiles"),
    Column("embedding", pa.list_(pa.float16()), "vector of the encoder's length D: fixed_size_list<float16, D>"),
)

REVIEW_COLUMNS = (
    Column("number", I32, "number of the entry in the chain, from 1"),
    Column("time", pa.timestamp("ms", tz="UTC"), "time of the review"),
    Column("reviewer", TEXT, "name that the reviewer gave; personal data of staff"),
    Column("slide_id", TEXT, "key; null in the entry of an erased patient, as are all columns but number and hashes"),
    Column("bundle", TEXT, "of the reviewed prediction: membrane, or the id of a bundle"),
    Column("task", TEXT, "of the reviewed prediction"),
    Column("method", TEXT, "of the reviewed prediction"),
    Column("predicted", TEXT, "predicted class"),
    Column("verdict", TEXT, "agree · change · needs-ish"),
    Column("label", TEXT, "class that the reviewer sees; null with needs-ish"),
    Column("comment", TEXT, "comment of the reviewer"),
    Column("row_sha256", TEXT, "SHA-256 of the slide's row file at the time of the review"),
    Column("salt", TEXT, "random text, so that an erased review can't be guessed from body_sha256"),
    Column("body_sha256", TEXT, "SHA-256 of the columns time … salt as JSON, and of supersedes where it is not null"),
    Column("previous_sha256", TEXT, "sha256 of the previous entry; zeros for the first"),
    Column("sha256", TEXT, "SHA-256 of number, previous_sha256 and body_sha256, one per line"),
    Column("supersedes", I32, "number of an earlier entry of the same reviewer that this one replaces; null: none"),
)
"""Reviews by pathologists: one file per entry, tables/reviews/NUMBER.parquet. See `reviews`."""

CALIBRATED = "predictions/calibration"
"""Key of the predictions of all calibrations, whose tables are `predictions/CALIBRATION_ID`."""

TABLES: dict[str, tuple[Column, ...]] = {
    "slides": SLIDE_COLUMNS,
    "tiles": TILE_COLUMNS,
    "pieces": PIECE_COLUMNS,
    "membrane": MEMBRANE_COLUMNS,
    "cells": CELL_COLUMNS,
    "embeddings": EMBEDDING_COLUMNS,
    "patches": PATCH_COLUMNS,
    "thumbnails": THUMBNAIL_COLUMNS,
    "predictions": PREDICTION_COLUMNS,
    "predictions/cells": (*PREDICTION_COLUMNS, *CELL_PREDICTION_COLUMNS),
    CALIBRATED: CALIBRATED_COLUMNS,
    "attention": SLIDE_ATTENTION_COLUMNS,
    "saliency": SALIENCY_COLUMNS,
}
"""Tables with one file per slide. The row of `slides` commits the other files."""

LATER_COLUMNS: dict[str, tuple[str, ...]] = {
    "tiles": ("piece",),
    "times": ("control_failed",),
    CALIBRATED: ("coverage",),
}
"""Columns that cohorts lack that were written before them. Readers do without."""

CELLS_PER_GROUP = 16_384
"""Rows of a row group of the table cells. A viewer reads those groups whose tiles are in view: 20 kB a column."""


def table_key(table: str) -> str:
    """Return the key of a table in TABLES: `embeddings/uni` → `embeddings`, `predictions/cal-…` → CALIBRATED."""
    kind, _, source = table.partition("/")
    if kind == "predictions" and is_calibration(source):
        return CALIBRATED
    return table if table in TABLES else kind


def table_schema(table: str, dim: int | None = None) -> pa.Schema:
    """The Arrow schema of a table of a cohort, such as `tiles` or `predictions/cells`.  dim: length of embeddings."""
    others = {"intake": INTAKE_COLUMNS, "times": TIME_COLUMNS, "looks": PROBE_COLUMNS, "reviews": REVIEW_COLUMNS}
    known = {**others, **TABLES}
    columns = known[table_key(table)]
    fields = [pa.field(column.name, column.type) for column in columns]
    if dim is not None:
        fields[-1] = pa.field("embedding", pa.list_(pa.float16(), dim))
    return pa.schema(fields)


def layout_of(table: str) -> ParquetLayout:
    """How the file of a table is encoded."""
    columns = TABLES.get(table, ())
    split = tuple(column.name for column in columns if column.byte_split)
    return ParquetLayout(split, CELLS_PER_GROUP) if table == "cells" else ParquetLayout(split)


def embeddings_table(slide_id: str, tiles: pa.Array, vectors: pa.FixedSizeListArray) -> pa.Table:
    """The embeddings table of one slide: (n,) int32 tiles, (n, D) float16 vectors."""
    ids = pa.array([slide_id] * len(tiles), TEXT)
    return pa.table([ids, tiles, vectors], schema=table_schema("embeddings", vectors.type.list_size))


def conform_to_schema(table: pa.Table, name: str) -> pa.Table:
    """The table with the columns of its schema, in order. Raises InputError with the columns that are missing."""
    schema = table_schema(name)
    if missing := set(schema.names) - set(table.column_names):
        raise InputError(f"the table {name} has no column {', '.join(sorted(missing))}")
    return table.select(schema.names).cast(schema)


def tables_page() -> str:
    """`docs/tables.md`: every table and column, in Markdown."""
    source = "Generated from `her2batch/store/schemas.py`."
    parts = [f"# Tables\n\n{source} A table has one Parquet file per slide. Read it with a glob:"]
    parts.append("\n    duckdb.sql(\"select * from 'cohort/tables/tiles/*.parquet'\")\n")
    parts += _table_sections(
        {**TABLES, "reviews": REVIEW_COLUMNS, "runs/intake": INTAKE_COLUMNS, "runs/ingest-TIME": TIME_COLUMNS}
    )
    parts.append("\n# Tables of a training run\n\nOne Parquet file per table, in the folder of the run.")
    run_tables = {**RUN_TABLES, "metrics": (*METRIC_COLUMNS, *NUMBER_METRIC_COLUMNS)}
    parts += _table_sections({f"RUN/{name}": columns for name, columns in run_tables.items()})
    return "\n".join(parts) + "\n"


def _table_sections(tables: dict[str, tuple[Column, ...]]) -> list[str]:
    """Lines of Markdown: for each table a heading and a row per column."""
    parts = []
    for name, columns in tables.items():
        parts.append(f"\n## {name}\n\n| column | type | description |\n| --- | --- | --- |")
        parts += [
            f"| {column.name} | {str(column.type).replace('|', '/')} | {column.description} |" for column in columns
        ]
    return parts
