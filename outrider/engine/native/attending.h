// What attention is asked: which tokens look where, and where queries, keys and values lie.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "scores.h"

namespace outrider {

constexpr int64_t kPairsPerGroup = 16;  // that share one reading of keys and values
constexpr int64_t kOutputsAtOnce = 4;   // in vectors: that share one reading of the values
constexpr int64_t kValuesAtOnce = 128;  // cells whose values stay in a first-level cache

// A view of the flat list of integers that describes one batch; `described` in native.py writes it.
struct Batch {
  int64_t engine, num_sessions;
  const int64_t* write_cells;   // [N] into the caches
  const int64_t* limits;        // [N]
  const int64_t* path_offsets;  // [N + 1] into path_cells
  const int64_t* sessions;      // [num_sessions, 3]: first token, one past the last, index of the first block
  const int64_t* path_cells;    // within the slot, from the one below the line to the token's own
  const int64_t* blocks;        // of all sessions

  Batch(const at::Tensor& description, int64_t num_tokens) {
    const int64_t* numbers = description.const_data_ptr<int64_t>();
    engine = numbers[0];
    num_sessions = numbers[1];
    write_cells = numbers + 2;
    limits = write_cells + num_tokens;
    path_offsets = limits + num_tokens;
    sessions = path_offsets + num_tokens + 1;
    path_cells = sessions + 3 * num_sessions;
    blocks = path_cells + path_offsets[num_tokens];
  }
};

// Where a slot's cells lie in the caches.
struct Places {
  const int64_t* blocks;
  int64_t shift;

  int64_t operator[](int64_t cell) const { return (blocks[cell >> shift] << shift) + (cell & ((1 << shift) - 1)); }
};

template <typename T>
struct Layer {
  const T* query;
  int64_t query_head_stride, query_token_stride;
  T* output;
  int64_t output_token_stride, output_head_stride;
  const T* keys;
  const T* values;
  int64_t key_cell_stride, key_head_stride, value_cell_stride, value_head_stride;
  int64_t key_size, value_size, heads_per_key, window;
  float scale, softcap;
  const float* sinks;  // [H], or null
};

// One (token, head) pair, and where it looks: at the positions from `start` to `limit` of the line, and from there to
// `end`, which are those of its path; of them only what is at `window_start` or after it.
struct Pair {
  int64_t token, head, start, limit, end, window_start;
  const int64_t* path;
};

// Up to kPairsPerGroup pairs of one session: `num_pairs` of each of `num_heads` key heads, from `key_head` on.
struct Group {
  Places places;
  int64_t key_head, num_heads, first_token, first_pair, num_pairs;
};

// The pairs of one key head of a group, and the positions from `begin`, a multiple of `kAlignment`, to `end` that any of
// them sees. The line ends at `line_end` for the one that sees most of it.
template <int64_t kAlignment>
struct Pairs {
  Pair pairs[kPairsPerGroup];
  int64_t num, begin = std::numeric_limits<int64_t>::max(), line_end = 0, end = 0;

  template <typename T>
  Pairs(const Layer<T>& layer, const Batch& batch, const Group& group, int64_t key_head) : num(group.num_pairs) {
    for (int64_t index = 0; index < num; ++index) {
      const int64_t number = group.first_pair + index;
      const int64_t token = group.first_token + number / layer.heads_per_key;
      const int64_t head = key_head * layer.heads_per_key + number % layer.heads_per_key;
      const int64_t limit = batch.limits[token];
      const int64_t seen = limit + batch.path_offsets[token + 1] - batch.path_offsets[token];
      const int64_t window_start = layer.window > 0 ? std::max<int64_t>(seen - layer.window, 0) : 0;
      pairs[index] = {token,        head, std::min(window_start, limit), limit, seen,
                      window_start, batch.path_cells + batch.path_offsets[token]};
      begin = std::min(begin, pairs[index].start);
      line_end = std::max(line_end, limit);
      end = std::max(end, seen);
    }
    begin -= begin % kAlignment;
  }

  const Pair& operator[](int64_t index) const { return pairs[index]; }
  int64_t width() const { return (end - begin + kAlignment - 1) / kAlignment * kAlignment; }  // in positions
  bool is_first_of_token(int64_t index) const { return index == 0 || pairs[index].token != pairs[index - 1].token; }
};

// Leaves nothing of the scores of what `pair` does not see, and caps the others; `scores` are of `width` positions.
inline void mask(float* scores, int64_t begin, int64_t width, const Pair& pair, float softcap) {
  std::fill(scores, scores + std::max<int64_t>(pair.window_start - begin, 0), kNothing);
  std::fill(scores + (pair.end - begin), scores + width, kNothing);
  if (softcap > 0.0f)
    for (float* at = scores + std::max<int64_t>(pair.window_start - begin, 0); at < scores + (pair.end - begin); ++at)
      *at = std::tanh(*at / softcap) * softcap;
}

}  // namespace outrider
