"""Export of a cohort's tables: files for QuPath, CLAM and TRIDENT, spreadsheets, and DICOM archives.

A format is a function from a cohort to the files to write. Each file is written atomically, under a name that depends
only on the slide and the table. `export.json` in the same folder lists the files written by exports; no other file is
ever replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa

from her2batch.assessment import assess_slide
from her2batch.errors import Her2BatchError, InputError, StoreError
from her2batch.exchange import clam_h5, csv, dicom, geojson
from her2batch.exchange.cells.qupath_cells import cell_features
from her2batch.exchange.lis.identities import Identity
from her2batch.files.atomic import atomic_write
from her2batch.files.locations import URL_SEPARATOR, to_location
from her2batch.method_results import cells_are_scored, depends_on_ish
from her2batch.slides.dicom.instances import silence_pydicom
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.control_runs import CONTROL_FAILED, slides_of_failed_runs
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import CELL_RULE, MEMBRANE_RULE

MANIFEST: Final = "export.json"
"""Name of the list of exported files."""

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """Settings of an export.

    to: name of the format.  slides, encoders: only these; empty: all.  bundle: id of the only bundle to export, besides
    the membrane rule; None: all.  identities: slide id → identity, for DICOM reports of slides in other formats.  what:
    tiles or cells, for geojson.
    """

    cohort: Path
    to: str
    out: Path
    slides: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    bundle: str | None = None
    identities: Mapping[str, Identity] = field(default_factory=dict)
    what: Literal["tiles", "cells"] = "tiles"


@dataclass
class ExportSummary:
    """Result of an export. left_out: slide → reason why it was not exported.  failures: file → error."""

    out: Path
    to: str
    slides: int = 0
    files: int = 0
    bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: all files are written; 3: some failed."""
        return 3 if self.failures else 0


@dataclass(frozen=True)
class ExportFile:
    """A file to write: its name relative to the folder `out`, and a function that writes it to a path."""

    name: str
    write: Callable[[Path], None]


@dataclass
class ExportSource:
    """The part of a cohort that is exported. table_names: of all tables in the cohort."""

    cohort: Cohort
    request: ExportRequest
    rows: list[Row]
    table_names: list[str]
    left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def failed_runs(self) -> set[str]:
        """Ids of the slides of runs with a failed control."""
        return slides_of_failed_runs(self.cohort)

    def done_slides(self) -> Iterator[Row]:
        """Yield the rows of slides with tables; failed slides are added to `left_out`."""
        for row in self.rows:
            if row["status"] == "done":
                yield row
            else:
                self.left_out[row["slide_id"]] = f"{row['error_code']}: it could not be ingested"

    def has_table(self, name: str, row: Row) -> bool:
        """Return whether the row of a slide lists a file of this table."""
        path = self.cohort.table(name, row["slide_id"]).relative_to(self.cohort.root).as_posix()
        return any(file["path"] == path for file in row["files"])

    def selected_tables(self, kind: str) -> dict[str, str]:
        """Return the tables of a kind that are to be exported: encoder or bundle → name of the table."""
        tables = {name.split("/", 1)[1]: name for name in self.table_names if name.startswith(f"{kind}/")}
        if kind == "embeddings":
            selected = {encoder_folder(encoder) for encoder in self.request.encoders}
        else:
            selected = {self.request.bundle, MEMBRANE_RULE} if self.request.bundle is not None else set()
        return {maker: name for maker, name in tables.items() if not selected or maker in selected}


def export_cohort(request: ExportRequest, progress: ProgressCallback = lambda *_: None) -> ExportSummary:
    """Write the files of one format. If a file fails, the error is added to the summary and the others are written.

    progress: called with the number of finished files and of all files.  Raises InputError, StoreError.
    """
    source = open_source(request)
    files = list(FORMATS[request.to](source))
    if not files:
        left_out = (f"{slide_id}: {reason}" for slide_id, reason in source.left_out.items())
        what = f"there is nothing to export to {request.to}; {next(left_out, 'the cohort has no finished slide')}"
        raise InputError(what, source.cohort.root, "see docs/exchange.md")
    summary = ExportSummary(request.out, request.to, left_out=source.left_out)
    summary.slides = len({row["slide_id"] for row in source.rows} - source.left_out.keys())
    claim_files(request.out, request.to, [file.name for file in files])
    for count, file in enumerate(files, start=1):
        path = request.out / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                file.write(part)
        except (Her2BatchError, pa.ArrowInvalid, OSError) as error:
            summary.failures[file.name] = f"{error}; run her2batch verify, and check the free disk space"
        else:
            summary.files += 1
            summary.bytes += path.stat().st_size
        progress(count, len(files))
    return summary


def open_source(request: ExportRequest) -> ExportSource:
    """Open the cohort and check the request against it. Raises InputError for unknown names, StoreError."""
    cohort = Cohort(to_location(request.cohort))
    cohort.check()
    if URL_SEPARATOR in str(request.out):
        what = "exports can only be written to a folder of this machine"
        raise InputError(what, request.out, "choose a local --out, and copy the files from there")
    if not cohort.remote and request.out.resolve().is_relative_to(cohort.root.resolve()):
        what = "the folder is inside the cohort, which must not contain other files"
        raise InputError(what, request.out, "choose another --out")
    rows, table_names = cohort.rows(), cohort.table_names()
    source = ExportSource(cohort, request, [rows[slide_id] for slide_id in sorted(rows)], table_names)
    _check_names("slide", request.slides, rows, cohort)
    _check_names("encoder", map(encoder_folder, request.encoders), _makers("embeddings", table_names), cohort)
    if request.bundle is not None:
        kinds = ("predictions", "attention", "patches", "thumbnails")
        bundles = {bundle for kind in kinds for bundle in _makers(kind, table_names)}
        _check_names("bundle", [request.bundle], bundles, cohort)
    if request.slides:
        source.rows = [rows[slide_id] for slide_id in sorted(set(request.slides))]
    return source


def claim_files(out: Path, to: str, names: Sequence[str]) -> None:
    """Add files to the list of exported files. Raises InputError for an existing file that no export has written."""
    manifest = out / MANIFEST
    try:
        out.mkdir(parents=True, exist_ok=True)
        exported = set(json.loads(manifest.read_text("utf-8"))["files"]) if manifest.exists() else set()
    except (ValueError, KeyError, TypeError) as error:
        what = "the file is not a list of exported files"
        raise InputError(what, manifest, "choose another --out, or remove the file") from error
    except OSError as error:
        what = f"the folder cannot be written to ({error.strerror})"
        raise StoreError(what, out, "check the free disk space and the permissions") from error
    for name in names:
        if name not in exported and (out / name).exists():
            what = "the file exists, and no export has written it"
            raise InputError(what, out / name, "choose another --out, or move the file")
    content = {"format": to, "files": sorted(exported | set(names))}
    with atomic_write(manifest) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# -- formats ---------------------------------------------------------------------------------------------------


def to_geojson(source: ExportSource) -> Iterator[ExportFile]:
    """Yield one file for each slide. It is not named SLIDE.geojson, so that it is not read as an annotation file."""
    for row in source.done_slides():
        if source.request.what == "tiles":
            yield ExportFile(f"{row['slide_id']}.tiles.geojson", partial(_write_geojson, source, row))
        elif source.has_table("cells", row):
            yield ExportFile(f"{row['slide_id']}.cells.geojson", partial(_write_cells, source, row))
        else:
            source.left_out[row["slide_id"]] = "it has no cells: ingest it with --cells all"


def _write_cells(source: ExportSource, row: Row, path: Path) -> None:
    table, own = source.cohort.table("cells", row["slide_id"]), f"predictions/{CELL_RULE}"
    predictions = source.cohort.read(own, row["slide_id"]).to_pylist() if source.has_table(own, row) else []
    geojson.write_feature_collection(path, cell_features(table, row["mpp"], cells_are_scored(predictions)))


def _write_geojson(source: ExportSource, row: Row, path: Path) -> None:
    attention, patches, saliency = (_read_selected(source, kind, row) for kind in ("attention", "patches", "saliency"))
    membrane = source.cohort.read("membrane", row["slide_id"]) if source.has_table("membrane", row) else None
    features = geojson.slide_features(row, _read_tiles(source, row), membrane, attention, patches, saliency)
    geojson.write_feature_collection(path, features)


def to_clam_h5(source: ExportSource) -> Iterator[ExportFile]:
    """Yield patches/SLIDE.h5, and features_ENCODER/h5_files/SLIDE.h5 of each encoder."""
    plan = source.cohort.plan()
    for row in source.done_slides():
        yield ExportFile(f"patches/{row['slide_id']}.h5", partial(_write_coords, source, row))
        for encoder, name in source.selected_tables("embeddings").items():
            if source.has_table(name, row):
                write = partial(_write_features, source, row, encoder, plan.tile, plan.mpp)
                yield ExportFile(f"features_{encoder}/h5_files/{row['slide_id']}.h5", write)


def _write_coords(source: ExportSource, row: Row, path: Path) -> None:
    clam_h5.write_coords(path, row, _read_tiles(source, row))


def _write_features(source: ExportSource, row: Row, encoder: str, tile: int, mpp: float, path: Path) -> None:
    embeddings = source.cohort.read(f"embeddings/{encoder}", row["slide_id"])
    clam_h5.write_features(path, row, _read_tiles(source, row), embeddings, encoder, tile, mpp)


def to_csv(source: ExportSource) -> Iterator[ExportFile]:
    """Yield one file for each table, with the rows of all slides; embeddings only if an encoder is requested."""
    columns = [name for name in schemas.table_schema("slides").names if name != "files"]
    yield ExportFile("slides.csv", partial(_write_slides, source, columns))
    yield ExportFile(
        "files.csv", lambda path: csv.write_csv(path, csv.FILE_COLUMNS, (csv.files_table(row) for row in source.rows))
    )
    for name in source.table_names:
        kind, _, maker = name.partition("/")
        if kind == "slides" or (kind == "embeddings" and not source.request.encoders):
            continue
        if not maker or maker in source.selected_tables(kind):
            yield ExportFile(f"{name.replace('/', '-')}.csv", partial(_write_table, source, name))


def _write_slides(source: ExportSource, columns: Sequence[str], path: Path) -> None:
    schema = schemas.table_schema("slides")
    csv.write_csv(path, columns, (pa.Table.from_pylist([row], schema) for row in source.rows))


def _write_table(source: ExportSource, name: str, path: Path) -> None:
    rows = [row for row in source.rows if source.has_table(name, row)]
    columns = schemas.table_schema(name).names
    csv.write_csv(path, columns, (source.cohort.read(name, row["slide_id"]) for row in rows))


def to_dicom(source: ExportSource) -> Iterator[ExportFile]:
    """Yield SLIDE.sr.dcm of each slide with predictions that was scanned as DICOM or has a stated identity."""
    for row in source.done_slides():
        identity = source.request.identities.get(row["slide_id"])
        if identity is None and row["path"] is None:
            source.left_out[row["slide_id"]] = "it has a pseudonym, and a report would have to identify its image"
        elif identity is None and row["format"] != "dicom":
            source.left_out[row["slide_id"]] = "it was not scanned as DICOM, and no identity sheet names it"
        elif not (predictions := _reportable_predictions(source, row)):
            source.left_out[row["slide_id"]] = "it has no prediction for a stain that is given in the labels"
        else:
            yield ExportFile(f"{row['slide_id']}.sr.dcm", partial(_write_dicom, row, predictions, identity))


def _reportable_predictions(source: ExportSource, row: Row) -> dict[str, list[Row]]:
    """Return a slide's predictions by bundle, except those with a presumed marker and those that hang on ISH.

    An archive must not store a HER2 score of a slide that may be stained for ER, and no status of a slide that is 2+:
    its IHC score is reported, and that a pathologist should look first.
    """
    tables = _read_selected(source, "predictions", row)
    reportable = {
        bundle: [
            _with_failed_run(item) if row["slide_id"] in source.failed_runs else item
            for item in table.to_pylist()
            if _names_its_marker(item)
        ]
        for bundle, table in tables.items()
    }
    refusals = [item for table in tables.values() for item in table.to_pylist() if item["predicted"] is None]
    every = [{"bundle": bundle, **item} for bundle, items in reportable.items() for item in items]
    found = assess_slide(row, [*every, *({"bundle": item["method"], **item} for item in refusals)])
    if found.not_scorable:
        return {}
    definite = {
        bundle: [item for item in items if not depends_on_ish(item, found.needs_ish, found.result)]
        for bundle, items in reportable.items()
    }
    return {bundle: predictions for bundle, predictions in definite.items() if predictions}


def _with_failed_run(prediction: Row) -> Row:
    """Return a prediction of a slide that belongs to the run of a failed control."""
    reasons = list(dict.fromkeys([*prediction["reasons"], CONTROL_FAILED]))
    return {**prediction, "reasons": reasons, "review": True}


def _names_its_marker(prediction: Row) -> bool:
    """Return whether a prediction has a class of a marker that the labels state."""
    return prediction["predicted"] is not None and "marker-presumed" not in prediction["reasons"]


def _write_dicom(row: Row, predictions: Mapping[str, list[Row]], identity: Identity | None, path: Path) -> None:
    """Write a report. A slide that was scanned as DICOM is identified by its own file."""
    scanned = row["format"] == "dicom" and row["path"] is not None
    with silence_pydicom():  # its warnings could write a patient's name to a log
        image = dicom.source_image(row) if scanned or identity is None else dicom.stated_identity(identity)
        dicom.build_report(row, image, predictions, scanned).save_as(path, enforce_file_format=True)


ExportFormat = Callable[[ExportSource], Iterator[ExportFile]]

FORMATS: Final[Mapping[str, ExportFormat]] = {
    "clam-h5": to_clam_h5,
    "geojson": to_geojson,
    "csv": to_csv,
    "dicom": to_dicom,
}
"""Value of the option --to → function that yields the files to write."""


def _read_tiles(source: ExportSource, row: Row) -> pa.Table:
    return source.cohort.read("tiles", row["slide_id"])


def _read_selected(source: ExportSource, kind: str, row: Row) -> dict[str, pa.Table]:
    """Read the selected tables of a kind that a slide has: encoder or bundle → table."""
    tables = source.selected_tables(kind).items()
    return {maker: source.cohort.read(name, row["slide_id"]) for maker, name in tables if source.has_table(name, row)}


def _makers(kind: str, table_names: Sequence[str]) -> set[str]:
    """Return the encoders or bundles that made the tables of a kind."""
    return {name.split("/", 1)[1] for name in table_names if name.startswith(f"{kind}/")}


def _check_names(kind: str, names: Iterable[str], existing: Collection[str], cohort: Cohort) -> None:
    for name in names:
        if name not in existing:
            some = ", ".join(sorted(existing)[:5]) + (", …" if len(existing) > 5 else "")
            remedy = f"choose from: {some}" if some else f"it has no {kind}s at all"
            raise InputError(f"the cohort has no {kind} {name!r}", cohort.root, remedy)
