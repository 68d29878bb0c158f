// Several levels of a draft in one call: which nodes to expand, a forward pass over them, what follows them, and again.
//
// Between two passes this decides what outrider/core/draft decides between two steps (`choose_expansions`,
// `DraftSession.expand`), by the same arithmetic in float64 and in the same order, so the tree is the one that steps would
// have made. `DraftLevels` in outrider/engine/compile/levels.py writes what this reads, and reads what it writes.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

#include "package.h"
#include "sampling.h"
#include "wanted.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPaddingToken = 0;
constexpr int64_t kDoubtful = -1;  // how many guesses a node has of which rounding may have decided

// A flat list, read from its beginning on.
template <typename T>
class Reader {
 public:
  explicit Reader(const at::Tensor& numbers) : next_(numbers.const_data_ptr<T>()) {}

  T one() { return *next_++; }

  const T* many(int64_t num) {
    const T* first = next_;
    next_ += num;
    return first;
  }

 private:
  const T* next_;
};

// What may be expanded.
struct Node {
  int64_t session;
  int64_t origin;  // the expansion whose guess it is; below 0: -1 - its place in the list of those given
  int64_t token, position;
  double log_prob;            // of its whole path
  std::vector<int64_t> path;  // cells of its ancestors below the line, and then its own; none at the line's end
};

// The likeliest first; of equals the one that was pushed first.
struct Entry {
  double cost;
  int64_t number, node;

  bool operator>(const Entry& other) const {
    return cost > other.cost || (cost == other.cost && number > other.number);
  }
};

struct Session {
  int64_t slot, line_end, width, credit, max_length, vocab_size, num_blocks, num_free, num_unfed;
  const int64_t* blocks;
  const int64_t* free_cells;
  const int64_t* unfed;  // the last tokens of the line, if its end is still to be expanded
  double log_root, log_floor;
  const double* log_acceptances;
  int64_t num_pushed = 0, num_taken = 0, num_fed = 0;
  std::vector<Entry> frontier;

  void push(double log_prob, int64_t node) {
    frontier.push_back({-log_prob, ++num_pushed, node});
    std::push_heap(frontier.begin(), frontier.end(), std::greater<>());
  }

  // Logarithm of the chance that its most promising node is reached; minus infinity if none may be expanded.
  double best() const {
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    if (credit < (num_taken + 1) * width || num_fed + num_taken == num_free || frontier.empty()) return kNone;
    const double worth = -frontier.front().cost - log_root;
    return worth >= log_floor ? worth : kNone;
  }

  int64_t take() {
    std::pop_heap(frontier.begin(), frontier.end(), std::greater<>());
    const int64_t node = frontier.back().node;
    frontier.pop_back();
    ++num_taken;
    return node;
  }
};

at::Tensor listed(const std::vector<int64_t>& numbers) {
  at::Tensor list = at::empty({static_cast<int64_t>(numbers.size())}, at::kLong);
  std::copy(numbers.begin(), numbers.end(), list.mutable_data_ptr<int64_t>());
  return list;
}

class Levels : public torch::CustomClassHolder {
 public:
  // `integers` and `reals` are what Python wrote; `shaping` and `seeds` are those of `best_of`. Levels follow one another
  // while the first number of `arrivals`, which another thread may write, is what Python says that it was, and a level is
  // wanted while the second one is.
  Levels(at::Tensor integers, at::Tensor reals, at::Tensor shaping, at::Tensor seeds, at::Tensor arrivals)
      : integers_(std::move(integers)),
        reals_(std::move(reals)),
        shaping_(std::move(shaping)),
        seeds_(std::move(seeds)),
        arrivals_(std::move(arrivals)) {
    Reader<int64_t> numbers(integers_);
    Reader<double> values(reals_);
    engine_ = numbers.one();
    scratch_cell_ = numbers.one();
    block_cells_ = numbers.one();
    num_read_ = numbers.one();
    num_void_ = numbers.one();
    most_ = numbers.one();
    num_edges_ = numbers.one();
    const int64_t num_bins = numbers.one();
    num_sizes_ = most_ + numbers.one();
    sizes_ = numbers.many(num_sizes_);
    row_sizes_ = numbers.many(most_);
    seconds_ = values.many(most_);
    edges_ = values.many(num_edges_);
    num_ranks_ = num_bins / (num_edges_ + 1);
    sessions_.resize(numbers.one());
    for (int64_t s = 0; s < static_cast<int64_t>(sessions_.size()); ++s) {
      Session& session = sessions_[s];
      for (int64_t* each : {&session.slot, &session.line_end, &session.width, &session.credit, &session.max_length,
                            &session.vocab_size, &session.num_blocks, &session.num_free, &session.num_unfed})
        *each = numbers.one();
      session.blocks = numbers.many(session.num_blocks);
      session.free_cells = numbers.many(session.num_free);
      session.unfed = numbers.many(session.num_unfed);
      session.log_root = values.one();
      session.log_floor = values.one();
      session.log_acceptances = values.many(num_bins);
      width_ = std::max(width_, session.width);
      for (int64_t num_open = numbers.one(); num_open > 0; --num_open) {
        const int64_t token = numbers.one(), position = numbers.one(), depth = numbers.one();
        const int64_t* path = numbers.many(depth);
        const int64_t place = static_cast<int64_t>(nodes_.size());
        nodes_.push_back({s, -1 - place, token, position, values.one(), {path, path + depth}});
        session.push(nodes_.back().log_prob, place);
      }
    }
  }

  // Chooses the nodes of the next level, of which up to `num_levels` have been taken since `found`; its inputs for the
  // forward pass, or none if no level is to follow. None begins later than `within` seconds after the first one.
  std::vector<at::Tensor> next(int64_t num_levels, double within) {
    const int64_t num_done = static_cast<int64_t>(level_sizes_.size());
    if (is_over_ || num_done == num_levels) return {};
    started_ = Clock::now();
    if (num_done == 0) first_started_ = started_;
    if (num_done > 0 && (has_mail() || seconds(started_ - first_started_) > within)) return {};
    choose();
    if (level_.empty()) return {};
    return inputs();
  }

  // What the pass made of the level: logits of its nodes, and of padding after them.
  void take(at::Tensor all_logits) {
    if (!is_wanted()) {
      is_over_ = true;
      return;
    }
    const int64_t num_nodes = static_cast<int64_t>(level_.size());
    const at::Tensor logits = all_logits.narrow(0, 0, num_nodes);
    std::vector<int64_t> slots, positions;
    for (int64_t row = 0; row < num_nodes; ++row) {
      const Node& node = nodes_[level_[row]];
      const Session& session = sessions_[node.session];
      slots.push_back(session.slot);
      positions.push_back(node.position + 1);
      if (const int64_t num_beyond = logits.size(1) - session.vocab_size; num_beyond > 0)
        logits.select(0, row).narrow(0, session.vocab_size, num_beyond).fill_(-std::numeric_limits<double>::infinity());
    }
    const int64_t width = std::max<int64_t>(width_, 2);
    const auto [token_ids, scores] = outrider::best_of(logits, shaping_, seeds_, slots, positions, width);
    for (int64_t row = 0; row < num_nodes; ++row)
      expand(level_[row], token_ids.const_data_ptr<int64_t>() + row * width, scores.const_data_ptr<double>() + row * width,
             width);
    for (Session& session : sessions_) session.num_taken = 0;
    level_sizes_.push_back(num_nodes);
    level_seconds_.push_back(seconds(Clock::now() - started_));
  }

  // Levels as `next` has them, each a pass of the package with that number.
  std::tuple<at::Tensor, at::Tensor> run(int64_t package, int64_t num_levels, double within) {
    for (auto each = next(num_levels, within); !each.empty(); each = next(num_levels, within))
      take(passed(package, std::move(each)));
    return found();
  }

  // What was taken since the last time: the number of levels, of each its nodes, and of each node: origin, session,
  // token, position, own cell, cell of its parent, number of guesses (kDoubtful: none were made), their tokens, and their
  // bins. Beside them the seconds of each level.
  std::tuple<at::Tensor, at::Tensor> found() {
    std::vector<int64_t> numbers{static_cast<int64_t>(level_sizes_.size())};
    numbers.insert(numbers.end(), level_sizes_.begin(), level_sizes_.end());
    numbers.insert(numbers.end(), found_.begin(), found_.end());
    at::Tensor reals = at::empty({static_cast<int64_t>(level_seconds_.size())}, at::kDouble);
    std::copy(level_seconds_.begin(), level_seconds_.end(), reals.mutable_data_ptr<double>());
    level_sizes_.clear();
    found_.clear();
    level_seconds_.clear();
    return {listed(numbers), reals};
  }

 private:
  static double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

  bool has_mail() const { return !outrider::is_still(arrivals_.const_data_ptr<int64_t>(), num_read_); }

  bool is_wanted() const { return outrider::is_still(arrivals_.const_data_ptr<int64_t>() + 1, num_void_); }

  at::Tensor passed(int64_t package, std::vector<at::Tensor> inputs) const {
    const outrider::WantedWhile pass(arrivals_.const_data_ptr<int64_t>() + 1, num_void_);
    return outrider::run_package(package, std::move(inputs)).at(0);
  }

  // It has no cell among those of the tree.
  bool is_line_end(const Node& node) const { return node.position < sessions_[node.session].line_end; }

  // See `choose_expansions`.
  void choose() {
    std::vector<int64_t> taken;
    double total = 0.0, best_total = 0.0, best_seconds = 1.0;
    size_t best_num = 0;
    while (static_cast<int64_t>(taken.size()) < most_) {
      Session* first = nullptr;
      double best = -std::numeric_limits<double>::infinity();
      for (Session& session : sessions_)
        if (const double worth = session.best(); worth > best) {
          best = worth;
          first = &session;
        }
      if (first == nullptr) break;
      taken.push_back(first->take());
      total += std::exp(best);
      const double seconds = seconds_[taken.size() - 1];
      if (total * best_seconds >= best_total * seconds) {
        best_num = taken.size();
        best_total = total;
        best_seconds = seconds;
      }
    }
    for (size_t i = best_num; i < taken.size(); ++i) {
      Session& session = sessions_[nodes_[taken[i]].session];
      --session.num_taken;
      session.push(nodes_[taken[i]].log_prob, taken[i]);
    }
    taken.resize(best_num);
    std::stable_sort(taken.begin(), taken.end(), [this](int64_t one, int64_t other) {
      return nodes_[one].session < nodes_[other].session;
    });
    level_ = std::move(taken);
  }

  // See `described` in outrider/engine/attention/native.py: each node sees the line and its path, and tokens of the line
  // what stands before them.
  std::vector<at::Tensor> inputs() {
    const int64_t num_nodes = static_cast<int64_t>(level_.size());
    std::vector<int64_t> token_ids, positions, rows, write_cells, limits, offsets{0}, path_cells, spans, blocks;
    const auto feed = [&](const Session& session, int64_t token, int64_t position, int64_t cell, int64_t limit) {
      token_ids.push_back(token);
      positions.push_back(position);
      write_cells.push_back(session.blocks[cell / block_cells_] * block_cells_ + cell % block_cells_);
      limits.push_back(limit);
      offsets.push_back(static_cast<int64_t>(path_cells.size()));
    };
    for (int64_t row = 0; row < num_nodes; ++row) {
      Node& node = nodes_[level_[row]];
      Session& session = sessions_[node.session];
      if (row == 0 || nodes_[level_[row - 1]].session != node.session) {
        const int64_t first = static_cast<int64_t>(token_ids.size());
        spans.insert(spans.end(), {first, first, static_cast<int64_t>(blocks.size())});
        blocks.insert(blocks.end(), session.blocks, session.blocks + session.num_blocks);
      }
      if (is_line_end(node)) {
        for (int64_t place = session.line_end - session.num_unfed; place < session.line_end; ++place)
          feed(session, session.unfed[place - session.line_end + session.num_unfed], place, place, place + 1);
      } else {
        const int64_t cell = session.free_cells[session.num_fed++];
        node.path.push_back(cell);
        path_cells.insert(path_cells.end(), node.path.begin(), node.path.end());
        feed(session, node.token, node.position, cell, session.line_end);
      }
      spans[spans.size() - 2] = static_cast<int64_t>(token_ids.size());
      rows.push_back(spans[spans.size() - 2] - 1);
    }
    const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
    TORCH_CHECK(num_tokens <= num_sizes_, "a level feeds ", num_tokens, " tokens, and at most ", num_sizes_,
                " are expected");
    const int64_t size = sizes_[num_tokens - 1];
    token_ids.resize(size, kPaddingToken);
    positions.resize(size, 0);
    write_cells.resize(size, scratch_cell_);
    limits.resize(size, 0);
    offsets.resize(size + 1, static_cast<int64_t>(path_cells.size()));
    rows.resize(row_sizes_[num_nodes - 1], 0);
    std::vector<int64_t> description{engine_, static_cast<int64_t>(spans.size()) / 3};
    for (const auto* part : {&write_cells, &limits, &offsets, &spans, &path_cells, &blocks})
      description.insert(description.end(), part->begin(), part->end());
    return {listed(token_ids), listed(positions), listed(rows), listed(description)};
  }

  // See `DraftSession.expand`.
  void expand(int64_t place, const int64_t* token_ids, const double* scores, int64_t num_scores) {
    const int64_t index = num_expanded_++;
    const Node parent = nodes_[place];
    Session& session = sessions_[parent.session];
    int64_t num_known = 0;
    while (num_known < num_scores && scores[num_known] > -std::numeric_limits<double>::infinity()) ++num_known;
    const bool is_doubtful = num_known > 0 && token_ids[0] < 0;
    const int64_t num_guesses = std::min(num_known, session.width);
    const int64_t depth = static_cast<int64_t>(parent.path.size()), tip = session.line_end - 1;
    found_.insert(found_.end(), {parent.origin, parent.session, parent.token, parent.position,
                                 depth > 0 ? parent.path[depth - 1] : tip, depth > 1 ? parent.path[depth - 2] : tip,
                                 is_doubtful ? kDoubtful : num_guesses});
    if (is_doubtful) {
      is_over_ = true;
      return;
    }
    found_.insert(found_.end(), token_ids, token_ids + num_guesses);
    std::vector<std::pair<double, int64_t>> guesses;  // logarithm of their chances, token ids
    for (int64_t rank = 0; rank < num_guesses; ++rank) {
      double margin = scores[0] - scores[rank];
      if (rank == 0) margin = num_known > 1 ? scores[0] - scores[1] : std::numeric_limits<double>::infinity();
      const int64_t bucket = std::lower_bound(edges_, edges_ + num_edges_, margin) - edges_;
      const int64_t bin = std::min(rank, num_ranks_ - 1) * (num_edges_ + 1) + bucket;
      guesses.emplace_back(session.log_acceptances[bin], token_ids[rank]);
      found_.push_back(bin);
    }
    std::stable_sort(guesses.begin(), guesses.end(), [](const auto& one, const auto& other) {
      return one.first > other.first;
    });
    const double floor = session.log_floor + session.log_root - parent.log_prob;
    for (const auto& [log_prob, token] : guesses) {
      if (log_prob < floor) break;
      --session.credit;
      if (parent.position + 2 >= session.max_length) continue;
      nodes_.push_back({parent.session, index, token, parent.position + 1, parent.log_prob + log_prob, parent.path});
      session.push(nodes_.back().log_prob, static_cast<int64_t>(nodes_.size()) - 1);
    }
  }

  const at::Tensor integers_, reals_, shaping_, seeds_, arrivals_;
  int64_t engine_, scratch_cell_, block_cells_, num_read_, num_void_, most_, num_sizes_, num_edges_, num_ranks_;
  int64_t width_ = 0;
  const int64_t* sizes_;      // for each number of tokens how many the pass has then
  const int64_t* row_sizes_;  // for each number of nodes how many wanted rows
  const double* seconds_;     // and how long a level takes
  const double* edges_;
  std::vector<Session> sessions_;
  std::vector<Node> nodes_;
  std::vector<int64_t> level_;  // the nodes of the level in progress, session after session
  Clock::time_point started_, first_started_;
  bool is_over_ = false;
  int64_t num_expanded_ = 0;
  std::vector<int64_t> level_sizes_, found_;
  std::vector<double> level_seconds_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.class_<Levels>("Levels")
      .def(torch::init<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>())
      .def("next", &Levels::next)
      .def("take", &Levels::take)
      .def("run", &Levels::run)
      .def("found", &Levels::found);
}
