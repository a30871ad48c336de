"""Weights: finding files and reading them without running code."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from her2batch.errors import WeightsError
from her2batch.files.atomic import file_sha256
from her2batch.models.weights import (
    WeightsSource,
    find_cached_weights,
    locate_weights,
    network_with_weights,
    read_weights,
    weights_digest,
)

SOURCE = WeightsSource("somebody/net", "0" * 40, ("model.safetensors",), "free")


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["net.safetensors", "net.bin", "net.pt", "net/model.safetensors", "model.safetensors", "pytorch_model.bin"]
)
def test_a_folder_is_searched_for_the_name_and_for_a_copy_of_the_hub(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert locate_weights("net", SOURCE, tmp_path) == path
    assert locate_weights("net", SOURCE, path) == path


def test_a_folder_without_weights_is_refused_with_the_expected_names(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net\.safetensors") as caught:
        locate_weights("net", SOURCE, tmp_path)
    assert caught.value.path == tmp_path


def test_the_hubs_cache_is_used_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_cached_weights(SOURCE) is None
    with pytest.raises(WeightsError, match="cannot be reached"):
        locate_weights("net", SOURCE, None)
    blob = tmp_path / "models--somebody--net" / "blobs" / ("a" * 64)
    link = tmp_path / "models--somebody--net" / "snapshots" / ("0" * 40) / "model.safetensors"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.touch()
    link.symlink_to(blob)
    found = locate_weights("net", SOURCE, None)
    assert found == link
    assert weights_digest(found) == "a" * 64


def test_the_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "net.safetensors")
    assert weights_digest(tmp_path / "net.safetensors") == file_sha256(tmp_path / "net.safetensors")


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.float16)}, tmp_path / "net.safetensors")
    assert read_weights(tmp_path / "net.safetensors")["a"].dtype == torch.float32


def test_a_published_checkpoint_of_tensors_is_read(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path / "pytorch_model.bin").keys() == state.keys()


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_with_a_side_effect_is_refused_and_has_none(tmp_path: Path, protocol: str) -> None:
    path, touched = tmp_path / "pytorch_model.bin", tmp_path / "touched"
    if protocol == "torch":
        torch.save({"a": Bomb(touched)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Bomb(touched)}))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(path)
    assert not touched.exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(net().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(path)
    path.write_bytes(b"\xff" * 8 + whole[8:])  # a header longer than any file
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"a": torch.tensor([1.0, value])}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match="not finite, in a"):
        read_weights(tmp_path / "net.safetensors")


def test_something_else_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="other objects than named tensors"):
        read_weights(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="is not a format"):
        read_weights(tmp_path / "net.h5")


def test_a_network_gets_the_weights_and_is_frozen() -> None:
    source = net()
    filled = network_with_weights(net, source.state_dict(), Path("net.safetensors"))
    assert not filled.training
    assert not any(one.requires_grad for one in filled.parameters())
    x = torch.ones(2, 3)
    assert torch.equal(filled(x), source.eval()(x))


def test_buffers_that_are_in_no_file_are_computed() -> None:
    class Keeps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("table", torch.arange(2), persistent=False)

    filled = network_with_weights(Keeps, {"weight": torch.zeros(2)}, Path("net.safetensors"))
    assert filled.table.tolist() == [0, 1]
    assert filled.weight.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", ["missing", "more", "shape"])
def test_other_tensors_are_refused_by_name(wrong: str) -> None:
    state = net().state_dict()
    if wrong == "missing":
        del state["0.weight"]
    elif wrong == "more":
        state["0.more"] = torch.ones(1)
    else:
        state["0.weight"] = torch.ones(2, 4)
    with pytest.raises(WeightsError, match=r"1 tensors are missing.*first 0\.(weight|more)"):
        network_with_weights(net, state, Path("net.safetensors"))
