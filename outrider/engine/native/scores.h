// Scores of queries against keys, sixteen keys at a time, one in each lane; and the weights that they become.
//
// A score is a sum over the numbers of query and key in their order, in a lane of its own, whatever else is computed.

#pragma once

#include <algorithm>
#include <type_traits>

#include "lanes.h"

namespace outrider {

constexpr int64_t kQueriesAtOnce = 4;  // independent sums, so that additions need not wait for one another
constexpr int64_t kTilesAtOnce = 4;    // of sixteen keys, likewise
constexpr float kNothing = -std::numeric_limits<float>::infinity();

inline int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// Exchanges blocks of `kSize` by `kSize` numbers across the diagonal of blocks twice as large.
template <int32_t kSize>
inline void exchange(Floats (&rows)[kLanes]) {
  constexpr auto place = [](int32_t lane, bool lower) -> int32_t {
    const bool is_right = lane & kSize;
    return lower == is_right ? lane + (lower ? kLanes : 0) : lower ? lane + kSize : lane + kLanes - kSize;
  };
  constexpr auto order = [place](bool lower) {
    return Ints{place(0, lower),  place(1, lower),  place(2, lower),  place(3, lower),
                place(4, lower),  place(5, lower),  place(6, lower),  place(7, lower),
                place(8, lower),  place(9, lower),  place(10, lower), place(11, lower),
                place(12, lower), place(13, lower), place(14, lower), place(15, lower)};
  };
#pragma GCC unroll 16
  for (int64_t row = 0; row < kLanes; ++row)
    if (!(row & kSize)) {
      const Floats above = rows[row], below = rows[row + kSize];
      rows[row] = __builtin_shuffle(above, below, order(false));
      rows[row + kSize] = __builtin_shuffle(above, below, order(true));
    }
}

// Sixteen rows of sixteen numbers become their columns.
inline void transpose(Floats (&rows)[kLanes]) {
  exchange<1>(rows);
  exchange<2>(rows);
  exchange<4>(rows);
  exchange<8>(rows);
}

// Turns the keys of up to sixteen cells: `turned[i]` holds number i of each. `key_of(cell)` says where a key is.
template <typename KeyOf>
void turn_keys(int64_t num_cells, int64_t key_size, const KeyOf& key_of, Floats* turned) {
  using T = std::remove_cvref_t<decltype(*key_of(0))>;
  Floats rows[kLanes] = {};
  int64_t first = 0;
  if constexpr (std::is_same_v<T, c10::BFloat16>)  // two numbers at a time, as long as they fill a vector
    for (; first + 2 * kLanes <= key_size; first += 2 * kLanes) {
#pragma GCC unroll 16
      for (int64_t cell = 0; cell < kLanes; ++cell)
        rows[cell] = cell < num_cells ? loaded(reinterpret_cast<const float*>(key_of(cell) + first)) : Floats{};
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const Ints both = reinterpret_cast<Ints>(rows[i]);
        turned[first + 2 * i] = reinterpret_cast<Floats>(both << 16);
        turned[first + 2 * i + 1] = reinterpret_cast<Floats>(both >> 16 << 16);
      }
    }
  for (; first < key_size; first += kLanes) {
    for (int64_t cell = 0; cell < kLanes; ++cell)
      rows[cell] = cell < num_cells ? loaded(key_of(cell) + first, key_size - first) : Floats{};
    transpose(rows);
    std::memcpy(turned + first, rows, sizeof(rows));
  }
}

// The scores of `kTiles` tiles of turned keys for `kQueries` queries; both are `width` numbers. Those of a query stand in
// a row of `stride` vectors.
template <int64_t kQueries, int64_t kTiles>
void score(const Floats* turned, const float* queries, int64_t width, Floats* scores, int64_t stride) {
  Floats sums[kQueries][kTiles] = {};
  for (int64_t i = 0; i < width; ++i)
    for (int64_t q = 0; q < kQueries; ++q)
      for (int64_t tile = 0; tile < kTiles; ++tile) sums[q][tile] += turned[tile * width + i] * queries[q * width + i];
  for (int64_t q = 0; q < kQueries; ++q) std::memcpy(scores + q * stride, sums[q], sizeof(sums[q]));
}

template <int64_t kTiles>
void score_all(const Floats* turned, const float* queries, int64_t num_queries, int64_t width, Floats* scores,
               int64_t stride) {
  int64_t q = 0;
  for (; q + kQueriesAtOnce <= num_queries; q += kQueriesAtOnce)
    score<kQueriesAtOnce, kTiles>(turned, queries + q * width, width, scores + q * stride, stride);
  for (; q < num_queries; ++q) score<1, kTiles>(turned, queries + q * width, width, scores + q * stride, stride);
}

// Makes weights of the scores in place, and returns what they add up to, in an order that the positions alone decide.
inline float weigh(Floats* scores, int64_t num_tiles, float sink) {
  Floats highest = all(kNothing);
  for (int64_t tile = 0; tile < num_tiles; ++tile)
    highest = chosen(scores[tile] > highest, scores[tile], highest);
  float largest = std::max(sink, std::numeric_limits<float>::lowest());
  for (int64_t lane = 0; lane < kLanes; ++lane) largest = std::max(largest, highest[lane]);
  Floats totals = exponential(all(sink) - largest) * Floats{1.0f};
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    scores[tile] = exponential(scores[tile] - largest);
    totals += scores[tile];
  }
  float total = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += totals[lane];
  return total;
}

}  // namespace outrider
