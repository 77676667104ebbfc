// RoI pooling of bilinear samples in its general form: any layout, any number of samples (also one
// that differs from RoI to RoI), average or largest sample, either rule at the border.
//
// Macros: SCALAR, CHANNELS_LAST (0 or 1), MAX_POOL (0 or 1), BORDER_ZERO (defined or not). The common
// case has kernels of its own in roi_align.cu.
#include "common.cuh"
#include "levels.cuh"
#include "sampling.cuh"

// A feature map (H, W, C) or (C, H, W) of one image.
struct Shape {
  int height, width;
  Int channels;
  __device__ __forceinline__ Int at(Int channel, int y, int x) const {
    return CHANNELS_LAST ? (Int(y) * width + x) * channels + channel
                         : (channel * height + y) * width + x;
  }
  __device__ __forceinline__ Int size() const { return channels * height * width; }
};

// What one output element is made of.
struct Cell {
  Int roi, channel;
  int row, column;
};

__device__ __forceinline__ Cell cell_of(Int index, Int channels, Int rows, Int columns) {
  Cell cell;
  if (CHANNELS_LAST) {
    cell.channel = index % channels;
    index /= channels;
  }
  cell.column = static_cast<int>(index % columns);
  index /= columns;
  cell.row = static_cast<int>(index % rows);
  index /= rows;
  if (!CHANNELS_LAST) {
    cell.channel = index % channels;
    index /= channels;
  }
  cell.roi = index;
  return cell;
}

__device__ __forceinline__ Int index_of(const Cell& cell, Int channels, Int rows, Int columns) {
  return CHANNELS_LAST
             ? ((cell.roi * rows + cell.row) * columns + cell.column) * channels + cell.channel
             : ((cell.roi * channels + cell.channel) * rows + cell.row) * columns + cell.column;
}

// The samples of a RoI along one axis; `per_cell` is 0 where it pools nothing.
struct Axis {
  Accumulator start, step;
  int per_cell, size;
  __device__ __forceinline__ Accumulator at(int cell, int i) const {
    return position_of(start, step, Int(cell) * per_cell + i);
  }
  // Of the samples of a cell, the range that can lie on the map. Where their number adapts to the
  // RoI they are more than half a cell apart, so it is bounded however large the RoI is.
  __device__ __forceinline__ void range(int cell, int* first, int* last) const {
    *first = 0;
    *last = per_cell;
    const Int most = 2 * Int(size) + 8;
    if (per_cell <= most) return;
    const Accumulator entry = (LOWEST_INSIDE - at(cell, 0)) / step - 2;
    const Int skipped = entry > 0 ? (entry < per_cell ? Int(entry) : per_cell) : 0;
    *first = static_cast<int>(min(skipped, per_cell - most));
    *last = static_cast<int>(*first + most);
  }
};

struct Samples {
  Axis x, y;
  __device__ __forceinline__ Int count() const { return Int(x.per_cell) * y.per_cell; }
};

__device__ __forceinline__ Samples samples_of(Int roi, const Accumulator* grids,
                                              const int* counts, Int fixed_count,
                                              const Shape& shape) {
  const Accumulator* grid = grids + roi * 4;
  const int count_x = counts ? counts[roi * 2] : static_cast<int>(fixed_count);
  const int count_y = counts ? counts[roi * 2 + 1] : static_cast<int>(fixed_count);
  const bool any = count_x > 0 && count_y > 0;
  return Samples{{grid[0], grid[2], any ? count_x : 0, shape.width},
                 {grid[1], grid[3], any ? count_y : 0, shape.height}};
}

// Three blocks a multiprocessor: left to itself, ptxas keeps to 64 registers and spills on sm_120.
extern "C" __global__ void __launch_bounds__(256, 3) pool_samples_forward(
    LEVELS_OF(const Scalar), const long long* image_index, const int* level_index,
    const Accumulator* grids, const int* counts, Scalar* output, int* argmax, Int num_rois,
    Int num_images, Int channels, Int pooled_height, Int pooled_width, Int fixed_count) {
  const Int total = num_rois * channels * pooled_height * pooled_width;
  for (Int index = blockIdx.x * Int(blockDim.x) + threadIdx.x; index < total;
       index += gridDim.x * Int(blockDim.x)) {
    const Cell cell = cell_of(index, channels, pooled_height, pooled_width);
    const Int image = image_index[cell.roi];
    const int level = level_index ? level_index[cell.roi] : 0;
    Accumulator result = 0;
    int best = -1;
    if (level >= 0 && image >= 0 && image < num_images) {
      const Shape shape = {static_cast<int>(PICK(height, level)),
                           static_cast<int>(PICK(width, level)), channels};
      const Samples samples = samples_of(cell.roi, grids, counts, fixed_count, shape);
      const Scalar* map = PICK(map, level) + image * shape.size();
      int first_i, last_i, first_j, last_j;
      samples.y.range(cell.row, &first_i, &last_i);
      samples.x.range(cell.column, &first_j, &last_j);
      Int num_inside = 0;
      for (int i = first_i; i < last_i; ++i) {
        const Tap y = tap_at(samples.y.at(cell.row, i), shape.height);
        if (y.low_weight + y.high_weight == 0) continue;
        for (int j = first_j; j < last_j; ++j) {
          const Tap x = tap_at(samples.x.at(cell.column, j), shape.width);
          if (x.low_weight + x.high_weight == 0) continue;
          const Accumulator value =
              y.low_weight * (x.low_weight * widen(map[shape.at(cell.channel, y.low, x.low)]) +
                              x.high_weight * widen(map[shape.at(cell.channel, y.low, x.high)])) +
              y.high_weight * (x.low_weight * widen(map[shape.at(cell.channel, y.high, x.low)]) +
                               x.high_weight * widen(map[shape.at(cell.channel, y.high, x.high)]));
          ++num_inside;
          if (!MAX_POOL) {
            result += value;
          } else if (best < 0 || (result == result && !(value <= result))) {  // NaN is largest
            result = value;
            best = i * samples.x.per_cell + j;
          }
        }
      }
      if (!MAX_POOL) {
        if (samples.count() > 0) result /= static_cast<Accumulator>(samples.count());
      } else if (num_inside < samples.count() && result < 0) {  // a sample outside is 0
        result = 0;
        best = -1;
      }
    }
    narrow(result, &output[index]);
    if (MAX_POOL) argmax[index] = best;
  }
}

// Hands every (y, x, share of the gradient) of an output element to `take`.
template <class Take>
__device__ __forceinline__ void spread(const Cell& cell, const Samples& samples,
                                       const Shape& shape, Accumulator gradient, int best,
                                       Take take) {
  if (samples.count() == 0 || (MAX_POOL && (best < 0 || best >= samples.count()))) return;
  int first_i, last_i, first_j, last_j;
  if (MAX_POOL) {
    first_i = best / samples.x.per_cell;
    first_j = best % samples.x.per_cell;
    last_i = first_i + 1;
    last_j = first_j + 1;
  } else {
    samples.y.range(cell.row, &first_i, &last_i);
    samples.x.range(cell.column, &first_j, &last_j);
    gradient /= static_cast<Accumulator>(samples.count());
  }
  for (int i = first_i; i < last_i; ++i) {
    const Tap y = tap_at(samples.y.at(cell.row, i), shape.height);
    for (int j = first_j; j < last_j; ++j) {
      const Tap x = tap_at(samples.x.at(cell.column, j), shape.width);
      if (y.low_weight > 0 && x.low_weight > 0)
        take(y.low, x.low, gradient * y.low_weight * x.low_weight);
      if (y.low_weight > 0 && x.high_weight > 0)
        take(y.low, x.high, gradient * y.low_weight * x.high_weight);
      if (y.high_weight > 0 && x.low_weight > 0)
        take(y.high, x.low, gradient * y.high_weight * x.low_weight);
      if (y.high_weight > 0 && x.high_weight > 0)
        take(y.high, x.high, gradient * y.high_weight * x.high_weight);
    }
  }
}

struct AddToMemory {
  Accumulator* map;
  Shape shape;
  Int channel;
  __device__ __forceinline__ void operator()(int y, int x, Accumulator value) const {
    atomicAdd(map + shape.at(channel, y, x), value);
  }
};

extern "C" __global__ void __launch_bounds__(256) pool_samples_backward(
    LEVELS_OF(Accumulator), const Scalar* gradient, const int* argmax,
    const long long* image_index, const int* level_index, const Accumulator* grids,
    const int* counts, Int num_rois, Int num_images, Int channels, Int pooled_height,
    Int pooled_width, Int fixed_count) {
  const Int total = num_rois * channels * pooled_height * pooled_width;
  for (Int index = blockIdx.x * Int(blockDim.x) + threadIdx.x; index < total;
       index += gridDim.x * Int(blockDim.x)) {
    const Cell cell = cell_of(index, channels, pooled_height, pooled_width);
    const Int image = image_index[cell.roi];
    const int level = level_index ? level_index[cell.roi] : 0;
    if (level < 0 || image < 0 || image >= num_images) continue;
    const Shape shape = {static_cast<int>(PICK(height, level)),
                         static_cast<int>(PICK(width, level)), channels};
    const Samples samples = samples_of(cell.roi, grids, counts, fixed_count, shape);
    const AddToMemory add = {PICK(map, level) + image * shape.size(), shape, cell.channel};
    spread(cell, samples, shape, widen(gradient[index]), MAX_POOL ? argmax[index] : -1, add);
  }
}

// ---------------------------------------------------------------------------------------------
// Without atomics: a block owns a tile of a map for 128 channels, one to a thread, and walks the
// RoIs of that map in their order. No two threads add to the same number.

#define BLOCK 128
#define TILE_HEIGHT 4
#define TILE_WIDTH (sizeof(Accumulator) == 4 ? 16 : 8)

__shared__ Accumulator tile_sums[TILE_HEIGHT * TILE_WIDTH][BLOCK];

struct AddToTile {
  int top, left;
  __device__ __forceinline__ void operator()(int y, int x, Accumulator value) const {
    const int row = y - top, column = x - left;
    if (row >= 0 && row < TILE_HEIGHT && column >= 0 && column < TILE_WIDTH)
      tile_sums[row * TILE_WIDTH + column][threadIdx.x] += value;
  }
};

// Whether the samples of cells `from` to `to` may touch places origin .. origin + extent - 1.
__device__ __forceinline__ bool may_touch(const Axis& axis, int from, int to, int origin,
                                          int extent) {
  const Accumulator one = axis.at(from, 0), other = axis.at(to, axis.per_cell - 1);
  const Accumulator low = one < other ? one : other, high = one < other ? other : one;
  return (high > origin - 1 || origin == 0) &&
         (low < origin + extent || origin + extent >= axis.size) && high >= -1 &&
         low <= axis.size;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4) pool_samples_backward_gather(
    LEVELS_OF(Scalar), const Scalar* gradient, const int* argmax, const Accumulator* grids,
    const int* counts,
    // RoIs ordered by image and level, and where those of (image, level) begin.
    const long long* order, const long long* segments, Int num_images, Int num_levels,
    Int channels, Int pooled_height, Int pooled_width, Int fixed_count) {
  Int tile = blockIdx.x;
  int level = 0;
  Int across = 0, down = 0;
  for (; level < num_levels; ++level) {
    across = (PICK(width, level) + TILE_WIDTH - 1) / TILE_WIDTH;
    down = (PICK(height, level) + TILE_HEIGHT - 1) / TILE_HEIGHT;
    if (tile < across * down * num_images) break;
    tile -= across * down * num_images;
  }
  const Int image = tile / (across * down);
  const int top = static_cast<int>(tile / across % down) * TILE_HEIGHT;
  const int left = static_cast<int>(tile % across) * TILE_WIDTH;
  const Shape shape = {static_cast<int>(PICK(height, level)),
                       static_cast<int>(PICK(width, level)), channels};
  const Int channel = blockIdx.y * Int(BLOCK) + threadIdx.x;
  if (channel >= channels) return;  // no barriers below

  for (int i = 0; i < TILE_HEIGHT * TILE_WIDTH; ++i) tile_sums[i][threadIdx.x] = 0;
  const AddToTile add = {top, left};
  const Int end = segments[image * num_levels + level + 1];
  for (Int place = segments[image * num_levels + level]; place < end; ++place) {
    Cell cell = {order[place], channel, 0, 0};
    const Samples samples = samples_of(cell.roi, grids, counts, fixed_count, shape);
    const int columns = static_cast<int>(pooled_width), rows = static_cast<int>(pooled_height);
    if (samples.count() == 0 || !may_touch(samples.x, 0, columns - 1, left, TILE_WIDTH) ||
        !may_touch(samples.y, 0, rows - 1, top, TILE_HEIGHT))
      continue;
    for (cell.row = 0; cell.row < rows; ++cell.row) {
      if (!may_touch(samples.y, cell.row, cell.row, top, TILE_HEIGHT)) continue;
      for (cell.column = 0; cell.column < columns; ++cell.column) {
        if (!may_touch(samples.x, cell.column, cell.column, left, TILE_WIDTH)) continue;
        const Int index = index_of(cell, channels, rows, columns);
        spread(cell, samples, shape, widen(gradient[index]), MAX_POOL ? argmax[index] : -1, add);
      }
    }
  }

  Scalar* map = PICK(map, level) + image * shape.size();
  for (int i = 0; i < TILE_HEIGHT * TILE_WIDTH; ++i) {
    const int y = top + i / TILE_WIDTH, x = left + i % TILE_WIDTH;
    if (y < shape.height && x < shape.width)
      narrow(tile_sums[i][threadIdx.x], &map[shape.at(channel, y, x)]);
  }
}
