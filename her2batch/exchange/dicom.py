"""A slide's scores as a DICOM structured report that a hospital's archive files beside the slide it is about.

Comprehensive SR, template TID 1500 (measurement report) with one group (TID 1501) a method: the class of each task,
the probabilities, the algorithm and the source image. Patient, study and specimen are the source's own, so there is a
report only for slides that were scanned as DICOM and whose file is there. HER2 by IHC is LOINC 85319-2 with the
answers of its own list; what no public code says has one of ours (scheme 99HER2BATCH). Never final, never verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.errors import InvalidDicomError

from her2batch.errors import InputError

SCHEME: Final = "99HER2BATCH"
"""Private coding schemes begin with 99 (PS3.16, 8)."""

CodeTriple = tuple[str, str, str]
"""Code value, coding scheme, meaning."""

HER2_BY_IHC: Final = ("85319-2", "LN", "HER2 [Presence] in Breast cancer specimen by Immune stain")

LOINC_ANSWERS: Final = {"0": "LA6111-4", "1+": "LA11841-6", "2+": "LA11842-4", "3+": "LA11843-2"}
"""LOINC's answers to it."""

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
"""Of patient and study: copied, empty where the source has none (type 2)."""

SERIES_NUMBER: Final = 7001
"""Of our series within the study, apart from a scanner's."""


def source_image(row: Mapping[str, Any]) -> pydicom.Dataset:
    """The level-0 image of a DICOM slide, without its pixels. Raises InputError when it isn't where it was."""
    path = Path(row["path"])
    remedy = "put the slide's files back where they were ingested from"
    try:
        given = pydicom.dcmread(path, stop_before_pixels=True)
        beside = sorted(one for one in path.parent.iterdir() if one != path and one.suffix == path.suffix)
    except (OSError, InvalidDicomError) as error:
        raise InputError("can't be read as DICOM", path, remedy) from error
    if _is_base(given, row):
        return given
    for other in beside:
        try:
            found = pydicom.dcmread(other, stop_before_pixels=True)
        except (OSError, InvalidDicomError):
            continue
        if found.get("SeriesInstanceUID") == given.get("SeriesInstanceUID") and _is_base(found, row):
            return found
    raise InputError(f"no image of its series is {row['width']} px wide", path, remedy)


def _is_base(image: pydicom.Dataset, row: Mapping[str, Any]) -> bool:
    """Whether it is the slide's level 0: a thumbnail can be as wide."""
    return image.get("TotalPixelMatrixColumns") == row["width"] and "VOLUME" in (image.get("ImageType") or "")


def build_report(
    row: Mapping[str, Any], image: pydicom.Dataset, predictions: Mapping[str, Iterable[Any]]
) -> pydicom.Dataset:
    """The structured report of one slide.

    image: of level 0.  predictions: a bundle's id, or `membrane` → its rows of the predictions table.
    Raises InputError when highdicom is not there, or the image is no slide.
    """
    try:
        import highdicom as hd
        from highdicom import sr
    except ImportError as error:
        raise InputError("DICOM reports need highdicom", None, "pip install 'her2batch[dicom]'") from error
    if image.get("SOPClassUID") != SLIDE_IMAGE:
        raise InputError("is no whole-slide image", row["path"], "export another slide")
    for name in PATIENT_AND_STUDY:
        if name not in image:
            setattr(image, name, "")
    groups = [_measurement_group(row, image, made, one) for made, rows in predictions.items() for one in rows]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=_device_observer(), subject_context=_specimen_context(image)
        ),
        procedure_reported=_coded_concept(IHC_PROCEDURE),
        imaging_measurements=groups,
        title=_coded_concept(("126000", "DCM", "Imaging Measurement Report")),
    )
    return sr.ComprehensiveSR(
        evidence=[image], content=content[0], series_instance_uid=hd.UID(), series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(), instance_number=1, manufacturer="her2batch", is_complete=False, is_final=False,
        is_verified=False, series_description="her2batch, for research use",
    )  # fmt: skip


def _device_observer() -> Any:
    """We, as the device that observed."""
    import highdicom as hd
    from highdicom import sr

    made_by = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name="her2batch", manufacturer_name="her2batch", model_name=f"her2batch {version('her2batch')}"
    )
    return sr.ObserverContext(_coded_concept(("121007", "DCM", "Device")), made_by)


def _measurement_group(row: Mapping[str, Any], image: pydicom.Dataset, made: str, one: Mapping[str, Any]) -> Any:
    """What one method says of one task."""
    import highdicom as hd
    from highdicom import sr

    name = f"{row['slide_id']} {one['task']} {one['method']}"
    chances = enumerate(zip(one["classes"], one["p"], strict=True))
    figures = [(f"p{k}", f"Probability of {what}, {one['task']}", p) for k, (what, p) in chances]
    if one["score"] is not None:
        figures.append(("score", "Continuous HER2 score, 0 to 3", one["score"]))
    algorithm = sr.AlgorithmIdentification(
        name=f"her2batch {one['method']}, for research use", version=f"{version('her2batch')}, {made}"
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier=name),
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(
                name=_coded_concept((f"{one['task']}/{code}", SCHEME, words)),
                value=float(value),
                unit=_coded_concept(NO_UNITS),
            )
            for code, words, value in figures
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_coded_concept(name), _coded_concept(value)) for name, value in coded_answers(one)
        ],
        source_images=[sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )


def coded_answers(one: Mapping[str, Any]) -> list[tuple[CodeTriple, CodeTriple]]:
    """A prediction's class, whether a pathologist should look first, and why: questions and answers, coded.

    A class that LOINC has no answer for goes by its position.
    """
    task, predicted = one["task"], one["predicted"]
    answer: tuple[CodeTriple, CodeTriple] = (
        (task, SCHEME, task),
        (f"{task}/c{one['classes'].index(predicted)}", SCHEME, predicted),
    )
    if task == "her2-4way":
        answer = HER2_BY_IHC, (LOINC_ANSWERS[predicted], "LN", predicted)
    reasons = [(REASON, (reason, SCHEME, reason)) for reason in one["reasons"]]
    return [answer, (REVIEW, YES if one["review"] else NO), *reasons]


def _specimen_context(image: pydicom.Dataset) -> Any:
    """The specimen that the source says it shows; None when it says nothing."""
    from highdicom import sr

    said = next(iter(image.get("SpecimenDescriptionSequence") or []), None)
    if said is None or not said.get("SpecimenUID"):
        return None
    details = sr.SubjectContextSpecimen(
        uid=said.SpecimenUID,
        identifier=said.get("SpecimenIdentifier") or None,
        container_identifier=image.get("ContainerIdentifier") or None,
    )
    return sr.SubjectContext(
        subject_class=_coded_concept(("121027", "DCM", "Specimen")), subject_class_specific_context=details
    )


def _coded_concept(triple: CodeTriple) -> Any:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = triple
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)
