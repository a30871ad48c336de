"""The Python API on results: cohorts and slides as DataFrames, Arrow tables and dask collections.

Reading a cohort is safe beside a run: only slides whose row is committed are seen. Nothing here writes to a cohort.
Heavy packages are imported inside the functions that need them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from her2batch.errors import InputError
from her2batch.exchange.slide_arrays import SlideReader
from her2batch.files.locations import is_remote, to_location
from her2batch.settings import Plan

if TYPE_CHECKING:
    import dask.dataframe
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset
    from numpy.typing import NDArray

    from her2batch.tasks import Task
    from her2batch.training.bag_data import BagDataset

SLIDES_PER_PARTITION = 64
"""Slides of one dask partition: a task of some 100 ms, and few megabytes of memory."""


def open_cohort(location: str | Path) -> CohortReader:
    """Open a cohort for reading: a folder, or a URL such as s3://BUCKET/COHORT. Raises StoreError: no cohort there."""
    return CohortReader(location)


def open_slide(path: str | Path, mpp: float | None = None, reader: str = "auto") -> SlideReader:
    """Open a slide file.

    mpp: µm per level-0 px, for files that give none.  reader: auto, tiff, cucim, nvimgcodec or openslide.
    Raises SlideError when the file is no slide, is damaged, or its resolution is not known.
    """
    return SlideReader(Path(path), mpp, reader)


class CohortSlide(SlideReader):
    """A finished slide of a cohort: its pyramid, thumbnail and tables."""

    def __init__(self, cohort: CohortReader, row: Mapping[str, Any]) -> None:
        self._cohort = cohort
        self.row = dict(row)
        super().__init__(cohort._store.pyramid(self.slide_id), None, "pyramid")

    @property
    def slide_id(self) -> str:
        """Id of the slide in the cohort."""
        return str(self.row["slide_id"])

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one of the slide's tables, for example 'tiles' or 'embeddings/stain'. Raises InputError: not there."""
        return self._cohort.dataset(name, [self.slide_id]).to_table(columns=list(columns) if columns else None)

    @property
    def tiles(self) -> pd.DataFrame:
        """Tiles of the slide, one row a tile."""
        return self.table("tiles").to_pandas()

    @property
    def cells(self) -> pd.DataFrame:
        """Cells of the slide, one row a cell. Raises InputError where the cohort has no cells table."""
        return self.table("cells").to_pandas()

    @property
    def predictions(self) -> pd.DataFrame:
        """Predictions of the membrane rule and of every bundle, with the column `bundle`."""
        import pandas as pd

        names = [name for name in self._cohort.tables_of(self.row) if name.startswith("predictions/")]
        parts = [self.table(name).to_pandas().assign(bundle=name.split("/", 1)[1]) for name in names]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    @property
    def thumbnail(self) -> NDArray[np.uint8]:
        """The stored thumbnail, long edge at most 2048 px: (height, width, 3) uint8 RGB."""
        from her2batch.vision.thumbnail import decode_jpeg

        return decode_jpeg(self._cohort._store.thumbnail(self.slide_id).read_bytes())


class CohortReader:
    """A cohort, read only. `cohort["S1"]` is one slide; iterating gives the slide ids."""

    def __init__(self, location: str | Path) -> None:
        from her2batch.store.cohort import Cohort

        self._store = Cohort(to_location(location))
        self._store.check()

    def __repr__(self) -> str:
        return f"<cohort {self._store.root}: {len(self)} slides>"

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, slide_id: str) -> CohortSlide:
        """Return one finished slide. Raises KeyError when the cohort has none of this id."""
        row = self._rows[slide_id]
        if row["status"] != "done":
            raise InputError(f"slide {slide_id} failed: {row['error']}", self._store.root, "see her2batch status")
        return CohortSlide(self, row)

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """Committed rows when the cohort was first read: one consistent state. Open it again to see newer slides."""
        return self._store.rows()

    @property
    def plan(self) -> Plan:
        """Settings of the latest ingest."""
        return self._store.plan()

    @property
    def slides(self) -> pd.DataFrame:
        """The slides table, one row a slide, in the order of their ids."""
        return self.table("slides").to_pandas()

    @property
    def labels(self) -> pd.DataFrame:
        """Labels that were given to ingest; empty without."""
        from her2batch.store.label_sheets.stored import stored_label_table

        return stored_label_table(self._store).to_pandas()

    @property
    def tables(self) -> list[str]:
        """Names of the tables, such as 'slides', 'tiles', 'embeddings/stain' and 'predictions/membrane'."""
        names = {name for row in self._rows.values() for name in self.tables_of(row)}
        return sorted(names | {"slides"})

    @staticmethod
    def tables_of(row: Mapping[str, Any]) -> list[str]:
        """Names of the tables that one row of the slides table commits."""
        from her2batch.store.cohort import tables_of

        return sorted(tables_of(row))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table of all slides. Raises InputError when the cohort has no table of this name."""
        if name == "slides":
            import pyarrow as pa

            from her2batch.store.schemas import table_schema

            table = pa.Table.from_pylist(list(self._rows.values()), table_schema("slides"))
            return table.select(list(columns)) if columns else table
        return self.dataset(name).to_table(columns=list(columns) if columns else None)

    def dataset(self, name: str, slide_ids: Sequence[str] | None = None) -> pyarrow.dataset.Dataset:
        """Return a table as a pyarrow dataset: filters and columns are pushed down to the Parquet files.

        slide_ids: only these slides.  Raises InputError when the cohort has no table of this name.
        """
        import pyarrow.dataset as ds

        paths = self._files(name, slide_ids)
        filesystem = None
        if is_remote(self._store.root):
            filesystem = self._store.root.fs  # type: ignore[attr-defined]  # a UPath
        names = [path.path if filesystem is not None else str(path) for path in paths]  # type: ignore[attr-defined]
        return ds.dataset(names, schema=self._schema(name, paths[0]), format="parquet", filesystem=filesystem)

    def dask(self, name: str, columns: Sequence[str] | None = None) -> dask.dataframe.DataFrame:
        """Return a table as a lazy dask DataFrame, for cohorts that do not fit into memory.

        One partition holds the rows of 64 slides.  Raises InputError when the cohort has no table of this name.
        """
        import dask.dataframe as dd

        paths = self._files(name, None)
        groups = [paths[k : k + SLIDES_PER_PARTITION] for k in range(0, len(paths), SLIDES_PER_PARTITION)]
        schema = self._schema(name, paths[0])
        names = tuple(columns) if columns else tuple(schema.names)
        read = partial(_read_frame, names=names)
        frame: dask.dataframe.DataFrame = dd.from_map(read, groups, meta=read(paths[:1]).iloc[:0])  # type: ignore[no-untyped-call]
        return frame

    def bag(self, slide_id: str, encoder: str) -> NDArray[np.float16]:
        """Return a slide's embeddings, (N, D) float16, in the order of its tiles, without controls; (0, D) if none."""
        from her2batch.store.pieces.patient_tiles import patient_tiles_of
        from her2batch.store.training_run import encoder_folder

        table = self.dataset(f"embeddings/{encoder_folder(encoder)}", [slide_id]).to_table(columns=["embedding"])
        column = table["embedding"].combine_chunks()
        bag: NDArray[np.float16] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        return bag if (own := patient_tiles_of(self._store, slide_id)) is None else bag[own]

    def bags(self, encoder: str, labels: str | Path | None = None, task: str | Task = "her2-3way") -> BagDataset:
        """Return a torch Dataset of (embeddings (N, D) float32, class index) for every slide with a label for the task.

        labels: a label sheet or TCGA table; None for the labels given to ingest.  task: the name of a built-in task, or
        one of `read_tasks`; where it predicts a number, the dataset has that instead of a class.  The dataset's
        `excluded` lists the slides that are left out, with the reason.  Raises InputError for unreadable labels or
        missing embeddings.
        """
        from her2batch.store.label_sheets.stored import stored_label_table
        from her2batch.store.labels import label_slides, read_labels
        from her2batch.tasks import further_columns
        from her2batch.training.bag_data import BagDataset

        if labels is not None:
            table = read_labels(Path(labels), self._store, further=further_columns([task]))
        else:
            table = stored_label_table(self._store)
        labelled, excluded = label_slides(table, task, self._rows)
        return BagDataset(task, labelled.to_pylist(), excluded.to_pandas(), partial(self.bag, encoder=encoder))

    def _files(self, name: str, slide_ids: Sequence[str] | None) -> list[Path]:
        """Committed Parquet files of a table, in the order of the slide ids."""
        wanted = self._rows if slide_ids is None else slide_ids
        if name == "slides":
            paths = [self._store.table(name, slide_id) for slide_id in wanted]
        else:
            paths = [self._store.table(name, one) for one in wanted if name in self.tables_of(self._rows[one])]
        if not paths:
            raise InputError(f"has no table {name!r}", self._store.root, f"known: {', '.join(self.tables)}")
        return paths

    @staticmethod
    def _schema(name: str, path: Path) -> pa.Schema:
        """Schema of a table; the length of embeddings is read from a file."""
        import pyarrow.parquet as pq

        from her2batch.store.schemas import table_schema

        if not name.startswith("embeddings/"):
            return table_schema(name)
        with path.open("rb") as file:
            return pq.read_schema(file)


def _read_frame(paths: Sequence[Path], names: Sequence[str]) -> pd.DataFrame:
    """Rows of some slides, one dask partition."""
    import pandas as pd

    from her2batch.files.parquet import read_parquet

    return pd.concat([read_parquet(path).select(list(names)).to_pandas() for path in paths], ignore_index=True)
