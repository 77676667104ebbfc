"""Runs the CUDA kernels on the CPU, so that their logic is tested where there is no GPU.

The same ``.cu`` file is compiled by a C++ compiler against ``host_cuda.h``, which gives CUDA's
words their meaning. :class:`HostBackend` takes the place of the backend that launches on a GPU, so
the Python side of a launch (grid, shared memory, arguments) is tested too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Argument, Kernel

HEADERS = [Path(__file__).with_name(name) for name in ("host_cuda.h", "host_fibers.h")]
ORDERS = ("ascending", "descending", "shuffled")
OPTIONS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing")


def find_compiler() -> str | None:
    """The C++ compiler to use: ``$CXX``, or the first common one on the path."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def kernel_names(source: str) -> list[str]:
    """The kernels that a source file defines."""
    return re.findall(
        r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(',
        runtime.read_source(source),
    )


class HostBackend:
    """Runs kernels as C++, thread by thread.

    Args:
        folder: keeps the compiled kernels.
        compiler: path of a C++ compiler.
    """

    def __init__(self, folder: Path, compiler: str) -> None:
        self.folder = folder
        self.compiler = compiler
        self.order = ORDERS[0]
        self.launched: list[Kernel] = []
        self._loaded: dict[object, ctypes.CDLL] = {}

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None:
        assert 0 < block <= 1024
        self.launched.append(kernel)
        kinds, values = "", b""
        for argument in arguments:
            if isinstance(argument, float):
                kinds, values = kinds + "f", values + struct.pack("<fi", argument, 0)
            elif argument is None or isinstance(argument, Tensor):
                pointer = 0 if argument is None else argument.data_ptr()
                kinds, values = kinds + "p", values + struct.pack("<Q", pointer)
            else:
                kinds, values = kinds + "i", values + struct.pack("<q", int(argument))
        failure = getattr(self._load(kernel), f"run_{kernel.name}")(
            (ctypes.c_uint * 3)(*grid),
            ctypes.c_uint(block),
            ctypes.c_uint(shared_bytes),
            kinds.encode(),
            values,
            ctypes.c_int(ORDERS.index(self.order)),
            ctypes.c_uint64(12345),
        )
        if failure:
            raise RuntimeError(f"{kernel.source}: {kernel.name} {failure.decode()}")

    def _load(self, kernel: Kernel) -> ctypes.CDLL:
        if kernel.module not in self._loaded:
            library = ctypes.CDLL(str(self._build(kernel)))
            for name in kernel_names(kernel.source):
                getattr(library, f"run_{name}").restype = ctypes.c_char_p
            self._loaded[kernel.module] = library
        return self._loaded[kernel.module]

    def _build(self, kernel: Kernel) -> Path:
        macros = "".join(f"#define {name} {value}\n" for name, value in kernel.macros)
        program = f"""{macros}#include "host_cuda.h"
#line 1 "{kernel.source}"
{runtime.read_source(kernel.source)}
"""
        for name in kernel_names(kernel.source):
            program += f"""
extern "C" const char* run_{name}(const unsigned* grid, unsigned block, unsigned shared_bytes,
                                  const char* kinds, const unsigned long long* values, int order,
                                  unsigned long long seed) {{
  return host::launch({name}, grid, block, shared_bytes, kinds, values, order, seed);
}}
"""
        made_from = repr((program, [x.read_text() for x in HEADERS], OPTIONS, self.compiler))
        digest = hashlib.sha256(made_from.encode()).hexdigest()[:32]
        library = self.folder / f"{Path(kernel.source).stem}-{digest}.so"
        if not library.exists():
            source = library.with_suffix(f".{os.getpid()}.cpp")
            partial = library.with_suffix(f".{os.getpid()}.partial")
            source.write_text(program)
            include = f"-I{HEADERS[0].parent}"
            command = [self.compiler, *OPTIONS, include, str(source), "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            os.replace(partial, library)
            source.unlink()
        return library


@contextmanager
def running_on(backend: HostBackend, order: str = ORDERS[0]) -> Iterator[HostBackend]:
    """Within this context every kernel launch runs on ``backend``, its threads in ``order``."""
    backend.order = order
    backend.launched.clear()
    before = runtime.use_backend(backend)
    try:
        yield backend
    finally:
        runtime.use_backend(before)
