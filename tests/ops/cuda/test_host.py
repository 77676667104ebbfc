"""The runner itself: it gives CUDA's words their documented meaning and catches mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.ops.boxes import box_iou
from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import SCALARS, Kernel
from tests.ops.cuda.host import ORDERS, HostBackend, running_on

SOURCE = r"""
#include "common.cuh"

extern "C" __global__ void reverse(float* out) {
  SHARED_BYTES(raw);
  float* shared = reinterpret_cast<float*>(raw);
  shared[threadIdx.x] = out[threadIdx.x];
  BARRIER;
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void reverse_static(float* out) {
  __shared__ float shared[64];
  if (threadIdx.x >= 32) shared[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void mistake(int* out, Int which) {
  unsigned lane = threadIdx.x % 32;
  if (which == 0 && lane < 16) __syncthreads();
  if (which == 1) {
    if (lane < 16) __syncthreads();
    else __syncwarp();
  }
  if (which == 2 && lane < 8) __ballot_sync(0xffffu, 1);
  if (which == 3) __ballot_sync(1u, 1);
  if (which == 4) __activemask();
  out[threadIdx.x] = 1;
}

#define SAY(value) out[64 * row++ + threadIdx.x] = static_cast<Int>(value)

extern "C" __global__ void warp_words(Int* out) {
  int lane = threadIdx.x % 32, row = 0;
  Int own = threadIdx.x * 1000003000001ll;
  SAY(__ballot_sync(FULL_WARP, threadIdx.x % 3 == 0));
  SAY(__shfl_sync(FULL_WARP, own, 5));
  SAY(__shfl_sync(FULL_WARP, own, lane + 3, 8));
  SAY(__shfl_up_sync(FULL_WARP, own, 3));
  SAY(__shfl_up_sync(FULL_WARP, own, 3, 8));
  SAY(__shfl_down_sync(FULL_WARP, own, 3));
  SAY(__shfl_down_sync(FULL_WARP, own, 3, 8));
  SAY(__shfl_xor_sync(FULL_WARP, own, 5));
  SAY(__shfl_xor_sync(FULL_WARP, own, 8, 8));
  SAY(__any_sync(FULL_WARP, threadIdx.x == 40));
  SAY(__all_sync(FULL_WARP, threadIdx.x < 40));
  // The two halves of a divided warp meet among themselves.
  if (lane < 20) {
    SAY(__ballot_sync(0xfffffu, lane % 2));
    SAY(__shfl_sync(0xfffffu, own, 19));
    SAY(__all_sync(0xfffffu, lane < 20));
  } else {
    SAY(__ballot_sync(0xfff00000u, lane % 2));
    SAY(__shfl_sync(0xfff00000u, own, 20));
    SAY(__all_sync(0xfff00000u, lane < 20));
  }
  SAY(__syncthreads_count(threadIdx.x % 5 == 0));
  SAY(__syncthreads_or(threadIdx.x == 63));
  SAY(__syncthreads_or(threadIdx.x == 64));
  SAY(__popc(0xf0f00001u * (lane + 1)));
  SAY(__ffs(1u << lane));
  SAY(__clz(1u << lane));
  SAY(__brev(1u << lane));
  SAY(__popcll(own));
  SAY(__ffsll(1ll << threadIdx.x));
}

extern "C" __global__ void atomics(int* total, int* largest, int* before) {
  int self = blockIdx.x * blockDim.x + threadIdx.x;
  before[self] = atomicAdd(total, 2);
  atomicMax(largest, self * 37 % 101);
}

extern "C" __global__ void widen_all(const Scalar* from, float* to, Int count) {
  for (Int i = threadIdx.x; i < count; i += blockDim.x) to[i] = widen(from[i]);
}
extern "C" __global__ void narrow_all(const float* from, Scalar* to, Int count) {
  for (Int i = threadIdx.x; i < count; i += blockDim.x) narrow(from[i], to + i);
}

extern "C" __global__ void every_iou(const float* a, const float* b, float* out, Int count) {
  Int i = blockIdx.x;
  for (Int j = threadIdx.x; j < count; j += blockDim.x) {
    Overlap overlap =
        exact_overlap(a + 4 * i, exact_area(a + 4 * i), b + 4 * j, exact_area(b + 4 * j));
    out[i * count + j] =
        overlap.united > 0.f ? exact_div(overlap.intersection, overlap.united) : 0.f;
  }
}
"""


@pytest.fixture
def run(
    host_backend: HostBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """``run(name, grid, block, *arguments, order=..., shared_bytes=..., **macros)``."""
    common = (runtime.SOURCES / "common.cuh").read_text()
    (tmp_path / "common.cuh").write_text(common)
    (tmp_path / "probe.cu").write_text(SOURCE)
    monkeypatch.setattr(runtime, "SOURCES", tmp_path)
    runtime.read_source.cache_clear()
    backend = HostBackend(host_backend.folder, host_backend.compiler)

    def launch(name, grid, block, *arguments, order=ORDERS[0], shared_bytes=0, **macros):
        macros = {"BARRIER": "__syncthreads()", "SCALAR": "float"} | macros
        kernel = Kernel.of("probe.cu", name, **macros)
        with running_on(backend, order):
            runtime.launch(kernel, grid, block, *arguments, shared_bytes=shared_bytes)

    yield launch
    runtime.read_source.cache_clear()


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_makes_shared_memory_of_others_readable(run, order):
    data = torch.arange(96.0)
    run("reverse", 1, 96, data, shared_bytes=96 * 4, order=order)
    assert data.equal(torch.arange(96.0).flip(0))


def test_a_missing_barrier_shows(run):
    """Each order reads some places before they are written, and those hold NaN."""
    found = []
    for order in ORDERS:
        data = torch.arange(64.0)
        run("reverse", 1, 64, data, shared_bytes=256, order=order, BARRIER="(void)0")
        assert data.isnan().any()
        found.append(data.isnan())
    assert not found[0].equal(found[1])
    assert not found[1].equal(found[2])


def test_shared_memory_that_nobody_wrote_is_nan(run):
    data = torch.arange(64.0)
    run("reverse_static", 1, 64, data)
    assert data[:32].equal(torch.arange(63.0, 31, -1))
    assert data[32:].isnan().all()


def test_writing_past_shared_memory_is_an_error(run):
    with pytest.raises(RuntimeError, match="reverse wrote past its shared memory"):
        run("reverse", 1, 64, torch.arange(64.0), shared_bytes=63 * 4)


@pytest.mark.parametrize(
    "arguments", [(), (1,), (1.0,), (torch.zeros(1), 1), (torch.zeros(1), 1.0, None)]
)
def test_arguments_of_another_kind_are_an_error(run, arguments):
    with pytest.raises(RuntimeError, match=r"mistake takes \(pi\) but was launched with \("):
        run("mistake", 1, 32, *arguments[::-1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("which", "message"),
    [
        (0, "not reached by every thread"),
        (1, "wait for each other at different places"),
        (2, "wait for each other at different places"),
        (3, "a lane outside the mask takes part"),
        (4, "nothing reliable"),
    ],
)
def test_threads_that_do_not_meet_are_an_error(run, which, message, order):
    out = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=message):
        run("mistake", 1, 64, out, which, order=order)
    run("mistake", 1, 64, out, -1, order=order)  # and the next launch is sound
    assert out.eq(1).all()


@pytest.mark.parametrize("order", ORDERS)
def test_warp_words_mean_what_cuda_documents(run, order):
    said = torch.zeros(26, 64, dtype=torch.int64)
    run("warp_words", 1, 64, said, order=order)

    def of_lane(source: Callable[[int], int], thread: int) -> int:
        return (thread // 32 * 32 + source(thread % 32)) * 1000003000001

    def ballot(predicate: Callable[[int], bool], thread: int, first: int, end: int) -> int:
        base = thread // 32 * 32
        return sum(1 << lane for lane in range(first, end) if predicate(base + lane))

    expected = []
    for thread in range(64):
        lane = thread % 32
        first, end = (0, 20) if lane < 20 else (20, 32)
        own = thread * 1000003000001
        word = 0xF0F00001 * (lane + 1) % 2**32
        expected.append(
            [
                ballot(lambda x: x % 3 == 0, thread, 0, 32),
                of_lane(lambda x: 5, thread),
                of_lane(lambda x: x // 8 * 8 + (x + 3) % 8, thread),
                of_lane(lambda x: x - 3 if x >= 3 else x, thread),
                of_lane(lambda x: x - 3 if x % 8 >= 3 else x, thread),
                of_lane(lambda x: x + 3 if x + 3 < 32 else x, thread),
                of_lane(lambda x: x + 3 if x % 8 + 3 < 8 else x, thread),
                of_lane(lambda x: x ^ 5, thread),
                # A group may read earlier groups, never later ones.
                of_lane(lambda x: x ^ 8 if x ^ 8 < x else x, thread),
                thread >= 32,
                thread < 32,
                ballot(lambda x: x % 2 == 1, thread, first, end),
                of_lane(lambda x: 19 if x < 20 else 20, thread),
                lane < 20,
                13,
                1,
                0,
                word.bit_count(),
                lane + 1,
                31 - lane,
                1 << (31 - lane),
                own.bit_count(),
                thread + 1,
            ]
        )
    assert said[: len(expected[0])].equal(torch.tensor(expected).T)
    assert said[len(expected[0]) :].eq(0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_atomics_give_the_value_before(run, order):
    total, largest = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    before = torch.zeros(192, dtype=torch.int32)
    run("atomics", 3, 64, total, largest, before, order=order)
    assert (total.item(), largest.item()) == (384, 100)
    assert before.sort().values.tolist() == list(range(0, 384, 2))


SIXTEEN_BITS = [
    pytest.param(torch.float16, {}, id="half"),
    pytest.param(torch.float16, {"HOST_SOFT_HALF": 1}, id="half without compiler support"),
    pytest.param(torch.bfloat16, {}, id="bfloat16"),
]


def every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    """NaN is NaN, whatever its payload; all else, signed zeros included, bit for bit."""
    assert ours.isnan().equal(theirs.isnan())
    integer = {2: torch.int16, 4: torch.int32}[ours.element_size()]
    there = ~theirs.isnan()
    assert ours[there].view(integer).equal(theirs[there].view(integer))


@pytest.mark.parametrize(("dtype", "macros"), SIXTEEN_BITS)
def test_every_16_bit_float_widens_as_in_torch(run, dtype, macros):
    narrow = every_pattern(dtype)
    wide = torch.zeros(len(narrow))
    run("widen_all", 1, 32, narrow, wide, len(narrow), SCALAR=SCALARS[dtype], **macros)
    assert_same_bits(wide, narrow.float())


@pytest.mark.parametrize(("dtype", "macros"), SIXTEEN_BITS)
def test_floats_narrow_as_in_torch(run, dtype, macros):
    exact = every_pattern(dtype).float()
    finite = exact[exact.isfinite()].sort().values
    ties = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    beyond = torch.tensor([65519.0, 65520, 65521, 1e6, 3.3e38, 3.4e38, 1e-45, 1e-40, 2.9e-8])
    random = torch.randint(-(2**31), 2**31, (20000,)).to(torch.int32).view(torch.float32)
    near = [torch.nextafter(ties, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    wide = torch.cat([exact, ties, *near, beyond, -beyond, random])
    narrow = torch.zeros(len(wide), dtype=dtype)
    run("narrow_all", 1, 32, wide, narrow, len(wide), SCALAR=SCALARS[dtype], **macros)
    assert_same_bits(narrow, wide.to(dtype))


def test_exact_overlap_has_the_bits_of_box_iou(run):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(150, 2, generator=generator) * 100
    boxes = torch.cat((corner, corner + torch.rand(150, 2, generator=generator) * 60), 1)
    boxes[:8] = torch.tensor(
        [
            [0, 0, 0, 0],
            [5, 5, 5, 9],
            [8, 8, 2, 2],
            [0, 0, 1e-30, 1e-30],
            [-1e6, -1e6, 1e6, 1e6],
            [-1e30, -1e30, 1e30, 1e30],
            [torch.nan, 0, 50, 50],
            [0, 0, torch.inf, 50],
        ]
    )
    others = boxes.flip(0)[:149].contiguous()
    iou = torch.zeros(150, 149)
    run("every_iou", 150, 32, boxes, others, iou, 149)
    assert iou.view(torch.int32).equal(box_iou(boxes, others).view(torch.int32))
