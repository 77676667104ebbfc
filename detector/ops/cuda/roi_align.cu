// Average RoIAlign over any number of levels, channels_last, with a fixed number of samples.
//
// Macros: SCALAR, POOLED (side of the output), SAMPLES (per cell and axis), VECTOR (channels a
// thread handles at once: 16 bytes of them).
//
// Bilinear sampling and averaging on an axis-aligned grid are separable: an output cell is
//   sum over rows y, columns x of  Wy[cell, y] * Wx[cell, x] * feature[y, x].
// Each block has one RoI; it writes the few non-zero weights of each axis into shared memory once,
// with samples that share a row or column merged, instead of finding them anew for every channel.
// A warp reads 32 consecutive vectors of one cell: 512 contiguous bytes.
#include "common.cuh"
#include "levels.cuh"
#include "sampling.cuh"

#define TAPS (2 * SAMPLES)          // cells that an output cell can touch along an axis
#define TOUCHED (TAPS * POOLED)     // cells that a RoI can touch along an axis
#define NUM_SAMPLES (SAMPLES * POOLED)

typedef Vector<Scalar, VECTOR> Features;

// Where sample 0 of a RoI lies and how far apart samples are: (start_x, start_y, step_x, step_y).
__device__ __forceinline__ Accumulator sample_position(const Accumulator* grid, int axis, int i) {
  return position_of(grid[axis], grid[2 + axis], i);
}

// ---------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) roi_align_forward(
    LEVELS_OF(const Scalar), const long long* image_index, const int* level_index,
    const Accumulator* grids, Scalar* output, Int num_images, Int channels) {
  __shared__ int cells[2][POOLED][TAPS];
  __shared__ Accumulator weights[2][POOLED][TAPS];
  __shared__ int counts[2][POOLED];

  const Int roi = blockIdx.x;
  const Int image = image_index[roi];
  const int level = level_index ? level_index[roi] : 0;
  const int vectors = static_cast<int>(channels / VECTOR);
  const int items = POOLED * POOLED * vectors;
  Features* out = reinterpret_cast<Features*>(output) + roi * items;
  if (level < 0 || image < 0 || image >= num_images) {
    Features zeros = {};
    for (int item = threadIdx.x; item < items; item += blockDim.x) out[item] = zeros;
    return;
  }
  const int height = static_cast<int>(PICK(height, level));
  const int width = static_cast<int>(PICK(width, level));

  for (int i = threadIdx.x; i < 2 * POOLED; i += blockDim.x) {
    const int axis = i / POOLED, cell = i % POOLED;
    int count = 0;
    for (int sample = 0; sample < SAMPLES; ++sample) {
      const Accumulator position =
          sample_position(grids + roi * 4, axis, cell * SAMPLES + sample);
      const Tap tap = tap_at(position, axis ? height : width);
      for (int side = 0; side < 2; ++side) {
        const int touched = side ? tap.high : tap.low;
        const Accumulator weight = (side ? tap.high_weight : tap.low_weight) / SAMPLES;
        if (weight == 0) continue;
        // Samples advance: what was touched before is among the last two.
        int place = count;
        if (count > 0 && cells[axis][cell][count - 1] == touched) place = count - 1;
        if (count > 1 && cells[axis][cell][count - 2] == touched) place = count - 2;
        if (place == count) {
          cells[axis][cell][count] = touched;
          weights[axis][cell][count++] = weight;
        } else {
          weights[axis][cell][place] += weight;
        }
      }
    }
    counts[axis][cell] = count;
    // Columns are read without asking how many there are: the rest repeats the last at no weight.
    for (int i = count; i < TAPS; ++i) {
      cells[axis][cell][i] = count ? cells[axis][cell][count - 1] : 0;
      weights[axis][cell][i] = 0;
    }
  }
  __syncthreads();

  const Features* map = reinterpret_cast<const Features*>(PICK(map, level)) +
                        image * height * width * vectors;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int cell = item / vectors, vector = item - cell * vectors;
    const int row = cell / POOLED, column = cell - row * POOLED;
    const int rows = counts[0][column] ? counts[1][row] : 0;
    Accumulator sum[VECTOR] = {};
    for (int i = 0; i < rows; ++i) {
      const Features* line = map + Int(cells[1][row][i]) * width * vectors + vector;
      Features values[TAPS];  // all on their way before the first is used
#pragma unroll
      for (int j = 0; j < TAPS; ++j) values[j] = line[Int(cells[0][column][j]) * vectors];
#pragma unroll
      for (int j = 0; j < TAPS; ++j) {
        const Accumulator weight = weights[1][row][i] * weights[0][column][j];
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) sum[k] += weight * widen(values[j].values[k]);
      }
    }
    Features result;
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) narrow(sum[k], &result.values[k]);
    out[item] = result;
  }
}

// ---------------------------------------------------------------------------------------------

// Adds to global memory without asking for the old value; 16 bytes at once where the card can.
__device__ __forceinline__ void add_to(double* to, const double* values) {
#pragma unroll
  for (int k = 0; k < VECTOR; ++k) atomicAdd(to + k, values[k]);
}
__device__ __forceinline__ void add_to(float* to, const float* values) {
#pragma unroll
  for (int k = 0; k < VECTOR; k += 4) {
#if !defined(HOST_CUDA) && __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + k), "f"(values[k]),
                 "f"(values[k + 1]), "f"(values[k + 2]), "f"(values[k + 3])
                 : "memory");
#else
    for (int i = k; i < k + 4; ++i) atomicAdd(to + i, values[i]);
#endif
  }
}

// The RoI's gradient is first summed per touched feature cell, then added to memory once per cell:
// neighbouring output cells share rows and columns, and atomics are what this kernel waits for.
//
// Two blocks a multiprocessor: left to itself, ptxas saves registers and spills on sm_75 and sm_120.
extern "C" __global__ void __launch_bounds__(256, 2) roi_align_backward(
    LEVELS_OF(Accumulator), const Scalar* gradient, const long long* image_index,
    const int* level_index, const Accumulator* grids, Int num_images, Int channels) {
  __shared__ int cells[2][TOUCHED];
  __shared__ int firsts[2][TOUCHED], lasts[2][TOUCHED];  // output cells that touch it
  __shared__ Accumulator weights[2][TOUCHED][POOLED];
  __shared__ int counts[2];

  const Int roi = blockIdx.x;
  const Int image = image_index[roi];
  const int level = level_index ? level_index[roi] : 0;
  if (level < 0 || image < 0 || image >= num_images) return;
  const int height = static_cast<int>(PICK(height, level));
  const int width = static_cast<int>(PICK(width, level));

  for (int i = threadIdx.x; i < 2 * TOUCHED * POOLED; i += blockDim.x)
    (&weights[0][0][0])[i] = 0;
  __syncthreads();
  // One thread per axis: samples are few, and merging them is a chain.
  if (threadIdx.x % WARP_SIZE == 0 && threadIdx.x / WARP_SIZE < 2) {
    const int axis = threadIdx.x / WARP_SIZE;
    int count = 0;
    for (int sample = 0; sample < NUM_SAMPLES; ++sample) {
      const int cell = sample / SAMPLES;
      const Tap tap =
          tap_at(sample_position(grids + roi * 4, axis, sample), axis ? height : width);
      for (int side = 0; side < 2; ++side) {
        const int touched = side ? tap.high : tap.low;
        const Accumulator weight = (side ? tap.high_weight : tap.low_weight) / SAMPLES;
        if (weight == 0) continue;
        int place = count;
        if (count > 0 && cells[axis][count - 1] == touched) place = count - 1;
        if (count > 1 && cells[axis][count - 2] == touched) place = count - 2;
        if (place == count) {
          cells[axis][count] = touched;
          firsts[axis][count++] = cell;
        }
        lasts[axis][place] = cell;
        weights[axis][place][cell] += weight;
      }
    }
    counts[axis] = count;
  }
  __syncthreads();

  const int vectors = static_cast<int>(channels / VECTOR);
  const int items = counts[1] * counts[0] * vectors;
  const Features* incoming =
      reinterpret_cast<const Features*>(gradient) + roi * POOLED * POOLED * vectors;
  Accumulator* map = PICK(map, level) + image * height * width * channels;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int pixel = item / vectors, vector = item - pixel * vectors;
    const int y = pixel / counts[0], x = pixel - y * counts[0];
    Accumulator sum[VECTOR] = {};
    for (int row = firsts[1][y]; row <= lasts[1][y]; ++row)
      for (int column = firsts[0][x]; column <= lasts[0][x]; ++column) {
        const Accumulator weight = weights[1][y][row] * weights[0][x][column];
        const Features value = incoming[(row * POOLED + column) * vectors + vector];
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) sum[k] += weight * widen(value.values[k]);
      }
    add_to(map + (Int(cells[1][y]) * width + cells[0][x]) * channels + vector * VECTOR, sum);
  }
}

// ---------------------------------------------------------------------------------------------
// The gradient without atomics: a block owns a tile of a feature map and walks, in their order, the
// RoIs that touch it. Every gradient is written once, in the features' dtype: nothing has to be
// zeroed before or converted after. A warp owns a column of the tile, a lane a vector of channels,
// so all branches on weights are taken by whole warps.

#define TILE 8
#define BLOCK 256  // TILE warps
#define GROUP 4    // RoIs whose weights are prepared together

extern "C" __global__ void __launch_bounds__(BLOCK, 2) roi_align_backward_gather(
    LEVELS_OF(Scalar), const Scalar* gradient, const Accumulator* grids,
    // RoIs ordered by image and level, and where those of (image, level) begin.
    const long long* order, const long long* segments, Int num_images, Int num_levels,
    Int channels) {
  __shared__ int listed[BLOCK];
  __shared__ int listed_before[BLOCK / WARP_SIZE + 1];
  __shared__ Accumulator weights[GROUP][2][TILE][POOLED];

  Int tile = blockIdx.x;
  int level = 0;
  Int across = 0, down = 0;
  for (; level < num_levels; ++level) {
    across = (PICK(width, level) + TILE - 1) / TILE;
    down = (PICK(height, level) + TILE - 1) / TILE;
    if (tile < across * down * num_images) break;
    tile -= across * down * num_images;
  }
  const Int image = tile / (across * down);
  const int top = static_cast<int>(tile / across % down) * TILE;
  const int left = static_cast<int>(tile % across) * TILE;
  const int height = static_cast<int>(PICK(height, level));
  const int width = static_cast<int>(PICK(width, level));
  const Int begin = segments[image * num_levels + level];
  const Int end = segments[image * num_levels + level + 1];

  const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
  const int vectors = static_cast<int>(channels / VECTOR);
  const int vector = static_cast<int>(blockIdx.y) * WARP_SIZE + lane;
  const bool active = vector < vectors;
  Accumulator sum[TILE][VECTOR] = {};

  for (Int start = begin; start < end; start += BLOCK) {
    // Which of the next RoIs touch the tile, in their order.
    bool touches = false;
    const Int candidate = start + threadIdx.x;
    if (candidate < end) {
      const Accumulator* grid = grids + order[candidate] * 4;
      touches = true;
      for (int axis = 0; axis < 2; ++axis) {
        const Accumulator one = sample_position(grid, axis, 0);
        const Accumulator other = sample_position(grid, axis, NUM_SAMPLES - 1);
        const Accumulator low = one < other ? one : other, high = one < other ? other : one;
        const int origin = axis ? top : left, size = axis ? height : width;
        // A sample outside the map may read the border cell; NaN touches nothing.
        touches = touches && (high > origin - 1 || origin == 0) &&
                  (low < origin + TILE || origin + TILE >= size) && high >= -1 && low <= size;
      }
    }
    const unsigned votes = __ballot_sync(FULL_WARP, touches);
    if (lane == 0) listed_before[warp + 1] = __popc(votes);
    __syncthreads();
    if (threadIdx.x == 0) {
      listed_before[0] = 0;
      for (int i = 1; i <= BLOCK / WARP_SIZE; ++i) listed_before[i] += listed_before[i - 1];
    }
    __syncthreads();
    if (touches)
      listed[listed_before[warp] + __popc(votes & ((1u << lane) - 1))] =
          static_cast<int>(order[candidate]);
    const int num_listed = listed_before[BLOCK / WARP_SIZE];
    __syncthreads();

    for (int first = 0; first < num_listed; first += GROUP) {
      const int in_group = num_listed - first < GROUP ? num_listed - first : GROUP;
      for (int i = threadIdx.x; i < in_group * 2 * TILE * POOLED; i += BLOCK) {
        const int cell = i % POOLED, place = i / POOLED % TILE;
        const int axis = i / (POOLED * TILE) % 2, member = i / (POOLED * TILE * 2);
        const Accumulator* grid = grids + Int(listed[first + member]) * 4;
        Accumulator weight = 0;
#pragma unroll
        for (int sample = 0; sample < SAMPLES; ++sample)
          weight += weight_of(sample_position(grid, axis, cell * SAMPLES + sample),
                              (axis ? top : left) + place, axis ? height : width);
        weights[member][axis][place][cell] = weight / SAMPLES;
      }
      __syncthreads();
      for (int member = 0; member < in_group; ++member) {
        const Features* incoming = reinterpret_cast<const Features*>(gradient) +
                                   Int(listed[first + member]) * POOLED * POOLED * vectors;
        for (int row = 0; row < POOLED; ++row) {
          bool row_used = false;
#pragma unroll
          for (int y = 0; y < TILE; ++y) row_used |= weights[member][1][y][row] != 0;
          if (!row_used) continue;
          for (int column = 0; column < POOLED; ++column) {
            const Accumulator across_weight = weights[member][0][warp][column];
            if (across_weight == 0 || !active) continue;
            const Features value = incoming[(row * POOLED + column) * vectors + vector];
            Accumulator part[VECTOR];
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) part[k] = across_weight * widen(value.values[k]);
#pragma unroll
            for (int y = 0; y < TILE; ++y) {
              const Accumulator down_weight = weights[member][1][y][row];
              if (down_weight == 0) continue;
#pragma unroll
              for (int k = 0; k < VECTOR; ++k) sum[y][k] += down_weight * part[k];
            }
          }
        }
      }
      __syncthreads();
    }
  }

  const int x = left + warp;
  if (!active || x >= width) return;
  Features* map = reinterpret_cast<Features*>(PICK(map, level)) +
                  image * height * width * vectors;
#pragma unroll
  for (int y = 0; y < TILE; ++y) {
    if (top + y >= height) break;
    Features result;
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) narrow(sum[y][k], &result.values[k]);
    map[(Int(top + y) * width + x) * vectors + vector] = result;
  }
}
