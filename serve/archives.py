"""X-rays by their study's DICOMweb URL, from the archives that the operator names and from nowhere else."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adamatch_ray.data.pixels import BadImage
from adamatch_ray.geometry import CanvasImage
from serve.images import Decoder
from serve.problems import Problem

_PATH = re.compile(r"/studies/([0-9.]{1,64})(?:/series/([0-9.]{1,64})/instances/([0-9.]{1,64}))?")
_MOST = 8
"""Radiographs of a study that are looked at for a frontal X-ray of the chest."""


class Archives:
    """Reads from the archives whose DICOMweb roots are listed, separated by commas."""

    def __init__(self, roots: str, decode: Decoder, timeout_s: float, threads: int = 4) -> None:
        self._roots = [root.strip().rstrip("/") for root in roots.split(",") if root.strip()]
        self._decode, self._timeout = decode, timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="archive")

    async def __call__(self, url: str) -> CanvasImage:
        """The canvas of the instance that a URL names, or of the first frontal X-ray of the chest in its study.

        Raises Problem 404 (not of a listed archive, or not there), 422 (no such X-ray) or 503 (the archive fails).
        """
        # The whole URL is a listed root and digits: nothing in it can be read as another host, user or path.
        root = next((root for root in self._roots if url.startswith(f"{root}/studies/")), "")
        named = _PATH.fullmatch(url.removeprefix(root)) if root else None
        if named is None:
            raise Problem(404, "no study of an archive that this service may read (setting archives)")
        from adamatch_ray.hospital.archive import Archive, Instance

        archive, (study, series, instance) = Archive(root, self._timeout, retry=False), named.groups()
        if instance:
            xrays = [Instance(study, series, instance, "")]
        else:
            xrays = [found for found in await self._ask(archive.instances, study) if found.is_radiograph]
        problem = Problem(422, "the study has no radiograph")
        for xray in xrays[:_MOST]:
            try:
                return await self._decode(await self._ask(archive.retrieve, xray))
            except Problem as found:
                if found.status not in (413, 415, 422):
                    raise
                problem = found
        raise problem

    async def _ask(self, ask: Callable[[Any], Any], what: object) -> Any:
        from adamatch_ray.hospital.archive import ArchiveError

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, ask, what)
        except BadImage as error:
            raise Problem(422, f"this X-ray cannot be used: {error}") from error
        except ArchiveError as error:
            if 400 <= error.status < 500:
                raise Problem(404, "the archive does not have it, or does not show it to this service") from error
            raise Problem(503, "the archive gives no answer; try again", retry_after=5) from error
