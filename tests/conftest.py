"""Shared fixtures: test data, small slides, one Ray session per process, and an ingested synthetic cohort."""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import hypothesis
import numpy as np
import pytest
import tifffile

from her2batch.errors import InputError
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Plan, Resources
from her2batch.slides.cucim.loading import load_cucim
from her2batch.synthetic.cohort import make_cohort

with contextlib.suppress(InputError):
    load_cucim()  # after torch, which some tests import, it reads through a process of its own

from tests.nightly.scanner import NightRun, run_night
from tests.session_cleanup import SessionCleanup
from tests.shared_folders import folder_of_all_workers, make_once
from tests.stand_ins import make_stand_ins

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode, each of hundreds of processes compiles the package
sys.dont_write_bytecode = False
cv2.setNumThreads(1)
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # 1.5 s of CPU less per start of Ray
hypothesis.settings.register_profile("patient", deadline=None)  # how long an example takes is the machine's affair
hypothesis.settings.load_profile("patient")

MakeSlide = Callable[..., Path]

LONGEST_FILES = (
    "tests/faults/test_kills.py",
    "tests/experiments/test_train.py",
    "tests/cli/test_demo.py",
    "tests/runtime/test_score.py",
    "tests/test_jobs.py",
    "tests/runtime/test_ingest.py",
    "tests/faults/test_disk.py",
    "tests/exchange/test_incoming.py",
    "tests/runtime/test_scheduler.py",
    "tests/nightly/test_overnight.py",
    "tests/faults/test_privacy.py",
    "tests/test_object_store.py",
    "tests/experiments/test_tune.py",
    "tests/vision/test_membrane.py",
    "tests/test_plugins.py",
    "tests/slides/test_openslide.py",
    "tests/web/test_browser.py",
    "tests/faults/test_concurrency.py",
    "tests/runtime/stress/test_running.py",
    "tests/reports/test_browser.py",
    "tests/runtime/test_ray_session.py",
    "tests/runtime/test_watch.py",
    "tests/vision/test_laboratories.py",
    "tests/runtime/test_serve.py",
    "tests/slides/test_tiff_slide.py",
    "tests/web/test_proxy.py",
    "tests/experiments/test_reproduce.py",
    "tests/pipeline/growth/test_added_encoders.py",
    "tests/training/test_fit_mil.py",
    "tests/faults/test_malicious_slides.py",
    "tests/vision/test_tissue.py",
    "tests/exchange/lis/test_outbox.py",
    "tests/synthetic/test_cohort.py",
    "tests/api/test_cohort_reader.py",
    "tests/faults/test_logs.py",
    "tests/test_contributing.py",
    "tests/synthetic/test_specimen.py",
    "tests/training/test_fit_image.py",
)
"""Test files that take longest, in the order in which worker processes get them; short ones fill gaps at the end."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that leads the run
        config.pluginmanager.register(SessionCleanup())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: k for k, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of real slides, which are not part of the project; stand-ins of the same names where there is none.

    The environment variable HER2BATCH_TEST_DATA names the folder; the value `stand-ins` asks for stand-ins.
    """
    asked = os.environ.get("HER2BATCH_TEST_DATA")
    beside = Path(__file__).parents[2] / "shared" / "data"
    if asked == "stand-ins" or (asked is None and not beside.is_dir()):
        return make_once(folder_of_all_workers(tmp_path_factory) / "stand-ins", make_stand_ins)
    folder = beside if asked is None else Path(asked)
    assert folder.is_dir(), f"HER2BATCH_TEST_DATA names no folder: {folder}"
    return folder


@pytest.fixture(scope="session")
def cores(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """HER2 cores as slides: '0', '1+', '3+' → the middle of a core, 2000 × 1600 px, 0.25 µm/px, three levels."""
    folder = tmp_path_factory.mktemp("cores")
    made = {}
    for jpg in sorted((real_data / "her2_cores").glob("[013]_*.jpg")):
        rgb = cv2.cvtColor(cv2.imread(str(jpg)), cv2.COLOR_BGR2RGB)[1800:3400, 1200:3200]
        score = {"0": "0", "1": "1+", "3": "3+"}[jpg.name[0]]
        made[score] = write_slide(folder / f"core-{jpg.name[0]}.tiff", rgb, levels=3)
    return made


@pytest.fixture(scope="session")
def ray_session() -> Iterator[RaySession]:
    """One Ray session for all tests of a process; `connect` uses it."""
    with connect(Resources(workers=2, gpus=4)) as session:
        yield session


def write_slide(
    path: Path | BinaryIO, rgb: np.ndarray, mpp: float | None = 0.25, tile: int = 256, levels: int = 1
) -> Path | BinaryIO:
    """Write an image (H, W, 3) uint8 as a tiled JPEG TIFF and return `path`; without mpp no resolution is written."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for k in range(levels):
            small = cv2.resize(rgb, None, fx=0.5**k, fy=0.5**k, interpolation=cv2.INTER_AREA) if k else rgb
            tiff.write(
                small, tile=(tile, tile), photometric="rgb", compression="jpeg", compressionargs={"level": 90},
                subsampling=(2, 2), metadata=None, subfiletype=int(k > 0), **resolution,
            )  # fmt: skip
    return path


def tissue_image(width: int, height: int, seed: int = 0, brown: float = 0.0) -> np.ndarray:
    """Return a round piece of tissue on glass, (height, width, 3) uint8. brown: DAB density of its membranes."""
    return _tissue_image(width, height, seed, brown).copy()


@lru_cache(maxsize=16)
def _tissue_image(width: int, height: int, seed: int, brown: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = (x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 < 0.16
    pitch = 44.0  # px: 11 µm at 0.25 µm/px
    dx, dy = x[inside] % pitch - pitch / 2, y[inside] % pitch - pitch / 2
    noise = rng.normal(0, 0.02, (height, width)).astype(np.float32)[inside]
    od = (0.06 + 0.5 * np.exp(-((dx**2 + dy**2) / (2 * 8.0**2))) + noise)[:, None] * np.array([0.650, 0.704, 0.286])
    if brown:
        rim = np.minimum(pitch / 2 - np.abs(dx), pitch / 2 - np.abs(dy))
        membranes = np.float32(1) * brown * np.exp(-(rim**2) / (2 * 2.0**2))
        od += membranes[:, None] * np.array([0.269, 0.568, 0.778])
    light = np.full((height, width, 3), 240.0)
    light[inside] = np.float32(240) * 10**-od
    light += rng.normal(0, 1, light.shape)
    return np.clip(light, 0, 255, out=light).astype(np.uint8)


@lru_cache(maxsize=256)
def _slide_bytes(size: tuple[int, int], seed: int, brown: float, more: tuple[tuple[str, object], ...]) -> bytes:
    """A slide file of `tissue_image`: many tests ask for the same one, and drawing it takes longer than its ingest."""
    file = io.BytesIO()
    write_slide(file, _tissue_image(*size, seed, brown), **dict(more))
    return file.getvalue()


@pytest.fixture
def make_slide(tmp_path: Path) -> MakeSlide:
    """make_slide('a.tiff', size=(900, 700), seed=1) writes a small slide with tissue into the folder `scans`."""

    def make(
        name: str = "a.tiff", size: tuple[int, int] = (1400, 1200), seed: int = 0, brown: float = 0.0, **more: object
    ) -> Path:
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_slide_bytes(size, seed, brown, tuple(sorted(more.items()))))
        return path

    return make


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of a small timm network, for the encoder timm:test_vit."""
    import safetensors.torch
    import timm

    folder = tmp_path_factory.mktemp("weights")
    net = timm.create_model("test_vit", pretrained=False, num_classes=0)
    safetensors.torch.save_file(net.state_dict(), folder / "test_vit.safetensors")
    return folder


class Synthetic(NamedTuple):
    """A synthetic cohort: scans, labels, annotations, and the ingested cohort."""

    scans: Path
    labels: Path
    annotations: Path
    cohort: Path


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synthetic]:
    """24 small slides of fourteen patients, ingested once. Tests must copy the cohort to change it."""
    folder = make_once(folder_of_all_workers(tmp_path_factory) / "synthetic", _make_synthetic)
    cohort = tmp_path_factory.mktemp("synthetic") / "cohort"
    shutil.copytree(folder / "cohort", cohort, copy_function=os.link)  # the store replaces files, and never writes
    made = folder / "made"  # into them: workers can share their content
    tables = {path.relative_to(cohort) for path in cohort.glob("tables/**/*.parquet")}
    yield Synthetic(made / "slides", made / "labels.csv", made / "annotations", cohort)
    left = {path.relative_to(cohort) for path in cohort.glob("tables/**/*.parquet")}
    changed = sorted(str(path.parent) for path in tables ^ left if path.parts[1] != "runs")
    assert not changed, f"a test has changed the cohort that all tests share: {changed[:3]}"


def _make_synthetic(folder: Path) -> None:
    made = make_cohort(folder / "made", 24, seed=3, size=(1700, 1400), workers=1)
    request = IngestRequest(made / "slides", folder / "cohort", labels=made / "labels.csv")
    assert ingest(request, Plan(), Resources(workers=0)).exit_code == 0


@pytest.fixture(scope="session")
def quiet_night(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> NightRun:
    """A nightly run in miniature without any fault. Tests must not change it."""
    from tests.models.bundles import untrained

    folder = tmp_path_factory.mktemp("night")
    bundle = untrained(folder / "bundle")
    top = f'labels = "{synthetic.labels}"\nbundle = "{bundle.path}"\nplan.cells = "off"'
    return run_night(folder, sorted(synthetic.scans.iterdir()), bundle.id, top)
