"""The report in the folder of the cohort, as the server shows it."""

import pytest
from starlette.testclient import TestClient

from her2batch.reports.cohort_page import write_report
from her2batch.store.cohort import Cohort

API = "/api/v1"


def test_report_of_the_cohort_is_served_with_its_own_policy(client: TestClient, cohort: Cohort) -> None:
    slide_id = next(one for one, row in sorted(cohort.rows().items()) if row["n_tiles"])
    assert client.get(f"{API}/slides/{slide_id}").json()["report"] is None
    assert not client.get(f"{API}/cohort").json()["report"]
    assert client.get("/report.html").status_code == 404
    write_report(cohort, cohort.root / "report.html", pages=2)
    linked = {one: client.get(f"{API}/slides/{one}").json()["report"] for one in cohort.rows()}
    page = next(address for address in linked.values() if address.startswith("/report_slides/"))
    assert client.get(f"{API}/cohort").json()["report"]
    for address in ("/report.html", page):
        answer = client.get(address)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "script-src 'sha256-" in policy
        assert "default-src 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["nobody", "..%2fcohort", "%2e%2e%2freport", "a%00b"])
def test_names_of_slide_pages_are_not_used_as_paths(client: TestClient, cohort: Cohort, name: str) -> None:
    (cohort.root / "report_slides").mkdir()
    (cohort.root / "report_slides" / "nobody.html").write_text("x")
    assert client.get(f"/report_slides/{name}.html").status_code == 404


def test_report_needs_the_token(client: TestClient, cohort: Cohort) -> None:
    (cohort.root / "report.html").write_text("x")
    del client.headers["Authorization"]
    assert client.get("/report.html").status_code == 401
