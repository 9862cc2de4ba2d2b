#include "backend/cuda/runtime.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace qiao::cuda {
namespace {

// The device's context is lost with these: every later call fails likewise.
bool loses_device(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorContextIsDestroyed:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

ErrorKind kind_of(cudaError_t error) {
  if (loses_device(error)) return ErrorKind::kDeviceLost;
  switch (error) {
    case cudaErrorMemoryAllocation:
      return ErrorKind::kTooLarge;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInitializationError:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
      return ErrorKind::kUnavailable;
    default:
      return ErrorKind::kIo;
  }
}

}  // namespace

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // told once; one that sticks comes again by itself
  const std::string_view text = call;
  throw_error(kind_of(error), "cuda: {}: {} ({})", text.substr(0, text.find('(')), cudaGetErrorString(error),
              cudaGetErrorName(error));
}

int device_attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  QIAO_CUDA(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

void select_device(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));
    static_cast<void>(cudaRuntimeGetVersion(&runtime));
    static_cast<void>(cudaGetLastError());
    if (driver == 0) {
      throw_error(ErrorKind::kUnavailable,
                  "cuda: no NVIDIA driver here; install one for CUDA {}.{}, or use --device cpu",
                  runtime / 1000, runtime % 1000 / 10);
    }
    throw_error(ErrorKind::kUnavailable,
                "cuda: the NVIDIA driver is for CUDA {}.{}, expected {}.{} or newer: update it, or use "
                "--device cpu",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    static_cast<void>(cudaGetLastError());
    throw_error(
        ErrorKind::kUnavailable,
        "cuda: the driver sees no GPU (CUDA_VISIBLE_DEVICES hides them where it is set); use --device "
        "cpu");
  }
  if (error != cudaSuccess) {  // a driver that is broken, or busy
    static_cast<void>(cudaGetLastError());
    throw_error(ErrorKind::kUnavailable, "cuda: the driver refuses: {} ({}); use --device cpu",
                cudaGetErrorString(error), cudaGetErrorName(error));
  }
  if (index >= count) {
    throw_error(ErrorKind::kUnavailable, "cuda:{}: there {} {} GPU{}, counted from 0", index,
                count == 1 ? "is" : "are", count, count == 1 ? "" : "s");
  }
  QIAO_CUDA(cudaSetDevice(index));
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, index);
  const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, index);
  if (major < 8) {
    throw_error(ErrorKind::kUnavailable,
                "cuda:{}: its compute capability is {}.{}, expected 8.0 (Ampere) or newer; use --device cpu",
                index, major, minor);
  }
  if (device_attribute(cudaDevAttrMemoryPoolsSupported, index) == 0) {
    throw_error(
        ErrorKind::kUnavailable,
        "cuda:{}: its driver has no memory pools (a virtual GPU without unified memory?); use --device "
        "cpu",
        index);
  }
}

namespace {

struct Holds {
  std::mutex mutex;
  std::map<int, int> by_device;
  std::atomic<int64_t> resets{0};
};
Holds& holds() {
  static Holds all;
  return all;
}

}  // namespace

int64_t device_resets() { return holds().resets; }

DeviceHold::DeviceHold(int device) : device_(device) {
  const std::lock_guard lock(holds().mutex);
  ++holds().by_device[device];
}

DeviceHold::~DeviceHold() {
  const std::lock_guard lock(holds().mutex);
  if (--holds().by_device[device_] > 0) return;
  if (cudaSetDevice(device_) == cudaSuccess && !loses_device(cudaDeviceSynchronize())) return;
  static_cast<void>(cudaDeviceReset());
  static_cast<void>(cudaGetLastError());
  ++holds().resets;
}

Stream::Stream(int device)
    : device_(device),
      compute_major_(device_attribute(cudaDevAttrComputeCapabilityMajor, device)),
      multiprocessors_(device_attribute(cudaDevAttrMultiProcessorCount, device)),
      next_may_(compute_major_ == 9) {
  QIAO_CUDA(cudaSetDevice(device_));
  QIAO_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}
Stream::~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
cudaStream_t Stream::handle() const {
  QIAO_CUDA(cudaSetDevice(device_));
  return stream_;
}
void Stream::synchronize() const { QIAO_CUDA(cudaStreamSynchronize(handle())); }

Event::Event(bool timing) {
  QIAO_CUDA(cudaEventCreateWithFlags(&event_, timing ? 0 : cudaEventDisableTiming));
}
Event::~Event() { static_cast<void>(cudaEventDestroy(event_)); }
void Event::record(const Stream& stream) { QIAO_CUDA(cudaEventRecord(event_, stream.handle())); }
void Event::synchronize() { QIAO_CUDA(cudaEventSynchronize(event_)); }
double Event::seconds_since(const Event& begin) const {
  float milliseconds = 0;
  QIAO_CUDA(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
  return static_cast<double>(milliseconds) / 1e3;
}

Uploader::~Uploader() {
  for (std::byte* half : halves_) {
    if (half != nullptr) static_cast<void>(cudaFreeHost(half));
  }
}

void Uploader::copy(void* device, const void* host, size_t bytes) {
  auto* to = static_cast<std::byte*>(device);
  const auto* from = static_cast<const std::byte*>(host);
  while (bytes > 0) {
    if (used_ == kHalfBytes) {
      done_[half_].record(stream_);
      half_ ^= 1;
      used_ = 0;
      done_[half_].synchronize();
    }
    if (halves_[half_] == nullptr) {
      void* memory = nullptr;
      QIAO_CUDA(cudaMallocHost(&memory, kHalfBytes));
      halves_[half_] = static_cast<std::byte*>(memory);
    }
    const size_t part = std::min(bytes, kHalfBytes - used_);
    std::byte* staged = halves_[half_] + used_;
    std::memcpy(staged, from, part);
    QIAO_CUDA(cudaMemcpyAsync(to, staged, part, cudaMemcpyHostToDevice, stream_.handle()));
    stream_.hold_next();  // as a copy does by itself
    used_ = std::min(kHalfBytes, (used_ + part + 63) / 64 * 64);
    to += part, from += part, bytes -= part;
  }
}

Memory::Memory(const Stream& stream) : stream_(stream) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, stream.device()};
  QIAO_CUDA(cudaMemPoolCreate(&pool_, &properties));
  uint64_t keep = UINT64_MAX;  // what is given back stays the pool's
  QIAO_CUDA(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep));
}

Memory::~Memory() { static_cast<void>(cudaMemPoolDestroy(pool_)); }

void* Memory::allocate(size_t bytes) {
  void* data = nullptr;
  const size_t size = std::max<size_t>(bytes, 1);
  cudaError_t error = cudaMallocFromPoolAsync(&data, size, pool_, stream_.handle());
  if (error == cudaErrorMemoryAllocation) {
    // What was given back may still be in use by what runs, or lie in pieces too small.
    static_cast<void>(cudaGetLastError());
    stream_.synchronize();
    static_cast<void>(cudaMemPoolTrimTo(pool_, 0));
    error = cudaMallocFromPoolAsync(&data, size, pool_, stream_.handle());
  }
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw_error(ErrorKind::kTooLarge, "cuda: {} bytes of device memory are needed, {} are free", bytes,
                free_bytes());
  }
  check(error, "cudaMallocFromPoolAsync");
  live_bytes_ += size;
  return data;
}

void Memory::free(void* data, size_t bytes) {
  static_cast<void>(cudaSetDevice(stream_.device()));
  static_cast<void>(cudaFreeAsync(data, stream_.raw()));  // of a lost device: nothing is left to give back
  live_bytes_ -= std::max<size_t>(bytes, 1);
}

size_t Memory::free_bytes() const {
  size_t free = 0, total = 0;
  QIAO_CUDA(cudaSetDevice(stream_.device()));
  QIAO_CUDA(cudaMemGetInfo(&free, &total));
  uint64_t reserved = 0, used = 0;
  QIAO_CUDA(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved));
  QIAO_CUDA(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &used));
  return free + (reserved - std::min(used, reserved));
}

Graph::~Graph() {
  if (executable_ != nullptr) static_cast<void>(cudaGraphExecDestroy(executable_));
}
Graph::Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(executable_, other.executable_);
  return *this;
}
void Graph::begin(const Stream& stream) {
  QIAO_CUDA(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal));
  stream.hold_next();  // a graph begins when all before it has ended
}
Graph Graph::end(const Stream& stream) {
  cudaGraph_t graph = nullptr;
  QIAO_CUDA(cudaStreamEndCapture(stream.raw(), &graph));
  Graph made;
  const cudaError_t error = cudaGraphInstantiate(&made.executable_, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  check(error, "cudaGraphInstantiate");
  return made;
}
void Graph::abandon(const Stream& stream) noexcept {
  cudaGraph_t graph = nullptr;
  static_cast<void>(cudaStreamEndCapture(stream.raw(), &graph));
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());
}
bool Graph::launch(const Stream& stream) const {
  const cudaError_t error = cudaGraphLaunch(executable_, stream.handle());
  if (error != cudaErrorMemoryAllocation) check(error, "cudaGraphLaunch");
  stream.hold_next();
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error == cudaSuccess;
}

}  // namespace qiao::cuda
