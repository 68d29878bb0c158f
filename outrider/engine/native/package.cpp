// Runs forward passes that were compiled ahead of time without Python's interpreter lock: torch's own binding keeps it,
// and then the thread that reads and writes messages would stand still for the whole step.

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "package.h"
#include "team.h"

namespace {

using Loader = torch::inductor::AOTIModelPackageLoader;

std::mutex packages_mutex;
std::vector<std::unique_ptr<Loader>> packages;

int64_t load_package(std::string path) {
  auto loader = std::make_unique<Loader>(path, "model", /*run_single_threaded=*/true);
  const std::lock_guard<std::mutex> lock(packages_mutex);
  packages.push_back(std::move(loader));
  return static_cast<int64_t>(packages.size()) - 1;
}

std::vector<std::string> package_metadata(int64_t package) {
  const std::lock_guard<std::mutex> lock(packages_mutex);
  std::vector<std::string> keys;
  for (const auto& [key, value] : packages.at(package)->get_metadata()) keys.push_back(key);
  return keys;
}

void unload_package(int64_t package) {
  const std::lock_guard<std::mutex> lock(packages_mutex);
  packages.at(package).reset();
}

}  // namespace

std::vector<at::Tensor> outrider::run_package(int64_t package, std::vector<at::Tensor> inputs) {
  Loader* loader;
  {
    const std::lock_guard<std::mutex> lock(packages_mutex);
    loader = packages.at(package).get();
  }
  rouse();
  return loader->boxed_run(std::move(inputs));
}

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("load_package(str path) -> int", &load_package);
  library.def("run_package(int package, Tensor[] inputs) -> Tensor[]", &outrider::run_package);
  library.def("package_metadata(int package) -> str[]", &package_metadata);
  library.def("unload_package(int package) -> ()", &unload_package);
}
