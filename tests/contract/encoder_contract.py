"""Requirements for every encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from her2batch.models.encoders import Encoder
from her2batch.vision.membrane import TileBatch


class EncoderContract:
    """Tests to inherit. The subclass provides the fixtures `encoder` and `batch` (at least three different tiles)."""

    def test_one_float16_vector_for_each_tile(self, encoder: Encoder, batch: TileBatch) -> None:
        vectors = encoder(batch)
        assert vectors.dtype == np.float16
        assert vectors.shape == (len(batch.pixels), encoder.dim)
        assert np.isfinite(vectors).all()

    def test_same_tiles_give_the_same_bytes(self, encoder: Encoder, batch: TileBatch) -> None:
        again = replace(batch, pixels=batch.pixels.copy())
        assert encoder(batch).tobytes() == encoder(again).tobytes()

    def test_input_pixels_are_not_changed(self, encoder: Encoder, batch: TileBatch) -> None:
        before = batch.pixels.copy()
        encoder(batch)
        assert np.array_equal(batch.pixels, before)

    def test_different_tiles_give_different_vectors(self, encoder: Encoder, batch: TileBatch) -> None:
        vectors = encoder(batch)
        assert len(np.unique(vectors, axis=0)) == len(vectors)

    def test_order_of_tiles_is_kept(self, encoder: Encoder, batch: TileBatch) -> None:
        turned = encoder(replace(batch, pixels=np.ascontiguousarray(batch.pixels[::-1])))
        assert np.allclose(turned[::-1], encoder(batch), rtol=2e-3, atol=2e-3)

    def test_no_tiles_give_no_vectors(self, encoder: Encoder, batch: TileBatch) -> None:
        assert encoder(replace(batch, pixels=batch.pixels[:0])).shape == (0, encoder.dim)

    def test_read_only_pixels_are_accepted(self, encoder: Encoder, batch: TileBatch) -> None:
        pixels = batch.pixels.copy()
        pixels.flags.writeable = False
        assert np.array_equal(encoder(replace(batch, pixels=pixels)), encoder(batch))
