"""How speed and memory are compared: contenders in turns, medians, a fresh process for a peak, one kind of row.

On a shared machine wall time is luck, so CPU seconds count; and since a busy machine slows everybody, the contenders
take turns. A figure stands only beside a peer's from the same run, after both were found to agree.
"""

import ctypes
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Row = dict[str, Any]
"""{name, ours, peer, ratio, unit, …, hardware, versions, date}; `ratio` above 1: ours is so many times better."""

Work = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


class Timing(NamedTuple):
    """Seconds of one call; CPU seconds are those of all threads of this process."""

    wall_s: float
    cpu_s: float


def time_in_turns(
    calls: Mapping[Key, Work], repeats: int = 5, warm_up: int = 0, finish: Work = lambda: None
) -> dict[Key, Timing]:
    """Median times of each call, all of them in turns, `repeats` times after `warm_up` turns that do not count.

    finish: waits for what a call left running, such as `torch.cuda.synchronize`.
    """
    seen: dict[Key, list[Timing]] = {key: [] for key in calls}
    for turn in range(warm_up + repeats):
        for key, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            finish()
            if turn >= warm_up:
                seen[key].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return {key: median_timing(timings) for key, timings in seen.items()}


def median_timing(timings: list[Timing]) -> Timing:
    """The median of each figure by itself."""
    return Timing(statistics.median(t.wall_s for t in timings), statistics.median(t.cpu_s for t in timings))


def row(name: str, unit: str, ours: float, peer: float | None = None, *, more_is_better: bool = False,
        packages: tuple[str, ...] = (), **details: Any) -> Row:  # fmt: skip
    """One line of a benchmark table. Without a peer, `peer` and `ratio` are None: the figure stands alone."""
    ratio = None
    if peer is not None:
        ratio = ours / peer if more_is_better else peer / ours
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, **details, **surroundings(packages)}


def surroundings(packages: tuple[str, ...] = ()) -> Row:
    """What a figure depends on besides the code: {hardware, versions, date}; absent packages are left out."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    parts = [model, f"{os.cpu_count()} logical CPUs"]
    versions = {"python": platform.python_version()}
    if torch := sys.modules.get("torch"):
        versions["torch"] = torch.__version__
        parts.append(f"{torch.get_num_threads()} torch threads")
        if torch.cuda.is_initialized():
            parts.append(torch.cuda.get_device_name())
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"hardware": ", ".join(parts), "versions": versions, "date": datetime.now(UTC).date().isoformat()}


def peak_megabytes(prepare: str, settings: Mapping[str, Any]) -> float:
    """Peak resident MB during one call, above what was resident before it, in a fresh process. Linux with glibc.

    prepare: "module:function"; the function takes `settings` as keywords, makes inputs, and returns the call.
    """
    command = [sys.executable, "-m", "benchmarks.measure", prepare, json.dumps(dict(settings))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {prepare} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def family() -> frozenset[int]:
    """Process ids of this process and all its descendants. Linux only."""
    parents = {pid: int(fields[1]) for pid in _processes() if (fields := _stat(pid))}
    found, added = {os.getpid()}, {os.getpid()}
    while added:
        added = {pid for pid, parent in parents.items() if parent in added}
        found |= added
    return frozenset(found)


def cpu_seconds_of(processes: Iterable[int]) -> float:
    """CPU seconds so far of these processes and of their ended children. Linux only."""
    ticks = sum(sum(map(int, fields[11:15])) for pid in processes if (fields := _stat(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[int]:
    return (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _stat(process: int) -> list[str]:
    """The fields of /proc/<process>/stat from the state on; empty when it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rsplit(")", 1)[1].split()


def _measure_peak(prepare: str, settings: Mapping[str, Any]) -> float:
    module, function = prepare.split(":")
    call = getattr(importlib.import_module(module), function)(**settings)
    ctypes.CDLL(None).malloc_trim(0)  # what the preparation freed must not serve the call for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / 1e6


def _resident(field: str) -> int:
    """Bytes of one field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    print(json.dumps(_measure_peak(sys.argv[1], json.loads(sys.argv[2]))))
