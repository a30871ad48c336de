"""The doctor: every line says something, and what is wrong has its remedy."""

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest

from her2batch.models.encoders import ENCODERS
from her2batch.runtime.doctor import Line, examine


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    return examine(tmp_path_factory.mktemp("cohort") / "not-yet")


def test_every_line_says_something_and_a_no_has_a_remedy(lines: list[Line]) -> None:
    assert len({line.name for line in lines}) == len(lines)
    assert all(line.what for line in lines)
    assert all(line.remedy for line in lines if line.ok is False)


def test_what_the_project_needs_is_looked_at(lines: list[Line]) -> None:
    names = {line.name for line in lines}
    wanted = {"python", "ray", "torch", "cores", "OpenSlide", "cuCIM", "memory", "disk", "JPEG decode", "hub token"}
    assert wanted <= names
    assert {f"encoder {name}" for name in ENCODERS} <= names


def test_the_stain_encoder_is_always_ready(lines: list[Line]) -> None:
    assert next(line for line in lines if line.name == "encoder stain").ok


def test_an_encoder_without_weights_names_its_licence_page(lines: list[Line], tmp_path: Path) -> None:
    line = next(line for line in lines if line.name == "encoder uni")
    assert line.ok or "https://huggingface.co/MahmoodLab/UNI" in line.remedy


def test_no_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the doctor went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert examine()


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_veryverysecret")
    lines = examine()
    assert "is there" in next(line.what for line in lines if line.name == "hub token")
    assert "hf_veryverysecret" not in json.dumps([dataclasses.asdict(line) for line in lines])
    assert os.environ["HF_TOKEN"]
