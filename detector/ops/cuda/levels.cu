// Where the samples of each RoI lie, on the pyramid level that FPN's rule gives it.
//
// Macro: SCALAR (boxes are its accumulator: float, or double for double).
#include "common.cuh"
#include "levels.cuh"

// FPN's level of each RoI (eq. 1) and its sample grid on that level, as
// `detector.ops.multiscale_roi_align` computes them; -1 is the level of a RoI that pools nothing.
extern "C" __global__ void roi_align_geometry(
    const Accumulator* boxes, const long long* image_index, const bool* valid, Accumulator* grids,
    int* level_index, Int num_rois, Int num_images, Int num_levels, float scale0, float scale1,
    float scale2, float scale3, float scale4, float scale5, Int min_level, Int canonical_level,
    float canonical_size, Int num_samples, Int aligned) {
  const Int roi = blockIdx.x * Int(blockDim.x) + threadIdx.x;
  if (roi >= num_rois) return;
  const Accumulator x1 = boxes[roi * 4], y1 = boxes[roi * 4 + 1];
  const Accumulator x2 = boxes[roi * 4 + 2], y2 = boxes[roi * 4 + 3];
  const Accumulator extent = (x2 - x1) * (y2 - y1);
  const bool finite = fabs(x1) + fabs(y1) + fabs(x2) + fabs(y2) < 3e38f;  // false for NaN
  const Int image = image_index[roi];
  const bool used = finite && (!valid || valid[roi]) && image >= 0 && image < num_images;
  Int level = 0;
  if (used) {
    const Accumulator size = sqrt(extent > 0 ? extent : Accumulator(0));
    level = static_cast<Int>(floor(canonical_level + log2(size / canonical_size + 1e-8f))) -
            min_level;
    level = level < 0 ? 0 : level >= num_levels ? num_levels - 1 : level;
  }
  const Accumulator scale = PICK(scale, level);
  const Accumulator shift = aligned ? 0.5f : 0.f;
  Accumulator width = (x2 - x1) * scale, height = (y2 - y1) * scale;
  if (!aligned) {
    width = width > 1 ? width : Accumulator(1);
    height = height > 1 ? height : Accumulator(1);
  }
  const Accumulator step_x = width / num_samples, step_y = height / num_samples;
  grids[roi * 4] = used ? x1 * scale - shift + step_x / 2 : Accumulator(0);
  grids[roi * 4 + 1] = used ? y1 * scale - shift + step_y / 2 : Accumulator(0);
  grids[roi * 4 + 2] = used ? step_x : Accumulator(0);
  grids[roi * 4 + 3] = used ? step_y : Accumulator(0);
  level_index[roi] = used ? static_cast<int>(level) : -1;
}
