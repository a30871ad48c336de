"""What a user asks an ingest for, apart from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from her2batch.exchange.controls.control_file import control_folder
from her2batch.exchange.controls.tma_map import ArrayMap, read_array_map


@dataclass(frozen=True)
class IngestRequest:
    """What the user asks for, apart from the plan.

    scans: the scan folder.  out: the cohort.  bundle, labels, weights: files to use.  key: of the pseudonyms.
    only: process no slide of the scan folder but the one that this file belongs to.  replan: process finished slides
    again if the plan has changed; see `settle_plan`, also for exact_plan.  columns: of the labels, name → header.
    regions: folder of QuPath regions to which the tiles are restricted.  controls: `auto` or a file of controls.
    tma: map of tissue microarrays.
    calibration: file to predict with.
    """

    scans: Path
    out: Path
    bundle: Path | None = None
    labels: Path | None = None
    weights: Path | None = None
    key: Path | None = None
    retry_failed: bool = False
    only: Path | None = None
    replan: bool = False
    exact_plan: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    regions: Path | None = None
    controls: str | None = None
    tma: Path | None = None
    calibration: Path | None = None

    @property
    def array_map(self) -> ArrayMap | None:
        """Map of tissue microarrays; None without. Raises InputError for a file that cannot be used."""
        return read_array_map(self.tma) if self.tma is not None else None

    @property
    def control_folder(self) -> Path | None:
        """Folder of annotated controls; None without. Raises InputError for a file that cannot be used."""
        return control_folder(self.controls)
