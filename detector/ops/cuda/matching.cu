// Best gt of every anchor, and the best IoU of every gt, without the matrix of overlaps.
//
// A thread has PER_THREAD anchors in registers and walks the gts, which the block stages in shared
// memory; every thread reads the same gt, a broadcast. The work is arithmetic: 16 bytes are read
// for an anchor and hundreds of operations follow. So the quotient is avoided: it can exceed a
// bound only if the intersection is at least the product of bound and union (rounding is monotone),
// which nearly all pairs are refused by.
#include "common.cuh"

#define THREADS 256
#define TILE 128

#define POSITIVE 1
#define NEGATIVE 0
#define IGNORED -1

typedef Vector<float, 4> Box;

// Reads a box and its area. A box that is not finite, or a NaN, makes the union infinite or NaN, and
// then no comparison with it holds: the IoU counts as 0, as in PyTorch.
__device__ __forceinline__ float read_box(const float* from, Box* box) {
  for (int i = 0; i < 4; ++i) box->values[i] = from[i];
  return exact_area(box->values);
}

// `best_of_gt` holds the bits of floats that are not negative, which order as integers do, so the
// largest is the same in whatever order the blocks come; it starts as zeros. Null if not wanted.
extern "C" __global__ void __launch_bounds__(THREADS) match_anchors(
    const float* anchors, const float* gt_boxes, const bool* gt_valid, Int* matched, Int* labels,
    float* best_of_anchor, int* best_of_gt, Int num_anchors, Int num_gts, Int anchor_stride,
    Int blocks_per_image, float low, float high) {
  __shared__ Box tile[TILE];
  __shared__ float areas[TILE];
  __shared__ int bests[TILE];  // of the gts, as far as this block knows
  __shared__ bool filled[TILE];
  const Int image = blockIdx.x / blocks_per_image;
  const Int first = blockIdx.x % blocks_per_image * (THREADS * PER_THREAD) + threadIdx.x;
  gt_boxes += image * num_gts * 4;
  gt_valid += image * num_gts;
  if (best_of_gt) best_of_gt += image * num_gts;

  Box box[PER_THREAD];
  float area[PER_THREAD], best[PER_THREAD];
  int index[PER_THREAD];
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    Int anchor = min(first + i * THREADS, num_anchors - 1);  // the last one may be done twice
    area[i] = read_box(anchors + image * anchor_stride + anchor * 4, &box[i]);
    best[i] = 0.f;
    index[i] = -1;
  }

  int first_filled = -1;
  for (Int base = 0; base < num_gts; base += TILE) {
    __syncthreads();
    const int count = static_cast<int>(min(static_cast<Int>(TILE), num_gts - base));
    int before = 0x7f800000;  // infinity: no anchor is better, none asks
    if (threadIdx.x < count) {
      filled[threadIdx.x] = gt_valid[base + threadIdx.x];
      areas[threadIdx.x] = read_box(gt_boxes + (base + threadIdx.x) * 4, &tile[threadIdx.x]);
      // What other blocks have found so far spares this one divisions. Not through a cache.
      if (best_of_gt) before = *static_cast<volatile int*>(&best_of_gt[base + threadIdx.x]);
      bests[threadIdx.x] = before;
    }
    __syncthreads();

    for (int gt = 0; gt < count; ++gt) {
      if (!filled[gt]) continue;
      if (first_filled < 0) first_filled = static_cast<int>(base) + gt;
      const float best_here = __int_as_float(*static_cast<volatile int*>(&bests[gt]));
#pragma unroll
      for (int i = 0; i < PER_THREAD; ++i) {
        const Overlap both =
            exact_overlap(box[i].values, area[i], tile[gt].values, areas[gt]);
        if (both.intersection > 0.f &&
            both.intersection >= exact_mul(fminf(best[i], best_here), both.united)) {
          float iou = exact_div(both.intersection, both.united);
          if (iou > best[i]) {
            best[i] = iou;
            index[i] = static_cast<int>(base) + gt;
          }
          if (iou > best_here) atomicMax(&bests[gt], __float_as_int(iou));
        }
      }
    }
    __syncthreads();
    if (best_of_gt && threadIdx.x < count && bests[threadIdx.x] > before)
      atomicMax(&best_of_gt[base + threadIdx.x], bests[threadIdx.x]);
  }

#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    Int anchor = first + i * THREADS;
    if (anchor >= num_anchors) break;
    // With nothing touched, the first gt is as good as any; without gts, all is background.
    int gt = index[i] >= 0 ? index[i] : max(first_filled, 0);
    float iou = first_filled >= 0 ? best[i] : -1.f;
    Int at = image * num_anchors + anchor;
    matched[at] = gt;
    labels[at] = first_filled < 0 ? NEGATIVE
                 : iou >= high    ? POSITIVE
                 : iou < low      ? NEGATIVE
                                  : IGNORED;
    if (best_of_anchor) best_of_anchor[at] = iou;
  }
}

// Makes positive every anchor that reaches the best IoU of some gt. Only anchors whose own best is
// at least the poorest gt's best can: blocks without such an anchor leave at once, the rest compute
// the same bits again.
extern "C" __global__ void __launch_bounds__(THREADS) match_low_quality(
    const float* anchors, const float* gt_boxes, Int* labels, const float* best_of_anchor,
    const int* best_of_gt, Int num_anchors, Int num_gts, Int anchor_stride, Int blocks_per_image) {
  __shared__ Box tile[TILE];
  __shared__ float areas[TILE];
  __shared__ int bests[TILE];  // 0 of an empty slot, and of a gt that nothing touches: claims none
  __shared__ int poorest;
  const Int image = blockIdx.x / blocks_per_image;
  const Int anchor = blockIdx.x % blocks_per_image * THREADS + threadIdx.x;
  const Int at = image * num_anchors + anchor;
  gt_boxes += image * num_gts * 4;
  best_of_gt += image * num_gts;

  if (threadIdx.x == 0) poorest = 0x7f800000;
  __syncthreads();
  int mine = 0x7f800000;
  for (Int gt = threadIdx.x; gt < num_gts; gt += THREADS)
    if (best_of_gt[gt] > 0) mine = min(mine, best_of_gt[gt]);
  for (int step = WARP_SIZE / 2; step > 0; step /= 2)
    mine = min(mine, __shfl_xor_sync(FULL_WARP, mine, step));
  if (threadIdx.x % WARP_SIZE == 0) atomicMin(&poorest, mine);
  __syncthreads();

  bool open = anchor < num_anchors && labels[at] != POSITIVE &&
              best_of_anchor[at] >= __int_as_float(poorest);
  if (!__syncthreads_or(open)) return;
  Box box;
  float area = 0.f;
  if (open) area = read_box(anchors + image * anchor_stride + anchor * 4, &box);
  bool claimed = false;
  for (Int base = 0; base < num_gts; base += TILE) {
    __syncthreads();
    const int count = static_cast<int>(min(static_cast<Int>(TILE), num_gts - base));
    if (threadIdx.x < count) {
      areas[threadIdx.x] = read_box(gt_boxes + (base + threadIdx.x) * 4, &tile[threadIdx.x]);
      bests[threadIdx.x] = best_of_gt[base + threadIdx.x];
    }
    __syncthreads();
    for (int gt = 0; gt < count && open && !claimed; ++gt) {
      const int bits = bests[gt];
      if (bits == 0) continue;
      const Overlap both = exact_overlap(box.values, area, tile[gt].values, areas[gt]);
      // To reach a bound is to exceed the number before it.
      if (both.intersection > 0.f &&
          both.intersection >= exact_mul(__int_as_float(bits - 1), both.united))
        claimed = exact_div(both.intersection, both.united) == __int_as_float(bits);
    }
  }
  if (claimed) labels[at] = POSITIVE;
}
