"""The six tiny slides and the reference that most fault tests use, and the end of the processes that they kill."""

from collections.abc import Iterator

import pytest

from tests.faults.fault_fixtures import EndingProcesses, ReferenceCohort, make_reference_cohort
from tests.runtime.test_ingest import store_contents
from tests.shared_folders import folder_of_all_workers, make_once


@pytest.fixture(scope="session")
def reference_cohort(tmp_path_factory: pytest.TempPathFactory) -> ReferenceCohort:
    folder = make_once(folder_of_all_workers(tmp_path_factory) / "fault-reference", make_reference_cohort)
    return ReferenceCohort(folder / "scans", folder / "reference", store_contents(folder / "reference"))


@pytest.fixture(scope="session")
def ending() -> Iterator[EndingProcesses]:
    """Processes of killed runs; one that has not ended some time after the last test is an error."""
    processes = EndingProcesses()
    yield processes
    processes.check()
