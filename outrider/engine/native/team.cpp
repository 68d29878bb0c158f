// The threads behind `share`.

#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <torch/library.h>
#include <unistd.h>

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
constexpr int kNiceness = 10;                          // as CPU_NICENESS in outrider/engine/device_thread.py has it

// Who waits so long for a borrowed core within a chunk has met somebody who works there, and stays away for a while. To
// yield is not enough: services mostly belong to groups that the system treats as one thread each.
constexpr auto kKeptOff = std::chrono::microseconds(500);  // messages take less
constexpr auto kAway = std::chrono::milliseconds(4);       // a draft's prefill, or some levels of it

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns what `number` is when it is no longer `old`: soon, by spinning, or late, by sleeping.
template <typename Number>
Number changed(const std::atomic<Number>& number, Number old) {
  const auto give_up = Clock::now() + kSpin;
  do {
    for (int turn = 0; turn < kPausesPerLook; ++turn) {
      if (const Number now = number.load(std::memory_order_acquire); now != old) return now;
      pause();
    }
  } while (Clock::now() < give_up);
  number.wait(old, std::memory_order_acquire);
  return number.load(std::memory_order_acquire);
}

// What all threads do now. It stays as it is while any of them is at work.
struct Job {
  void (*work)(const void*, int64_t);
  const void* context;
  int64_t num_threads;
};
Job job;

// The chunks that belong to one thread, from the first that nobody has begun.
struct alignas(64) Part {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// How many members are at work, while there is any; else so far below 0 that none begins.
constexpr int32_t kNoWork = -(1 << 30);
alignas(64) std::atomic<int32_t> num_at_work{kNoWork};

// Does what is left of the job, the chunks of `first` before those of others, as long as `goes_on()` after each.
template <typename GoesOn>
void work_from(int64_t first, std::deque<Part>& parts, const GoesOn& goes_on) {
  for (int64_t turn = 0; turn < job.num_threads; ++turn) {
    Part& part = parts[(first + turn) % job.num_threads];
    for (int64_t chunk; (chunk = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;) {
      job.work(job.context, chunk);
      if (!goes_on()) return;
    }
  }
}

constexpr auto always = [] { return true; };

// How long this thread has not been on a core since it began, give or take a constant.
Clock::duration time_off() {
  timespec used;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return Clock::now().time_since_epoch() - std::chrono::seconds(used.tv_sec) - std::chrono::nanoseconds(used.tv_nsec);
}

// One thread beside the caller. It is never ended: the process ends it.
class Member {
 public:
  // Its own part has that number. It runs where the caller may, or, if it is given a core, on that one.
  Member(int64_t number, std::deque<Part>& parts, int64_t core) : number_(number), parts_(parts), core_(core) {
    std::thread(&Member::live, this).detach();
  }

  void wake() {
    if (is_borrowing() && Clock::now().time_since_epoch() < away_until_.load(std::memory_order_relaxed)) return;
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_one();
  }

 private:
  void live() {
    settle_down();
    for (uint32_t seen = 0;;) {
      seen = changed(calls_, seen);
      if (!begin()) continue;
      if (is_borrowing())
        work_from(number_, parts_, [this, before = time_off()] { return is_welcome(before); });
      else
        work_from(number_, parts_, always);
      if (num_at_work.fetch_sub(1, std::memory_order_acq_rel) == kNoWork + 1) num_at_work.notify_one();
    }
  }

  bool is_borrowing() const { return core_ >= 0; }

  // Whether it has had the core, since it has been off for so long.
  bool is_welcome(Clock::duration before) {
    if (time_off() - before < kKeptOff) return true;
    away_until_.store(Clock::now().time_since_epoch() + kAway, std::memory_order_relaxed);
    return false;
  }

  void settle_down() const {
#ifdef __linux__
    if (is_borrowing()) {
      cpu_set_t only;
      CPU_ZERO(&only);
      CPU_SET(core_, &only);
      ::sched_setaffinity(0, sizeof(only), &only);
    }
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), kNiceness);
#endif
  }

  // Whether there is work, which then stays until this thread has done its share.
  static bool begin() {
    int32_t num = num_at_work.load(std::memory_order_acquire);
    while (num >= 0)
      if (num_at_work.compare_exchange_weak(num, num + 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  const int64_t number_;
  std::deque<Part>& parts_;
  const int64_t core_;
  std::atomic<Clock::duration> away_until_{Clock::duration::zero()};
  alignas(64) std::atomic<uint32_t> calls_{0};
};

// The parts of all threads, the caller's first, and the threads of all but that.
struct Team {
  std::deque<Part> parts = std::deque<Part>(1);
  std::deque<Member> members;
};

std::mutex team_mutex;
Team* team = nullptr;  // never destroyed: its threads may outlive what ends a process
Cores team_cores;
thread_local int64_t num_chosen = 0;

// The mutex is held, and nobody is at work.
void grow(int64_t num_threads) {
  if (team == nullptr) {
    static const int unused = pthread_atfork(nullptr, nullptr, [] {  // threads are not forked
      team = nullptr;
      num_at_work.store(kNoWork, std::memory_order_relaxed);
    });
    static_cast<void>(unused);
    team = new Team;
  }
  for (int64_t number = static_cast<int64_t>(team->parts.size()); number < num_threads; ++number) {
    team->parts.emplace_back();
    const int64_t borrowed = number - team_cores.num_own, num_borrowed = std::ssize(team_cores.borrowed);
    const bool is_borrowing = 0 <= borrowed && borrowed < num_borrowed;
    team->members.emplace_back(number, team->parts, is_borrowing ? team_cores.borrowed[borrowed] : -1);
  }
}

}  // namespace

int64_t num_threads() { return num_chosen > 0 ? num_chosen : at::get_num_threads(); }

OnThreads::OnThreads(int64_t num_threads) : before_(num_chosen) { num_chosen = num_threads; }
OnThreads::~OnThreads() { num_chosen = before_; }

void set_cores(Cores cores) {
  const std::lock_guard lock(team_mutex);
  team_cores = std::move(cores);
}

Cores cores() {
  const std::lock_guard lock(team_mutex);
  return team_cores;
}

void run_chunks(void (*work)(const void*, int64_t), const void* context, int64_t num_chunks, int64_t num_threads) {
  const std::unique_lock lock(team_mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) work(context, chunk);
    return;
  }
  grow(num_threads);
  job = {work, context, num_threads};
  for (int64_t number = 0; number < num_threads; ++number) {
    Part& part = team->parts[number];
    part.next.store(num_chunks * number / num_threads, std::memory_order_relaxed);
    part.end = num_chunks * (number + 1) / num_threads;
  }
  num_at_work.store(0, std::memory_order_release);
  for (int64_t number = 1; number < num_threads; ++number) team->members[number - 1].wake();
  work_from(0, team->parts, always);
  int32_t left = num_at_work.fetch_add(kNoWork, std::memory_order_acq_rel) + kNoWork;
  while (left != kNoWork) left = changed(num_at_work, left);
}

void rouse() {
  const int64_t num = num_threads();
  if (num <= 1) return;
  const std::unique_lock lock(team_mutex, std::try_to_lock);
  if (!lock.owns_lock()) return;
  grow(num);
  for (int64_t number = 1; number < num; ++number) team->members[number - 1].wake();
}

}  // namespace outrider

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("set_cores(int num_own, int[] borrowed) -> ()", [](int64_t num_own, at::IntArrayRef borrowed) {
    outrider::set_cores({num_own, borrowed.vec()});
  });
}
