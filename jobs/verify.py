"""usage: python jobs/verify.py [options]

Read every file of a root's finished stages and compare it with what its manifest says; exit 1 if one differs.
"""

import time
from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.specs import STAGES
from adamatch_ray.storage import Root


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Print a line a stage and one for each file that is lost or damaged; SystemExit 1 where there is one."""
    command, started = parse_command_line(arguments, __doc__ or ""), time.monotonic()
    from adamatch_ray.shards import Progress

    stages = [Root(command.root).stage(name) for name in STAGES]
    found = [(stage, manifest) for stage in stages if (manifest := stage.manifest())]
    total = sum(size for _, manifest in found for size in manifest.sizes.values())
    progress = Progress("verify", max(1, total >> 20), "MB")
    wrong: list[str] = []
    files = read = 0
    for stage, manifest in found:
        before = len(wrong)
        for name, size in manifest.sizes.items():
            if what := stage.damage(name, manifest):
                wrong.append(f"{stage.name}/{name}: {what}; run: {stage.mend()}")
            files, told, read = files + 1, read >> 20, read + size
            progress.add((read >> 20) - told)
        state = f"{len(wrong) - before} damaged" if len(wrong) > before else "whole"
        state = state if manifest.sizes else "no digests: made by an earlier version"
        print(f"{stage.name:<12} {len(manifest.sizes):>6} files {sum(manifest.sizes.values()):>14,} bytes  {state}")
    print("\n".join(wrong), end="\n" if wrong else "")
    if wrong:
        raise SystemExit(1)
    return {"stage": "verify", "status": "done", "output": command.root,
            "seconds": round(time.monotonic() - started, 1),
            "stages": len(found), "files": files, "bytes": read}  # fmt: skip


if __name__ == "__main__":
    run_as_command(main)
