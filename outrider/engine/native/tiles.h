// AMX: lines of 64 bytes, sixteen of which are a tile, and the shapes that the kernels give the eight tiles.

#pragma once

#include <ATen/cpu/Utils.h>

#include "lanes.h"

namespace outrider {

constexpr int64_t kLineBytes = 64;

struct alignas(kLineBytes) Line {
  uint8_t bytes[kLineBytes];
};

#ifdef __AMX_BF16__
// 0 to 3 are sums and 4 and 5 what comes in rows, as many as there are; 6 and 7 are sixteen lines of what they meet.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t num_rows[16] = {};

  explicit TileShapes(int64_t rows) {
    for (int tile = 0; tile < 8; ++tile) {
      bytes_per_row[tile] = kLineBytes;
      num_rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : kLanes);
    }
  }
};

inline const bool has_tiles = at::cpu::init_amx();
#endif

}  // namespace outrider
