"""Tiles that cuCIM decodes in batches are those of nvImageCodec; damage, which cuCIM conceals, is found."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2batch.slides.cucim.chunk_decoder import CucimChunkDecoder, cucim_chunk_decoder
from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.nvimgcodec.chunk_decoder import ChunkDecoder, DeviceDecodeRefused, chunk_decoder
from her2batch.slides.nvimgcodec.loading import is_installed
from her2batch.slides.tiff_slide import TiledTiffSlide
from tests.slides.nvimgcodec.test_chunk_decoder import strict

pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")

REAL = ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "HE_example.tif"]


def decoder_of(path: Path, level: int = 0) -> CucimChunkDecoder:
    decoder = cucim_chunk_decoder(CucimSlide(path), level, None)
    assert decoder is not None
    return decoder


def some_numbers(decoder: ChunkDecoder) -> list[int]:
    """Return numbers of tiles, the first and the last one among them."""
    return np.unique(np.linspace(0, decoder.table.across * decoder.table.down - 1, 7).astype(int)).tolist()


@pytest.mark.parametrize("name", REAL)
def test_pixels_of_real_slides_are_those_of_the_strict_decoder(real_data: Path, name: str) -> None:
    path = real_data / "slides" / name
    decoder, reference = decoder_of(path), ChunkDecoder(TiledTiffSlide(path), 0, None)
    numbers = some_numbers(decoder)
    (batch,) = decoder.decode(numbers)
    for number, tile in zip(numbers, np.asarray(batch), strict=True):
        expected = strict(reference, number)
        assert np.array_equal(tile[: expected.shape[0], : expected.shape[1]], expected)
        decoder.check(number, tile)
    assert decoder.suspects(numbers) == set()


@pytest.mark.skipif(not is_installed(), reason="nvImageCodec isn't installed on this platform")
@pytest.mark.parametrize("name", REAL)
def test_one_call_of_cucim_decodes_the_pixels_of_nvimagecodec(real_data: Path, name: str) -> None:
    """In a process that loads cuCIM before torch, as the workers do: only there cuCIM decodes a batch at once."""
    code = """
import sys
from pathlib import Path
from her2batch.slides.cucim.loading import load_cucim
load_cucim()
import numpy as np
from her2batch.slides.cucim.chunk_decoder import cucim_chunk_decoder
from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.nvimgcodec.chunk_decoder import chunk_decoder
from her2batch.slides.tiff_slide import TiledTiffSlide
slide = CucimSlide(Path(sys.argv[1]))
ours, theirs = cucim_chunk_decoder(slide, 0, None), chunk_decoder(TiledTiffSlide(Path(sys.argv[1])), 0, None)
assert slide.in_process
table = ours.table
numbers = list(range(table.across * table.down))
(batch,) = ours.decode(numbers)
assert np.asarray(ours.decode(numbers[:1])[0]).tobytes() == np.asarray(batch)[0].tobytes()
for number, tile, other in zip(numbers, np.asarray(batch), theirs.decode(numbers), strict=True):
    row, column = divmod(number, table.across)
    height = min(table.tile_height, table.height - row * table.tile_height)
    width = min(table.tile_width, table.width - column * table.tile_width)
    assert np.array_equal(tile[:height, :width], np.asarray(other)[:height, :width]), number
print(len(numbers))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(real_data / "slides" / name)], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 8


def damage(path: Path, decoder: ChunkDecoder, number: int, how: Callable[[int], tuple[int, bytes]]) -> None:
    """Overwrite a part of a tile's stream.  how: length of the stream → where, and the bytes."""
    start, count = int(decoder.table.offsets[number]), int(decoder.table.byte_counts[number])
    at, data = how(count)
    with path.open("r+b") as file:
        file.seek(start + at)
        file.write(data)


DAMAGE: dict[str, Callable[[int], tuple[int, bytes]]] = {
    "second half": lambda count: (count // 2, bytes(count - count // 2)),
    "hole": lambda count: (count // 3, bytes(64)),
    "all": lambda count: (0, bytes(count)),
    "other bytes": lambda count: (0, np.random.default_rng(1).bytes(count)),
    "early end": lambda count: (count // 3, b"\xff\xd9" * (count // 4)),
    "marker": lambda count: (count // 3, b"\xff\x3f"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_that_cucim_conceals_is_refused(make_slide: Callable, how: str) -> None:
    path = make_slide()
    damage(path, decoder_of(path), 5, DAMAGE[how])
    decoder = decoder_of(path)
    numbers = [4, 5, 6]
    suspects = decoder.suspects(numbers)
    assert suspects == ({5} if how != "early end" else set())
    tile = np.asarray(decoder.decode(numbers)[0])[1]
    with pytest.raises(DeviceDecodeRefused, match="its tile 5"):
        decoder.check(5, tile)


def test_other_kinds_of_tiles_have_no_decoder(real_data: Path, make_slide: Callable) -> None:
    jpeg_2000 = real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    assert cucim_chunk_decoder(CucimSlide(jpeg_2000), 0, None) is None
    path = make_slide()
    assert cucim_chunk_decoder(TiledTiffSlide(path), 0, None) is None
    slide = CucimSlide(path)
    assert (cucim_chunk_decoder(slide, 0, 0) is not None) == slide.in_process  # a GPU needs cuCIM in this process
    assert chunk_decoder(slide, 0, None) is None
