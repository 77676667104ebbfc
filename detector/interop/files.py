"""Weights files of every kind, read without running what they may contain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from torch import Tensor

from detector.interop.restricted_pickle import ForbiddenName, load_pickle

# Under which key a file keeps the weights when they are not all it holds: ours and Detectron2's,
# what many trainers write, and Detectron's.
NESTED = ("model", "state_dict", "blobs")
# How the two formats of torch.save begin: a zip archive, and formerly a pickled magic number.
ZIP = b"PK\x03\x04"
TORCH_BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


@dataclass(frozen=True)
class StateFile:
    """The content of a weights file.

    Attributes:
        tensors: by name, on the CPU, in the file's order.
        kind: which format the file has.
        metadata: whatever it holds besides: numbers, texts and containers of them.
        path: of the file, for messages.
    """

    tensors: dict[str, Tensor]
    kind: Literal["safetensors", "torch", "pickle"]
    metadata: dict[str, Any] = field(default_factory=dict)
    path: str = ""


def read_state(path: str | Path) -> StateFile:
    """Reads a ``.safetensors`` file, a ``torch.save`` file or a pickle of NumPy arrays.

    The kind is told from the content, whatever the file is called. Code that a file contains is
    never run: torch files are read with ``weights_only=True``, pickles by
    :mod:`detector.interop.restricted_pickle`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, of another kind, or wants more than tensors, numbers, texts and
            containers; the message has the name of what it wanted.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        beside = sorted(file.name for file in path.parent.glob("*") if file.suffix == path.suffix)
        hint = f"; beside it are {', '.join(beside[:5])}" if beside else ""
        raise FileNotFoundError(f"{path}: no such weights file{hint}")
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"{path}: not a readable weights file (it is empty); fetch it again")
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return _read_safetensors(path)
    if start.startswith((ZIP, TORCH_BEFORE_ZIP)):
        content: Any = _read_torch(path)
        kind: Literal["torch", "pickle"] = "torch"
    else:
        content = _read_pickle(path, start)
        kind = "pickle"
    tensors, metadata = _split(content, path)
    return StateFile(tensors, kind, metadata, str(path))


def _read_safetensors(path: Path) -> StateFile:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return StateFile(tensors, "safetensors", dict(file.metadata() or {}), str(path))
    except Exception as error:  # safetensors has one type of its own, and raises others too
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for cut off, foreign and unsafe files
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise _refused(path, wanted[1]) from error
        raise _unreadable(path, error) from error


def _read_pickle(path: Path, start: bytes) -> Any:
    try:
        with path.open("rb") as file:
            return load_pickle(file)
    except ForbiddenName as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # malformed bytes make the unpickler raise nearly anything
        # Protocol 2 and later begin with this byte, and no weights are of 0 or 1 but the oldest.
        if start[:1] not in (b"\x80", b"(", b"}", b"c"):
            raise ValueError(
                f"{path}: not a readable weights file (neither safetensors nor of torch.save nor a "
                f"pickle, it begins with {start[:12]!r}); was something else saved in its place, "
                "such as a web page or a pointer to large-file storage?"
            ) from error
        raise _unreadable(path, error) from error


def _refused(path: Path, wanted: str) -> ValueError:
    return ValueError(
        f"{path}: refused, since reading it would use {wanted}. A weights file needs tensors, "
        "numbers, texts and containers only; if you trust where it comes from, load it there and "
        "save its state dict alone"
    )


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return ValueError(
        f"{path}: not a readable weights file ({reason}); it is cut off or damaged, fetch it again"
    )


def _split(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the rest by name."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected tensors by name")
    metadata: dict[str, Any] = {}
    nested = next((key for key in NESTED if isinstance(content.get(key), Mapping)), None)
    if nested is not None:
        metadata = {str(key): value for key, value in content.items() if key != nested}
        content = content[nested]
    tensors = {}
    for name, value in content.items():
        tensor = _as_tensor(value)
        if isinstance(name, str) and tensor is not None:
            tensors[name] = tensor
        else:
            metadata[str(name)] = value
    if metadata and not tensors:
        raise ValueError(f"{path}: holds no tensors by name, but {', '.join(metadata)}")
    return tensors, metadata


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        try:
            return torch.from_numpy(np.ascontiguousarray(native).reshape(value.shape))
        except TypeError:  # a type of numbers that torch lacks, such as float128
            return None
    return None
