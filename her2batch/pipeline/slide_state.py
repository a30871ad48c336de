"""What a stage of the ingest is, and the value that stages hand on: everything known of one slide.

A SlideState holds no open file and no pixel of a tile, so that it travels between the processes that share a large
slide. A call that works on a part of such a slide returns a SlidePart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.exchange.controls.control_file import ControlRegion
from her2batch.exchange.regions import SlideRegions
from her2batch.models.bundle import Bundle
from her2batch.pipeline.pieces.roles import SlidePieces
from her2batch.settings import Plan
from her2batch.store.cohort import Row
from her2batch.vision.cells.detection import CellReference
from her2batch.vision.quality import Quality
from her2batch.vision.stain import Stains
from her2batch.vision.tile_grid import TileGrid
from her2batch.vision.tissue import Tissue

if TYPE_CHECKING:
    from her2batch.models.execution.batch_size import BatchSizes

WHOLE_SLIDE, ASIDE, RESULTS = "slide", "aside", "results"
"""Values of `Stage.over` other than the name of a grid."""

GIVEN = ("slide", "pyramid_path", "slide_id", "stain", "regions", "control_regions")
"""Values that are known before the first stage."""

GIVEN_RESULTS = ("row", "tables", "piece_results")
"""Values that the stages over results may take besides what the other stages gave."""

Tables = Mapping[str, pa.Table]
"""Name of a table in the store, such as `embeddings/uni` → the slide's rows of it."""

Work = Callable[..., Any]
Condition = Callable[["StageContext"], bool]


# -- values ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overview:
    """The whole slide as one image.

    rgb: (H, W, 3) uint8 at `mpp` µm/px; px without image have the colour of the nearest px with one.  jpeg: the
    thumbnail that the store keeps.  missing: (H, W) bool, px without image; None for a complete slide.  filled: those
    of them in tiles that are filled with black or white.
    """

    rgb: NDArray[np.uint8]
    mpp: float
    jpeg: bytes
    missing: NDArray[np.bool_] | None = None
    filled: NDArray[np.bool_] | None = None

    def background(self, tissue: Tissue) -> NDArray[np.bool_]:
        """Px that are neither tissue nor without image: (H, W) bool."""
        return ~tissue.mask if self.missing is None else ~tissue.mask & ~self.missing


@dataclass(frozen=True)
class TissueTiles:
    """Where the tissue is, and the tiles on it.

    grids: `tiles`, and one for each patch resolution that the bundle has a network for.  fractions: (n,) share of
    tissue of each tile of the grid `tiles`, 0–1; tissue outside the regions does not count.  region_mm2: area of tissue
    in the regions; None where the whole tissue is used.  missing: number of tiles on tissue that are left out because
    parts of them have no image.  pieces: of the whole tissue.
    """

    tissue: Tissue
    grids: Mapping[str, TileGrid]
    fractions: NDArray[np.float32]
    region_mm2: float | None = None
    missing: int = 0
    pieces: SlidePieces = field(default_factory=SlidePieces)

    @property
    def patient_rows(self) -> NDArray[np.int64]:
        """Rows of the grid `tiles` that count towards the slide's score, ascending."""
        n, counts = len(self.grids["tiles"].tiles), self.pieces.patient_tiles
        return np.arange(n) if counts is None else np.flatnonzero(counts)


@dataclass(frozen=True)
class StainFit:
    """The slide's own stain, and the marker that its colours suggest: `he` or `ihc`.

    cells: figures to which its cells are compared; None where cells are not measured.
    """

    stains: Stains
    marker: str
    cells: CellReference | None = None


@dataclass(frozen=True)
class TileColumns:
    """Columns that a stage computed from the tiles of a grid, in the order in which the tiles were read.

    tiles: (m,) int64, row of the grid that each value belongs to.  columns: name → (m, …).
    """

    tiles: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @staticmethod
    def join(parts: Sequence[TileColumns]) -> TileColumns:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        return TileColumns(np.concatenate([part.tiles for part in parts]), columns)

    @classmethod
    def of_batch(cls, rows: NDArray[np.int64], value: TileColumns | Mapping[str, NDArray[Any]]) -> TileColumns:
        """The columns that a stage gave for a batch, by tiles of the grid.  rows: (n,) of the batch's tiles."""
        return cls(rows[value.tiles], value.columns) if isinstance(value, TileColumns) else cls(rows, value)

    def column(self, name: str, width: int | None = None) -> NDArray[Any]:
        """A column as it was read, (m,) or (m, width); (0,) or (0, width) float16 where no tile was read."""
        return self.columns[name] if name in self.columns else np.empty((0,) if width is None else (0, width), "f2")

    def in_tile_order(self, name: str, n_tiles: int, width: int | None = None) -> NDArray[Any]:
        """A column that has one row for each of the grid's tiles, in their order: (n_tiles,) or (n_tiles, width)."""
        values: NDArray[Any] = self.column(name, width)[np.argsort(self.tiles, kind="stable")]
        assert len(values) == n_tiles, f"{name}: {len(values)} rows for {n_tiles} tiles"
        return values


@dataclass
class SlidePart:
    """Results of one call on a slide.

    values: what stages gave, by its name; of a stage over a grid the TileColumns of the tiles that the call read.
    seconds: of each stage.  seconds_total: of the call.  decoded_on_cpu: why the tiles were not decoded on the GPU on
    which they are measured, else empty.  smaller_batches: why networks got fewer tiles at once than the cohort records,
    else empty.
    """

    values: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_total: float = 0.0
    decoded_on_cpu: str = ""
    smaller_batches: str = ""

    @property
    def n_tiles(self) -> int:
        """Tiles that the call read."""
        return max((len(value.tiles) for value in self.values.values() if isinstance(value, TileColumns)), default=0)


@dataclass
class SlideState:
    """What is known of one slide.

    stain: of the labels.  regions: to which the tiles are restricted; None where the plan has none.  control_regions:
    annotated controls.  notes: flags that
    the reader of the slide file raises. A stage's result is the field that bears the name under which the stage gives
    it, or an entry of `others`.  row: columns of the slide's row.  tables: tables of the slide, by their names in the
    store.  seconds: of each stage.  sent: files that are in their places in the store already.
    decoded_on_cpu, smaller_batches: see SlidePart.
    """

    slide_id: str
    patient_id: str | None
    stain: str | None
    notes: tuple[str, ...] = ()
    row: Row = field(default_factory=dict)
    regions: SlideRegions | None = None
    control_regions: tuple[ControlRegion, ...] = ()
    overview: Overview = field(init=False, repr=False)
    tissue_tiles: TissueTiles = field(init=False, repr=False)
    quality: Quality = field(init=False, repr=False)
    stain_fit: StainFit = field(init=False, repr=False)
    measurements: TileColumns = field(default_factory=TileColumns)
    embeddings: TileColumns = field(default_factory=TileColumns)
    others: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_total: float = 0.0
    sent: Sequence[Row] = ()
    decoded_on_cpu: str = ""
    smaller_batches: str = ""

    def get(self, name: str) -> Any:
        """A value by its name. Raises KeyError or AttributeError where no stage has given it."""
        return getattr(self, name) if name in FIELDS else self.others[name]

    def put(self, name: str, value: Any) -> None:
        """Keep what a stage gave."""
        if name in FIELDS:
            setattr(self, name, value)
        else:
            self.others[name] = value

    def add(self, parts: Iterable[SlidePart]) -> None:
        """Keep what calls on the slide returned; tiles in the order of the calls."""
        values: dict[str, list[Any]] = {}
        for part in parts:
            self.decoded_on_cpu = self.decoded_on_cpu or part.decoded_on_cpu
            self.smaller_batches = self.smaller_batches or part.smaller_batches
            for name, seconds in part.seconds.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            for name, value in part.values.items():
                values.setdefault(name, []).append(value)
        for tables in values.pop("tables", []):
            self.add_tables(tables)
        for name, given in values.items():
            self.put(name, TileColumns.join(given) if isinstance(given[0], TileColumns) else given[-1])

    def add_tables(self, tables: Mapping[str, pa.Table]) -> None:
        """Keep tables of a stage; rows of a table that another stage has begun are appended."""
        for name, table in tables.items():
            self.tables[name] = pa.concat_tables([self.tables[name], table]) if name in self.tables else table


FIELDS = frozenset(each.name for each in fields(SlideState))


# -- stages ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageContext:
    """What a worker needs to make its stages.  dims: length of each encoder's embedding.

    used_encoders: encoders that the run will need, which are loaded at its start; None: all of the plan.
    tile_device: torch device on which tiles are measured; None: the CPU, by the reference in NumPy and OpenCV.
    batches: the cohort's record of how many tiles a network gets at once on a GPU.
    """

    plan: Plan
    bundle: Bundle | None = None
    weights: Path | None = None
    device: str = "cpu"
    dims: Mapping[str, int] = field(default_factory=dict)
    used_encoders: tuple[str, ...] | None = None
    tile_device: str | None = None
    batches: BatchSizes | None = None

    def patches_per_edge(self, name: str) -> int:
        """How many patches of an input begin within the edge of one; 1: they do not overlap."""
        entries = self.bundle.info.models if self.bundle is not None else ()
        return next((entry.per_edge or 1 for entry in entries if (entry.kind, entry.input) == ("patch", name)), 1)

    def has_network(self, kind: str, name: str | None = None) -> bool:
        """Whether the bundle has a network of a kind, and of an input if one is named."""
        models = self.bundle.info.models if self.bundle is not None else ()
        return any(entry.kind == kind and name in (None, entry.input) for entry in models)


def always(_: StageContext) -> bool:
    """A stage that every ingest runs."""
    return True


def never(_: StageContext) -> bool:
    """A stage that gains nothing from a GPU."""
    return False


def single_px(_: float) -> int:
    """A stage over blocks that may begin at any px."""
    return 1


@dataclass(frozen=True)
class Stage:
    """One step of the ingest.

    over: `slide`, the whole slide, before its tiles are read; `aside`, the whole slide too, but in parallel with its
    tiles; the name of a grid, whose tiles it gets batch by batch; or `results`, after all of these.
    takes, gives: names of values, see SlideState.  gives: `tables`, the stage's own tables by their names in the store;
    None: nothing but files.
    make: called once in each worker; returns the work, a function of the values of `takes`, by name, that returns the
    value of `gives`. Over a grid the work gets one TileBatch at a time; it returns a mapping of columns with one row a
    tile, or, for any number of rows a tile, a TileColumns whose `tiles` are positions in the batch.
    margin_um: None, or the margin with which a stage over a grid gets its tiles as blocks: the work gets a BlockImage,
    the SlideState and the grid's mpp, in the thread that decodes, and returns a TileColumns whose `tiles` are rows of
    the grid.  step: the corners of blocks are multiples of it, px, at a resolution in µm/px.
    tables: the tables of a stage over a grid, made from the slide's state once all tiles have been read.
    needed: whether an ingest with these settings runs the stage.  gpu: whether it uses one where there is one.
    measures: the stage reads `TileBatch.features`; the threads that decode for a GPU then compute them as well.
    """

    name: str
    over: str
    takes: tuple[str, ...]
    gives: str | None
    make: Callable[[StageContext], Work]
    tables: Callable[[StageContext, SlideState], Tables] | None = None
    needed: Condition = always
    gpu: Condition = never
    measures: bool = False
    margin_um: float | None = None
    step: Callable[[float], int] = single_px

    @property
    def over_grid(self) -> bool:
        """Whether the stage works on the tiles of a grid."""
        return self.over not in (WHOLE_SLIDE, ASIDE, RESULTS)

    @property
    def role(self) -> str:
        """Name of what one worker call runs: all stages of a grid, or this stage alone."""
        return self.over if self.over_grid else self.name


def check_stages(stages: Iterable[Stage]) -> None:
    """Refuse a list in which a stage takes what none before it gives. Raises ValueError.

    Only stages over results may take what stages aside or over a grid give: those run in parallel.
    """
    early, late = set(GIVEN), set(GIVEN_RESULTS)
    for stage in stages:
        known = early | late if stage.over == RESULTS else early
        if missing := set(stage.takes) - known:
            raise ValueError(f"stage {stage.name} needs {sorted(missing)}; nothing before it gives that")
        if stage.gives is not None:
            (early if stage.over == WHOLE_SLIDE else late).add(stage.gives)
