"""A cohort that tests may write reviews to, and a client of the application that serves it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from her2batch.store.cohort import Cohort
from tests.conftest import Synthetic
from tests.web.served import TOKEN, application

Client = Callable[..., TestClient]


@pytest.fixture
def cohort(synthetic: Synthetic, tmp_path: Path) -> Cohort:
    shutil.copytree(synthetic.cohort, tmp_path / "c", copy_function=_link)
    return Cohort(tmp_path / "c")


def _link(source: str, target: str) -> None:
    """The store replaces files and never writes into them, so that a copy can share them."""
    Path(target).hardlink_to(source)


@pytest.fixture
def client(cohort: Cohort) -> TestClient:
    """A client with the token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return TestClient(application(cohort.root), base_url="http://127.0.0.1:8300", headers=headers)
