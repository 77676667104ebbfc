"""Fixtures that run CUDA kernels without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ops.cuda.host import ORDERS, HostBackend, find_compiler, running_on


@pytest.fixture(scope="session")
def host_backend(pytestconfig: pytest.Config) -> HostBackend:
    """Compiled kernels are kept in pytest's cache between runs."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("the kernels run on the CPU by a C++ compiler, and there is none; set CXX")
    return HostBackend(pytestconfig.cache.mkdir("host_kernels"), compiler)


@pytest.fixture
def host_kernels(host_backend: HostBackend) -> Iterator[HostBackend]:
    """Every launch of the test runs on the CPU."""
    with running_on(host_backend):
        yield host_backend


@pytest.fixture(params=ORDERS)
def host_kernels_any_order(
    host_backend: HostBackend, request: pytest.FixtureRequest
) -> Iterator[HostBackend]:
    """As ``host_kernels``, for each order in which threads and blocks may run."""
    with running_on(host_backend, request.param):
        yield host_backend
