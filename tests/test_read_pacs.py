"""An archive's X-rays are read once, each gets its two documents, and every region is where the answer says."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom.sr as sr
import numpy as np
import pydicom
import pytest
import requests
import softcopy
from drill import answer, running, wait_until
from drill import job as command_of
from orthanc_server import orthanc
from radiographs import DAY, encoded, radiograph

from adamatch_ray.config import load_config
from adamatch_ray.data.images import decode, to_canvas
from adamatch_ray.engines.generation import ReportResult
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.hospital.archive import Archive
from adamatch_ray.hospital.structured_report import corners
from adamatch_ray.pipeline.archived import ArchiveReader, ReadingOrder, list_xrays

VERSION = "0123456789ab"
SR_CLASS, PR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.11.1"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """An Orthanc with seven phantoms of one day, one of another day, a lateral view and something that is no X-ray."""
    with orthanc(tmp_path) as url:
        archive = Archive(url)
        archive.store([radiograph(index, side=96) for index in range(7)])
        archive.store([radiograph(7, side=96, StudyDate="20260103"), radiograph(8, side=96, ViewPosition="LL")])
        archive.store([radiograph(9, side=96, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")])
        yield archive


def reader(root: Path, archive: Archive) -> ArchiveReader:
    settings = load_config("phantom").generate
    return ArchiveReader(str(root), "cpu", settings, url=archive.url, seed=3, version=VERSION)


def documents(archive: Archive, day: str = DAY) -> list[pydicom.Dataset]:
    """All that was stored beside the X-rays of a day."""
    kept = [one for study in archive.studies(day) for one in archive.instances(study)]
    return [pydicom.dcmread(io.BytesIO(archive.retrieve(one))) for one in kept if one.sop_class in (SR_CLASS, PR_CLASS)]


def kinds(archive: Archive) -> dict[str, int]:
    return dict(Counter(str(made.Modality) for made in documents(archive)))


def stored(url: str) -> int:
    """Number of instances, by Orthanc's own interface."""
    return int(requests.get(f"{url.removesuffix('/dicom-web')}/statistics").json()["CountInstances"])


def remove(archive: Archive, uid: str) -> None:
    """Delete an instance by Orthanc's own interface."""
    base = archive.url.removesuffix("/dicom-web")
    (found,) = requests.post(f"{base}/tools/lookup", data=uid).json()
    requests.delete(f"{base}/instances/{found['ID']}").raise_for_status()


def test_each_x_ray_is_read_once_and_what_is_missing_is_added(cycle_root: Path, archive: Archive) -> None:
    xrays = list(list_xrays(archive, DAY, VERSION))
    assert len(xrays) == 8 and {xray.missing for xray in xrays} == {("SR", "PR")}
    reading = reader(cycle_root, archive)
    first = reading.make(ReadingOrder(0, tuple(xrays[:3])))  # and here the run ends
    assert first.rows + first.counts["refused"] == 3
    lost = next(made for made in documents(archive) if made.Modality == "PR")
    remove(archive, lost.SOPInstanceUID)  # as if it had ended between the two
    left = [xray for xray in list_xrays(archive, DAY, VERSION) if xray.missing]
    assert sorted(xray.missing for xray in left).count(("PR",)) == 1
    reading.make(ReadingOrder(1, tuple(left)))
    assert kinds(archive) == {"SR": 7, "PR": 7}
    assert lost.SOPInstanceUID in {made.SOPInstanceUID for made in documents(archive)}
    reading.make(ReadingOrder(2, tuple(xrays)))  # as if another run had not seen that they are there
    assert kinds(archive) == {"SR": 7, "PR": 7}
    left = [xray for xray in list_xrays(archive, DAY, VERSION) if xray.missing]
    assert [str(pydicom.dcmread(io.BytesIO(archive.retrieve(one.xray))).ViewPosition) for one in left] == ["LL"]
    assert len([x for x in list_xrays(archive, f"{DAY}-20260103", "other models") if x.missing == ("SR", "PR")]) == 9


class Dictated:
    """A language model that says the same of every X-ray: the untrained one names no finding."""

    report = "There is a large left pleural effusion. A nodule in the right upper zone. No pneumothorax."

    def cxr_to_report(self, requests: Sequence[Any]) -> list[ReportResult]:
        return [ReportResult(self.report, [], "ok") for _ in requests]


def test_each_region_is_where_the_answer_says(
    cycle_root: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = reader(cycle_root, archive)
    monkeypatch.setattr(reading.engine, "generation", Dictated())
    reading.make(ReadingOrder(0, tuple(list_xrays(archive, DAY, VERSION))))
    made = {(str(one.Modality), _source(one)): one for one in documents(archive)}
    for index in range(7):
        source = radiograph(index, side=96)
        decoded = decode(encoded(source))
        image = CanvasImage(to_canvas(decoded, reading.engine.canvas), *decoded.pixels.shape)
        (phrases,) = reading.engine.phrases([(image, Dictated.report)])
        effusion, nodule, denied = (phrase.region for phrase in phrases)
        assert effusion and nodule and denied is None
        overlay, report = (made[kind, str(source.SOPInstanceUID)] for kind in ("PR", "SR"))
        wanted = [ring for region in (effusion, nodule) for ring in region.outline(*decoded.pixels.shape)]
        assert all(np.allclose(*pair, atol=0.01) for pair in zip(softcopy.lines(overlay), wanted, strict=True))
        parsed: Any = sr.Comprehensive3DSR.from_dataset(report).content
        groups = parsed.get_planar_roi_measurement_groups()
        for group, region in zip(groups, (effusion, nodule), strict=True):
            assert np.allclose(group.roi.value, corners(region, source), atol=0.01)
        assert Dictated.report in [str(item.TextValue) for item in report.ContentSequence if "TextValue" in item]


def _source(made: pydicom.Dataset) -> str:
    """UID of the only image that a document refers to."""
    (uid,) = {str(item.value) for item in made.iterall() if item.keyword == "ReferencedSOPInstanceUID"}
    return uid


# ---- the job --------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_is_killed_and_run_again_leaves_two_documents_an_x_ray(cycle_root: Path, tmp_path: Path) -> None:
    with orthanc(tmp_path) as url:
        archive = Archive(url)
        archive.store([radiograph(index, side=96) for index in range(20)])
        where = ["--root", str(cycle_root), "--pacs.url", url, "--pacs.day", DAY]
        command = command_of("read_pacs", *where, "--pacs.batch", "1", "--generate.report_tokens", "64")
        with running(command, tmp_path / "first.log") as process:
            wait_until(lambda: stored(url) >= 20 + 4, process, tmp_path / "first.log")
        before = len(documents(archive))
        assert 4 <= before < 40, "it was not killed in the middle"
        with running(command, tmp_path / "second.log") as process:
            done = answer(process, tmp_path / "second.log")
        assert kinds(archive) == {"SR": 20, "PR": 20}
        assert done["xrays"] == 20 and done["refused"] == 0 and done["read"] + done["read_before"] == 20
        assert done["read_before"] in (before // 2, before // 2 - 1)
        logs = (tmp_path / "first.log").read_text() + (tmp_path / "second.log").read_text()
        assert "Müller" not in logs and "2.25." not in logs and "effusion" not in logs


def test_a_job_without_an_archive_or_stages_says_what_to_give(job: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--pacs\.url"):
        job("read_pacs")(["--root", str(tmp_path)])
    with pytest.raises(ValueError, match="train_adamatch"):
        job("read_pacs")(["--root", str(tmp_path), "--pacs.url", "http://127.0.0.1:1", "--pacs.day", DAY])
