// The n-gram tables of outrider/core/propose/ngram.py and ngram_static.py, which define every answer: the same additions
// in the same order, so that each probability has the same bits. Compile without contraction (-ffp-contract=off).

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

constexpr int TOKEN_BITS = 21;
constexpr int ORDERS = 4;
constexpr int OCCURRENCES_MAX = 8;
constexpr int64_t HISTORY_TOKENS_MAX = 16384;
constexpr double PROBABILITY_MAX = 0.995;
constexpr double NEGLIGIBLE = 0.02;
constexpr double SHARE_UNIT = 255.0;
constexpr double TRUST_MEMORY = 1.0 - 1.0 / 64.0;
constexpr double TRUST_PRIOR = 8.0;
constexpr double TRUST_MIN = 1e-3;

using Context = unsigned __int128;  // the newest token in the lowest bits

constexpr Context mask_of(int num_tokens) { return (Context(1) << TOKEN_BITS * num_tokens) - 1; }

Context extend(Context context, uint32_t token_id) {
  return (context << TOKEN_BITS | token_id) & mask_of(ORDERS);
}

// Probabilities by token, in the order in which the tokens came up.
class Shares {
 public:
  void add(uint32_t token_id, double share) {
    for (auto& [known, sum] : shares_) {
      if (known == token_id) {
        sum += share;
        return;
      }
    }
    shares_.emplace_back(token_id, share);
  }

  const std::vector<std::pair<uint32_t, double>>& all() const { return shares_; }

 private:
  std::vector<std::pair<uint32_t, double>> shares_;
};

// The contexts of one length, counted beforehand.
struct StaticOrder {
  int num_tokens;
  std::vector<uint64_t> contexts;  // ascending
  std::vector<uint32_t> token_ids;  // [contexts x width]
  std::vector<uint8_t> shares;      // [contexts x width]
};

class StaticNgrams {
 public:
  explicit StaticNgrams(int64_t width) : width_(width) {}

  void add_order(int num_tokens, int64_t num_contexts, const int64_t* contexts, const int32_t* token_ids,
                 const uint8_t* shares) {
    orders_.push_back({num_tokens, {contexts, contexts + num_contexts},
                       {token_ids, token_ids + num_contexts * width_}, {shares, shares + num_contexts * width_}});
  }

  void add_shares(Context context, double rest, Shares& found) const {
    for (const StaticOrder& order : orders_) {
      const auto key = static_cast<uint64_t>(context & mask_of(order.num_tokens));
      const auto place = std::lower_bound(order.contexts.begin(), order.contexts.end(), key);
      if (place != order.contexts.end() && *place == key) {
        const int64_t first = (place - order.contexts.begin()) * width_;
        int64_t total = 0;
        for (int64_t index = first; index < first + width_; ++index) {
          if (!order.shares[index]) continue;
          total += order.shares[index];
          found.add(order.token_ids[index], rest * (order.shares[index] / SHARE_UNIT));
        }
        rest *= 1.0 - total / SHARE_UNIT;
      }
      if (rest < NEGLIGIBLE) return;
    }
  }

 private:
  int64_t width_;
  std::vector<StaticOrder> orders_;
};

// For each context of one length the newest position that followed it. A hash table with linear probing that holds
// positions alone: what context a position has, its ring tells.
class Followers {
 public:
  Followers(int num_tokens, const std::vector<Context>& ring) : mask_(mask_of(num_tokens)), ring_(ring) {
    slots_.assign(64, EMPTY);
  }

  // The position, or -1.
  int64_t find(Context context) const { return slots_[slot_of(context & mask_)]; }

  // Sets the position, whose context is in the ring already. Returns the one before it, or -1.
  int64_t replace(int64_t position) {
    if (2 * (num_ + 1) > slots_.size()) grow();
    int64_t& slot = slots_[slot_of(key_of(position))];
    const int64_t before = slot;
    num_ += before == EMPTY;
    slot = position;
    return before;
  }

  // Forgets the position, if it is the newest one of its context.
  void forget(int64_t position) {
    size_t hole = slot_of(key_of(position));
    if (slots_[hole] != position) return;
    --num_;
    // What stands behind the hole moves up, unless it would come to stand before its own place.
    for (size_t next = step(hole); slots_[next] != EMPTY; next = step(next)) {
      const size_t home = home_of(key_of(slots_[next]));
      const bool stays = hole <= next ? hole < home && home <= next : hole < home || home <= next;
      if (!stays) {
        slots_[hole] = slots_[next];
        hole = next;
      }
    }
    slots_[hole] = EMPTY;
  }

 private:
  static constexpr int64_t EMPTY = -1;

  Context key_of(int64_t position) const { return ring_[position % HISTORY_TOKENS_MAX] & mask_; }

  size_t step(size_t slot) const { return (slot + 1) & (slots_.size() - 1); }

  size_t home_of(Context key) const {
    uint64_t hash = static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15u;
    hash ^= (static_cast<uint64_t>(key >> 64) + (hash >> 29)) * 0xBF58476D1CE4E5B9u;
    return (hash ^ hash >> 32) & (slots_.size() - 1);
  }

  size_t slot_of(Context key) const {
    size_t slot = home_of(key);
    while (slots_[slot] != EMPTY && key_of(slots_[slot]) != key) slot = step(slot);
    return slot;
  }

  void grow() {
    std::vector<int64_t> before(2 * slots_.size(), EMPTY);
    before.swap(slots_);
    for (const int64_t position : before) {
      if (position != EMPTY) slots_[slot_of(key_of(position))] = position;
    }
  }

  Context mask_;
  const std::vector<Context>& ring_;
  size_t num_ = 0;
  std::vector<int64_t> slots_;
};

class NgramTable {
 public:
  explicit NgramTable(const StaticNgrams* below) : static_(below) {
    for (int num_tokens = ORDERS; num_tokens; --num_tokens) followers_.emplace_back(num_tokens, contexts_);
  }
  NgramTable(const NgramTable&) = delete;

  void read(const uint32_t* token_ids, int64_t num_tokens) {
    for (int64_t index = 0; index < num_tokens; ++index) append(token_ids[index]);
    found_.clear();
  }

  void commit(const uint32_t* token_ids, int64_t num_tokens) {
    for (int64_t index = 0; index < num_tokens; ++index) {
      const auto& shares = shares_after(context_).all();
      if (!shares.empty()) {
        const auto best = std::max_element(shares.begin(), shares.end(),
                                           [](const auto& one, const auto& other) { return one.second < other.second; });
        num_right_ = num_right_ * TRUST_MEMORY + (best->first == token_ids[index] ? 1.0 : 0.0);
        num_promised_ = num_promised_ * TRUST_MEMORY + best->second;
        trust_ = std::max(num_right_ / num_promised_, TRUST_MIN);
      }
      append(token_ids[index]);
    }
    found_.clear();
  }

  // What follows the line and then `path`, newest token first. Valid until the next call.
  int64_t probabilities(const uint32_t* path, int64_t num_tokens) {
    Context context = num_tokens < ORDERS ? context_ : 0;
    for (int64_t index = std::min<int64_t>(num_tokens, ORDERS); index--;) context = extend(context, path[index]);
    const auto& shares = shares_after(context).all();
    double total = 0.0;
    for (const auto& [token_id, share] : shares) total += share;
    const double scale = std::min(trust_, PROBABILITY_MAX / total);
    told_ids.clear();
    told_probabilities.clear();
    for (const auto& [token_id, share] : shares) {
      told_ids.push_back(token_id);
      told_probabilities.push_back(share * scale);
    }
    return static_cast<int64_t>(shares.size());
  }

  double trust() const { return trust_; }

  std::vector<uint32_t> told_ids;
  std::vector<double> told_probabilities;

 private:
  struct Previous : std::array<int64_t, ORDERS> {};

  const Shares& shares_after(Context context) {
    for (const auto& [known, shares] : found_) {
      if (known == context) return shares;
    }
    Shares& shares = found_.emplace_back(context, Shares()).second;
    double rest = 1.0;
    const int64_t oldest = std::max<int64_t>(num_tokens_ - HISTORY_TOKENS_MAX, 0);
    for (int order = 0; order < ORDERS; ++order) {
      int64_t position = followers_[order].find(context);
      if (position < 0) continue;
      Counts counts;
      int num_occurrences = 0;
      do {
        const int64_t index = position % HISTORY_TOKENS_MAX;
        counts.add(token_ids_[index]);
        ++num_occurrences;
        position = previous_[index][order];
      } while (position >= oldest && num_occurrences < OCCURRENCES_MAX);
      const double share = rest / (num_occurrences + counts.num);
      for (int number = 0; number < counts.num; ++number) shares.add(counts.ids[number], share * counts.counts[number]);
      rest = share * counts.num;
      if (rest < NEGLIGIBLE) return shares;
    }
    if (static_) static_->add_shares(context, rest, shares);
    return shares;
  }

  struct Counts {
    int num = 0;
    std::array<uint32_t, OCCURRENCES_MAX> ids;
    std::array<int, OCCURRENCES_MAX> counts;

    void add(uint32_t token_id) {
      const auto known = std::find(ids.begin(), ids.begin() + num, token_id) - ids.begin();
      if (known == num) {
        ids[num] = token_id;
        counts[num++] = 0;
      }
      ++counts[known];
    }
  };

  void append(uint32_t token_id) {
    const int64_t index = num_tokens_ % HISTORY_TOKENS_MAX;
    if (num_tokens_ < HISTORY_TOKENS_MAX) {
      contexts_.push_back(context_);
      token_ids_.push_back(token_id);
      previous_.emplace_back();
    } else {
      for (Followers& followers : followers_) followers.forget(num_tokens_ - HISTORY_TOKENS_MAX);
      contexts_[index] = context_;
      token_ids_[index] = token_id;
    }
    for (int order = 0; order < ORDERS; ++order) previous_[index][order] = followers_[order].replace(num_tokens_);
    context_ = extend(context_, token_id);
    ++num_tokens_;
  }

  const StaticNgrams* static_;
  Context context_ = 0;
  int64_t num_tokens_ = 0;
  // For each position, modulo HISTORY_TOKENS_MAX: what stood before it, its token, and for each order the position that
  // followed the same context before.
  std::vector<Context> contexts_;
  std::vector<uint32_t> token_ids_;
  std::vector<Previous> previous_;
  std::vector<Followers> followers_;
  std::vector<std::pair<Context, Shares>> found_;  // since the last commit
  double num_right_ = TRUST_PRIOR;
  double num_promised_ = TRUST_PRIOR;
  double trust_ = 1.0;
};

}  // namespace

extern "C" {

StaticNgrams* static_ngrams_new(int64_t width) { return new StaticNgrams(width); }

void static_ngrams_add_order(StaticNgrams* ngrams, int32_t num_tokens, int64_t num_contexts, const int64_t* contexts,
                             const int32_t* token_ids, const uint8_t* shares) {
  ngrams->add_order(num_tokens, num_contexts, contexts, token_ids, shares);
}

void static_ngrams_delete(StaticNgrams* ngrams) { delete ngrams; }

NgramTable* ngram_table_new(const StaticNgrams* below) { return new NgramTable(below); }

void ngram_table_delete(NgramTable* table) { delete table; }

void ngram_table_read(NgramTable* table, const uint32_t* token_ids, int64_t num_tokens) {
  table->read(token_ids, num_tokens);
}

void ngram_table_commit(NgramTable* table, const uint32_t* token_ids, int64_t num_tokens) {
  table->commit(token_ids, num_tokens);
}

int32_t ngram_table_probabilities(NgramTable* table, const uint32_t* path, int32_t num_tokens, uint32_t* token_ids,
                                  double* probabilities) {
  const auto num = static_cast<int32_t>(table->probabilities(path, num_tokens));
  std::copy(table->told_ids.begin(), table->told_ids.end(), token_ids);
  std::copy(table->told_probabilities.begin(), table->told_probabilities.end(), probabilities);
  return num;
}

double ngram_table_trust(const NgramTable* table) { return table->trust(); }

}
