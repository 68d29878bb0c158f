// Functions of sixteen float32 numbers, the same bits in whichever lane.

#pragma once

#include "lanes.h"

namespace outrider {

inline Floats magnitude(Floats x) { return as<Floats>(as<Ints>(x) & 0x7FFFFFFF); }

// 1 / (1 + exp(-x)), from the exponential of what is not positive.
inline Floats sigmoid(Floats x) {
  const Ints is_negative = x < all(0.0f);
  const Floats e = exponential(chosen(is_negative, x, -x));
  return chosen(is_negative, e, all(1.0f)) / (e + 1.0f);
}

// x / (1 + exp(-x)).
inline Floats silu(Floats x) {
  const Ints is_negative = x < all(0.0f);
  const Floats e = exponential(chosen(is_negative, x, -x));
  return x * chosen(is_negative, e, all(1.0f)) / (e + 1.0f);
}

// Below 0.3 by its Taylor polynomial of degree 11, which is off by 1e-9 of the result there.
inline Floats hyperbolic_tangent(Floats x) {
  const Floats size = magnitude(x), square = x * x;
  Floats p = all(-1382.0f / 155925.0f);
  p = p * square + 62.0f / 2835.0f;
  p = p * square - 17.0f / 315.0f;
  p = p * square + 2.0f / 15.0f;
  p = p * square - 1.0f / 3.0f;
  const Floats small = size + size * (square * p);
  const Floats e = exponential(size * -2.0f);
  const Floats result = chosen(size < all(0.3f), small, (1.0f - e) / (1.0f + e));
  return chosen(x < all(0.0f), -result, result);
}

// x Phi(x) by the hyperbolic tangent (Hendrycks and Gimpel, arXiv 1606.08415).
inline Floats gelu(Floats x) {
  return x * 0.5f * (1.0f + hyperbolic_tangent((x + x * x * x * 0.044715f) * 0.797884561f));
}

// sin(x + quarter pi / 2), in float64: x = n pi / 2 + r with |r| <= pi / 4, and the Taylor polynomials of degree 13 and 14.
// Positions times frequencies are below 2^24, of which rounding leaves r off by 1e-9 at most; the result is then rounded.
inline float circular(double x, int64_t quarter) {
  const double shifted = x * 0.63661977236758134308 + 0x1.8p52;  // rounds to an integer in the low bits
  const double n = shifted - 0x1.8p52;
  const double r = (x - n * 1.57079632679489655800) - n * 6.12323399573676603587e-17;
  int64_t quarters;
  std::memcpy(&quarters, &shifted, sizeof(quarters));
  quarters += quarter;
  const double square = r * r;
  double s = 1.0 / 6227020800.0;
  s = s * square - 1.0 / 39916800.0;
  s = s * square + 1.0 / 362880.0;
  s = s * square - 1.0 / 5040.0;
  s = s * square + 1.0 / 120.0;
  s = s * square - 1.0 / 6.0;
  s = r + r * (square * s);
  double c = -1.0 / 87178291200.0;
  c = c * square + 1.0 / 479001600.0;
  c = c * square - 1.0 / 3628800.0;
  c = c * square + 1.0 / 40320.0;
  c = c * square - 1.0 / 720.0;
  c = c * square + 1.0 / 24.0;
  c = c * square - 0.5;
  c = c * square + 1.0;
  const double result = quarters & 1 ? c : s;
  return static_cast<float>(quarters & 2 ? -result : result);
}

// `circular` of each lane.
inline Floats circular(Floats x, int64_t quarter) {
  std::array<float, kLanes> numbers = each(x);
  for (float& number : numbers) number = circular(number, quarter);
  return loaded(numbers.data());
}

inline Floats sine(Floats x) { return circular(x, 0); }
inline Floats cosine(Floats x) { return circular(x, 1); }

}  // namespace outrider
