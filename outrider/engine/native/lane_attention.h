// Attention in float32 vectors, for numbers of any type.
//
// Scores are computed for sixteen positions at a time, one in each lane, from keys turned so that a vector holds one
// number of sixteen keys; values are added up position by position.

#pragma once

#include <vector>

#include "attending.h"

namespace outrider {

constexpr int64_t kVectorsAtOnce = 4;  // of an output that stay in registers while values stream by, if there is room

// Adds the weighted values of the cells from `from` to `to` to `kVectors` vectors of each of `kOutputs` outputs.
// `value_of(cell, vector)` is a part of a value. It is made float32 on its way, since a processor that writes while it
// reads takes many a read for one of what it is writing, and waits.
template <int64_t kOutputs, int64_t kVectors, typename ValueOf>
void add(const ValueOf& value_of, int64_t from, int64_t to, const float* const* weights, Floats* const* outputs,
         int64_t vector) {
  Floats sums[kOutputs][kVectors];
#pragma GCC unroll 4
  for (int64_t o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) sums[o][v] = outputs[o][vector + v];
  for (int64_t cell = from; cell < to; ++cell)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      const Floats value = value_of(cell, vector + v);
#pragma GCC unroll 4
      for (int64_t o = 0; o < kOutputs; ++o) sums[o][v] += value * weights[o][cell];
    }
#pragma GCC unroll 4
  for (int64_t o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) outputs[o][vector + v] = sums[o][v];
}

template <int64_t kOutputs, typename ValueOf>
void add_all(const ValueOf& value_of, int64_t from, int64_t to, const float* const* weights, Floats* const* outputs,
             int64_t num_vectors) {
  constexpr int64_t kVectors = std::clamp<int64_t>(kSumsAtOnce / kOutputs, 1, kVectorsAtOnce);
  int64_t vector = 0;
  for (; vector + kVectors <= num_vectors; vector += kVectors)
    add<kOutputs, kVectors>(value_of, from, to, weights, outputs, vector);
  for (; vector < num_vectors; ++vector) add<kOutputs, 1>(value_of, from, to, weights, outputs, vector);
}

// The groups of one thread, one after another; what it works in grows as needed and is kept.
template <typename T>
class LaneAttention {
 public:
  static constexpr bool kTakesManyHeads = false;

  void operator()(const Layer<T>& layer, const Batch& batch, const Group& group) {
    const Pairs<kLanes> pairs(layer, batch, group, group.key_head);
    const Places& places = group.places;
    const int64_t key_width = padded(layer.key_size), num_vectors = padded(layer.value_size) / kLanes;
    const int64_t begin = pairs.begin, num_tiles = pairs.width() / kLanes;
    const T* keys = layer.keys + group.key_head * layer.key_head_stride;
    const T* values = layer.values + group.key_head * layer.value_head_stride;
    queries_.resize(kPairsPerGroup * key_width);
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      float* numbers = &queries_[index * key_width];
      widen(layer.query + pair.head * layer.query_head_stride + pair.token * layer.query_token_stride, numbers,
            layer.key_size, key_width);
      for (int64_t i = 0; i < layer.key_size; ++i) numbers[i] *= layer.scale;
    }
    const auto scores_of = [&](int64_t index) { return &scores_[index * num_tiles]; };
    const auto score_at = [&](int64_t index, int64_t position) {
      return reinterpret_cast<float*>(scores_of(index)) + position - begin;
    };

    // Scores of the line's positions, then of the paths', and nothing for what is not seen.
    keys_.resize(kTilesAtOnce * key_width);
    scores_.resize(kPairsPerGroup * num_tiles);
    const int64_t num_line_tiles = padded(std::max<int64_t>(pairs.line_end - begin, 0)) / kLanes;
    for (int64_t tile = 0; tile < num_line_tiles;) {
      const int64_t num = num_line_tiles - tile < kTilesAtOnce ? 1 : kTilesAtOnce;
      for (int64_t t = 0; t < num; ++t) {
        const int64_t position = begin + (tile + t) * kLanes;
        const T* some = keys + places[position] * layer.key_cell_stride;
        turn_keys(std::min(kLanes, pairs.line_end - position), layer.key_size,
                  [&](int64_t cell) { return some + cell * layer.key_cell_stride; }, &keys_[t * key_width]);
      }
      (num == 1 ? score_all<1> : score_all<kTilesAtOnce>)(keys_.data(), queries_.data(), pairs.num, key_width,
                                                         &scores_[tile], num_tiles);
      tile += num;
    }
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      for (int64_t position = pair.limit; position < pair.end; position += kLanes) {
        const int64_t num = std::min(kLanes, pair.end - position);
        if (pairs.is_first_of_token(index) || pair.end - pair.limit > kLanes)
          turn_keys(num, layer.key_size,
                    [&](int64_t cell) {
                      return keys + places[pair.path[position - pair.limit + cell]] * layer.key_cell_stride;
                    },
                    keys_.data());
        Floats sums;
        score<1, 1>(keys_.data(), &queries_[index * key_width], key_width, &sums, 1);
        std::memcpy(score_at(index, position), &sums, num * sizeof(float));
      }
      mask(score_at(index, begin), begin, num_tiles * kLanes, pair, layer.softcap);
    }

    float totals[kPairsPerGroup];
    for (int64_t index = 0; index < pairs.num; ++index)
      totals[index] = weigh(scores_of(index), num_tiles, layer.sinks ? layer.sinks[pairs[index].head] : kNothing);

    // Values, in the order of the positions.
    outputs_.assign(pairs.num * num_vectors, Floats{});
    const auto value_of = [&](int64_t position, int64_t vector) {
      return loaded(values + places[position] * layer.value_cell_stride + vector * kLanes,
                    layer.value_size - vector * kLanes);
    };
    for (int64_t first = begin; first < pairs.line_end; first += kValuesAtOnce) {
      const int64_t last = std::min(first + kValuesAtOnce, pairs.line_end);
      for (int64_t index = 0; index < pairs.num;) {
        const int64_t num = pairs.num - index < kOutputsAtOnce ? 1 : kOutputsAtOnce;
        const float* weights[kOutputsAtOnce];
        Floats* outputs[kOutputsAtOnce];
        int64_t from = first, to = last;  // of what all of them see
        for (int64_t o = 0; o < num; ++o) {
          weights[o] = score_at(index + o, 0);
          outputs[o] = &outputs_[(index + o) * num_vectors];
          from = std::max(from, pairs[index + o].start);
          to = std::min(to, pairs[index + o].limit);
        }
        to = std::max(from, to);
        for (int64_t o = 0; o < num; ++o)
          add_all<1>(value_of, std::max(first, pairs[index + o].start), std::min({from, last, pairs[index + o].limit}),
                     &weights[o], &outputs[o], num_vectors);
        (num == 1 ? add_all<1, decltype(value_of)> : add_all<kOutputsAtOnce, decltype(value_of)>)(
            value_of, from, to, weights, outputs, num_vectors);
        for (int64_t o = 0; o < num; ++o)
          add_all<1>(value_of, std::max({to, first, pairs[index + o].start}), std::min(last, pairs[index + o].limit),
                     &weights[o], &outputs[o], num_vectors);
        index += num;
      }
    }
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      Floats* outputs = &outputs_[index * num_vectors];
      for (int64_t position = std::max(pair.limit, pair.window_start); position < pair.end; ++position) {
        const T* value = values + places[pair.path[position - pair.limit]] * layer.value_cell_stride;
        const float weight = *score_at(index, position);
        for (int64_t v = 0; v < num_vectors; ++v)
          outputs[v] += loaded(value + v * kLanes, layer.value_size - v * kLanes) * weight;
      }
      const float* sums = reinterpret_cast<const float*>(outputs);
      T* output = layer.output + pair.token * layer.output_token_stride + pair.head * layer.output_head_stride;
      const float share = 1.0f / totals[index];
      for (int64_t i = 0; i < layer.value_size; ++i) output[i] = static_cast<T>(sums[i] * share);
    }
  }

 private:
  std::vector<Floats> keys_, scores_, outputs_;
  std::vector<float> queries_;
};

}  // namespace outrider
