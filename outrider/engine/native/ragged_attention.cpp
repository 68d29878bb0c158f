// Ragged tree attention on a CPU: what outrider/engine/attention/by_session.py does with masks, done from lists of cells.
//
// A token of a session sees the first `limit` cells of its slot, which hold the line, and then the cells of its path.
// Where in the caches a cell lies is looked up in the list of the slot's blocks, and changes nothing that is computed. No
// mask is built, so nothing grows with the context but that list and the arithmetic itself. Up to sixteen (token, head)
// pairs of a session are one group, which reads the line's keys and values once; the groups are computed in tiles
// (tile_attention.h), in vectors of bfloat16 (dot_attention.h) or in those of float32 (lane_attention.h). What is
// computed of a pair, and in which order, depends on its own line and path alone, never on who shares its group; and a
// token that has moved from the tree into the line is met at the same position: logits do not depend on the batch as far
// as attention is concerned.

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <bit>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "direct.h"
#include "dot_attention.h"
#include "lane_attention.h"
#include "team.h"
#include "tile_attention.h"

namespace {

using namespace outrider;

// One engine's caches, [num_cells, num_kv_heads, size] for each layer, the layers' sliding windows (0: none), and the
// base-2 logarithm of the number of cells of a block.
struct Caches {
  std::vector<at::Tensor> keys, values;
  std::vector<int64_t> windows;
  int64_t block_shift;
};

std::mutex engines_mutex;
std::unordered_map<int64_t, Caches> engines;

#ifdef __AVX512BF16__
template <typename T>
using VectorAttention = std::conditional_t<std::is_same_v<T, c10::BFloat16>, DotAttention, LaneAttention<T>>;
#else
template <typename T>
using VectorAttention = LaneAttention<T>;
#endif

// All groups, on all threads: `On` computes them. One of several heads has a thread's share of them at most.
template <typename On, typename T>
void attend_all(const Layer<T>& layer, const Batch& batch, int64_t num_kv_heads, int64_t block_shift) {
  const int64_t heads_most = On::kTakesManyHeads ? (num_kv_heads + num_threads() - 1) / num_threads() : 1;
  std::vector<Group> groups;
  for (int64_t session = 0; session < batch.num_sessions; ++session) {
    const int64_t* row = batch.sessions + 3 * session;
    const Places places{batch.blocks + row[2], block_shift};
    const int64_t num_pairs = (row[1] - row[0]) * layer.heads_per_key;
    const int64_t num_heads = std::min(heads_most, kPairsPerGroup / std::clamp<int64_t>(num_pairs, 1, kPairsPerGroup));
    for (int64_t head = 0; head < num_kv_heads; head += num_heads)
      for (int64_t pair = 0; pair < num_pairs; pair += kPairsPerGroup)
        groups.push_back({places, head, std::min(num_heads, num_kv_heads - head), row[0], pair,
                          std::min(kPairsPerGroup, num_pairs - pair)});
  }
  share(static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    thread_local On attend;
    for (int64_t index = begin; index < end; ++index) attend(layer, batch, groups[index]);
    if constexpr (requires { attend.release(); }) attend.release();
  });
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
  const int64_t num_attending = batch.num_sessions == 0 ? 0 : batch.sessions[3 * batch.num_sessions - 2];
  std::fill(layer.output + num_attending * output.stride(0), layer.output + output.numel(), T{});  // padding
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    if (TileAttention::fits(layer)) return attend_all<TileAttention>(layer, batch, num_kv_heads, caches.block_shift);
#endif
  attend_all<VectorAttention<T>>(layer, batch, num_kv_heads, caches.block_shift);
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
