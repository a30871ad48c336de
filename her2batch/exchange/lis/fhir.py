"""FHIR R4: a slide's result as a transaction of DiagnosticReport, Observation, Specimen and Device.

Every resource is written by a conditional update on its identifier, so that a transaction that arrives twice changes
nothing the second time. Source: HL7 FHIR R4 (4.0.1), http.html#cond-update and diagnosticreport.html.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from her2batch.errors import InputError, install_extra
from her2batch.exchange.lis.hl7 import note_of
from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.slide_result import ANSWERS, CODES, SlideResult

LOINC: Final = "http://loinc.org"
SYSTEM: Final = "urn:her2batch"
"""System of the identifiers that her2batch gives."""

PATHOLOGY: Final = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "PAT", "display": "Pathology"}]
}
LABORATORY: Final = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]
}


def result_bundle(result: SlideResult, identity: Identity, key: str, status: str, sent: datetime) -> dict[str, Any]:
    """Return the transaction of a result as JSON.

    key: identifies the slide's report at the receiver, the same for every delivery of the slide.  status: preliminary,
    final or corrected. Raises InputError when fhir.resources is not installed.
    """
    try:
        from fhir.resources.R4B.bundle import Bundle
    except ImportError as error:
        raise InputError("FHIR resources need the package fhir.resources", None, install_extra("lis")) from error
    when = (result.decided or sent).astimezone(UTC).isoformat()
    subject = {"identifier": _identifier(identity.authority or SYSTEM, identity.patient_id)}
    specimen: dict[str, Any] = {
        "resourceType": "Specimen",
        "identifier": [_identifier(f"{SYSTEM}:specimen", identity.specimen)],
        "accessionIdentifier": {"value": identity.accession},
        "subject": subject,
    }
    device_key = f"her2batch {result.software}"
    device: dict[str, Any] = {
        "resourceType": "Device",
        "identifier": [_identifier(f"{SYSTEM}:device", device_key)],
        "deviceName": [{"name": "her2batch", "type": "model-name"}],
        "version": [{"value": result.software}],
    }
    shared = {
        "status": status,
        "subject": subject,
        "specimen": {"reference": _urn(specimen)},
        "device": {"reference": _urn(device)},
        "effectiveDateTime": when,
    }
    observations = _observations(result, key, shared)
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "identifier": [_identifier(f"{SYSTEM}:report", key)],
        "status": status,
        "category": [PATHOLOGY],
        "code": _loinc(*CODES[result.marker]),
        "subject": subject,
        "effectiveDateTime": when,
        "issued": sent.astimezone(UTC).isoformat(),
        "specimen": [{"reference": _urn(specimen)}],
        "result": [{"reference": _urn(one)} for one in observations],
        "conclusion": f"{result.result}: {result.meaning}" if result.meaning else result.result,
        **({"resultsInterpreter": [{"display": result.reviewer}]} if result.reviewer else {}),
        **({"basedOn": [{"identifier": {"value": identity.order}}]} if identity.order else {}),
    }
    entries = [_entry(resource) for resource in (specimen, device, *observations, report)]
    bundle = Bundle.model_validate({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    found: dict[str, Any] = bundle.model_dump(mode="json", exclude_none=True)
    return found


def _observations(result: SlideResult, key: str, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the observations: the class, and the HER2 status where it is determined."""
    by = {"method": {"text": result.by}} if result.by else {}
    found: list[dict[str, Any]] = [
        {
            "resourceType": "Observation",
            "identifier": [_identifier(f"{SYSTEM}:observation", f"{key}.{result.marker}")],
            "category": [LABORATORY],
            "code": _loinc(*CODES[result.marker]),
            "valueCodeableConcept": _loinc(ANSWERS[result.result], result.result),
            "note": [{"text": note_of(result)}],
            **by,
            **shared,
        }
    ]
    if result.status_class is not None:
        found.append(
            {
                "resourceType": "Observation",
                "identifier": [_identifier(f"{SYSTEM}:observation", f"{key}.her2-binary")],
                "category": [LABORATORY],
                "code": {"coding": [{"system": SYSTEM, "code": "her2-binary"}], "text": "HER2 status"},
                "valueCodeableConcept": _loinc(ANSWERS[result.status_class], result.status_class),
                **by,
                **shared,
            }
        )
    return found


def _entry(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a resource: its conditional update by the first identifier."""
    name = resource["identifier"][0]
    token = quote(f"{name['system']}|{name['value']}", safe=":|")
    url = f"{resource['resourceType']}?identifier={token}"
    return {"fullUrl": _urn(resource), "resource": resource, "request": {"method": "PUT", "url": url}}


def _urn(resource: dict[str, Any]) -> str:
    """Return the name of a resource inside its transaction: the same for the same identifier."""
    name = resource["identifier"][0]
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{name['system']}|{name['value']}").urn


def _identifier(system: str, value: str) -> dict[str, str]:
    return {"system": system if ":" in system else f"{SYSTEM}:{system}", "value": value}


def _loinc(code: str, name: str) -> dict[str, Any]:
    return {"coding": [{"system": LOINC, "code": code, "display": name}], "text": name}
