// Masks of gts inside RoIs, straight from polygon edges: non-zero winding at cell centres.
//
// A block has a RoI, or a band of its rows where M x M windings do not fit into shared memory, and
// its threads go over the edges of the RoI's own gt, whatever other gts have. An edge adds +1 or -1
// to the first cell right of where it crosses a row; the running sum of a row is the winding number.
// Sums of integers do not depend on their order, so atomics are deterministic. No operation is
// contracted: crossings fall into the same cells as in PyTorch.
#include "common.cuh"

#define MIN_CELL 1e-9f

// edges (B, E, 4), 16-byte aligned; offsets (B, G + 1); boxes (N, 4); image_index, gt_index (N,)
// -> masks (N, M, M). Grid: x over N x bands; `rows_per_band` x M ints of shared memory.
extern "C" __global__ void rasterize_polygons(
    const float* __restrict__ edges, const Int* __restrict__ offsets,
    const float* __restrict__ boxes, const Int* __restrict__ image_index,
    const Int* __restrict__ gt_index, float* __restrict__ masks, Int num_images, Int num_gts,
    Int num_edges, Int mask_size, Int rows_per_band, Int bands) {
  SHARED_BYTES(shared);
  int* crossings = reinterpret_cast<int*>(shared);
  int side = mask_size;
  Int n = blockIdx.x / bands;
  int first_row = static_cast<int>((blockIdx.x - n * bands) * rows_per_band);
  int rows = min(static_cast<int>(rows_per_band), side - first_row);
  for (int i = threadIdx.x; i < rows * side; i += blockDim.x) crossings[i] = 0;
  __syncthreads();

  const float* box = boxes + 4 * n;
  float left = box[0], top = box[1];
  float cell_width = exact_div(exact_sub(box[2], left), static_cast<float>(side));
  float cell_height = exact_div(exact_sub(box[3], top), static_cast<float>(side));
  // False for NaN. An infinite side would leave no coordinate finite.
  bool filled = cell_width > MIN_CELL && cell_height > MIN_CELL && cell_width <= 3.402823466e38f &&
                cell_height <= 3.402823466e38f;
  Int image = image_index[n], gt = gt_index[n];
  if (filled && image >= 0 && image < num_images && gt >= 0 && gt < num_gts) {
    const Int* range = offsets + image * (num_gts + 1) + gt;
    Int begin = max(range[0], static_cast<Int>(0)), end = min(range[1], num_edges);
    const Vector<float, 4>* own =
        reinterpret_cast<const Vector<float, 4>*>(edges) + image * num_edges;
    for (Int i = begin + threadIdx.x; i < end; i += blockDim.x) {
      Vector<float, 4> edge = own[i];
      float x0 = exact_div(exact_sub(edge.values[0], left), cell_width);
      float y0 = exact_div(exact_sub(edge.values[1], top), cell_height);
      float x1 = exact_div(exact_sub(edge.values[2], left), cell_width);
      float y1 = exact_div(exact_sub(edge.values[3], top), cell_height);
      // Only the rows between its ends: most edges cross few.
      float low = fmaxf(ceilf(fminf(y0, y1) - .5f), static_cast<float>(first_row));
      float high = fminf(ceilf(fmaxf(y0, y1) - .5f), static_cast<float>(first_row + rows));
      if (!(low < high)) continue;
      for (int row = static_cast<int>(low); row < static_cast<int>(high); ++row) {
        float centre = row + .5f;
        bool down = y0 <= centre && centre < y1, up = y1 <= centre && centre < y0;
        if (!down && !up) continue;
        float along = exact_div(exact_sub(centre, y0), exact_sub(y1, y0));
        float x = exact_add(x0, exact_mul(along, exact_sub(x1, x0)));
        float column = fmaxf(ceilf(exact_sub(x, .5f)), 0.f);
        // A crossing right of the last centre is left of no cell.
        if (column < side)
          atomicAdd(&crossings[(row - first_row) * side + static_cast<int>(column)], down ? 1 : -1);
      }
    }
  }
  __syncthreads();

  // A warp has a row: running sums by shuffles, 32 neighbours written at once.
  int lane = threadIdx.x % WARP_SIZE, num_warps = blockDim.x / WARP_SIZE;
  for (int row = threadIdx.x / WARP_SIZE; row < rows; row += num_warps) {
    float* to = masks + (n * side + first_row + row) * side;
    int carried = 0;
    for (int base = 0; base < side; base += WARP_SIZE) {
      int column = base + lane;
      int winding = column < side ? crossings[row * side + column] : 0;
      for (int step = 1; step < WARP_SIZE; step *= 2) {
        int before = __shfl_up_sync(FULL_WARP, winding, step);
        if (lane >= step) winding += before;
      }
      winding += carried;
      carried = __shfl_sync(FULL_WARP, winding, WARP_SIZE - 1);
      if (column < side) to[column] = winding != 0 ? 1.f : 0.f;
    }
  }
}
