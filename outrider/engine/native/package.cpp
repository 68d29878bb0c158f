// Runs forward passes that were compiled ahead of time without Python's interpreter lock: torch's own binding keeps it,
// and then the thread that reads and writes messages would stand still for the whole step.
//
// A step reads all weights once, and from pages of 4 KiB a processor reads them at half of its speed, for want of their
// addresses. So the weights of a package move to huge pages where the system has them (transparent_hugepage: madvise or
// always), and stay in ordinary ones where it has not.

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <sys/mman.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "package.h"
#include "team.h"
#include "thread_choice.h"

namespace {

using Clock = std::chrono::steady_clock;
using Loader = torch::inductor::AOTIModelPackageLoader;

constexpr size_t kHugePageBytes = size_t{1} << 21;
constexpr size_t kPageBytes = size_t{1} << 12;

size_t rounded_up(size_t number, size_t unit) { return (number + unit - 1) / unit * unit; }

// One piece of memory on huge pages, from which tensors are cut.
class HugePages {
 public:
  explicit HugePages(size_t num_bytes) : num_bytes_(rounded_up(num_bytes, kHugePageBytes)) {
    const size_t mapped_bytes = num_bytes_ + kHugePageBytes;  // enough to begin at a huge page's first byte
    mapped_ = ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(mapped_ != MAP_FAILED, "no memory for weights of ", num_bytes, " bytes");
    first_ = reinterpret_cast<uint8_t*>(rounded_up(reinterpret_cast<size_t>(mapped_), kHugePageBytes));
    ::madvise(first_, num_bytes_, MADV_HUGEPAGE);  // refused where there are none
  }
  HugePages(const HugePages&) = delete;
  ~HugePages() { ::munmap(mapped_, num_bytes_ + kHugePageBytes); }

  uint8_t* first() const { return first_; }

 private:
  size_t num_bytes_;
  void* mapped_;
  uint8_t* first_;
};

// Weights lie at multiples of this many bytes: a line of the widest registers.
constexpr size_t kAlignment = 64;

size_t room_for(const at::Tensor& weight) { return rounded_up(weight.nbytes(), kAlignment); }

// Gives back the pages that hold nothing but `weight`, which nobody reads any more.
void give_back(const at::Tensor& weight) {
  const size_t begin = reinterpret_cast<size_t>(weight.const_data_ptr());
  const size_t first = rounded_up(begin, kPageBytes), end = (begin + weight.nbytes()) / kPageBytes * kPageBytes;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

// Puts the weights of a package onto huge pages. They must outlive it, and are not freed by it: torch keeps for good
// what it makes of a tensor that is somebody else's.
std::unique_ptr<HugePages> move_weights(Loader& loader) {
  const std::unordered_map<std::string, at::Tensor> weights = loader.get_runner()->extract_constants_map(false);
  size_t num_bytes = 0;
  for (const auto& [name, weight] : weights) num_bytes += room_for(weight);
  auto pages = std::make_unique<HugePages>(num_bytes);
  uint8_t* next = pages->first();
  std::unordered_map<std::string, at::Tensor> moved;
  for (const auto& [name, weight] : weights) {
    std::memcpy(next, weight.const_data_ptr(), weight.nbytes());
    moved[name] = at::from_blob(next, weight.sizes(), weight.strides(), weight.options());
    next += room_for(weight);
  }
  loader.load_constants(moved, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  for (const auto& [name, weight] : weights) give_back(weight);
  return pages;
}

struct Package {
  std::unique_ptr<HugePages> weights;
  std::unique_ptr<Loader> loader;                 // which ends first
  std::unique_ptr<outrider::ThreadChoice> choice;  // none where there is but one thread, or nobody has said how many
};

std::unique_ptr<outrider::ThreadChoice> choice_among(const outrider::Cores& cores) {
  const int64_t num_borrowed = std::ssize(cores.borrowed);
  if (cores.num_own + num_borrowed <= 1) return nullptr;
  return std::make_unique<outrider::ThreadChoice>(cores.num_own, num_borrowed);
}

std::mutex packages_mutex;
std::vector<Package> packages;

int64_t load_package(std::string path) {
  auto loader = std::make_unique<Loader>(path, "model", /*run_single_threaded=*/true);
  auto weights = move_weights(*loader);
  const std::lock_guard<std::mutex> lock(packages_mutex);
  packages.push_back({std::move(weights), std::move(loader), choice_among(outrider::cores())});
  return static_cast<int64_t>(packages.size()) - 1;
}

std::vector<std::string> package_metadata(int64_t package) {
  const std::lock_guard<std::mutex> lock(packages_mutex);
  std::vector<std::string> keys;
  for (const auto& [key, value] : packages.at(package).loader->get_metadata()) keys.push_back(key);
  return keys;
}

void unload_package(int64_t package) {
  const std::lock_guard<std::mutex> lock(packages_mutex);
  Package& unloaded = packages.at(package);
  unloaded.loader.reset();
  unloaded.weights.reset();
  unloaded.choice.reset();
}

}  // namespace

// Its inputs are token ids [N], positions [N], wanted rows [R] and a description: see outrider/engine/compile/export.py.
std::vector<at::Tensor> outrider::run_package(int64_t package, std::vector<at::Tensor> inputs) {
  Loader* loader;
  ThreadChoice* choice;
  {
    const std::lock_guard<std::mutex> lock(packages_mutex);
    loader = packages.at(package).loader.get();
    choice = packages.at(package).choice.get();
  }
  if (choice == nullptr) {
    rouse();
    return loader->boxed_run(std::move(inputs));
  }
  const OnThreads threads(choice->next(inputs.at(0).size(0), inputs.at(2).size(0)));
  const auto started = Clock::now();
  rouse();
  std::vector<at::Tensor> outputs = loader->boxed_run(std::move(inputs));
  choice->observe(std::chrono::duration<double>(Clock::now() - started).count());
  return outputs;
}

namespace {

// For whoever plays steps that nobody takes.
struct PlayedChoice : torch::CustomClassHolder, outrider::ThreadChoice {
  using outrider::ThreadChoice::ThreadChoice;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider_native, library) {
  library.def("load_package(str path) -> int", &load_package);
  library.def("run_package(int package, Tensor[] inputs) -> Tensor[]", &outrider::run_package);
  library.def("package_metadata(int package) -> str[]", &package_metadata);
  library.def("unload_package(int package) -> ()", &unload_package);
  library.class_<PlayedChoice>("ThreadChoice")
      .def(torch::init<int64_t, int64_t>())
      .def("next", [](const c10::intrusive_ptr<PlayedChoice>& self, int64_t num_tokens,
                      int64_t num_wanted) { return self->next(num_tokens, num_wanted); })
      .def("observe", [](const c10::intrusive_ptr<PlayedChoice>& self, double seconds) { self->observe(seconds); });
}
