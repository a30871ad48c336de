"""What leaves a cohort: its tables as files for QuPath, CLAM and TRIDENT, spreadsheets, and DICOM archives.

A format is a function from a cohort to jobs, one a file. Each file appears whole, under a name that depends on the
slide and the table alone; `export.json` beside them lists what an export wrote, and nothing else is ever replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from her2batch.errors import Her2BatchError, InputError, StoreError
from her2batch.exchange import clam_h5, csv, dicom, geojson
from her2batch.files.atomic import atomic_write
from her2batch.files.locations import URL_SEPARATOR, to_location
from her2batch.slides.discover import silence_pydicom
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, Row
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import MEMBRANE_RULE

MANIFEST: Final = "export.json"

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export. slides, encoders: none: all.  bundle: the one wanted, beside the rule."""

    cohort: Path
    to: str
    out: Path
    slides: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    bundle: str | None = None


@dataclass
class ExportSummary:
    """What became of it. left_out: slide or file → why."""

    out: Path
    to: str
    slides: int = 0
    files: int = 0
    bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 all written · 3 some files failed."""
        return 3 if self.failures else 0


@dataclass(frozen=True)
class ExportFile:
    """One file: its name below `out`, and what writes it to a path."""

    name: str
    write: Callable[[Path], None]


@dataclass
class ExportSource:
    """A cohort and the part of it that is wanted. names: of the tables there are."""

    cohort: Cohort
    order: ExportRequest
    rows: list[Row]
    names: list[str]
    left_out: dict[str, str] = field(default_factory=dict)

    def done(self) -> Iterator[Row]:
        """Slides with tables; the others are noted."""
        for row in self.rows:
            if row["status"] == "done":
                yield row
            else:
                self.left_out[row["slide_id"]] = f"{row['error_code']}: it could not be ingested"

    def has(self, name: str, row: Row) -> bool:
        """Whether a slide's row names a file of this table."""
        path = self.cohort.table(name, row["slide_id"]).relative_to(self.cohort.root).as_posix()
        return any(file["path"] == path for file in row["files"])

    def below(self, kind: str) -> dict[str, str]:
        """Tables of a kind that are wanted: what made it → the table's name."""
        found = {name.split("/", 1)[1]: name for name in self.names if name.startswith(f"{kind}/")}
        if kind == "embeddings":
            wanted = {encoder_folder(one) for one in self.order.encoders}
        else:
            wanted = {self.order.bundle, MEMBRANE_RULE} if self.order.bundle is not None else set()
        return {one: name for one, name in found.items() if not wanted or one in wanted}


def export_cohort(order: ExportRequest, report: ProgressCallback = lambda *_: None) -> ExportSummary:
    """Write the files of one format. Raises InputError, StoreError; a file that fails is noted and the rest goes on."""
    source = open_source(order)
    jobs = list(FORMATS[order.to](source))
    if not jobs:
        why = next((f"{one}: {why}" for one, why in source.left_out.items()), "it holds no slide that is done")
        raise InputError(f"has nothing to export to {order.to}; {why}", source.cohort.root, "see docs/exchange.md")
    found = ExportSummary(order.out, order.to, left_out=source.left_out)
    found.slides = len({row["slide_id"] for row in source.rows} - source.left_out.keys())
    claim_files(order.out, order.to, [job.name for job in jobs])
    for count, job in enumerate(jobs, start=1):
        path = order.out / job.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                job.write(part)
        except (Her2BatchError, pa.ArrowInvalid, OSError) as error:
            found.failures[job.name] = f"{error}; run her2batch verify, and look at the space on the disk"
        else:
            found.files += 1
            found.bytes += path.stat().st_size
        report(count, len(jobs))
    return found


def open_source(order: ExportRequest) -> ExportSource:
    """The cohort, checked against what was asked for. Raises InputError for names it does not know, StoreError."""
    cohort = Cohort(to_location(order.cohort))
    cohort.check()
    if URL_SEPARATOR in str(order.out):
        raise InputError("exports are written to a folder of this machine", order.out, "copy them from there")
    inside = not cohort.remote and order.out.resolve().is_relative_to(cohort.root.resolve())
    if inside:
        raise InputError("lies inside the cohort, which keeps its own files only", order.out, "choose another --out")
    rows, names = cohort.rows(), cohort.table_names()
    source = ExportSource(cohort, order, [rows[one] for one in sorted(rows)], names)
    _check_names("slide", order.slides, rows, cohort)
    _check_names("encoder", map(encoder_folder, order.encoders), _makers("embeddings", names), cohort)
    if order.bundle is not None:
        made = {one for kind in ("predictions", "attention", "patches", "thumbnails") for one in _makers(kind, names)}
        _check_names("bundle", [order.bundle], made, cohort)
    if order.slides:
        source.rows = [rows[one] for one in sorted(set(order.slides))]
    return source


def claim_files(out: Path, to: str, names: Sequence[str]) -> None:
    """Note the files that are about to be written. Raises InputError for one that is there and not from an export."""
    manifest = out / MANIFEST
    try:
        out.mkdir(parents=True, exist_ok=True)
        ours = set(json.loads(manifest.read_text())["files"]) if manifest.exists() else set()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("is no list of an export", manifest, "choose another --out, or remove it") from error
    except OSError as error:
        raise StoreError(f"can't be written to ({error.strerror})", out, "check space and rights") from error
    for name in names:
        if name not in ours and (out / name).exists():
            raise InputError("is there, and no export wrote it", out / name, "choose another --out, or move it away")
    facts = {"format": to, "files": sorted(ours | set(names))}
    with atomic_write(manifest) as part:
        part.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# -- formats ---------------------------------------------------------------------------------------------------


def to_geojson(source: ExportSource) -> Iterator[ExportFile]:
    """A file a slide. Its name is no SLIDE.geojson: what a model said is not to be taken for an annotation."""
    for row in source.done():
        yield ExportFile(f"{row['slide_id']}.tiles.geojson", partial(_write_geojson, source, row))


def _write_geojson(source: ExportSource, row: Row, path: Path) -> None:
    attention, patches = (
        {made: source.cohort.read(name, row["slide_id"]) for made, name in found.items() if source.has(name, row)}
        for found in (source.below("attention"), source.below("patches"))
    )
    membrane = source.cohort.read("membrane", row["slide_id"]) if source.has("membrane", row) else None
    geojson.write_feature_collection(
        path, geojson.slide_features(row, _read_tiles(source, row), membrane, attention, patches)
    )


def to_clam_h5(source: ExportSource) -> Iterator[ExportFile]:
    """patches/SLIDE.h5, and features_ENCODER/h5_files/SLIDE.h5 of each encoder."""
    plan = source.cohort.plan()
    for row in source.done():
        yield ExportFile(f"patches/{row['slide_id']}.h5", partial(_write_coords, source, row))
        for encoder, name in source.below("embeddings").items():
            if source.has(name, row):
                write = partial(_write_features, source, row, encoder, plan.tile, plan.mpp)
                yield ExportFile(f"features_{encoder}/h5_files/{row['slide_id']}.h5", write)


def _write_coords(source: ExportSource, row: Row, path: Path) -> None:
    clam_h5.write_coords(path, row, _read_tiles(source, row))


def _write_features(source: ExportSource, row: Row, encoder: str, tile: int, mpp: float, path: Path) -> None:
    embeddings = source.cohort.read(f"embeddings/{encoder}", row["slide_id"])
    clam_h5.write_features(path, row, _read_tiles(source, row), embeddings, encoder, tile, mpp)


def to_csv(source: ExportSource) -> Iterator[ExportFile]:
    """A file a table, over all slides; embeddings only when an encoder is named."""
    slides = [name for name in schemas.table_schema("slides").names if name != "files"]
    yield ExportFile("slides.csv", partial(_write_slides, source, slides))
    yield ExportFile(
        "files.csv", lambda path: csv.write_csv(path, csv.FILE_COLUMNS, (csv.files_table(row) for row in source.rows))
    )
    for name in source.names:
        kind, _, made = name.partition("/")
        unwanted = kind == "slides" or (kind == "embeddings" and not source.order.encoders)
        if unwanted or (made and made not in source.below(kind)):
            continue
        yield ExportFile(f"{name.replace('/', '-')}.csv", partial(_write_table, source, name))


def _write_slides(source: ExportSource, columns: Sequence[str], path: Path) -> None:
    schema = schemas.table_schema("slides")
    csv.write_csv(path, columns, (pa.Table.from_pylist([row], schema) for row in source.rows))


def _write_table(source: ExportSource, name: str, path: Path) -> None:
    rows = [row for row in source.rows if source.has(name, row)]
    columns = schemas.table_schema(name.split("/")[0]).names
    csv.write_csv(path, columns, (source.cohort.read(name, row["slide_id"]) for row in rows))


def to_dicom(source: ExportSource) -> Iterator[ExportFile]:
    """SLIDE.sr.dcm of each slide that was scanned as DICOM and has predictions."""
    for row in source.done():
        if row["format"] != "dicom":
            source.left_out[row["slide_id"]] = "it was not scanned as DICOM"
        elif row["path"] is None:
            source.left_out[row["slide_id"]] = "with pseudonyms nothing may name its image, and a report must"
        elif not (predictions := _reportable_predictions(source, row)):
            source.left_out[row["slide_id"]] = "it has no prediction for a stain that labels name"
        else:
            yield ExportFile(f"{row['slide_id']}.sr.dcm", partial(_write_dicom, row, predictions))


def _reportable_predictions(source: ExportSource, row: Row) -> dict[str, list[Row]]:
    """A slide's predictions, but for those whose marker is only presumed: an archive keeps no HER2 score of an ER."""
    names = {made: name for made, name in source.below("predictions").items() if source.has(name, row)}
    found = {made: source.cohort.read(name, row["slide_id"]).to_pylist() for made, name in names.items()}
    sure = {made: [one for one in rows if "marker-presumed" not in one["reasons"]] for made, rows in found.items()}
    return {made: rows for made, rows in sure.items() if rows}


def _write_dicom(row: Row, predictions: Mapping[str, list[Row]], path: Path) -> None:
    with silence_pydicom():  # a log is not where a patient's name belongs
        dicom.build_report(row, dicom.source_image(row), predictions).save_as(path, enforce_file_format=True)


ExportFormat = Callable[[ExportSource], Iterator[ExportFile]]

FORMATS: Final[Mapping[str, ExportFormat]] = {
    "clam-h5": to_clam_h5,
    "geojson": to_geojson,
    "csv": to_csv,
    "dicom": to_dicom,
}
"""What --to takes → its files."""


def _read_tiles(source: ExportSource, row: Row) -> pa.Table:
    return source.cohort.read("tiles", row["slide_id"])


def _makers(kind: str, names: Sequence[str]) -> set[str]:
    """What made the tables of a kind: encoders, bundles."""
    return {name.split("/", 1)[1] for name in names if name.startswith(f"{kind}/")}


def _check_names(what: str, asked: Any, there: Any, cohort: Cohort) -> None:
    for one in asked:
        if one not in there:
            some = ", ".join(sorted(there)[:5]) + (", …" if len(there) > 5 else "")
            raise InputError(f"holds no {what} {one!r}", cohort.root, f"it has: {some}" if some else "it has none")
