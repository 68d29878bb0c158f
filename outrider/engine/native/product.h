// Products of a few rows with matrices of weights: what decoding is made of, and what libraries for large matrices are
// slow at. Weights are streamed once for up to kRowsAtOnce rows, from the order in which the kernels read them.
//
// A weight [N, K] is cut into panels of sixteen outputs. A panel is a list of lines of 64 bytes, and a line has a word of
// four bytes for each output: one float32 of the next k, two bfloat16 of the next two, or four bytes of the next four, and
// then the panel's last line is the scales of its outputs. Each output sums over k in that order, in a lane of its own,
// whoever is computed beside it: so a row's results do not depend on how many rows there are, or on the number of threads.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>
#include <vector>

#include "digits.h"
#include "team.h"

namespace outrider {

constexpr int64_t kRowsAtOnce = 256;          // that share one reading of the weights and one copy for the kernels
constexpr int64_t kRowBytesAtOnce = 1 << 19;  // of those rows: beside two panels they stay in a second-level cache
constexpr int64_t kPairsAtOnce = 64;          // of panels, whose sums are kept from one part of K to the next
constexpr int64_t kBytesPerTask = 1 << 17;    // of weights: four microseconds of reading, far above what a task costs

// One matrix of weights, [num_panels, panel_bytes].
template <typename T>
struct Weight {
  const uint8_t* panels;
  int64_t panel_bytes, num_outputs;
  const T* bias;  // or null
  bool has_scales;

  int64_t num_panels() const { return (num_outputs + kLanes - 1) / kLanes; }
  int64_t size_of(int64_t panel) const { return std::min(kLanes, num_outputs - panel * kLanes); }
  const uint8_t* panel(int64_t number) const { return panels + number * panel_bytes; }

  // The outputs whose sums these are.
  Floats outputs(Floats sums, int64_t number) const {
    if (has_scales) sums *= loaded(reinterpret_cast<const float*>(panel(number + 1) - kLineBytes));
    return bias == nullptr ? sums : sums + loaded(bias + number * kLanes, size_of(number));
  }
};

// Two panels, the left one and the right one, that are read side by side: two loads of weights for each row's word.
using Panels = std::array<const uint8_t*, 2>;

// The words from `begin` to `end` of a sum over K. Between two parts of the same rows and panels, sums are in `sums`. The
// first line of the panels is that of word `panel_begin`.
struct Part {
  int64_t begin, end;
  bool is_last;
  float* sums;
  int64_t panel_begin = 0;
};

// Some rows with a pair of panels.
struct Step {
  int64_t pair, row, num_rows;
};

// A vector for each sum; rows lie one after another. Who has just written the panels need not fetch them.
template <typename Word, bool kIsFetching = true>
class OnLanes {
  using Sum = typename Word::Sum;

 public:
  static constexpr bool kWantsTiles = false;
  static constexpr int64_t kSumsPerRow = sizeof(Sum) / sizeof(Floats);
  static constexpr int64_t kRowsPerStep = std::min<int64_t>(kSumsAtOnce, 12) / kSumsPerRow;  // more would save little
  static constexpr int64_t kSumsPerStep = kRowsPerStep * 2 * sizeof(Sum) / sizeof(float);
  static constexpr int64_t kWordsAtOnce = std::numeric_limits<int64_t>::max();
  static constexpr int64_t kLinesAhead = 256;  // that are fetched before they are wanted, of each of two panels

  static uint8_t* place(const Rows& rows, int64_t row, int64_t word) {
    return rows.data + row * rows.row_bytes + word * kWordBytes;
  }

  template <typename T>
  static Rows ready(const Rows& rows, std::vector<Line>& space) {
    return Word::template ready<T>(rows, space);
  }

  explicit OnLanes(int64_t) {}

  // `next` are the panels after these, or these again at the end.
  template <typename Put>
  void operator()(const Rows& rows, const Step& step, const Panels& panels, const Panels& next, const Part& part,
                  const Put& put) const {
    dispatch(rows, step, panels, next, part, put, std::make_integer_sequence<int64_t, kRowsPerStep>());
  }

  template <typename Put>
  void finish(const Put&) const {}

 private:
  template <typename Put, int64_t... kRows>
  static void dispatch(const Rows& rows, const Step& step, const Panels& panels, const Panels& next, const Part& part,
                       const Put& put, std::integer_sequence<int64_t, kRows...>) {
    using Kernel = void (*)(const Rows&, const Step&, const Panels&, const Panels&, const Part&, const Put&);
    static constexpr std::array<Kernel, kRowsPerStep> kernels{&multiply<kRows + 1, Put>...};
    kernels[step.num_rows - 1](rows, step, panels, next, part, put);
  }

  // Sums of some rows with both panels at once, or with one after the other where registers hold no more.
  template <int64_t kRows, typename Put>
  static void multiply(const Rows& rows, const Step& step, const Panels& panels, const Panels& next, const Part& part,
                       const Put& put) {
    constexpr int64_t kSides = 2 * kRows * kSumsPerRow <= kSumsAtOnce ? 2 : 1;
    Sum sums[2 / kSides][kRows][kSides] = {};
    if (part.begin > 0) std::memcpy(sums, part.sums, sizeof(sums));
    for (int64_t side = 0; side < 2; side += kSides)
      add<kRows, kSides>(rows, step, &panels[side], &next[side], part, sums[side / kSides]);
    if (!part.is_last) {
      std::memcpy(part.sums, sums, sizeof(sums));
      return;
    }
    const uint8_t* x = place(rows, step.row, 0);
    for (int64_t row = 0; row < kRows; ++row) {
      const auto total = [&](int64_t side) {
        return Word::total(sums[side / kSides][row][side % kSides], rows, x + row * rows.row_bytes);
      };
      put(step.pair, step.row + row, total(0), total(1));
    }
  }

  template <int64_t kRows, int64_t kSides>
  static void add(const Rows& rows, const Step& step, const uint8_t* const* panels, const uint8_t* const* next,
                  const Part& part, Sum (&kept)[kRows][kSides]) {
    Sum sums[kRows][kSides];
#pragma GCC unroll 12
    for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
      for (int64_t side = 0; side < kSides; ++side) sums[row][side] = kept[row][side];
    const uint8_t* x = place(rows, step.row, 0);
    const auto add_word = [&](int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 12
      for (int64_t row = 0; row < kRows; ++row) {
        const Word word(rows, x + row * rows.row_bytes, k);
#pragma GCC unroll 2
        for (int64_t side = 0; side < kSides; ++side)
          sums[row][side] = word.added(sums[row][side], panels[side] + (k - part.panel_begin) * kLineBytes);
      }
    };
    int64_t k = part.begin;
    if (kIsFetching && step.row == 0) {
      for (; k < part.end - kLinesAhead; ++k) {
        fetch<kSides>(panels, k + kLinesAhead);
        add_word(k);
      }
      for (int64_t ahead = part.begin; k < part.end; ++k, ++ahead) {
        fetch<kSides>(next, ahead);
        add_word(k);
      }
    }
    for (; k < part.end; ++k) add_word(k);
#pragma GCC unroll 12
    for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
      for (int64_t side = 0; side < kSides; ++side) kept[row][side] = sums[row][side];
  }

  template <int64_t kSides>
  static void fetch(const uint8_t* const* panels, int64_t line) {
#pragma GCC unroll 2
    for (int64_t side = 0; side < kSides; ++side) __builtin_prefetch(panels[side] + line * kLineBytes, 0, 2);
  }
};

using OnDigits = OnLanes<FourDigits>;

#ifdef __AMX_BF16__
// Of how many rows tiles fetch weights before they are wanted: more take longer to multiply than weights to come.
constexpr int64_t kFetchingRows = 32;

// Up to two tiles of sixteen rows by two of outputs. Rows lie in such tiles too, line by line, so that a tile is 1024
// bytes on end; those that fill the last one up hold anything and end nowhere. Of thirty-two k a tile adds up the even and
// the odd ones, and then both.
//
// What is made of the sums takes long enough for memory to stand idle: no processor looks so far ahead that it reaches
// the next weights meanwhile. So a step leaves its sums behind, and the next one puts them, a few rows after each tile.
class OnTiles {
 public:
  static constexpr bool kWantsTiles = true;
  static constexpr int64_t kRowsPerStep = 2 * kLanes;
  static constexpr int64_t kSumsPerStep = kRowsPerStep * 2 * kLanes;
  static constexpr int64_t kWordsAtOnce = std::numeric_limits<int64_t>::max();

  static uint8_t* place(const Rows& rows, int64_t row, int64_t word) {
    const int64_t first_row = row & kTileMask, first_word = word & kTileMask;
    return rows.data + first_row * rows.num_words * kWordBytes + first_word * kLineBytes +
           (row - first_row) * kLineBytes + (word - first_word) * kWordBytes;
  }

  explicit OnTiles(int64_t num_rows) {
    const TileShapes shapes(std::min(num_rows, kLanes));
    _tile_loadconfig(&shapes);
  }
  OnTiles(const OnTiles&) = delete;
  ~OnTiles() { _tile_release(); }

  template <typename Put>
  void operator()(const Rows& rows, const Step& step, const Panels& panels, const Panels&, const Part& part,
                  const Put& put) {
    if (step.num_rows > kLanes)
      multiply<true>(rows, step, panels, part, put);
    else
      multiply<false>(rows, step, panels, part, put);
  }

  // Puts what the last step has summed up.
  template <typename Put>
  void finish(const Put& put) {
    put_waiting(kRowsPerStep, put);
  }

 private:
  static constexpr int64_t kTileBytes = kLanes * kLineBytes;
  static constexpr int64_t kTileMask = -kLanes;  // leaves the first row or word of a tile, without a slow division
  static constexpr int64_t kTileSums = kLanes * kLanes;
  static constexpr int64_t kFewRows = 2;  // so little is made of their sums that to wait costs more than it brings
  static constexpr int64_t kBytesAhead = 2 * kTileBytes;  // that are fetched before they are wanted

  template <bool kBelow, typename Put>
  void multiply(const Rows& rows, const Step& step, const Panels& panels, const Part& part, const Put& put) {
    if (part.begin == 0) {
      _tile_zero(0);
      _tile_zero(1);
      if (kBelow) {
        _tile_zero(2);
        _tile_zero(3);
      }
    } else {
      _tile_loadd(0, part.sums, kLineBytes);
      _tile_loadd(1, part.sums + 2 * kTileSums, kLineBytes);
      if (kBelow) {
        _tile_loadd(2, part.sums + kTileSums, kLineBytes);
        _tile_loadd(3, part.sums + 3 * kTileSums, kLineBytes);
      }
    }
    const uint8_t* above = place(rows, step.row, 0);
    const uint8_t* below = above + kLanes * rows.num_words * kWordBytes;
    // Of more rows all steps but the first find the weights in a cache, and few are read as fast as memory goes.
    const bool is_fetching = rows.num_rows > kFewRows && rows.num_rows <= kFetchingRows;
    const int64_t num_tiles = (part.end - part.begin) / kLanes;
    const int64_t puts_per_tile = (waiting_.num_rows - num_put_ + num_tiles - 1) / num_tiles;
    for (int64_t at = part.begin * kLineBytes; at < part.end * kLineBytes; at += kTileBytes) {
      if (is_fetching)
        for (int64_t line = 0; line < kTileBytes; line += kLineBytes) {
          _mm_prefetch(panels[0] + at + kBytesAhead + line, _MM_HINT_T0);
          _mm_prefetch(panels[1] + at + kBytesAhead + line, _MM_HINT_T0);
        }
      _tile_loadd(4, above + at, kLineBytes);
      _tile_loadd(6, panels[0] + at, kLineBytes);
      _tile_loadd(7, panels[1] + at, kLineBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kBelow) {
        _tile_loadd(5, below + at, kLineBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      put_waiting(puts_per_tile, put);
    }
    float* sums = part.is_last ? sums_ : part.sums;
    _tile_stored(0, sums, kLineBytes);
    _tile_stored(1, sums + 2 * kTileSums, kLineBytes);
    if (kBelow) {
      _tile_stored(2, sums + kTileSums, kLineBytes);
      _tile_stored(3, sums + 3 * kTileSums, kLineBytes);
    }
    if (!part.is_last) return;
    waiting_ = step;
    num_put_ = 0;
    if (step.num_rows <= kFewRows) finish(put);
  }

  // Puts up to `num` of the rows that wait.
  template <typename Put>
  void put_waiting(int64_t num, const Put& put) {
    for (const int64_t end = std::min(num_put_ + num, waiting_.num_rows); num_put_ < end; ++num_put_) {
      const float* left = sums_ + num_put_ * kLanes;
      put(waiting_.pair, waiting_.row + num_put_, loaded(left), loaded(left + 2 * kTileSums));
    }
  }

  alignas(kLineBytes) float sums_[4 * kTileSums];  // of up to 32 rows on the left, then on the right
  Step waiting_{};                                 // whose sums they are
  int64_t num_put_ = 0;                            // of its rows
};

#endif

// All rows, kRowsAtOnce of them at most, with all of `num_pairs` pairs of panels, on all threads. `panels(pair)` says
// where they are, and `put(pair, row, left, right)` takes the sums of a row, some time before this returns.
template <typename On, typename PanelsOf, typename Put>
void multiply_all(const Rows& rows, int64_t num_pairs, const PanelsOf& panels, const Put& put) {
  const int64_t num_words = rows.num_words;
  const int64_t words_in_cache = kRowBytesAtOnce * num_words / (rows.num_rows * rows.row_bytes);
  const int64_t words_at_once = std::clamp(words_in_cache / kLanes * kLanes, kLanes, On::kWordsAtOnce);
  const bool in_parts = words_at_once < num_words;
  const int64_t num_steps = (rows.num_rows + On::kRowsPerStep - 1) / On::kRowsPerStep;
  const int64_t pairs_per_task = std::max<int64_t>(1, kBytesPerTask / (2 * num_words * kLineBytes));
  share(num_pairs, pairs_per_task, [&](int64_t first_pair, int64_t last_pair) {
    On multiply(rows.num_rows);
    const int64_t num_kept = std::min(kPairsAtOnce, last_pair - first_pair);
    std::vector<float> sums(in_parts ? num_kept * num_steps * On::kSumsPerStep : 0);
    for (int64_t first = first_pair; first < last_pair; first += num_kept)
      for (int64_t begin = 0; begin < num_words; begin += words_at_once) {
        const int64_t end = std::min(begin + words_at_once, num_words);
        float* kept = sums.data();
        for (int64_t pair = first; pair < std::min(first + num_kept, last_pair); ++pair)
          for (int64_t row = 0; row < rows.num_rows; row += On::kRowsPerStep) {
            multiply(rows, {pair, row, std::min(On::kRowsPerStep, rows.num_rows - row)}, panels(pair),
                     panels(std::min(pair + 1, last_pair - 1)), {begin, end, end == num_words, kept}, put);
            if (in_parts) kept += On::kSumsPerStep;
          }
      }
    multiply.finish(put);
  });
}

// Calls `work(rows, first)` with the rows of x [..., K], contiguous, from `first` on: kRowsAtOnce at a time, as `On`
// reads them, in x itself or made ready in `space`.
template <typename On, typename T, typename Work>
void for_rows(const at::Tensor& x, std::vector<Line>& space, const Work& work) {
  const int64_t row_bytes = x.size(-1) * static_cast<int64_t>(x.element_size()), num_rows = x.numel() / x.size(-1);
  uint8_t* numbers = static_cast<uint8_t*>(const_cast<void*>(x.const_data_ptr()));
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t num = std::min(kRowsAtOnce, num_rows - first);
    Rows rows{numbers + first * row_bytes, num, row_bytes / kWordBytes, row_bytes};
    if constexpr (On::kWantsTiles) {
      const uint8_t* source = rows.data;
      rows = made_rows(num, row_bytes, space);
      for (int64_t row = 0; row < num; ++row)
        for (int64_t word = 0; word < rows.num_words; word += kLanes, source += kLineBytes)
          std::memcpy(On::place(rows, row, word), source, kLineBytes);
    } else {
      rows = On::template ready<T>(rows, space);
    }
    work(rows, first);
  }
}

}  // namespace outrider
