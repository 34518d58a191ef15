"""Jobs as processes of their own that are hurt on the way: start, wait for a moment, kill a part, see them through."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    """This process's environment without the Ray of the test session: a drill has a Ray of its own."""
    return {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, **(more or {})}


@contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A Python command with its output in `log`; on leaving, nothing of it lives on."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=stream, stderr=stream, text=True, cwd=REPOSITORY,
            env=_environment(environment), start_new_session=True,
        )  # fmt: skip
        parts = {process.pid: psutil.Process(process.pid)}
        try:
            yield process
        finally:
            with_children(parts)
            if process.poll() is None:
                process.kill()
            process.wait()
            for part in parts.values():
                end(part)


def with_children(parts: dict[int, psutil.Process]) -> None:
    """Add the processes that those in `parts` have started."""
    for part in list(parts.values()):
        try:
            parts.update({child.pid: child for child in part.children(recursive=True)})
        except psutil.NoSuchProcess:
            continue


def end(part: psutil.Process) -> None:
    """Kill a process that may be gone already."""
    try:
        part.kill()
    except psutil.NoSuchProcess:
        return


def job(name: str, *arguments: str) -> list[str]:
    """The command of a job."""
    return [str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]


def answer(process: subprocess.Popen[str], log: Path, timeout: float = 400.0) -> dict[str, Any]:
    """What a job that ends well says in its last line."""
    code = process.wait(timeout)
    text = log.read_text()
    assert code == 0, text[-3000:]
    lines = [line for line in text.splitlines() if line.startswith('{"stage"')]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def see_through(command: list[str], log: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command to its end and return its answer."""
    with running(command, log, environment) as process:
        return answer(process, log)


def wait_until(moment: Callable[[], Any], process: subprocess.Popen[str], log: Path, timeout: float = 300.0) -> None:
    """Return when `moment()` is true; fails when the process ends before."""
    until = time.monotonic() + timeout
    while not moment():
        assert process.poll() is None, f"ended too early: {log.read_text()[-3000:]}"
        assert time.monotonic() < until, f"the moment never came: {log.read_text()[-3000:]}"
        time.sleep(0.02)


def find_part(process: int, title: str) -> int:
    """The id of the first process under that of id `process` whose command line holds `title`; 0 while none does."""
    parts = {process: psutil.Process(process)}
    with_children(parts)
    for part in parts.values():
        try:
            if title in " ".join(part.cmdline()) and part.pid != process:
                return part.pid
        except psutil.NoSuchProcess:
            continue
    return 0


def kill_part(process: int, title: str) -> int:
    """kill -9 the first process under that of id `process` whose command line holds `title`; its id."""
    found = find_part(process, title)
    assert found, f"there is no {title}"
    os.kill(found, signal.SIGKILL)
    return found
