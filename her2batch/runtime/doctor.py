"""What this machine can do, line by line, with the remedy where it can't. Asks no network and changes nothing.

Each check imports what it asks about, so that one missing library is a line and not the end.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from her2batch.errors import WeightsError, one_line
from her2batch.pipeline.cost_model import CPU_TILES_S, cores

LEAST_MEMORY = 4_000_000_000
"""Bytes a worker may need (settings.Resources.worker_memory)."""

LEAST_DISK = 20_000_000_000
"""Free bytes below which a night of slides can fill the disk: a slide's pyramid takes up to 1 GB."""

OPENSLIDE = (4, 0, 1)
"""Older ones write memory on a crafted BIF file and hand out uninitialised pixels with libtiff 4.7.1."""

MEASURE_S = 0.2

SLIDE_PX = 23_218 * 20_529
SLIDE_TILES = SLIDE_PX * (0.23 / 0.5 / 224) ** 2
"""The paper's mean slide: tissue box in px at 0.23 µm/px, and its tiles of 224 px at 0.5 µm/px."""

NIGHT_S = 12 * 3600


@dataclass(frozen=True)
class Line:
    """One thing looked at. ok: True, False, or None where it is no matter of right or wrong."""

    name: str
    ok: bool | None
    what: str
    remedy: str = ""


def examine(cohort_dir: Path | None = None) -> list[Line]:
    """Everything `her2batch doctor` says. cohort_dir: whose disk is looked at; default: the working folder's."""
    return [
        _python(),
        *_packages(),
        _torchvision(),
        *_cores_and_gpus(),
        _openslide(),
        _cucim(),
        _memory(),
        _disk(cohort_dir or Path()),
        *_speed(),
        *_encoders(),
    ]


def _python() -> Line:
    return Line("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Line]:
    for name in ("her2batch", "ray", "torch", "timm", "numpy", "pyarrow", "zarr"):
        try:
            yield Line(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Line(name, False, "is not installed", f"pip install {name}")


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a library it links against is missing
        return None


def _torchvision() -> Line:
    problem = torchvision_problem()
    if problem is not None:
        return Line("torchvision", False, *problem)
    return Line("torchvision", True, f"{importlib.metadata.version('torchvision')}, belongs to this torch")


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


def _cores_and_gpus() -> Iterator[Line]:
    torch = _optional("torch")
    gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    if not gpus:
        yield Line("cores", True, f"{cores()}: as many workers, each reads, decodes, embeds and writes its own slides")
        remedy = "for the large encoders use a machine with an NVIDIA GPU and its driver; `stain` needs none"
        yield Line("GPU", None, "none that torch sees", remedy)
        return
    assert torch is not None
    yield Line("cores", True, f"{cores()}: they decode for the model actors on {gpus} GPUs")
    for k in range(gpus):
        about = torch.cuda.get_device_properties(k)
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float32, for it lacks bfloat16"
        yield Line(f"GPU {k}", True, f"{about.name}, {about.total_memory / 1e9:.0f} GB, {half}")


def _openslide() -> Line:
    module = _optional("openslide")
    remedy = "pip install -U openslide-bin openslide-python"
    if module is None:
        return Line("OpenSlide", False, "can't be loaded: NDPI, MRXS, BIF and DICOM slides will fail", remedy)
    version = str(module.__library_version__)
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    wanted = ".".join(str(part) for part in OPENSLIDE)
    if numbers < OPENSLIDE:
        return Line("OpenSlide", False, f"{version}; {wanted} closed holes that a crafted file can use", remedy)
    return Line("OpenSlide", True, version)


def _cucim() -> Line:
    """Whether it is there, without importing it: that takes 500 MB on every GPU in sight."""
    try:
        version = next(
            dist.version for dist in importlib.metadata.distributions() if dist.name.lower().startswith("cucim")
        )
    except StopIteration:
        return Line("cuCIM", None, "is not installed; TIFF slides are decoded on the CPU", "pip install cucim-cu13")
    torch = _optional("torch")
    where = "GPU" if torch is not None and torch.cuda.is_available() else "CPU only; the default reader is faster there"
    return Line("cuCIM", True, f"{version}, {where}")


def _memory() -> Line:
    psutil = _optional("psutil")
    if psutil is None:
        return Line("memory", False, "can't be read", "pip install psutil")
    free = psutil.virtual_memory().available
    enough = free >= LEAST_MEMORY
    what = f"{free / 1e9:.0f} GB free, {free / 1e9 / cores():.1f} GB a worker"
    return Line("memory", enough, what, "" if enough else "close other programs, or run with fewer --workers")


def _disk(folder: Path) -> Line:
    place = folder.absolute()
    there = next(one for one in (place, *place.parents) if one.exists())
    free = shutil.disk_usage(there).free
    enough = free >= LEAST_DISK
    return Line(
        "disk", enough, f"{free / 1e9:.0f} GB free at {there}", "" if enough else "choose --out on a larger disk"
    )


def _speed() -> Iterator[Line]:
    rate = _decode_rate()
    if rate is None:
        yield Line("JPEG decode", False, "simplejpeg can't be loaded", "pip install simplejpeg")
        return
    yield Line("JPEG decode", True, f"{rate / 1e6:.0f} million px/s a core")
    seconds = SLIDE_PX / rate + SLIDE_TILES / CPU_TILES_S["stain"]
    slides = NIGHT_S / seconds * cores()
    what = f"about {slides:,.0f} of the paper's mean size in {NIGHT_S // 3600} h, decoding and the encoder stain alone"
    yield Line("slides a night", None, what)


def _decode_rate() -> float | None:
    """Px a core decodes in a second: 256-px tiles with the detail of tissue, quality 80, 4:2:0."""
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


def _encoders() -> Iterator[Line]:
    from her2batch.models.encoders import ENCODERS, StainEncoder
    from her2batch.models.weights import find_cached_weights

    hub = _optional("huggingface_hub")
    token = hub is not None and hub.get_token() is not None
    remedy = "" if token else "run `hf auth login`, or set HF_TOKEN; needed for gated weights alone"
    yield Line("hub token", None, "is there" if token else "none", remedy)
    for name, spec in ENCODERS.items():
        if isinstance(spec, StainEncoder):
            yield Line(f"encoder {name}", True, "needs no weights")
        elif hub is not None and (path := find_cached_weights(spec.source)) is not None:
            yield Line(
                f"encoder {name}", True, f"{path.stat().st_size / 1e9:.1f} GB in the hub's cache; {spec.licence}"
            )
        else:
            remedy = f"accept the licence at {spec.source.page}, then `hf auth login`; or give --weights FOLDER"
            yield Line(f"encoder {name}", None, f"its weights are not here; {spec.licence}", remedy)
