#include "backend/cuda/cuda_backend.h"

#include <cstdlib>
#include <optional>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/nccl_collectives.h"
#include "base/error.h"

namespace qiao {

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

namespace cuda {
namespace {

int selected(int device) {
  select_device(device);
  return device;
}

// Empty after the first time, which loads the kernels; a graph after the second, unless that failed.
struct GraphRecording final : Recording {
  std::optional<Graph> graph;
  bool failed = false;
};

// Pinned memory, which the device writes by itself.
struct PinnedLanding final : Landing {
  ~PinnedLanding() override { clear(); }
  void clear() noexcept {
    try {
      done.synchronize();
    } catch (const Error&) {  // of a lost device: nothing comes any more
    }
    if (bytes != nullptr) static_cast<void>(cudaFreeHost(bytes));
    bytes = nullptr;
  }
  void hold(size_t wanted) {
    if (wanted <= capacity && bytes != nullptr) return;
    clear();
    capacity = 0;
    const size_t size = 2 * wanted + 64;
    void* memory = nullptr;
    QIAO_CUDA(cudaMallocHost(&memory, size));
    bytes = static_cast<std::byte*>(memory);
    capacity = size;
  }

  std::byte* bytes = nullptr;
  size_t capacity = 0;
  Event done;
};

// Null where it cannot be had, for lack of memory most likely: it saves time and no more.
std::optional<Graph> record(const Stream& stream, const std::function<void()>& work) {
  try {
    Graph::begin(stream);
    try {
      work();
      return Graph::end(stream);
    } catch (...) {
      Graph::abandon(stream);  // else all that follows would be recorded, and never done
      throw;
    }
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kDeviceLost) throw;
    return std::nullopt;
  }
}

}  // namespace

CudaBackend::CudaBackend(const BackendOptions& options)
    : hold_(options.device),
      stream_(selected(options.device)),
      fast_(options.fast),
      block_shared_bytes_(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, options.device)),
      memory_(stream_),
      uploader_(stream_),
      tickets_(allocate(static_cast<size_t>(kMostTickets) * sizeof(unsigned))) {
  QIAO_CUDA(cudaMemsetAsync(tickets_.data(), 0, tickets_.bytes(), stream_.handle()));
}

// What is still on its way reads memory that ends here; of a lost device nothing is.
CudaBackend::~CudaBackend() { static_cast<void>(cudaStreamSynchronize(stream_.raw())); }

DeviceInfo CudaBackend::describe() const {
  cudaDeviceProp properties{};
  QIAO_CUDA(cudaGetDeviceProperties(&properties, stream_.device()));
  DeviceInfo info;
  info.name = fmt::format("{}, {} multiprocessors, compute capability {}.{}", properties.name,
                          multiprocessors(), stream_.compute_major(),
                          device_attribute(cudaDevAttrComputeCapabilityMinor, stream_.device()));
  info.memory_bytes = properties.totalGlobalMem;
  info.free_bytes = memory_.free_bytes();
  info.own_memory = true;
  return info;
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  uploader_.copy(device, host, bytes);
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes != 0) QIAO_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_.handle()));
  stream_.synchronize();
}

void CudaBackend::start_download(std::unique_ptr<Landing>& landing, const void* device, size_t bytes) {
  const cudaStream_t stream = stream_.handle();
  if (landing == nullptr) landing = std::make_unique<PinnedLanding>();
  auto& pinned = static_cast<PinnedLanding&>(*landing);
  pinned.hold(bytes);
  if (bytes != 0) QIAO_CUDA(cudaMemcpyAsync(pinned.bytes, device, bytes, cudaMemcpyDeviceToHost, stream));
  pinned.done.record(stream_);
}

const std::byte* CudaBackend::finish_download(Landing& landing) {
  auto& pinned = static_cast<PinnedLanding&>(landing);
  pinned.done.synchronize();
  return pinned.bytes;
}

void CudaBackend::synchronize() { stream_.synchronize(); }

std::unique_ptr<Collectives> CudaBackend::make_collectives(Communicator& communicator) {
  const char* const way = std::getenv("QIAO_COLLECTIVES");
  const std::string_view wanted = way == nullptr ? "nccl" : way;
  if (wanted == "host") return Backend::make_collectives(communicator);
  if (wanted != "nccl")
    throw_error(ErrorKind::kInvalidInput, "QIAO_COLLECTIVES is {}: nccl or host was expected", wanted);
  return make_nccl_collectives(*this, communicator, find_nccl());
}

void CudaBackend::do_repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& work) {
  if (recording == nullptr) {
    work();
    recording = std::make_unique<GraphRecording>();
    return;
  }
  auto& kept = static_cast<GraphRecording&>(*recording);
  if (!kept.graph && !kept.failed) {
    kept.graph = record(stream_, work);
    kept.failed = !kept.graph;
    stream_.hold_next();  // what was recorded may have been held in place of what runs next
  }
  if (kept.graph && kept.graph->launch(stream_)) return;
  kept.graph.reset();
  kept.failed = true;
  work();
}

void* CudaBackend::do_allocate(size_t bytes) { return memory_.allocate(bytes); }
void CudaBackend::do_free(void* data, size_t bytes) { memory_.free(data, bytes); }

}  // namespace cuda
}  // namespace qiao
