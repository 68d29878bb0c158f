// Ragged tree attention on a CPU: what outrider/engine/attention.py does with masks, done from lists of cells.
//
// A token of a session sees the first `limit` cells of its slot, which hold the line, and then the cells of its path.
// Where in the caches a cell lies is looked up in the list of the slot's blocks, and changes nothing that is computed. No
// mask is built, so nothing grows with the context but that list and the arithmetic itself. Sixteen (token, head) pairs
// that share a key head are one group, and each has a lane of a vector. What a lane computes, and in which order, depends
// on its own line and path alone, never on who shares its group, and a token that has moved from the tree into the line
// is met in the same order as before: logits do not depend on the batch as far as attention is concerned.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "lanes.h"

namespace {

using namespace outrider;

constexpr int64_t kCellsAtOnce = 8;   // independent sums, so that additions need not wait for one another; in one block
constexpr int64_t kLanesAtOnce = 4;   // lanes whose outputs stay in registers while values stream by
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// One engine's caches, [num_cells, num_kv_heads, size] for each layer, the layers' sliding windows (0: none), and the
// base-2 logarithm of the number of cells of a block.
struct Caches {
  std::vector<at::Tensor> keys, values;
  std::vector<int64_t> windows;
  int64_t block_shift;
};

std::mutex engines_mutex;
std::unordered_map<int64_t, Caches> engines;

// A view of the flat list of integers that describes one batch; NativeBatch in native.py writes it.
struct Batch {
  int64_t engine, num_sessions;
  const int64_t* write_cells;   // [N] into the caches
  const int64_t* limits;        // [N]
  const int64_t* path_offsets;  // [N + 1] into path_cells
  const int64_t* sessions;      // [num_sessions, 3]: first token, one past the last, index of the first block
  const int64_t* path_cells;    // within the slot, from the one below the line to the token's own
  const int64_t* blocks;        // of all sessions

  Batch(const at::Tensor& description, int64_t num_tokens) {
    const int64_t* numbers = description.const_data_ptr<int64_t>();
    engine = numbers[0];
    num_sessions = numbers[1];
    write_cells = numbers + 2;
    limits = write_cells + num_tokens;
    path_offsets = limits + num_tokens;
    sessions = path_offsets + num_tokens + 1;
    path_cells = sessions + 3 * num_sessions;
    blocks = path_cells + path_offsets[num_tokens];
  }
};

// Where a slot's cells lie in the caches.
struct Places {
  const int64_t* blocks;
  int64_t shift;

  int64_t operator[](int64_t cell) const { return (blocks[cell >> shift] << shift) + (cell & ((1 << shift) - 1)); }
};

// What the groups of one thread work in; grown as needed and kept.
struct Workspace {
  std::vector<Floats> queries, scores;
  std::vector<float> keys, values, outputs;
};

template <typename T>
struct Layer {
  const T* query;
  int64_t query_head_stride, query_token_stride;
  T* output;
  int64_t output_token_stride, output_head_stride;
  const T* keys;
  const T* values;
  int64_t key_cell_stride, key_head_stride, value_cell_stride, value_head_stride;
  int64_t key_size, value_size, heads_per_key, window;
  float scale, softcap;
  const float* sinks;  // [H], or null
};

// One group: up to 16 (token, head) pairs of one session and one key head.
template <typename T>
void attend_group(const Layer<T>& layer, const Batch& batch, const Places& places, int64_t key_head,
                  int64_t first_token, int64_t first_pair, int64_t num_pairs, Workspace& space) {
  const int64_t padded_value_size = (layer.value_size + kLanes - 1) / kLanes * kLanes;
  const T* keys = layer.keys + key_head * layer.key_head_stride;
  const T* values = layer.values + key_head * layer.value_head_stride;

  int64_t token_of[kLanes], head_of[kLanes], num_path[kLanes];
  Ints starts = {}, limits = {};
  int64_t begin = std::numeric_limits<int64_t>::max(), end = 0, end_common = begin, begin_common = 0, longest_path = 0;
  space.queries.assign(layer.key_size, Floats{});
  for (int64_t lane = 0; lane < num_pairs; ++lane) {
    const int64_t token = first_token + (first_pair + lane) / layer.heads_per_key;
    const int64_t head = key_head * layer.heads_per_key + (first_pair + lane) % layer.heads_per_key;
    token_of[lane] = token;
    head_of[lane] = head;
    num_path[lane] = batch.path_offsets[token + 1] - batch.path_offsets[token];
    const int64_t limit = batch.limits[token];
    const int64_t num_seen = limit + num_path[lane];
    const int64_t start = layer.window > 0 ? std::clamp<int64_t>(num_seen - layer.window, 0, limit) : 0;
    starts[lane] = static_cast<int32_t>(start);
    limits[lane] = static_cast<int32_t>(limit);
    begin = std::min(begin, start);
    begin_common = std::max(begin_common, start);
    end = std::max(end, limit);
    end_common = std::min(end_common, limit);
    longest_path = std::max(longest_path, num_path[lane]);
    const T* query = layer.query + head * layer.query_head_stride + token * layer.query_token_stride;
    for (int64_t i = 0; i < layer.key_size; ++i) space.queries[i][lane] = widened(query[i]) * layer.scale;
  }

  begin -= begin % kCellsAtOnce;

  // Scores: first of the line's cells, then of the paths'.
  const int64_t num_line = std::max<int64_t>(end - begin, 0);
  space.scores.assign(num_line + longest_path, all(kNothing));
  space.keys.resize(kCellsAtOnce * layer.key_size);
  for (int64_t cell = begin; cell < end; cell += kCellsAtOnce) {
    const int64_t num_cells = std::min(kCellsAtOnce, end - cell);
    const T* some = keys + places[cell] * layer.key_cell_stride;
    for (int64_t c = 0; c < kCellsAtOnce; ++c)
      widen(some + std::min(c, num_cells - 1) * layer.key_cell_stride, &space.keys[c * layer.key_size], layer.key_size,
            layer.key_size);
    Floats sums[kCellsAtOnce] = {};
    const float* key = space.keys.data();
    for (int64_t i = 0; i < layer.key_size; ++i) {
      const Floats query = space.queries[i];
      for (int64_t c = 0; c < kCellsAtOnce; ++c) sums[c] += query * key[c * layer.key_size + i];
    }
    for (int64_t c = 0; c < num_cells; ++c) {
      const int64_t at = cell + c;
      const bool common = at >= begin_common && at < end_common;
      const Ints place = Ints{} + static_cast<int32_t>(at);
      space.scores[at - begin] = common ? sums[c] : chosen((place >= starts) & (place < limits), sums[c], all(kNothing));
    }
  }
  for (int64_t lane = 0; lane < num_pairs; ++lane) {
    const int64_t* path = batch.path_cells + batch.path_offsets[token_of[lane]];
    const int64_t first = layer.window > 0 ? std::max<int64_t>(num_path[lane] - layer.window, 0) : 0;
    for (int64_t place = first; place < num_path[lane]; ++place) {
      const T* key = keys + places[path[place]] * layer.key_cell_stride;
      float sum = 0.0f;
      for (int64_t i = 0; i < layer.key_size; ++i) sum += space.queries[i][lane] * widened(key[i]);
      space.scores[num_line + place][lane] = sum;
    }
  }
  if (layer.softcap > 0.0f)
    for (Floats& score : space.scores)
      for (int64_t lane = 0; lane < num_pairs; ++lane)
        if (score[lane] != kNothing) score[lane] = std::tanh(score[lane] / layer.softcap) * layer.softcap;

  // Softmax.
  Floats largest = all(std::numeric_limits<float>::lowest()), total = {};
  Floats sinks = all(kNothing);
  if (layer.sinks != nullptr)
    for (int64_t lane = 0; lane < num_pairs; ++lane) sinks[lane] = layer.sinks[head_of[lane]];
  largest = chosen(sinks > largest, sinks, largest);
  for (const Floats& score : space.scores) largest = chosen(score > largest, score, largest);
  total = exponential(sinks - largest);
  for (Floats& score : space.scores) {
    score = exponential(score - largest);
    total += score;
  }

  // Values, four lanes at a time.
  space.values.resize(padded_value_size);
  space.outputs.assign(kLanes * padded_value_size, 0.0f);
  const int64_t num_vectors = padded_value_size / kLanes;
  constexpr int64_t kTile = 32;
  space.values.resize(kTile * padded_value_size);
  for (int64_t tile = 0; tile < num_line; tile += kTile) {
    const int64_t num_cells = std::min(kTile, num_line - tile);
    for (int64_t first = 0; first < num_cells; first += kCellsAtOnce) {
      const T* some = values + places[begin + tile + first] * layer.value_cell_stride;
      for (int64_t c = first; c < std::min(first + kCellsAtOnce, num_cells); ++c)
        widen(some + (c - first) * layer.value_cell_stride, &space.values[c * padded_value_size], layer.value_size,
              padded_value_size);
    }
    for (int64_t lane = 0; lane < num_pairs; lane += kLanesAtOnce)
      for (int64_t v = 0; v < num_vectors; ++v) {
        Floats sums[kLanesAtOnce];
        for (int64_t l = 0; l < kLanesAtOnce; ++l)
          std::memcpy(&sums[l], &space.outputs[(lane + l) * padded_value_size + v * kLanes], sizeof(Floats));
        for (int64_t c = 0; c < num_cells; ++c) {
          Floats value;
          std::memcpy(&value, &space.values[c * padded_value_size + v * kLanes], sizeof(Floats));
          const float* weights = reinterpret_cast<const float*>(&space.scores[tile + c]) + lane;
          for (int64_t l = 0; l < kLanesAtOnce; ++l) sums[l] += value * weights[l];
        }
        for (int64_t l = 0; l < kLanesAtOnce; ++l)
          std::memcpy(&space.outputs[(lane + l) * padded_value_size + v * kLanes], &sums[l], sizeof(Floats));
      }
  }
  for (int64_t lane = 0; lane < num_pairs; ++lane) {
    const int64_t* path = batch.path_cells + batch.path_offsets[token_of[lane]];
    float* sums = &space.outputs[lane * padded_value_size];
    for (int64_t place = 0; place < num_path[lane]; ++place) {
      const T* value = values + places[path[place]] * layer.value_cell_stride;
      const float weight = space.scores[num_line + place][lane];
      for (int64_t i = 0; i < layer.value_size; ++i) sums[i] += widened(value[i]) * weight;
    }
    T* output = layer.output + token_of[lane] * layer.output_token_stride + head_of[lane] * layer.output_head_stride;
    const float share = 1.0f / total[lane];
    for (int64_t i = 0; i < layer.value_size; ++i) output[i] = static_cast<T>(sums[i] * share);
  }
}

template <typename T>
void attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& output, Caches& caches,
            const Batch& batch, int64_t layer_index, double scale, double softcap, const float* sinks) {
  at::Tensor& key_cache = caches.keys[layer_index];
  at::Tensor& value_cache = caches.values[layer_index];
  const int64_t num_tokens = query.size(1), num_kv_heads = key.size(0);
  T* keys = key_cache.mutable_data_ptr<T>();
  T* values = value_cache.mutable_data_ptr<T>();
  for (int64_t token = 0; token < num_tokens; ++token)
    for (int64_t head = 0; head < num_kv_heads; ++head) {
      const int64_t cell = batch.write_cells[token];
      std::copy_n(key.const_data_ptr<T>() + head * key.stride(0) + token * key.stride(1), key.size(2),
                  keys + cell * key_cache.stride(0) + head * key_cache.stride(1));
      std::copy_n(value.const_data_ptr<T>() + head * value.stride(0) + token * value.stride(1), value.size(2),
                  values + cell * value_cache.stride(0) + head * value_cache.stride(1));
    }
  const Layer<T> layer{query.const_data_ptr<T>(), query.stride(0), query.stride(1),
                       output.mutable_data_ptr<T>(), output.stride(0), output.stride(1),
                       keys, values,
                       key_cache.stride(0), key_cache.stride(1), value_cache.stride(0), value_cache.stride(1),
                       key.size(2), value.size(2), query.size(0) / num_kv_heads, caches.windows[layer_index],
                       static_cast<float>(scale), static_cast<float>(softcap), sinks};
  struct Group {
    Places places;
    int64_t key_head, first_token, first_pair, num_pairs;
  };
  std::vector<Group> groups;
  for (int64_t session = 0; session < batch.num_sessions; ++session) {
    const int64_t* row = batch.sessions + 3 * session;
    const Places places{batch.blocks + row[2], caches.block_shift};
    const int64_t num_pairs = (row[1] - row[0]) * layer.heads_per_key;
    for (int64_t head = 0; head < num_kv_heads; ++head)
      for (int64_t pair = 0; pair < num_pairs; pair += kLanes)
        groups.push_back({places, head, row[0], pair, std::min(kLanes, num_pairs - pair)});
  }
  at::parallel_for(0, static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    thread_local Workspace space;
    for (int64_t index = begin; index < end; ++index) {
      const Group& group = groups[index];
      attend_group(layer, batch, group.places, group.key_head, group.first_token, group.first_pair, group.num_pairs,
                   space);
    }
  });
}

at::Tensor ragged_attention(const at::Tensor& query,  // [H, N, key_size]
                            const at::Tensor& key,    // [num_kv_heads, N, key_size]
                            const at::Tensor& value,  // [num_kv_heads, N, value_size]
                            const at::Tensor& description, int64_t layer, double scale, double softcap,
                            const std::optional<at::Tensor>& sinks) {
  TORCH_CHECK(query.stride(2) == 1 && key.stride(2) == 1 && value.stride(2) == 1, "heads must be contiguous");
  const Batch batch(description, query.size(1));
  Caches* caches;
  {
    const std::lock_guard<std::mutex> lock(engines_mutex);
    caches = &engines.at(batch.engine);
  }
  at::Tensor output = at::zeros({query.size(1), query.size(0), value.size(2)}, query.options());
  const at::Tensor sink_scores = sinks.has_value() ? sinks->to(at::kFloat).contiguous() : at::Tensor();
  const float* sink_data = sinks.has_value() ? sink_scores.const_data_ptr<float>() : nullptr;
  switch (query.scalar_type()) {
    case at::kFloat:
      attend<float>(query, key, value, output, *caches, batch, layer, scale, softcap, sink_data);
      break;
    case at::kBFloat16:
      attend<c10::BFloat16>(query, key, value, output, *caches, batch, layer, scale, softcap, sink_data);
      break;
    case at::kHalf:
      attend<c10::Half>(query, key, value, output, *caches, batch, layer, scale, softcap, sink_data);
      break;
    default:
      TORCH_CHECK(false, "ragged attention knows float32, bfloat16 and float16, not ", query.scalar_type());
  }
  return output;
}

void set_caches(int64_t engine, at::TensorList keys, at::TensorList values, at::IntArrayRef windows,
                int64_t block_cells) {
  TORCH_CHECK(block_cells >= kCellsAtOnce && std::has_single_bit(static_cast<uint64_t>(block_cells)),
              "the cells of a block are a power of two, and ", kCellsAtOnce, " at least");
  const int64_t block_shift = std::countr_zero(static_cast<uint64_t>(block_cells));
  const std::lock_guard<std::mutex> lock(engines_mutex);
  engines[engine] = Caches{keys.vec(), values.vec(), windows.vec(), block_shift};
}

void forget_caches(int64_t engine) {
  const std::lock_guard<std::mutex> lock(engines_mutex);
  engines.erase(engine);
}

}  // namespace

TORCH_LIBRARY(outrider_native, library) {
  library.def(
      "ragged_attention(Tensor query, Tensor key, Tensor value, Tensor batch, int layer, float scale, float softcap, "
      "Tensor? sinks) -> Tensor");
  library.def("set_caches(int engine, Tensor[] keys, Tensor[] values, int[] windows, int block_cells) -> ()",
              &set_caches);
  library.def("forget_caches(int engine) -> ()", &forget_caches);
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) { library.impl("ragged_attention", &ragged_attention); }
