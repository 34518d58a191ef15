"""X-rays of an archive to documents beside them, an order at a time (docs/hospital.md; the `read_pacs` job).

The archive itself says what is done: a document has the UID that follows from its source and the models, so what is
there is not made again, and what is stored twice is the same instance.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pydicom import Dataset

from adamatch_ray.data.images import decode, to_canvas
from adamatch_ray.data.pixels import BadImage
from adamatch_ray.engines.cycle import CycleEngine, row_seed
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.hospital.archive import Archive, Instance
from adamatch_ray.hospital.presentation import presentation_state
from adamatch_ray.hospital.source import document_uid, read_header
from adamatch_ray.hospital.structured_report import structured_report
from adamatch_ray.instructions import CXR_TO_REPORT
from adamatch_ray.model_config import GenerationSettings
from adamatch_ray.shards import MadeShard
from adamatch_ray.storage import Root

KINDS = ("SR", "PR")
"""Documents that each X-ray gets: its structured report and its overlay."""


class Unread(NamedTuple):
    """An X-ray, and which documents it has not got yet."""

    xray: Instance
    missing: tuple[str, ...]


class ReadingOrder(NamedTuple):
    """X-rays that are read together."""

    number: int
    xrays: tuple[Unread, ...]


def list_xrays(archive: Archive, day: str, version: str) -> Iterator[Unread]:
    """The radiographs of a day's studies with the documents that models of a version have not made of them yet."""
    for study in archive.studies(day):
        instances = archive.instances(study)
        there = {instance.uid for instance in instances}
        for xray in instances:
            if xray.is_radiograph:
                yield Unread(xray, tuple(k for k in KINDS if document_uid(xray.uid, k, version) not in there))


class ArchiveReader:
    """Makes the missing documents of X-rays and stores them, each X-ray's in one request."""

    def __init__(
        self, root: str, device: str, settings: GenerationSettings, *, url: str, seed: int, version: str
    ) -> None:
        """`version` is of the models of the root and of the settings: it goes into the documents and their UIDs."""
        self.engine = CycleEngine.load(Root(root), device, settings)
        self.archive = Archive(url)
        self.seed, self.version = seed, version

    def make(self, order: ReadingOrder) -> MadeShard:
        """Read the X-rays of an order; its rows are those read, `counts` those that could not be."""
        usable = [(wanted, *found) for wanted in order.xrays if (found := self._fetch(wanted.xray))]
        images = [image for *_, image in usable]
        seeds = [row_seed(self.seed, wanted.xray.uid, CXR_TO_REPORT) for wanted, *_ in usable]
        answers = self.engine.reports(images, seeds)
        written = [(*one, answer.report) for one, answer in zip(usable, answers, strict=True) if answer.report.strip()]
        phrases = self.engine.phrases([(image, report) for *_, image, report in written])
        for (wanted, header, _, report), seen in zip(written, phrases, strict=True):
            made: dict[str, Dataset] = {
                "SR": structured_report(header, report, seen, self.version),
                "PR": presentation_state(header, seen, self.version),
            }
            self.archive.store([made[kind] for kind in wanted.missing])
        refused = len(order.xrays) - len(written)
        return MadeShard(f"{order.number:05d}", len(written), reused=False, counts={"refused": refused})

    def _fetch(self, xray: Instance) -> tuple[Dataset, CanvasImage] | None:
        """The header and the canvas of an X-ray; None where it is none that can be read."""
        try:
            data = self.archive.retrieve(xray)
            decoded = decode(data, self.engine.canvas)
            header = read_header(data)
        except BadImage:
            return None
        return header, CanvasImage(to_canvas(decoded, self.engine.canvas), decoded.height, decoded.width)
