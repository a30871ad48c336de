"""The six tiny slides and the reference that most fault tests use."""

import pytest

from tests.faults.fault_fixtures import ReferenceCohort, make_reference_cohort
from tests.runtime.test_ingest import store_contents
from tests.shared_folders import folder_of_all_workers, make_once


@pytest.fixture(scope="session")
def reference_cohort(tmp_path_factory: pytest.TempPathFactory) -> ReferenceCohort:
    folder = make_once(folder_of_all_workers(tmp_path_factory) / "fault-reference", make_reference_cohort)
    return ReferenceCohort(folder / "scans", folder / "reference", store_contents(folder / "reference"))
