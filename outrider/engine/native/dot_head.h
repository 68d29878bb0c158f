// Attention of one key head in vectors of bfloat16, where an instruction adds two products of such numbers to each of
// sixteen sums.
//
// A score is sixteen sums, each over two of every thirty-two numbers of query and key; they are added up in a tree,
// those of sixteen keys together, so that keys are read as they lie. Weights are rounded to bfloat16 before they meet
// the values, as transformers does it. Of every four positions the first two meet their values in one instruction and
// one sum, the last two in another, and both sums are added up at the end. Where a pair sees not all four, what it does
// not see are zeros. So what is computed of a pair depends on its own line and path alone, wherever the path begins.

#pragma once

#ifdef __AVX512BF16__

#include <array>
#include <optional>
#include <vector>

#include "attending.h"

namespace outrider {

constexpr int64_t kNumbersAtOnce = 2 * kLanes;  // bfloat16 numbers of a vector
constexpr int64_t kPositionsAtOnce = 4;
constexpr int64_t kSumsPerPart = 4;  // of a vector's lower and upper numbers, for two positions each

// The sums, and to each added the two products of the numbers in its lanes.
inline Floats with_products(Floats sums, Ints left, Ints right) {
  return as<Floats>(_mm512_dpbf16_ps(as<__m512>(sums), as<__m512bh>(left), as<__m512bh>(right)));
}

// Of sixteen rows: in lane i what the lanes of row i add up to. Of fewer rows as much of that as they allow.
template <int64_t kNum>
[[gnu::always_inline]] inline Floats sum_of_each(const Floats* rows) {
  if constexpr (kNum == 1) {
    return rows[0];
  } else {
    const Floats above = sum_of_each<kNum / 2>(rows), below = sum_of_each<kNum / 2>(rows + kNum / 2);
    if constexpr (kNum == 2) {
      const auto a = as<__m512>(above), b = as<__m512>(below);
      return as<Floats>(_mm512_unpacklo_ps(a, b)) + as<Floats>(_mm512_unpackhi_ps(a, b));
    } else if constexpr (kNum == 4) {
      const auto a = as<__m512d>(above), b = as<__m512d>(below);
      return as<Floats>(_mm512_unpacklo_pd(a, b)) + as<Floats>(_mm512_unpackhi_pd(a, b));
    } else {
      const auto a = as<__m512>(above), b = as<__m512>(below);
      return as<Floats>(_mm512_shuffle_f32x4(a, b, 0b10001000)) + as<Floats>(_mm512_shuffle_f32x4(a, b, 0b11011101));
    }
  }
}

// What is computed for one key head of a group; what it works in grows as needed and is kept. `taken` is room for keys
// that all heads share, and each in turn fills.
class DotHead {
 public:
  using Number = c10::BFloat16;

  void begin(const Layer<Number>& layer, const Batch& batch, const Group& group, int64_t key_head,
             std::vector<Ints>& taken) {
    layer_ = &layer;
    places_ = group.places;
    pairs_.emplace(layer, batch, group, key_head);
    keys_ = layer.keys + key_head * layer.key_head_stride;
    values_ = layer.values + key_head * layer.value_head_stride;
    num_tiles_ = pairs_->width() / kLanes;
    num_query_parts_ = num_parts(layer.key_size);
    num_sums_ = num_parts(layer.value_size) * kSumsPerPart;
    queries_.resize(kPairsPerGroup * num_query_parts_);
    taken.resize(kLanes * num_query_parts_);
    taken_ = taken.data();
    scores_.resize(kPairsPerGroup * num_tiles_);
    weights_.resize(kPairsPerGroup * num_tiles_ / 2);
    sums_.assign(pairs_->num * num_sums_, Floats{});
    zeros_.resize(num_parts(layer.value_size) * kNumbersAtOnce);
    for (int64_t index = 0; index < pairs_->num; ++index) {
      const Pair& pair = (*pairs_)[index];
      const Number* query = layer.query + pair.head * layer.query_head_stride + pair.token * layer.query_token_stride;
      copy(query, layer.key_size, &queries_[index * num_query_parts_], 1);
    }
  }

  int64_t line_begin() const { return pairs_->begin; }
  int64_t line_end() const { return pairs_->line_end; }

  // Ask for what the line's positions from `first` to `last` hold, so that it is in a second-level cache when it is
  // wanted. To a compiler they do nothing: it leaves out what it does not inline.
  [[gnu::always_inline]] void fetch_keys(int64_t first, int64_t last) const {
    for (; first < std::min(last, pairs_->line_end); first += kLanes)
      fetch(key_at(first), layer_->key_cell_stride, layer_->key_size);
  }
  [[gnu::always_inline]] void fetch_values(int64_t first, int64_t last) const {
    for (; first < std::min(last, pairs_->line_end); first += kLanes)
      fetch(value_at(first), layer_->value_cell_stride, layer_->value_size);
  }

  // Scores of all queries against the keys of sixteen positions of the line.
  void score_line(int64_t position) {
    const Number* key = key_at(position);  // of sixteen cells of one block
    take([&](int64_t cell) { return key + cell * layer_->key_cell_stride; });
    const int64_t tile = (position - pairs_->begin) / kLanes;
    for (int64_t index = 0; index < pairs_->num; ++index) scores_[index * num_tiles_ + tile] = score(index);
  }

  // Scores of each query against the keys of its path; and of all scores the weights.
  void weigh_all() {
    for (int64_t index = 0; index < pairs_->num; ++index) {
      const Pair& pair = (*pairs_)[index];
      Floats* scores = &scores_[index * num_tiles_];
      auto* each = reinterpret_cast<float*>(scores);
      for (int64_t position = pair.limit; position < pair.end; position += kLanes) {
        const int64_t num = std::min(kLanes, pair.end - position);
        const int64_t* cells = pair.path + position - pair.limit;
        take([&](int64_t cell) { return key_at(cells[std::min(cell, num - 1)]); });
        const Floats found = score(index);
        std::memcpy(each + position - pairs_->begin, &found, num * sizeof(float));
      }
      mask(each, pairs_->begin, pairs_->width(), pair, layer_->softcap);
      totals_[index] = weigh(scores, num_tiles_, layer_->sinks ? layer_->sinks[pair.head] : kNothing);
      for (int64_t tile = 0; tile < num_tiles_; tile += 2)
        weights_[(index * num_tiles_ + tile) / 2] = rounded(scores[tile], scores[tile + 1]);
    }
  }

  // Adds the weighted values of the line's positions from `first` to `last`, which is a multiple of kPositionsAtOnce or
  // the line's end. Positions come in their order.
  void add_line(int64_t first, int64_t last) {
    const Pairs<kNumbersAtOnce>& pairs = *pairs_;
    const auto of_line = [values = values_, places = places_, stride = layer_->value_cell_stride](
                             int64_t position) __attribute__((always_inline)) {
      const Number* row = values + places[position] * stride;
      return Rows{row, row + stride, row + 2 * stride, row + 3 * stride};
    };
    for (int64_t index = 0; index < pairs.num; index += kOutputsAtOnce) {
      const int64_t num = std::min(kOutputsAtOnce, pairs.num - index);
      const int32_t* weights[kOutputsAtOnce];
      Floats* sums[kOutputsAtOnce];
      int64_t from = first, to = last;  // of what all of them see of the line
      for (int64_t o = 0; o < num; ++o) {
        weights[o] = weights_of(index + o);
        sums[o] = &sums_[(index + o) * num_sums_];
        from = std::max(from, above(pairs[index + o].window_start));
        to = std::min(to, below(pairs[index + o].limit));
      }
      to = std::max(from, to);
      const auto end_of_line = [&](int64_t o) { return std::min(last, below(pairs[index + o].limit)); };
      for (int64_t o = 0; o < num; ++o) add_own(index + o, first, std::min(from, end_of_line(o)));
      add_together(num, *layer_, of_line, from, to, weights, sums);
      for (int64_t o = 0; o < num; ++o) add_own(index + o, to, end_of_line(o));
    }
  }

  // Adds those of the paths, behind all of the line's, and writes the outputs.
  void finish() {
    for (int64_t index = 0; index < pairs_->num; ++index) {
      const Pair& pair = (*pairs_)[index];
      add_own(index, below(pair.limit), pair.end);
      write(*layer_, pair, &sums_[index * num_sums_], totals_[index]);
    }
  }

 private:
  // Where the values of some positions lie.
  using Rows = std::array<const Number*, kPositionsAtOnce>;

  const Layer<Number>* layer_ = nullptr;
  Places places_{};
  std::optional<Pairs<kNumbersAtOnce>> pairs_;
  const Number *keys_ = nullptr, *values_ = nullptr;
  Ints* taken_ = nullptr;
  std::vector<Ints> queries_, weights_;
  std::vector<Floats> scores_, sums_;
  std::vector<Number> zeros_;
  float totals_[kPairsPerGroup];
  int64_t num_tiles_ = 0, num_query_parts_ = 0, num_sums_ = 0;

  static int64_t num_parts(int64_t size) { return (size + kNumbersAtOnce - 1) / kNumbersAtOnce; }
  static int64_t below(int64_t position) { return position & -kPositionsAtOnce; }
  static int64_t above(int64_t position) { return below(position + kPositionsAtOnce - 1); }
  static __mmask32 lowest(int64_t num) { return num < kNumbersAtOnce ? (__mmask32{1} << num) - 1 : ~__mmask32{}; }

  static Ints numbers(const Number* from) { return as<Ints>(_mm512_loadu_si512(from)); }
  static Ints numbers(const Number* from, int64_t num) { return as<Ints>(_mm512_maskz_loadu_epi16(lowest(num), from)); }

  const Number* key_at(int64_t cell) const { return keys_ + places_[cell] * layer_->key_cell_stride; }
  const Number* value_at(int64_t cell) const { return values_ + places_[cell] * layer_->value_cell_stride; }
  const int32_t* weights_of(int64_t index) const {  // of two positions each, by half of the first one
    return reinterpret_cast<const int32_t*>(&weights_[index * num_tiles_ / 2]) - pairs_->begin / 2;
  }

  [[gnu::always_inline]] static void fetch(const Number* row, int64_t stride, int64_t size) {
    for (int64_t cell = 0; cell < kLanes; ++cell, row += stride)
      for (int64_t at = 0; at < size; at += kNumbersAtOnce) __builtin_prefetch(row + at, 0, 2);
  }

  // A row becomes vectors, `stride` apart, the last one filled up with zeros.
  static void copy(const Number* row, int64_t size, Ints* vectors, int64_t stride) {
    for (; size >= kNumbersAtOnce; size -= kNumbersAtOnce, row += kNumbersAtOnce, vectors += stride) *vectors = numbers(row);
    if (size > 0) *vectors = numbers(row, size);
  }

  // Thirty-two numbers, in two vectors, as bfloat16.
  static Ints rounded(Floats some, Floats others) {
    return as<Ints>(_mm512_cvtne2ps_pbh(as<__m512>(others), as<__m512>(some)));
  }

  // Takes sixteen keys. Those of their numbers that share a vector lie one after another.
  template <typename KeyOf>
  void take(const KeyOf& key_of) {
    for (int64_t cell = 0; cell < kLanes; ++cell) copy(key_of(cell), layer_->key_size, &taken_[cell], kLanes);
  }

  // The scores of a query against the keys that were taken.
  [[gnu::always_inline]] Floats score(int64_t index) const {
    const Ints *keys = taken_, *query = &queries_[index * num_query_parts_];
    Floats sums[kLanes] = {};
    for (int64_t part = 0; part < num_query_parts_; ++part, keys += kLanes)
#pragma GCC unroll 16
      for (int64_t cell = 0; cell < kLanes; ++cell) sums[cell] = with_products(sums[cell], query[part], keys[cell]);
    return sum_of_each<kLanes>(sums) * layer_->scale;
  }

  // Adds the weighted values from `from` to `to`, as far as the pair sees any of four positions.
  void add_own(int64_t index, int64_t from, int64_t to) {
    const Pair& pair = (*pairs_)[index];
    from = std::max(from, below(pair.window_start));
    if (from >= to) return;
    const auto of_pair = [&](int64_t position) {
      const auto row = [&](int64_t at) -> const Number* {
        if (at < pair.window_start || at >= pair.end) return zeros_.data();
        return value_at(at < pair.limit ? at : pair.path[at - pair.limit]);
      };
      return Rows{row(position), row(position + 1), row(position + 2), row(position + 3)};
    };
    const int32_t* weights = weights_of(index);
    Floats* sums = &sums_[index * num_sums_];
    add_to<1>(*layer_, of_pair, from, to, &weights, &sums);
  }

  template <typename RowsOf>
  static void add_together(int64_t num, const Layer<Number>& layer, const RowsOf& rows_of, int64_t from, int64_t to,
                           const int32_t* const* weights, Floats* const* sums) {
    static constexpr std::array kernels{&add_to<1, RowsOf>, &add_to<2, RowsOf>, &add_to<3, RowsOf>,
                                        &add_to<4, RowsOf>};
    static_assert(kernels.size() == kOutputsAtOnce);
    kernels[num - 1](layer, rows_of, from, to, weights, sums);
  }

  // Adds the weighted values of the positions from `from`, a multiple of kPositionsAtOnce, to `to` to each output.
  template <int64_t kOutputs, typename RowsOf>
  static void add_to(const Layer<Number>& layer, const RowsOf& rows_of, int64_t from, int64_t to,
                     const int32_t* const* weights, Floats* const* sums) {
    constexpr int64_t kParts = std::clamp<int64_t>(kSumsAtOnce / (kOutputs * kSumsPerPart), 1, 2);
    const auto load = [](const Number* row) { return numbers(row); };
    int64_t part = 0;
    const int64_t num_whole = layer.value_size / kNumbersAtOnce, rest = layer.value_size % kNumbersAtOnce;
    for (; part + kParts <= num_whole; part += kParts)
      add<kOutputs, kParts>(rows_of, load, from, to, weights, sums, part);
    for (; part < num_whole; ++part) add<kOutputs, 1>(rows_of, load, from, to, weights, sums, part);
    if (rest > 0)
      add<kOutputs, 1>(rows_of, [&](const Number* row) { return numbers(row, rest); }, from, to, weights, sums, part);
  }

  template <int64_t kOutputs, int64_t kParts, typename RowsOf, typename Load>
  static void add(const RowsOf& rows_of, const Load& load, int64_t from, int64_t to, const int32_t* const* weights,
                  Floats* const* sums, int64_t first_part) {
    constexpr int64_t kSums = kParts * kSumsPerPart;
    Floats kept[kOutputs][kSums];
#pragma GCC unroll 4
    for (int64_t o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
      for (int64_t sum = 0; sum < kSums; ++sum) kept[o][sum] = sums[o][first_part * kSumsPerPart + sum];
    for (int64_t position = from; position < to; position += kPositionsAtOnce) {
      const Rows rows = rows_of(position);
#pragma GCC unroll 2
      for (int64_t side = 0; side < 2; ++side)
#pragma GCC unroll 2
        for (int64_t part = 0; part < kParts; ++part) {
          const int64_t at = (first_part + part) * kNumbersAtOnce;
          const auto even = as<__m512i>(load(rows[2 * side] + at)), odd = as<__m512i>(load(rows[2 * side + 1] + at));
          const Ints low = as<Ints>(_mm512_unpacklo_epi16(even, odd));
          const Ints high = as<Ints>(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 4
          for (int64_t o = 0; o < kOutputs; ++o) {
            const Ints weight = Ints{} + weights[o][position / 2 + side];
            Floats* own = &kept[o][part * kSumsPerPart + 2 * side];
            own[0] = with_products(own[0], weight, low);
            own[1] = with_products(own[1], weight, high);
          }
        }
    }
#pragma GCC unroll 4
    for (int64_t o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
      for (int64_t sum = 0; sum < kSums; ++sum) sums[o][first_part * kSumsPerPart + sum] = kept[o][sum];
  }

  // Writes one pair's output. Its sums lie in the order in which two vectors' numbers alternate, four from each eight.
  void write(const Layer<Number>& layer, const Pair& pair, const Floats* sums, float total) const {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const float share = 1.0f / total;
    Number* output = layer.output + pair.token * layer.output_token_stride + pair.head * layer.output_head_stride;
    for (int64_t from = 0; from < layer.value_size; from += kNumbersAtOnce, sums += kSumsPerPart) {
      const Ints mixed = rounded((sums[0] + sums[2]) * share, (sums[1] + sums[3]) * share);
      _mm512_mask_storeu_epi16(output + from, lowest(layer.value_size - from),
                               _mm512_permutexvar_epi64(order, as<__m512i>(mixed)));
    }
  }
};

}  // namespace outrider

#endif
