"""A hospital's archive by DICOMweb: what it has of a day, one image of it, and documents stored beside it.

Redirects are not followed: an archive answers itself, or it is the wrong address. DICOMWEB_AUTHORIZATION is sent as the
Authorization header where it is set. No error names a patient, a study or an instance.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pydicom
import requests
import retrying
from dicomweb_client import DICOMwebClient
from pydicom.errors import InvalidDicomError

from adamatch_ray.data.pixels import BadImage
from adamatch_ray.hospital.source import RADIOGRAPHS

AUTHORIZATION = "DICOMWEB_AUTHORIZATION"


class ArchiveError(OSError):
    """The archive did not do what it was asked; the message names the archive and what was asked of it.

    `status` is what it answered by HTTP, 0 where it did not.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Instance(NamedTuple):
    """What an archive has, by its UIDs."""

    study: str
    series: str
    uid: str
    sop_class: str

    @property
    def is_radiograph(self) -> bool:
        """Whether reports are written on it."""
        return self.sop_class in RADIOGRAPHS


class Archive:
    """One archive, by the root of its DICOMweb services."""

    def __init__(self, url: str, timeout_s: float = 60.0, retry: bool = True) -> None:
        """`retry`: ask again, up to five times and ever later, where the archive is busy or away."""
        self.url = url.rstrip("/")
        session = requests.Session()
        session.max_redirects = 0
        given = os.environ.get(AUTHORIZATION)
        headers = {"Authorization": given} if given else None
        with self._asking("its address"):
            self._client = DICOMwebClient(self.url, session, headers=headers, permissive_uid=True, timeout=timeout_s)
        self._client.set_http_retry_params(retry)

    def studies(self, day: str) -> list[str]:
        """UIDs of the studies of a day, YYYYMMDD, or of a range of days, YYYYMMDD-YYYYMMDD."""
        with self._asking("studies of a day"):
            found = self._client.search_for_studies(search_filters={"StudyDate": day}, get_remaining=True)
        return sorted({_value(study, "0020000D") for study in found})

    def instances(self, study: str) -> list[Instance]:
        """All that a study has, in order of UIDs."""
        with self._asking("instances of a study"):
            found = self._client.search_for_instances(study, fields=["SOPClassUID"], get_remaining=True)
        tags = ("0020000E", "00080018", "00080016")
        return sorted({Instance(study, *(_value(instance, tag) for tag in tags)) for instance in found})

    def retrieve(self, instance: Instance) -> bytes:
        """The file of an instance, in the transfer syntax it is stored in. Raises BadImage where it is no file."""
        try:
            with self._asking("an instance"):
                made = self._client.retrieve_instance(instance.study, instance.series, instance.uid)
        except InvalidDicomError:
            raise BadImage("truncated or corrupt DICOM") from None
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, made, enforce_file_format=True)
        return stream.getvalue()

    def store(self, documents: Sequence[pydicom.Dataset]) -> None:
        """Store documents; one that is there already stays as it is."""
        with self._asking("to store documents"):
            answer = self._client.store_instances(documents)
        if failed := answer.get("FailedSOPSequence"):
            reason = failed[0].get("FailureReason", 0)
            raise ArchiveError(
                f"archive {self.url} refused {len(failed)} document(s), reason {reason:04X}H (PS3.18 I.2)"
            )

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            raise ArchiveError(f"archive {self.url}: asked for {what}, it answered {status}", status) from None
        except requests.TooManyRedirects:
            raise ArchiveError(
                f"archive {self.url}: it redirects, which is not followed; name its own address"
            ) from None
        except (requests.RequestException, retrying.RetryError, ValueError, KeyError) as error:
            raise ArchiveError(
                f"archive {self.url}: asked for {what}, there was no usable answer ({type(error).__name__})"
            ) from None


def _value(found: dict[str, Any], tag: str) -> str:
    return str(found[tag]["Value"][0])
