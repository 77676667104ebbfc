// Greedy non-maximum suppression of fixed slots: every image and group in three launches, memory
// O(P), nothing asked of the GPU.
//
//   nms_sort_chunks   slots sorted by (group, score descending, slot) within chunks of a block
//   nms_merge_chunks  each slot's rank over all chunks by binary search; boxes put in that order
//   nms_suppress      a block takes a segment (the slots of one image and group) at a time
//
// An own sort, because torch.sort of a few long rows is one radix sort after another, each several
// launches, and would cost more than the suppression.
#include "common.cuh"

#define MAX_THREADS 1024
#define MAX_CHUNK 2048
#define TILE 64

// Ascending in this is descending in the score; empty slots come after every score of their group.
// NaN comes first, as torch.sort has it.
#define EMPTY_SLOT 0xffffffffu

__device__ __forceinline__ unsigned score_key(float score) {
  if (score != score) return 0u;  // of either sign
  unsigned bits = __float_as_uint(score == 0.f ? 0.f : score);  // -0 ties with 0
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

__device__ __forceinline__ bool comes_before(Int group_a, unsigned key_a, Int group_b,
                                             unsigned key_b) {
  return group_a != group_b ? group_a < group_b : key_a < key_b;
}

// How many of the `count` sorted slots come before (group, key), or before or equal to it.
__device__ __forceinline__ Int count_before(const Int* groups, const unsigned* keys, Int count,
                                            Int group, unsigned key, bool or_equal) {
  Int low = 0, high = count;
  while (low < high) {
    Int middle = (low + high) / 2;
    bool before = or_equal ? !comes_before(group, key, groups[middle], keys[middle])
                           : comes_before(groups[middle], keys[middle], group, key);
    if (before)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Bitonic sort of `width` slots (a power of two, twice the threads) in shared memory.
extern "C" __global__ void __launch_bounds__(MAX_CHUNK / 2) nms_sort_chunks(
    const float* scores, const Int* groups, const bool* valid, Int* chunk_groups,
    unsigned* chunk_keys, int* chunk_slots, Int num_slots, Int width, Int chunks_per_image) {
  __shared__ Int group[MAX_CHUNK];
  __shared__ unsigned key[MAX_CHUNK];
  __shared__ int slot[MAX_CHUNK];
  Int first = blockIdx.x % chunks_per_image * width;
  Int image = blockIdx.x / chunks_per_image * num_slots;

  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    bool exists = first + i < num_slots;
    Int from = image + first + i;
    slot[i] = static_cast<int>(first) + i;
    // What does not exist sorts last: the group is the largest, the key of an empty slot, and
    // among equals the slot decides.
    group[i] = exists ? groups[from] : 0x7fffffffffffffffll;
    key[i] = exists && valid[from] ? score_key(scores[from]) : EMPTY_SLOT;
  }
  __syncthreads();

  for (int size = 2; size <= width; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      int low = 2 * static_cast<int>(threadIdx.x) - (threadIdx.x & (stride - 1));
      int high = low + stride;
      if (high < width) {
        bool in_order = comes_before(group[low], key[low], group[high], key[high]) ||
                        (group[low] == group[high] && key[low] == key[high] &&
                         slot[low] < slot[high]);
        bool ascending = (low & size) == 0;
        if (in_order != ascending) {
          Int group_low = group[low];
          group[low] = group[high];
          group[high] = group_low;
          unsigned key_low = key[low];
          key[low] = key[high];
          key[high] = key_low;
          int slot_low = slot[low];
          slot[low] = slot[high];
          slot[high] = slot_low;
        }
      }
      // Up to a stride of 32, a warp exchanges within its own 64 slots and waits for no other.
      int next = stride > 1 ? stride / 2 : size;
      if (stride > 32 || next > 32)
        __syncthreads();
      else
        __syncwarp();
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < width && first + i < num_slots; i += blockDim.x) {
    chunk_groups[image + first + i] = group[i];
    chunk_keys[image + first + i] = key[i];
    chunk_slots[image + first + i] = slot[i];
  }
}

// One thread for each slot of the sorted chunks. Also clears `keep`.
extern "C" __global__ void nms_merge_chunks(const float* boxes, const Int* chunk_groups,
                                            const unsigned* chunk_keys, const int* chunk_slots,
                                            Int* sorted_groups, unsigned* sorted_keys,
                                            int* sorted_slots, float* sorted_boxes, bool* keep,
                                            Int num_images, Int num_slots, Int width) {
  Int index = static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= num_images * num_slots) return;
  Int image = index / num_slots * num_slots, own = (index - image) / width * width;
  Int group = chunk_groups[index];
  unsigned key = chunk_keys[index];

  Int rank = index - image - own;
  for (Int first = 0; first < num_slots; first += width) {
    if (first == own) continue;
    // Chunks hold ascending slots, so of equals those of earlier chunks come first.
    rank += count_before(chunk_groups + image + first, chunk_keys + image + first,
                         min(width, num_slots - first), group, key, first < own);
  }

  int slot = chunk_slots[index];
  Int from = image + slot, to = image + rank;
  sorted_groups[to] = group;
  sorted_keys[to] = key;
  sorted_slots[to] = slot;
  keep[from] = false;
  // One by one: the caller's boxes may start anywhere, these are read 16 bytes at once.
  for (int i = 0; i < 4; ++i) sorted_boxes[to * 4 + i] = boxes[from * 4 + i];
}

// IoU above the threshold, with the bits of the quotient. The quotient cannot exceed the threshold
// unless the intersection is at least the (rounded, hence monotone) product, so almost all pairs
// are refused without a division. A NaN makes the union NaN, which compares false.
__device__ __forceinline__ bool overlaps(const Vector<float, 4>& a, float area_a,
                                         const Vector<float, 4>& b, float area_b,
                                         float threshold) {
  const Overlap both = exact_overlap(a.values, area_a, b.values, area_b);
  return both.intersection > 0.f && both.intersection >= exact_mul(threshold, both.united) &&
         exact_div(both.intersection, both.united) > threshold;
}

// How many of the segments 0 .. `segments` - 1 block `block` of `num_blocks` takes.
__device__ __forceinline__ int share_of(int segments, int block, int num_blocks) {
  return (segments + num_blocks - 1 - block) / num_blocks;
}

// `blocks_per_image` blocks share the segments of an image; with fewer segments some find nothing.
//
// A segment goes tile by tile. The boxes of a tile settle among themselves who stays, then its
// survivors suppress all later boxes in parallel, one thread a box, survivors in shared memory. So
// only the tiles are serial, and a box that is gone is never compared again.
//
// One bit a box says that it is gone: in shared memory, or in `scratch` (a row for each block) where
// a segment might not fit. A warp owns the words it writes: no atomics.
extern "C" __global__ void __launch_bounds__(MAX_THREADS) nms_suppress(
    const Int* groups, const unsigned* keys, const int* slots, const float* boxes, bool* keep,
    unsigned* scratch, Int num_slots, Int blocks_per_image, float threshold) {
  typedef Vector<float, 4> Box;
  __shared__ int starts[MAX_THREADS], ends[MAX_THREADS];
  __shared__ int warp_starts[MAX_THREADS / WARP_SIZE];
  __shared__ Box tile_boxes[TILE], survivors[TILE];
  __shared__ float tile_areas[TILE], survivor_areas[TILE];
  __shared__ unsigned overlapping[TILE][TILE / 32];  // by which earlier boxes of the tile
  __shared__ int num_survivors;
  SHARED_BYTES(shared_bits);
  const Int num_words = (num_slots + TILE - 1) / TILE * (TILE / 32);
  unsigned* gone = scratch ? scratch + blockIdx.x * num_words
                           : reinterpret_cast<unsigned*>(shared_bits);

  const int thread = threadIdx.x, lane = thread % WARP_SIZE, warp = thread / WARP_SIZE;
  const int num_warps = blockDim.x / WARP_SIZE;
  const int num_blocks = static_cast<int>(blocks_per_image), block = blockIdx.x % num_blocks;
  const Int image = blockIdx.x / num_blocks * num_slots;
  groups += image;
  keys += image;
  slots += image;
  boxes += image * 4;
  keep += image;

  int seen = 0;
  for (Int base = 0; base < num_slots; base += blockDim.x) {
    Int i = base + thread;
    bool starts_segment = i < num_slots && (i == 0 || groups[i] != groups[i - 1]);
    unsigned ballot = __ballot_sync(FULL_WARP, starts_segment);
    if (lane == 0) warp_starts[warp] = __popc(ballot);
    __syncthreads();
    int number = seen + __popc(ballot & ((1u << lane) - 1)), seen_after = seen;
    for (int other = 0; other < num_warps; ++other) {
      if (other < warp) number += warp_starts[other];
      seen_after += warp_starts[other];
    }
    const int first = share_of(seen, block, num_blocks);
    const int count = share_of(seen_after, block, num_blocks) - first;
    seen = seen_after;
    if (starts_segment && number % num_blocks == block) {
      int place = share_of(number, block, num_blocks) - first;
      starts[place] = static_cast<int>(i);
      ends[place] = static_cast<int>(
          i + count_before(groups + i, keys + i, num_slots - i, groups[i], EMPTY_SLOT, false));
    }
    __syncthreads();

    for (int segment = 0; segment < count; ++segment) {
      const int start = starts[segment], length = ends[segment] - start;
      const int words = (length + TILE - 1) / TILE * (TILE / 32);
      __syncthreads();  // the last tiles of the segment before may still be looked at
      for (int word = thread; word < words; word += blockDim.x) {
        int left = length - word * 32;
        gone[word] = left >= 32 ? 0u : left <= 0 ? ~0u : ~0u << left;
      }
      __syncthreads();

      for (int tile = 0; tile < length; tile += TILE) {
        const int word = tile / 32;
        const unsigned long long alive =
            ~(gone[word] | static_cast<unsigned long long>(gone[word + 1]) << 32);
        if (!alive) continue;  // the same for the whole block

        if (thread < TILE && alive >> thread & 1) {
          Box box = reinterpret_cast<const Box*>(boxes)[start + tile + thread];
          tile_boxes[thread] = box;
          tile_areas[thread] = exact_area(box.values);
        }
        __syncthreads();
        for (int task = warp; task < TILE * (TILE / 32); task += num_warps) {
          const int later = task / 2, half = task % 2, earlier = half * 32 + lane;
          bool both = earlier < later && (alive >> later & 1) && (alive >> earlier & 1);
          unsigned hits = __ballot_sync(
              FULL_WARP, both && overlaps(tile_boxes[earlier], tile_areas[earlier],
                                          tile_boxes[later], tile_areas[later], threshold));
          if (lane == 0) overlapping[later][half] = hits;
        }
        __syncthreads();

        if (warp == 0) {
          // A box stays once all that could suppress it are gone, and goes once one of them stays.
          // Each round settles the first open box at least, and usually nearly all.
          unsigned long long mine[2], stays = 0, open = alive;
          for (int half = 0; half < 2; ++half)
            mine[half] = overlapping[half * 32 + lane][0] |
                         static_cast<unsigned long long>(overlapping[half * 32 + lane][1]) << 32;
          while (open) {
            unsigned long long now_stay = 0, now_go = 0;
            for (int half = 0; half < 2; ++half) {
              unsigned stay = __ballot_sync(FULL_WARP, !(mine[half] & (open | stays)));
              unsigned go = __ballot_sync(FULL_WARP, (mine[half] & stays) != 0);
              now_stay |= static_cast<unsigned long long>(stay) << (32 * half);
              now_go |= static_cast<unsigned long long>(go) << (32 * half);
            }
            stays |= now_stay & open;
            open &= ~(now_stay | now_go);
          }
          for (int half = 0; half < 2; ++half) {
            int box = half * 32 + lane;
            if (stays >> box & 1) {
              int place = __popcll(stays & ((1ull << box) - 1));
              survivors[place] = tile_boxes[box];
              survivor_areas[place] = tile_areas[box];
              keep[slots[start + tile + box]] = true;
            }
          }
          if (lane == 0) num_survivors = __popcll(stays);
        }
        __syncthreads();

        const int num = num_survivors;
        for (int later = word + TILE / 32 + warp; later < words; later += num_warps) {
          unsigned bits = gone[later];
          if (bits == ~0u) continue;
          bool suppressed = false;
          if (!(bits >> lane & 1)) {
            Box box = reinterpret_cast<const Box*>(boxes)[start + later * 32 + lane];
            float area = exact_area(box.values);
            for (int i = 0; i < num && !suppressed; ++i)
              suppressed = overlaps(survivors[i], survivor_areas[i], box, area, threshold);
          }
          __syncwarp();
          unsigned hits = __ballot_sync(FULL_WARP, suppressed);
          if (lane == 0 && hits) gone[later] = bits | hits;
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}
