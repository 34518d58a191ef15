"""Compiles a C++ file of this folder at first use and opens it with ctypes.

The files need nothing but a C++17 compiler and take a few seconds. Libraries are kept in `$XDG_CACHE_HOME/adamatch_ray`
(else `~/.cache/adamatch_ray`) under a name made from source, flags, compiler and processor: whatever changes one of
these makes a new file, so nodes that share a home directory never run each other's instructions.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread")


class CompilerUnavailable(RuntimeError):
    """No library could be built or opened here; the message says what to install or set."""


@functools.cache
def compiled(name: str) -> ctypes.CDLL:
    """The library of `<name>.cpp`, built if need be; several processes may ask at once."""
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = _compiler()
    key = "\0".join([source.read_text(), *_FLAGS, compiler, _output([compiler, "--version"]), _processor()])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    library = Path(base, "adamatch_ray", f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so")
    try:
        if not library.exists():
            _build(compiler, source, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CompilerUnavailable(f"{library}: {error}; set XDG_CACHE_HOME to a folder for programs") from error


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise CompilerUnavailable("no C++ compiler: install g++ or name one in CXX")


def _build(compiler: str, source: Path, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unfinished = Path(folder, library.name)
        _output([compiler, *_FLAGS, str(source), "-o", str(unfinished)])
        # renamed into place, so that nobody opens half a library
        unfinished.replace(library)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerUnavailable(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _processor() -> str:
    """What `-march=native` depends on."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = listing.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(("model name", "flags", "Features", "CPU part")))
