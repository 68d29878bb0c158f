// A libcuda that runs nothing: it loads what it is given, and notes what would be launched. Tests of
// outrider/engine/gpu/driver.py build it.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace {

struct Kernel {
  std::string name;
  std::vector<int> sizes;  // of what it takes
};

struct Launch {
  const Kernel* kernel;
  uint32_t numbers[7];  // grid, block, bytes of shared memory
  void* stream;
  std::string parameters;
};

std::vector<Launch> launches;
std::string attributes;
void* context = nullptr;
int status = 0, loaded = 0;

}  // namespace

extern "C" {

// What tests tell and ask.

void declare(void* function, int count, const int* bytes) {
  static_cast<Kernel*>(function)->sizes.assign(bytes, bytes + count);
}
void fail(int with) { status = with; }
int num_launches() { return static_cast<int>(launches.size()); }
int num_loaded() { return loaded; }
void* current_context() { return context; }
const char* kernel_of(int launch) { return launches[launch].kernel->name.c_str(); }
const uint32_t* numbers_of(int launch) { return launches[launch].numbers; }
void* stream_of(int launch) { return launches[launch].stream; }
int parameters_of(int launch, void* bytes) {
  const auto& parameters = launches[launch].parameters;
  std::memcpy(bytes, parameters.data(), parameters.size());
  return static_cast<int>(parameters.size());
}
const char* attributes_set() { return attributes.c_str(); }

// What a driver has.

int cuGetErrorString(int, const char** words) {
  *words = "out of order";
  return 0;
}
int cuCtxGetCurrent(void** found) {
  *found = context;
  return 0;
}
int cuCtxSetCurrent(void* given) {
  context = given;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** found, int device) {
  *found = reinterpret_cast<void*>(static_cast<intptr_t>(0xC0 + device));
  return 0;
}
int cuModuleLoadData(void** module, const char* image) {
  if (std::memcmp(image, "\x7f" "ELF", 4) != 0) return 200;  // no image of a kernel
  *module = reinterpret_cast<void*>(static_cast<intptr_t>(++loaded));
  return status;
}
int cuModuleUnload(void*) {
  --loaded;
  return 0;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  *function = new Kernel{name, {}};
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void*) {
  *value = attribute == 0 ? 1024 : 8 * attribute;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  const auto& name = static_cast<Kernel*>(function)->name;
  attributes += name + " " + std::to_string(attribute) + " " + std::to_string(value) + "\n";
  return 0;
}
int cuFuncSetCacheConfig(void*, int) { return 0; }
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra) {
  if (extra != nullptr || context == nullptr) return 201;
  const auto* kernel = static_cast<Kernel*>(function);
  Launch launch{kernel, {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared}, stream, ""};
  for (size_t index = 0; index < kernel->sizes.size(); ++index)
    launch.parameters.append(static_cast<const char*>(parameters[index]), kernel->sizes[index]);
  launches.push_back(launch);
  return status;
}
}
