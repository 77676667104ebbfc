// Masks of M x M cells in their boxes, sampled at the centres of an image's pixels.
//
// A mask has a ring of cells with probability 0 around it, so that cells are numbered 0..M+1.
// What is sampled is the probability less the threshold; a pixel belongs to the mask where that
// is not negative. Positions are float64 (a few for each column or row), values float32, and no
// operation is contracted: the same bits as on the CPU and in PyTorch.
//
// Macros: SCALAR, the element type of the masks.
#include "common.cuh"

struct Axis {
  double start;  // where the box begins
  double scale;  // cells per pixel
};

// A box without extent, or with NaN or infinity, goes where no pixel is.
__device__ __forceinline__ Axis axis_of(double start, double end, int side) {
  double extent = __dadd_rn(end, -start);
  double scale = __ddiv_rn(static_cast<double>(side), extent);
  bool usable = extent > 0. && scale > 0. && scale <= 1.7976931348623157e308;
  return usable ? Axis{start, scale} : Axis{1e300, 1.};
}

// The cell before a pixel, and the weights of that cell and the next.
struct Place {
  int cell;
  float before, after;
};

__device__ __forceinline__ Place place_of(const Axis& axis, int pixel, int side) {
  double at = __dmul_rn(__dadd_rn(pixel + .5, -axis.start), axis.scale);
  at = fmin(fmax(__dadd_rn(at, .5), 0.), side + 1.);
  int cell = min(static_cast<int>(at), side);
  float after = static_cast<float>(__dadd_rn(at, -static_cast<double>(cell)));
  return {cell, exact_sub(1.f, after), after};
}

// A range of pixels of an axis that holds all that cells reach, with one to spare.
__device__ __forceinline__ int first_pixel(const Axis& axis, int size) {
  return static_cast<int>(fmin(fmax(floor(axis.start - .5 - .5 / axis.scale), 0.), size));
}
__device__ __forceinline__ int stop_pixel(const Axis& axis, int side, int size) {
  double stop = floor(axis.start - .5 + (side + .5) / axis.scale) + 2.;
  return static_cast<int>(fmin(fmax(stop, 0.), size));
}

__device__ __forceinline__ float blend(float a, float b, const Place& place) {
  return exact_add(exact_mul(place.before, a), exact_mul(place.after, b));
}

__device__ __forceinline__ float cell_value(const Scalar* mask, int side, int row, int column,
                                            float threshold) {
  // In unsigned numbers, the ring's first row and column are large too.
  unsigned r = row - 1, c = column - 1;
  bool there = r < static_cast<unsigned>(side) && c < static_cast<unsigned>(side);
  return exact_sub(there ? widen(mask[r * side + c]) : 0.f, threshold);
}

// The value of a column of pixels at the height of a row of cells.
__device__ __forceinline__ float column_value(const Scalar* mask, int side, int row,
                                              const Place& column, float threshold) {
  return blend(cell_value(mask, side, row, column.cell, threshold),
               cell_value(mask, side, row, column.cell + 1, threshold), column);
}

// ---------------------------------------------------------------------------------------------
// Every byte of the N bitmaps is written once, 16 at a time whatever the image's width: a thread
// has 16 bytes that follow each other, and most have nothing but zeros to write.

#define PIXELS 16

// A mask and the pixels its box can reach.
struct PlacedMask {
  const Scalar* mask;
  Axis x, y;
  int left, right, top, bottom;
};

__device__ __forceinline__ PlacedMask place_mask(const Scalar* masks, const double* boxes, Int n,
                                                 int side, int height, int width) {
  const double* box = boxes + 4 * n;
  PlacedMask at;
  at.mask = masks + n * side * side;
  at.x = axis_of(box[0], box[2], side);
  at.y = axis_of(box[1], box[3], side);
  at.left = first_pixel(at.x, width);
  at.right = stop_pixel(at.x, side, width);
  at.top = first_pixel(at.y, height);
  at.bottom = stop_pixel(at.y, side, height);
  return at;
}

// masks (N, M, M), boxes (N, 4) -> pasted (N, height, width), 16-byte aligned.
// One thread for 16 bytes.
extern "C" __global__ void paste_masks(const Scalar* __restrict__ masks,
                                       const double* __restrict__ boxes, bool* __restrict__ pasted,
                                       Int num_masks, Int mask_side, Int image_height,
                                       Int image_width, float threshold) {
  int side = mask_side, height = image_height, width = image_width;
  Int pixels = image_height * image_width, total = num_masks * pixels;
  Int block_start = static_cast<Int>(blockIdx.x) * blockDim.x * PIXELS;
  Int block_mask = block_start / pixels;

  // float64 divisions are dear: a block makes those of the masks it begins in and goes on to.
  __shared__ PlacedMask placed[2];
  if (threadIdx.x < 2 && block_mask + threadIdx.x < num_masks)
    placed[threadIdx.x] =
        place_mask(masks, boxes, block_mask + threadIdx.x, side, height, width);
  __syncthreads();
  Int start = block_start + threadIdx.x * PIXELS;
  if (start >= total) return;

  Int offset = start - block_mask * pixels;
  Int n = block_mask;
  for (; offset >= pixels; offset -= pixels) ++n;
  unsigned inside = static_cast<unsigned>(offset);
  int y = inside / static_cast<unsigned>(width);
  int x = inside - static_cast<unsigned>(y) * width;
  PlacedMask at = n - block_mask < 2 ? placed[n - block_mask]
                                     : place_mask(masks, boxes, n, side, height, width);
  bool reached = y >= at.top && y < at.bottom;

  unsigned bits = 0;
  bool one_row = x + PIXELS <= width;
  if (!one_row || (reached && x < at.right && x + PIXELS > at.left)) {
    Place row = place_of(at.y, y, side);
#pragma unroll 1
    for (int i = 0; i < PIXELS && start + i < total; ++i) {
      if (reached && x >= at.left && x < at.right) {
        Place column = place_of(at.x, x, side);
        float above = column_value(at.mask, side, row.cell, column, threshold);
        float below = column_value(at.mask, side, row.cell + 1, column, threshold);
        bits |= static_cast<unsigned>(blend(above, below, row) >= 0.f) << i;
      }
      if (++x == width) {
        x = 0;
        if (++y == height) {
          y = 0;
          if (++n < num_masks) at = place_mask(masks, boxes, n, side, height, width);
        }
        reached = y >= at.top && y < at.bottom;
        row = place_of(at.y, y, side);
      }
    }
  }
  if (start + PIXELS <= total) {
    Vector<unsigned, PIXELS / 4> bytes;
#pragma unroll
    for (int i = 0; i < PIXELS / 4; ++i)  // four bits to the lowest bits of four bytes
      bytes.values[i] = (bits >> 4 * i & 15u) * 0x00204081u & 0x01010101u;
    *reinterpret_cast<Vector<unsigned, PIXELS / 4>*>(pasted + start) = bytes;
  } else {
    for (int i = 0; start + i < total; ++i) pasted[start + i] = bits >> i & 1u;
  }
}

// ---------------------------------------------------------------------------------------------
// Borders of runs. Weights are never negative, so between two cells of one sign no pixel of a
// column has the other, and between two of different sign there is one border: a thread has a
// column and looks at M + 1 pairs of cells instead of the column's pixels. Neighbouring threads
// read the same or neighbouring cells.

// The first row with the sign of `after`, of a column that has the values `before` and `after`,
// of different sign, at the centres of `cell` and the one below.
__device__ __forceinline__ bool is_after(const Axis& y, int row, int side, int cell, float before,
                                         float after) {
  Place at = place_of(y, row, side);
  if (at.cell != cell) return at.cell > cell;
  return (blend(before, after, at) >= 0.f) == (after >= 0.f);
}

__device__ __forceinline__ int first_row(const Axis& y, int height, int side, int cell,
                                         float before, float after) {
  double crossing = cell + static_cast<double>(before / (before - after)) - .5;
  int row = static_cast<int>(
      fmin(fmax(ceil(crossing / y.scale + y.start - .5), 0.), static_cast<double>(height)));
  // That was rounded otherwise than sampling is, which decides.
  while (row > 0 && is_after(y, row - 1, side, cell, before, after)) --row;
  while (row < height && !is_after(y, row, side, cell, before, after)) ++row;
  return row;
}

// Goes down the column of pixels of this thread. Gives the number of its borders, and with `ends`
// writes them. Grid: x over groups of columns of each mask.
__device__ __forceinline__ int column_borders(const Scalar* masks, const double* boxes,
                                              const Int* ends, int* borders, Int n, int x,
                                              int side, int height, int width, float threshold) {
  const double* box = boxes + 4 * n;
  Axis across = axis_of(box[0], box[2], side), down = axis_of(box[1], box[3], side);
  bool reached = x >= first_pixel(across, width) && x < stop_pixel(across, side, width) &&
                 first_pixel(down, height) < stop_pixel(down, side, height);
  if (!reached) return 0;
  const Scalar* mask = masks + n * side * side;
  Place column = place_of(across, x, side);
  int* to = 0;
  if (ends) {
    Int index = n * width + x;
    to = borders + (index ? ends[index - 1] : 0);
  }
  int count = 0;
  float before = column_value(mask, side, 0, column, threshold);
  for (int cell = 0; cell <= side; ++cell) {
    float after = column_value(mask, side, cell + 1, column, threshold);
    if ((before >= 0.f) != (after >= 0.f)) {
      if (ends) to[count] = x * height + first_row(down, height, side, cell, before, after);
      ++count;
    }
    before = after;
  }
  return count;
}

// masks (N, M, M), boxes (N, 4) -> counts (N, width) int32, the borders of each column.
extern "C" __global__ void count_mask_borders(const Scalar* __restrict__ masks,
                                              const double* __restrict__ boxes,
                                              int* __restrict__ counts, Int mask_side,
                                              Int image_height, Int image_width,
                                              Int blocks_per_mask, float threshold) {
  Int n = blockIdx.x / blocks_per_mask;
  int x = static_cast<int>(blockIdx.x - n * blocks_per_mask) * blockDim.x + threadIdx.x;
  if (x < image_width)
    counts[n * image_width + x] = column_borders(masks, boxes, 0, 0, n, x, mask_side, image_height,
                                                 image_width, threshold);
}

// And ends (N, width), the running sum of the counts -> borders int32, `column * height + row`.
extern "C" __global__ void write_mask_borders(const Scalar* __restrict__ masks,
                                              const double* __restrict__ boxes,
                                              const Int* __restrict__ ends,
                                              int* __restrict__ borders, Int mask_side,
                                              Int image_height, Int image_width,
                                              Int blocks_per_mask, float threshold) {
  Int n = blockIdx.x / blocks_per_mask;
  int x = static_cast<int>(blockIdx.x - n * blocks_per_mask) * blockDim.x + threadIdx.x;
  if (x < image_width)
    column_borders(masks, boxes, ends, borders, n, x, mask_side, image_height, image_width,
                   threshold);
}
