#include "backend/cpu/cpu_backend.h"

#include <cstring>
#include <fstream>
#include <string>

#include "backend/cpu/cpu_class.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/weight_layout.h"
#include "base/error.h"

namespace qiao {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

namespace cpu {
namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t value = line.find_first_not_of(": \t", line.find(':'));
    if (value != std::string::npos) return line.substr(value);
  }
  return "CPU";
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options) : pool_(options.threads) { active_isa(); }

DeviceInfo CpuBackend::describe() const {
  DeviceInfo info;
  info.threads = pool_.size();
  info.name = fmt::format("{}, {} thread{}, {}", processor_name(), info.threads, info.threads == 1 ? "" : "s",
                          name(active_isa()));
  info.memory_bytes = total_memory();
  info.free_bytes = free_memory();
  return info;
}

void* CpuBackend::do_allocate(size_t bytes) { return allocate_aligned(bytes); }
void CpuBackend::do_free(void* data, size_t) { free_aligned(data); }

void CpuBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes != 0) std::memcpy(device, host, bytes);
}
void CpuBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes != 0) std::memcpy(host, device, bytes);
}

std::unique_ptr<Weight> CpuBackend::do_make_weight(const WeightSource& source) {
  return std::make_unique<CpuWeight>(
      source, weight_memory_.take(static_cast<size_t>(CpuWeight::bytes_for(source))), pool_);
}

void CpuBackend::do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) {
  static_cast<const CpuWeight&>(weight).read(expert, segment, bytes, pool_);
}

void CpuBackend::do_write_weight(Weight& weight, int64_t expert, const Tensor& values) {
  static_cast<CpuWeight&>(weight).write(expert, values.as<float>(), pool_);
}

}  // namespace cpu
}  // namespace qiao
