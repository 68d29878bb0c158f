// A forward pass that was compiled ahead of time, for what runs it again and again.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace outrider {

// Runs the package with that number: its inputs to its outputs.
std::vector<at::Tensor> run_package(int64_t package, std::vector<at::Tensor> inputs);

}  // namespace outrider
