"""usage: python jobs/draw_gallery.py [options]

Draw studies of a split with the regions their words matched, as one page and as PNGs, to <root>/gallery/.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.storage import Root, Stage


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Match the first studies of a split and write `gallery/index.html` and two PNGs a study."""
    command = parse_command_line(arguments, __doc__ or "")
    options, target = command.config.gallery, Stage(Root(command.root), "gallery")
    if command.dry_run:
        print(f"# {options.studies} {options.split} studies -> {target.uri}")
        return {"stage": "gallery", "status": "planned", "output": target.uri, "seconds": 0.0}
    started = time.monotonic()
    from adamatch_ray.cluster import on_device
    from adamatch_ray.pages.gallery import draw_gallery

    files = on_device(command.config.scale, partial(draw_gallery, command.root, options.split, options.studies))
    for name, data in files.items():
        target.write_bytes(name, data)
    seconds = round(time.monotonic() - started, 1)
    output = f"{target.uri}/index.html"
    return {"stage": "gallery", "status": "done", "output": output, "seconds": seconds, "studies": len(files) // 2}


if __name__ == "__main__":
    run_as_command(main)
