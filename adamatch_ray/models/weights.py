"""Files of weights from outside: tensors by name, of any of the usual containers. Nothing in them is executed."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adamatch_ray.files import HEAD, no_data
from adamatch_ray.filesystems import at_hand

_SAFE = ".safetensors"

_BROKEN = (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, struct.error)
"""What torch and safetensors raise at a file that ends early or is something else."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights of a `.safetensors`, or of a torch file that holds them bare or under "model" or "state_dict".

    Names lose the "module." that data-parallel training puts before all of them. Raises ValueError of one line.
    """
    content = read_saved(path)
    if isinstance(content, dict):
        content = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} is not a state dict: expected names mapped to tensors")
    if all(str(name).startswith("module.") for name in content):
        content = {str(name).removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def read_saved(path: str | Path) -> Any:
    """What a `.safetensors` or a torch file holds, on the CPU.

    Raises ValueError of one line: there is no such file, it is cut or something else, or it holds more than tensors and
    plain values, which is not opened.
    """
    path = Path(at_hand(path)).expanduser()
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}; nothing is downloaded, name a file, local or in S3")
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if said := no_data(head):
        raise ValueError(f"{path} holds no weights: {said}")
    safe = head[8:9] == b"{" and not any(head[5:8])  # the length of a JSON header, then that
    try:
        if safe:
            return load_file(path)
        with path.open("rb") as stream:  # by its path, torch would tell what it is by the ending
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What is whole but refused begins as a pickle does, or is a whole archive of one.
        if head.startswith(b"\x80") or zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} holds more than tensors, so it is not opened here. If you trust its origin, convert it once, "
                f"in an environment you can throw away, with the line: {_conversion(path)}"
            ) from error
        raise ValueError(f"{path} is cut or damaged, or no file of weights") from error
    except _BROKEN as error:
        raise ValueError(f"{path} is cut or damaged, or no file of weights") from error


def _conversion(path: Path) -> str:
    lines = [
        "import torch, safetensors.torch as s",
        f"c = torch.load({str(path)!r}, map_location='cpu', weights_only=False)",
        "c = c.get('state_dict', c.get('model', c))",
        f"s.save_file({{k: v.contiguous() for k, v in c.items()}}, {str(path.with_suffix(_SAFE))!r})",
    ]
    return f'python -c "{"; ".join(lines)}"'
