// Kernels take up to 6 pyramid levels as plain parameters: pointers in device memory would have to
// be copied there first.
#pragma once

#define MAX_LEVELS 6

#define LEVELS_OF(T)                                                                          \
  T *map0, T *map1, T *map2, T *map3, T *map4, T *map5, Int height0, Int height1, Int height2, \
      Int height3, Int height4, Int height5, Int width0, Int width1, Int width2, Int width3,   \
      Int width4, Int width5

#define PICK(name, level)     \
  ((level) == 0   ? name##0   \
   : (level) == 1 ? name##1   \
   : (level) == 2 ? name##2   \
   : (level) == 3 ? name##3   \
   : (level) == 4 ? name##4   \
                  : name##5)
