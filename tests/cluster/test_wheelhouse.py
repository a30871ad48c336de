"""The folder of wheels for machines without a network: made, installed without a network, and used."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "wheelhouse.sh"
TORCH_WHEELS = os.environ.get("HER2BATCH_TORCH_WHEELS")
MAX_BYTES = 1_500_000_000


def run(*command: object, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout)


def without_network(*command: object, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    """Run a command in a network namespace of its own, which has loopback at most."""
    script = 'ip link set lo up 2>/dev/null; exec "$@"'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = ["unshare", "-n", "sh", "-c", script, "sh", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment)


def can_cut_off_the_network() -> bool:
    return shutil.which("unshare") is not None and run("unshare", "-n", "true").returncode == 0


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    assert run("bash", "-n", SCRIPT).returncode == 0
    shown = run(SCRIPT, "--help")
    assert (shown.returncode, "--variant" in shown.stdout) == (0, True)
    for wrong in (("--variant", "gpu", tmp_path / "w"), ("--colour", "red", tmp_path / "w"), (), ("a", "b")):
        refused = run(SCRIPT, *wrong)
        assert refused.returncode == 2
        assert refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_page_gives_the_command_that_the_script_prints() -> None:
    page, script = (ROOT / "docs" / "operations.md").read_text(), SCRIPT.read_text()
    for option in ("--no-index", "--no-deps", "--require-hashes", "--find-links"):
        assert option in script
        assert re.search(rf"pip install .*{option}", page)


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not can_cut_off_the_network(), reason="no right to make a network namespace")
@pytest.mark.skipif(TORCH_WHEELS is None, reason="HER2BATCH_TORCH_WHEELS names no folder with wheels of torch")
def test_the_cpu_variant_is_small_and_installs_without_a_network(tmp_path: Path) -> None:
    wheels, venv = tmp_path / "wheels", tmp_path / "venv"
    made = run(SCRIPT, "--torch-wheels", TORCH_WHEELS, "--python", sys.executable, wheels, timeout=900)
    assert made.returncode == 0, made.stderr
    files = {path.name: path for path in wheels.glob("*.whl")}
    assert sum(path.stat().st_size for path in files.values()) < MAX_BYTES
    hashes = set(re.findall(r"--hash=sha256:(\w+)", (wheels / "requirements.txt").read_text()))
    assert hashes == {hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()}
    assert run(sys.executable, "-m", "venv", venv).returncode == 0
    install = [venv / "bin" / "pip", "install", "-q", "--no-index", "--no-deps", "--find-links", wheels]
    install += ["--require-hashes", "-r", wheels / "requirements.txt"]
    installed = without_network(*install)
    assert installed.returncode == 0, installed.stderr
    program = venv / "bin" / "her2batch"
    for command in (
        ("synth", tmp_path / "made", "--slides", 1, "--width", 1500, "--height", 1200),
        ("ingest", tmp_path / "made" / "slides", "--out", tmp_path / "cohort", "--workers", 0),
        ("verify", tmp_path / "cohort"),
    ):
        ran = without_network(program, *command)
        assert ran.returncode == 0, ran.stderr
    own = next(path for name, path in files.items() if name.startswith("her2batch-"))
    own.write_bytes(own.read_bytes() + b"x")  # a wheel that somebody has changed on the way
    refused = without_network(*install, "--force-reinstall")
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
