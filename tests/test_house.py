"""Rules about the code itself: sizes, packages, imports, and pages that are generated from it."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import her2batch
from her2batch.errors import REMEDIES
from her2batch.job_settings import (
    DiskSettings,
    DriftSettings,
    NightlySettings,
    NotificationSettings,
    RetentionSettings,
    SendSettings,
    SentinelSettings,
)
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Plan, Resources, RunWindow
from her2batch.training.methods import method_names

PACKAGE = Path(her2batch.__file__).parent
ROOT = PACKAGE.parent
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(path: Path) -> list[tuple[str, int]]:
    found = ast.walk(ast.parse(path.read_text()))
    return [(one.name, one.end_lineno - one.lineno + 1) for one in found if isinstance(one, ast.FunctionDef)]


def test_modules_stay_small() -> None:
    sizes = {path.relative_to(PACKAGE).as_posix(): lines(path) for path in MODULES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
    assert statistics.median(sizes.values()) < 200


def test_functions_fit_a_screen() -> None:
    found = [one for path in MODULES for one in functions(path)]
    long = [name for name, size in found if size > 60]
    assert len(long) <= 0.02 * len(found), long


def test_packages_have_at_most_twelve_modules() -> None:
    for room in [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]:
        assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 12, room


def test_init_files_of_packages_are_empty() -> None:
    rooms = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert [path for path in rooms if path.read_text()] == []


def test_every_module_has_a_test_file() -> None:
    for path in MODULES:
        if path.parent != PACKAGE:
            mirror = ROOT / "tests" / path.parent.relative_to(PACKAGE) / f"test_{path.name}"
            assert mirror.exists(), f"no {mirror.relative_to(ROOT)}"


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'ray', 'torch', 'cucim', 'sklearn', 'zarr', 'cv2', 'pyarrow'}"
    code = f"import sys, her2batch.cli.app; print(*{heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_ingest_reports_and_page_load_no_networks_and_no_zarr() -> None:
    """torch takes 2 s and 300 MB in every process, and cuCIM reads through a process of its own if torch came first;
    zarr brings CuPy along where cuCIM is installed, 160 MB."""
    modules = ("runtime.actor", "runtime.ingest", "reports.cohort_page", "reports.validation.validating", "web.app")
    imports = ", ".join(f"her2batch.{name}" for name in modules)
    code = f"import sys, {imports}; print({{'torch', 'zarr', 'cupy'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_only_the_store_names_its_folders() -> None:
    for path in MODULES:
        if path != PACKAGE / "store" / "cohort.py":
            found = re.findall(r'/ "(?:tables|pyramids|thumbnails|runs)"', path.read_text())
            assert found == [] or path.name in ("audit.py", "console.py", "console_training.py"), path


def test_every_plan_setting_changes_the_plan_id() -> None:
    changed = {
        "encoders": ("uni",), "mpp": 0.25, "tile": 256, "min_tissue": 0.5, "mpp_override": 0.25, "mpp_force": 0.25,
        "reader": "openslide", "jpeg_quality": 80, "lossless": True, "bundle": "abc",
        "controls": {"auto": True}, "include_regions": ("Tumor",), "exclude_regions": ("DCIS",), "cells": "off",
    }  # fmt: skip
    assert {*changed, "precision", "compile"} == Plan.model_fields.keys()
    for name, other in changed.items():
        assert Plan(**{name: other}).id != Plan().id
    deep = Plan(encoders=("uni",))  # a precision and a compilation concern networks
    assert len({deep.id, *(deep.model_copy(update={"precision": name}).id for name in ("float32", "bfloat16"))}) == 3
    assert deep.model_copy(update={"compile": True}).id != deep.id
    assert not Plan.model_fields.keys() & Resources.model_fields.keys()


def test_mpp_override_does_not_change_the_plan_of_slides_with_mpp() -> None:
    plan = Plan(mpp_override=0.25)
    assert plan.for_slide("file", 0.5).id == Plan().id
    assert plan.for_slide("override", 0.25).id == plan.for_slide(None, None).id == plan.id


def test_mpp_force_changes_the_plan_of_slides_with_another_mpp_only() -> None:
    plan = Plan(mpp_force=0.25, mpp_override=0.5)
    assert plan.for_slide("file", 0.25).id == Plan().id
    assert plan.for_slide("file", 1.0).id == plan.for_slide("override", 0.25).id == Plan(mpp_force=0.25).id
    assert plan.for_slide(None, None).id == Plan(mpp_force=0.25).id


def test_every_error_code_is_documented() -> None:
    handbook = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [code for code in REMEDIES if f"`{code}`" not in handbook] == []


def test_page_of_tables_is_up_to_date() -> None:
    from her2batch.store import schemas

    page = (ROOT / "docs" / "tables.md").read_text()
    assert page == schemas.tables_page()


def test_every_training_setting_is_documented() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    named = {name for model in (MilSettings, ImageSettings, CountsSettings) for name in model.model_fields}
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []
    assert [name for name in method_names() if f"`{name}`" not in page] == []


def test_every_nightly_setting_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    models = (
        NightlySettings,
        RunWindow,
        SentinelSettings,
        DriftSettings,
        RetentionSettings,
        DiskSettings,
        SendSettings,
        NotificationSettings,
        Resources,
    )
    named = {name for model in models for name in model.model_fields} | Plan.model_fields.keys() - {"bundle"}
    sections = {"plan", "resources", "window", "sentinels", "drift", "retention", "disk", "send", "hook"}
    assert [name for name in sorted(named - sections) if f"`{name}`" not in page] == []
    assert [name for name in sorted(sections) if f"`[{name}]`" not in page] == []
