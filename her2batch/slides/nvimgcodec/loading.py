"""The import of nvImageCodec, NVIDIA's decoder of JPEG and JPEG 2000 on GPUs, and its decoders.

Its extensions print a line on stderr for each library of NVIDIA's that is missing, as on a machine without a GPU, and
its codecs one for each damaged stream: both are kept from the terminal while it is loaded, and by its own setting.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from threading import Lock
from typing import Any

from her2batch.errors import InputError

_loading = Lock()
_idle: dict[int | None, list[Any]] = {}

QUIET = {"PYNVIMGCODEC_VERBOSITY": "0", "OPENCV_LOG_LEVEL": "SILENT"}
"""Settings, read when the library is loaded, of its own messages and of those of its OpenCV."""


def is_installed() -> bool:
    """Return whether nvImageCodec is installed. It comes with cuCIM on Linux."""
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:
        return False


def load_nvimgcodec() -> Any:
    """Return the module. Raises InputError when it is not installed."""
    if not is_installed():
        remedy = "run pip install nvidia-nvimgcodec-cu13, or use --reader auto"
        raise InputError("the reader nvimgcodec is not installed", None, remedy)
    with _loading, _quietly():
        from nvidia import nvimgcodec

        return nvimgcodec


@contextlib.contextmanager
def borrow_decoder(device: int | None) -> Iterator[Any]:
    """Give the caller a decoder that no other thread uses; making one takes longer than a batch.

    device: number of the GPU; None: decode on the CPU, with one thread.
    """
    idle = _idle.setdefault(device, [])
    decoder = idle.pop() if idle else _make_decoder(device)
    try:
        yield decoder
    finally:
        idle.append(decoder)


def _make_decoder(device: int | None) -> Any:
    codec = load_nvimgcodec()
    on_gpu = (codec.HW_GPU_ONLY, codec.GPU_ONLY, codec.HYBRID_CPU_GPU)
    kinds = (codec.CPU_ONLY,) if device is None else on_gpu
    number = codec.NVIMGCODEC_DEVICE_CPU_ONLY if device is None else device
    options = ":fancy_upsampling=1"  # subsampled colour is interpolated, as libjpeg-turbo does it
    backends = [codec.Backend(kind) for kind in kinds]
    with _loading, _quietly():
        return codec.Decoder(number, 1 if device is None else 0, backends, options)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what a library prints while it is loaded from stdout and stderr."""
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    saved = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
