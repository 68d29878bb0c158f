// Sixteen float32 numbers at a time, in as many registers as hold them.
//
// They are sixteen on every processor: so are the outputs of a panel of weights, and sums over many numbers are added up
// in the same order everywhere.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <array>
#include <limits>

#include "registers.h"

namespace outrider {

constexpr int64_t kLanes = 16;

using Floats = Lanes<float, kLanes>;
using Ints = Lanes<int32_t, kLanes>;

// So many sums of sixteen lanes stay in registers, beside what is added to them.
constexpr int64_t kSumsAtOnce = kNumRegisters * kRegisterBytes / static_cast<int64_t>(sizeof(Floats)) * 3 / 4;

inline float widened(float number) { return number; }
inline float widened(c10::Half number) { return static_cast<float>(number); }
inline float widened(c10::BFloat16 number) {
  const uint32_t bits = static_cast<uint32_t>(number.x) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// `size` numbers, and `filler` up to `padded_size`.
template <typename T>
inline void widen(const T* source, float* destination, int64_t size, int64_t padded_size, float filler = 0.0f) {
  for (int64_t i = 0; i < size; ++i) destination[i] = widened(source[i]);
  for (int64_t i = size; i < padded_size; ++i) destination[i] = filler;
}

inline Floats all(float number) { return Floats{} + number; }

// As many numbers as `V` has lanes.
template <typename V = Floats, typename T>
inline V loaded(const T* numbers) {
  constexpr int64_t kNum = kNumLanes<V>;
  if constexpr (InHalves<V>) {
    using Half = decltype(V::low);
    return {loaded<Half>(numbers), loaded<Half>(numbers + kNum / 2)};
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    V result;
    for (int64_t lane = 0; lane < kNum; ++lane) result[lane] = widened(numbers[lane]);
    return result;
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    Lanes<uint16_t, kNum> narrow;
    std::memcpy(&narrow, numbers, sizeof(narrow));
    return as<V>(converted<Lanes<int32_t, kNum>>(narrow) << 16);
  } else {
    Lanes<T, kNum> own;
    std::memcpy(&own, numbers, sizeof(own));
    return converted<V>(own);
  }
}

// The first `num` of sixteen numbers, and zeros; all of them if `num` is larger.
template <typename T>
inline Floats loaded(const T* numbers, int64_t num) {
  if (num >= kLanes) return loaded(numbers);
  std::array<float, kLanes> some = {};
  for (int64_t lane = 0; lane < num; ++lane) some[lane] = widened(numbers[lane]);
  return loaded(some.data());
}

// Writes the lanes as numbers of type `T`, rounded to the nearest one if they are wider.
template <typename V, typename T>
inline void store(V lanes, T* numbers) {
  constexpr int64_t kNum = kNumLanes<V>;
  if constexpr (InHalves<V>) {
    store(lanes.low, numbers);
    store(lanes.high, numbers + kNum / 2);
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    for (int64_t lane = 0; lane < kNum; ++lane) numbers[lane] = c10::Half(lanes[lane]);
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
#ifdef __AVX512BF16__
    const auto nearest = _mm512_cvtneps_pbh(as<__m512>(lanes));
#else
    using Bits = Lanes<uint32_t, kNum>;
    const Bits bits = as<Bits>(lanes), is_number = as<Bits>(lanes == lanes);
    const Bits rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    const auto nearest = converted<Lanes<uint16_t, kNum>>((rounded & is_number) | (0x7FC0 & ~is_number));
#endif
    std::memcpy(numbers, &nearest, sizeof(nearest));
  } else {
    const auto own = converted<Lanes<T, kNum>>(lanes);
    std::memcpy(numbers, &own, sizeof(own));
  }
}

// Writes all lanes, or the first `num` of them.
template <typename T>
inline void put(Floats lanes, T* numbers, int64_t num) {
  alignas(64) T narrow[kLanes];
  store(lanes, narrow);
  if (num == kLanes)
    std::memcpy(numbers, narrow, sizeof(narrow));
  else
    std::memcpy(numbers, narrow, num * sizeof(T));
}

// The lanes one by one.
template <typename V>
inline std::array<LaneOf<V>, kNumLanes<V>> each(V lanes) {
  std::array<LaneOf<V>, kNumLanes<V>> numbers;
  store(lanes, numbers.data());
  return numbers;
}

// All lanes added up, one after another.
template <typename V>
inline LaneOf<V> summed(V lanes) {
  LaneOf<V> sum = 0;
  for (const LaneOf<V> number : each(lanes)) sum += number;
  return sum;
}

// Bit by bit: of a choice between sums a compiler for AVX-512 makes additions under a mask, and fuses them with nothing.
inline Floats chosen(Ints condition, Floats yes, Floats no) {
  return as<Floats>((condition & as<Ints>(yes)) | (~condition & as<Ints>(no)));
}

template <typename V>
inline V larger(V one, V other) {
  if constexpr (InHalves<V>)
    return {larger(one.low, other.low), larger(one.high, other.high)};
  else
    return one > other ? one : other;
}

// exp of each lane, within 2 units in the last place for arguments of at most 0; 0 below the smallest normal number.
// x = n log 2 + r with |r| <= log(2) / 2, and exp(r) by its Taylor polynomial of degree 7.
inline Floats exponential(Floats x) {
  const Ints vanishes = x < all(-87.0f);
  const Floats clamped = chosen(vanishes, all(0.0f), x);
  const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const Floats n = shifted - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = all(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints scale = (as<Ints>(shifted) + 127) << 23;
  return chosen(vanishes, all(0.0f), p * as<Floats>(scale));
}

// log of each lane, a normal positive number, with an absolute error below 1e-6 plus that of the last place.
// x = 2^n (1 + r) with 1 + r in [1 / sqrt 2, sqrt 2), and log(1 + r) = r - r^2 / 2 + r^3 p(r). The polynomial p was fitted
// to that by least squares over Chebyshev nodes; it is off by 7e-8. A division would cost more than all of it.
inline Floats logarithm(Floats x) {
  const Ints bits = as<Ints>(x);
  const Ints n = (bits - 0x3F3504F3) >> 23;
  const Floats r = as<Floats>(bits - (n << 23)) - 1.0f;
  Floats p = all(-0.101571888f);
  p = p * r + 0.161325023f;
  p = p * r - 0.171799108f;
  p = p * r + 0.199103683f;
  p = p * r - 0.249798834f;
  p = p * r + 0.333347559f;
  const Floats square = r * r;
  return converted<Floats>(n) * 0.693147181f + (r - 0.5f * square + square * r * p);
}

}  // namespace outrider
