"""DICOM made from answers: what other programs read in it, and that it is valid by a validator that is not ours."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom.sr as sr
import numpy as np
import pydicom
import pytest
import softcopy
from pydicom.sr.codedict import codes
from radiographs import encoded, radiograph

from adamatch_ray.data.finding_codes import FINDING_CODES, OWN, SNOMED_CT, finding_code
from adamatch_ray.data.images import BadImage, decode
from adamatch_ray.engines.entities import read_lexicon
from adamatch_ray.engines.phrases import FINDING_GROUPS
from adamatch_ray.engines.placing import Phrase
from adamatch_ray.engines.regions import MASK, Region
from adamatch_ray.hospital.drawn import secondary_capture
from adamatch_ray.hospital.presentation import presentation_state
from adamatch_ray.hospital.source import NOTICE, read_header
from adamatch_ray.hospital.structured_report import structured_report

REPORT = "There is a large right pleural effusion. Possible callus. No pneumothorax."
VERSION = "0123456789ab"


def region(*boxes: tuple[int, int, int, int]) -> Region:
    """Cells of the mask, xyxy, as a region of an image of 320 x 320."""
    mask = np.zeros((MASK, MASK), dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    ends = np.array(boxes) * 320 / MASK
    box = (*ends[:, :2].min(0).tolist(), *ends[:, 2:].max(0).tolist())
    return Region(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), box, mask)


EFFUSION = region((30, 10, 44, 20))
PHRASES = (
    Phrase("pleural effusion", "pleural effusion", 23, (5, 6), False, True, 0.8, EFFUSION),
    Phrase("callus", "callus", 50, (8,), False, False, 0.1, region((1, 1, 5, 5))),
    Phrase("pneumothorax", "pneumothorax", 61, (10,), True, False, 0.0, None),
)


def square(**elements: Any) -> Any:
    """A radiograph of 320 x 320."""
    made = radiograph(3, **elements)
    made.Rows = made.Columns = 320
    made.PixelData = np.resize(np.frombuffer(made.PixelData, "<u2"), 320 * 320).tobytes()
    return made


def stored(made: pydicom.Dataset) -> pydicom.Dataset:
    """A document as it comes back from its bytes."""
    return pydicom.dcmread(io.BytesIO(encoded(made)))


def report_of(source: Any, phrases: tuple[Phrase, ...] = PHRASES) -> pydicom.Dataset:
    return stored(structured_report(read_header(encoded(source)), REPORT, phrases, VERSION))


def overlay_of(source: Any, phrases: tuple[Phrase, ...] = PHRASES) -> pydicom.Dataset:
    return stored(presentation_state(read_header(encoded(source)), phrases, VERSION))


def problems(made: pydicom.Dataset, path: Path) -> list[str]:
    """What dicom3tools find wrong with a document."""
    if not shutil.which("dciodvfy"):
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    path.write_bytes(encoded(made))
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True).stderr.splitlines()
    # Its dictionary is older than Synthetic Data (0008,001C), which came with DICOM 2023.
    return [line for line in said if line.startswith("Error") and "(0008,001c)" not in line]


def measurements(made: pydicom.Dataset) -> Any:
    """The content of a report as highdicom's parser reads it."""
    return sr.Comprehensive3DSR.from_dataset(made).content


def texts(made: pydicom.Dataset) -> list[str]:
    return [str(item.TextValue) for item in made.ContentSequence if item.ValueType == "TEXT"]


# ---- the structured report ------------------------------------------------------------------------------------------


def test_a_report_is_read_as_a_measurement_report_with_each_finding_its_sentence_and_region() -> None:
    source = square()
    made = report_of(source)
    read = measurements(made)
    (seen,) = read.get_planar_roi_measurement_groups()
    assert (seen.finding_type.scheme_designator, seen.finding_type.value) == (SNOMED_CT, "60046008")
    points = seen.roi.value
    assert points.min(0).tolist() == [150, 50] and points.max(0).tolist() == [220, 100]
    assert (points[0] == points[-1]).all()
    (unseen,) = read.get_image_measurement_groups()
    assert (unseen.finding_type.scheme_designator, unseen.finding_type.value) == (OWN, "callus")
    said = [[str(item.TextValue) for item in group[0].ContentSequence if item.name == codes.DCM.Comment]
            for group in (seen, unseen)]  # fmt: skip
    assert said == [["There is a large right pleural effusion."], ["Possible callus."]]
    assert texts(made)[-2:] == [REPORT, NOTICE]
    algorithm = [str(item.TextValue) for item in seen[0].ContentSequence if item.name == codes.DCM.AlgorithmVersion]
    assert algorithm and VERSION in algorithm[0]
    assert made.CompletionFlag == "COMPLETE" and made.VerificationFlag == "UNVERIFIED"


def test_documents_refer_to_their_source_and_to_nothing_else() -> None:
    source = square()
    report, overlay = report_of(source), overlay_of(source)
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = evidence.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert evidence.StudyInstanceUID == report.StudyInstanceUID == overlay.StudyInstanceUID == source.StudyInstanceUID
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == source.SOPClassUID
    named = {str(item.value) for made in (report, overlay) for item in made.iterall()
             if item.keyword == "ReferencedSOPInstanceUID"}  # fmt: skip
    assert named == {source.SOPInstanceUID}
    assert len({report.SeriesInstanceUID, overlay.SeriesInstanceUID, source.SeriesInstanceUID}) == 3


def test_the_same_source_and_models_give_the_same_instance_and_others_another() -> None:
    made = [report_of(square()), report_of(square()), overlay_of(square()), report_of(square(SOPInstanceUID="2.25.9"))]
    header = read_header(encoded(square()))
    uids = [one.SOPInstanceUID for one in [*made, structured_report(header, REPORT, PHRASES, "another")]]
    assert uids[0] == uids[1] and len(set(uids)) == 4


def test_patients_are_inherited_and_de_identified_sources_stay_so() -> None:
    made = report_of(square())
    assert (str(made.PatientName), made.PatientID, made.PatientBirthDate) == ("Müller^Eva", "P3", "19500203")
    bare = square(PatientIdentityRemoved="YES", DeidentificationMethod="removed", PatientName="", PatientID="anon")
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyTime"):
        delattr(bare, keyword)
    for made in (report_of(bare), overlay_of(bare)):
        assert (made.PatientIdentityRemoved, made.DeidentificationMethod, made.PatientID) == ("YES", "removed", "anon")
        assert not made.PatientName and not made.PatientBirthDate and not made.StudyTime


def test_odd_elements_are_left_out_and_what_nothing_can_refer_to_is_refused() -> None:
    with pydicom.config.disable_value_validation():
        odd = square(PatientBirthDate="1950.02.03", StudyTime="noon", PatientSex="W", WindowWidth="0", RescaleSlope="")
    made = report_of(odd)
    assert not made.PatientBirthDate and not made.StudyTime and not made.PatientSex
    assert "SoftcopyVOILUTSequence" not in overlay_of(odd)
    for wrong, reason in (
        ({"SeriesInstanceUID": ""}, "SeriesInstanceUID"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "no radiograph"),
    ):
        with pytest.raises(BadImage, match=reason):
            read_header(encoded(square(**wrong)))
    with pytest.raises(BadImage, match="without a SOPClassUID"):
        read_header(b"no DICOM at all, but some words that are long enough")


# ---- the presentation state -----------------------------------------------------------------------------------------


def test_an_overlay_draws_what_the_image_shows_and_says_what_it_is_good_for() -> None:
    state = overlay_of(square(), (*PHRASES, PHRASES[0]._replace(start=70)))
    (line,) = softcopy.lines(state)
    assert line.min(0).tolist() == [150, 50] and line.max(0).tolist() == [220, 100]
    assert softcopy.texts(state) == ["pleural effusion", f"adamatch_ray: {NOTICE}"]


def test_a_finding_in_pieces_is_drawn_in_pieces_and_reported_by_its_box() -> None:
    wire = (PHRASES[0]._replace(region=region((10, 10, 12, 20), (20, 30, 22, 40))),)
    assert len(softcopy.lines(overlay_of(square(), wire))) == 2
    (group,) = measurements(report_of(square(), wire)).get_planar_roi_measurement_groups()
    assert group.roi.value.tolist() == [[50, 50], [110, 50], [110, 200], [50, 200], [50, 50]]


@pytest.mark.parametrize("form", ["MONOCHROME2", "MONOCHROME1"])
def test_a_viewer_shows_the_image_as_it_was_read_with_the_region_on_the_same_pixels(form: str) -> None:
    source = radiograph(3, PhotometricInterpretation=form)
    state = overlay_of(source)
    read = decode(encoded(source)).pixels
    picture = np.asarray(softcopy.shown(source, state)).astype(int)
    plain = (picture == picture[..., :1]).all(-1)
    assert np.abs(picture[..., 0] - read)[plain].max() <= 1
    x, y = (int(value) for value in softcopy.lines(state)[0].mean(0))
    drawn_y, drawn_x = np.nonzero((picture == (255, 230, 0)).all(-1))
    assert drawn_x.min() < x < drawn_x.max() and drawn_y.min() < y < drawn_y.max()


# ---- a drawn X-ray --------------------------------------------------------------------------------------------------


def test_a_drawn_x_ray_is_marked_synthetic_and_keeps_its_pixels() -> None:
    pixels = np.arange(96 * 64, dtype=np.uint16).reshape(96, 64).astype(np.uint8)
    made = stored(secondary_capture(pixels, VERSION))
    assert (made.pixel_array == pixels).all()
    assert (made.SyntheticData, made.ConversionType, made.PatientID) == ("YES", "SYN", "SYNTHETIC")
    assert NOTICE in made.SeriesDescription and "Synthetic" in made.ImageComments
    assert made.SOPInstanceUID == secondary_capture(pixels, VERSION).SOPInstanceUID
    assert made.SOPInstanceUID != secondary_capture(pixels[::-1], VERSION).SOPInstanceUID


# ---- all of them ----------------------------------------------------------------------------------------------------


def test_an_independent_validator_finds_no_error(tmp_path: Path) -> None:
    source = square()
    assert problems(source, tmp_path / "source.dcm") == [], "the source itself"
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], np.arange(4096, dtype="<u2").tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    windowless = square(VOILUTSequence=[table], RescaleSlope="2", RescaleIntercept="-1")
    del windowless.WindowCenter, windowless.WindowWidth
    made = [
        report_of(source),
        report_of(source, ()),
        overlay_of(source),
        overlay_of(source, ()),
        overlay_of(windowless),
    ]
    made.append(stored(secondary_capture(np.zeros((8, 8), dtype=np.uint8), VERSION)))
    assert [problems(one, tmp_path / "made.dcm") for one in made] == [[]] * len(made)


def test_codes_are_of_terms_that_the_lexicon_has_and_snomed_s_are_those_of_dicom() -> None:
    lexicon = read_lexicon()
    assert FINDING_CODES.keys() <= {term for group in FINDING_GROUPS for term in lexicon[group]}
    known = {code.value for name in codes.SCT.dir() for code in [getattr(codes.SCT, name)]}
    assert {code.value for code in FINDING_CODES.values() if code.scheme == SNOMED_CT} <= known
    assert len({code.value for code in FINDING_CODES.values()}) == len(FINDING_CODES)
    assert finding_code("left ventricular hypertrophy") == (
        OWN,
        "left-ventricular-hypertrophy",
        "left ventricular hypertrophy",
    )
