// Ragged tree attention on a CPU: what outrider/engine/attention.py does with masks, done from lists of cells.
//
// A token of a session sees the first `limit` cells of its slot, which hold the line, and then the cells of its path.
// Where in the caches a cell lies is looked up in the list of the slot's blocks, and changes nothing that is computed. No
// mask is built, so nothing grows with the context but that list and the arithmetic itself. Up to sixteen (token, head)
// pairs that share a key head are one group, which reads the line's keys and values once. Scores are computed for sixteen
// positions at a time, one in each lane, from keys turned so that a vector holds one number of sixteen keys. What is
// computed of a pair, and in which order, depends on its own line and path alone, never on who shares its group; and a
// token that has moved from the tree into the line is met at the same position, in the same lane: logits do not depend on
// the batch as far as attention is concerned.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "direct.h"
#include "scores.h"

namespace {

using namespace outrider;

constexpr int64_t kPairsPerGroup = 16;   // that share one reading of keys and values
constexpr int64_t kVectorsAtOnce = 4;    // of an output that stay in registers while values stream by
constexpr int64_t kValuesAtOnce = 32;    // cells whose values, made float32, stay in a first-level cache

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
  std::vector<Floats> keys, scores, values, outputs;
  std::vector<float> queries;
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

// One (token, head) pair, and where it looks: at the positions from `start` to `limit` of the line, and from there to
// `end`, which are those of its path; of them only what is at `window_start` or after it.
struct Pair {
  int64_t token, head, start, limit, end, window_start;
  const int64_t* path;
};

// Adds the weighted values of the cells from `from` to `to` to `kNum` vectors of an output.
template <int64_t kNum>
void add(const Floats* values, int64_t num_vectors, int64_t from, int64_t to, const float* weights, Floats* outputs) {
  Floats sums[kNum];
  std::memcpy(sums, outputs, sizeof(sums));
  for (int64_t cell = from; cell < to; ++cell)
    for (int64_t v = 0; v < kNum; ++v) sums[v] += values[cell * num_vectors + v] * weights[cell];
  std::memcpy(outputs, sums, sizeof(sums));
}

// One group: up to kPairsPerGroup pairs of one session and one key head.
template <typename T>
void attend_group(const Layer<T>& layer, const Batch& batch, const Places& places, int64_t key_head,
                  int64_t first_token, int64_t first_pair, int64_t num_pairs, Workspace& space) {
  const int64_t key_width = padded(layer.key_size), num_vectors = padded(layer.value_size) / kLanes;
  const T* keys = layer.keys + key_head * layer.key_head_stride;
  const T* values = layer.values + key_head * layer.value_head_stride;

  Pair pairs[kPairsPerGroup];
  int64_t begin = std::numeric_limits<int64_t>::max(), line_end = 0, end = 0;
  space.queries.resize(kPairsPerGroup * key_width);
  for (int64_t index = 0; index < num_pairs; ++index) {
    const int64_t token = first_token + (first_pair + index) / layer.heads_per_key;
    const int64_t head = key_head * layer.heads_per_key + (first_pair + index) % layer.heads_per_key;
    const int64_t limit = batch.limits[token];
    const int64_t seen = limit + batch.path_offsets[token + 1] - batch.path_offsets[token];
    const int64_t window_start = layer.window > 0 ? std::max<int64_t>(seen - layer.window, 0) : 0;
    pairs[index] = {token,        head, std::min(window_start, limit), limit, seen,
                    window_start, batch.path_cells + batch.path_offsets[token]};
    begin = std::min(begin, pairs[index].start);
    line_end = std::max(line_end, limit);
    end = std::max(end, seen);
    const T* query = layer.query + head * layer.query_head_stride + token * layer.query_token_stride;
    float* numbers = &space.queries[index * key_width];
    widen(query, numbers, layer.key_size, key_width);
    for (int64_t i = 0; i < layer.key_size; ++i) numbers[i] *= layer.scale;
  }
  begin -= begin % kLanes;
  const int64_t num_tiles = padded(end - begin) / kLanes;
  const auto scores_of = [&](int64_t index) { return &space.scores[index * num_tiles]; };
  const auto score_at = [&](int64_t index, int64_t position) {
    return reinterpret_cast<float*>(scores_of(index)) + position - begin;
  };

  // Scores of the line's positions, then of the paths', and nothing for what is not seen.
  space.keys.resize(kTilesAtOnce * key_width);
  space.scores.resize(kPairsPerGroup * num_tiles);
  const int64_t num_line_tiles = padded(std::max<int64_t>(line_end - begin, 0)) / kLanes;
  for (int64_t tile = 0; tile < num_line_tiles;) {
    const int64_t num = num_line_tiles - tile < kTilesAtOnce ? 1 : kTilesAtOnce;
    for (int64_t t = 0; t < num; ++t) {
      const int64_t position = begin + (tile + t) * kLanes;
      const T* some = keys + places[position] * layer.key_cell_stride;
      turn_keys(std::min(kLanes, line_end - position), layer.key_size,
                [&](int64_t cell) { return some + cell * layer.key_cell_stride; }, &space.keys[t * key_width]);
    }
    (num == 1 ? score_all<1> : score_all<kTilesAtOnce>)(space.keys.data(), space.queries.data(), num_pairs, key_width,
                                                       &space.scores[tile], num_tiles);
    tile += num;
  }
  for (int64_t index = 0; index < num_pairs; ++index) {
    const Pair& pair = pairs[index];
    for (int64_t position = pair.limit; position < pair.end; position += kLanes) {
      const int64_t num = std::min(kLanes, pair.end - position);
      if (index == 0 || pair.token != pairs[index - 1].token || pair.end - pair.limit > kLanes)
        turn_keys(num, layer.key_size,
                  [&](int64_t cell) {
                    return keys + places[pair.path[position - pair.limit + cell]] * layer.key_cell_stride;
                  },
                  space.keys.data());
      Floats sums;
      score<1, 1>(space.keys.data(), &space.queries[index * key_width], key_width, &sums, 1);
      std::memcpy(score_at(index, position), &sums, num * sizeof(float));
    }
    std::fill(score_at(index, begin), score_at(index, std::max(begin, pair.window_start)), kNothing);
    std::fill(score_at(index, pair.end), score_at(index, begin + num_tiles * kLanes), kNothing);
    if (layer.softcap > 0.0f)
      for (float* at = score_at(index, pair.window_start); at < score_at(index, pair.end); ++at)
        *at = std::tanh(*at / layer.softcap) * layer.softcap;
  }

  float totals[kPairsPerGroup];
  for (int64_t index = 0; index < num_pairs; ++index)
    totals[index] = weigh(scores_of(index), num_tiles, layer.sinks ? layer.sinks[pairs[index].head] : kNothing);

  // Values, in the order of the positions.
  space.values.resize(kValuesAtOnce * num_vectors);
  space.outputs.assign(num_pairs * num_vectors, Floats{});
  for (int64_t first = begin; first < line_end; first += kValuesAtOnce) {
    const int64_t last = std::min(first + kValuesAtOnce, line_end);
    for (int64_t position = first; position < last; ++position) {
      const T* value = values + places[position] * layer.value_cell_stride;
      for (int64_t v = 0; v < num_vectors; ++v)
        space.values[(position - first) * num_vectors + v] = loaded(value + v * kLanes, layer.value_size - v * kLanes);
    }
    for (int64_t index = 0; index < num_pairs; ++index) {
      const int64_t from = std::max(first, pairs[index].start), to = std::min(last, pairs[index].limit);
      const float* weights = score_at(index, 0);
      Floats* outputs = &space.outputs[index * num_vectors];
      int64_t vector = 0;
      for (; vector + kVectorsAtOnce <= num_vectors; vector += kVectorsAtOnce)
        add<kVectorsAtOnce>(&space.values[vector], num_vectors, from - first, to - first, weights + first,
                            outputs + vector);
      for (; vector < num_vectors; ++vector)
        add<1>(&space.values[vector], num_vectors, from - first, to - first, weights + first, outputs + vector);
    }
  }
  for (int64_t index = 0; index < num_pairs; ++index) {
    const Pair& pair = pairs[index];
    Floats* outputs = &space.outputs[index * num_vectors];
    for (int64_t position = std::max(pair.limit, pair.window_start); position < pair.end; ++position) {
      const T* value = values + places[pair.path[position - pair.limit]] * layer.value_cell_stride;
      const float weight = *score_at(index, position);
      for (int64_t v = 0; v < num_vectors; ++v)
        outputs[v] += loaded(value + v * kLanes, layer.value_size - v * kLanes) * weight;
    }
    const float* sums = reinterpret_cast<const float*>(outputs);
    T* output = layer.output + pair.token * layer.output_token_stride + pair.head * layer.output_head_stride;
    const float share = 1.0f / totals[index];
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
  const int64_t num_attending = batch.num_sessions == 0 ? 0 : batch.sessions[3 * batch.num_sessions - 2];
  std::fill(layer.output + num_attending * output.stride(0), layer.output + output.numel(), T{});  // padding
  for (int64_t session = 0; session < batch.num_sessions; ++session) {
    const int64_t* row = batch.sessions + 3 * session;
    const Places places{batch.blocks + row[2], caches.block_shift};
    const int64_t num_pairs = (row[1] - row[0]) * layer.heads_per_key;
    for (int64_t head = 0; head < num_kv_heads; ++head)
      for (int64_t pair = 0; pair < num_pairs; pair += kPairsPerGroup)
        groups.push_back({places, head, row[0], pair, std::min(kPairsPerGroup, num_pairs - pair)});
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
    const auto found = engines.find(batch.engine);
    TORCH_CHECK(found != engines.end(), "no caches of an engine ", batch.engine);
    caches = &found->second;
  }
  at::Tensor output = at::detail::empty_cpu({query.size(1), query.size(0), value.size(2)}, query.scalar_type());
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
  TORCH_CHECK(block_cells >= kLanes && std::has_single_bit(static_cast<uint64_t>(block_cells)),
              "the cells of a block are a power of two, and ", kLanes, " at least");
  const int64_t block_shift = std::countr_zero(static_cast<uint64_t>(block_cells));
  const std::lock_guard<std::mutex> lock(engines_mutex);
  engines[engine] = Caches{keys.vec(), values.vec(), windows.vec(), block_shift};
}

void forget_caches(int64_t engine) {
  const std::lock_guard<std::mutex> lock(engines_mutex);
  engines.erase(engine);
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_ragged_attention(AtenTensorHandle query, AtenTensorHandle key,
                                                          AtenTensorHandle value, AtenTensorHandle description,
                                                          int64_t layer, double scale, double softcap,
                                                          const AtenTensorHandle* sinks, AtenTensorHandle* output) {
  return call(ragged_attention, output, query, key, value, description, layer, scale, softcap, sinks);
}

TORCH_LIBRARY(outrider_native, library) {
  library.def(
      "ragged_attention(Tensor query, Tensor key, Tensor value, Tensor batch, int layer, float scale, float softcap, "
      "Tensor? sinks) -> Tensor");
  library.def("set_caches(int engine, Tensor[] keys, Tensor[] values, int[] windows, int block_cells) -> ()",
              &set_caches);
  library.def("forget_caches(int engine) -> ()", &forget_caches);
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) { library.impl("ragged_attention", &ragged_attention); }
