// Sixteen float32 numbers at a time, in the compiler's own vector types.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <limits>

namespace outrider {

constexpr int64_t kLanes = 16;

using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

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

inline Floats loaded(const float* numbers) {
  Floats result;
  std::memcpy(&result, numbers, sizeof(result));
  return result;
}

inline Floats loaded(const c10::BFloat16* numbers) {
  uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t)))) narrow;
  std::memcpy(&narrow, numbers, sizeof(narrow));
  return reinterpret_cast<Floats>(__builtin_convertvector(narrow, Ints) << 16);
}

inline Floats loaded(const c10::Half* numbers) {
  Floats result;
  for (int64_t lane = 0; lane < kLanes; ++lane) result[lane] = widened(numbers[lane]);
  return result;
}

// The first `num` of sixteen numbers, and zeros; all of them if `num` is larger.
template <typename T>
inline Floats loaded(const T* numbers, int64_t num) {
  if (num >= kLanes) return loaded(numbers);
  Floats result = {};
  for (int64_t lane = 0; lane < num; ++lane) result[lane] = widened(numbers[lane]);
  return result;
}

inline void store(Floats lanes, float* numbers) { std::memcpy(numbers, &lanes, sizeof(lanes)); }

inline void narrowed(Floats lanes, float* numbers) { store(lanes, numbers); }

inline void narrowed(Floats lanes, c10::Half* numbers) {
  for (int64_t lane = 0; lane < kLanes; ++lane) numbers[lane] = c10::Half(lanes[lane]);
}

inline void narrowed(Floats lanes, c10::BFloat16* numbers) {
#ifdef __AVX512BF16__
  const auto nearest = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(lanes));
  std::memcpy(numbers, &nearest, sizeof(nearest));
#else
  for (int64_t lane = 0; lane < kLanes; ++lane) numbers[lane] = c10::BFloat16(lanes[lane]);
#endif
}

inline Floats chosen(Ints condition, Floats yes, Floats no) {
  return reinterpret_cast<Floats>((condition & reinterpret_cast<Ints>(yes)) | (~condition & reinterpret_cast<Ints>(no)));
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
  const Ints scale = (reinterpret_cast<Ints>(shifted) + 127) << 23;
  return chosen(vanishes, all(0.0f), p * reinterpret_cast<Floats>(scale));
}

// log of each lane, a normal positive number, with an absolute error below 1e-6 plus that of the last place.
// x = 2^n (1 + r) with 1 + r in [1 / sqrt 2, sqrt 2), and log(1 + r) = r - r^2 / 2 + r^3 p(r). The polynomial p was fitted
// to that by least squares over Chebyshev nodes; it is off by 7e-8. A division would cost more than all of it.
inline Floats logarithm(Floats x) {
  const Ints bits = reinterpret_cast<Ints>(x);
  const Ints n = (bits - 0x3F3504F3) >> 23;
  const Floats r = reinterpret_cast<Floats>(bits - (n << 23)) - 1.0f;
  Floats p = all(-0.101571888f);
  p = p * r + 0.161325023f;
  p = p * r - 0.171799108f;
  p = p * r + 0.199103683f;
  p = p * r - 0.249798834f;
  p = p * r + 0.333347559f;
  const Floats square = r * r;
  return __builtin_convertvector(n, Floats) * 0.693147181f + (r - 0.5f * square + square * r * p);
}

}  // namespace outrider
