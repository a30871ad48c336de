"""Bundles: saving and loading, and refusal of every kind of damaged or invalid bundle."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from her2batch.errors import InputError
from her2batch.files.atomic import file_sha256
from her2batch.models.bundle import (
    Bundle,
    BundleInfo,
    ModelEntry,
    PackageEntry,
    check_bundle_fits,
    load_network,
    read_bundle,
)
from her2batch.models.nets import build_network, classify_images
from her2batch.pipeline.slide_state import StageContext
from her2batch.settings import Plan
from her2batch.tasks import CLASSES
from tests.models.bundles import bundle_of


def entry(**other: Any) -> ModelEntry:
    usual = {
        "kind": "thumbnail", "task": "her2-3way", "method": "resnet50", "input": "thumbnail-224",
        "classes": CLASSES["her2-3way"], "file": "thumbnail.safetensors",
    }  # fmt: skip
    return ModelEntry(**{**usual, **other})


def info(*models: ModelEntry) -> BundleInfo:
    tasks = tuple(dict.fromkeys(one.task for one in models)) or ("her2-4way",)
    return BundleInfo(her2batch="0.1.0", tasks=tasks, encoder="uni", licence="CC-BY-NC-ND 4.0", models=models)


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("resnet50", 3, 224).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, net: torch.nn.Module) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("run") / "bundle", info(entry()), {"thumbnail.safetensors": net})


@pytest.fixture
def bundle(saved: Bundle, tmp_path: Path) -> Bundle:
    """A copy to spoil."""
    shutil.copytree(saved.path, tmp_path / "bundle", copy_function=link)
    return read_bundle(tmp_path / "bundle")


def link(source: str, target: str) -> None:
    """Copies of 100 MB of weights are links; a test that changes them writes anew."""
    Path(target).hardlink_to(source)


def rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def refused(bundle: Bundle, file: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        read_bundle(bundle.path)
    assert str(bundle.path / file).rstrip("/") in str(caught.value)
    assert caught.value.remedy


def test_a_loaded_bundle_equals_the_saved_one(saved: Bundle, net: torch.nn.Module) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    again = read_bundle(saved.path)
    assert again == saved
    assert again.info.models[0].edge == 224
    assert np.array_equal(load_network(again, again.info.models[0])(pixels), classify_images(net, pixels))


def test_the_id_depends_on_the_content_alone(saved: Bundle, bundle: Bundle) -> None:
    assert bundle.id == saved.id
    assert len(saved.id) == 12
    other = saved.info.model_copy(update={"licence": "another"})
    rewrite(bundle.path / "bundle.toml", tomli_w.dumps(other.model_dump(mode="json", exclude_none=True)).encode())
    assert read_bundle(bundle.path).id != saved.id


def test_a_failed_save_leaves_no_files(tmp_path: Path, net: torch.nn.Module, saved: Bundle) -> None:
    two = info(entry(), entry(file="more.safetensors", input="thumbnail-512"))
    with pytest.raises(KeyError):
        bundle_of(tmp_path / "bundle", two, {"thumbnail.safetensors": net})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="exists already"):
        bundle_of(saved.path, info(), {})


def test_a_bundle_without_models_is_valid(tmp_path: Path) -> None:
    assert bundle_of(tmp_path / "bundle", info(), {}).info.models == ()


def test_the_resolution_of_patches_follows_from_their_input() -> None:
    patch = entry(kind="patch", task="her2-4way", input="patches-low", classes=CLASSES["her2-4way"])
    assert (patch.mpp, patch.edge) == (3.24, 224)
    assert (entry().mpp, entry(input="thumbnail-512").edge) == (None, 512)


def test_overlapping_patches_are_recorded_in_the_present_format() -> None:
    """A release that knows no overlap must not read other patches than the network was trained on."""
    patch = entry(kind="patch", task="her2-4way", input="patches-low", classes=CLASSES["her2-4way"], per_edge=4)
    values = info().model_dump() | {"tasks": ("her2-4way",), "models": (patch.model_dump(),)}
    with pytest.raises(ValueError, match="overlapping patches need format 3"):
        BundleInfo.model_validate(values | {"format": 1})
    stored = BundleInfo.model_validate(values | {"format": 3})
    context = StageContext(Plan(), Bundle(stored, "0" * 12, Path("bundle")))
    assert (context.patches_per_edge("patches-low"), context.patches_per_edge("patches-high")) == (4, 1)


def test_a_folder_without_bundle_toml_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is no bundle"):
            read_bundle(path)


def test_a_missing_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / "thumbnail.safetensors").unlink()
    refused(bundle, "thumbnail.safetensors", "is missing")


def test_a_replaced_file_is_refused(bundle: Bundle) -> None:
    rewrite(bundle.path / "thumbnail.safetensors", b"something else")
    refused(bundle, "thumbnail.safetensors", "another checksum")


@pytest.mark.parametrize("name", ["head.pt", "head.pkl", "svm.joblib", "more/net.PTH"])
def test_a_pickle_in_the_folder_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.path / name).parent.mkdir(exist_ok=True)
    (bundle.path / name).write_bytes(pickle.dumps({}))
    refused(bundle, name, "can run code")


TOML = """format = 1
her2batch = "0.1.0"
tasks = ["her2-3way"]
licence = "x"
[[models]]
kind = "thumbnail"
task = "her2-3way"
method = "resnet50"
input = "thumbnail-224"
classes = ["0", "low", "high"]
file = "thumbnail.safetensors"
"""


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("format = 1", "format = 4", "has format 4"),
        ('method = "resnet50"', 'method = "resnet51"', "no method of a thumbnail model is called 'resnet51'"),
        ('"her2-3way"', '"her2-6way"', "no task is called 'her2-6way'"),
        ('tasks = ["her2-3way"]', 'tasks = ["er"]', "none of the bundle's tasks"),
        ('["0", "low", "high"]', '["high", "low", "0"]', "in this order"),
        ("thumbnail-224", "patches-low", "has no input"),
        ("thumbnail.safetensors", "thumbnail.pkl", "file"),
        ("thumbnail.safetensors", "../thumbnail.safetensors", "file"),
        ("licence = ", "license = ", "licen"),
        ("format = 1", "format = ", "not valid TOML"),
        ('kind = "thumbnail"', 'kind = "thumbnail"\nextra = 1', "extra"),
    ],
)
def test_an_invalid_bundle_toml_is_refused(bundle: Bundle, old: str, new: str, word: str) -> None:
    rewrite(bundle.path / "bundle.toml", TOML.replace(old, new).encode())
    refused(bundle, "bundle.toml", word)


@pytest.mark.parametrize("wrong", ["keys", "shape", "nan"])
def test_weights_that_do_not_fit_are_refused_when_loaded(bundle: Bundle, wrong: str) -> None:
    path = bundle.path / "thumbnail.safetensors"
    state = load_file(path)
    if wrong == "keys":
        state["more"] = torch.ones(1)
    elif wrong == "shape":
        state["fc.weight"] = torch.ones(4, 2048)
    else:
        state["fc.bias"] = torch.full((3,), float("nan"))
    path.unlink()
    save_file(state, path)
    one = bundle.info.models[0].model_copy(update={"sha256": file_sha256(path)})
    changed = bundle.info.model_copy(update={"models": (one,)})
    text = tomli_w.dumps(changed.model_dump(mode="json", exclude_none=True))
    rewrite(bundle.path / "bundle.toml", text.encode())
    again = read_bundle(bundle.path)
    with pytest.raises(InputError, match="not finite" if wrong == "nan" else "does not fit") as caught:
        load_network(again, again.info.models[0])
    assert caught.value.path == path


MIL = {"kind": "mil", "method": "no-such-method", "input": "colour", "dim": 4}
PACKAGE = {"package": "a-package", "version": "2.0"}


def test_a_method_of_a_package_that_is_not_installed_is_refused_with_the_command(
    tmp_path: Path, net: torch.nn.Module
) -> None:
    packages = (PackageEntry(adds="mil", name="no-such-method", **PACKAGE),)
    with pytest.raises(InputError, match=r"package a-package 2\.0, which is not installed") as caught:
        bundle_of(
            tmp_path / "bundle",
            info(entry(**MIL)).model_copy(update={"packages": packages}),
            {"thumbnail.safetensors": net},
        )
    assert caught.value.remedy == "run `pip install a-package==2.0`"


def test_an_unknown_method_without_a_package_is_refused(tmp_path: Path, net: torch.nn.Module) -> None:
    with pytest.raises(
        InputError, match="no method of a mil model is called 'no-such-method'; known: clam-sb"
    ) as caught:
        bundle_of(tmp_path / "bundle", info(entry(**MIL)), {"thumbnail.safetensors": net})
    assert "register_mil" in caught.value.remedy


def test_missing_embeddings_of_a_package_are_refused_with_the_command(tmp_path: Path) -> None:
    packages = (PackageEntry(adds="encoder", name="colour", **PACKAGE),)
    about = info(entry(**{**MIL, "method": "clam-sb"})).model_copy(update={"packages": packages})
    with pytest.raises(InputError, match="reads embeddings of colour; the cohort has stain") as caught:
        check_bundle_fits(Bundle(about, "0" * 12, tmp_path), Plan())
    assert "`pip install a-package==2.0`" in caught.value.remedy
