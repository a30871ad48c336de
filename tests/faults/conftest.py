"""The six tiny slides and the reference that most fault tests use."""

import pytest

from tests.faults.fault_fixtures import ReferenceCohort, make_reference_cohort


@pytest.fixture(scope="session")
def reference_cohort(tmp_path_factory: pytest.TempPathFactory) -> ReferenceCohort:
    return make_reference_cohort(tmp_path_factory.mktemp("reference"))
