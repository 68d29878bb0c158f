// The choice of tokens, for what chooses again and again.

#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace outrider {

// The best tokens of each row and their perturbed scores, [R, width] each: see outrider/engine/sample/native.py. Of a row
// that offers fewer, the other scores are minus infinity; where rounding may decide what top-p keeps, the ids are -1.
std::tuple<at::Tensor, at::Tensor> best_of(const at::Tensor& logits,   // [R, V]
                                           const at::Tensor& shaping,  // [5, num_slots] float64
                                           const at::Tensor& seeds,    // [num_slots] int64
                                           at::IntArrayRef slots,      // [R]
                                           at::IntArrayRef positions,  // [R]
                                           int64_t width);

}  // namespace outrider
