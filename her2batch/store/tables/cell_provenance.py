"""How the cells of a slide were found: kept in the metadata of the slide's file of the table cells."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from her2batch.vision.cells.detection import CellReference, Marker
from her2batch.vision.stain import Stains

KEY: Final = b"her2batch.cells"
"""Key of the metadata of the file."""

OWN: Final = "her2batch"
"""Source of cells that an ingest has measured."""


@dataclass(frozen=True)
class CellProvenance:
    """How the cells of a slide were found.

    source: `her2batch`, or the program that they are imported from.  marker: where DAB was looked for.  stain: `he` or
    `ihc`, as the colours suggest.  stains, reference: of the slide; None for imported cells.  tumour_marked: regions
    of a person, or the imported classes, state which cells are of the tumour.
    """

    source: str = OWN
    marker: Marker = "membrane"
    stain: str = "ihc"
    stains: Stains | None = None
    reference: CellReference | None = None
    tumour_marked: bool = False

    @classmethod
    def of(cls, table: pa.Table) -> CellProvenance:
        """Read it from a table. A file without it counts as one of an ingest of which nothing more is known."""
        text = (table.schema.metadata or {}).get(KEY)
        if text is None:
            return cls()
        values = json.loads(text)
        if values["stains"] is not None:
            stains: dict[str, Any] = values["stains"]
            lists = {name: tuple(value) for name, value in stains.items() if isinstance(value, list)}
            values["stains"] = Stains(**{**stains, **lists})
        if values["reference"] is not None:
            values["reference"] = CellReference(**values["reference"])
        return cls(**values)

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with this in its metadata."""
        reference = None if self.reference is None else self.reference._asdict()
        values = {**asdict(self), "reference": reference}
        return table.replace_schema_metadata({KEY: json.dumps(values, sort_keys=True)})

    @property
    def picture(self) -> dict[str, Any]:
        """What is known of the image, by which `scorability` decides whether it can be scored."""
        known: dict[str, Any] = {"stain": self.stain, "tumour_marked": self.tumour_marked}
        if self.reference is None:
            return known
        return {**known, "hue_spread": self.reference.hue_spread, "foreign": self.reference.foreign}
