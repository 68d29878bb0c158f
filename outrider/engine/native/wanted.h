// Whether what a thread computes is wanted still. If not, its operators return at once, whatever their results hold.

#pragma once

#include <cstdint>

namespace outrider {

// Whether a number that another thread may write is the expected one.
inline bool is_still(const int64_t* number, int64_t expected) {
  return __atomic_load_n(number, __ATOMIC_ACQUIRE) == expected;
}

// While it lives, what its thread computes is wanted as long as a number is the expected one.
class WantedWhile {
 public:
  WantedWhile(const int64_t* number, int64_t expected) : number_(number), expected_(expected) { current_ = this; }
  WantedWhile(const WantedWhile&) = delete;
  ~WantedWhile() { current_ = nullptr; }

  static bool is_wanted() { return current_ == nullptr || is_still(current_->number_, current_->expected_); }

 private:
  const int64_t* const number_;
  const int64_t expected_;
  static inline thread_local const WantedWhile* current_ = nullptr;
};

}  // namespace outrider
