"""MIL models of the user's own, from a class of 15 lines to a bundle and scores."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import her2batch as h2
from her2batch.cli.app import _run, app
from her2batch.cli.commands.training import METHODS_HELP
from her2batch.errors import InputError
from her2batch.experiments.train import TrainingRequest, train
from her2batch.files.parquet import write_parquet
from her2batch.models import mil_registry
from her2batch.models.attention import BagClassifier
from her2batch.models.bundle import load_mil_head, read_bundle
from her2batch.models.mil_registry import MilMethod, build_mil_network, shape_settings
from her2batch.runtime.score import score
from her2batch.settings import MilSettings, Resources, Training, TrainingResources
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import table_schema
from her2batch.vision.thumbnail import encode_jpeg
from tests.experiments.test_own_tasks import TASKS, ki67_cohort, sheet
from tests.training import stores

EXAMPLE = Path(__file__).parents[1] / "example_package"
SERIAL = TrainingResources(workers=0)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def abmil() -> Iterator[type[nn.Module]]:
    """The ABMIL of the example package, registered in this process."""
    network = module("her2batch_example_abmil").Abmil
    h2.register_mil("abmil", network)
    yield network
    mil_registry._registry.unregister("abmil")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    folder = tmp_path_factory.mktemp("planted")
    bags, labels = stores.planted(24, strength=8)
    made = stores.cohort(folder / "cohort", bags)
    ihc = ("0", "1+", "3+")
    rows = [f"{slide_id},P{k},{ihc[label]},her2" for k, (slide_id, label) in enumerate(zip(bags, labels, strict=True))]
    path = folder / "labels.csv"
    path.write_text("\n".join(["slide_id,patient_id,her2,stain", *rows]))
    return made, path


def test_the_class_has_about_fifteen_lines() -> None:
    source = (EXAMPLE / "her2batch_example_abmil.py").read_text().splitlines()
    code = [line for line in source if line.strip() and '"""' not in line]
    assert len(code) <= 15


@pytest.mark.slow
@pytest.mark.usefixtures("abmil")
def test_a_class_of_networks_is_trained_bundled_and_scored(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    made, labels = cohort
    settings = Training(methods=("abmil",), folds=3, options=("epochs=16", "lr=0.01"))
    request = TrainingRequest(made.root, tmp_path / "run", labels)
    found = train(request, settings, SERIAL)
    assert found.exit_code == 0, found.failed
    assert found.summary["auc_mean"].to_pylist()[0] > 80
    bundle = read_bundle(tmp_path / "run" / "bundle")
    (entry,) = bundle.info.models
    with safe_open(bundle.path / entry.file, "pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118  (no mapping)
    assert shapes == {
        "attention.0.weight": (64, 16), "attention.0.bias": (64,), "attention.2.weight": (1, 64),
        "attention.2.bias": (1,), "head.weight": (3, 16), "head.bias": (3,),
    }  # fmt: skip
    bags, truth = stores.planted(9, seed=5, strength=8)
    other = stores.cohort(tmp_path / "other", bags)
    scored = score(other.root, bundle.path, Resources(workers=0))
    assert (scored.exit_code, scored.scored) == (0, 9)
    rows = [other.read(f"predictions/{bundle.id}", slide_id).to_pylist()[0] for slide_id in bags]
    right = [("0", "low", "high")[label] == row["predicted"] for row, label in zip(rows, truth, strict=True)]
    assert np.mean(right) > 0.6
    attention = other.read(f"attention/{bundle.id}", "s000")
    assert sum(attention["attention"].to_pylist()) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("abmil")
def test_the_same_class_predicts_an_own_task_and_a_number(tmp_path: Path) -> None:
    made, index = ki67_cohort(tmp_path / "cohort", 24, 0)
    labels = sheet(tmp_path / "labels.csv", index)
    result = h2.train(
        made.root, tmp_path / "run", labels=labels, task_file=TASKS, tasks=["ki67-3way", "ki67-index"],
        methods=["abmil"], folds=3, options=["epochs=16", "lr=0.01"], workers=0,
    )  # fmt: skip
    three, number = result["summary"]
    assert three["auc_mean"] > 70
    assert number["c_index_mean"] > 70
    assert h2.score(made.root, result["bundle"], workers=0)["scored"] == 24


class Dropping(nn.Module):
    """A network with dropout, a setting, a buffer and a tensor that is in no file."""

    def __init__(self, dim: int, n_classes: int, settings: MilSettings) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(settings.dropout), nn.Linear(dim, n_classes)
        self.register_buffer("shift", torch.ones(dim))
        self.factor = torch.tensor(2.0)

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.drop(bag * self.factor + self.shift)).mean(0, keepdim=True)
        return logits


@pytest.fixture
def dropping() -> Iterator[None]:
    h2.register_mil("dropping", MilMethod(Dropping, shape=("dropout",)))
    yield
    mil_registry._registry.unregister("dropping")


@pytest.mark.usefixtures("dropping")
def test_dropout_follows_the_seed_and_every_tensor_comes_back(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    made, labels = cohort
    settings = Training(methods=("dropping",), folds=3, options=("epochs=2", "dropout=0.5"))
    runs = []
    for name in ("one", "two"):
        torch.manual_seed(len(runs))  # the state of torch's own generator does not matter
        found = train(TrainingRequest(made.root, tmp_path / name, labels), settings, SERIAL)
        runs.append(found.run.table("predictions").read_bytes())
    assert runs[0] == runs[1]
    bundle = read_bundle(tmp_path / "one" / "bundle")
    (entry,) = bundle.info.models
    assert entry.settings == {"dropout": 0.5}
    out = load_mil_head(bundle, entry)(torch.randn(5, 16))
    assert out.logits.shape == (3,)
    assert out.attention.tolist() == [pytest.approx([0.2] * 5)]


class OwnSettings(MilSettings):
    """A setting that the row's `shape` does not name."""

    width: int = 8


def test_settings_that_a_method_adds_are_kept_in_its_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mil_registry.MIL_METHODS, "wide", MilMethod(Dropping, settings=OwnSettings))
    assert shape_settings("wide") == {"width"}
    assert shape_settings("clam-sb") == set()


@pytest.mark.parametrize(
    ("answer", "words"),
    [(torch.zeros(4), r"gives logits \(4,\); its forward must return \(3,\), one for each class"),
     ("text", "gives logits str"),
     ((torch.zeros(3), torch.ones(7)), r"gives attention \(7,\) for 5 tiles"),
     ((torch.zeros(3), torch.ones(5)), "gives attention whose sum is not 1")],
)  # fmt: skip
def test_a_network_that_gives_something_else_is_refused_with_its_name(answer: object, words: str) -> None:
    class Fixed(nn.Module):
        def forward(self, bag: torch.Tensor) -> object:
            return answer

    with pytest.raises(InputError, match=f"the network of MIL method 'own' {words}"):
        BagClassifier(Fixed(), "own", 3).eval()(torch.randn(5, 16))


def test_padding_is_not_seen_by_the_network() -> None:
    class Count(nn.Module):
        def forward(self, bag: torch.Tensor) -> torch.Tensor:
            return torch.full((2,), float(len(bag)))

    assert BagClassifier(Count(), "own", 2)(torch.zeros(64, 3, dtype=torch.bfloat16), size=7).logits.tolist() == [7, 7]


def test_a_row_and_its_class_are_the_same_method(abmil: type[nn.Module]) -> None:
    assert mil_registry.mil_method("abmil") == MilMethod(abmil)
    assert isinstance(build_mil_network("abmil", 4, 3, MilSettings()), BagClassifier)
    with pytest.raises(InputError, match="it is a type, not a MilMethod"):
        h2.register_mil("other", dict)  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Cohort, Path]:
    """Twelve finished slides with thumbnails of brown tissue, the darker the higher the score; their labels."""
    bags, classes = stores.planted(12)
    made = stores.cohort(tmp_path / "cohort", bags)
    lines, rows = ["slide_id,patient_id,her2,stain"], made.rows()
    for k, (slide_id, label) in enumerate(zip(bags, classes, strict=True)):
        picture = np.full((64, 80, 3), 240, np.uint8)
        picture[8:56, 16:64] = np.array([200, 170, 140]) - 50 * label
        made.thumbnail(slide_id).parent.mkdir(exist_ok=True)
        made.thumbnail(slide_id).write_bytes(encode_jpeg(picture))
        tiles = {"slide_id": [slide_id], "tile": [0], "x": [160], "y": [80], "size": [480], "tissue": [1.0]}
        blank = {name: [None] for name in table_schema("tiles").names if name not in tiles}
        path = made.table("tiles", slide_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(
            pa.table({**tiles, **blank}).select(table_schema("tiles").names).cast(table_schema("tiles")), path
        )
        write_row(made, {**rows[slide_id], "width": 800, "height": 640})
        lines.append(f"{slide_id},P{k},{('0', '1+', '3+')[label]},her2")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    return made, labels


def test_a_network_of_timm_with_weights_of_ones_own_is_trained_bundled_and_scored(
    pictures: tuple[Cohort, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps of docs/training.md, from the help to the scores."""
    assert "timm:NAME" in METHODS_HELP
    cohort, labels = pictures
    torch.manual_seed(5)
    published = timm.create_model("test_efficientnet", num_classes=7)  # as of another training, with its own classes
    weights, run = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(published.state_dict(), weights)
    command = [
        "train",
        str(cohort.root),
        "--labels",
        str(labels),
        "--method",
        "timm:test_efficientnet",
        "--out",
        str(run),
    ]
    command += [
        "--folds",
        "3",
        "--profile",
        "small-cohort",
        "--option",
        f"pretrained={weights}",
        "--option",
        "epochs=2",
    ]
    assert _run(lambda: app([*command, "--workers", "0", "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["summary"][0]["method"] == "timm:test_efficientnet"
    bundle = read_bundle(run / "bundle")
    (entry,) = bundle.info.models
    assert entry.method == "timm:test_efficientnet"
    assert entry.file == "her2-3way.timm-test_efficientnet.thumbnail-224.safetensors"
    stem = published.state_dict()["conv_stem.weight"]
    moved = (load_file(bundle.path / entry.file)["conv_stem.weight"] - stem).norm() / stem.norm()
    assert float(moved) < 0.1  # fine-tuned from these weights
    weights.unlink()
    scored = score(cohort.root, bundle.path, Resources(workers=0))
    assert (scored.exit_code, scored.scored) == (0, 12)
    row = cohort.read(f"predictions/{bundle.id}", "s000").to_pylist()[0]
    assert row["method"] == "timm:test_efficientnet"


@pytest.mark.long
def test_networks_on_squares_of_512_px_are_trained_bundled_and_scored(
    pictures: tuple[Cohort, Path], tmp_path: Path
) -> None:
    """ViT is built for its input size, the others take any: both read 512 px in training, bundle and score."""
    cohort, labels = pictures
    methods = ("vit-base", "resnet50")
    training = Training(methods=methods, inputs=("thumbnail-512",), folds=3, quick=True, options=("epochs=2",))
    trained = train(TrainingRequest(cohort.root, tmp_path / "run", labels), training, TrainingResources(workers=0))
    assert trained.exit_code == 0, trained.failed
    assert {(row["method"], row["input"]) for row in trained.summary.to_pylist()} == {
        (method, "thumbnail-512") for method in methods
    }
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert {entry.edge for entry in bundle.info.models} == {512}
    scored = score(cohort.root, bundle.path, Resources(workers=0))
    assert (scored.exit_code, scored.scored) == (0, 12)
    seen = cohort.read(f"thumbnails/{bundle.id}", "s000").to_pylist()
    assert {(row["method"], row["input"]) for row in seen} == {(method, "thumbnail-512") for method in methods}
    assert all(sum(row["p"]) == pytest.approx(1, abs=1e-5) for row in seen)
    assert {row["method"] for row in cohort.read(f"predictions/{bundle.id}", "s000").to_pylist()} == set(methods)
