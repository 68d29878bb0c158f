// What a row has for each word of the weights, and how sums take in its products with a line of them.

#pragma once

#include <cstring>
#include <vector>

#include "tiles.h"

namespace outrider {

constexpr int64_t kWordBytes = 4;

// Rows of K numbers, in the order in which the kernels want them: see their `place`.
struct Rows {
  uint8_t* data;
  int64_t num_rows, num_words, row_bytes;
};

// Room for `num_rows` rows of `row_bytes` each, in `space`, which grows for them.
inline Rows made_rows(int64_t num_rows, int64_t row_bytes, std::vector<Line>& space) {
  const int64_t padded_rows = (num_rows + kLanes - 1) / kLanes * kLanes;
  const size_t num_lines = static_cast<size_t>((padded_rows * row_bytes + kLineBytes - 1) / kLineBytes);
  if (space.size() < num_lines) space.resize(num_lines);
  return {space.data()->bytes, num_rows, row_bytes / kWordBytes, row_bytes};
}

// One float32.
struct OneNumber {
  using Sum = Floats;

  // The rows as this wants them.
  template <typename T>
  static Rows ready(const Rows& rows, std::vector<Line>&) {
    return rows;
  }

  OneNumber(const Rows&, const uint8_t* row, int64_t word) {
    std::memcpy(&number, row + word * kWordBytes, kWordBytes);
  }

  Sum added(Sum sum, const uint8_t* line) const { return sum + number * loaded(reinterpret_cast<const float*>(line)); }

  static Floats total(Sum sum, const Rows&, const uint8_t*) { return sum; }

  float number;
};

// Two bfloat16. Where no instruction multiplies them a row has them in float32, and weights are widened on their way.
struct PairOfNumbers {
  using Sum = Floats;

#ifdef __AVX512BF16__
  template <typename T>
  static Rows ready(const Rows& rows, std::vector<Line>&) {
    return rows;
  }

  PairOfNumbers(const Rows&, const uint8_t* row, int64_t word) {
    std::memcpy(&bits, row + word * kWordBytes, kWordBytes);
  }

  Sum added(Sum sum, const uint8_t* line) const { return added(sum, _mm512_loadu_si512(line)); }

  Sum added(Sum sum, __m512i line) const {
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                     reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits)),
                                                     reinterpret_cast<__m512bh>(line)));
  }

  int32_t bits;
#else
  template <typename T>
  static Rows ready(const Rows& rows, std::vector<Line>& space) {
    Rows wide = made_rows(rows.num_rows, 2 * rows.row_bytes, space);
    wide.num_words = rows.num_words;
    const int64_t num = 2 * rows.num_rows * rows.num_words;
    widen(reinterpret_cast<const c10::BFloat16*>(rows.data), reinterpret_cast<float*>(wide.data), num, num);
    return wide;
  }

  PairOfNumbers(const Rows&, const uint8_t* row, int64_t word) {
    std::memcpy(&first, row + 2 * word * kWordBytes, sizeof(first));
    std::memcpy(&second, row + (2 * word + 1) * kWordBytes, sizeof(second));
  }

  Sum added(Sum sum, const uint8_t* line) const {
    const Ints pairs = loaded<Ints>(reinterpret_cast<const int32_t*>(line));
    return sum + as<Floats>(pairs << 16) * first + as<Floats>(pairs & ~0xFFFF) * second;
  }

  float first, second;
#endif

  static Floats total(Sum sum, const Rows&, const uint8_t*) { return sum; }
};

}  // namespace outrider
