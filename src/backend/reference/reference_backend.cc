// The law (reference_class.h): memory, weights, pages. It has no workspace, no threads and no speed.
#include "backend/reference/reference_backend.h"

#include <unistd.h>

#include <cstring>
#include <new>

#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"
#include "base/error.h"

namespace qiao {

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options) {
  return std::make_unique<reference::ReferenceBackend>(options);
}

namespace reference {

ReferenceBackend::ReferenceBackend(const BackendOptions&) {}

DeviceInfo ReferenceBackend::describe() const {
  DeviceInfo info;
  info.name = "reference, plain loops in float64";
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  info.memory_bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * page;
  info.free_bytes = static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) * page;
  info.threads = 1;
  return info;
}

// Nobody asks the law for speed.
DevicePeaks ReferenceBackend::measure_peaks() { return {}; }

void ReferenceBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes != 0) std::memcpy(device, host, bytes);
}

void ReferenceBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes != 0) std::memcpy(host, device, bytes);
}

void* ReferenceBackend::do_allocate(size_t bytes) {
  void* memory = ::operator new (bytes, std::align_val_t{64}, std::nothrow);
  if (memory == nullptr) {
    throw_error(ErrorKind::kTooLarge, "allocate: {} bytes asked for, {} bytes free", bytes,
                describe().free_bytes);
  }
  return memory;
}

void ReferenceBackend::do_free(void* data, size_t) { ::operator delete (data, std::align_val_t{64}); }

std::unique_ptr<Weight> ReferenceBackend::do_make_weight(const WeightSource& source) {
  return std::make_unique<ReferenceWeight>(source);
}

void ReferenceBackend::do_read_weight(const Weight& weight, int64_t expert, size_t segment,
                                      std::byte* bytes) {
  const std::vector<std::byte>& part = static_cast<const ReferenceWeight&>(weight).part(expert, segment);
  std::memcpy(bytes, part.data(), part.size());
}

void ReferenceBackend::do_write_weight(Weight& weight, int64_t expert, const Tensor& values) {
  static_cast<ReferenceWeight&>(weight).write(expert, values.as<float>());
}

std::unique_ptr<KvPages> ReferenceBackend::do_make_kv_pages(const KvPagesSpec& spec) {
  return std::make_unique<ReferencePages>(spec);
}

}  // namespace reference
}  // namespace qiao
