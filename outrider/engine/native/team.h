// The threads that share the work of the native operators, the caller among them.
//
// OpenMP's cost some microseconds for each operator, and spin for milliseconds after it, on cores that other services
// want. Here the work is cut into chunks, of which each thread begins with the same ones for work of the same size, so
// that their weights stay in that core's cache from step to step; a thread that has done its own does what others have
// not begun, so nobody waits for one that was interrupted before it came to its own. A thread that finds no work spins
// for the time between two operators and then sleeps. Which thread computes a number changes no bit of it.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "wanted.h"

namespace outrider {

constexpr int64_t kChunksPerThread = 4;  // so that a thread that comes late, or is slow, keeps others for so much less

// How many threads share the work of this thread: as many as torch has been given, if `OnThreads` says nothing else.
int64_t num_threads();

// From now on, until it ends, this thread's work is shared by so many.
class OnThreads {
 public:
  explicit OnThreads(int64_t num_threads);
  OnThreads(const OnThreads&) = delete;
  ~OnThreads();

 private:
  int64_t before_;
};

// What the threads run on.
struct Cores {
  int64_t num_own = 1;            // threads on the process's own cores
  std::vector<int64_t> borrowed;  // more cores, on each of which one thread more may run: it gives way to all others
};

// Of all teams to come.
void set_cores(Cores cores);
Cores cores();

// `work(context, chunk)` for each chunk below `num_chunks`, on this thread and up to `num_threads - 1` others. Returns when
// all are done. Where another caller has the team, this thread does all of it. `work` does not throw.
void run_chunks(void (*work)(const void* context, int64_t chunk), const void* context, int64_t num_chunks,
                int64_t num_threads);

// Says that operators follow: threads that sleep wake up, while this one prepares.
void rouse();

// `work(begin, end)` for chunks that are all of 0 to `num`, of `grain` or more each, as even as may be; nothing if what
// this thread computes is not wanted any more.
template <typename Work>
void share(int64_t num, int64_t grain, const Work& work) {
  if (!WantedWhile::is_wanted()) return;
  const int64_t num_grains = num / std::max<int64_t>(1, grain), num_sharing = std::min(num_threads(), num_grains);
  if (num_sharing <= 1) {
    if (num > 0) work(0, num);
    return;
  }
  const int64_t num_chunks = std::min(num_sharing * kChunksPerThread, num_grains);
  const auto chunk_of = [&](int64_t chunk) { work(num * chunk / num_chunks, num * (chunk + 1) / num_chunks); };
  run_chunks([](const void* each, int64_t chunk) { (*static_cast<const decltype(chunk_of)*>(each))(chunk); }, &chunk_of,
             num_chunks, num_sharing);
}

}  // namespace outrider
