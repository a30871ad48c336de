"""The cohort folder: its paths, locks, tables and commits. No other module spells a path of it.

The files of a slide are written to a draft folder, forced to the disk and renamed into place. Its row in `slides` is
written last, with the SHA-256 and the size of every file. That row is the commit: files that no row names do not count.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import tomli_w

from her2batch.errors import StoreError
from her2batch.files import locations
from her2batch.files.atomic import atomic_write, disk_errors, file_sha256, fsync, make_folder
from her2batch.files.locks import lock_folder, wait_for_workers, worker_lock
from her2batch.files.parquet import read_checksummed, read_parquet, write_checksummed, write_parquet
from her2batch.settings import BEFORE, Plan
from her2batch.store import row_cache, schemas

FORMAT = 1
"""Version of the layout of a cohort folder."""

RETIRED = "pyramid-retired"
"""Flag of a slide whose pyramid was deleted to save space."""

SLIDE_COLUMN_NAMES = tuple(column.name for column in schemas.SLIDE_COLUMNS)

Row = dict[str, Any]
"""A row of a table: column → value."""


@dataclass(frozen=True)
class Cohort:
    """A cohort folder.  holder: text of the lock that its run holds, for the workers of that run."""

    root: Path
    holder: str = ""

    @property
    def settings(self) -> Path:
        """Format version, and plan of the latest ingest."""
        return self.root / "cohort.toml"

    @property
    def labels(self) -> Path:
        """The labels that an ingest was given last, if any."""
        return self.root / "labels.parquet"

    @property
    def runs(self) -> Path:
        """Folder of logs, times and caches. Nothing else in a cohort depends on the time or the machine."""
        return self.root / "tables" / "runs"

    @property
    def intake(self) -> Path:
        """Every file of the scan folder, with its outcome."""
        return self.runs / "intake.parquet"

    @property
    def slides(self) -> Path:
        """Folder of the rows, one file per slide."""
        return self.root / "tables" / "slides"

    @property
    def row_cache_file(self) -> Path:
        """All rows in one file, so that a resume does not open thousands of small files; see `row_cache`."""
        return self.runs / "slides.memo"

    @property
    def probe_cache_file(self) -> Path:
        """What each file of the scan folder was found to be, so that a resume does not open it again."""
        return self.runs / "looks.memo"

    @property
    def damaged_list(self) -> Path:
        """Ids of slides with damaged files, one per line, until an ingest has processed them again."""
        return self.runs / "damaged.txt"

    @property
    def batch_sizes(self) -> Path:
        """How many tiles each network gets at once on GPUs, one file a network; absent where no GPU was used."""
        return self.root / "batch_sizes"

    @property
    def nights(self) -> Path:
        """Reports of the nightly runs, one folder each."""
        return self.root / "nights"

    @property
    def sentinels(self) -> Path:
        """Cohort of the sentinel slides, which are scored again every night."""
        return self.root / "sentinels"

    @property
    def erased_list(self) -> Path:
        """Size and digest of each erased slide, one per line: an ingest ignores them."""
        return self.root / "forgotten.txt"

    def table(self, name: str, slide_id: str) -> Path:
        """A slide's file of a table, such as `tiles` or `embeddings/stain`."""
        return self.root / "tables" / name / f"{slide_id}.parquet"

    def pyramid(self, slide_id: str) -> Path:
        """A slide's OME-Zarr."""
        return self.root / "pyramids" / f"{slide_id}.zarr"

    def thumbnail(self, slide_id: str) -> Path:
        """A slide's thumbnail, long edge 2048 px."""
        return self.root / "thumbnails" / f"{slide_id}.jpg"

    @property
    def remote(self) -> bool:
        """Whether the cohort is on an object store."""
        return locations.is_remote(self.root)

    @property
    def draft_root(self) -> Path:
        """Parent of the drafts: the cohort folder, or a local folder if the cohort is on an object store."""
        return locations.draft_folder(self.root) if self.remote else self.root

    def prepare_folder(self) -> None:
        """Create the folder. Raises StoreError if it holds other files or another format, or can't be written to."""
        if self.settings.exists():
            self.check()
        elif self.root.exists() and any(not path.name.startswith(".") for path in self.root.iterdir()):
            raise StoreError("the folder is not empty and is not a cohort", self.root, "choose another --out")
        with disk_errors(self.root):
            make_folder(self.root)

    def create(self, plan: Plan) -> None:
        """Create the cohort if there is none, and store the plan. Raises StoreError as `prepare_folder` does."""
        self.prepare_folder()
        with disk_errors(self.root):
            text = tomli_w.dumps({"format": FORMAT, "plan": plan.model_dump(mode="json", exclude_none=True)})
            if not self.settings.exists() or self.settings.read_text("utf-8") != text:
                with atomic_write(self.settings) as part:
                    part.write_text(text, "utf-8")
            make_folder(self.runs)

    def check_present(self) -> None:
        """Raise StoreError if the cohort is gone: a network share that is unmounted leaves an empty folder behind."""
        if not self.remote and not self.settings.is_file():
            remedy = "mount or restore the folder, then run the same command again"
            raise StoreError("the cohort is no longer there", self.root, remedy)

    def check(self) -> None:
        """Raise StoreError if the folder is not a cohort, or is one of another format."""
        if not self.settings.is_file():
            raise StoreError("there is no cohort here", self.root, "create one: her2batch ingest SCANS --out COHORT")
        try:
            version = tomllib.loads(self.settings.read_text("utf-8")).get("format")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"is not valid TOML ({error})", self.settings, "restore it from a backup") from error
        if version != FORMAT:
            what = f"has format {version}; this her2batch reads format {FORMAT}"
            raise StoreError(what, self.settings, "ingest into another --out")

    def plan(self) -> Plan:
        """The plan of the latest ingest. Raises StoreError."""
        self.check()
        return Plan.model_validate({**BEFORE, **tomllib.loads(self.settings.read_text("utf-8"))["plan"]})

    @contextmanager
    def lock(self) -> Iterator[Cohort]:
        """Lock the cohort for one run. Raises StoreError with the host and the process that hold the lock."""
        with lock_folder(self.root) as holder:
            wait_for_workers(self.root, self.runs / ".workers")
            yield replace(self, holder=holder)

    def working(self) -> AbstractContextManager[None]:
        """Context in which a worker writes. Raises StoreError if its run has ended and another holds the cohort."""
        return worker_lock(self.root, self.runs / ".workers", self.holder) if self.holder else nullcontext()

    def table_names(self) -> list[str]:
        """Names of the cohort's tables without those of `runs`: `slides`, `tiles`, `embeddings/stain`, …"""
        folder = self.root / "tables"
        names = {str(file.parent.relative_to(folder)) for file in folder.glob("**/*.parquet")}
        return sorted(name for name in names if name.split("/")[0] in schemas.TABLES)

    def read(self, name: str, slide_id: str) -> pa.Table:
        """Read a table of one slide. Raises FileNotFoundError; OSError or pa.ArrowInvalid if it is damaged."""
        return (read_checksummed if name == "slides" else read_parquet)(self.table(name, slide_id))

    def rows(self, columns: Sequence[str] = SLIDE_COLUMN_NAMES) -> dict[str, Row]:
        """Rows of all committed slides by slide_id, with these columns. Damaged row files are left out.

        A row file whose size and modification time are those in the row cache is not opened.
        """
        cached = row_cache.load_cache(self.row_cache_file, row_cache.cached_row_schema())
        return _by_id(row_cache.read_rows(self.slides, cached), columns)

    def reread_rows(self) -> dict[str, Row]:
        """Rows of all committed slides by slide_id, read without the row cache."""
        return _by_id(row_cache.read_rows(self.slides, row_cache.cached_row_schema().empty_table()))

    def object_sizes(self) -> dict[str, int]:
        """Size of every object by name, from one listing; empty for a local cohort, whose files are quick to check."""
        return {name: size for name, (size, _) in locations.list_objects(self.root).items()} if self.remote else {}

    def files_present(self, row: Mapping[str, Any], sizes: Mapping[str, int] = MappingProxyType({})) -> bool:
        """Whether every file of a row exists with its size. No file is opened.  sizes: of `object_sizes`."""
        if self.remote:
            return all(sizes.get(file["path"]) == file["bytes"] for file in row["files"])
        try:
            return all((self.root / file["path"]).stat().st_size == file["bytes"] for file in row["files"])
        except OSError:
            return False

    def read_intake(self) -> list[Row]:
        """Rows of the intake table, one per file or slide; empty at first. Raises StoreError if it is damaged."""
        try:
            return read_parquet(self.intake).to_pylist() if self.intake.exists() else []
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError("is damaged", self.intake, "run the ingest again, which rebuilds it") from error

    def read_probes(self) -> list[Row]:
        """Cached results of the search for slides, one row per file that was opened; empty if the cache is damaged."""
        return list(row_cache.load_cache(self.probe_cache_file, schemas.table_schema("looks")).to_pylist())

    def damaged_slides(self) -> set[str]:
        """Ids of slides to process again although their files exist with the right sizes."""
        return set(self.damaged_list.read_text("utf-8").split("\n")) - {""} if self.damaged_list.exists() else set()

    def write_damaged_slides(self, slide_ids: set[str]) -> None:
        """Replace the list of damaged slides. Raises OSError."""
        if slide_ids:
            with atomic_write(self.damaged_list) as part:
                part.write_text("\n".join(sorted(slide_ids)), "utf-8")
        else:
            self.damaged_list.unlink(missing_ok=True)

    def write_intake(self, entries: list[Row]) -> None:
        """Replace the intake table."""
        table = pa.Table.from_pylist(sorted(entries, key=lambda entry: entry["path"]), schemas.table_schema("intake"))
        with atomic_write(self.intake) as part:
            write_parquet(table, part)

    def write_probes(self, probes: list[Row]) -> None:
        """Replace the cached results of the search for slides."""
        row_cache.save_cache(self.probe_cache_file, pa.Table.from_pylist(probes, schemas.table_schema("looks")))

    def update_row_cache(self) -> None:
        """Write new rows to the row cache. Call it under the lock only."""
        row_cache.update_cache(self.slides, self.row_cache_file)

    def write_times(self, run: str, rows: list[Row]) -> None:
        """Write the durations of a run's slides: tables/runs/RUN.parquet."""
        with atomic_write(self.runs / f"{run}.parquet") as part:
            write_parquet(pa.Table.from_pylist(rows, schemas.table_schema("times")), part)

    def existing_draft(self, slide_id: str) -> Draft:
        """The draft of a slide that a worker has begun."""
        return Draft(self, slide_id)

    def draft(self, slide_id: str) -> Draft:
        """An empty draft of a slide; files of an earlier attempt are deleted."""
        self.check_present()
        draft = self.existing_draft(slide_id)
        draft.discard()
        if self.remote:
            locations.make_draft_folder(self.root)
        draft.root.mkdir()
        return draft

    def add_tables(self, row: Row, tables: Mapping[str, pa.Table], removed: Collection[str] = ()) -> Row:
        """Write tables of a committed slide, NAME → table, then its row, which is returned; then delete tables.

        row: may differ from the committed row in other columns too.  removed: names of the tables to delete.
        Raises OSError when a write fails; the slide's row is unchanged then. Call it under the lock only.
        """
        files = {file["path"]: file for file in row["files"] or ()}
        for name, table in tables.items():
            path = self.table(name, row["slide_id"])
            make_folder(path.parent)
            with atomic_write(path) as part:
                write_parquet(table, part, schemas.layout_of(name))
            place = path.relative_to(self.root).as_posix()
            files[place] = {"path": place, "bytes": locations.file_size(path), "sha256": file_sha256(path)}
        gone = [self.table(name, row["slide_id"]).relative_to(self.root).as_posix() for name in removed]
        row = {**row, "files": [files[place] for place in sorted(files) if place not in gone]}
        write_row(self, row)
        locations.remove_files(self.root, gone)
        return row


@dataclass(frozen=True)
class Draft:
    """Files of one slide before they are committed, in a folder of their own with the layout of a cohort."""

    cohort: Cohort
    slide_id: str

    @property
    def root(self) -> Path:
        """The folder of the draft, on the disk of the cohort, so that its files are moved by renaming."""
        return self.cohort.draft_root / f".draft-{self.slide_id}"

    def pyramid(self) -> Path:
        """Path of the OME-Zarr in the draft."""
        return self._with_parents(Cohort(self.root).pyramid(self.slide_id))

    def thumbnail(self) -> Path:
        """Path of the thumbnail in the draft."""
        return self._with_parents(Cohort(self.root).thumbnail(self.slide_id))

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table to the draft."""
        write_parquet(table, self._with_parents(Cohort(self.root).table(name, self.slide_id)), schemas.layout_of(name))

    def commit(self, row: Row, old: Mapping[str, Any] | None, sent: Sequence[Row] = ()) -> Row:
        """Move the files into place, write the slide's row, which is returned, and delete files of the old row only.

        sent: entries of files that are in place already.  Raises OSError if a write fails; nothing is committed then.
        """
        row = {**row, "files": sorted([*sent, *self.send()], key=lambda file: str(file["path"]))}
        write_row(self.cohort, row, self.root)  # a killed worker leaves a half-written row in the draft only
        stale = {file["path"] for file in (old or {}).get("files", [])} - {file["path"] for file in row["files"]}
        locations.remove_files(self.cohort.root, sorted(stale))
        self.discard()
        return row

    def send(self) -> list[Row]:
        """Move the files into place and return their entries for the row: path, bytes, sha256.

        On an object store they are replaced one after the other. While a slide is processed again, its old row names
        files that are new already, which `files_present` and `verify` report.
        """
        self.cohort.check_present()
        files = [self._file_entry(path) for path in sorted(self._files())]
        if self.cohort.remote:
            for file in files:
                locations.upload(self.root / file["path"], self.cohort.root / file["path"])
            return files
        for folder in filter(Path.is_dir, sorted(self.root.rglob("*"))):
            fsync(folder)
        for source in sorted(self._renamed_paths()):
            target = self.cohort.root / source.relative_to(self.root)
            make_folder(target.parent)
            if target.is_dir():  # a folder can't be renamed over a folder with files
                target.rename(self._with_parents(self.root / ".old" / source.relative_to(self.root)))
            source.replace(target)
            fsync(target.parent)
        return files

    def discard(self) -> None:
        """Delete the draft."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _with_parents(self, path: Path) -> Path:
        self.root.stat()  # raises if the draft is gone with its cohort: it must not be created again
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _file_entry(self, path: Path) -> Row:
        fsync(path)
        place = path.relative_to(self.root).as_posix()
        return {"path": place, "bytes": path.stat().st_size, "sha256": file_sha256(path)}

    def _renamed_paths(self) -> set[Path]:
        """Paths that one rename each moves: files, and Zarr folders as a whole."""
        return {self.root / locations.top_level_name(path.relative_to(self.root).as_posix()) for path in self._files()}

    def _files(self) -> list[Path]:  # not a half-written row, nor replaced files, of an attempt that was killed
        return [path for path in self.root.glob("[!.]*/**/*") if path.is_file()]


def tables_of(row: Mapping[str, Any], kind: str | None = None) -> list[str]:
    """Names of a slide's tables, such as `tiles` or `embeddings/uni`, from its row.

    kind: only those of one kind, sorted: `predictions` → [`predictions/membrane`, …].
    """
    tables = (path for file in row["files"] or () if (path := str(file["path"])).startswith("tables/"))
    names = [path.removeprefix("tables/").rpartition("/")[0] for path in tables]
    return names if kind is None else sorted(name for name in names if name.partition("/")[0] == kind)


def write_row(cohort: Cohort, row: Row, folder: Path | None = None) -> None:
    """Write a row of `slides`, which commits the slide, by way of `folder`. Raises StoreError if the cohort is gone."""
    cohort.check_present()
    path = cohort.table("slides", row["slide_id"])
    make_folder(path.parent)
    with atomic_write(path, folder) as part:
        write_checksummed(pa.Table.from_pylist([row], schemas.table_schema("slides")), part)


def _by_id(rows: pa.Table, columns: Sequence[str] = SLIDE_COLUMN_NAMES) -> dict[str, Row]:
    return {row["slide_id"]: row for row in rows.select(columns).to_pylist()}
