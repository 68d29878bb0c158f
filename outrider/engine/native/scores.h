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
template <int32_t kSize, typename V, int32_t... kLane>
inline void exchange(V (&rows)[sizeof...(kLane)], std::integer_sequence<int32_t, kLane...>) {
  constexpr int32_t kNum = sizeof...(kLane);
  constexpr auto place = [](int32_t lane, bool lower) -> int32_t {
    const bool is_right = lane & kSize;
    return lower == is_right ? lane + (lower ? kNum : 0) : lower ? lane + kSize : lane + kNum - kSize;
  };
  using Order = Lanes<int32_t, kNum>;
#pragma GCC unroll 16
  for (int32_t row = 0; row < kNum; ++row)
    if (!(row & kSize)) {
      const V above = rows[row], below = rows[row + kSize];
      rows[row] = __builtin_shuffle(above, below, Order{place(kLane, false)...});
      rows[row + kSize] = __builtin_shuffle(above, below, Order{place(kLane, true)...});
    }
}

// Rows of as many numbers as there are rows become their columns.
template <typename V, size_t kNum>
inline void transpose(V (&rows)[kNum]) {
  if constexpr (InHalves<V>) {
    constexpr size_t kHalf = kNum / 2;
    decltype(V::low) blocks[2][2][kHalf];
    for (size_t side = 0; side < 2; ++side)
      for (size_t row = 0; row < kHalf; ++row) {
        blocks[side][0][row] = rows[side * kHalf + row].low;
        blocks[side][1][row] = rows[side * kHalf + row].high;
      }
    for (auto& side : blocks)
      for (auto& block : side) transpose(block);
    for (size_t side = 0; side < 2; ++side)
      for (size_t row = 0; row < kHalf; ++row) rows[side * kHalf + row] = {blocks[0][side][row], blocks[1][side][row]};
  } else {
    constexpr auto lanes = std::make_integer_sequence<int32_t, kNum>();
    exchange<1>(rows, lanes);
    exchange<2>(rows, lanes);
    if constexpr (kNum > 4) exchange<4>(rows, lanes);
    if constexpr (kNum > 8) exchange<8>(rows, lanes);
  }
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
        const Ints both = as<Ints>(rows[i]);
        turned[first + 2 * i] = as<Floats>(both << 16);
        turned[first + 2 * i + 1] = as<Floats>(both >> 16 << 16);
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
#pragma GCC unroll 4
    for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 4
      for (int64_t tile = 0; tile < kTiles; ++tile) sums[q][tile] += turned[tile * width + i] * queries[q * width + i];
#pragma GCC unroll 4
  for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 4
    for (int64_t tile = 0; tile < kTiles; ++tile) scores[q * stride + tile] = sums[q][tile];
}

template <int64_t kTiles>
void score_all(const Floats* turned, const float* queries, int64_t num_queries, int64_t width, Floats* scores,
               int64_t stride) {
  constexpr int64_t kTogether = std::clamp<int64_t>(kSumsAtOnce / kQueriesAtOnce, 1, kTiles);
  int64_t q = 0;
  for (; q + kQueriesAtOnce <= num_queries; q += kQueriesAtOnce)
    for (int64_t tile = 0; tile < kTiles; tile += kTogether)
      score<kQueriesAtOnce, kTogether>(turned + tile * width, queries + q * width, width, scores + q * stride + tile,
                                       stride);
  for (; q < num_queries; ++q) score<1, kTiles>(turned, queries + q * width, width, scores + q * stride, stride);
}

// Makes weights of the scores in place, and returns what they add up to, in an order that the positions alone decide.
inline float weigh(Floats* scores, int64_t num_tiles, float sink) {
  Floats highest = all(kNothing);
  for (int64_t tile = 0; tile < num_tiles; ++tile)
    highest = chosen(scores[tile] > highest, scores[tile], highest);
  float largest = std::max(sink, std::numeric_limits<float>::lowest());
  for (const float score : each(highest)) largest = std::max(largest, score);
  constexpr std::array<float, kLanes> kFirst = {1.0f};
  Floats totals = exponential(all(sink) - largest) * loaded(kFirst.data());
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    scores[tile] = exponential(scores[tile] - largest);
    totals += scores[tile];
  }
  return summed(totals);
}

}  // namespace outrider
