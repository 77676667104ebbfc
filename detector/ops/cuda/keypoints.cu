// The highest point of each heatmap, interpolated bicubically to the pixels of its box.
//
// A block has one heatmap of S x S cells, which stays in the cache, and one box; its threads go
// over the box's pixels and keep the best they meet. Of equally high pixels the first counts, in
// whatever order the threads come, so the result is the same every time.
#include "common.cuh"

#define THREADS 256
#define TOO_LARGE 32768.f

// The four cells around a pixel of an axis, and their weights (cubic convolution, a = -0.75).
struct Cubic {
  int cells[4];
  float weights[4];
};

__device__ __forceinline__ float cubic_near(float d) { return (1.25f * d - 2.25f) * d * d + 1.f; }
__device__ __forceinline__ float cubic_far(float d) {
  return ((-.75f * d + 3.75f) * d - 6.f) * d + 3.f;
}

__device__ __forceinline__ Cubic cubic_of(int pixel, float scale, int side) {
  float at = scale * (pixel + .5f) - .5f;
  float before = floorf(at);
  float d = at - before;
  Cubic found;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    found.cells[i] = min(max(static_cast<int>(before) + i - 1, 0), side - 1);
  found.weights[0] = cubic_far(d + 1.f);
  found.weights[1] = cubic_near(d);
  found.weights[2] = cubic_near(1.f - d);
  found.weights[3] = cubic_far(2.f - d);
  return found;
}

// A box without an extent that an image can have, or with NaN, is one pixel.
__device__ __forceinline__ float extent_of(float start, float end) {
  float extent = end - start;
  return extent >= 1.f && extent < TOO_LARGE ? extent : 1.f;
}

// heatmaps (N, J, S, S), boxes (N, 4) -> found (N, J, 3): x, y, height. One block for N x J.
extern "C" __global__ void __launch_bounds__(THREADS) heatmaps_to_keypoints(
    const float* __restrict__ heatmaps, const float* __restrict__ boxes, float* __restrict__ found,
    Int num_keypoints, Int heatmap_side) {
  __shared__ float heights[THREADS];
  __shared__ int places[THREADS];
  const int side = static_cast<int>(heatmap_side);
  const float* heatmap = heatmaps + static_cast<Int>(blockIdx.x) * side * side;
  const float* box = boxes + blockIdx.x / num_keypoints * 4;
  const float box_width = extent_of(box[0], box[2]), box_height = extent_of(box[1], box[3]);
  const int width = static_cast<int>(ceilf(box_width)), height = static_cast<int>(ceilf(box_height));
  const float scale_x = static_cast<float>(side) / width;
  const float scale_y = static_cast<float>(side) / height;

  // 32768 squared fits an int; a step more must not overflow either.
  const unsigned pixels = static_cast<unsigned>(width) * height;
  float best = 0.f;
  int place = -1;
  for (unsigned pixel = threadIdx.x; pixel < pixels; pixel += THREADS) {
    const int y = static_cast<int>(pixel / width);
    const Cubic rows = cubic_of(y, scale_y, side);
    const Cubic columns = cubic_of(static_cast<int>(pixel) - y * width, scale_x, side);
    float value = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* row = heatmap + rows.cells[i] * side;
      float across = 0.f;
#pragma unroll
      for (int j = 0; j < 4; ++j) across += columns.weights[j] * row[columns.cells[j]];
      value += rows.weights[i] * across;
    }
    if (place < 0 || value > best) {
      best = value;
      place = static_cast<int>(pixel);
    }
  }

  heights[threadIdx.x] = best;
  places[threadIdx.x] = place;
  for (int reach = THREADS / 2; reach > 0; reach /= 2) {
    __syncthreads();
    if (threadIdx.x < reach) {
      const float other = heights[threadIdx.x + reach];
      const int other_place = places[threadIdx.x + reach];
      const bool first = other == heights[threadIdx.x] && other_place < places[threadIdx.x];
      if (other_place >= 0 &&
          (places[threadIdx.x] < 0 || other > heights[threadIdx.x] || first)) {
        heights[threadIdx.x] = other;
        places[threadIdx.x] = other_place;
      }
    }
  }
  if (threadIdx.x == 0) {
    const int y = places[0] / width, x = places[0] - y * width;
    float* to = found + static_cast<Int>(blockIdx.x) * 3;
    to[0] = (x + .5f) * (box_width / width) + box[0];
    to[1] = (y + .5f) * (box_height / height) + box[1];
    to[2] = heights[0];
  }
}
