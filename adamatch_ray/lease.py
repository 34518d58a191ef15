"""Who is making a stage: a lease, so that two runs never write one stage at once.

The holder rewrites `lease.json` with a count that grows. Others compare what they read with what they read before, and
measure the pause on their own clock; no clock is ever compared with another machine's. A lease that stays the same for
`patience` seconds was left by a dead run and is taken; one whose process is known to be dead is taken at once.

Where a store cannot create a file exclusively, two runs may both begin within one `interval`; the later writer wins and
the other sees it at its next beat, at the latest in `check`, before it commits. Until then both write equal files.
"""

import json
import os
import platform
import sys
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

from adamatch_ray.storage import LEASE, Stage


class Lease:
    """This process's claim on a stage, alive until it is released, collected, or the process ends."""

    def __init__(self, stage: Stage, run: str, interval: float = 5.0, patience: float = 60.0) -> None:
        """Take the lease of `stage`. Raises ValueError naming the run that holds it."""
        self.stage = stage
        holder = {"holder": uuid.uuid4().hex, "run": run, **_process()}
        _wait_for(stage, interval, patience)
        if not stage.create_bytes(LEASE, _text(holder, 0)):
            raise ValueError(_refusal(stage, stage.read_text(LEASE) or ""))
        self._holder = holder["holder"]
        done = threading.Event()
        self._release = weakref.finalize(self, _give_up, stage, self._holder, done)
        threading.Thread(target=_beat, args=(stage, holder, interval, done), daemon=True).start()

    def check(self) -> None:
        """Raises RuntimeError when another run has taken the stage over, which this one must then not commit."""
        text = self.stage.read_text(LEASE)
        if text is None or _parse(text).get("holder") != self._holder:
            raise RuntimeError(f"{self.stage.uri}: another run took this stage over; {_name(_parse(text or ''))}")

    def release(self) -> None:
        """Give the stage free. Safe to repeat."""
        self._release()


def _wait_for(stage: Stage, interval: float, patience: float) -> None:
    """Return once nobody holds the lease: it is not there, or its holder was found dead and it was removed."""
    first = stage.read_text(LEASE)
    if first is None:
        return
    if not _is_dead(_parse(first)):
        held = f"{stage.name}: {_name(_parse(first))} holds {stage.uri}"
        print(f"{held}; waiting up to {patience:.0f} s for a sign of life", file=sys.stderr)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            time.sleep(interval / 2)
            text = stage.read_text(LEASE)
            if text is None:
                return
            if text != first:
                raise ValueError(_refusal(stage, text))
    stage.remove(LEASE)


def _beat(stage: Stage, holder: dict[str, Any], interval: float, done: threading.Event) -> None:
    count = 0
    while not done.wait(interval):
        count += 1
        try:
            text = stage.read_text(LEASE)
            if done.is_set() or text is None or _parse(text).get("holder") != holder["holder"]:
                return
            stage.write_bytes(LEASE, _text(holder, count))
        except Exception as error:  # whatever storage raises now, it may be back at the next beat
            print(f"{stage.name}: lease not renewed ({type(error).__name__}), trying again", file=sys.stderr)


def _give_up(stage: Stage, holder: str, done: threading.Event) -> None:
    done.set()
    try:
        if _parse(stage.read_text(LEASE) or "").get("holder") == holder:
            stage.remove(LEASE)
    except (OSError, RuntimeError):  # at the end of a process storage may be out of reach; the lease then runs out
        print(f"{stage.name}: the lease in {stage.uri} was left behind and runs out by itself", file=sys.stderr)


def _process() -> dict[str, Any]:
    """This process, and what tells its machine (or container) from others of the same name."""
    marks = [platform.node()]
    if sys.platform == "linux":
        boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
        marks += [boot.read_text().strip(), str(space.readlink())]
    return {"host": platform.node(), "machine": " ".join(marks), "pid": os.getpid()}


def _is_dead(holder: dict[str, Any]) -> bool:
    """True only for a process of this very machine that has ended, or for an earlier attempt of this process."""
    here = _process()
    if holder.get("machine") != here["machine"]:
        return False
    if holder["pid"] == here["pid"]:
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _text(holder: dict[str, Any], count: int) -> bytes:
    return json.dumps({**holder, "beat": count}).encode()


def _parse(text: str) -> dict[str, Any]:
    """The lease as it was read; nothing of one that is just being written."""
    try:
        holder: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return holder


def _name(holder: dict[str, Any]) -> str:
    return f"run '{holder.get('run', '?')}' on {holder.get('host', '?')}, process {holder.get('pid', '?')}"


def _refusal(stage: Stage, text: str) -> str:
    return f"{stage.uri} is being made by {_name(_parse(text))}; wait for it, or use another --root"
