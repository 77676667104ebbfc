// What every kernel file shares: the element types, conversion to the accumulator, wide loads.
//
// No CUDA header is included: NVRTC alone compiles these files, and a C++ compiler can run them on
// a machine without a GPU when it is given the meaning of CUDA's words.
//
// A kernel's arguments are pointers, `Int` and `float`, nothing else.
#pragma once

typedef long long Int;  // what a Python int arrives as

// Memory shared by a block whose size the launch gives: `SHARED_BYTES(name)` declares bytes.
#ifndef SHARED_BYTES
#define SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#define WARP_SIZE 32
#define FULL_WARP 0xffffffffu

// ---------------------------------------------------------------------------------------------
// 16-bit floats, as bits.

struct Half {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ float widen(Half value) {
#ifdef HOST_CUDA
  return host_half_to_float(value.bits);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// From the accumulator, rounded to nearest even: `narrow(value, address)`.
__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(double value, double* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, BFloat16* to) {
  unsigned bits = __float_as_uint(value);
  // NaN apart: rounding could carry its mantissa into infinity.
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = nan ? 0x7fc0 : static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ void narrow(float value, Half* to) {
#ifdef HOST_CUDA
  to->bits = host_float_to_half(value);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
#endif
}

template <class T>
struct AccumulatorOf {
  typedef float Type;
};
template <>
struct AccumulatorOf<double> {
  typedef double Type;
};

// The element type of features and the type sums and coordinates are computed in: float32, and
// float64 only for float64 features (which exist to check gradients numerically).
#ifdef SCALAR
typedef SCALAR Scalar;
typedef AccumulatorOf<Scalar>::Type Accumulator;
#endif

// ---------------------------------------------------------------------------------------------
// N neighbours read and written at once.

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T values[N];
};

// ---------------------------------------------------------------------------------------------
// Arithmetic that the compiler may not contract into fused multiply-adds: the same bits as the
// same formula in PyTorch, whichever kernel evaluates it.

__device__ __forceinline__ float exact_mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float exact_add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double exact_mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double exact_add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float exact_sub(float a, float b) { return __fadd_rn(a, -b); }
__device__ __forceinline__ float exact_div(float a, float b) { return __fdiv_rn(a, b); }

// Area of the box (x1, y1, x2, y2); inverted boxes count as empty, a NaN stays (fmaxf drops it).
__device__ __forceinline__ float exact_area(const float* box) {
  float width = exact_sub(box[2], box[0]), height = exact_sub(box[3], box[1]);
  return exact_mul(width < 0.f ? 0.f : width, height < 0.f ? 0.f : height);
}

// Two areas whose quotient has the bits of `detector.ops.boxes.box_iou`, which is 0 unless the
// union is above 0: not where both boxes are empty, nor where one holds a NaN and with it its area.
struct Overlap {
  float intersection, united;
};

__device__ __forceinline__ Overlap exact_overlap(const float* a, float area_a, const float* b,
                                                 float area_b) {
  float width = fmaxf(exact_sub(fminf(a[2], b[2]), fmaxf(a[0], b[0])), 0.f);
  float height = fmaxf(exact_sub(fminf(a[3], b[3]), fmaxf(a[1], b[1])), 0.f);
  float intersection = exact_mul(width, height);
  return {intersection, exact_sub(exact_add(area_a, area_b), intersection)};
}
