"""Compiles, caches and launches the kernels; no compiler needs to be installed.

A kernel is specialised by macros (pooled size, dtype, layout). Its source is compiled by NVRTC,
which comes with PyTorch, for the card at hand, at the first launch of that specialisation; the
result is kept in the user's cache folder under a name that says all it was made from.

Where kernels cannot be had (no ``cuda-core``, an old driver, a compile error) one warning gives
the reason and every op takes its slower path.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from detector.cache import cache_directory

if TYPE_CHECKING:
    from cuda.core import ObjectCode

SOURCES = Path(__file__).parent

# A block can always have this much shared memory, on every card, without asking for more.
MAX_SHARED_BYTES = 48 * 1024
MAX_GRID_Y = 65535

Argument = Tensor | int | float | None
"""What a kernel takes: a pointer (a tensor, or ``None`` for null), an ``Int`` or a ``float``."""

P = ParamSpec("P")
T = TypeVar("T")


class KernelsUnavailable(RuntimeError):
    """This machine cannot compile or load kernels; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """One specialisation of one kernel.

    Attributes:
        source: file name in this package, ``"roi_pool.cu"``.
        name: of the ``extern "C"`` function; all functions of a source are compiled together.
        macros: what specialises it, such as ``(("SCALAR", "float"), ("POOLED", "7"))``.
    """

    source: str
    name: str
    macros: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def of(source: str, name: str, **macros: object) -> Kernel:
        return Kernel(source, name, tuple((key, str(value)) for key, value in macros.items()))

    @property
    def module(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What is compiled: the kernels of one source under the same macros."""
        return self.source, self.macros


class Backend(Protocol):
    """What runs a kernel; the tests have one that needs no GPU."""

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None: ...


SCALARS = {
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float64: "double",
}
"""The C++ name of each dtype features may have."""


def launch(
    kernel: Kernel,
    grid: int | tuple[int, ...],
    block: int,
    *arguments: Argument,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel on the current stream.

    A grid without blocks launches nothing. The caller keeps shapes, dtypes and layouts right: a
    pointer carries none of them.

    Args:
        kernel: what to run.
        grid: number of blocks in x, (x, y) or (x, y, z); y and z at most 65535.
        block: threads of a block.
        arguments: in the kernel's order.
        shared_bytes: dynamic shared memory of a block, at most 48 KiB.

    Raises:
        KernelsUnavailable: kernels cannot be compiled or loaded here.
        ValueError: the tensors lie on different devices, where a pointer would lead nowhere.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if len(devices := {tensor.device for tensor in tensors}) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{kernel.name} needs all tensors on one device; they are on {names}")
    assert all(map(_is_dense, tensors)), f"a tensor for {kernel.name} has gaps or overlaps"
    sizes = (grid,) if isinstance(grid, int) else tuple(grid)
    sizes = sizes + (1,) * (3 - len(sizes))
    assert max(sizes[1:]) <= MAX_GRID_Y and sizes[0] < 2**31, f"grid {sizes} is too large"
    assert shared_bytes <= MAX_SHARED_BYTES, f"{shared_bytes} bytes of shared memory"
    if 0 in sizes:
        return
    _backend.launch(kernel, sizes, block, shared_bytes, arguments)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def or_else(kernel_path: Callable[P, T], slower_path: Callable[P, T]) -> Callable[P, T]:
    """``kernel_path``, or ``slower_path`` with the same meaning where there are no kernels."""

    @functools.wraps(kernel_path)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _unavailable:
            try:
                return kernel_path(*args, **kwargs)
            except KernelsUnavailable as reason:
                _give_up(reason)
        return slower_path(*args, **kwargs)

    return run


_unavailable: list[str] = []


def _give_up(reason: KernelsUnavailable) -> None:
    _unavailable.append(str(reason))
    warnings.warn(
        f"The CUDA kernels of this package cannot be used: {reason}. Slower paths with the same "
        "results are used instead.",
        RuntimeWarning,
        stacklevel=3,
    )


# ---------------------------------------------------------------------------------------------
# Sources

_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)


@functools.cache
def read_source(name: str) -> str:
    """A source file with its includes pasted in, so that one text is all there is to compile."""
    return _pasted(name, set())


def _pasted(name: str, seen: set[str]) -> str:
    text = (SOURCES / name).read_text(encoding="utf-8").replace("#pragma once\n", "")

    def paste(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return f"// {match[1]}\n{_pasted(match[1], seen)}"

    return _INCLUDE.sub(paste, text)


# ---------------------------------------------------------------------------------------------
# Compiling


# cuda-core renames its modules while it is imported: a second thread would find half of them.
_one_thread = threading.RLock()


# Multiplications and additions are fused, as the compiler does unasked; `common.cuh` has those that
# are not.
_OPTIONS = {"std": "c++17", "ptxas_options": ["-v"]}


def compile_kernel(kernel: Kernel, architecture: str) -> tuple[bytes, str]:
    """Machine code for an architecture such as ``"sm_90"``, and ptxas's report.

    Holds every kernel of the source under these macros. Needs neither a GPU nor a driver.

    Raises:
        KernelsUnavailable: ``cuda-core`` is missing or NVRTC refuses, with its log.
    """
    try:
        with _one_thread:
            from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise KernelsUnavailable(f"cuda-core cannot be imported ({error})") from error
    log = io.StringIO()
    try:
        options = ProgramOptions(
            arch=architecture,
            define_macro=list(kernel.macros) or None,  # it refuses an empty list
            **_OPTIONS,
            name=kernel.source,
        )
        program = Program(read_source(kernel.source), "c++", options)
        code = program.compile("cubin", logs=log)
    except Exception as error:  # cuda-core raises its own kinds, and NVRTC's absence others still
        raise KernelsUnavailable(
            f"{kernel.source} does not compile for {architecture}: {error} {log.getvalue()}".strip()
        ) from error
    return bytes(code.code), log.getvalue()


def _compiler_version() -> str:
    import cuda.core
    from cuda.bindings import nvrtc

    return f"cuda-core {cuda.core.__version__} nvrtc {nvrtc.nvrtcVersion()[1:]}"


def cached_code(
    kernel: Kernel, architecture: str, compiler_version: str | None = None
) -> tuple[bytes, Path | None]:
    """Machine code from the cache, or compiled and put there.

    Processes that start together may each compile; each writes its own file and renames it, so
    none reads half a file. A damaged file is compiled anew, and a folder that cannot be read or
    written costs only the compilation.

    Returns:
        The code, and the file it is now in (``None`` if it could not be kept).
    """
    version = compiler_version if compiler_version is not None else _compiler_version()
    made_from = repr((read_source(kernel.source), kernel.module, architecture, version, _OPTIONS))
    digest = hashlib.sha256(made_from.encode()).hexdigest()
    name = f"{Path(kernel.source).stem}-{architecture}-{digest[:32]}"
    try:
        path = cache_directory() / "kernels" / f"{name}.cubin"
        kept = path.read_bytes()
        digest, code = kept[:32], kept[32:]
        if code and hashlib.sha256(code).digest() == digest:
            return code, path
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        pass
    code, _ = compile_kernel(kernel, architecture)
    try:
        path = cache_directory() / "kernels" / f"{name}.cubin"
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError):
        return code, None
    return code, path


# ---------------------------------------------------------------------------------------------
# Launching


class CudaBackend:
    """Launches on the current stream of the device the arguments lie on."""

    def __init__(self) -> None:
        self._modules: dict[tuple[object, int], ObjectCode] = {}
        self._loaded: dict[tuple[Kernel, int], object] = {}
        self._this_thread = threading.local()

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None:
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        with torch.cuda.device(device):
            with _one_thread:
                loaded = self._load(kernel, device)
            from cuda.core import LaunchConfig
            from cuda.core import launch as cuda_launch

            config = LaunchConfig(grid=grid, block=(block, 1, 1), shmem_size=shared_bytes)
            stream = _StreamHandle(torch.cuda.current_stream(device).cuda_stream)
            cuda_launch(stream, config, loaded, *map(_as_parameter, arguments))

    def _load(self, kernel: Kernel, device: torch.device) -> object:
        key = (kernel, device.index)
        if key not in self._loaded or not hasattr(self._this_thread, "has_context"):
            try:
                from cuda.core import Device, ObjectCode

                # The primary context, which PyTorch uses too. A thread of autograd may have none
                # yet: PyTorch's own first call would make it, and ours may come before.
                Device(device.index).set_current()
                self._this_thread.has_context = True
                module_key = (kernel.module, device.index)
                if module_key not in self._modules:
                    major, minor = torch.cuda.get_device_capability(device)
                    code, _ = cached_code(kernel, f"sm_{major}{minor}")
                    self._modules[module_key] = ObjectCode.from_cubin(code)
                self._loaded[key] = self._modules[module_key].get_kernel(kernel.name)
            except KernelsUnavailable:
                raise
            except Exception as error:
                raise KernelsUnavailable(f"{kernel.name} cannot be loaded: {error}") from error
        return self._loaded[key]


@dataclass(frozen=True)
class _StreamHandle:
    """PyTorch's stream in the form every CUDA library takes."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _as_parameter(argument: Argument) -> int | ctypes.c_float:
    """What cuda-core turns into 8 bytes (a pointer, an ``Int``) or into a 4-byte float."""
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return int(argument)


_backend: Backend = CudaBackend()


def use_backend(backend: Backend) -> Backend:
    """Let ``backend`` run every kernel from now on; gives back the one before."""
    global _backend
    before, _backend = _backend, backend
    return before
