"""A cluster whose nodes die and join during an ingest gives the bytes of the serial loop."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.fault_fixtures import TRIES, ReferenceCohort, assert_intact, assert_same_files, count_rows, wait_until
from tests.nodes import run_cluster


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nodes_that_die_and_are_replaced_change_no_byte(reference_cohort: ReferenceCohort, tmp_path: Path) -> None:
    """At least one slide is committed between two kills: a slide that loses its worker three times fails."""
    chance = random.Random(23)
    with run_cluster(workers=3) as nodes:
        for k in range(max(1, TRIES // 3)):
            out = tmp_path / str(k)
            command = [sys.executable, "-m", "her2batch.cli", "ingest", str(reference_cohort.scans), "--out", str(out)]
            run = nodes.popen(*command, "--address", nodes.address)
            for rows in (0, 2):
                wait_until(lambda out=out, rows=rows, run=run: count_rows(out) > rows or run.poll() is not None)
                victim = chance.choice([name for name in nodes.nodes if name != "head"])
                nodes.kill(victim)
                nodes.add(victim)
            try:
                words = run.communicate(timeout=200)
            except subprocess.TimeoutExpired:
                run.kill()
                raise
            assert run.returncode == 0, words
            assert_same_files(out, reference_cohort.files)
            assert_intact(out)
