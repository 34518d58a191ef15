"""A report and its findings as a DICOM structured report: Comprehensive 3D SR, template TID 1500 (PS3.16)."""

import re
from collections.abc import Sequence
from typing import Any

import highdicom.sr as sr
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from adamatch_ray.data.finding_codes import finding_code
from adamatch_ray.engines.placing import Phrase
from adamatch_ray.engines.regions import Region
from adamatch_ray.hospital.source import NOTICE, PRODUCT, derived_uid, document_fields, software_version

_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
_Group = sr.PlanarROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def structured_report(header: Dataset, report: str, phrases: Sequence[Phrase], version: str) -> sr.Comprehensive3DSR:
    """The report of the image that `header` (`source.read_header`) is of, by models of a version.

    Each finding that the report affirms is a group of its own: coded, with its sentence, and with its region in pixels
    of the image where the image shows it. What the report denies is in its text alone.
    """
    maker = _GroupMaker(header, report, version)
    groups = [maker.finding(phrase, f"{n}") for n, phrase in enumerate(phrases, start=1) if not phrase.denied]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid(PRODUCT, version), name=PRODUCT, model_name=software_version(version)
    )
    observer = sr.ObserverContext(sr.CodedConcept.from_code(codes.DCM.Device), device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_RADIOGRAPHY,
        imaging_measurements=groups or [maker.report()],  # the template wants one
    )
    content[0].ContentSequence.extend([_text(codes.DCM.Finding, report), _text(codes.DCM.Comment, NOTICE)])
    return sr.Comprehensive3DSR(
        evidence=[header], content=content, is_complete=True, is_verified=False,
        **document_fields(header, "SR", version),
    )  # fmt: skip


def corners(region: Region, header: Dataset) -> NDArray[np.float64]:
    """Points [N, 2] (column, row) of the closed line around a region: its outline, or its box where it has parts."""
    rings = region.outline(header.Rows, header.Columns)
    if len(rings) == 1 and len(rings[0]) > 3:
        return np.array(rings[0])
    x0, y0, x1, y1 = region.box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])


def sentence_at(report: str, start: int) -> str:
    """The sentence of a report that has the letter number `start`."""
    ends = [0, *(end.end() for end in _SENTENCE_END.finditer(report)), len(report)]
    return report[max(end for end in ends if end <= start) : min(end for end in ends if end > start)].strip()


class _GroupMaker:
    """Measurement groups of one report."""

    def __init__(self, header: Dataset, report: str, version: str) -> None:
        self._header, self._report, self._version = header, report, version
        self._algorithm = sr.AlgorithmIdentification(PRODUCT, software_version(version))

    def finding(self, phrase: Phrase, number: str) -> _Group:
        """A finding with its sentence, and its region where the image shows it."""
        code = finding_code(phrase.finding)
        known = self._shared(f"{number} {phrase.finding}") | {
            "finding_type": Code(code.value, code.scheme, code.meaning)
        }
        sentence = sentence_at(self._report, phrase.start)
        if not phrase.groundable or phrase.region is None:
            return self._of_image(known, sentence)
        source = sr.SourceImageForRegion(self._header.SOPClassUID, self._header.SOPInstanceUID)
        region = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, corners(phrase.region, self._header), source)
        return _commented(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **known), sentence
        )

    def report(self) -> _Group:
        """The report of an image as a whole."""
        return self._of_image(self._shared("report"), self._report)

    def _of_image(self, known: dict[str, Any], text: str) -> _Group:
        source = sr.SourceImageForMeasurementGroup(self._header.SOPClassUID, self._header.SOPInstanceUID)
        return _commented(sr.MeasurementsAndQualitativeEvaluations(source_images=[source], **known), text)

    def _shared(self, name: str) -> dict[str, Any]:
        uid = derived_uid(self._header.SOPInstanceUID, self._version, name)
        return {"tracking_identifier": sr.TrackingIdentifier(uid, name), "algorithm_id": self._algorithm}


def _commented(group: _Group, text: str) -> _Group:
    group[0].ContentSequence.append(_text(codes.DCM.Comment, text))
    return group


def _text(name: Code, value: str) -> sr.TextContentItem:
    return sr.TextContentItem(name, value, sr.RelationshipTypeValues.CONTAINS)
