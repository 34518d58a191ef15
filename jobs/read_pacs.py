"""usage: python jobs/read_pacs.py --pacs.url https://…/dicom-web --pacs.day YYYYMMDD [options]

Read the X-rays of an archive's studies of a day and store a structured report and an overlay beside each; those that
have theirs are left alone. Research use only.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.storage import Root

if TYPE_CHECKING:
    from adamatch_ray.config import RunConfig


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Ask what the archive has, read what is unread on a pool of actors, store as it is made."""
    command = parse_command_line(arguments, __doc__ or "")
    config, root, started = command.config, Root(command.root), time.monotonic()
    options = config.pacs
    if not options.url or not options.day:
        raise ValueError("say where and when: --pacs.url https://…/dicom-web --pacs.day YYYYMMDD")
    version = _version(config, root)
    from adamatch_ray.cluster import device_of
    from adamatch_ray.hospital.archive import Archive
    from adamatch_ray.pipeline.archived import ArchiveReader, ReadingOrder, list_xrays
    from adamatch_ray.shards import spread

    xrays = list(list_xrays(Archive(options.url), options.day, version))
    unread = [xray for xray in xrays if xray.missing]
    print(f"pacs: {len(xrays)} X-rays, {len(unread)} of them to be read", file=sys.stderr)
    answer = {"stage": "pacs", "status": "planned", "output": options.url, "seconds": 0.0, "xrays": len(xrays)}
    if command.dry_run:
        return answer | {"unread": len(unread)}
    parts = range(0, len(unread), options.batch)
    orders = [ReadingOrder(n, tuple(unread[start : start + options.batch])) for n, start in enumerate(parts)]
    maker = partial(
        ArchiveReader,
        command.root,
        device_of(config.scale),
        config.generate,
        url=options.url,
        seed=config.generate.seed,
        version=version,
    )
    shards = list(spread(orders, maker, config.scale, "pacs"))
    return answer | {
        "status": "done",
        "seconds": round(time.monotonic() - started, 1),
        "read": sum(shard.rows for shard in shards),
        "read_before": len(xrays) - len(unread),
        "refused": sum(shard.counts["refused"] for shard in shards),
        "version": version,
    }


def _version(config: "RunConfig", root: Root) -> str:
    """Identity of what would be written of an X-ray: of the models, of how they are used, and of this program."""
    from adamatch_ray import __version__
    from adamatch_ray.shards import identity_of

    models = {
        name: root.stage(name).require().fingerprint for name in ("adamatch", "codebooks", "vqgan", "tokens", "llm")
    }
    place = root.stage("place").manifest()
    options = config.generate
    return identity_of(models, place and place.fingerprint, options.deciding(), options.seed, __version__)[:12]


if __name__ == "__main__":
    run_as_command(main)
