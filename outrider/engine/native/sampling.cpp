// Choosing tokens from logits on a CPU: what outrider/engine/sample/sampler.py and noise.py do, in one pass over each row.
//
// The largest of score + noise is found with float32 arithmetic, sixteen tokens at a time; whatever comes so close to it
// that rounding might decide is computed again in float64 as noise.py does. The filters are not applied beforehand, which
// takes sorting: the best token is looked at, and only if a filter drops it, the next. A row in which rounding may decide
// what top-p keeps is left to candidates.py: its token ids are -1.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>
#include <vector>

#include "lanes.h"
#include "noise.h"
#include "sampling.h"
#include "team.h"

namespace {

using namespace outrider;

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int64_t kNumbersPerTask = 1 << 14;  // of rows: some ten microseconds, far above what a task costs

// Scores of float32 arithmetic may be off by this and this share of their size. Both are generous: three roundings of
// half a unit in the last place and a logarithm good to 1e-6 make 2e-6 and 2e-7. Bounds fall short of scores by as little.
constexpr float kRounding = 1e-4f, kRelativeRounding = 1e-6f;

// Sums of float32 weights may be off by this share of the row's. Generous: a weight of exp(-10) is off by 1e-6 of itself.
constexpr double kDoubt = 1e-5;

constexpr std::array<int32_t, kLanes> kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline float largest_lane(Floats lanes) {
  return std::ranges::max(each(lanes));
}

struct Shape {
  double temperature, top_k, top_p, log_min_p, noise_scale;
};

// One row's logits and the filters on them.
class Row {
 public:
  Row(const float* logits, int64_t size, int64_t padded_size, const Shape& shape)
      : logits_(logits), size_(size), padded_size_(padded_size), shape_(shape) {
    Floats largest = all(kNothing);
    for (int64_t v = 0; v < padded_size; v += kLanes)
      largest = larger(loaded(logits + v), largest);
    largest_ = largest_lane(largest);
  }

  bool keeps(int64_t token) {
    const double score = logits_[token] / shape_.temperature;
    if (score < largest_ / shape_.temperature + shape_.log_min_p) return false;
    const bool by_rank = shape_.top_k < static_cast<double>(size_), by_mass = shape_.top_p < 1.0;
    if (!by_rank && !by_mass) return true;
    const auto [num_before, mass_before] = before(logits_[token], token);
    if (by_rank && static_cast<double>(num_before) >= shape_.top_k) return false;
    if (!by_mass) return true;
    const double whole = by_rank ? surviving_mass() : mass();
    doubtful_ |= std::abs(mass_before - shape_.top_p * whole) <= kDoubt * whole;
    return mass_before < shape_.top_p * whole;
  }

  // Whether a token was looked at for which rounding may have decided what top-p keeps.
  bool doubtful() const { return doubtful_; }

  // Whether `other` is `token` or ranks behind it: each filter keeps the front of the ranking.
  bool is_from(int64_t token, int64_t other) const {
    return other == token || logits_[other] < logits_[token] || (logits_[other] == logits_[token] && other > token);
  }

 private:
  // How many tokens rank before one with this logit and id, and the sum of exp(score - largest score) over them.
  std::pair<int64_t, double> before(float logit, int64_t token) const {
    int64_t count = 0;
    double mass = 0.0;
    const float inverse = static_cast<float>(1.0 / shape_.temperature);
    for (int64_t v = 0; v < padded_size_; v += kLanes) {
      const Floats x = loaded(logits_ + v);
      const Ints ids = loaded<Ints>(kLaneNumbers.data()) + static_cast<int32_t>(v);
      const auto ahead = each((x > all(logit)) | ((x == all(logit)) & (ids < Ints{} + static_cast<int32_t>(token))));
      bool any = false;
      for (int64_t i = 0; i < kLanes; ++i) any |= ahead[i] != 0;
      if (!any) continue;
      const auto weights = each(exponential((x - largest_) * inverse));
      for (int64_t i = 0; i < kLanes; ++i)
        if (ahead[i]) {
          ++count;
          mass += weights[i];
        }
    }
    return {count, mass};
  }

  double mass() {
    if (mass_ >= 0.0) return mass_;
    const float inverse = static_cast<float>(1.0 / shape_.temperature);
    Doubles sums = {};
    for (int64_t v = 0; v < padded_size_; v += kLanes) {
      const auto weights = each(exponential((loaded(logits_ + v) - largest_) * inverse));
      sums += loaded<Doubles>(weights.data()) + loaded<Doubles>(weights.data() + kWords);
    }
    return mass_ = summed(sums);
  }

  double surviving_mass() {
    if (surviving_mass_ >= 0.0) return surviving_mass_;
    std::vector<float> ordered(logits_, logits_ + size_);
    const auto last = ordered.begin() + static_cast<int64_t>(shape_.top_k) - 1;
    std::nth_element(ordered.begin(), last, ordered.end(), std::greater<>());
    int64_t num_equals = static_cast<int64_t>(shape_.top_k);
    double mass = 0.0;
    for (auto each = ordered.begin(); each < last; ++each)
      if (*each > *last) {
        --num_equals;
        mass += std::exp((static_cast<double>(*each) - largest_) / shape_.temperature);
      }
    mass += static_cast<double>(num_equals) * std::exp((static_cast<double>(*last) - largest_) / shape_.temperature);
    return surviving_mass_ = mass;
  }

  const float* logits_;
  const int64_t size_, padded_size_;
  const Shape shape_;
  float largest_;
  double mass_ = -1.0, surviving_mass_ = -1.0;
  bool doubtful_ = false;
};

// A row's perturbed scores in blocks, and the largest of each block, so that finding the best does not look at them all.
//
// Until a block matters it has bounds in place of its scores, which take no logarithm.
class Perturbed {
 public:
  // The scores of these logits, which outlive it.
  void begin(const float* logits, int64_t padded_size, const Shape& shape, uint64_t stream) {
    logits_ = logits;
    padded_size_ = padded_size;
    inverse_ = static_cast<float>(1.0 / shape.temperature);
    noise_scale_ = static_cast<float>(shape.noise_scale);
    stream_ = stream;
    num_blocks_ = (padded_size + kBlock - 1) / kBlock;
    scores_.assign(num_blocks_ * kBlock, kNothing);
    largest_.assign((num_blocks_ + kLanes - 1) / kLanes * kLanes, kNothing);
    is_bound_.assign(num_blocks_, noise_scale_ > 0.0f);
    if (noise_scale_ > 0.0f)
      for (int64_t v = 0; v < padded_size; v += kWords) store_distances(stream, v, &scores_[v]);
    for (int64_t v = 0; v < padded_size; v += kLanes) {
      Floats x = loaded(logits + v) * inverse_;
      if (noise_scale_ > 0.0f) x += noise_bound(loaded(&scores_[v])) * noise_scale_;
      store(x, &scores_[v]);
    }
    find_largest();
  }

  void drop(int64_t token) {
    scores_[token] = kNothing;
    find_largest(token / kBlock);
  }

  // Drops those of the first `size` tokens that `is_dropped` tells.
  template <typename F>
  void drop_all(int64_t size, F is_dropped) {
    for (int64_t v = 0; v < size; ++v)
      if (is_dropped(v)) scores_[v] = kNothing;
    find_largest();
  }

  float largest() {
    for (;;) {
      Floats lanes = all(kNothing);
      for (size_t block = 0; block < largest_.size(); block += kLanes)
        lanes = larger(loaded(&largest_[block]), lanes);
      const float largest = largest_lane(lanes);
      const int64_t block = std::ranges::find(largest_, largest) - largest_.begin();
      if (block >= num_blocks_ || !is_bound_[block]) return largest;
      settle(block);
    }
  }

  // Calls `visit` with each token whose score is at least `score`, in ascending order.
  template <typename F>
  void each_from(float score, F visit) {
    for (int64_t block = 0; block < num_blocks_; ++block) {
      if (largest_[block] < score) continue;
      if (is_bound_[block]) settle(block);
      for (int64_t v = block * kBlock; v < (block + 1) * kBlock; ++v)
        if (scores_[v] >= score) visit(v);
    }
  }

 private:
  static constexpr int64_t kBlock = 4 * kLanes;

  // From bounds to scores, of all that were not dropped.
  void settle(int64_t block) {
    is_bound_[block] = false;
    const int64_t end = std::min((block + 1) * kBlock, padded_size_);
    for (int64_t v = block * kBlock; v < end; v += kLanes) {
      const Floats x = loaded(logits_ + v) * inverse_ + quick_noise(stream_, v) * noise_scale_;
      store(chosen(loaded(&scores_[v]) > all(kNothing), x, all(kNothing)), &scores_[v]);
    }
    find_largest(block);
  }

  void find_largest() {
    for (int64_t block = 0; block < num_blocks_; ++block) find_largest(block);
  }

  void find_largest(int64_t block) {
    Floats lanes = all(kNothing);
    for (int64_t v = block * kBlock; v < (block + 1) * kBlock; v += kLanes)
      lanes = larger(loaded(&scores_[v]), lanes);
    largest_[block] = largest_lane(lanes);
  }

  const float* logits_ = nullptr;
  int64_t padded_size_ = 0, num_blocks_ = 0;
  float inverse_ = 1.0f, noise_scale_ = 0.0f;
  uint64_t stream_ = 0;
  std::vector<float> scores_, largest_;
  std::vector<uint8_t> is_bound_;
};

struct Choice {
  int64_t token;
  double score;
};

// The row's best tokens in order, with their perturbed scores; fewer than `width` if the filters leave fewer.
std::vector<Choice> best_tokens(Row& row, const float* logits, Perturbed& perturbed, int64_t size, const Shape& shape,
                                uint64_t stream, int64_t width) {
  std::vector<Choice> found;
  const auto exact = [&](int64_t token) {
    const double score = logits[token] / shape.temperature;
    return shape.noise_scale > 0.0 ? score + exact_noise(stream, token) * shape.noise_scale : score;
  };
  while (static_cast<int64_t>(found.size()) < width) {
    const float largest = perturbed.largest();
    if (!(largest > kNothing)) break;
    const float close = largest - 2.0f * (kRounding + kRelativeRounding * std::abs(largest));
    Choice best{-1, 0.0};
    perturbed.each_from(std::max(close, std::numeric_limits<float>::lowest()), [&](int64_t token) {
      const double score = exact(token);
      if (best.token < 0 || score > best.score) best = {token, score};
    });
    if (best.token < 0) break;
    if (row.keeps(best.token)) {
      found.push_back(best);
      perturbed.drop(best.token);
    } else {
      perturbed.drop_all(size, [&](int64_t token) { return row.is_from(best.token, token); });
    }
  }
  return found;
}

template <typename T>
void sample(const at::Tensor& logits, const at::Tensor& shaping, const at::Tensor& seeds, at::IntArrayRef slots,
            at::IntArrayRef positions, int64_t width, at::Tensor& token_ids, at::Tensor& best_scores) {
  const int64_t num_slots = seeds.size(0);
  const int64_t num_rows = logits.size(0), size = logits.size(1), padded_size = (size + kLanes - 1) / kLanes * kLanes;
  const double* shapes = shaping.const_data_ptr<double>();
  share(num_rows, std::max<int64_t>(1, kNumbersPerTask / size), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scores;
    thread_local Perturbed perturbed;
    scores.resize(padded_size);
    for (int64_t r = begin; r < end; ++r) {
      widen(logits.const_data_ptr<T>() + r * logits.stride(0), scores.data(), size, padded_size, kNothing);
      const double* column = shapes + slots[r];
      const Shape shape{column[0], column[num_slots], column[2 * num_slots], column[3 * num_slots],
                        column[4 * num_slots]};
      const uint64_t stream = stream_of(seeds.const_data_ptr<int64_t>()[slots[r]], positions[r]);
      perturbed.begin(scores.data(), padded_size, shape, stream);
      Row row(scores.data(), size, padded_size, shape);
      const std::vector<Choice> best = best_tokens(row, scores.data(), perturbed, size, shape, stream, width);
      int64_t* ids = token_ids.mutable_data_ptr<int64_t>() + r * width;
      double* values = best_scores.mutable_data_ptr<double>() + r * width;
      for (int64_t i = 0; i < width; ++i) {
        const bool there = i < static_cast<int64_t>(best.size());
        ids[i] = row.doubtful() ? -1 : there ? best[i].token : 0;
        values[i] = there ? best[i].score : kNothing;
      }
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> outrider::best_of(const at::Tensor& logits, const at::Tensor& shaping,
                                                     const at::Tensor& seeds, at::IntArrayRef slots,
                                                     at::IntArrayRef positions, int64_t width) {
  TORCH_CHECK(logits.stride(1) == 1 && shaping.is_contiguous() && seeds.is_contiguous(), "rows must be contiguous");
  TORCH_CHECK(static_cast<int64_t>(slots.size()) == logits.size(0) && positions.size() == slots.size(),
              "each row needs a slot and a position");
  at::Tensor token_ids = at::empty({logits.size(0), width}, seeds.options());
  at::Tensor best_scores = at::empty({logits.size(0), width}, seeds.options().dtype(at::kDouble));
  switch (logits.scalar_type()) {
    case at::kFloat:
      sample<float>(logits, shaping, seeds, slots, positions, width, token_ids, best_scores);
      break;
    case at::kBFloat16:
      sample<c10::BFloat16>(logits, shaping, seeds, slots, positions, width, token_ids, best_scores);
      break;
    case at::kHalf:
      sample<c10::Half>(logits, shaping, seeds, slots, positions, width, token_ids, best_scores);
      break;
    default:
      TORCH_CHECK(false, "sampling knows float32, bfloat16 and float16, not ", logits.scalar_type());
  }
  return {token_ids, best_scores};
}

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def(
      "best_of(Tensor logits, Tensor shaping, Tensor seeds, int[] slots, int[] positions, int width) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) { library.impl("best_of", &outrider::best_of); }
