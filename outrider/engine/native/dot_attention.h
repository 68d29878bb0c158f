// Attention in vectors of bfloat16 (dot_head.h), for whole groups.
//
// The key heads of a group go through the line together, so that a cell is read as it lies, with all heads' numbers.

#pragma once

#ifdef __AVX512BF16__

#include <span>
#include <vector>

#include "dot_head.h"

namespace outrider {

constexpr int64_t kNumbersFetched = 1 << 17;  // of values: as many stay in a second-level cache beside keys

// The groups of one thread, one after another.
class DotAttention {
 public:
  static constexpr bool kTakesManyHeads = true;

  void operator()(const Layer<DotHead::Number>& layer, const Batch& batch, const Group& group) {
    heads_.resize(std::max<size_t>(heads_.size(), group.num_heads));
    const std::span<DotHead> heads(heads_.data(), group.num_heads);
    for (int64_t head = 0; head < group.num_heads; ++head)
      heads[head].begin(layer, batch, group, group.key_head + head, taken_);
    const int64_t begin = heads[0].line_begin(), end = heads[0].line_end();  // alike for all
    // Positions that are fetched at once, and whose values are added at once: of all heads as much as of one alone.
    const int64_t stretch = std::max(kLanes, kValuesAtOnce / group.num_heads / kLanes * kLanes);
    const bool fit = group.num_heads * (end - begin) * layer.value_size <= kNumbersFetched;
    for (const DotHead& head : heads) head.fetch_keys(begin, begin + stretch);
    for (int64_t position = begin; position < end; position += kLanes)
      for (DotHead& head : heads) {
        head.fetch_keys(position + stretch, position + stretch + kLanes);
        if (fit) head.fetch_values(position, position + kLanes);
        head.score_line(position);
      }
    for (DotHead& head : heads) {
      if (!fit) head.fetch_values(begin, begin + stretch);
      head.weigh_all();
    }
    for (int64_t first = begin; first < end; first += stretch)
      for (DotHead& head : heads) {
        if (!fit) head.fetch_values(first + stretch, first + 2 * stretch);
        head.add_line(first, std::min(first + stretch, end));
      }
    for (DotHead& head : heads) head.finish();
  }

 private:
  std::vector<DotHead> heads_;
  std::vector<Ints> taken_;
};

}  // namespace outrider

#endif
