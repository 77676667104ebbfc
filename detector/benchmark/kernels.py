"""What each kernel needs of a card: registers, shared memory, spills, as the compiler reports it.

Needs neither a GPU nor a driver.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.table import Table

from detector.ops import cuda
from detector.ops.cuda.runtime import Kernel, compile_kernel

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""Turing, Ampere (two), Ada, Hopper, Blackwell (two): every kind of card PyTorch serves."""


@dataclass(frozen=True)
class Resources:
    """One specialisation compiled for one architecture.

    Attributes:
        kernel: the specialisation.
        architecture: such as ``"sm_90"``.
        registers: of a thread.
        shared_bytes: declared in the source; what a launch adds is not known to the compiler.
        stack_bytes: local memory of a thread, for arrays that are not registers.
        spilled_bytes: stored to or loaded from local memory for want of registers.
        code_bytes: size of the machine code of the whole source file.
    """

    kernel: Kernel
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int
    code_bytes: int


def specialisations() -> list[Kernel]:
    """Every specialisation that the launchers in ``detector.ops.cuda`` name."""
    found = []
    for module in pkgutil.iter_modules(cuda.__path__):
        launcher = importlib.import_module(f"{cuda.__name__}.{module.name}")
        if hasattr(launcher, "specialisations"):
            found += launcher.specialisations()
    return list(dict.fromkeys(found))


def measure_resources(
    kernels: Iterable[Kernel], architectures: Sequence[str] = ARCHITECTURES
) -> list[Resources]:
    """Compiles each kernel's file under its macros, and reports on all kernels of the file.

    Raises:
        KernelsUnavailable: one does not compile, or there is no compiler.
    """
    # A file is compiled as a whole: what is named once under some macros brings all its kernels.
    modules = {(kernel.source, kernel.macros): kernel for kernel in kernels}
    jobs = [(kernel, architecture) for kernel in modules.values() for architecture in architectures]

    def compile_module(job: tuple[Kernel, str]) -> list[Resources]:
        kernel, architecture = job
        code, report = compile_kernel(kernel, architecture)
        names = re.findall(r"Compiling entry function '(\w+)'", report)
        return [
            read_report(dataclasses.replace(kernel, name=name), architecture, report, len(code))
            for name in sorted(names)
        ]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found for part in pool.map(compile_module, jobs) for found in part]


def read_report(kernel: Kernel, architecture: str, report: str, code_bytes: int) -> Resources:
    """The figures of one kernel in what ``ptxas -v`` says about a file.

    Raises:
        ValueError: the report says nothing of the kernel.
    """
    entry = re.search(
        rf"Compiling entry function '{kernel.name}' for '\w+'(.*?)(?=Compiling entry function|\Z)",
        report,
        re.DOTALL,
    )
    own = entry and re.search(
        rf"Function properties for {kernel.name}\s.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        entry[1],
        re.DOTALL,
    )
    if not own:
        raise ValueError(f"no figures of {kernel.name} for {architecture} in: {report}")
    shared = re.search(r"(\d+) bytes smem", own[5])
    return Resources(
        kernel=kernel,
        architecture=architecture,
        registers=int(own[4]),
        shared_bytes=int(shared[1]) if shared else 0,
        stack_bytes=int(own[1]),
        spilled_bytes=int(own[2]) + int(own[3]),
        code_bytes=code_bytes,
    )


def resources_table(found: Sequence[Resources]) -> Table:
    """One row per specialisation: registers by architecture, the largest of all else."""
    architectures = list(dict.fromkeys(one.architecture for one in found))
    table = Table(title="Registers of a thread by architecture, and the most bytes on any")
    table.add_column("kernel", overflow="fold")
    table.add_column("specialised by", overflow="fold")
    for name in (*architectures, "shared", "stack", "spilled"):
        table.add_column(name, justify="right", no_wrap=True)
    by_kernel: dict[Kernel, list[Resources]] = {}
    for one in found:
        by_kernel.setdefault(one.kernel, []).append(one)
    for kernel, rows in by_kernel.items():
        registers = {row.architecture: str(row.registers) for row in rows}
        table.add_row(
            kernel.name,
            " ".join(f"{name}={value}" for name, value in kernel.macros),
            *(registers.get(name, "") for name in architectures),
            *(
                str(max(getattr(row, field) for row in rows))
                for field in ("shared_bytes", "stack_bytes", "spilled_bytes")
            ),
        )
    return table
