// Operators as C functions, which a package that was compiled ahead of time calls without torch's dispatcher: by the
// name `aoti_torch_cpu_` and the operator's own, and as `_direct_calls` in outrider/engine/compile/ahead.py declares them.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <optional>

namespace outrider {

inline const at::Tensor& argument(AtenTensorHandle tensor) {
  return *torch::aot_inductor::tensor_handle_to_tensor_pointer(tensor);
}
inline std::optional<at::Tensor> argument(const AtenTensorHandle* tensor) {
  return tensor == nullptr ? std::nullopt : std::make_optional(argument(*tensor));
}
inline int64_t argument(int64_t number) { return number; }
inline double argument(double number) { return number; }

// Puts what `function` makes of the arguments into `result`, for the caller to let go of; an exception becomes a code.
template <typename Function, typename... Arguments>
AOTITorchError call(const Function& function, AtenTensorHandle* result, Arguments... arguments) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE(
      { *result = torch::aot_inductor::new_tensor_handle(function(argument(arguments)...)); })
}

}  // namespace outrider
