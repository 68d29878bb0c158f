// Vectors of more numbers than a register holds.
//
// The compiler has such vectors, too, and keeps them in memory. Here they are two halves, each of them a vector that a
// register holds or halves again, so that sums stay in registers on every processor. What is computed is the same.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace outrider {

#if defined(__AVX512F__)
constexpr int64_t kRegisterBytes = 64, kNumRegisters = 32;
#elif defined(__AVX2__)
constexpr int64_t kRegisterBytes = 32, kNumRegisters = 16;
#elif defined(__aarch64__)
constexpr int64_t kRegisterBytes = 16, kNumRegisters = 32;
#else
constexpr int64_t kRegisterBytes = 16, kNumRegisters = 16;
#endif

template <typename Half>
struct Halves {
  Half low, high;
};

template <typename Half>
Halves(Half, Half) -> Halves<Half>;

template <typename V>
concept InHalves = requires(V lanes) { lanes.low; };

template <typename V>
struct LaneTypeOf {
  using Type = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;
};

template <typename Half>
struct LaneTypeOf<Halves<Half>> : LaneTypeOf<Half> {};

template <typename V>
using LaneOf = typename LaneTypeOf<V>::Type;

template <typename V>
constexpr int64_t kNumLanes = sizeof(V) / sizeof(LaneOf<V>);

template <typename T, int64_t kSize, bool kFits>
struct LanesOf;

// `kSize` numbers, which operators take lane by lane.
template <typename T, int64_t kSize>
using Lanes = typename LanesOf<T, kSize, kSize * static_cast<int64_t>(sizeof(T)) <= kRegisterBytes>::Type;

template <typename T, int64_t kSize>
struct LanesOf<T, kSize, true> {
  using Type [[gnu::vector_size(kSize * sizeof(T))]] = T;
};

template <typename T, int64_t kSize>
struct LanesOf<T, kSize, false> {
  using Type = Halves<Lanes<T, kSize / 2>>;
};

// The same bits as lanes of another type.
template <typename To, typename From>
inline To as(From lanes) {
  if constexpr (InHalves<From>)
    return {as<decltype(To::low)>(lanes.low), as<decltype(To::high)>(lanes.high)};
  else
    return reinterpret_cast<To>(lanes);
}

// The same numbers in lanes of another type.
template <typename To, typename From>
inline To converted(From lanes) {
  if constexpr (InHalves<From>)
    return {converted<decltype(To::low)>(lanes.low), converted<decltype(To::high)>(lanes.high)};
  else
    return __builtin_convertvector(lanes, To);
}

template <typename T>
concept Number = std::is_arithmetic_v<T>;

#define OUTRIDER_BY_HALVES(op)                                    \
  template <typename Half>                                        \
  inline auto operator op(Halves<Half> a, Halves<Half> b) {       \
    return Halves{a.low op b.low, a.high op b.high};              \
  }                                                               \
  template <typename Half, Number T>                              \
  inline auto operator op(Halves<Half> a, T b) {                  \
    return Halves{a.low op b, a.high op b};                       \
  }                                                               \
  template <typename Half, Number T>                              \
  inline auto operator op(T a, Halves<Half> b) {                  \
    return Halves{a op b.low, a op b.high};                       \
  }
OUTRIDER_BY_HALVES(+)
OUTRIDER_BY_HALVES(-)
OUTRIDER_BY_HALVES(*)
OUTRIDER_BY_HALVES(/)
OUTRIDER_BY_HALVES(&)
OUTRIDER_BY_HALVES(|)
OUTRIDER_BY_HALVES(^)
OUTRIDER_BY_HALVES(<<)
OUTRIDER_BY_HALVES(>>)
OUTRIDER_BY_HALVES(<)
OUTRIDER_BY_HALVES(>)
OUTRIDER_BY_HALVES(==)
#undef OUTRIDER_BY_HALVES

template <typename Half>
inline Halves<Half> operator-(Halves<Half> lanes) {
  return {-lanes.low, -lanes.high};
}

template <typename Half>
inline Halves<Half> operator~(Halves<Half> lanes) {
  return {~lanes.low, ~lanes.high};
}

template <typename Half, typename Other>
inline Halves<Half>& operator+=(Halves<Half>& lanes, Other other) {
  return lanes = lanes + other;
}

template <typename Half, typename Other>
inline Halves<Half>& operator*=(Halves<Half>& lanes, Other other) {
  return lanes = lanes * other;
}

}  // namespace outrider
