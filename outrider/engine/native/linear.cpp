// Products of few rows with a matrix, and the gated perceptron that most language models are made of: three of them.

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <atomic>
#include <optional>

#include "compact.h"
#include "direct.h"
#include "functions.h"

namespace {

using namespace outrider;

using OptionalTensor = std::optional<at::Tensor>;

// What the calling thread multiplies, kept from one product to the next: as large as its largest.
thread_local std::vector<Line> input_space, inner_space, ready_space;

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
        put(weight.outputs(left, 2 * pair), numbers, weight.size_of(2 * pair));
        if (2 * pair < last) put(weight.outputs(right, 2 * pair + 1), numbers + kLanes, weight.size_of(2 * pair + 1));
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
        put(silu(gate.outputs(left, pair)) * up.outputs(right, pair), reinterpret_cast<T*>(On::place(inner, row, word)),
            up.size_of(pair));
      });
  if constexpr (On::kWantsTiles)
    return inner;
  else
    return On::template ready<T>(inner, ready_space);
}

// Whether panels hold weights in eight bits, and with them a line of scales.
bool in_bytes(const at::Tensor& panels) { return panels.scalar_type() == at::kByte && panels.dim() == 3; }

// Whether they hold bfloat16 in twelve bits.
bool is_compact(const at::Tensor& panels) { return panels.scalar_type() == at::kByte && panels.dim() == 2; }

// Calls `work` with the kernels for rows of numbers of `type`, if each of `sizes` bytes can be a row.
template <typename Work>
void with_kernels(at::ScalarType type, const at::Tensor& panels, std::initializer_list<int64_t> sizes,
                  const Work& work) {
  if (in_bytes(panels)) {
    if (type == at::kFloat) return work.template operator()<OnDigits, float>();
    if (type == at::kBFloat16) return work.template operator()<OnDigits, c10::BFloat16>();
    if (type == at::kHalf) return work.template operator()<OnDigits, c10::Half>();
  }
  if (is_compact(panels)) return work.template operator()<OnCompact, c10::BFloat16>();
  if (type == at::kFloat) return work.template operator()<OnLanes<OneNumber>, float>();
  if (type == at::kBFloat16) {
#ifdef __AMX_BF16__
    if (has_tiles && std::ranges::all_of(sizes, [](int64_t size) { return size % kLineBytes == 0; }))
      return work.template operator()<OnTiles, c10::BFloat16>();
#endif
    return work.template operator()<OnLanes<PairOfNumbers>, c10::BFloat16>();
  }
  TORCH_CHECK(false, "there are no products of few rows of ", type);
}

template <typename T>
Weight<T> weight_of(const at::Tensor& panels, const OptionalTensor& bias, int64_t num_outputs) {
  TORCH_CHECK(panels.is_contiguous() && panels.size(0) == (num_outputs + kLanes - 1) / kLanes &&
                  (!bias.has_value() || bias->is_contiguous()),
              "panels of another matrix");
  return {static_cast<const uint8_t*>(panels.const_data_ptr()), panels.stride(0) * panels.element_size(), num_outputs,
          bias.has_value() ? bias->const_data_ptr<T>() : nullptr, in_bytes(panels)};
}

int64_t row_bytes(const at::Tensor& x) { return x.size(-1) * static_cast<int64_t>(x.element_size()); }

bool fits(const at::Tensor& x, const at::Tensor& panels) {
  if (in_bytes(panels)) return (x.size(-1) + kWordBytes - 1) / kWordBytes == panels.size(1) - 1;
  if (is_compact(panels))
    return x.scalar_type() == at::kBFloat16 && compact_bytes(row_bytes(x) / kWordBytes) == panels.size(1);
  return x.scalar_type() == panels.scalar_type() && row_bytes(x) == panels.size(1) * kWordBytes;
}

void check(const at::Tensor& x, const at::Tensor& panels) { TORCH_CHECK(fits(x, panels), "panels of another matrix"); }

at::Tensor made(const at::Tensor& x, int64_t num_outputs) {
  at::DimVector shape(x.sizes());
  shape.back() = num_outputs;
  return at::detail::empty_cpu(shape, x.scalar_type());
}

// x [..., K], panels [num_panels, num_lines, 64 bytes], bias [num_outputs]; all of one type, but for panels in eight bits.
// Returns [..., num_outputs].
at::Tensor linear(const at::Tensor& input, const at::Tensor& panels, const OptionalTensor& bias, int64_t num_outputs) {
  check(input, panels);
  const at::Tensor x = input.contiguous();
  at::Tensor y = made(x, num_outputs);
  with_kernels(x.scalar_type(), panels, {row_bytes(x)}, [&]<typename On, typename T>() {
    const auto weight = weight_of<T>(panels, bias, num_outputs);
    for_rows<On, T>(x, input_space, [&](const Rows& rows, int64_t first) {
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
  for (const at::Tensor* panels : {&up, &down})
    TORCH_CHECK(in_bytes(gate) == in_bytes(*panels) && is_compact(gate) == is_compact(*panels),
                "panels of several kinds");
  const at::Tensor x = input.contiguous();
  at::Tensor y = made(x, num_outputs);
  with_kernels(x.scalar_type(), gate, {row_bytes(x), num_inner * static_cast<int64_t>(x.element_size())}, [&]<typename On, typename T>() {
    const auto gates = weight_of<T>(gate, gate_bias, num_inner), ups = weight_of<T>(up, up_bias, num_inner);
    const auto downs = weight_of<T>(down, down_bias, num_outputs);
    for_rows<On, T>(x, input_space, [&](const Rows& rows, int64_t first) {
      multiply<On>(gated<On>(rows, gates, ups), downs, y.mutable_data_ptr<T>() + first * num_outputs);
    });
  });
  return y;
}

// Whether `linear` knows numbers of this type.
bool has_linear(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16; }

// Whether rows of such numbers are multiplied faster with weights in eight bits than with weights of their own type.
// Where tiles multiply, nobody has measured it.
bool prefers_bytes(at::ScalarType type) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#ifdef __AMX_BF16__
  return type != at::kBFloat16 || !has_tiles;
#endif
  return true;
#endif
  return false;
}

// `panels` [num_panels, num_lines, 32] of bfloat16 in twelve bits, [num_panels, bytes of one] of bytes; themselves if the
// list of one would be too short.
at::Tensor compact(const at::Tensor& panels) {
  TORCH_CHECK(panels.scalar_type() == at::kBFloat16 && panels.dim() == 3 && panels.size(2) == kNumbersPerLine &&
                  panels.is_contiguous(),
              "panels of another kind");
  const int64_t num_lines = panels.size(1), num_bytes = compact_bytes(num_lines);
  at::Tensor written = at::detail::empty_cpu({panels.size(0), num_bytes}, at::kByte);
  const auto* numbers = static_cast<const uint16_t*>(panels.const_data_ptr());
  auto* bytes = written.mutable_data_ptr<uint8_t>();
  std::atomic<bool> fits = true;
  share(panels.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end && fits; ++panel)
      if (!write_compact(numbers + panel * num_lines * kNumbersPerLine, num_lines, bytes + panel * num_bytes)) fits = false;
  });
  return fits ? written : panels;
}

// Whether bfloat16 in twelve bits is unpacked in less time than it saves.
bool prefers_compact() {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#ifdef __AMX_BF16__
  return !has_tiles;
#endif
  return true;
#endif
  return false;
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
  library.def("prefers_bytes(ScalarType type) -> bool", &prefers_bytes);
  library.def("compact(Tensor panels) -> Tensor");
  library.def("prefers_compact() -> bool", &prefers_compact);
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) {
  library.impl("linear", &linear);
  library.impl("gated_linear", &gated_linear);
  library.impl("compact", &compact);
}
