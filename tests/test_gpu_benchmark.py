"""The GPU benchmark: its dry run on the CPU, and the figures that it puts into the documents."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_report

    return gpu_report


def row(key: str, value: float | None, ratio: float | None = None, note: str = "") -> dict:
    return {"key": key, "what": key, "value": value, "unit": "tiles/s", "ratio": ratio, "baseline": "b", "note": note}


def figures(*rows: dict, dry_run: bool = False) -> dict:
    machine = {"gpu": "NVIDIA H200", "cores": 16, "versions": {"torch": "2.14"}}
    return {"dry_run": dry_run, "date": "2026-01-01 00:00 UTC", "machine": machine, "rows": list(rows)}


@pytest.mark.parametrize("page", ["performance.md", "sizing.md"])
def test_gpu_figures_of_the_documents_are_those_of_the_stored_file(report: ModuleType, page: str) -> None:
    """Write them with `python benchmarks/gpu_report.py docs`."""
    text = (ROOT / "docs" / page).read_text()
    assert len(report.MARKED.findall(text)) == text.count("<!-- gpu: ") > 0
    assert report.fill(text, report.read_figures(BENCHMARKS / "gpu.json")) == text


def test_figures_without_a_file_are_estimated_or_not_measured(report: ModuleType) -> None:
    texts = report.parts(None)
    assert texts["summary"] == "not measured"
    assert "estimated" in texts["embeds"]
    assert "estimated" in texts["source"]


def test_measured_figures_replace_the_estimates(report: ModuleType) -> None:
    texts = report.parts(figures(row("network.uni.feed", 3000.0, 0.9), row("ingest.tiles", 2500.0)))
    assert texts["cost"] == "3,000 tiles/s"
    assert texts["summary"] == "2,500 tiles/s with UNI's network on one NVIDIA H200"
    assert "measured on one NVIDIA H200" in texts["source"]
    assert "estimated" not in "".join(texts.values())


def test_step_that_failed_keeps_its_rows_and_the_rest_says_why(report: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "gpu_decode.json").write_text(json.dumps([row("decode.jpeg.cores", 1e9)]))
    found = {one["key"]: one for one in report.join(tmp_path, False, {"gpu_decode": 124, "gpu_kill": 1})["rows"]}
    assert found["decode.jpeg.cores"]["value"] == 1e9
    assert found["decode.jpeg.cucim"]["note"] == "its time limit ended the step"
    assert found["kill.seconds"]["note"] == "the step ended with code 1, see gpu_kill.log"
    assert found["networks.three"]["note"] == "no result"


def test_table_names_what_was_not_measured_and_why(report: ModuleType) -> None:
    text = report.table(figures(row("a", 2.5e9, 1.5), row("b", None, note="no cuCIM")))
    assert "| a | 2,500 million tiles/s | 1.50 × b |  |" in text
    assert "| b | not measured: no cuCIM |  |  |" in text


def test_dry_run_is_no_source_of_figures(report: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(figures(dry_run=True)))
    with pytest.raises(SystemExit, match="dry run"):
        report.read_figures(tmp_path / "gpu.json")


@pytest.mark.long
@pytest.mark.timeout(1900)
def test_dry_run_on_the_cpu_fills_the_table(tmp_path: Path) -> None:
    """Every figure that needs no GPU is measured on tiny sizes."""
    command = ["bash", BENCHMARKS / "on_gpu.sh", "--cpu", "--out", tmp_path / "out", "--scratch", tmp_path / "scratch"]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    run = subprocess.run(
        command, env={"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    missing = {one["key"]: one["note"] for one in found["rows"] if one["value"] is None}
    on_a_gpu_alone = {"ingest.busy", "ingest.memory", "network.uni.graphs", "network.convnext-small.graphs"}
    on_a_gpu_alone |= {f"network.{one}.memory" for one in ("uni", "uni2-h", "convnext-small")}
    not_in_the_engine = {"ingest.shared-batch"}
    assert missing.keys() == on_a_gpu_alone | not_in_the_engine, missing
    assert found["dry_run"]
    assert "Dry run on the CPU" in (tmp_path / "out" / "gpu.md").read_text()
