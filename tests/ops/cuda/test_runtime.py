"""Compiling, caching and launching: what is remembered, what is refused, what is said."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Kernel, KernelsUnavailable

ARCH, VERSION = "sm_90", "compiler 1"
SCALE = """#include "tools.cuh"
extern "C" __global__ void scale(float* data, Int count, float factor) {
  if (threadIdx.x < count) data[threadIdx.x] = product(data[threadIdx.x], factor);
}
"""
TOOLS = """#pragma once
typedef long long Int;
__device__ float product(float a, float b) { return a * b; }
"""
KERNEL = Kernel.of("scale.cu", "scale")
NO_COMPILER = "kernels are compiled by cuda-core, which cannot be imported"


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small kernel with an include takes the place of the package's sources."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "scale.cu").write_text(SCALE)
    (folder / "tools.cuh").write_text(TOOLS)
    monkeypatch.setattr(runtime, "SOURCES", folder)
    monkeypatch.setattr(runtime, "_unavailable", [])
    monkeypatch.setenv("DETECTOR_CACHE", str(tmp_path / "cache"))
    runtime.read_source.cache_clear()
    yield folder
    runtime.read_source.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """Every kernel compiled so far, by a compiler that needs no time."""
    done = []

    def compile_kernel(kernel: Kernel, architecture: str) -> tuple[bytes, str]:
        done.append(kernel)
        return f"code {len(done)}".encode(), ""

    monkeypatch.setattr(runtime, "compile_kernel", compile_kernel)
    return done


def cached(kernel: Kernel = KERNEL, architecture: str = ARCH, version: str = VERSION):
    return runtime.cached_code(kernel, architecture, version)


# -- The cache


def test_what_was_compiled_is_read_the_second_time(compiled, tmp_path):
    code, path = cached()
    assert path.parent == tmp_path / "cache" / "kernels"
    assert cached() == (code, path) == (b"code 1", path)
    assert compiled == [KERNEL]


def test_everything_that_changes_the_code_changes_the_file(compiled, sources, monkeypatch):
    paths = [
        cached()[1],
        cached(architecture="sm_80")[1],
        cached(version="compiler 2")[1],
        cached(Kernel.of("scale.cu", "scale", SCALAR="float"))[1],
        cached(Kernel.of("scale.cu", "scale", SCALAR="Half"))[1],
    ]
    (sources / "tools.cuh").write_text(TOOLS.replace("a * b", "b * a"))
    runtime.read_source.cache_clear()
    paths.append(cached()[1])
    monkeypatch.setitem(runtime._OPTIONS, "fma", False)
    paths.append(cached()[1])
    assert len(set(paths)) == len(paths) == len(compiled)


@pytest.mark.parametrize("end", [0, 1, 31, 32, 33, -1, None])
def test_a_damaged_or_truncated_file_is_made_again(compiled, end):
    _, path = cached()
    kept = path.read_bytes()
    path.write_bytes(kept[:end] if end is not None else kept[:-1] + b"?")
    assert cached() == (b"code 2", path)
    assert cached() == (b"code 2", path)
    assert len(compiled) == 2


def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DETECTOR_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(fail))


def a_file_in_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")


def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Permissions would not stop a test that runs as root.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(runtime.tempfile, "mkstemp", refuse)


def disk_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime.os, "replace", refuse)


@pytest.mark.parametrize("trouble", [no_home, a_file_in_the_way, read_only, disk_full])
def test_a_cache_that_cannot_be_kept_costs_only_the_compilation(
    compiled, trouble: Callable, monkeypatch, tmp_path, capfd
):
    trouble(monkeypatch, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached() == (b"code 1", None)
        assert cached() == (b"code 2", None)
    assert capfd.readouterr() == ("", "")
    assert not [*tmp_path.rglob("*.partial")]


EIGHT_PROCESSES = """
import os, sys, time
from pathlib import Path
from detector.ops.cuda import runtime

runtime.SOURCES = Path(sys.argv[1])
start = time.monotonic() + 0.3
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        while time.monotonic() < start:
            pass
        code, path = runtime.cached_code(runtime.Kernel.of("scale.cu", "scale"), "sm_90")
        os._exit(0 if b"ELF" in code[:8] and path is not None else 1)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_eight_processes_that_start_at_once_leave_one_good_file(sources, tmp_path):
    pytest.importorskip("cuda.core", reason=NO_COMPILER, exc_type=ImportError)
    # One interpreter that has imported everything divides into eight: they compile at one time.
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_PROCESSES, str(sources)],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str([0] * 8), done.stderr
    (file,) = (tmp_path / "cache" / "kernels").iterdir()
    kept = file.read_bytes()
    assert hashlib.sha256(kept[32:]).digest() == kept[:32]
    assert b"ELF" in kept[32:40]


# -- Sources and compiling


def test_a_header_is_pasted_once_however_often_it_is_included(sources):
    (sources / "more.cuh").write_text('#pragma once\n#include "tools.cuh"\n')
    (sources / "scale.cu").write_text('#include "more.cuh"\n' + SCALE)
    text = runtime.read_source("scale.cu")
    assert text.count("typedef long long Int;") == 1
    assert "#include" not in text and "#pragma once" not in text
    assert text.index("typedef") < text.index("__global__")


def test_a_compile_error_is_told_with_its_log(sources):
    pytest.importorskip("cuda.core", reason=NO_COMPILER, exc_type=ImportError)
    (sources / "tools.cuh").write_text(TOOLS.replace("a * b", "a * nothing"))
    with pytest.raises(KernelsUnavailable, match=r'scale.cu.* identifier "nothing" is undefined'):
        runtime.compile_kernel(KERNEL, ARCH)


def test_compiling_reports_registers_and_spills():
    pytest.importorskip("cuda.core", reason=NO_COMPILER, exc_type=ImportError)
    for kernel in (KERNEL, Kernel.of("scale.cu", "scale", UNUSED=3)):
        code, report = runtime.compile_kernel(kernel, ARCH)
        assert b"ELF" in code[:8]
        assert "Compiling entry function 'scale' for 'sm_90'" in report
        assert "0 bytes spill stores" in report and "registers" in report


# -- Launching


class Recorder:
    def __init__(self) -> None:
        self.launches = []

    def launch(self, *launch: object) -> None:
        self.launches.append(launch)


@pytest.fixture
def recorder() -> Recorder:
    backend = Recorder()
    before = runtime.use_backend(backend)
    yield backend
    assert runtime.use_backend(before) is backend


def test_a_launch_is_handed_on_with_three_sizes(recorder):
    data = torch.zeros(3)
    runtime.launch(KERNEL, 7, 64, data, 3, 0.5, shared_bytes=128)
    runtime.launch(KERNEL, (2, 65535), 32)
    runtime.launch(KERNEL, (2**31 - 1, 1, 65535), 32)
    assert recorder.launches[0] == (KERNEL, (7, 1, 1), 64, 128, (data, 3, 0.5))
    assert recorder.launches[1] == (KERNEL, (2, 65535, 1), 32, 0, ())
    assert recorder.launches[2] == (KERNEL, (2**31 - 1, 1, 65535), 32, 0, ())


@pytest.mark.parametrize("grid", [0, (0,), (3, 0), (1, 2, 0)])
def test_a_grid_without_blocks_launches_nothing(recorder, grid):
    runtime.launch(KERNEL, grid, 32)
    assert recorder.launches == []


@pytest.mark.parametrize("grid", [2**31, (1, 65536), (1, 1, 65536), (0, 65536)])
def test_more_than_every_card_has_is_refused(recorder, grid):
    with pytest.raises(AssertionError, match="too large"):
        runtime.launch(KERNEL, grid, 32)
    with pytest.raises(AssertionError, match="shared memory"):
        runtime.launch(KERNEL, 1, 32, shared_bytes=48 * 1024 + 1)
    assert recorder.launches == []


class FakeCuda(ModuleType):
    """``cuda.core`` as far as launching goes, writing down what is asked of it."""

    def __init__(self) -> None:
        super().__init__("cuda.core")
        self.loaded, self.current, self.launches = [], [], []
        self.fail = False
        outer = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            def set_current(self) -> None:
                outer.current.append(self.index)

        class ObjectCode:
            @staticmethod
            def from_cubin(code: bytes) -> SimpleNamespace:
                if outer.fail:
                    raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")
                outer.loaded.append(code)
                return SimpleNamespace(get_kernel=lambda name: (code, name))

        self.Device, self.ObjectCode = Device, ObjectCode
        self.LaunchConfig = lambda **config: config
        self.launch = lambda *launch: self.launches.append(launch)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, compiled) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.core", fake)
    monkeypatch.setattr(runtime, "_compiler_version", lambda: VERSION)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    fake.stream = stream
    return fake


def test_a_kernel_is_loaded_once_and_launched_on_the_current_stream(cuda, compiled):
    backend, data = runtime.CudaBackend(), torch.zeros(3)
    backend.launch(KERNEL, (5, 1, 1), 64, 16, (data, 3, 0.5))
    cuda.stream.cuda_stream = 77
    backend.launch(KERNEL, (6, 1, 1), 64, 16, (None, data))
    backend.launch(KERNEL, (7, 1, 1), 64, 16, (data,))
    assert compiled == [KERNEL]
    assert cuda.loaded == [b"code 1"]
    (stream, config, kernel, pointer, count, factor), second, third = cuda.launches
    assert stream.__cuda_stream__() == (0, 0)
    assert second[0].__cuda_stream__() == third[0].__cuda_stream__() == (0, 77)
    assert config == {"grid": (5, 1, 1), "block": (64, 1, 1), "shmem_size": 16}
    assert kernel == (b"code 1", "scale")
    assert (pointer, count) == (data.data_ptr(), 3)
    assert isinstance(factor, ctypes.c_float) and factor.value == 0.5
    assert second[3:] == (0, data.data_ptr())


def test_every_thread_gets_the_context_of_its_device_once(cuda, compiled):
    backend, data = runtime.CudaBackend(), torch.zeros(3)

    def launch_twice() -> None:
        for _ in range(2):
            backend.launch(KERNEL, (5, 1, 1), 64, 16, (data,))

    launch_twice()
    assert len(cuda.current) == 1
    thread = threading.Thread(target=launch_twice)
    thread.start()
    thread.join()
    assert len(cuda.current) == 2
    assert len(cuda.launches) == 4 and compiled == [KERNEL]


def test_numbers_arrive_as_integers_and_floats_with_four_bytes():
    for argument, value in ((None, 0), (7, 7), (2**40, 2**40), (True, 1), (-1, -1)):
        parameter = runtime._as_parameter(argument)
        assert type(parameter) is int and parameter == value
    parameter = runtime._as_parameter(0.1)
    assert isinstance(parameter, ctypes.c_float) and parameter.value == torch.tensor(0.1).item()


def test_code_that_does_not_load_makes_kernels_unavailable(cuda):
    cuda.fail = True
    with pytest.raises(KernelsUnavailable, match="scale cannot be loaded: CUDA_ERROR_NO_BINARY"):
        runtime.CudaBackend().launch(KERNEL, (1, 1, 1), 32, 0, (torch.zeros(1),))


# -- Where there are no kernels


def paths() -> tuple[list[str], Callable[[int], int]]:
    called = []

    def kernel_path(x: int) -> int:
        called.append("kernel")
        runtime.CudaBackend().launch(KERNEL, (1, 1, 1), 32, 0, (torch.zeros(1),))
        return x

    def slower_path(x: int) -> int:
        called.append("slower")
        return x

    return called, runtime.or_else(kernel_path, slower_path)


def test_without_cuda_core_one_warning_gives_the_reason(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    called, run = paths()
    with pytest.warns(RuntimeWarning, match="cannot be used: .*cuda.core") as caught:
        assert run(3) == 3
    assert len(caught) == 1
    other_called, other = paths()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(x=4) == 4 and other(5) == 5
    assert called == ["kernel", "slower", "slower"]
    assert other_called == ["slower"]


def test_a_compile_error_is_in_the_warning(monkeypatch, cuda):
    def refuse(kernel: Kernel, architecture: str) -> tuple[bytes, str]:
        raise KernelsUnavailable(f"{kernel.source} does not compile for {architecture}: the log")

    monkeypatch.setattr(runtime, "compile_kernel", refuse)
    _, run = paths()
    with pytest.warns(RuntimeWarning, match="scale.cu does not compile for sm_90: the log"):
        assert run(3) == 3


def test_with_kernels_the_slower_path_is_never_taken(cuda):
    called, run = paths()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(3) == 3
    assert called == ["kernel"]


def test_other_errors_are_not_hidden():
    def kernel_path() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.or_else(kernel_path, lambda: None)()
    assert runtime._unavailable == []
