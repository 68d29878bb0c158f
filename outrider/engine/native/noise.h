// Gumbel noise: what outrider/engine/sample/noise.py draws, of one token exactly and of many in float32.

#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "lanes.h"

namespace outrider {

constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;
constexpr double kUnit = 0x1p-52;
constexpr int64_t kWords = 8;

using Words = Lanes<uint64_t, kWords>;
using Doubles = Lanes<double, kWords>;

// The finaliser of noise.py, of one word or of eight.
template <typename T>
inline T mixed(T word) {
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EB;
  return word ^ (word >> 31);
}

inline uint64_t stream_of(int64_t seed, int64_t position) {
  return mixed(mixed(static_cast<uint64_t>(seed) + kGamma) + (static_cast<uint64_t>(position) + 1) * kGamma);
}

// Gumbel noise of one token, as noise.py computes it.
inline double exact_noise(uint64_t stream, int64_t token) {
  const uint64_t word = mixed(stream + (static_cast<uint64_t>(token) + 1) * kGamma);
  const double uniform = (static_cast<double>(word >> 12) + 0.5) * kUnit;
  return -std::log(-std::log(uniform));
}

// The bits of a word as the fraction of a number from 1 to 2.
inline Doubles fraction_of(Words word) {
  constexpr uint64_t kOne = 0x3FF0000000000000;
  return as<Doubles>(word >> 12 | kOne);
}

// The uniforms of eight tokens; nothing is rounded.
inline Doubles uniforms_of(Words word) { return fraction_of(word) - (1.0 - 0.5 * kUnit); }

// By how much the words of eight neighbouring tokens exceed that of the first, before they are mixed.
constexpr std::array<uint64_t, kWords> kSteps = {0,          kGamma,     2 * kGamma, 3 * kGamma,
                                                 4 * kGamma, 5 * kGamma, 6 * kGamma, 7 * kGamma};

// Gumbel noise of the sixteen tokens from `first` on, in float32.
inline Floats quick_noise(uint64_t stream, int64_t first) {
  alignas(64) float uniforms[kLanes], distances[kLanes];  // from 1, which float32 could not tell from the uniforms
  for (int64_t half = 0; half < kLanes; half += kWords) {
    const Words word = loaded<Words>(kSteps.data()) + (stream + static_cast<uint64_t>(first + half + 1) * kGamma);
    const Doubles uniform = uniforms_of(mixed(word));
    store(uniform, uniforms + half);
    store(1.0 - uniform, distances + half);
  }
  const Floats u = loaded(uniforms), d = loaded(distances);
  // -log(1 - d) for small d by its series; elsewhere log(u) has digits enough.
  Floats series = all(1.0f / 6.0f);
  series = series * d + 1.0f / 5.0f;
  series = series * d + 1.0f / 4.0f;
  series = series * d + 1.0f / 3.0f;
  series = series * d + 0.5f;
  series = (series * d + 1.0f) * d;
  const Floats exponentials = chosen(d < all(0.03125f), series, -logarithm(u));
  return -logarithm(exponentials);
}

// How far the uniforms of the eight tokens from `first` on lie from 1, or a little less.
inline void store_distances(uint64_t stream, int64_t first, float* distances) {
  const Words word = loaded<Words>(kSteps.data()) + (stream + static_cast<uint64_t>(first + 1) * kGamma);
  store((2.0 - kUnit) - fraction_of(mixed(word)), distances);
}

// No less than the noise of tokens whose uniforms lie so far from 1: -log(-log(1 - d)) is at most -log(d). The logarithm is
// a line from each power of two to the next, as the bits of a number are, and nowhere more than it.
inline Floats noise_bound(Floats distances) {
  constexpr int32_t kOneBits = 0x3F800000;
  return converted<Floats>(kOneBits - as<Ints>(distances)) * (0.693147181f * 0x1p-23f);
}

}  // namespace outrider
