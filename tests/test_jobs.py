"""Jobs on a real cluster of three nodes through Ray's job API; a node is killed, and the head is lost."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from her2batch.job_settings import NightlySettings, TrainJob, TuneJob, read_settings
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.store.training_run import TrainingRun
from tests.conftest import Synthetic
from tests.nightly.scanner import NightRun, Scanner, write_toml
from tests.nodes import ROOT, Cluster, run_cluster
from tests.runtime.test_ingest import store_contents

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster of a head and two nodes."""
    with run_cluster(workers=2) as made:
        made.wait(lambda: submit(made, f"hello-{time.time_ns()}", "-V").wait() == 0)
        yield made


def submit(nodes: Cluster, name: str, *command: str) -> "subprocess.Popen[str]":
    """Run `ray job submit`, as an operator's scheduler does.

    Without --working-dir: these nodes share a machine, and one that starts sweeps the others' unpacked folders.
    """
    options = ["--address", nodes.jobs, "--submission-id", name]
    return nodes.popen(RAY, "job", "submit", *options, "--", sys.executable, *command)


def job(name: str) -> str:
    return str(ROOT / "jobs" / name)


def rows_of(cohort: Path) -> int:
    return len(list((cohort / "tables" / "slides").glob("*.parquet")))


def wait_for_rows(run: "subprocess.Popen[str]", cohort: Path, count: int) -> None:
    while rows_of(cohort) < count:
        assert run.poll() is None, "".join(map(str, run.communicate()))
        time.sleep(0.05)


def tables(cohort: Path) -> dict[str, bytes]:
    """Return all files of a nightly run except its reports, which contain times."""
    return {name: data for name, data in store_contents(cohort).items() if not name.startswith("nights/")}


@pytest.mark.long
def test_cluster_listens_on_loopback_only(nodes: Cluster) -> None:
    lines = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line.split()[3] for line in lines if str(nodes.port) in line or str(nodes.dashboard) in line]
    assert ours
    assert all("127.0.0.1" in address for address in ours)


@pytest.mark.slow
def test_job_api_refuses_requests_without_token(nodes: Cluster) -> None:
    env = {name: value for name, value in nodes.env.items() if "AUTH" not in name}
    command = [RAY, "job", "list", "--address", nodes.jobs]
    found = subprocess.run(
        command, env={**env, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=60
    )
    assert found.returncode != 0
    assert "token" in (found.stdout + found.stderr).lower()


@pytest.mark.slow
def test_ingest_on_three_nodes_with_one_killed_gives_identical_tables(
    nodes: Cluster, synthetic: Synthetic, tmp_path: Path
) -> None:
    """A node dies in the middle of an ingest that was submitted as a job, and another joins. Every second slide."""
    cohort, paths, project = tmp_path / "cohort", sorted(synthetic.scans.iterdir())[::2], tmp_path / "part.qpproj"
    project.write_text(json.dumps({"images": [{"serverBuilder": {"uri": f"file:{path}"}} for path in paths]}))
    command = ["-m", "her2batch.cli", "ingest", str(project), "--labels", str(synthetic.labels)]
    run = submit(nodes, "ingest-1", *command, "--out", str(cohort), "--address", "auto")
    wait_for_rows(run, cohort, 4)
    nodes.kill("node0")
    nodes.add("node0")
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, out + err
    assert {name for name in store_contents(cohort) if ".draft" in name} == set()
    others = Cohort(synthetic.cohort).rows().keys() - Cohort(cohort).rows().keys()
    assert len(others) == len(paths)
    reference = tables(synthetic.cohort).items()
    assert tables(cohort) == {name: data for name, data in reference if not any(one in name for one in others)}
    assert list(verify_cohort(Cohort(cohort))) == []
    names = set(re.findall(r"^(ray_her2batch_\w+)\{", nodes.dashboard_text("/metrics", nodes.metrics), re.M))
    counters = ("slides_total", "source_bytes_total", "store_bytes_total")
    assert names >= {f"ray_her2batch_{name}" for name in counters}


@pytest.mark.long
def test_nightly_run_on_three_nodes_with_one_killed_gives_identical_tables(
    nodes: Cluster, quiet_night: NightRun, tmp_path: Path
) -> None:
    """The night in miniature runs again with the scanner at work, this time as a job, and a node dies in the middle."""
    quiet = tables(quiet_night.cohort.root)
    kept, scans, cohort = tmp_path / "kept", quiet_night.folder / "scans", tmp_path / "cohort"
    scans.rename(kept)  # rows hold the slides' paths: the scanner writes into the same folder again
    scans.mkdir()
    path = write_toml(quiet_night.folder, top=quiet_night.top, cohort=str(cohort), resources='address = "auto"')
    scanner = Scanner(quiet_night.slides, scans, Cohort(cohort))
    scanner.start()
    run = submit(nodes, "night-1", job("overnight.py"), str(path))
    wait_for_rows(run, cohort, 4)
    nodes.kill("node0")
    nodes.add("node0")  # and comes back, or another does
    out, err = run.communicate(timeout=200)
    scanner.join(60)
    found = json.loads(re.search(r"^\{.*\}$", out, re.M).group())
    assert found["exit_code"] == 3, out + err
    same = ("seen", "done", "failed", "deferred", "duplicate", "ignored", "scored", "failures", "review", "conflicts")
    assert {name: found[name] for name in same} == {name: quiet_night.night[name] for name in same}
    assert {name for name in store_contents(cohort) if ".draft" in name} == set()
    assert tables(cohort) == quiet
    assert list(verify_cohort(Cohort(cohort))) == []


@pytest.mark.long
def test_slides_are_opened_on_reader_nodes_only(nodes: Cluster, synthetic: Synthetic, tmp_path: Path) -> None:
    nodes.add("reader", cpus=2, reader=1)
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(synthetic.scans), "--out", str(tmp_path / "c")]
    run = nodes.popen(*command, "--address", nodes.address)
    seen: set[str] = set()
    while run.poll() is None:
        seen |= {name for name in nodes.nodes if nodes.find_processes(name, "ray::Actor")}
        time.sleep(0.1)
    nodes.kill("reader")
    assert run.returncode == 0, run.communicate()
    assert seen == {"reader"}


@pytest.mark.long
def test_folds_and_searches_run_as_jobs(nodes: Cluster, synthetic: Synthetic, tmp_path: Path) -> None:
    common = f'cohort = "{synthetic.cohort}"\nout = "{tmp_path / "{}"}"\n'
    training = (
        '[training]\ntasks = ["her2-3way"]\nmethods = ["clam-sb"]\nfolds = 3\nquick = true\noptions = ["epochs=1"]\n'
    )
    place = '[resources]\naddress = "auto"\n'
    for name, script, top in (("folds", "train_folds.py", ""), ("search", "search.py", "samples = 2\n")):
        path = tmp_path / f"{name}.toml"
        path.write_text(common.replace("{}", name) + top + training + place)
        run = submit(nodes, name, job(script), str(path))
        out, err = run.communicate(timeout=250)
        assert run.returncode == 0, out + err
        assert (tmp_path / name / "bundle").is_dir()
    assert len(TrainingRun(tmp_path / "search").read("trials")) == 2


def test_example_settings_of_jobs_are_valid() -> None:
    for name, kind in (("night", NightlySettings), ("folds", TrainJob), ("search", TuneJob)):
        assert read_settings(ROOT / "jobs" / f"{name}.toml", kind)


def test_job_files_are_short() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path


@pytest.mark.long
def test_lost_head_node_ends_the_run_and_the_next_continues(
    nodes: Cluster, synthetic: Synthetic, tmp_path: Path
) -> None:
    """This test is the last of the file, because the cluster ends with it.

    Its readers stand still meanwhile, as at a long slide: a fast machine is through before anybody misses the head.
    """
    cohort = tmp_path / "cohort"
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(synthetic.scans), "--out", str(cohort)]
    run = nodes.popen(*command, "--address", nodes.address)
    wait_for_rows(run, cohort, 3)
    readers = [one for name in nodes.nodes for one in nodes.find_processes(name, "ray::Actor")]
    for reader in readers:
        reader.suspend()
    nodes.kill("head")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 2, out + err
    assert "the head of the Ray cluster" in err
    assert "run the same command again to continue" in err
    before = rows_of(cohort)
    assert 3 <= before < len(list(synthetic.scans.iterdir()))
    summary = ingest(IngestRequest(synthetic.scans, cohort), Plan(), Resources(workers=2))
    assert (summary.failed, summary.exit_code) == (0, 0)
    # the kernel wakes who stands still when his node ends, and a slide in hand may be done: the next run waits for it
    assert before <= summary.already <= before + len(readers)
    assert cohort_status(Cohort(cohort)).adds_up
