// Products of few rows with a matrix, and the gated perceptron that most language models are made of: three of them.

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <optional>

#include "direct.h"
#include "functions.h"
#include "product.h"

namespace {

using namespace outrider;

using OptionalTensor = std::optional<at::Tensor>;

// What the calling thread multiplies, kept from one product to the next: as large as its largest.
thread_local std::vector<Line> input_space, inner_space;

// y[row][output] = bias[output] + sum over k of x[row][k] weight[output][k].
template <typename On, typename T>
void multiply(const Rows& rows, const Weight<T>& weight, T* y) {
  const int64_t last = weight.num_panels() - 1;
  multiply_all<On>(
      rows, weight.num_panels() / 2 + weight.num_panels() % 2,
      [&](int64_t pair) {
        return Panels{weight.panel(2 * pair), weight.panel(std::min(2 * pair + 1, last))};
      },
      [&](int64_t pair, int64_t row, Floats left, Floats right) {
        T* numbers = y + row * weight.num_outputs + 2 * pair * kLanes;
        put(weight.biased(left, 2 * pair), numbers, weight.size_of(2 * pair));
        if (2 * pair < last) put(weight.biased(right, 2 * pair + 1), numbers + kLanes, weight.size_of(2 * pair + 1));
      });
}

// silu(x gate') * (x up'), as rows for the next product: neither of the two is ever written.
template <typename On, typename T>
Rows gated(const Rows& rows, const Weight<T>& gate, const Weight<T>& up) {
  const Rows inner = made_rows(rows.num_rows, up.num_outputs * static_cast<int64_t>(sizeof(T)), inner_space);
  multiply_all<On>(
      rows, up.num_panels(), [&](int64_t pair) { return Panels{gate.panel(pair), up.panel(pair)}; },
      [&](int64_t pair, int64_t row, Floats left, Floats right) {
        const int64_t word = pair * kLanes * static_cast<int64_t>(sizeof(T)) / kWordBytes;
        put(silu(gate.biased(left, pair)) * up.biased(right, pair), reinterpret_cast<T*>(On::place(inner, row, word)),
            up.size_of(pair));
      });
  return inner;
}

// Calls `work` with the kernels for rows of numbers of `type`, if each of `sizes` bytes can be a row.
template <typename Work>
void with_kernels(at::ScalarType type, std::initializer_list<int64_t> sizes, const Work& work) {
  if (type == at::kFloat) return work.template operator()<OnLanes<float>, float>();
#ifdef __AVX512BF16__
  if (type == at::kBFloat16) {
#ifdef __AMX_BF16__
    if (has_tiles && std::ranges::all_of(sizes, [](int64_t size) { return size % kLineBytes == 0; }))
      return work.template operator()<OnTiles, c10::BFloat16>();
#endif
    return work.template operator()<OnLanes<PairOfNumbers>, c10::BFloat16>();
  }
#endif
  TORCH_CHECK(false, "this processor has no products of few rows of ", type);
}

template <typename T>
Weight<T> weight_of(const at::Tensor& panels, const OptionalTensor& bias, int64_t num_outputs) {
  TORCH_CHECK(panels.is_contiguous() && panels.size(0) == (num_outputs + kLanes - 1) / kLanes &&
                  (!bias.has_value() || bias->is_contiguous()),
              "panels of another matrix");
  return {static_cast<const uint8_t*>(panels.const_data_ptr()), panels.size(1), num_outputs,
          bias.has_value() ? bias->const_data_ptr<T>() : nullptr};
}

int64_t row_bytes(const at::Tensor& x) { return x.size(-1) * static_cast<int64_t>(x.element_size()); }

void check(const at::Tensor& x, const at::Tensor& panels) {
  TORCH_CHECK(x.scalar_type() == panels.scalar_type() && row_bytes(x) == panels.size(1) * kWordBytes,
              "panels of another matrix");
}

at::Tensor made(const at::Tensor& x, int64_t num_outputs) {
  at::DimVector shape(x.sizes());
  shape.back() = num_outputs;
  return at::detail::empty_cpu(shape, x.scalar_type());
}

// x [..., K], panels [num_panels, num_words, 64 bytes], bias [num_outputs]; all of one type. Returns [..., num_outputs].
at::Tensor linear(const at::Tensor& input, const at::Tensor& panels, const OptionalTensor& bias, int64_t num_outputs) {
  check(input, panels);
  const at::Tensor x = input.contiguous();
  at::Tensor y = made(x, num_outputs);
  with_kernels(x.scalar_type(), {row_bytes(x)}, [&]<typename On, typename T>() {
    const auto weight = weight_of<T>(panels, bias, num_outputs);
    for_rows<On>(x, input_space, [&](const Rows& rows, int64_t first) {
      multiply<On>(rows, weight, y.mutable_data_ptr<T>() + first * num_outputs);
    });
  });
  return y;
}

// down(silu(gate(x)) * up(x)), each as in `linear`; `gate` and `up` have `num_inner` outputs.
at::Tensor gated_linear(const at::Tensor& input, const at::Tensor& gate, const OptionalTensor& gate_bias,
                        const at::Tensor& up, const OptionalTensor& up_bias, int64_t num_inner, const at::Tensor& down,
                        const OptionalTensor& down_bias, int64_t num_outputs) {
  check(input, gate);
  check(input, up);
  const at::Tensor x = input.contiguous();
  at::Tensor y = made(x, num_outputs);
  with_kernels(x.scalar_type(), {row_bytes(x), down.size(1) * kWordBytes}, [&]<typename On, typename T>() {
    const auto gates = weight_of<T>(gate, gate_bias, num_inner), ups = weight_of<T>(up, up_bias, num_inner);
    const auto downs = weight_of<T>(down, down_bias, num_outputs);
    for_rows<On>(x, input_space, [&](const Rows& rows, int64_t first) {
      multiply<On>(gated<On>(rows, gates, ups), downs, y.mutable_data_ptr<T>() + first * num_outputs);
    });
  });
  return y;
}

// Whether `linear` knows numbers of this type on this processor.
bool has_linear(at::ScalarType type) {
#ifdef __AVX512BF16__
  if (type == at::kBFloat16) return true;
#endif
  return type == at::kFloat;
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_linear(AtenTensorHandle x, AtenTensorHandle panels,
                                                const AtenTensorHandle* bias, int64_t num_outputs,
                                                AtenTensorHandle* y) {
  return call(linear, y, x, panels, bias, num_outputs);
}

extern "C" AOTITorchError aoti_torch_cpu_gated_linear(AtenTensorHandle x, AtenTensorHandle gate,
                                                      const AtenTensorHandle* gate_bias, AtenTensorHandle up,
                                                      const AtenTensorHandle* up_bias, int64_t num_inner,
                                                      AtenTensorHandle down, const AtenTensorHandle* down_bias,
                                                      int64_t num_outputs, AtenTensorHandle* y) {
  return call(gated_linear, y, x, gate, gate_bias, up, up_bias, num_inner, down, down_bias, num_outputs);
}

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("linear(Tensor x, Tensor panels, Tensor? bias, int num_outputs) -> Tensor");
  library.def(
      "gated_linear(Tensor x, Tensor gate, Tensor? gate_bias, Tensor up, Tensor? up_bias, int num_inner, Tensor down, "
      "Tensor? down_bias, int num_outputs) -> Tensor");
  library.def("has_linear(ScalarType type) -> bool", &has_linear);
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) {
  library.impl("linear", &linear);
  library.impl("gated_linear", &gated_linear);
}
