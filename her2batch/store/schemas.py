"""Every table and every column of a cohort, with its description and unit. The only place.

`docs/tables.md` is generated from here. A table is one Parquet file a slide, `tables/NAME/SLIDE.parquet`; NAME is the
key below, for some with the name of what made it (`embeddings/uni`).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from her2batch.errors import InputError

TEXT, I32, I64, F32, F64 = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
FILES_TYPE = pa.list_(pa.struct([("path", TEXT), ("bytes", I64), ("sha256", TEXT)]))


@dataclass(frozen=True)
class Column:
    """A column: name, Arrow type and what it holds, with its unit."""

    name: str
    type: pa.DataType
    description: str


SLIDE_COLUMNS = (
    Column("slide_id", TEXT, "the file's stem, made safe and unique; a keyed hash with --pseudonymize"),
    Column("patient_id", TEXT, "from the labels; null without"),
    Column(
        "stain", TEXT, "her2 · er · pr · ki67 from the labels; otherwise what is seen: he, or ihc (marker not known)"
    ),
    Column("path", TEXT, "the slide file; null with --pseudonymize"),
    Column("sha256", TEXT, "of the file's content; of several files, of their sorted digests"),
    Column("bytes", I64, "size of all files of the slide"),
    Column("format", TEXT, "aperio, philips, generic-tiff, ome-tiff, hamamatsu, dicom, …"),
    Column("reader", TEXT, "tiff · cucim · openslide"),
    Column("width", I32, "level-0 px"),
    Column("height", I32, "level-0 px"),
    Column("level_downsamples", pa.list_(pa.float64()), "level-0 px per px of each level"),
    Column("mpp", pa.float64(), "µm per level-0 px"),
    Column("mpp_source", TEXT, "file · objective · override"),
    Column("objective", F32, "magnification of the scan"),
    Column("tissue_mm2", F32, "area of tissue, mm²"),
    Column("tissue_method", TEXT, "the segmentation that was used: the first, or its fallback"),
    Column("tissue_disagreement", F32, "1 − Dice of the two segmentations"),
    Column("n_tiles", I32, "tiles of the tiles table"),
    Column("blank_tiles", I32, "tiles inside tissue that hold no image"),
    Column("flags", pa.list_(TEXT), "quality flags: what to look at"),
    Column("blur", F32, "share of tissue out of focus"),
    Column("pen", F32, "share of the slide under pen ink"),
    Column("saturated", F32, "share of tissue px with a clipped channel"),
    Column("background", F32, "grey value of the background, 0–255"),
    Column("status", TEXT, "done · failed"),
    Column("error_code", TEXT, "null when done"),
    Column("error", TEXT, "what failed, in which file, and the remedy"),
    Column("plan_id", TEXT, "names the settings that decided the result"),
    Column("files", FILES_TYPE, "every other file of this slide in the store"),
)

TILE_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("tile", I32, "number in row-major order, from 0"),
    Column("x", I32, "left, level-0 px"),
    Column("y", I32, "top, level-0 px"),
    Column("size", I32, "edge, level-0 px"),
    Column("tissue", F32, "share of the tile that is tissue, 0–1"),
    Column("dab", F32, "mean optical density of DAB, base 10"),
    Column("blur", F32, "blur figure of the tile; see docs/stain-encoder.md"),
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
    Column("task", TEXT, "her2-4way · her2-3way · her2-binary · er · pr"),
    Column("p", pa.list_(F32), "probability of each class, in the task's order"),
    Column("method", TEXT, "convnext-small, resnet50, densenet201 or vit-base"),
    Column("input", TEXT, "thumbnail-224 or thumbnail-512"),
)

PREDICTION_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("patient_id", TEXT, "from the labels; null without"),
    Column("task", TEXT, "her2-4way · her2-3way · her2-binary · er · pr"),
    Column("method", TEXT, "membrane, or a trained method of the bundle"),
    Column("classes", pa.list_(TEXT), "the task's classes, in order"),
    Column("p", pa.list_(F32), "probability of each class"),
    Column("predicted", TEXT, "the class"),
    Column("plausible", pa.list_(TEXT), "classes that can't be ruled out"),
    Column("review", pa.bool_(), "a pathologist should look first"),
    Column("reasons", pa.list_(TEXT), "why, in stable words"),
    Column("score", F32, "continuous score, 0–3; the membrane rule's, else null"),
)

SLIDE_ATTENTION_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "the encoder whose embeddings were read"),
    Column("tile", I32, "as in tiles"),
    Column("attention", F32, "the tile's share of the attention for the slide's most likely class; their sum is 1"),
)

INTAKE_COLUMNS = (
    Column("path", TEXT, "the file seen; a keyed hash with --pseudonymize"),
    Column("bytes", I64, "size, with its members"),
    Column("mtime_ns", I64, "time of last change, with its members the latest"),
    Column("n_files", I32, "files of this slide (MRXS, DICOM: more than one)"),
    Column("sha256", TEXT, "content; null where nothing asked for it"),
    Column("outcome", TEXT, "slide · duplicate · ignored · deferred (left to the next run)"),
    Column("slide_id", TEXT, "the slide it is, or is a copy of"),
    Column("reason", TEXT, "why ignored or deferred, or what it is a copy of"),
)

TIME_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("status", TEXT, "done · failed"),
    Column("host", TEXT, "where the slide was finished"),
    Column("pid", I32, "the worker's process"),
    Column("finished", pa.timestamp("ms", tz="UTC"), "when"),
    Column("seconds", pa.float64(), "work in all its calls"),
    Column("stages", pa.map_(TEXT, pa.float64()), "seconds a stage"),
)

PROBE_COLUMNS = (
    Column("path", TEXT, "the file, as in the intake table"),
    Column("rules", I32, "number of the rules by which it was judged"),
    Column("bytes", I64, "size then"),
    Column("mtime_ns", I64, "time of last change then"),
    Column("kind", TEXT, "tiff · dicom · czi · mirax · hamamatsu · named; null: no slide"),
    Column("belongs", pa.list_(TEXT), "DICOM: its series; VMS: the files it names; as in path"),
)
"""What a search found in the files it opened: a memo, no table of the cohort."""

MEMBRANE_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("tile", I32, "as in tiles"),
    Column("cells", F32, "share of the tile among nuclei or membranes: cellular area, the whole of the shares below"),
    Column("faint", F32, "share of it with faint membranes or stronger, complete or not"),
    Column("moderate", F32, "share of it with moderate membranes or stronger, complete or not"),
    Column("intense", F32, "share of it with intense membranes, complete or not"),
    Column("faint_complete", F32, "share of it with complete membranes, faint or stronger"),
    Column("moderate_complete", F32, "share of it with complete membranes, moderate or stronger"),
    Column("intense_complete", F32, "share of it with complete, intense membranes"),
)

EMBEDDING_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("tile", I32, "as in tiles"),
    Column("embedding", pa.list_(pa.float16()), "fixed_size_list<float16, D>; D as the encoder has it"),
)

REVIEW_COLUMNS = (
    Column("number", I32, "position in the chain, from 1"),
    Column("time", pa.timestamp("ms", tz="UTC"), "when it was said"),
    Column("reviewer", TEXT, "who said it, as they called themselves; personal data of staff"),
    Column("slide_id", TEXT, "key; null in an entry that was emptied, as are all columns but number and hashes"),
    Column("bundle", TEXT, "of the prediction that was seen: membrane, or a bundle's id"),
    Column("task", TEXT, "of the prediction that was seen"),
    Column("method", TEXT, "of the prediction that was seen"),
    Column("predicted", TEXT, "the class that was predicted"),
    Column("verdict", TEXT, "agree · change · needs-ish"),
    Column("label", TEXT, "the class in the reviewer's eyes; null with needs-ish"),
    Column("comment", TEXT, "in the reviewer's words"),
    Column("row_sha256", TEXT, "of the slide's row file as it was then"),
    Column("salt", TEXT, "random, so that nothing can be guessed from body_sha256 once the rest is gone"),
    Column("body_sha256", TEXT, "of the columns time … salt as JSON"),
    Column("previous_sha256", TEXT, "sha256 of the entry before; zeros for the first"),
    Column("sha256", TEXT, "of number, previous_sha256 and body_sha256, a line each"),
)
"""What pathologists said: one file an entry, tables/reviews/NUMBER.parquet. See `reviews`."""

TABLES: dict[str, tuple[Column, ...]] = {
    "slides": SLIDE_COLUMNS,
    "tiles": TILE_COLUMNS,
    "membrane": MEMBRANE_COLUMNS,
    "embeddings": EMBEDDING_COLUMNS,
    "patches": PATCH_COLUMNS,
    "thumbnails": THUMBNAIL_COLUMNS,
    "predictions": PREDICTION_COLUMNS,
    "attention": SLIDE_ATTENTION_COLUMNS,
}
"""Tables with one file a slide. The row of `slides` commits the others."""

FOLD_COLUMNS = (
    Column("task", TEXT, "her2-4way · her2-3way · her2-binary · er · pr"),
    Column("fold", I32, "from 0; −1: the model of the bundle, which tests nothing"),
    Column("slide_id", TEXT, "key"),
    Column("patient_id", TEXT, "whose slides share a split"),
    Column("split", TEXT, "train · val · test"),
)

RUN_PREDICTION_COLUMNS = (
    Column("task", TEXT, "her2-4way · her2-3way · her2-binary · er · pr"),
    Column("method", TEXT, "clam-sb, convnext-small, random-forest, …"),
    Column("input", TEXT, "an encoder, thumbnail-224, patches-low, …"),
    Column("fold", I32, "the fold that tests the slide"),
    Column("slide_id", TEXT, "key; once a patch where patches are what is classified"),
    Column("truth", TEXT, "the class by the labels"),
    Column("p", pa.list_(F32), "probability of each class, in the task's order"),
    Column("predicted", TEXT, "the class"),
)

METRIC_COLUMNS = (
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "as in predictions"),
    Column("fold", I32, "as in predictions"),
    Column("auc", F64, "area under the ROC curve, one against the rest, mean over classes, 0–1; null: one class only"),
    Column("f1", F64, "F1, mean over classes, 0–1"),
    Column("accuracy", F64, "share predicted right, 0–1"),
    Column("kappa", F64, "quadratic weighted kappa, −1–1; null: one class only"),
    Column("n", I32, "slides tested; patches where patches are what is classified"),
)

EXCLUDED_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("patient_id", TEXT, "from the labels"),
    Column("task", TEXT, "the task that goes without the slide"),
    Column("reason", TEXT, "a stable word"),
    Column("words", TEXT, "what is wrong with it"),
)

APPLIED_REVIEW_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("column", TEXT, "of the labels: her2 · er · pr"),
    Column("number", I32, "of the review whose verdict counts: the newest of the slide"),
    Column("was", TEXT, "what the labels said; null: nothing"),
    Column("now", TEXT, "what the run took; null: nothing, the slide is left out"),
    Column("words", TEXT, "what differs: from the labels, from another reviewer; null: nothing does"),
)

PAPER_TABLE_COLUMNS = (
    Column("table", TEXT, "of the paper: table4 · table5 · table6 · tableS1 · tableS2 · tableS3 · figure5"),
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "what it read here"),
    *(Column(f"{one}_{what}", F64, f"{words} over the folds, percent")
      for one in ("auc", "f1", "accuracy") for what, words in (("mean", "mean"), ("sd", "sample standard deviation"))),
    Column("paper_auc", F64, "the paper's mean, percent"),
    Column("paper_f1", F64, "the paper's mean, percent"),
    Column("paper_accuracy", F64, "the paper's mean, percent; null: not given"),
    Column("status", TEXT, "reproduced · not run · no data"),
    Column("why", TEXT, "why not, in one sentence; null when reproduced"),
)  # fmt: skip

TRIAL_COLUMNS = (
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "as in predictions"),
    Column("fold", I32, "the outer fold; its test part was not read"),
    Column("trial", TEXT, "Ray Tune's name of it"),
    Column("settings", TEXT, "what was tried, as JSON"),
    Column("val_loss", F64, "least loss on the fold's validation part"),
    Column("best_epoch", I32, "where it was reached"),
    Column("epochs", I32, "trained, at most: fewer where ASHA or patience ended it"),
    Column("status", TEXT, "done · failed"),
)

RUN_LABEL_COLUMNS = (
    Column("task", TEXT, "as in folds"),
    Column("slide_id", TEXT, "as in folds"),
    Column("patient_id", TEXT, "as in folds"),
    Column("label", I32, "position of the class in the task's order"),
    Column("truth", TEXT, "the class; at random in a control run (--shuffle-labels)"),
)

RUN_PATCH_COLUMNS = (
    Column("slide_id", TEXT, "as in the cohort"),
    Column("resolution", TEXT, "low · moderate · high: 3.24 · 1.17 · 0.23 µm/px"),
    Column("x", I32, "left, level-0 px"),
    Column("y", I32, "top, level-0 px"),
    Column("size", I32, "edge, level-0 px"),
    Column("truth", TEXT, "class of the annotation that covers most of it"),
    Column("share", F32, "of the patch that it covers; at least 0.05"),
)

UNIT_ATTENTION_COLUMNS = (
    Column("slide_id", TEXT, "a slide that the unit tests"),
    Column("tile", I32, "as in tiles"),
    Column("attention", F32, "the tile's share of the attention for the slide's most likely class; their sum is 1"),
)

UNIT_COUNTS_COLUMNS = (
    Column("slide_id", TEXT, "every slide of the fold"),
    Column("features", pa.list_(F64), "shares of its patches called 0, 1+, 2+, 3+; logarithm of 1 + their number"),
)

RUN_TABLES: dict[str, tuple[Column, ...]] = {
    "labels": RUN_LABEL_COLUMNS,
    "folds": FOLD_COLUMNS,
    "predictions": RUN_PREDICTION_COLUMNS,
    "metrics": METRIC_COLUMNS,
    "excluded": EXCLUDED_COLUMNS,
    "reviews": APPLIED_REVIEW_COLUMNS,
    "patches": RUN_PATCH_COLUMNS,
    "tables": PAPER_TABLE_COLUMNS,
    "trials": TRIAL_COLUMNS,
    "units/UNIT/attention": UNIT_ATTENTION_COLUMNS,
    "units/UNIT/counts": UNIT_COUNTS_COLUMNS,
}
"""Tables of a training run, one file each."""


def run_schema(name: str) -> pa.Schema:
    """The Arrow schema of a run's table."""
    columns = RUN_TABLES.get(name) or RUN_TABLES[f"units/UNIT/{name}"]
    return pa.schema([pa.field(one.name, one.type) for one in columns])


def table_schema(table: str, dim: int | None = None) -> pa.Schema:
    """The Arrow schema of a table; `dim`: length of the embeddings."""
    columns = {
        "intake": INTAKE_COLUMNS,
        "times": TIME_COLUMNS,
        "looks": PROBE_COLUMNS,
        "reviews": REVIEW_COLUMNS,
        **TABLES,
    }[table]
    fields = [pa.field(one.name, one.type) for one in columns]
    if dim is not None:
        fields[-1] = pa.field("embedding", pa.list_(pa.float16(), dim))
    return pa.schema(fields)


def embeddings_table(slide_id: str, tiles: pa.Array, vectors: pa.FixedSizeListArray) -> pa.Table:
    """The embeddings table of one slide: (n,) int32 tiles, (n, D) float16 vectors."""
    ids = pa.array([slide_id] * len(tiles), TEXT)
    return pa.table([ids, tiles, vectors], schema=table_schema("embeddings", vectors.type.list_size))


def conform_to_schema(table: pa.Table, name: str) -> pa.Table:
    """The table with exactly its schema's columns, in order. Raises InputError naming what is missing or wrong."""
    wanted = table_schema(name)
    if missing := set(wanted.names) - set(table.column_names):
        raise InputError(f"table {name} lacks {sorted(missing)}")
    return table.select(wanted.names).cast(wanted)


def tables_page() -> str:
    """`docs/tables.md`: every table and column, in Markdown."""
    parts = [
        "# Tables\n\nGenerated from `her2batch/store/schemas.py`. One Parquet file a slide; read a table with a glob:"
    ]
    parts.append("\n    duckdb.sql(\"select * from 'cohort/tables/tiles/*.parquet'\")\n")
    parts += _described(
        {**TABLES, "reviews": REVIEW_COLUMNS, "runs/intake": INTAKE_COLUMNS, "runs/ingest-TIME": TIME_COLUMNS}
    )
    parts.append("\n# Tables of a training run\n\nOne Parquet file each, in the run's folder.")
    parts += _described({f"RUN/{name}": columns for name, columns in RUN_TABLES.items()})
    return "\n".join(parts) + "\n"


def _described(tables: dict[str, tuple[Column, ...]]) -> list[str]:
    """Lines of Markdown: a heading and a row a column, for each table."""
    parts = []
    for name, columns in tables.items():
        parts.append(f"\n## {name}\n\n| column | type | what |\n| --- | --- | --- |")
        parts += [f"| {one.name} | {str(one.type).replace('|', '/')} | {one.description} |" for one in columns]
    return parts
