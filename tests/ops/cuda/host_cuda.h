// CUDA's words in C++: runs a kernel on a machine without a GPU, one block after another.
//
// Every thread of a block is a fiber on the one thread of this process. A fiber runs until it
// reaches a barrier or a warp operation, where it waits for the others. The order in which waiting
// fibers go on is chosen by the launch (ascending, descending, shuffled): results that depend on it
// betray a missing barrier or a race. What the hardware leaves undefined is made loud: shared
// memory starts as NaN, and a block whose threads wait for different things is an error.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "host_fibers.h"

#define HOST_CUDA 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __restrict__ __restrict
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Shared variables are gathered in one section, which is filled with NaN before each block.
#define __shared__ static __attribute__((section("cuda_shared")))
#define SHARED_BYTES(name) unsigned char* name = host_dynamic_shared

using std::max;
using std::min;

struct uint2 {
  unsigned x, y;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

inline unsigned char* host_dynamic_shared;

inline void __syncthreads() { host::yield(host::Wait::block); }
inline int __syncthreads_or(int predicate);
inline int __syncthreads_count(int predicate) {
  static int count;
  __syncthreads();
  count = 0;
  __syncthreads();
  count += predicate != 0;
  __syncthreads();
  int result = count;
  __syncthreads();
  return result;
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { host::meet(mask, 0); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned self = host::current;
  host::meet(mask, predicate != 0);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (host::came[self] >> lane & 1)
      result |= static_cast<unsigned>(host::brought[host::warp_base() + lane]) << lane;
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return !__ballot_sync(mask, !predicate); }

// The value of a lane that took part; of another lane, this thread's own (CUDA: undefined).
template <class T>
T host_lane_value(T own, unsigned lane) {
  bool there = lane < 32 && host::came[host::current] >> lane & 1;
  return there ? host::unpack<T>(host::brought[host::warp_base() + lane]) : own;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  host::meet(mask, host::pack(value));
  unsigned self = host::current % 32;
  return host_lane_value(value, (self & ~(width - 1)) | (lane & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  host::meet(mask, host::pack(value));
  unsigned self = host::current % 32, inside = self & (width - 1);
  return inside >= delta ? host_lane_value(value, self - delta) : value;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  host::meet(mask, host::pack(value));
  unsigned self = host::current % 32, inside = self & (width - 1);
  return inside + delta < static_cast<unsigned>(width) ? host_lane_value(value, self + delta)
                                                       : value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  host::meet(mask, host::pack(value));
  // A group of `width` lanes may read the groups before it, not those after it.
  unsigned self = host::current % 32, source = self ^ bits;
  return source <= (self | (width - 1)) ? host_lane_value(value, source) : value;
}
inline unsigned __activemask() { host::fail("__activemask() says nothing reliable"); return 0; }

// ---------------------------------------------------------------------------------------------
// Atomics: one fiber runs at a time, so the plain operation is atomic.

template <class T>
T atomicAdd(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = before + value;
  return before;
}
template <class T>
T atomicMax(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = std::max(before, value);
  return before;
}
template <class T>
T atomicMin(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = std::min(before, value);
  return before;
}
template <class T>
T atomicOr(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = before | value;
  return before;
}
template <class T>
T atomicAnd(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = before & value;
  return before;
}
template <class T>
T atomicXor(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = before ^ value;
  return before;
}
template <class T>
T atomicExch(T* address, typename std::common_type<T>::type value) {
  T before = *address;
  *address = value;
  return before;
}
template <class T>
T atomicCAS(T* address, typename std::common_type<T>::type compare,
            typename std::common_type<T>::type value) {
  T before = *address;
  if (before == compare) *address = value;
  return before;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------------------------------------
// Arithmetic (compiled with -ffp-contract=off, so that what must not be contracted is not)

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __float2int_rn(float a) { return static_cast<int>(nearbyintf(a)); }
inline int __float2int_rd(float a) { return static_cast<int>(floorf(a)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(x); }
inline int __ffsll(unsigned long long x) { return __builtin_ffsll(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(unsigned long long x) { return x ? __builtin_clzll(x) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
  return result;
}
inline float __uint_as_float(unsigned x) { return host::unpack<float>(x); }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(host::pack(x)); }
inline float __int_as_float(int x) { return host::unpack<float>(static_cast<unsigned>(x)); }
inline int __float_as_int(float x) { return static_cast<int>(host::pack(x)); }
template <class T>
T __ldg(const T* address) {
  return *address;
}

#if defined(__FLT16_MANT_DIG__) && !defined(HOST_SOFT_HALF)
inline float host_half_to_float(unsigned short bits) {
  return static_cast<float>(host::unpack<_Float16>(bits));
}
inline unsigned short host_float_to_half(float value) {
  return static_cast<unsigned short>(host::pack(static_cast<_Float16>(value)));
}
#else  // a compiler without 16-bit floats
inline float host_half_to_float(unsigned short bits) {
  unsigned exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  float size = exponent == 31  ? __uint_as_float(0x7f800000u | mantissa << 13)
               : exponent == 0 ? ldexpf(mantissa, -24)
                               : ldexpf(mantissa | 0x400, static_cast<int>(exponent) - 25);
  return bits >> 15 ? -size : size;
}
inline unsigned short host_float_to_half(float value) {
  unsigned short sign = __float_as_uint(value) >> 16 & 0x8000;
  float size = fabsf(value);
  if (size != size) return sign | 0x7e00;
  if (size >= 65520.f) return sign | 0x7c00;  // halfway to 2^16, and ties go to even
  if (size < 6.103515625e-5f)                 // subnormal: counts steps of 2^-24
    return sign | static_cast<unsigned short>(nearbyintf(ldexpf(size, 24)));
  int exponent;
  // In 2^10..2^11 the steps are ones; rounding up to 2^11 carries into the exponent.
  float mantissa = nearbyintf(ldexpf(frexpf(size, &exponent), 11));
  return sign | static_cast<unsigned short>((exponent + 13) * 1024 + static_cast<int>(mantissa));
}
#endif

// ---------------------------------------------------------------------------------------------
// Launching

extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak));
extern unsigned char __stop_cuda_shared[] __attribute__((weak));
}

namespace host {

template <class T>
constexpr char kind_of() {
  if (std::is_pointer<T>::value) return 'p';
  if (std::is_same<T, long long>::value) return 'i';
  if (std::is_same<T, float>::value) return 'f';
  return '?';
}

template <class T>
T argument(const unsigned long long* values, size_t index) {
  T value;
  memcpy(&value, &values[index], sizeof(T));
  return value;
}

template <class... Args, size_t... Index>
void launch(void (*kernel)(Args...), const unsigned* grid, unsigned block, unsigned shared_bytes,
           const char* kinds, const unsigned long long* values, int order, uint64_t seed,
           std::index_sequence<Index...>) {
  const char expected[] = {kind_of<Args>()..., 0};
  if (strcmp(expected, kinds) != 0) {
    static char message[256];
    snprintf(message, sizeof(message), "takes (%s) but was launched with (%s)", expected, kinds);
    failure = message;
    return;
  }
  static void (*the_kernel)(Args...);
  static std::tuple<Args...> arguments;
  the_kernel = kernel;
  arguments = std::tuple<Args...>(argument<Args>(values, Index)...);
  body = [] { std::apply(the_kernel, arguments); };
  random_state = seed * 2 + 1;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block, 1, 1};
  std::vector<unsigned char> dynamic(shared_bytes + 64);
  unsigned char* aligned = dynamic.data() + 16 - reinterpret_cast<uintptr_t>(dynamic.data()) % 16;
  host_dynamic_shared = aligned;
  const size_t num_blocks = size_t(grid[0]) * grid[1] * grid[2];
  const uint64_t guard = 0x5ca1ab1e5ca1ab1eull;
  for (size_t step = 0; step < num_blocks; ++step) {
    // Blocks may run in any order too.
    size_t i = order == 0 ? step : num_blocks - 1 - step;
    blockIdx = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]),
                unsigned(i / grid[0] / grid[1])};
    memset(aligned, 0xff, shared_bytes);
    memcpy(aligned + shared_bytes, &guard, 8);
    if (__start_cuda_shared)
      memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    run_block(block, order);
    if (memcmp(aligned + shared_bytes, &guard, 8) != 0) failure = "wrote past its shared memory";
    if (failure) return;
  }
}

// Nothing, or what went wrong.
template <class... Args>
const char* launch(void (*kernel)(Args...), const unsigned* grid, unsigned block, unsigned shared_bytes,
           const char* kinds, const unsigned long long* values, int order, uint64_t seed) {
  failure = nullptr;
  launch(kernel, grid, block, shared_bytes, kinds, values, order, seed,
         std::index_sequence_for<Args...>());
  return failure;
}

}  // namespace host
