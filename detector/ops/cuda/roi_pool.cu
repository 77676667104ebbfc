// RoI pooling (Fast R-CNN) and its gradient.
//
// Macros: SCALAR; MAX (1: largest cell of a bin, 0: mean); CHANNELS_LAST (layout of maps and of
// pooled tensors); VECTOR (channels a thread reads at once in channels_last, 16 bytes or 1).
#include "common.cuh"

#define FARTHEST_CELL 16777216  // integers up to here are exact in float32

__device__ __forceinline__ float floor_of(float x) { return floorf(x); }
__device__ __forceinline__ double floor_of(double x) { return floor(x); }
__device__ __forceinline__ float ceil_of(float x) { return ceilf(x); }
__device__ __forceinline__ double ceil_of(double x) { return ceil(x); }

// Rounded, halves away from zero, without the detour over x + 0.5 that rounds once too often.
__device__ __forceinline__ int nearest_cell(Accumulator x) {
  const Accumulator farthest = FARTHEST_CELL;
  x = x < -farthest ? -farthest : x > farthest ? farthest : x;
  int whole = static_cast<int>(x);
  Accumulator rest = x - whole;
  return whole + (rest >= Accumulator(0.5)) - (rest <= Accumulator(-0.5));
}

// A RoI on the map, quantised: its first cell, and the sizes of its bins in cells.
struct Roi {
  int x, y, width, height;
  Accumulator bin_width, bin_height;
};

// False for a box that is not finite, and one of no image: it pools nothing.
__device__ __forceinline__ bool read_roi(const Accumulator* box, Int image, Int batch,
                                         int pooled_height, int pooled_width, Roi* roi) {
  if (image < 0 || image >= batch) return false;
  for (int i = 0; i < 4; ++i)
    if (!(box[i] - box[i] == 0)) return false;
  roi->x = nearest_cell(box[0]);
  roi->y = nearest_cell(box[1]);
  roi->width = max(nearest_cell(box[2]) - roi->x + 1, 1);
  roi->height = max(nearest_cell(box[3]) - roi->y + 1, 1);
  roi->bin_width = Accumulator(roi->width) / Accumulator(pooled_width);
  roi->bin_height = Accumulator(roi->height) / Accumulator(pooled_height);
  return true;
}

struct Range {
  int first, end;
};

// The cells of one axis in bin `index` that lie on the map.
__device__ __forceinline__ Range bin_cells(int start, Accumulator bin, int index, int size) {
  int first = start + static_cast<int>(floor_of(Accumulator(index) * bin));
  int end = start + static_cast<int>(ceil_of(Accumulator(index + 1) * bin));
  return {min(max(first, 0), size), min(max(end, 0), size)};
}

__device__ __forceinline__ Accumulator lowest(float) { return -3.402823466e+38f; }
__device__ __forceinline__ Accumulator lowest(double) {
  return Accumulator(-1.7976931348623157e+308);
}

// ---------------------------------------------------------------------------------------------
// Forward. Block x is a RoI, block y shares its outputs.

typedef Vector<Scalar, VECTOR> Scalars;
#define NUM_INTS (VECTOR < 4 ? VECTOR : 4)
typedef Vector<int, NUM_INTS> Ints;

// channels_last: a warp takes one bin and 32 vectors of channels, so that each cell of the bin is
// read once, in full lines, and the bin's corners cost nothing per channel.
extern "C" __global__ void roi_pool_forward_nhwc(const Scalar* __restrict__ features,
                                                 const Accumulator* __restrict__ boxes,
                                                 const long long* __restrict__ image_index,
                                                 Scalar* __restrict__ pooled,
                                                 int* __restrict__ argmax, Int batch, Int channels,
                                                 Int height, Int width, Int pooled_height,
                                                 Int pooled_width) {
  const Int n = blockIdx.x;
  const int lane = threadIdx.x % WARP_SIZE, num_warps = blockDim.x / WARP_SIZE;
  const int rows = pooled_height, columns = pooled_width;
  const int num_vectors = channels / VECTOR;
  const int num_slabs = (num_vectors + WARP_SIZE - 1) / WARP_SIZE;
  const Int image = image_index[n];
  Roi roi;
  const bool usable = read_roi(boxes + 4 * n, image, batch, rows, columns, &roi);

  for (int item = blockIdx.y * num_warps + threadIdx.x / WARP_SIZE;
       item < rows * columns * num_slabs; item += gridDim.y * num_warps) {
    const int vector = item % num_slabs * WARP_SIZE + lane;
    if (vector >= num_vectors) continue;
    const int bin = item / num_slabs;
    Range x = {0, 0}, y = {0, 0};
    if (usable) {
      x = bin_cells(roi.x, roi.bin_width, bin % columns, width);
      y = bin_cells(roi.y, roi.bin_height, bin / columns, height);
    }
    const bool empty = x.end <= x.first || y.end <= y.first;
    Accumulator value[VECTOR];
    int cell[VECTOR];
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
      value[k] = MAX && !empty ? lowest(Accumulator(0)) : Accumulator(0);
      cell[k] = -1;
    }
    for (int row = y.first; row < y.end; ++row) {
      const Scalar* from = features + ((image * height + row) * width) * channels + vector * VECTOR;
#pragma unroll 4
      for (int column = x.first; column < x.end; ++column) {
        const Scalars read = *reinterpret_cast<const Scalars*>(from + column * channels);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
          const Accumulator found = widen(read.values[k]);
          if (!MAX) {
            value[k] += found;
          } else if (found > value[k]) {
            value[k] = found;
            cell[k] = row * static_cast<int>(width) + column;
          }
        }
      }
    }
    const Int to = (n * rows * columns + bin) * channels + vector * VECTOR;
    const Accumulator count =
        empty ? Accumulator(1) : Accumulator(x.end - x.first) * Accumulator(y.end - y.first);
    Scalars result;
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) narrow(MAX ? value[k] : value[k] / count, &result.values[k]);
    *reinterpret_cast<Scalars*>(pooled + to) = result;
    if (MAX) {
#pragma unroll
      for (int k = 0; k < VECTOR; k += NUM_INTS) {
        Ints part;
#pragma unroll
        for (int i = 0; i < NUM_INTS; ++i) part.values[i] = cell[k + i];
        *reinterpret_cast<Ints*>(argmax + to + k) = part;
      }
    }
  }
}

// contiguous: a thread takes one output; its neighbours take the bins beside it.
extern "C" __global__ void roi_pool_forward_nchw(const Scalar* __restrict__ features,
                                                 const Accumulator* __restrict__ boxes,
                                                 const long long* __restrict__ image_index,
                                                 Scalar* __restrict__ pooled,
                                                 int* __restrict__ argmax, Int batch, Int channels,
                                                 Int height, Int width, Int pooled_height,
                                                 Int pooled_width) {
  const Int n = blockIdx.x;
  const int rows = pooled_height, columns = pooled_width, num_bins = rows * columns;
  const int num_outputs = static_cast<int>(channels) * num_bins;
  const Int image = image_index[n];
  Roi roi;
  const bool usable = read_roi(boxes + 4 * n, image, batch, rows, columns, &roi);

  for (int item = blockIdx.y * blockDim.x + threadIdx.x; item < num_outputs;
       item += gridDim.y * blockDim.x) {
    const int bin = item % num_bins, channel = item / num_bins;
    Range x = {0, 0}, y = {0, 0};
    if (usable) {
      x = bin_cells(roi.x, roi.bin_width, bin % columns, width);
      y = bin_cells(roi.y, roi.bin_height, bin / columns, height);
    }
    const bool empty = x.end <= x.first || y.end <= y.first;
    Accumulator value = MAX && !empty ? lowest(Accumulator(0)) : Accumulator(0);
    int cell = -1;
    for (int row = y.first; row < y.end; ++row) {
      const Scalar* from = features + ((image * channels + channel) * height + row) * width;
#pragma unroll 4
      for (int column = x.first; column < x.end; ++column) {
        const Accumulator found = widen(from[column]);
        if (!MAX) {
          value += found;
        } else if (found > value) {
          value = found;
          cell = row * static_cast<int>(width) + column;
        }
      }
    }
    if (!MAX && !empty)
      value /= Accumulator(x.end - x.first) * Accumulator(y.end - y.first);
    const Int to = n * num_outputs + item;
    narrow(value, pooled + to);
    if (MAX) argmax[to] = cell;
  }
}

// ---------------------------------------------------------------------------------------------
// Backward

__device__ __forceinline__ Int map_offset(Int image, int channel, Int cell, Int channels,
                                          Int num_cells) {
  return CHANNELS_LAST ? (image * num_cells + cell) * channels + channel
                       : (image * channels + channel) * num_cells + cell;
}

// With atomics, into zeros of the accumulator's type. Block x is a RoI, block y shares its outputs;
// neighbouring threads are neighbours in memory, one channel each: in channels_last a warp's adds
// then fall into few lines, which a vector of channels per thread would spread.
extern "C" __global__ void roi_pool_backward_atomic(
    const Scalar* __restrict__ grad, const int* __restrict__ argmax,
    const Accumulator* __restrict__ boxes, const long long* __restrict__ image_index,
    Accumulator* __restrict__ features_grad, Int batch, Int channels, Int height, Int width,
    Int pooled_height, Int pooled_width) {
  const Int n = blockIdx.x;
  const int rows = pooled_height, columns = pooled_width, num_bins = rows * columns;
  const int num_outputs = static_cast<int>(channels) * num_bins;
  const Int image = image_index[n], num_cells = height * width;
  Roi roi;
  if (!read_roi(boxes + 4 * n, image, batch, rows, columns, &roi)) return;

  for (int item = blockIdx.y * blockDim.x + threadIdx.x; item < num_outputs;
       item += gridDim.y * blockDim.x) {
    const int channel = CHANNELS_LAST ? item % static_cast<int>(channels) : item / num_bins;
    const Accumulator share = widen(grad[n * num_outputs + item]);
    if (MAX) {
      const int cell = argmax[n * num_outputs + item];
      if (cell >= 0 && cell < num_cells)
        atomicAdd(features_grad + map_offset(image, channel, cell, channels, num_cells), share);
    } else {
      const int bin = CHANNELS_LAST ? item / static_cast<int>(channels) : item % num_bins;
      const Range x = bin_cells(roi.x, roi.bin_width, bin % columns, width);
      const Range y = bin_cells(roi.y, roi.bin_height, bin / columns, height);
      const Accumulator count = Accumulator(x.end - x.first) * Accumulator(y.end - y.first);
      for (int row = y.first; row < y.end; ++row)
        for (int column = x.first; column < x.end; ++column)
          atomicAdd(features_grad + map_offset(image, channel, row * width + column, channels,
                                               num_cells),
                    share / count);
    }
  }
}

// Without atomics: a block owns a tile of one image's map and blockDim.x channels, a thread one of
// these channels. It walks the RoIs that touch the tile in their order, sums in shared memory and
// writes every gradient once, also the zeros. Block x is (image, tile), block y a slab of channels.
extern "C" __global__ void roi_pool_backward_gather(
    const Scalar* __restrict__ grad, const int* __restrict__ argmax,
    const Accumulator* __restrict__ boxes, const long long* __restrict__ image_index,
    Scalar* __restrict__ features_grad, Int num_rois, Int batch, Int channels, Int height,
    Int width, Int pooled_height, Int pooled_width, Int tile_height, Int tile_width) {
  SHARED_BYTES(bytes);
  Accumulator* sums = reinterpret_cast<Accumulator*>(bytes);  // [cell of the tile][thread]
  // One more than the threads, so that cells of one channel lie in different banks too.
  const int stride = blockDim.x + 1, cells_of_tile = tile_height * tile_width;
  Int* touching = reinterpret_cast<Int*>(
      bytes + (cells_of_tile * stride * sizeof(Accumulator) + 15) / 16 * 16);
  int* counts = reinterpret_cast<int*>(touching + blockDim.x);  // of each warp

  const int tiles_across = (width + tile_width - 1) / tile_width;
  const int tiles_down = (height + tile_height - 1) / tile_height;
  const int tile = blockIdx.x % (tiles_across * tiles_down);
  const Int image = blockIdx.x / (tiles_across * tiles_down);
  const int left = tile % tiles_across * tile_width, top = tile / tiles_across * tile_height;
  const int right = min(left + tile_width, width), bottom = min(top + tile_height, height);
  const int rows = pooled_height, columns = pooled_width;
  const int thread = threadIdx.x, warp = thread / WARP_SIZE, lane = thread % WARP_SIZE;
  const int first_channel = blockIdx.y * blockDim.x, channel = first_channel + thread;
  const bool owns = channel < channels;

  for (int cell = 0; cell < cells_of_tile; ++cell) sums[cell * stride + thread] = 0;

  for (Int base = 0; base < num_rois; base += blockDim.x) {
    // Which of the next RoIs touch the tile, in order.
    const Int candidate = base + thread;
    bool touches = false;
    if (candidate < num_rois && image_index[candidate] == image) {
      Roi roi;
      touches = read_roi(boxes + 4 * candidate, image, batch, rows, columns, &roi) &&
                roi.x < right && roi.x + roi.width > left && roi.y < bottom &&
                roi.y + roi.height > top;
    }
    const unsigned votes = __ballot_sync(FULL_WARP, touches);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, num_touching = 0;
    for (int i = 0; i < blockDim.x / WARP_SIZE; ++i) {
      if (i < warp) before += counts[i];
      num_touching += counts[i];
    }
    if (touches) touching[before + __popc(votes & ((1u << lane) - 1))] = candidate;
    __syncthreads();

    for (int i = 0; owns && i < num_touching; ++i) {
      const Int n = touching[i];
      Roi roi;
      read_roi(boxes + 4 * n, image, batch, rows, columns, &roi);
      // Bins that reach the tile; the first guess is lower by what the roundings may add.
      int column_first = max(static_cast<int>((left - roi.x - 1) / roi.bin_width) - 2, 0);
      while (bin_cells(roi.x, roi.bin_width, column_first, width).end <= left &&
             column_first < columns)
        ++column_first;
      int column_end = column_first;
      while (column_end < columns &&
             bin_cells(roi.x, roi.bin_width, column_end, width).first < right)
        ++column_end;
      int bin_row = max(static_cast<int>((top - roi.y - 1) / roi.bin_height) - 2, 0);
      for (; bin_row < rows; ++bin_row) {
        const Range y = bin_cells(roi.y, roi.bin_height, bin_row, height);
        if (y.first >= bottom) break;
        if (y.end <= top) continue;
        // Without branches around the loads, so that several bins are under way at once.
#pragma unroll 4
        for (int bin_column = column_first; bin_column < column_end; ++bin_column) {
          const Int bin = bin_row * columns + bin_column;
          const Int from = CHANNELS_LAST ? (n * rows * columns + bin) * channels + channel
                                         : (n * channels + channel) * rows * columns + bin;
          const Accumulator share = widen(grad[from]);
          if (MAX) {
            const int cell = argmax[from];
            const int row = cell / static_cast<int>(width);
            const int column = cell - row * static_cast<int>(width);
            if (cell >= 0 && row >= top && row < bottom && column >= left && column < right)
              sums[((row - top) * tile_width + column - left) * stride + thread] += share;
          } else {
            const Range x = bin_cells(roi.x, roi.bin_width, bin_column, width);
            const Accumulator count = Accumulator(x.end - x.first) * Accumulator(y.end - y.first);
            for (int row = max(y.first, top); row < min(y.end, bottom); ++row)
              for (int column = max(x.first, left); column < min(x.end, right); ++column)
                sums[((row - top) * tile_width + column - left) * stride + thread] +=
                    share / count;
          }
        }
      }
    }
    __syncthreads();  // before the list is written again
  }

  if (CHANNELS_LAST) {
    for (int row = top; owns && row < bottom; ++row)
      for (int column = left; column < right; ++column)
        narrow(sums[((row - top) * tile_width + column - left) * stride + thread],
               features_grad + map_offset(image, channel, row * width + column, channels,
                                          height * width));
    return;
  }
  // Neighbouring threads write neighbouring cells of one channel. The last barrier of the walk
  // made the sums visible; without RoIs there was none.
  __syncthreads();
  for (int item = thread; item < static_cast<int>(blockDim.x) * cells_of_tile;
       item += blockDim.x) {
    const int cell = item % cells_of_tile, owner = item / cells_of_tile;
    const int row = top + cell / tile_width, column = left + cell % tile_width;
    if (row < bottom && column < right && first_channel + owner < channels)
      narrow(sums[cell * stride + owner],
             features_grad + map_offset(image, first_channel + owner, row * width + column,
                                        channels, height * width));
  }
}
