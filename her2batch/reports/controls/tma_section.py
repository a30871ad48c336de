"""Report section: tissue microarrays, one score for each core, joined by case."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Final

import pyarrow as pa

from her2batch.reports.figures import Figure, plot_shares
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, SortableTable, render_template
from her2batch.store.cohort import Row
from her2batch.store.pieces.cores_table import read_cores
from her2batch.tasks import IHC_SCORES

SOURCE: Final = "cores.predicted"


def tma_section(data: ReportData) -> SectionContent | None:
    """Show the cases of microarrays with the scores of their cores, and the cores that are missing. None without."""
    try:
        cores = read_cores(data.cohort)
    except (OSError, pa.ArrowInvalid):
        return None
    cores = [core for core in cores if core["slide_id"] in data.rows]
    if not cores:
        return None
    missing = [core for core in cores if core["predicted"] is None]
    cases, absent = list_cases(cores), _list_missing(missing)
    figures = _shares_figure(cores)
    text = f"{len(cores) - len(missing)} of {len(cores)} cores are scored, of {len(cases.rows)} cases."
    html = render_template("tma.html", text=text, figures=figures, tables=(cases, absent))
    return SectionContent(html, figures, (cases, absent))


def list_cases(cores: list[Row]) -> SortableTable:
    """Return one row a case: its cores, their scores, and the highest class of any core."""
    of_case: dict[str, list[Row]] = defaultdict(list)
    for core in cores:
        of_case[core["case"]].append(core)
    rows: list[list[Any]] = []
    for case, own in sorted(of_case.items()):
        scored = [core for core in own if core["predicted"] is not None]
        highest = max((core["predicted"] for core in scored), key=IHC_SCORES.index, default=None)
        mean = sum(core["score"] for core in scored) / len(scored) if scored else None
        words = [f"{_place(core)}: {core['predicted'] or core['status']}" for core in own]
        rows.append([case, highest, mean, len(scored), len(own) - len(scored), words])
    return SortableTable(
        "tma-cases", "Cases of tissue microarrays",
        "Highest is the highest class of any core of the case, by the membrane rule. It is not a diagnosis.",
        (("case", "text", "cores.case"), ("highest", "class", SOURCE), ("mean score", "number", "cores.score"),
         ("cores", "number", "cores"), ("without score", "number", "cores.status"), ("each core", "words", SOURCE)),
        rows,
    )  # fmt: skip


def _list_missing(cores: list[Row]) -> SortableTable:
    words = {"missing": "no tissue at its place", "not-scored": "too little tissue, or another stain"}
    return SortableTable(
        "tma-missing", "Cores without a score", "Places of the map without tissue, and cores that could not be scored.",
        (("slide", "slide", "slides.slide_id"), ("row", "number", "cores.row"), ("column", "number", "cores.column"),
         ("case", "text", "cores.case"), ("reason", "text", "cores.status")),
        [[core["slide_id"], core["row"], core["column"], core["case"], words[core["status"]]] for core in cores],
    )  # fmt: skip


def _place(core: Row) -> str:
    return f"{core['slide_id']} row {core['row']} column {core['column']}"


def _shares_figure(cores: list[Row]) -> tuple[Figure, ...]:
    """Return one bar a slide: its cores by class. Nothing without a scored core."""
    counts = Counter((core["slide_id"], core["predicted"]) for core in cores if core["predicted"] is not None)
    slides = sorted({slide_id for slide_id, _ in counts})
    if not slides:
        return ()
    table = pa.Table.from_pylist(
        [{"group": one, "class": name, "n": counts[one, name]} for one in slides for name in IHC_SCORES]
    )
    title = "Cores of each microarray"
    return (Figure("tma-cores", title, SOURCE, plot_shares(title, table), table),)
