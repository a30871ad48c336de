"""Encoders and MIL methods of other packages: found by entry point, refused with a reason, used by name."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from her2batch.errors import InputError, WeightsError
from her2batch.models import encoders, mil_registry
from her2batch.models.encoders import CustomEncoder, load_encoder, register_encoder
from her2batch.models.mil_registry import MilMethod, register_mil
from her2batch.plugins import Package, Registry, registered_rows, resolve, restore_rows
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Plan, Resources
from her2batch.synthetic.cohort import make_cohort
from her2batch.vision.membrane import TileBatch
from her2batch.vision.stain import Stains
from tests.conftest import MakeSlide
from tests.installed_package import install

EXAMPLE = Path(__file__).parent / "example_package"


class Row:
    """A row of the registry under test."""


def registry(group: str = "her2batch.test") -> Registry[Row]:
    return Registry("thing", group, (Row,), {"own": Row()}, reserved=("taken",))


def add_package(
    folder: Path, points: Mapping[str, str], name: str = "a-package", group: str = "her2batch.test"
) -> None:
    """Write the metadata of an installed package with these entry points."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path to install packages into."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_row_of_an_installed_package_is_found_by_name(site: Path) -> None:
    add_package(site, {"other": "tests.test_plugins:ROW"})
    rows = registry()
    assert rows.find("other") is ROW
    assert "other" in rows
    assert rows.names() == ("own", "other")
    assert rows.package_of("other") == Package("a-package", "1.0")
    assert rows.package_of("own") is rows.package_of("nothing") is rows.find("nothing") is None


ROW = Row()


def test_a_built_in_name_reads_no_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: str) -> None:
        raise AssertionError("metadata was read")

    monkeypatch.setattr("importlib.metadata.entry_points", fail)
    rows = registry()
    assert rows.find("own") is not None
    assert "own" in rows
    assert rows.package_of("own") is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:ROW", "ModuleNotFoundError"),
        ("tests.test_plugins:NOTHING", "AttributeError"),
        ("tests.test_plugins:EXAMPLE", "not a Row"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named_with_the_remedy(site: Path, target: str, reason: str) -> None:
    add_package(site, {"broken": target})
    rows = registry()
    assert "broken" in rows.names()
    with pytest.raises(InputError, match=r"thing 'broken' of package a-package 1\.0 cannot be loaded") as caught:
        rows.find("broken")
    assert reason in str(caught.value)
    assert "pip install --upgrade a-package" in str(caught.value)


@pytest.mark.parametrize("name", ["own", "taken"])
def test_a_package_cannot_replace_a_built_in_name(site: Path, name: str) -> None:
    add_package(site, {name: "tests.test_plugins:ROW"})
    rows = registry()
    with pytest.raises(InputError, match=rf"package a-package 1\.0 adds the thing '{name}': her2batch itself uses"):
        rows.names()
    assert rows.find("own") is not ROW


def test_a_name_that_two_packages_add_is_refused(site: Path) -> None:
    add_package(site, {"other": "tests.test_plugins:ROW"}, "first")
    add_package(site, {"other": "tests.test_plugins:ROW"}, "second")
    with pytest.raises(InputError, match="both add the thing 'other'; uninstall one of them"):
        registry().find("other")


@pytest.mark.parametrize("name", ["own", "taken", "Upper", "a b", "timm:x", "", "../x", "a" * 65])
def test_a_name_that_is_taken_or_not_valid_cannot_be_registered(name: str) -> None:
    rows = registry()
    with pytest.raises(InputError, match="cannot be registered"):
        rows.register(name, ROW)


def test_a_name_of_an_installed_package_cannot_be_registered(site: Path) -> None:
    add_package(site, {"other": "tests.test_plugins:ROW"})
    with pytest.raises(InputError, match="package a-package adds one of this name"):
        registry().register("other", ROW)


def test_registered_rows_can_be_restored_in_another_process() -> None:
    rows = registry("her2batch.restored")
    rows.register("other", ROW)
    sent = registered_rows()
    assert sent["her2batch.restored"] == {"other": ROW}
    rows.unregister("other")
    assert rows.find("other") is None
    restore_rows(sent)
    assert rows.find("other") is ROW
    assert rows.package_of("other") is None
    rows.unregister("other")


def test_a_text_is_resolved_when_it_is_used() -> None:
    assert resolve("tests.test_plugins:ROW") is ROW
    assert resolve(ROW) is ROW


# -- rows that a program registers -------------------------------------------------------------------------------


def load_brightness(device: str, weights: Path | None) -> Callable[[TileBatch], np.ndarray]:
    return lambda batch: batch.pixels.reshape(len(batch.pixels), -1).mean(axis=1, keepdims=True, dtype=np.float32)


def load_wrong_shape(device: str, weights: Path | None) -> Callable[[TileBatch], np.ndarray]:
    return lambda batch: np.zeros((len(batch.pixels), 2), np.float32)


@pytest.fixture
def registered() -> Iterator[None]:
    register_encoder("brightness", CustomEncoder(1, load_brightness, "none needed"))
    register_mil("toy", MilMethod("no_package:build"))
    yield
    encoders._registry.unregister("brightness")
    mil_registry._registry.unregister("toy")


@pytest.mark.usefixtures("registered")
@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_a_registered_encoder_reaches_every_worker(
    workers: int, make_slide: MakeSlide, tmp_path: Path, ray_session: RaySession
) -> None:
    scans = make_slide().parent
    summary = ingest(
        IngestRequest(scans, tmp_path / "cohort"), Plan(encoders=("brightness",)), Resources(workers=workers)
    )
    assert summary.exit_code == 0
    table = pq.read_table(next((tmp_path / "cohort" / "tables" / "embeddings" / "brightness").glob("*.parquet")))
    values = np.array(table["embedding"].to_pylist())
    assert values.shape[1] == 1
    assert ((values > 50) & (values < 255)).all()


def is_known(name: str, _: str) -> bool:
    return mil_registry.is_mil_method(name)


@pytest.mark.usefixtures("registered")
@pytest.mark.slow
def test_a_registered_method_reaches_every_worker(ray_session: RaySession) -> None:
    assert list(map_unordered(ray_session, is_known, ["toy"])) == [("toy", True)]


def test_an_encoder_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "broken", CustomEncoder(1, "no_package:load", "none needed"))
    with pytest.raises(WeightsError, match=r"encoder broken cannot be loaded \(ModuleNotFoundError"):
        load_encoder("broken")
    monkeypatch.setitem(encoders.ENCODERS, "broken", CustomEncoder(1, load_wrong_shape, "none needed"))
    batch = TileBatch(np.zeros((3, 8, 8, 3), np.uint8), 0.5, Stains())
    with pytest.raises(WeightsError, match=r"array of shape \(3, 2\) for 3 tiles; its shape must be \(3, 1\)"):
        load_encoder("broken")(batch)


# -- the example package -----------------------------------------------------------------------------------------


def run(*arguments: str | Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, with the example package if `site` is its folder."""
    paths = [str(EXAMPLE.parents[1]), *([str(site)] if site is not None else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "her2batch.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_encoder_and_a_method_of_an_installed_package_work_by_name(tmp_path: Path) -> None:
    site = install(EXAMPLE, tmp_path / "site")
    slides = make_cohort(tmp_path / "made", 6, seed=3, size=(1300, 1100), workers=1) / "slides"
    cohort, out, labels = tmp_path / "cohort", tmp_path / "run", tmp_path / "labels.csv"
    rows = [f"{path.stem},P{k},{('0', '3+')[k % 2]}" for k, path in enumerate(sorted(slides.iterdir()))]
    labels.write_text("\n".join(["slide_id,patient_id,her2", *rows]))

    ingest = run("ingest", slides, "--out", cohort, "--encoder", "colour", "--workers", "0", site=site)
    assert ingest.returncode == 0, ingest.stderr
    table = pq.read_table(next((cohort / "tables" / "embeddings" / "colour").glob("*.parquet")))
    assert table.schema.field("embedding").type.list_size == 6

    options = ("--method", "mean-pool", "--method", "abmil", "--input", "colour", "--task", "her2-binary",
               "--folds", "3", "--option", "epochs=4", "--option", "hidden=5",
               "--workers", "0", "--out", out)  # fmt: skip
    train = run("train", cohort, "--labels", labels, *options, site=site)
    assert train.returncode == 0, train.stderr
    bundle = tomllib.loads((out / "bundle" / "bundle.toml").read_text())
    assert bundle["packages"] == [
        {"adds": "encoder", "name": "colour", "package": "her2batch-example", "version": "1.2.0"},
        {"adds": "mil", "name": "abmil", "package": "her2batch-example", "version": "1.2.0"},
        {"adds": "mil", "name": "mean-pool", "package": "her2batch-example", "version": "1.2.0"},
    ]
    assert bundle["models"][0]["settings"] == {"hidden": 5}
    assert bundle["models"][0]["dim"] == 6
    assert bundle["licence"] == "colour: Apache-2.0"

    score = run("score", cohort, "--bundle", out / "bundle", "--workers", "0", "--json", site=site)
    assert score.returncode == 0, score.stderr
    assert json.loads(score.stdout)["scored"] == 6
    predictions = pq.read_table(cohort / "tables" / "predictions" / json.loads(score.stdout)["bundle"])
    assert set(predictions["method"].to_pylist()) == {"mean-pool", "abmil"}

    without = run("score", cohort, "--bundle", out / "bundle", "--workers", "0")
    assert without.returncode == 2
    assert "her2batch-example 1.2.0, which is not installed" in without.stderr
    assert "pip install her2batch-example==1.2.0" in without.stderr
