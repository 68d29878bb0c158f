// What a decoder computes between its products that is not exactly rounded: functions of single numbers, and means of rows.
//
// Libraries compute the numbers at the end of a thread's share by other code than those before, and means in an order that
// depends on the whole tensor. Here a number's or a row's result depends on it alone.

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "direct.h"
#include "functions.h"
#include "team.h"
#include "tiles.h"

namespace {

using namespace outrider;

constexpr int64_t kChunksPerTask = 256;       // of sixteen numbers: some microseconds, far above what a task costs
constexpr int64_t kNumbersPerTask = 1 << 14;  // of rows that are added up: likewise

using Function = Floats (*)(Floats);

// In the order of `FUNCTIONS` in outrider/engine/compile/invariance.py.
constexpr std::array<Function, 6> functions{silu, sigmoid, gelu, hyperbolic_tangent, cosine, sine};

template <Function kFunction, typename T>
void apply(const T* x, T* y, int64_t size) {
  share((size + kLanes - 1) / kLanes, kChunksPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kLanes; first < std::min(end * kLanes, size); first += kLanes) {
      T narrow[kLanes];
      const int64_t num = std::min(kLanes, size - first);
      store(kFunction(loaded(x + first, num)), narrow);
      std::memcpy(y + first, narrow, num * sizeof(T));
    }
  });
}

template <typename T, size_t... kIndices>
void apply(int64_t function, const T* x, T* y, int64_t size, std::index_sequence<kIndices...>) {
  static constexpr void (*kernels[])(const T*, T*, int64_t) = {&apply<functions[kIndices], T>...};
  kernels[function](x, y, size);
}

// The sum of row[k]^kPower over k: sixteen sums, each in the order of k, and their sum.
template <int64_t kPower, typename T>
float summed(const T* row, int64_t size) {
  Floats sums = {};
  for (int64_t first = 0; first < size; first += kLanes) {
    const Floats some = loaded(row + first, size - first);
    if constexpr (kPower == 2)
      sums += some * some;
    else
      sums += some;
  }
  return outrider::summed(sums);
}

template <typename T>
void average(const T* x, T* y, int64_t num_rows, int64_t size, int64_t power) {
  const int64_t rows_per_task = std::max<int64_t>(1, kNumbersPerTask / std::max<int64_t>(1, size));
  share(num_rows, rows_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float sum = power == 2 ? summed<2>(x + row * size, size) : summed<1>(x + row * size, size);
      y[row] = static_cast<T>(sum / static_cast<float>(size));
    }
  });
}

template <typename Work>
void with_numbers(at::ScalarType type, const Work& work) {
  switch (type) {
    case at::kFloat:
      return work.template operator()<float>();
    case at::kBFloat16:
      return work.template operator()<c10::BFloat16>();
    case at::kHalf:
      return work.template operator()<c10::Half>();
    default:
      TORCH_CHECK(false, "rows are float32, bfloat16 or float16, not ", type);
  }
}

// The function of that number, of each number of x.
at::Tensor elementwise(const at::Tensor& input, int64_t function) {
  TORCH_CHECK(0 <= function && function < static_cast<int64_t>(functions.size()), "no function ", function);
  const at::Tensor x = input.contiguous();
  at::Tensor y = at::detail::empty_cpu(x.sizes(), x.scalar_type());
  with_numbers(x.scalar_type(), [&]<typename T>() {
    apply(function, x.const_data_ptr<T>(), y.mutable_data_ptr<T>(), x.numel(),
          std::make_index_sequence<functions.size()>());
  });
  return y;
}

// The means of x[..., k]^power over k, power 1 or 2: [..., K] to [..., 1].
at::Tensor row_mean(const at::Tensor& input, int64_t power) {
  TORCH_CHECK(power == 1 || power == 2, "means are of numbers or of their squares");
  const at::Tensor x = input.contiguous();
  at::DimVector shape(x.sizes());
  shape.back() = 1;
  at::Tensor y = at::detail::empty_cpu(shape, x.scalar_type());
  with_numbers(x.scalar_type(), [&]<typename T>() {
    average(x.const_data_ptr<T>(), y.mutable_data_ptr<T>(), y.numel(), x.size(-1), power);
  });
  return y;
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_elementwise(AtenTensorHandle x, int64_t function, AtenTensorHandle* y) {
  return call(elementwise, y, x, function);
}

extern "C" AOTITorchError aoti_torch_cpu_row_mean(AtenTensorHandle x, int64_t power, AtenTensorHandle* y) {
  return call(row_mean, y, x, power);
}

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("elementwise(Tensor x, int function) -> Tensor");
  library.def("row_mean(Tensor x, int power) -> Tensor");
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) {
  library.impl("elementwise", &elementwise);
  library.impl("row_mean", &row_mean);
}
