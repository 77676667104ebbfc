// Bilinear samples of a feature map: sample i along an axis of a RoI lies at start + i * step.
#pragma once

// The two cells that a sample lies between and how much of each it takes. Outside the map both
// weights are 0. Weighing is per axis: a sample's value is the sum over its 2 x 2 cells of
// (weight in y) * (weight in x) * (feature).
struct Tap {
  int low, high;
  Accumulator low_weight, high_weight;
};

// Not fused: a sample on the border of the map is inside or outside in every implementation alike.
__device__ __forceinline__ Accumulator position_of(Accumulator start, Accumulator step, Int i) {
  return exact_add(start, exact_mul(static_cast<Accumulator>(i), step));
}

#ifdef BORDER_ZERO  // TensorFlow: the map ends at the outermost centres
__device__ __forceinline__ bool is_inside(Accumulator position, int size) {
  return position >= 0 && position <= size - 1;
}
#define LOWEST_INSIDE 0
#else  // RoIAlign: up to one cell outside reads the border cell
__device__ __forceinline__ bool is_inside(Accumulator position, int size) {
  return position >= -1 && position <= size;
}
#define LOWEST_INSIDE (-1)
#endif

// A NaN position compares false and is outside; nothing is converted to int before that.
__device__ __forceinline__ Tap tap_at(Accumulator position, int size) {
  Tap tap = {0, 0, 0, 0};
  if (!is_inside(position, size)) return tap;
  if (position < 0) position = 0;
  tap.low = static_cast<int>(position);
  if (tap.low >= size - 1) {
    tap.low = tap.high = size - 1;
    tap.low_weight = 1;
  } else {
    tap.high = tap.low + 1;
    tap.high_weight = position - tap.low;
    tap.low_weight = 1 - tap.high_weight;
  }
  return tap;
}

// The same weights asked from the other side: how much of `cell` the sample takes.
__device__ __forceinline__ Accumulator weight_of(Accumulator position, int cell, int size) {
  Tap tap = tap_at(position, size);
  return (tap.low == cell ? tap.low_weight : 0) + (tap.high == cell ? tap.high_weight : 0);
}
