"""nvImageCodec is loaded without a word on the terminal, and its decoders are used by one thread at a time."""

import importlib.util
import subprocess
import sys

import pytest

from her2batch.errors import InputError
from her2batch.slides.nvimgcodec import loading

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec isn't installed on this platform")


def test_nothing_is_printed_where_libraries_of_nvidia_are_missing() -> None:
    code = """
import os
from her2batch.slides.nvimgcodec.loading import borrow_decoder, load_nvimgcodec
with borrow_decoder(None) as decoder:
    print(decoder.decode([load_nvimgcodec().CodeStream(b"no image")]), "OPENCV_LOG_LEVEL" in os.environ)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (run.stdout, run.stderr) == ("[None] False\n", "")


def test_a_decoder_is_used_again_but_not_by_two_at_once() -> None:
    with loading.borrow_decoder(None) as first, loading.borrow_decoder(None) as second:
        assert first is not second
    with loading.borrow_decoder(None) as third:
        assert third in (first, second)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not loading.is_installed()
    with pytest.raises(InputError, match=r"the reader nvimgcodec is not installed; run pip install"):
        loading.load_nvimgcodec()
