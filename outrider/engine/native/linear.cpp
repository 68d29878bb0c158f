// Products of a few rows with a matrix of weights: what decoding is made of, and what libraries for large matrices are
// slow at. The weights are streamed once, whatever the number of rows, from the order in which the kernels read them.
//
// A weight [N, K] is cut into panels of sixteen outputs. A panel is a list of lines of 64 bytes, and a line has a word of
// four bytes for each output: one float32 of the next k, or two bfloat16 of the next two. Each output sums over k in that
// order and in float32, in a lane of its own, whoever is computed beside it: so a row's results do not depend on how many
// rows there are, or on the number of threads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "lanes.h"

namespace {

using namespace outrider;

constexpr int64_t kWordBytes = 4;
constexpr int64_t kLineBytes = kLanes * kWordBytes;
constexpr int64_t kPanelsAtOnce = 2;  // two loads of weights for each row's word
constexpr int64_t kRowStepsAtOnce = 2;  // that find a panel in the cache; more scatter what is written over more pages
constexpr int64_t kWordsAtOnce = 2048;  // of rows and panels: together they stay in a second-level cache
constexpr int64_t kBytesPerTask = 1 << 17;  // of weights: four microseconds of reading, far above what a task costs

inline void narrowed(Floats sums, float* numbers) { store(sums, numbers); }

#ifdef __AVX512BF16__
inline void narrowed(Floats sums, c10::BFloat16* numbers) {
  const auto nearest = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(sums));
  std::memcpy(numbers, &nearest, sizeof(nearest));
}
#endif

// y[row][output] = bias[output] + sum over k of x[row][k] weight[output][k].
template <typename T>
struct Product {
  const T* x;
  int64_t num_rows, num_words, stride;  // words of a row; from one row to the next in numbers
  const uint8_t* panels;                // [num_panels, num_words, 64]
  int64_t num_outputs;
  const T* bias;  // or null
  T* y;           // [num_rows, num_outputs]
  const T* tail = nullptr;  // the last rows of x again, if they do not fill a tile, and zeros up to a full one

  // Sixteen rows from `row` on, where these fill a tile.
  const T* tile(int64_t row) const { return tail != nullptr && row + kLanes > num_rows ? tail : x + row * stride; }

  const uint8_t* panel(int64_t number) const { return panels + number * num_words * kLineBytes; }

  void put(int64_t row, int64_t panel, Floats sums) const {
    const int64_t first = panel * kLanes, num = std::min(kLanes, num_outputs - first);
    if (bias != nullptr) {
      alignas(kLineBytes) float padded[kLanes];
      widen(bias + first, padded, num, kLanes);
      sums += loaded(padded);
    }
    alignas(kLineBytes) T narrow[kLanes];
    narrowed(sums, narrow);
    if (num == kLanes)
      std::memcpy(y + row * num_outputs + first, narrow, sizeof(narrow));
    else
      std::memcpy(y + row * num_outputs + first, narrow, num * sizeof(T));
  }
};

inline Floats added(Floats sum, float word, const uint8_t* line) {
  return sum + word * loaded(reinterpret_cast<const float*>(line));
}

#ifdef __AVX512BF16__
struct Pair {
  c10::BFloat16 numbers[2];
};

inline Floats added(Floats sum, Pair word, const uint8_t* line) {
  int32_t bits;
  std::memcpy(&bits, &word, sizeof(bits));
  return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                   reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits)),
                                                   reinterpret_cast<__m512bh>(_mm512_loadu_si512(line))));
}
#endif

// A part of a product: the panels from `first` to `last`, of which there are kPanelsAtOnce at most, and the words from
// `begin` to `end`. Between two parts of the same rows and panels their sums are kept in `sums`.
struct Part {
  int64_t first, last, begin, end;
  float* sums;
};

// `kRows` rows, a vector for each sum.
template <int64_t kRows, typename Word, typename T>
void multiply(const Product<T>& product, int64_t first_row, const Part& part) {
  const auto [first, last, begin, end, kept] = part;
  Floats sums[kRows][kPanelsAtOnce] = {};
  if (begin > 0) std::memcpy(sums, kept, sizeof(sums));
  const uint8_t* left = product.panel(first);
  const uint8_t* right = product.panel(last - 1);  // the left one again where there is no other
  const T* x = product.x + first_row * product.stride;
  for (int64_t k = begin; k < end; ++k)
#pragma GCC unroll 12
    for (int64_t row = 0; row < kRows; ++row) {
      Word word;
      std::memcpy(&word, reinterpret_cast<const uint8_t*>(x + row * product.stride) + k * kWordBytes, kWordBytes);
      sums[row][0] = added(sums[row][0], word, left + k * kLineBytes);
      sums[row][1] = added(sums[row][1], word, right + k * kLineBytes);
    }
  if (end < product.num_words) {
    std::memcpy(kept, sums, sizeof(sums));
    return;
  }
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t panel = first; panel < last; ++panel) product.put(first_row + row, panel, sums[row][panel - first]);
}

template <typename Word>
struct OnLanes {
  static constexpr int64_t kRowsAtOnce = 12;  // 24 sums, two lines of weights and a word fill 27 of 32 vector registers

  template <typename T>
  void operator()(const Product<T>& product, int64_t row, int64_t num_rows, const Part& part) const {
    dispatch(product, row, num_rows, part, std::make_integer_sequence<int64_t, kRowsAtOnce>());
  }

 private:
  template <typename T, int64_t... kRows>
  static void dispatch(const Product<T>& product, int64_t row, int64_t num_rows, const Part& part,
                       std::integer_sequence<int64_t, kRows...>) {
    using Kernel = void (*)(const Product<T>&, int64_t, const Part&);
    static constexpr std::array<Kernel, kRowsAtOnce> kernels{&multiply<kRows + 1, Word, T>...};
    kernels[num_rows - 1](product, row, part);
  }
};

#ifdef __AMX_BF16__
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = kTileRows * kLineBytes;  // sixteen lines: 32 of k
constexpr int64_t kTileNumbers = kTileRows * kLanes;    // float32

// Shapes of the eight tiles: 0 to 3 are sums [rows, outputs], 4 and 5 rows of x, 6 and 7 sixteen lines of a panel.
struct alignas(64) Tiles {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t num_rows[16] = {};

  Tiles(int64_t rows_above, int64_t rows_below) {
    for (int tile = 0; tile < 8; ++tile) {
      bytes_per_row[tile] = kLineBytes;
      num_rows[tile] = kTileRows;
    }
    num_rows[0] = num_rows[1] = num_rows[4] = static_cast<uint8_t>(rows_above);
    num_rows[2] = num_rows[3] = num_rows[5] = static_cast<uint8_t>(rows_below);
  }
};

// Up to two tiles of rows. Sums of tiles add up k as the lanes do: two products after another.
template <bool kBelow>
void multiply_tiles(const Product<c10::BFloat16>& product, int64_t first_row, int64_t num_rows, const Part& part) {
  const uint8_t* left = product.panel(part.first);
  const uint8_t* right = product.panel(part.last - 1);
  const c10::BFloat16* above = product.tile(first_row);
  const c10::BFloat16* below = product.tile(first_row + kTileRows);
  const int64_t stride_bytes = product.stride * static_cast<int64_t>(sizeof(c10::BFloat16));
  constexpr int64_t kNumbers = kLineBytes / sizeof(c10::BFloat16);
  if (part.begin == 0) {
    _tile_zero(0);
    _tile_zero(1);
    if (kBelow) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, part.sums, kLineBytes);
    _tile_loadd(1, part.sums + kTileNumbers, kLineBytes);
    if (kBelow) {
      _tile_loadd(2, part.sums + 2 * kTileNumbers, kLineBytes);
      _tile_loadd(3, part.sums + 3 * kTileNumbers, kLineBytes);
    }
  }
  for (int64_t tile = part.begin / kTileRows; tile < part.end / kTileRows; ++tile) {
    _tile_loadd(4, above + tile * kNumbers, stride_bytes);
    _tile_loadd(6, left + tile * kTileBytes, kLineBytes);
    _tile_loadd(7, right + tile * kTileBytes, kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kBelow) {
      _tile_loadd(5, below + tile * kNumbers, stride_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(kLineBytes) float last_sums[4 * kTileNumbers];
  float* sums = part.end < product.num_words ? part.sums : last_sums;
  _tile_stored(0, sums, kLineBytes);
  _tile_stored(1, sums + kTileNumbers, kLineBytes);
  if (kBelow) {
    _tile_stored(2, sums + 2 * kTileNumbers, kLineBytes);
    _tile_stored(3, sums + 3 * kTileNumbers, kLineBytes);
  }
  if (part.end < product.num_words) return;
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      const int64_t tile = row / kTileRows * kPanelsAtOnce + panel - part.first;
      product.put(first_row + row, panel, loaded(sums + tile * kTileNumbers + row % kTileRows * kLanes));
    }
}

class OnTiles {
 public:
  static constexpr int64_t kRowsAtOnce = 2 * kTileRows;

  OnTiles() = default;
  OnTiles(const OnTiles&) = delete;
  ~OnTiles() { _tile_release(); }

  void operator()(const Product<c10::BFloat16>& product, int64_t row, int64_t num_rows, const Part& part) {
    const bool below = num_rows > kTileRows;
    if (!is_shaped_) {  // which takes long: where steps differ in rows, all take full tiles
      const bool full = product.num_rows > kRowsAtOnce;
      const Tiles tiles(full ? kTileRows : std::min(num_rows, kTileRows),
                        full || !below ? kTileRows : num_rows - kTileRows);
      _tile_loadconfig(&tiles);
      is_shaped_ = true;
    }
    (below ? multiply_tiles<true> : multiply_tiles<false>)(product, row, num_rows, part);
  }

 private:
  bool is_shaped_ = false;  // by nobody yet: the thread's tiles may have any shape
};

const bool has_tiles = at::cpu::init_amx();
#endif

// All rows with all panels, on all threads.
template <typename On, typename T>
void multiply_all(const Product<T>& product) {
  const int64_t num_panels = (product.num_outputs + kLanes - 1) / kLanes;
  const int64_t num_steps = (num_panels + kPanelsAtOnce - 1) / kPanelsAtOnce;
  const int64_t step_bytes = kPanelsAtOnce * product.num_words * kLineBytes;
  constexpr int64_t kSums = On::kRowsAtOnce * kPanelsAtOnce * kLanes;
  at::parallel_for(0, num_steps, std::max<int64_t>(1, kBytesPerTask / step_bytes), [&](int64_t first, int64_t last) {
    On multiply;
    const bool in_parts = product.num_words > kWordsAtOnce;
    std::vector<float> sums(in_parts ? (last - first) * kRowStepsAtOnce * kSums : 0);
    for (int64_t block = 0; block < product.num_rows; block += kRowStepsAtOnce * On::kRowsAtOnce)
      for (int64_t begin = 0; begin < product.num_words; begin += kWordsAtOnce)
        for (int64_t step = first; step < last; ++step)
          for (int64_t row_step = 0; row_step < kRowStepsAtOnce; ++row_step) {
            const int64_t row = block + row_step * On::kRowsAtOnce;
            if (row >= product.num_rows) break;
            const Part part{step * kPanelsAtOnce, std::min((step + 1) * kPanelsAtOnce, num_panels), begin,
                            std::min(begin + kWordsAtOnce, product.num_words),
                            in_parts ? &sums[((step - first) * kRowStepsAtOnce + row_step) * kSums] : nullptr};
            multiply(product, row, std::min(On::kRowsAtOnce, product.num_rows - row), part);
          }
  });
}

template <typename T>
Product<T> product_of(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& bias, at::Tensor& y) {
  return {x.const_data_ptr<T>(),
          x.numel() / x.size(-1),
          panels.size(1),
          x.size(-1),
          static_cast<const uint8_t*>(panels.const_data_ptr()),
          y.size(-1),
          bias.defined() ? bias.const_data_ptr<T>() : nullptr,
          y.mutable_data_ptr<T>()};
}

// x [..., K], panels [num_panels, num_words, 64 bytes], bias [num_outputs]; all of one type. Returns [..., num_outputs].
at::Tensor linear(const at::Tensor& input, const at::Tensor& panels, const std::optional<at::Tensor>& optional_bias,
                  int64_t num_outputs) {
  const at::Tensor x = input.contiguous();
  const at::Tensor bias = optional_bias.has_value() ? optional_bias->contiguous() : at::Tensor();
  TORCH_CHECK(x.scalar_type() == panels.scalar_type() && panels.is_contiguous() &&
                  x.size(-1) * x.element_size() == panels.size(1) * kWordBytes,
              "panels of another matrix");
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = num_outputs;
  at::Tensor y = at::empty(shape, x.options());
  switch (x.scalar_type()) {
    case at::kFloat:
      multiply_all<OnLanes<float>>(product_of<float>(x, panels, bias, y));
      break;
#ifdef __AVX512BF16__
    case at::kBFloat16: {
      auto product = product_of<c10::BFloat16>(x, panels, bias, y);
#ifdef __AMX_BF16__
      if (has_tiles && product.num_words % kTileRows == 0) {
        const int64_t num_rest = product.num_rows % kTileRows, num_others = product.num_rows - num_rest;
        std::vector<c10::BFloat16> tail;
        if (num_rest > 0 && product.num_rows > OnTiles::kRowsAtOnce) {
          tail.resize(kTileRows * product.stride);
          std::copy_n(product.x + num_others * product.stride, num_rest * product.stride, tail.begin());
          product.tail = tail.data();
        }
        multiply_all<OnTiles>(product);
        break;
      }
#endif
      multiply_all<OnLanes<Pair>>(product);
      break;
    }
#endif
    default:
      TORCH_CHECK(false, "this processor has no products of few rows of ", x.scalar_type());
  }
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

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("linear(Tensor x, Tensor panels, Tensor? bias, int num_outputs) -> Tensor");
  library.def("has_linear(ScalarType type) -> bool", &has_linear);
}

TORCH_LIBRARY_IMPL(outrider_native, CPU, library) { library.impl("linear", &linear); }
