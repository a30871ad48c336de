"""Everything that somebody gets out of a cohort, as files in a folder: what commands say and write, what a page asks.

A process of its own, so that what libraries complain of on stderr is not lost in pytest's:

    python -m tests.faults.output_search NAME COHORT OUT [COHORT OUT …]

NAME: of a slide at its source, which the server is asked for. Prints a JSON object a cohort: the exit code of each
command, and the answers of the server by their status.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.reports.report_data import load_report_data
from her2batch.reports.slide_page import write_slide_pages
from her2batch.store.cohort import Cohort
from her2batch.web.deepzoom import DeepZoom
from tests.web.served import TOKEN, application

API = "/api/v1"


def main() -> None:
    name, *places = sys.argv[1:]
    for cohort, out in zip(map(Path, places[::2]), map(Path, places[1::2]), strict=True):
        out.mkdir()
        codes = {" ".join(words): run_command(cohort, out, *words) for words in export_commands(out)}
        save_pages(cohort, out / "report_slides")
        answers = AnswerRecorder(cohort, out / "served").all(name)
        sys.stdout.write(json.dumps({"codes": codes, "answers": answers}) + "\n")


def export_commands(out: Path) -> list[tuple[str, ...]]:
    """Return the commands that print, report and export, with their options."""
    report = ("report", "--out", f"{out}/report.html", "--figures", f"{out}/figures")
    exports = [("export", "--to", to, "--out", f"{out}/{to}") for to in ("geojson", "clam-h5", "csv", "dicom")]
    exports[2] += ("--encoder", "stain")
    return [("status",), ("status", "--json"), ("status", "--follow"), report, *exports]


def run_command(cohort: Path, out: Path, name: str, *more: str) -> int:
    """Run a command and save its output under `said`. Returns the exit code."""
    said = CliRunner().invoke(app, [name, str(cohort), *more])
    words = f"{said.stdout}\n{said.stderr}\n{said.exception or ''}"
    with (out / f"{name}.said").open("a") as file:
        file.write(words)
    return int(getattr(said.exception, "exit_code", said.exit_code))


def save_pages(cohort: Path, out: Path) -> None:
    """Write one page per slide, as the report of a larger cohort does."""
    report_data = load_report_data(Cohort(cohort))
    shown = {row["slide_id"]: f"{out.name}/{row['slide_id']}.html" for row in report_data.done_rows}
    write_slide_pages(replace(report_data, page_links=shown, page_folder=out), out, "../report.html")


class AnswerRecorder:
    """Saves each response of the server to a file."""

    def __init__(self, cohort: Path, out: Path) -> None:
        out.mkdir()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self._client = TestClient(application(cohort), "http://127.0.0.1:8300", headers=headers)
        self._out, self._codes = out, Counter[int]()

    def all(self, name: str) -> Counter[int]:
        """Request every page, every list, everything of each slide, and a search by name. Returns status → count."""
        self._get("/")
        for rest in ("docs", "openapi.json", "cohort", "reviews", f"slides?q={name}", f"slides/{name}"):
            self._get(f"{API}/{rest}")
        for line in self._get(f"{API}/slides")["slides"]:
            self._slide(f"{API}/slides/{line['slide_id']}")
        return self._codes

    def _slide(self, address: str) -> None:
        found = self._get(address)
        for rest in ("tiles", "outline", "attention", "patches", "deepzoom.dzi", "thumbnail.jpg"):
            self._get(f"{address}/{rest}")
        if found["deepzoom"] is None:
            return
        zoom = DeepZoom(found["row"]["width"], found["row"]["height"], found["tile_size"])
        for level in range(zoom.max_level + 1):
            column, row = (edge // zoom.tile // 2 for edge in zoom.size(level))
            self._get(f"{address}/deepzoom_files/{level}/{column}_{row}.jpg")

    def _get(self, address: str) -> dict:
        answer = self._client.get(address)
        kind = answer.headers["content-type"].partition(";")[0].rpartition("/")[2].replace("jpeg", "jpg")
        number = f"{self._codes.total():04}"
        (self._out / f"{number}.{kind}").write_bytes(answer.content)
        (self._out / f"{number}.headers").write_text(str(answer.headers.multi_items()))
        self._codes[answer.status_code] += 1
        return answer.json() if kind == "json" else {}


if __name__ == "__main__":
    main()
