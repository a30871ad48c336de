"""Metrics of the last night as a file for the textfile collector of Prometheus' node_exporter."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.nightly.messages import went_well
from her2batch.nightly.summary import NightSummary

GAUGES: Final = {
    "fresh": "slides that the night finished, done or failed",
    "seen": "files in the scan folder",
    "done": "slides that are done",
    "failed": "slides that failed",
    "deferred": "slides that were left to the next night",
    "duplicate": "copies of other slides",
    "ignored": "files that are no slides",
    "not_scored": "slides that the bundle could not score",
    "calibrated": "slides that the calibration predicted",
    "not_calibrated": "slides that the calibration could not predict",
    "outside_calibration": "slides that the calibration does not apply to: another scanner, drift",
    "calibrations_failed": "1 if the calibration that the settings name could not be used",
    "review": "new slides that a pathologist has to look at",
    "conflicts": "patients with conflicting results",
    "alarms": "drift alarms",
    "seconds": "duration of the night in seconds",
    "store_bytes": "bytes of the cohort",
    "free_bytes": "free bytes of the cohort's disk",
    "disk_low": "1 if less space is free than [disk] warn_gigabytes",
    "held": "1 if the results are held back",
    "exit_code": "exit code of the night",
}
"""Field of the summary → help text of the metric her2batch_night_FIELD."""


def check_textfile(path: str | None) -> None:
    """Check the setting hook.textfile. Raises InputError."""
    if path is None:
        return
    if not path.endswith(".prom"):
        raise InputError("hook.textfile: node_exporter reads files that end with .prom", path, "give NAME.prom")
    if not Path(path).parent.is_dir():
        remedy = "create it, and start node_exporter with --collector.textfile.directory"
        raise InputError("hook.textfile: there is no such folder", Path(path).parent, remedy)


def textfile(night: NightSummary) -> str:
    """Return the metrics of a night in Prometheus' text format."""
    values = night.to_dict()
    lines = []
    for name, help_text in GAUGES.items():
        if values[name] is not None:
            lines += _gauge(name, help_text, float(values[name]))
    ended = datetime.fromisoformat(night.ended or night.started).timestamp()
    lines += _gauge("end_time_seconds", "when the last night ended, Unix time", ended)
    lines += _gauge("ended_well", "1 if the last night ended by itself and its results may be used", went_well(night))
    lines += ["# HELP her2batch_night_failures failed slides by error code", "# TYPE her2batch_night_failures gauge"]
    lines += [f'her2batch_night_failures{{code="{code}"}} {count}' for code, count in night.failures.items()]
    return "\n".join(lines) + "\n"


def _gauge(name: str, help_text: str, value: float) -> list[str]:
    metric = f"her2batch_night_{name}"
    return [f"# HELP {metric} {help_text}", f"# TYPE {metric} gauge", f"{metric} {value:.10g}"]


def write_textfile(path: Path, night: NightSummary) -> None:
    """Replace the file in one step, readable by node_exporter. Raises OSError."""
    with atomic_write(path) as part:
        part.write_text(textfile(night), "utf-8")
        part.chmod(0o644)
