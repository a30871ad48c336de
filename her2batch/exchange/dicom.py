"""Export of a slide's predictions as a DICOM structured report for hospital archives.

A report is a Comprehensive SR by template TID 1500 (measurement report), with one group (TID 1501) for each task and
method: the class, the probabilities, the algorithm and the source image. Patient, study and specimen are copied from
the slide file of a slide that was scanned as DICOM. For other slides they come from the laboratory's identity sheet,
and the report names no image. HER2 by IHC is LOINC
85319-2 with the answers of its answer list; concepts without a public code have one of the scheme 99HER2BATCH. Reports
are marked as not final and not verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid

from her2batch.errors import InputError, install_extra
from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.slide_result import ANSWERS, CODES

SCHEME: Final = "99HER2BATCH"
"""Coding scheme of private codes; their names begin with 99 (DICOM PS3.16, 8)."""

CodeTriple = tuple[str, str, str]
"""Code value, coding scheme, meaning."""

HER2_BY_IHC: Final = (CODES["her2"][0], "LN", CODES["her2"][1])

REVIEW: Final = ("review", SCHEME, "A pathologist should look first")
REASON: Final = ("reason", SCHEME, "Why to look")
YES: Final = ("373066001", "SCT", "Yes")
NO: Final = ("373067005", "SCT", "No")

IHC_PROCEDURE: Final = ("117617002", "SCT", "Immunohistochemistry procedure")
NO_UNITS: Final = ("1", "UCUM", "no units")

SLIDE_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""

PATIENT_AND_STUDY: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip
"""Attributes of patient and study that are copied from the slide; empty if the slide has none (type 2)."""

SERIES_NUMBER: Final = 7001
"""Number of the report's series in its study, which differs from those of scanners."""


def source_image(row: Mapping[str, Any]) -> pydicom.Dataset:
    """Read the level-0 image of a DICOM slide, without its pixels. Raises InputError when its file is not found."""
    path = Path(row["path"])
    remedy = "put the slide's files back to the folder from which they were ingested"
    try:
        image = pydicom.dcmread(path, stop_before_pixels=True)
        others = sorted(other for other in path.parent.iterdir() if other != path and other.suffix == path.suffix)
    except (OSError, InvalidDicomError) as error:
        raise InputError("the file cannot be read as DICOM", path, remedy) from error
    if _is_level0(image, row):
        return image
    for other in others:
        try:
            other_image = pydicom.dcmread(other, stop_before_pixels=True)
        except (OSError, InvalidDicomError):
            continue
        same_series = other_image.get("SeriesInstanceUID") == image.get("SeriesInstanceUID")
        if same_series and _is_level0(other_image, row):
            return other_image
    raise InputError(f"no image of its series is {row['width']} px wide", path, remedy)


def _is_level0(image: pydicom.Dataset, row: Mapping[str, Any]) -> bool:
    """Return whether an image is level 0 of the slide. The width is not sufficient: a thumbnail can be as wide."""
    return image.get("TotalPixelMatrixColumns") == row["width"] and "VOLUME" in (image.get("ImageType") or "")


def stated_identity(identity: Identity) -> pydicom.Dataset:
    """Return patient, study and specimen of a slide that is no DICOM image, in place of its image.

    All slides of an accession share one study, whose UID is derived from the accession and its authority.
    """
    stated = pydicom.Dataset()
    case = [identity.authority, identity.accession]
    stated.PatientID, stated.AccessionNumber = identity.patient_id, identity.accession
    stated.PatientName = f"{identity.family_name}^{identity.given_name}".rstrip("^")
    stated.PatientBirthDate, stated.PatientSex = identity.birth_date.replace("-", ""), identity.sex.replace("U", "")
    stated.StudyInstanceUID = generate_uid(entropy_srcs=["her2batch study", *case])
    stated.SOPClassUID, stated.SOPInstanceUID = SLIDE_IMAGE, generate_uid(entropy_srcs=["slide", identity.slide_id])
    stated.SeriesInstanceUID = generate_uid(entropy_srcs=["series", identity.slide_id])
    specimen = pydicom.Dataset()
    specimen.SpecimenIdentifier = identity.specimen
    specimen.SpecimenUID = generate_uid(entropy_srcs=["specimen", *case, identity.specimen])
    stated.SpecimenDescriptionSequence = [specimen]
    return stated


def build_report(
    row: Mapping[str, Any],
    image: pydicom.Dataset,
    predictions: Mapping[str, Iterable[Any]],
    names_image: bool = True,
) -> pydicom.Dataset:
    """Return the structured report of one slide.

    row: of the slides table.  image: of level 0.  names_image: False for what `stated_identity` gives.  predictions:
    id of a bundle, or `membrane` → its rows of the predictions table.  Raises InputError when highdicom is not
    installed, or the image is not a whole-slide image.
    """
    try:
        import highdicom as hd
        from highdicom import sr
    except ImportError as error:
        remedy = install_extra("dicom")
        raise InputError("DICOM reports need the package highdicom", None, remedy) from error
    if image.get("SOPClassUID") != SLIDE_IMAGE:
        raise InputError("the file is not a whole-slide image", row["path"], "export another slide")
    for name in PATIENT_AND_STUDY:
        if name not in image:
            setattr(image, name, "")
    source = image if names_image else None
    groups = [_measurement_group(row, source, bundle, item) for bundle, items in predictions.items() for item in items]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=_device_observer(), subject_context=_specimen_context(image)
        ),
        procedure_reported=_coded_concept(IHC_PROCEDURE),
        imaging_measurements=groups,
        title=_coded_concept(("126000", "DCM", "Imaging Measurement Report")),
    )
    report: pydicom.Dataset = sr.ComprehensiveSR(
        evidence=[image], content=content[0], series_instance_uid=hd.UID(), series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(), instance_number=1, manufacturer="her2batch", is_complete=False, is_final=False,
        is_verified=False, series_description="her2batch, for research use",
    )  # fmt: skip
    report.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names and reasons are written as they are read
    if not names_image:  # highdicom lists the evidence, and there is no such image in the archive
        for name in ("PertinentOtherEvidenceSequence", "CurrentRequestedProcedureEvidenceSequence"):
            if name in report:
                delattr(report, name)
    return report


def _device_observer() -> Any:
    """Return her2batch as the observing device."""
    import highdicom as hd
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name="her2batch", manufacturer_name="her2batch", model_name=f"her2batch {version('her2batch')}"
    )
    return sr.ObserverContext(_coded_concept(("121007", "DCM", "Device")), device)


def _measurement_group(
    row: Mapping[str, Any], image: pydicom.Dataset | None, bundle: str, prediction: Mapping[str, Any]
) -> Any:
    """Return the measurement group of one prediction, one task by one method, with the image if there is one."""
    import highdicom as hd
    from highdicom import sr

    sources = None
    if image is not None:
        sources = [sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)]
    task, method = prediction["task"], prediction["method"]
    probabilities = enumerate(zip(prediction["classes"], prediction["p"], strict=True))
    figures = [(f"p{k}", f"Probability of {name}, {task}", p) for k, (name, p) in probabilities]
    if prediction["score"] is not None:
        meaning = "Continuous HER2 score, 0 to 3" if prediction["classes"] else f"Predicted number, {task}"
        figures.append(("score", meaning, prediction["score"]))
    algorithm = sr.AlgorithmIdentification(
        name=f"her2batch {method}, for research use", version=f"{version('her2batch')}, {bundle}"
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier=f"{row['slide_id']} {task} {method}"),
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(
                name=_coded_concept((f"{task}/{code}", SCHEME, meaning)),
                value=float(value),
                unit=_coded_concept(NO_UNITS),
            )
            for code, meaning, value in figures
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_coded_concept(question), _coded_concept(answer))
            for question, answer in coded_answers(prediction)
        ],
        source_images=sources,
    )


def coded_answers(prediction: Mapping[str, Any]) -> list[tuple[CodeTriple, CodeTriple]]:
    """Return a prediction as coded questions and answers: its class, whether it needs review, and the reasons.

    A class that is not in a LOINC answer list is coded by its position. A number is a measurement, and no answer.
    """
    task, predicted = prediction["task"], prediction["predicted"]
    reasons = [(REASON, (reason, SCHEME, reason)) for reason in prediction["reasons"]]
    review = (REVIEW, YES if prediction["review"] else NO)
    if not prediction["classes"]:
        return [review, *reasons]
    answer: tuple[CodeTriple, CodeTriple] = (
        (task, SCHEME, task),
        (f"{task}/c{prediction['classes'].index(predicted)}", SCHEME, predicted),
    )
    if task == "her2-4way":
        answer = HER2_BY_IHC, (ANSWERS[predicted], "LN", predicted)
    return [answer, review, *reasons]


def _specimen_context(image: pydicom.Dataset) -> Any:
    """Return the specimen that the slide states; None when it states none."""
    from highdicom import sr

    specimen = next(iter(image.get("SpecimenDescriptionSequence") or []), None)
    if specimen is None or not specimen.get("SpecimenUID"):
        return None
    details = sr.SubjectContextSpecimen(
        uid=specimen.SpecimenUID,
        identifier=specimen.get("SpecimenIdentifier") or None,
        container_identifier=image.get("ContainerIdentifier") or None,
    )
    return sr.SubjectContext(
        subject_class=_coded_concept(("121027", "DCM", "Specimen")), subject_class_specific_context=details
    )


def _coded_concept(triple: CodeTriple) -> Any:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = triple
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)
