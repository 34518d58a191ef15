"""Compile the package's C++ file at first use and call it through ctypes (METHOD 1.4 on a CPU, PERFORMANCE 1).

The source has no dependency beyond a C++17 compiler and takes about three seconds. The shared library is kept under
`$XDG_CACHE_HOME/adamatch_ray` (else `~/.cache/adamatch_ray`), named after the source, the flags, the compiler and the
processor, so a changed one of these is a new file and machines that share a home directory do not share a binary.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from adamatch_ray.ops.ragged import Result, Side, index_dtype

SOURCE = Path(__file__).with_name("late_interaction.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread")


class NativeUnavailable(RuntimeError):
    """The kernel cannot be compiled or loaded here; the message says what to install or fix."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel, built if this machine has not built it yet. Safe when several processes ask at once."""
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = "\0".join([SOURCE.read_text(), *FLAGS, compiler, version, _processor()])
    path = _cache_folder() / f"late_interaction-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    try:
        if not path.exists():
            _build(compiler, path)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(
            f"cannot build or load {path}: {error}; set XDG_CACHE_HOME to a usable folder"
        ) from error
    for function in (loaded.late_interaction_forward, loaded.late_interaction_backward):
        function.restype = None
    return loaded


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise NativeUnavailable("no C++ compiler found: install g++ (Debian and Ubuntu: apt-get install g++) or set CXX")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adamatch_ray"


def _processor() -> str:
    """What -march=native looks at: the processor's feature list, which differs between nodes of one cluster."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _build(compiler: str, path: Path) -> None:
    """Compile beside the target, then rename: a reader sees the whole library or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(suffix=".so", prefix=".building-", dir=path.parent)
    os.close(handle)
    try:
        command = [compiler, *FLAGS, str(SOURCE), "-o", unfinished]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NativeUnavailable(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _side(side: Side) -> list[ctypes.c_void_p | ctypes.c_int64]:
    assert side.data.dtype == torch.float32 and side.rows.dtype == side.start.dtype == torch.int64
    return [_pointer(side.data), _pointer(side.rows), _pointer(side.start), ctypes.c_int64(side.items)]


def _wide(side: Side) -> Side:
    return side._replace(data=side.data.float())


def _call(function: Callable[..., None], one: Side, other: Side, dtype: torch.dtype, *rest: Tensor | None) -> None:
    sizes = [ctypes.c_int64(one.data.shape[1]), ctypes.c_int(torch.get_num_threads()), ctypes.c_int(dtype.itemsize)]
    function(*_side(one), *_side(other), *sizes, *map(_pointer, rest))


def forward(images: Side, texts: Side, keep: bool) -> Result:
    """Eqs. 5-6, in fp32, on `torch.get_num_threads()` threads. Raises `NativeUnavailable` without a compiler."""
    images, texts, dtype = _wide(images), _wide(texts), index_dtype(images, texts)
    result = Result(
        torch.empty(images.items, texts.items),
        torch.empty(texts.items, images.items),
        torch.empty(texts.items, images.total, dtype=dtype) if keep else None,
        torch.empty(images.items, texts.total, dtype=dtype) if keep else None,
    )
    _call(library().late_interaction_forward, images, texts, dtype, *result)
    return result


def backward(images: Side, texts: Side, kept: Result, grad_IJ: Tensor, grad_JI: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 gradients of both `data`; each item is summed by one thread in one order, so repeated runs agree bitwise."""
    assert kept.word_of_patch is not None
    images, texts, dtype = _wide(images), _wide(texts), kept.word_of_patch.dtype
    grad_IJ, grad_JI = grad_IJ.contiguous(), grad_JI.contiguous()
    grad_patch, grad_word = torch.zeros_like(images.data), torch.zeros_like(texts.data)
    both = (kept.word_of_patch, kept.patch_of_word)
    run = library().late_interaction_backward
    _call(run, images, texts, dtype, *both, grad_IJ, grad_JI, grad_patch)
    _call(run, texts, images, dtype, *both[::-1], grad_JI, grad_IJ, grad_word)
    return grad_patch, grad_word
