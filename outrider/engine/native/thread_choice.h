// How many threads a step should use: learned from steps on one number of threads and on the next, in turn.
//
// A product of few rows is bound by memory, and threads on cores that others use wait for one another: more threads make
// such steps slower on one machine and faster on another, and that may change with what else runs. So of each number of
// tokens a trial takes some steps on the number of threads that was best so far and on a neighbour of it, alternately, and
// the better one is used until the next trial, which comes the later the more the last one has cost.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <numeric>
#include <vector>

namespace outrider {

class ThreadChoice {
 public:
  // A step reads prompts if so many of its tokens are fed for nothing but their keys and values, and so many times as many
  // as logits are wanted. Beside sessions that decode it takes what their steps take, whose time is told by their tokens.
  static constexpr int64_t kPromptTokens = 32, kPromptShare = 8;

  // Steps use up to `num_own` threads, those that read prompts `num_borrowed` more.
  ThreadChoice(int64_t num_own, int64_t num_borrowed) {
    for (int64_t number = 1; number < num_own; number *= 2) numbers_.push_back(number);
    numbers_.push_back(num_own);
    last_own_ = std::ssize(numbers_) - 1;
    if (num_borrowed > 0) numbers_.push_back(num_own + num_borrowed);
    prompts_ = {std::ssize(numbers_) - 1, std::ssize(numbers_) - 1, kRestMin};
  }

  // The number of threads for a step over so many tokens, of which so many logits are wanted.
  int64_t next(int64_t num_tokens, int64_t num_wanted) {
    num_tokens_ = num_tokens;
    const bool reads_prompts = num_tokens - num_wanted >= kPromptTokens && num_tokens >= kPromptShare * num_wanted;
    kind_ = reads_prompts ? &prompts_ : &kind_of(num_tokens);
    return numbers_[kind_->begin()];
  }

  // The step took so many seconds, each of its threads included.
  void observe(double seconds) { kind_->observe(seconds / static_cast<double>(num_tokens_)); }

 private:
  static constexpr int64_t kTimes = 6;       // steps of each number of threads in a trial
  static constexpr double kGain = 0.15;      // by which more threads must be faster: what else needs their cores waits
  static constexpr double kCost = 0.01;      // share of all time that trials may cost
  static constexpr int64_t kRestMin = 256;   // steps between two trials, however little they cost,
  static constexpr int64_t kRestMax = 4096;  // or however much: a machine changes

  // Steps that are alike. Numbers of threads are given by their places in the list.
  struct Kind {
    int64_t best = 0, most = 0;
    int64_t rest = 0;  // steps until the next trial begins
    int64_t step = 1;  // from the best to the one that is tried
    int64_t num_timed = 0;
    std::array<std::array<double, kTimes>, 2> times{};  // of a trial: of the best, and of the other

    int64_t begin() {
      if (rest > 0 || most == 0) return best;
      if (num_timed == 0 && (best + step < 0 || best + step > most)) step = -step;
      return num_timed % 2 == 0 ? best : best + step;
    }

    void observe(double seconds) {
      if (most == 0) return;
      if (rest > 0) {
        --rest;
        return;
      }
      times[num_timed % 2][num_timed / 2] = seconds;
      if (++num_timed == 2 * kTimes) decide();
    }

    void decide() {
      num_timed = 0;
      const double known = usual(times[0]), other = usual(times[1]);
      if (step > 0 ? other < (1.0 - kGain) * known : other <= known) {
        best += step;
        const bool is_last = best + step < 0 || best + step > most;
        rest = is_last ? kRestMin : 0;
        return;
      }
      step = -step;
      const double lost = kTimes * std::max(other / known - 1.0, 0.0);  // in steps
      rest = std::clamp(static_cast<int64_t>(lost / kCost), kRestMin, kRestMax);
    }

    // The mean of all but the slowest, which something else may have kept.
    static double usual(const std::array<double, kTimes>& times) {
      return (std::accumulate(times.begin(), times.end(), 0.0) - *std::max_element(times.begin(), times.end())) /
             (kTimes - 1);
    }
  };

  // What is known of steps over so many tokens; to begin with, what is best for the next smaller number that is known.
  Kind& kind_of(int64_t num_tokens) {
    const auto next = kinds_.lower_bound(num_tokens);
    if (next != kinds_.end() && next->first == num_tokens) return next->second;
    const int64_t best = next == kinds_.begin() ? 0 : std::prev(next)->second.best;
    return kinds_.emplace_hint(next, num_tokens, Kind{best, last_own_})->second;
  }

  std::vector<int64_t> numbers_;  // of threads, rising
  int64_t last_own_;
  std::map<int64_t, Kind> kinds_;  // by number of tokens
  Kind prompts_;
  Kind* kind_ = &prompts_;
  int64_t num_tokens_ = 1;
};

}  // namespace outrider
