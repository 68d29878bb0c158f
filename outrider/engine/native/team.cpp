// The threads behind `share`.

#include "team.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <mutex>
#include <thread>

namespace outrider {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(50);  // more than lies between two operators; a sleep costs as much
constexpr int kPausesPerLook = 32;                     // between two looks at the clock: about a microsecond

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when `number` is no longer `old`: soon, by spinning, or late, by sleeping.
uint32_t changed(const std::atomic<uint32_t>& number, uint32_t old) {
  const auto give_up = Clock::now() + kSpin;
  do {
    for (int turn = 0; turn < kPausesPerLook; ++turn) {
      if (const uint32_t now = number.load(std::memory_order_acquire); now != old) return now;
      pause();
    }
  } while (Clock::now() < give_up);
  number.wait(old, std::memory_order_acquire);
  return number.load(std::memory_order_acquire);
}

// What all threads do now.
struct Work {
  void (*work)(const void*, int64_t);
  const void* context;
};

alignas(64) std::atomic<uint32_t> num_left{0};  // parts of it that members have not done

// One thread, which does the part of its own number. It is never ended: the process ends it.
class Member {
 public:
  explicit Member(int64_t part) : part_(part) { std::thread(&Member::live, this).detach(); }

  void give(const Work* work) {
    work_.store(work, std::memory_order_release);
    wake();
  }

  void wake() {
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_one();
  }

 private:
  void live() {
    for (uint32_t seen = 0;;) {
      seen = changed(calls_, seen);
      const Work* work = work_.exchange(nullptr, std::memory_order_acquire);
      if (work == nullptr) continue;
      work->work(work->context, part_);
      if (num_left.fetch_sub(1, std::memory_order_acq_rel) == 1) num_left.notify_one();
    }
  }

  const int64_t part_;
  alignas(64) std::atomic<uint32_t> calls_{0};
  std::atomic<const Work*> work_{nullptr};
};

std::mutex team_mutex;
std::deque<Member>* team = nullptr;  // never destroyed: its threads may outlive what ends a process

// Of `num_parts` parts all but the first have a member. The mutex is held.
void grow(int64_t num_parts) {
  if (team == nullptr) {
    static const int unused = pthread_atfork(nullptr, nullptr, [] { team = nullptr; });  // threads are not forked
    static_cast<void>(unused);
    team = new std::deque<Member>;
  }
  while (static_cast<int64_t>(team->size()) < num_parts - 1) team->emplace_back(static_cast<int64_t>(team->size()) + 1);
}

}  // namespace

void run_parts(void (*work)(const void*, int64_t), const void* context, int64_t num_parts) {
  const std::unique_lock lock(team_mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    for (int64_t part = 0; part < num_parts; ++part) work(context, part);
    return;
  }
  grow(num_parts);
  const Work shared{work, context};
  num_left.store(static_cast<uint32_t>(num_parts - 1), std::memory_order_relaxed);
  for (int64_t part = 1; part < num_parts; ++part) (*team)[part - 1].give(&shared);
  work(context, 0);
  for (uint32_t left = num_left.load(std::memory_order_acquire); left != 0;) left = changed(num_left, left);
}

void rouse() {
  const int64_t num_threads = at::get_num_threads();
  if (num_threads <= 1) return;
  const std::unique_lock lock(team_mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  grow(num_threads);
  for (int64_t part = 1; part < num_threads; ++part) (*team)[part - 1].wake();
}

}  // namespace outrider
