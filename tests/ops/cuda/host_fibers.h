// Runs the threads of a block, as fibers: what barriers and warp operations wait for.
#pragma once

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <type_traits>
#include <vector>

struct dim3 {
  unsigned x, y, z;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum class Wait { none, block, warp, done };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Wait wait;
  unsigned mask;            // the lanes a warp operation waits for
  unsigned long long value;  // what this lane brings to it
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline void (*body)();
// What each lane brought to the warp operation that was last released, by thread.
inline std::vector<unsigned long long> brought;
inline std::vector<unsigned> came;

inline const char* failure;  // what the kernel did wrong; the launch ends

inline void yield(Wait wait) {
  fibers[current].wait = wait;
  unsigned self = current;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void fail(const char* what) {
  failure = what;
  yield(Wait::done);  // and never goes on
}

inline void entry() {
  body();
  fibers[current].wait = Wait::done;
  swapcontext(&fibers[current].context, &scheduler);
}

inline uint64_t random_state;
inline uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

// Lets every fiber that waits for nothing run, then frees those whose company is complete.
inline void run_block(unsigned num_threads, int order) {
  if (fibers.size() < num_threads) fibers.resize(num_threads);
  brought.assign(num_threads, 0);
  came.assign(num_threads, 0);
  for (unsigned i = 0; i < num_threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.stack.resize(128 * 1024);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
    fiber.wait = Wait::none;
  }
  std::vector<unsigned> ready(num_threads);
  for (unsigned i = 0; i < num_threads; ++i) ready[i] = i;
  while (!ready.empty()) {
    if (order == 1) std::reverse(ready.begin(), ready.end());
    if (order == 2)
      for (unsigned i = ready.size(); i > 1; --i) std::swap(ready[i - 1], ready[next_random() % i]);
    for (unsigned i : ready) {
      current = i;
      threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
      swapcontext(&scheduler, &fibers[i].context);
      if (failure) return;
    }
    ready.clear();
    unsigned done = 0, at_barrier = 0;
    for (unsigned i = 0; i < num_threads; ++i) {
      done += fibers[i].wait == Wait::done;
      at_barrier += fibers[i].wait == Wait::block;
    }
    if (done == num_threads) return;
    if (at_barrier && at_barrier + done == num_threads) {
      if (done) failure = "__syncthreads() was not reached by every thread of the block";
      if (failure) return;
      for (unsigned i = 0; i < num_threads; ++i) {
        fibers[i].wait = Wait::none;
        ready.push_back(i);
      }
      continue;
    }
    for (unsigned base = 0; base < num_threads; base += 32) {
      for (unsigned lane = 0; lane < 32 && base + lane < num_threads; ++lane) {
        Fiber& fiber = fibers[base + lane];
        if (fiber.wait != Wait::warp) continue;
        unsigned mask = fiber.mask, arrived = 0, real = 0;
        for (unsigned other = 0; other < 32 && base + other < num_threads; ++other) {
          real |= 1u << other;
          if (fibers[base + other].wait == Wait::warp && fibers[base + other].mask == mask)
            arrived |= 1u << other;
        }
        if ((arrived & mask) != (mask & real)) continue;
        for (unsigned other = 0; other < 32 && base + other < num_threads; ++other)
          if (mask >> other & 1) {
            brought[base + other] = fibers[base + other].value;
            came[base + other] = mask & real;
            fibers[base + other].wait = Wait::none;
            ready.push_back(base + other);
          }
      }
    }
    if (ready.empty()) failure = "the threads of a block wait for each other at different places";
  }
}

template <class T>
unsigned long long pack(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
  unsigned long long bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T unpack(unsigned long long bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// Meet the other lanes of `mask`, each bringing `value`. The values stay readable until this
// thread's warp meets again, which it cannot before this thread takes part.
inline void meet(unsigned mask, unsigned long long value) {
  if (!(mask >> (current % 32) & 1)) fail("a lane outside the mask takes part in a warp operation");
  fibers[current].mask = mask;
  fibers[current].value = value;
  yield(Wait::warp);
}

inline unsigned warp_base() { return current / 32 * 32; }

}  // namespace host
