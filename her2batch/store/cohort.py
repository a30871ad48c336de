"""The cohort on disk: the only module that spells a path of it.

A slide's files are built in a draft beside their places, forced to the disk, renamed into place; its row in `slides`
comes last, with the SHA-256 and size of every file. That row is the commit: a file no row names does not exist.
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
from her2batch.files.atomic import atomic_write, disk_errors, file_sha256, fsync, make_folder
from her2batch.files.locations import (
    draft_folder,
    file_size,
    is_remote,
    list_objects,
    make_draft_folder,
    remove_files,
    top_level_name,
    upload,
)
from her2batch.files.locks import lock_folder, wait_for_workers, worker_lock
from her2batch.files.parquet import read_checksummed, read_parquet, write_checksummed, write_parquet
from her2batch.settings import Plan
from her2batch.store import row_cache, schemas

FORMAT = 1
"""Version of the store's layout."""

RETIRED = "pyramid-retired"
"""Flag of a slide whose pyramid was let go."""

SLIDE_COLUMN_NAMES = tuple(column.name for column in schemas.SLIDE_COLUMNS)

Row = dict[str, Any]
"""One row of `slides`, by column."""


@dataclass(frozen=True)
class Cohort:
    """A cohort folder. holder: who holds its lock, for workers of that run."""

    root: Path
    holder: str = ""

    # -- places ------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Path:
        """Format version and plan."""
        return self.root / "cohort.toml"

    @property
    def labels(self) -> Path:
        """The labels, when they were given."""
        return self.root / "labels.parquet"

    @property
    def runs(self) -> Path:
        """The only place for times, hosts and durations."""
        return self.root / "tables" / "runs"

    @property
    def intake(self) -> Path:
        """Every file seen, and what became of it."""
        return self.runs / "intake.parquet"

    @property
    def slides(self) -> Path:
        """The rows: one file a slide."""
        return self.root / "tables" / "slides"

    @property
    def row_cache_file(self) -> Path:
        """All rows in one file, which spares a resume opening them; see `memo`."""
        return self.runs / "slides.memo"

    @property
    def probe_cache_file(self) -> Path:
        """What files of the scans folder were when they were opened, which spares opening them again."""
        return self.runs / "looks.memo"

    @property
    def damaged_list(self) -> Path:
        """Ids of slides whose files `verify` found damaged, one a line, until an ingest has done them again."""
        return self.runs / "damaged.txt"

    @property
    def nights(self) -> Path:
        """Reports of the nightly job, a folder each."""
        return self.root / "nights"

    @property
    def sentinels(self) -> Path:
        """Cohort of the slides that are scored again every night."""
        return self.root / "sentinels"

    @property
    def erased_list(self) -> Path:
        """Sizes and digests of slides that must not come back, a line each."""
        return self.root / "forgotten.txt"

    def table(self, name: str, slide_id: str) -> Path:
        """A slide's file of a table; name is 'tiles', 'embeddings/stain', …"""
        return self.root / "tables" / name / f"{slide_id}.parquet"

    def pyramid(self, slide_id: str) -> Path:
        """A slide's OME-Zarr."""
        return self.root / "pyramids" / f"{slide_id}.zarr"

    def thumbnail(self, slide_id: str) -> Path:
        """A slide's overview picture, long edge 2048 px."""
        return self.root / "thumbnails" / f"{slide_id}.jpg"

    @property
    def remote(self) -> bool:
        """Whether the cohort lies on an object store."""
        return is_remote(self.root)

    @property
    def draft_root(self) -> Path:
        """Where drafts stand: beside the cohort, or on this machine where the cohort is far away."""
        return draft_folder(self.root) if self.remote else self.root

    # -- opening -----------------------------------------------------------------------------------------------

    def prepare_folder(self) -> None:
        """Make the folder. Raises StoreError when it holds something else, another format, or can't be written to."""
        if self.settings.exists():
            self.check()
        elif self.root.exists() and any(not one.name.startswith(".") for one in self.root.iterdir()):
            raise StoreError("the folder is not empty and holds no cohort", self.root, "choose another --out")
        with disk_errors(self.root):
            make_folder(self.root)

    def create(self, plan: Plan) -> None:
        """Make the cohort and keep the plan of the latest ingest. Raises StoreError as `claim` does."""
        self.prepare_folder()
        with disk_errors(self.root):
            text = tomli_w.dumps({"format": FORMAT, "plan": plan.model_dump(mode="json", exclude_none=True)})
            if not self.settings.exists() or self.settings.read_text() != text:
                with atomic_write(self.settings) as part:
                    part.write_text(text)
            make_folder(self.runs)

    def check_present(self) -> None:
        """Refuse to write where the cohort no longer is: a share that was unmounted leaves an empty folder behind."""
        if not self.remote and not self.settings.is_file():
            raise StoreError("the cohort is not there any more", self.root, "mount or restore it, then run again")

    def check(self) -> None:
        """Refuse what is no cohort, or one of another format. Raises StoreError."""
        if not self.settings.is_file():
            raise StoreError("there is no cohort here", self.root, "make one with: her2batch ingest SCANS --out COHORT")
        try:
            found = tomllib.loads(self.settings.read_text()).get("format")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"is no TOML ({error})", self.settings, "restore it, or ingest anew") from error
        if found != FORMAT:
            raise StoreError(f"has format {found}, this her2batch reads {FORMAT}", self.settings, "ingest anew")

    def plan(self) -> Plan:
        """The plan of the latest ingest. Raises StoreError."""
        self.check()
        return Plan.model_validate(tomllib.loads(self.settings.read_text())["plan"])

    @contextmanager
    def lock(self) -> Iterator[Cohort]:
        """Hold the cohort for one run, until its process ends. Raises StoreError naming the holder's host and pid."""
        with lock_folder(self.root) as holder:
            wait_for_workers(self.root, self.runs / ".workers")
            yield replace(self, holder=holder)

    def working(self) -> AbstractContextManager[None]:
        """What a worker does to the store. Raises StoreError when its run has ended and another holds the cohort."""
        return worker_lock(self.root, self.runs / ".workers", self.holder) if self.holder else nullcontext()

    # -- reading -----------------------------------------------------------------------------------------------

    def table_names(self) -> list[str]:
        """Names of the tables there are, without `runs`: 'slides', 'tiles', 'embeddings/stain', …"""
        top = self.root / "tables"
        found = {str(file.parent.relative_to(top)) for file in top.glob("**/*.parquet")}
        return sorted(name for name in found if name.split("/")[0] in schemas.TABLES)

    def read(self, name: str, slide_id: str) -> pa.Table:
        """One slide's table. Raises FileNotFoundError, OSError or pa.ArrowInvalid."""
        read = read_checksummed if name == "slides" else read_parquet
        return read(self.table(name, slide_id))

    def rows(self, columns: Sequence[str] = SLIDE_COLUMN_NAMES) -> dict[str, Row]:
        """Every committed slide: slide_id → its row, with these columns. Damaged row files are left out: redone later.

        A row file whose size and time of change are those in the row cache is not opened.
        """
        cached = row_cache.load_cache(self.row_cache_file, row_cache.cached_row_schema())
        return _by_id(row_cache.read_rows(self.slides, cached), columns)

    def reread_rows(self) -> dict[str, Row]:
        """The same with every row file read."""
        return _by_id(row_cache.read_rows(self.slides, row_cache.cached_row_schema().empty_table()))

    def object_sizes(self) -> dict[str, int]:
        """Names and sizes of all objects, asked for at once; of a local cohort nothing: its files are cheap to ask."""
        return {name: size for name, (size, _) in list_objects(self.root).items()} if self.remote else {}

    def files_present(self, row: Mapping[str, Any], sizes: Mapping[str, int] = MappingProxyType({})) -> bool:
        """Whether every file a row names is there with its size. Names and sizes only: nothing is opened."""
        if self.remote:
            return all(sizes.get(file["path"]) == file["bytes"] for file in row["files"])
        try:
            return all((self.root / file["path"]).stat().st_size == file["bytes"] for file in row["files"])
        except OSError:
            return False

    def read_intake(self) -> list[Row]:
        """The intake table: one entry a file or slide seen, by path; empty at first. Raises StoreError: damaged."""
        try:
            return read_parquet(self.intake).to_pylist() if self.intake.exists() else []
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError("is damaged", self.intake, "run the ingest again: it makes it anew") from error

    def read_probes(self) -> list[Row]:
        """What is remembered of files that were opened in search of slides; empty when it was lost."""
        looks: list[Row] = row_cache.load_cache(self.probe_cache_file, schemas.table_schema("looks")).to_pylist()
        return looks

    def damaged_slides(self) -> set[str]:
        """Slides to do again though their files have the sizes that their rows say."""
        return set(self.damaged_list.read_text().split("\n")) - {""} if self.damaged_list.exists() else set()

    # -- writing -----------------------------------------------------------------------------------------------

    def write_damaged_slides(self, slide_ids: set[str]) -> None:
        """Name the slides to do again. Raises OSError."""
        if slide_ids:
            with atomic_write(self.damaged_list) as part:
                part.write_text("\n".join(sorted(slide_ids)))
        else:
            self.damaged_list.unlink(missing_ok=True)

    def write_intake(self, entries: list[Row]) -> None:
        """Replace the intake table."""
        table = pa.Table.from_pylist(sorted(entries, key=lambda one: one["path"]), schemas.table_schema("intake"))
        with atomic_write(self.intake) as part:
            write_parquet(table, part)

    def write_probes(self, looks: list[Row]) -> None:
        """Remember what was found in files."""
        row_cache.save_cache(self.probe_cache_file, pa.Table.from_pylist(looks, schemas.table_schema("looks")))

    def update_row_cache(self) -> None:
        """Keep all rows in one file too. Only under the lock."""
        row_cache.update_cache(self.slides, self.row_cache_file)

    def write_times(self, run: str, rows: list[Row]) -> None:
        """Keep one run's durations: tables/runs/RUN.parquet."""
        with atomic_write(self.runs / f"{run}.parquet") as part:
            write_parquet(pa.Table.from_pylist(rows, schemas.table_schema("times")), part)

    def existing_draft(self, slide_id: str) -> Draft:
        """The draft of one slide that somebody has begun."""
        return Draft(self, slide_id)

    def draft(self, slide_id: str) -> Draft:
        """A fresh draft of one slide; what an earlier try left is removed."""
        self.check_present()
        draft = self.existing_draft(slide_id)
        shutil.rmtree(draft.root, ignore_errors=True)
        if self.remote:
            make_draft_folder(self.root)
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
                write_parquet(table, part)
            place = path.relative_to(self.root).as_posix()
            files[place] = {"path": place, "bytes": file_size(path), "sha256": file_sha256(path)}
        gone = [self.table(name, row["slide_id"]).relative_to(self.root).as_posix() for name in removed]
        row = {**row, "files": [files[place] for place in sorted(files) if place not in gone]}
        write_row(self, row)
        remove_files(self.root, gone)
        return row


@dataclass(frozen=True)
class Draft:
    """One slide's files on their way: the store's own layout, under a folder of its own, until `commit`."""

    cohort: Cohort
    slide_id: str

    @property
    def root(self) -> Path:
        """Where the draft stands: on the same disk, so that a rename moves it."""
        return self.cohort.draft_root / f".draft-{self.slide_id}"

    @property
    def _inside(self) -> Cohort:
        return Cohort(self.root)

    def pyramid(self) -> Path:
        """Where to write the OME-Zarr."""
        return self._place(self._inside.pyramid(self.slide_id))

    def thumbnail(self) -> Path:
        """Where to write the overview picture."""
        return self._place(self._inside.thumbnail(self.slide_id))

    def write(self, name: str, table: pa.Table) -> None:
        """Add one table."""
        write_parquet(table, self._place(self._inside.table(name, self.slide_id)))

    def commit(self, row: Row, old: Mapping[str, Any] | None, sent: Sequence[Row] = ()) -> Row:
        """Put the slide in place: files, then its row, which is returned, then away with what only the old row named.

        sent: files that are in their places already.  Raises OSError when the disk refuses; nothing is committed then.
        """
        files = sorted([*sent, *self.send()], key=lambda one: str(one["path"]))
        row = {**row, "files": files}
        write_row(self.cohort, row)
        kept = {file["path"] for file in files}
        remove_files(self.cohort.root, [one["path"] for one in (old or {}).get("files", []) if one["path"] not in kept])
        self.discard()
        return row

    def send(self) -> list[Row]:
        """Put the files into their places; what a row says of each.

        On an object store each takes the place of what was there, one after the other: while a slide is done again,
        its old row names files that are new already, and `intact` and `verify` say so.
        """
        self.cohort.check_present()
        files = [self._sealed(path) for path in sorted(self.root.rglob("*")) if path.is_file()]
        if self.cohort.remote:
            for file in files:
                upload(self.root / file["path"], self.cohort.root / file["path"])
            return files
        for folder in [path for path in sorted(self.root.rglob("*")) if path.is_dir()]:
            fsync(folder)
        for one in sorted(self._tops()):
            target = self.cohort.root / one.relative_to(self.root)
            make_folder(target.parent)
            if target.is_dir():  # a folder can't be renamed over a full one
                target.rename(self._place(self.root / "old" / one.relative_to(self.root)))
            one.replace(target)
            fsync(target.parent)
        return files

    def discard(self) -> None:
        """Remove the draft."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _place(self, path: Path) -> Path:
        self.root.stat()  # a draft whose store was taken away is not begun anew
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _sealed(self, path: Path) -> Row:
        fsync(path)
        return {
            "path": path.relative_to(self.root).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }

    def _tops(self) -> set[Path]:
        """What one rename moves: a file, or a whole Zarr folder."""
        files = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return {self.root / top_level_name(name) for name in files}


def tables_of(row: Row) -> list[str]:
    """Names of a slide's tables, such as `tiles` or `embeddings/uni`, from its row."""
    paths = (str(file["path"]) for file in row["files"] or ())
    return [path.removeprefix("tables/").rpartition("/")[0] for path in paths if path.startswith("tables/")]


def write_row(cohort: Cohort, row: Row) -> None:
    """Write one row of `slides`: the commit. Raises StoreError when the cohort was taken away."""
    cohort.check_present()
    path = cohort.table("slides", row["slide_id"])
    make_folder(path.parent)
    with atomic_write(path) as part:
        write_checksummed(pa.Table.from_pylist([row], schemas.table_schema("slides")), part)


def _by_id(rows: pa.Table, columns: Sequence[str] = SLIDE_COLUMN_NAMES) -> dict[str, Row]:
    return {row["slide_id"]: row for row in rows.select(columns).to_pylist()}
