"""Specialisations compile for every kind of card and keep their data in registers.

``pytest -rP tests/ops/cuda/test_specialisations.py`` shows the table of registers, as does
``python tools/benchmark.py what=kernels``.
"""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from detector.benchmark.kernels import (
    ARCHITECTURES,
    Resources,
    measure_resources,
    read_report,
    resources_table,
    specialisations,
)
from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Kernel, KernelsUnavailable

KERNEL = Kernel.of("two.cu", "second")
# ptxas -v of a file with two kernels, of which the second spills.
REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
ptxas         .     24 bytes stack frame, 16 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem
ptxas info    : Function properties for helper
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    pytest.importorskip(
        "cuda.core", reason="kernels are compiled by cuda-core", exc_type=ImportError
    )
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except Exception as error:
        pytest.skip(f"NVRTC, which compiles the kernels, cannot be loaded: {error}")


def test_every_source_is_among_the_specialisations():
    sources = {kernel.source for kernel in specialisations()}
    assert sources == {path.name for path in runtime.SOURCES.glob("*.cu")}


def test_all_kernels_of_a_file_are_reported():
    kernel = specialisations()[0]
    text = (runtime.SOURCES / kernel.source).read_text()
    found = measure_resources([kernel], ["sm_90"])
    assert all(one.kernel.macros == kernel.macros for one in found)
    assert {one.kernel.name for one in found} == set(
        re.findall(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(', text)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_specialisations_compile_without_spills(architecture):
    found = measure_resources(specialisations(), [architecture])
    console = Console(width=160)
    console.print(resources_table(found))
    slow = [one for one in found if one.spilled_bytes or one.stack_bytes]
    assert not slow, f"local memory is used by {slow}"


def test_the_report_of_one_kernel_is_told_from_the_others():
    assert read_report(KERNEL, "sm_90", REPORT, 100) == Resources(
        KERNEL, "sm_90", 255, shared_bytes=512, stack_bytes=24, spilled_bytes=28, code_bytes=100
    )
    first = read_report(Kernel.of("two.cu", "first"), "sm_90", REPORT, 100)
    assert (first.registers, first.shared_bytes, first.spilled_bytes) == (8, 0, 0)
    with pytest.raises(ValueError, match="no figures of third"):
        read_report(Kernel.of("two.cu", "third"), "sm_90", REPORT, 100)


def test_a_kernel_that_does_not_compile_is_named():
    broken = Kernel.of(specialisations()[0].source, specialisations()[0].name, Int="nonsense of")
    with pytest.raises(KernelsUnavailable, match=f"{broken.source} does not compile for sm_80"):
        measure_resources([broken], ["sm_80"])
