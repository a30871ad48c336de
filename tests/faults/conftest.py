"""Six tiny slides and their reference, made once."""

import pytest

from tests.faults.fault_fixtures import Lab, make_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"))
