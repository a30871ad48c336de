"""The recipes of CONTRIBUTING.md: a copy of the package is changed as they say, and used from the command line."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

import her2batch
from her2batch.slides.slide import Slide
from tests.conftest import tissue_image
from tests.contract.reader_contract import SlideContract

PACKAGE = Path(her2batch.__file__).parent
PAGE = PACKAGE.parent / "CONTRIBUTING.md"

LONGEST = 25
"""Lines of a recipe: half a page."""


class Block(NamedTuple):
    """A block of code of a recipe: the file it belongs to, and its lines. kind: python, html or diff."""

    kind: str
    path: str
    lines: list[str]


def recipes() -> dict[str, str]:
    """What a recipe adds ('reader', 'stage', …) → its text."""
    parts = re.split(r"^### Add an? (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(recipe: str) -> Iterator[Block]:
    """Blocks of a recipe that change a file; a diff may change several, each named in a line that begins with #."""
    for kind, text in re.findall(r"^```(python|html|diff)\n(.*?)^```", recipe, flags=re.MULTILINE | re.DOTALL):
        files = re.split(r"^# (her2batch/\S+)\n", text, flags=re.MULTILINE)
        assert files[0] == "", f"no file is named: {text}"
        for path, lines in zip(files[1::2], files[2::2], strict=True):
            yield Block(kind, path, lines.splitlines())


def patched(lines: list[str], diff: list[str]) -> list[str]:
    """Lines of a file after a diff whose context is single lines, in their order in the file."""
    made, position = list(lines), 0
    for change in diff:
        if change[0] == "+":
            made.insert(position, change[1:])
            position += 1
        else:
            position = made.index(change[1:], position)
            if change[0] == "-":
                del made[position]
            else:
                position += 1
    return made


def follow(recipe: str, root: Path) -> None:
    for block in blocks(recipe):
        path = root / block.path
        if block.kind == "diff":
            lines = patched(path.read_text(encoding="utf-8").splitlines(), block.lines)
        else:
            assert not path.exists(), f"{block.path} is not new"
            lines = block.lines
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def imported(path: Path) -> ModuleType:
    """A module of the copy, beside the package that the tests use."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it is after all recipes."""
    root = tmp_path_factory.mktemp("recipes")
    shutil.copytree(PACKAGE, root / "her2batch", ignore=shutil.ignore_patterns("__pycache__"))
    for recipe in recipes().values():
        follow(recipe, root)
    return root


def run(root: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(root), "TMPDIR": str(root)}
    command = [sys.executable, "-m", "her2batch.cli", *words]
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def cohort(copy: Path) -> Path:
    """Some small slides, ingested with the reader, the encoder and the stage of the recipes."""
    (copy / "scans").mkdir()
    labels = ["slide_id,patient_id,her2"]
    for k in range(6):
        np.save(copy / "scans" / f"S{k}.npy", tissue_image(1400, 1200, seed=k, brown=0.4 * (k % 2)))
        labels.append(f"S{k},P{k},{'3+' if k % 2 else '0'}")
    (copy / "labels.csv").write_text("\n".join(labels))
    words = ["--reader", "numpy", "--mpp-override", "0.25", "--encoder", "colour", "--workers", "0"]
    run(copy, "ingest", "scans", "--out", "cohort", "--labels", "labels.csv", *words)
    return copy / "cohort"


@pytest.mark.parametrize("name", recipes())
def test_recipes_fit_half_a_page(name: str) -> None:
    lines = [line for line in recipes()[name].splitlines() if line.strip() and not line.startswith("```")]
    assert len(lines) <= LONGEST


@pytest.mark.slow
def test_reader_reads_the_slides(cohort: Path) -> None:
    rows = pq.read_table(cohort / "tables" / "slides").to_pylist()
    assert {row["reader"] for row in rows} == {"numpy"}
    assert all(row["status"] == "done" and row["n_tiles"] > 0 for row in rows)


class TestReader(SlideContract):
    """The reader of the recipe keeps the contract of all readers."""

    @pytest.fixture
    def slide(self, copy: Path, tmp_path: Path) -> Slide:
        np.save(tmp_path / "S.npy", tissue_image(700, 600))
        opened: Slide = imported(copy / "her2batch" / "slides" / "numpy_slide.py").NumpySlide(tmp_path / "S.npy")
        return opened


@pytest.mark.slow
def test_encoder_embeds_every_tile(cohort: Path) -> None:
    embeddings = pq.read_table(cohort / "tables" / "embeddings" / "colour")
    tiles = pq.read_table(cohort / "tables" / "tiles")
    assert embeddings.select(["slide_id", "tile"]) == tiles.select(["slide_id", "tile"])
    assert embeddings["embedding"].combine_chunks().type.list_size == 6


@pytest.mark.slow
def test_mil_method_is_trained_and_scores(copy: Path, cohort: Path) -> None:
    words = ["--method", "mean-pooling", "--input", "colour", "--task", "her2-binary", "--folds", "3", "--quick"]
    run(copy, "train", str(cohort), *words, "--workers", "0", "--out", "run")
    predictions = pq.read_table(copy / "run" / "predictions.parquet").to_pylist()
    assert {row["method"] for row in predictions} == {"mean-pooling"}
    assert len(predictions) == 6
    run(copy, "score", str(cohort), "--bundle", "run/bundle", "--workers", "0")
    (scored,) = [
        path for path in (cohort / "tables" / "predictions").iterdir() if path.name not in ("membrane", "cells")
    ]
    assert len(list(scored.iterdir())) == 6


@pytest.mark.slow
def test_stage_writes_its_table(cohort: Path) -> None:
    tiles = pq.read_table(cohort / "tables" / "tiles")
    brightness = pq.read_table(cohort / "tables" / "brightness")
    assert brightness.schema.names == ["slide_id", "tile", "grey"]
    assert brightness.select(["slide_id", "tile"]) == tiles.select(["slide_id", "tile"])
    assert 0 < min(brightness["grey"].to_pylist()) <= max(brightness["grey"].to_pylist()) < 255


@pytest.mark.slow
def test_report_has_the_section(copy: Path, cohort: Path) -> None:
    run(copy, "report", str(cohort), "--out", "report.html")
    html = (copy / "report.html").read_text(encoding="utf-8")
    assert 'id="tissue-area"' in html
    assert "Area of tissue of each slide." in html
    assert "slides.tissue_mm2" in html
