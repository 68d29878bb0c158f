// Attention in AMX tiles, for bfloat16: sixteen (token, head) pairs against sixteen keys in one product.
//
// Scores are exact products of keys and queries, summed in float32. Weights are rounded to bfloat16 before they meet the
// values, as transformers does it. What is computed of a pair depends on its own line and path alone, as in vectors: a
// tile gives each of its rows and columns the same arithmetic, whatever the others hold, and a zero changes no sum. The
// products of thirty-two positions are summed in one tile: those of even positions, those of odd ones, then both. Where
// a path begins among such positions each pair has values of its own, so vectors do the same in the same order. Tiles
// take numbers below the smallest normal one for zero, so while a group is computed vectors do, too.

#pragma once

#ifdef __AMX_BF16__

#include <vector>

#include "attending.h"
#include "tiles.h"

namespace outrider {

constexpr int64_t kTilePositions = 2 * kLanes;
constexpr int64_t kTileNumbers = kTilePositions;  // bfloat16 numbers of a line of a tile
constexpr int64_t kTileLines = kLanes;
constexpr int64_t kValueTiles = 4;  // of sums, beside which a tile of weights and two of values fit

using Bits = __m512i;

// Numbers below the smallest normal one are zero for vectors, too, until this ends.
class FlushedDenormals {
 public:
  FlushedDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  FlushedDenormals(const FlushedDenormals&) = delete;
  ~FlushedDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

// The groups of one thread, one after another; what it works in grows as needed and is kept.
class TileAttention {
 public:
  using Number = c10::BFloat16;
  static constexpr bool kTakesManyHeads = false;

  // Whether heads are of a size that fills lines of tiles.
  static bool fits(const Layer<Number>& layer) {
    return has_tiles && layer.key_size % kTileNumbers == 0 && layer.value_size % kTileNumbers == 0;
  }

  ~TileAttention() { release(); }

  // Ends the use of tiles, whose shapes are kept from one group to the next.
  void release() {
    if (num_shaped_ > 0) _tile_release();
    num_shaped_ = 0;
  }

  void operator()(const Layer<Number>& layer, const Batch& batch, const Group& group) {
    const FlushedDenormals flushed;
    const Pairs<kTilePositions> pairs(layer, batch, group, group.key_head);
    shape(pairs.num);
    num_tiles_ = pairs.width() / kLanes;
    scores_.resize(kPairsPerGroup * num_tiles_);
    load_queries(layer, pairs);
    score_line(layer, group, pairs);
    score_paths(layer, group, pairs);
    float totals[kPairsPerGroup];
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      Floats* scores = scores_of(index);
      for (int64_t tile = 0; tile < num_tiles_; ++tile) scores[tile] *= layer.scale;
      mask(reinterpret_cast<float*>(scores), pairs.begin, pairs.width(), pair, layer.softcap);
      totals[index] = weigh(scores, num_tiles_, layer.sinks ? layer.sinks[pair.head] : kNothing);
    }
    add_line(layer, group, pairs);
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      if (pair.end > pair.limit) add_path(layer, group, pairs, index);
      Number* output = layer.output + pair.token * layer.output_token_stride + pair.head * layer.output_head_stride;
      const Floats* sums = sums_of(layer, index);
      for (int64_t v = 0; v < layer.value_size / kLanes; ++v)
        store(sums[v] * (1.0f / totals[index]), output + v * kLanes);
    }
  }

 private:
  std::vector<Line> queries_, keys_, weights_, values_;
  std::vector<Floats> scores_, path_scores_, sums_;
  std::vector<int64_t> path_cells_;   // of the group, each once
  std::vector<int32_t> path_places_;  // by cell: its index among them, or -1
  int64_t num_tiles_ = 0, num_shaped_ = 0;

  Floats* scores_of(int64_t index) { return &scores_[index * num_tiles_]; }
  Floats* sums_of(const Layer<Number>& layer, int64_t index) { return &sums_[index * (layer.value_size / kLanes)]; }

  void shape(int64_t num_rows) {
    if (num_rows == num_shaped_) return;
    const TileShapes shapes(num_rows);
    _tile_loadconfig(&shapes);
    num_shaped_ = num_rows;
  }

  // The first position of `pair` that lies among thirty-two with its path; all below are the line's alone.
  static int64_t end_of_shared(const Pair& pair) {
    return pair.end > pair.limit ? pair.limit / kTilePositions * kTilePositions : pair.limit;
  }

  void load_queries(const Layer<Number>& layer, const Pairs<kTilePositions>& pairs) {
    const int64_t num_parts = layer.key_size / kTileNumbers;
    queries_.resize(num_parts * kTileLines);
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      const Number* query = layer.query + pair.head * layer.query_head_stride + pair.token * layer.query_token_stride;
      for (int64_t part = 0; part < num_parts; ++part)
        std::memcpy(&queries_[part * kTileLines + index], query + part * kTileNumbers, sizeof(Line));
    }
  }

  // Turns the keys of up to sixteen cells: a line holds two numbers of each. They follow one another in `keys_` from
  // tile `first` on. `key_of(cell)` says where a key is.
  template <typename KeyOf>
  void turn(int64_t num_cells, int64_t num_parts, const KeyOf& key_of, int64_t first) {
    for (int64_t part = 0; part < num_parts; ++part) {
      auto& words = reinterpret_cast<Floats(&)[kLanes]>(keys_[(first + part) * kTileLines]);
      for (int64_t cell = 0; cell < num_cells; ++cell)
        std::memcpy(&words[cell], key_of(cell) + part * kTileNumbers, sizeof(Floats));
      for (int64_t cell = num_cells; cell < kLanes; ++cell) words[cell] = Floats{};
      transpose(words);
    }
  }

  // Scores of all queries against the thirty-two keys in `keys_`, for rows of `stride` vectors.
  void multiply_keys(int64_t num_parts, Floats* scores, int64_t stride) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t part = 0; part < num_parts; ++part) {
      _tile_loadd(4, &queries_[part * kTileLines], kLineBytes);
      _tile_loadd(6, &keys_[part * kTileLines], kLineBytes);
      _tile_loadd(7, &keys_[(num_parts + part) * kTileLines], kLineBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, scores, stride * kLineBytes);
    _tile_stored(1, scores + 1, stride * kLineBytes);
  }

  void score_line(const Layer<Number>& layer, const Group& group, const Pairs<kTilePositions>& pairs) {
    const Number* keys = layer.keys + group.key_head * layer.key_head_stride;
    const int64_t num_parts = layer.key_size / kTileNumbers;
    keys_.resize(2 * num_parts * kTileLines);
    for (int64_t first = pairs.begin; first < pairs.line_end; first += kTilePositions) {
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t position = first + half * kLanes;
        const int64_t num = std::clamp<int64_t>(pairs.line_end - position, 0, kLanes);
        const Number* some = num > 0 ? keys + group.places[position] * layer.key_cell_stride : keys;
        turn(num, num_parts, [&](int64_t cell) { return some + cell * layer.key_cell_stride; }, half * num_parts);
      }
      multiply_keys(num_parts, &scores_[(first - pairs.begin) / kLanes], num_tiles_);
    }
  }

  // The cells of all paths of a group are few, and many paths share them: all queries meet all of them.
  void score_paths(const Layer<Number>& layer, const Group& group, const Pairs<kTilePositions>& pairs) {
    path_cells_.clear();
    for (int64_t index = 0; index < pairs.num; ++index) {
      if (!pairs.is_first_of_token(index)) continue;
      const Pair& pair = pairs[index];
      for (int64_t step = 0; step < pair.end - pair.limit; ++step) {
        const int64_t cell = pair.path[step];
        if (cell >= static_cast<int64_t>(path_places_.size())) path_places_.resize(cell + 1, -1);
        if (path_places_[cell] >= 0) continue;
        path_places_[cell] = static_cast<int32_t>(path_cells_.size());
        path_cells_.push_back(cell);
      }
    }
    if (path_cells_.empty()) return;
    const Number* keys = layer.keys + group.key_head * layer.key_head_stride;
    const int64_t num_parts = layer.key_size / kTileNumbers, num_cells = static_cast<int64_t>(path_cells_.size());
    const int64_t stride = (num_cells + kTilePositions - 1) / kTilePositions * 2;
    path_scores_.resize(kPairsPerGroup * stride);
    for (int64_t first = 0; first < num_cells; first += kTilePositions) {
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t from = first + half * kLanes;
        turn(std::clamp<int64_t>(num_cells - from, 0, kLanes), num_parts,
             [&](int64_t cell) { return keys + group.places[path_cells_[from + cell]] * layer.key_cell_stride; },
             half * num_parts);
      }
      multiply_keys(num_parts, &path_scores_[first / kLanes], stride);
    }
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Pair& pair = pairs[index];
      const float* found = reinterpret_cast<const float*>(&path_scores_[index * stride]);
      float* scores = reinterpret_cast<float*>(scores_of(index)) + pair.limit - pairs.begin;
      for (int64_t step = 0; step < pair.end - pair.limit; ++step) scores[step] = found[path_places_[pair.path[step]]];
    }
    for (const int64_t cell : path_cells_) path_places_[cell] = -1;
  }

  // Sums over all positions that are the line's for a pair together with the thirty-one around them.
  void add_line(const Layer<Number>& layer, const Group& group, const Pairs<kTilePositions>& pairs) {
    sums_.resize(kPairsPerGroup * (layer.value_size / kLanes));
    int64_t end = pairs.begin;
    for (int64_t index = 0; index < pairs.num; ++index) end = std::max(end, end_of_shared(pairs[index]));
    const int64_t num_blocks = (end - pairs.begin + kTilePositions - 1) / kTilePositions;
    weights_.resize(num_blocks * kTileLines);
    for (int64_t index = 0; index < pairs.num; ++index) {
      const Floats* scores = scores_of(index);
      const int64_t num_own = (end_of_shared(pairs[index]) - pairs.begin + kTilePositions - 1) / kTilePositions;
      for (int64_t block = 0; block < num_blocks; ++block) {
        Bits numbers = _mm512_setzero_si512();
        if (block < num_own)
          numbers = reinterpret_cast<Bits>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(scores[2 * block + 1]),
                                                               reinterpret_cast<__m512>(scores[2 * block])));
        _mm512_store_si512(&weights_[block * kTileLines + index], numbers);
      }
    }
    const Number* values = layer.values + group.key_head * layer.value_head_stride;
    values_.resize(kValueTiles * kTileLines);
    const int64_t stride = layer.value_size / kLanes;
    for (int64_t first = 0; first < stride; first += kValueTiles) {
      const bool is_whole = stride - first >= kValueTiles;  // else half as many, as values fill lines of tiles
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t block = 0; block < num_blocks; ++block) {
        pair_values(values + first * kLanes, layer.value_cell_stride, group.places,
                    pairs.begin + block * kTilePositions, pairs.line_end, is_whole ? 2 : 1);
        _tile_loadd(4, &weights_[block * kTileLines], kLineBytes);
        _tile_loadd(6, &values_[0], kLineBytes);
        _tile_loadd(7, &values_[kTileLines], kLineBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (is_whole) {
          _tile_loadd(6, &values_[2 * kTileLines], kLineBytes);
          _tile_loadd(7, &values_[3 * kTileLines], kLineBytes);
          _tile_dpbf16ps(2, 4, 6);
          _tile_dpbf16ps(3, 4, 7);
        }
      }
      _tile_stored(0, &sums_[first], stride * kLineBytes);
      _tile_stored(1, &sums_[first + 1], stride * kLineBytes);
      if (is_whole) {
        _tile_stored(2, &sums_[first + 2], stride * kLineBytes);
        _tile_stored(3, &sums_[first + 3], stride * kLineBytes);
      }
    }
  }

  // Puts the values of thirty-two positions into `values_`, in a line those of two positions, sixteen of each, number by
  // number; `num_parts` lines' worth of numbers of each position. Nothing is read at or beyond `line_end`.
  void pair_values(const Number* values, int64_t cell_stride, const Places& places, int64_t position, int64_t line_end,
                   int64_t num_parts) {
    const Bits below = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                        5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const Bits above = _mm512_add_epi16(below, _mm512_set1_epi16(kLanes));
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t first = position + half * kLanes;
      const Number* some = first < line_end ? values + places[first] * cell_stride : values;
      for (int64_t cell = 0; cell < kLanes; cell += 2)
        for (int64_t part = 0; part < num_parts; ++part) {
          const auto numbers_at = [&](int64_t at) {
            return first + at < line_end ? _mm512_loadu_si512(some + at * cell_stride + part * kTileNumbers)
                                         : _mm512_setzero_si512();
          };
          const Bits even = numbers_at(cell), odd = numbers_at(cell + 1);
          Line* line = &values_[2 * part * kTileLines + half * (kTileLines / 2) + cell / 2];
          _mm512_store_si512(line, _mm512_permutex2var_epi16(even, below, odd));
          _mm512_store_si512(line + kTileLines, _mm512_permutex2var_epi16(even, above, odd));
        }
    }
  }

  // Adds what the line and the path of one pair hold from where both meet.
  void add_path(const Layer<Number>& layer, const Group& group, const Pairs<kTilePositions>& pairs, int64_t index) {
    const Pair& pair = pairs[index];
    const Number* values = layer.values + group.key_head * layer.value_head_stride;
    const float* scores = reinterpret_cast<const float*>(scores_of(index)) - pairs.begin;
    Floats* sums = sums_of(layer, index);
    for (int64_t first = end_of_shared(pair); first < pair.end; first += kTilePositions) {
      const int64_t last = std::min(first + kTilePositions, pair.end);
      for (int64_t v = 0; v < layer.value_size / kLanes; v += 2) {
        __m512 partial[2][2] = {};
        for (int64_t position = std::max(first, pair.window_start); position < last; ++position) {
          const int64_t cell = position < pair.limit ? position : pair.path[position - pair.limit];
          const Number* value = values + group.places[cell] * layer.value_cell_stride + v * kLanes;
          const __m512 weight = _mm512_set1_ps(static_cast<float>(Number(scores[position])));
          for (int64_t side = 0; side < 2; ++side)
            partial[side][position % 2] = _mm512_fmadd_ps(
                weight, reinterpret_cast<__m512>(loaded(value + side * kLanes)), partial[side][position % 2]);
        }
        for (int64_t side = 0; side < 2; ++side)
          sums[v + side] += reinterpret_cast<Floats>(_mm512_add_ps(partial[side][0], partial[side][1]));
      }
    }
  }
};

}  // namespace outrider

#endif
