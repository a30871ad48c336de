"""An example of a nightly run's settings file, made from the settings themselves, so that it is never out of date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from her2batch.errors import InputError
from her2batch.job_settings import (
    DiskSettings,
    DriftSettings,
    NightlySettings,
    NotificationSettings,
    RetentionSettings,
    SendSettings,
    SentinelSettings,
)
from her2batch.settings import Plan, Resources, RunWindow

WIDTH: Final = 100
"""Longest line of a comment, characters."""

ACTIVE: Final = {"scans": "/scans", "cohort": "/data/cohort", "window.until": "06:00"}
"""Settings that the example gives; all others are comments with their default."""

EXAMPLES: Final = {
    "bundle": "/data/bundle",
    "calibration": "/data/calibration.toml",
    "labels": "/data/labels.csv",
    "regions": "/data/regions",
    "controls": "/data/controls.toml",
    "weights": "/data/weights",
    "pseudonymize": "/etc/her2batch/key",
    "start": "19:00",
    "window.urgent": "/scans/urgent",
    "plan.mpp_override": 0.25,
    "plan.precision": "bfloat16",
    "plan.mpp_force": 0.25,
    "resources.workers": 16,
    "resources.gpus": 1,
    "sentinels.folder": "/data/sentinels",
    "drift.site": "/scans/([^/]+)/",
    "retention.days": 90,
    "retention.gigabytes": 2000,
    "send.to": "mllp://lis.example.org:2575",
    "send.identities": "/lab/identities.csv",
    "hook.webhook": "https://hooks.example.org/her2batch",
    "hook.mail_to": ["pathology-it@example.org"],
    "hook.link": "https://her2.example.org",
    "hook.ping": "https://checks.example.org/her2batch",
    "hook.textfile": "/var/lib/prometheus/node-exporter/her2batch.prom",
}
"""Values of settings that have no default; a test fails where one is missing."""

SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "window": RunWindow,
    "plan": Plan,
    "resources": Resources,
    "sentinels": SentinelSettings,
    "drift": DriftSettings,
    "retention": RetentionSettings,
    "disk": DiskSettings,
    "send": SendSettings,
    "hook": NotificationSettings,
}

LEFT_OUT: Final = frozenset({"window.watch", "plan.bundle", "plan.controls"})
"""Fields that a settings file cannot usefully give."""


def write_example(path: Path) -> None:
    """Write the example. Raises InputError where a file is already there or the folder cannot be written to."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(example_settings())
    except FileExistsError as error:
        raise InputError("is there already", path, "give another name, or remove it") from error
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", path, "give another path") from error


def example_settings() -> str:
    """Return the example: TOML in which lines with # are defaults or examples."""
    lines = [
        "# Settings of a nightly run. Lines with # are defaults or examples: remove the # to change one.",
        "# Check the file: her2batch overnight --check FILE. Run a night: her2batch overnight FILE.",
        "# Passwords are given by the environment only: HER2BATCH_SMTP_USER, HER2BATCH_SMTP_PASSWORD, HF_TOKEN.",
        "",
        *_section_lines("", NightlySettings),
    ]
    for section, model in SECTIONS.items():
        active = section not in ("sentinels", "send")  # they cannot be empty
        lines += ["", f"[{section}]" if active else f"# [{section}]", *_section_lines(f"{section}.", model)]
    return "\n".join(lines) + "\n"


def _section_lines(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key in LEFT_OUT or (not prefix and name in SECTIONS):
            continue
        yield from (f"# {line}" for line in wrap(_sentence(field), WIDTH - 2))
        if key in ACTIVE:
            yield f"{name} = {_toml(ACTIVE[key])}"
        else:
            yield f"# {name} = {_toml(_value(key, field))}"


def _sentence(field: FieldInfo) -> str:
    text = (field.description or "").replace("SCANS", "`scans`").replace("--", "")
    return text if text.startswith(("µ", "http")) else text[:1].upper() + text[1:]


def _value(key: str, field: FieldInfo) -> Any:
    has_default = field.default is not None and field.default is not PydanticUndefined
    return EXAMPLES.get(key, field.default if has_default else None)


def _toml(value: Any) -> str:
    """Return a value as TOML; JSON has the same spelling of numbers, texts, booleans and lists."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
