// Products with weights in eight bits, which are read in half of the time that bfloat16 takes.
//
// A weight is a whole number from -127 to 127 times a scale of its output. What it meets is rounded, too: a row becomes
// whole numbers of 16 bits times a scale of its own, each in two digits of base 256, so that bytes meet bytes. Sums of
// whole numbers are exact. So a row's result depends on that row alone, and is the same on every processor.

#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <limits>

#include "words.h"

namespace outrider {

constexpr int32_t kWeightOffset = 128;  // by which stored weights are larger, so that they are bytes without a sign

// How a row was rounded: what one is worth, and the sums of its digits.
struct Rounding {
  float scale;
  int32_t high, low, unused;
};

// Writes the digits of x. A row with what is no number becomes one of nothing but that.
template <typename T>
Rounding rounded(const T* x, int64_t size, int8_t* high, int8_t* low) {
  constexpr float kLargest = 127 * 256 + 127;           // whole number, of two digits from -128 to 127
  constexpr float kSmallestPeak = 1e-30f;               // below it a row counts as nothing
  constexpr float kRounder = 12582912.0f;               // 1.5 * 2^23: what is added to it is rounded to a whole number
  constexpr int32_t kInfinity = 0x7F800000, kRounderBits = 0x4B400000;
  Ints peaks = {};
  for (int64_t first = 0; first < size; first += kLanes)
    peaks = larger(as<Ints>(loaded(x + first, size - first)) & 0x7FFFFFFF, peaks);
  int32_t peak_bits = 0;
  for (const int32_t bits : each(peaks)) peak_bits = std::max(peak_bits, bits);
  float peak;
  std::memcpy(&peak, &peak_bits, sizeof(peak));
  if (peak_bits >= kInfinity) size = 0;
  const float factor = peak < kSmallestPeak ? 0.0f : kLargest / peak;
  Ints high_sums = {}, low_sums = {};
  for (int64_t first = 0; first < size; first += kLanes) {
    const Floats shifted = loaded(x + first, size - first) * factor + kRounder;
    const Ints whole = as<Ints>(shifted) - kRounderBits;
    const Ints high_digits = (whole + 128) >> 8, low_digits = whole - (high_digits << 8);
    store(high_digits, high + first);
    store(low_digits, low + first);
    high_sums += high_digits;
    low_sums += low_digits;
  }
  const float scale = peak_bits < kInfinity ? peak / kLargest : std::numeric_limits<float>::quiet_NaN();
  return {scale, summed(high_sums), summed(low_sums), 0};
}

// The digits of rows of numbers that lie one after another.
template <typename T>
Rows in_digits(const Rows& rows, std::vector<Line>& space) {
  const int64_t size = rows.row_bytes / static_cast<int64_t>(sizeof(T)), num_words = (size + 3) / 4;
  const int64_t digit_bytes = (size + kLanes - 1) / kLanes * kLanes;
  Rows digits = made_rows(rows.num_rows, 2 * digit_bytes + sizeof(Rounding), space);
  digits.num_words = num_words;
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    auto* high = reinterpret_cast<int8_t*>(digits.data + row * digits.row_bytes);
    const auto* x = reinterpret_cast<const T*>(rows.data + row * rows.row_bytes);
    const Rounding rounding = rounded(x, size, high, high + digit_bytes);
    std::memcpy(high + 2 * digit_bytes, &rounding, sizeof(rounding));
  }
  return digits;
}

// The sums, and to each added the products of an output's four weights in `line` with four digits.
template <typename V>
inline V added(V sums, const uint8_t* line, int32_t digits) {
  if constexpr (InHalves<V>) {
    return {added(sums.low, line, digits), added(sums.high, line + sizeof(sums.low), digits)};
  } else {
#if defined(__AVX512VNNI__)
    return as<V>(_mm512_dpbusd_epi32(as<__m512i>(sums), _mm512_loadu_si512(line), _mm512_set1_epi32(digits)));
#elif defined(__AVXVNNI__)
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    return as<V>(_mm256_dpbusd_avx_epi32(as<__m256i>(sums), weights, _mm256_set1_epi32(digits)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line)), four = _mm256_set1_epi32(digits);
    const __m256i even = _mm256_and_si256(weights, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(weights, 8);
    const __m256i even_digits = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8);
    const __m256i odd_digits = _mm256_srai_epi16(four, 8);
    return sums + as<V>(_mm256_add_epi32(_mm256_madd_epi16(even, even_digits), _mm256_madd_epi16(odd, odd_digits)));
#else
    V weights;
    std::memcpy(&weights, line, sizeof(weights));
    for (int shift = 0; shift < 32; shift += 8) sums += (weights >> shift & 255) * static_cast<int8_t>(digits >> shift);
    return sums;
#endif
  }
}

// Four numbers' digits. In a row all high digits lie before the low ones, and its rounding behind both.
struct FourDigits {
  struct Sum {
    Ints high, low;
  };

  template <typename T>
  static Rows ready(const Rows& rows, std::vector<Line>& space) {
    return in_digits<T>(rows, space);
  }

  static int64_t low_begin(const Rows& rows) { return (rows.row_bytes - static_cast<int64_t>(sizeof(Rounding))) / 2; }

  FourDigits(const Rows& rows, const uint8_t* row, int64_t word) {
    std::memcpy(&high, row + word * kWordBytes, kWordBytes);
    std::memcpy(&low, row + low_begin(rows) + word * kWordBytes, kWordBytes);
  }

  Sum added(const Sum& sum, const uint8_t* line) const {
    return {outrider::added(sum.high, line, high), outrider::added(sum.low, line, low)};
  }

  static Floats total(const Sum& sum, const Rows& rows, const uint8_t* row) {
    Rounding rounding;
    std::memcpy(&rounding, row + rows.row_bytes - sizeof(rounding), sizeof(rounding));
    const Ints high = sum.high - kWeightOffset * rounding.high, low = sum.low - kWeightOffset * rounding.low;
    return (256.0f * converted<Floats>(high) + converted<Floats>(low)) * rounding.scale;
  }

  int32_t high, low;
};

}  // namespace outrider
