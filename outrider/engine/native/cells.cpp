// Moving cells of a KV cache: a handful of copies of some hundred bytes each, for which tensors of indices cost far more.

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstring>
#include <vector>

namespace {

// Each storage is [planes, cells, ...]. Every source is read before any destination is written.
void move_cells(at::TensorList storages, at::IntArrayRef sources, at::IntArrayRef destinations) {
  TORCH_CHECK(sources.size() == destinations.size(), "each cell that moves needs a destination");
  std::vector<uint8_t> moving;
  for (const at::Tensor& storage : storages) {
    TORCH_CHECK(storage.is_contiguous(), "a cell must be contiguous");
    const size_t cell_bytes = storage.stride(1) * storage.element_size(), plane_bytes = storage.size(1) * cell_bytes;
    moving.resize(sources.size() * cell_bytes);
    auto* plane = static_cast<uint8_t*>(storage.mutable_data_ptr());
    for (int64_t number = 0; number < storage.size(0); ++number, plane += plane_bytes) {
      for (size_t i = 0; i < sources.size(); ++i)
        std::memcpy(&moving[i * cell_bytes], plane + sources[i] * cell_bytes, cell_bytes);
      for (size_t i = 0; i < sources.size(); ++i)
        std::memcpy(plane + destinations[i] * cell_bytes, &moving[i * cell_bytes], cell_bytes);
    }
  }
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("move_cells(Tensor(a!)[] storages, int[] sources, int[] destinations) -> ()");
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) { library.impl("move_cells", &move_cells); }
