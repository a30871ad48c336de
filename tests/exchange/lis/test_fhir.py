"""Tests of FHIR transactions: valid resources that a server has once, however often they arrive."""

from collections import Counter
from pathlib import Path

import pytest

from tests.exchange.lis.examples import decide, make_cohort, send
from tests.exchange.lis.receivers import FhirServer, running


def test_hostile_server_has_every_report_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HER2BATCH_LIS_TOKEN", "secret")
    cohort = make_cohort(tmp_path / "c", 12)
    with running(FhirServer(("accept", "drop", "lose", "refuse"), seed=1)) as fhir:
        while send(cohort, fhir.address).exit_code:
            pass
        decide(cohort, "S002", "3+")
        while send(cohort, fhir.address).exit_code:
            pass
    reports = fhir.of_type("DiagnosticReport")
    assert Counter(one["status"] for one in reports) == {"preliminary": 11, "final": 1}
    (final,) = (one for one in reports if one["status"] == "final")
    assert final["conclusion"].startswith("3+")
    assert final["resultsInterpreter"] == [{"display": "Dr. Who"}]
    assert final["subject"]["identifier"]["value"] == "MRN-S002"
    assert len(fhir.of_type("Device")) == 1
    assert len(fhir.of_type("Specimen")) == 12
    assert fhir.tokens == {"Bearer secret"}


def test_equivocal_slides_have_no_status(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 4)
    with running(FhirServer()) as fhir:
        send(cohort, fhir.address)
    codes = Counter(one["code"]["coding"][0]["code"] for one in fhir.of_type("Observation"))
    assert codes == {"85319-2": 4, "her2-binary": 3}


def test_a_rejected_report_is_listed(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "c", 1)
    with running(FhirServer(("reject",))) as fhir:
        assert send(cohort, fhir.address).rejected["S000"].startswith("HTTP 422")
