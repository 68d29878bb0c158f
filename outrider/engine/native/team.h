// The threads that share the work of the native operators: as many as torch has been given, the caller among them.
//
// OpenMP's cost some microseconds for each operator, and spin for milliseconds after it, on cores that other services
// want. Here each part of the work belongs to one thread, always the same for work of the same size, so that its weights
// stay in that core's cache from step to step; and a thread that finds no work spins for the time between two operators
// and then sleeps. Which thread computes a number changes no bit of it.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "wanted.h"

namespace outrider {

// `work(context, part)` for each part below `num_parts`: the first on this thread, each other on a thread of its own.
// Returns when all are done. Where another caller has the team, this thread does all of it. `work` does not throw.
void run_parts(void (*work)(const void* context, int64_t part), const void* context, int64_t num_parts);

// Says that operators follow: threads that sleep wake up, while this one prepares.
void rouse();

// `work(begin, end)` for parts that are all of 0 to `num`, of `grain` or more each, as even as may be; nothing if what
// this thread computes is not wanted any more.
template <typename Work>
void share(int64_t num, int64_t grain, const Work& work) {
  if (!WantedWhile::is_wanted()) return;
  const int64_t num_parts = std::min<int64_t>(at::get_num_threads(), num / std::max<int64_t>(1, grain));
  if (num_parts <= 1) {
    if (num > 0) work(0, num);
    return;
  }
  const auto part_of = [&](int64_t part) { work(num * part / num_parts, num * (part + 1) / num_parts); };
  run_parts([](const void* each, int64_t part) { (*static_cast<const decltype(part_of)*>(each))(part); }, &part_of,
            num_parts);
}

}  // namespace outrider
