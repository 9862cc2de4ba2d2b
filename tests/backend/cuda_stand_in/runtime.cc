#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "backend/cuda_stand_in/backend/cuda/instructions.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

// What a stream is given. `looks_ahead`: of a kernel that was given early.
struct Work {
  std::function<cudaError_t()> run;
  std::function<void()> looks_ahead;
  bool waits = true;  // for all before it: kernels and copies, not events
  bool has_looked = false;
};
using Clock = std::chrono::steady_clock;
constexpr size_t kGuardBytes = 256;  // around each allocation
constexpr unsigned char kPoison = 0xff;
// Addresses that device memory is taken from; pages come as they are used.
constexpr size_t kArenaBytes = size_t{16} << 30;

}  // namespace

struct StandInGraph {
  std::vector<Work> work;
  std::shared_ptr<std::vector<void*>> memory;  // allocated in it: its own, as long as it can be launched
};
struct StandInPool {};
struct StandInEvent {
  Clock::time_point at{};
  StandInStream* stream = nullptr;  // where it was last recorded
  uint64_t place = 0;               // in that stream's work
};
struct StandInStream {
  std::deque<Work> work;
  uint64_t given = 0, done = 0;
  std::unique_ptr<StandInGraph> capture;
};

namespace {

struct FaultPlan {
  std::string function;
  int64_t left = 0;
  cudaError_t error = cudaSuccess;
};

struct State {
  qiao::stand_in::Machine machine;
  FaultPlan plan;
  cudaError_t sticky = cudaSuccess, last = cudaSuccess;
  std::string detail;  // of the sticky error
  std::vector<std::string> faults;
  qiao::stand_in::Use use;
  std::map<std::byte*, size_t> live;            // allocations by their address
  std::multimap<size_t, std::byte*> free_list;  // by their size
  std::byte* arena = nullptr;
  size_t arena_used = 0;
  uint64_t launched = 0;
};
State state;
std::recursive_mutex mutex;

bool is_sticky(cudaError_t error) {
  return (error >= cudaErrorIllegalAddress && error <= cudaErrorLaunchFailure) ||
         error == cudaErrorECCUncorrectable;
}

cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) state.last = error;
  if (is_sticky(error)) state.sticky = error;
  return error;
}

// What a call begins with: the error that was planned for it, or the one that stuck.
cudaError_t begin(const char* function) {
  FaultPlan& plan = state.plan;
  if (plan.left > 0 && (plan.function.empty() || plan.function == function) && --plan.left == 0) {
    return keep(plan.error);
  }
  return state.sticky;
}

#define QIAO_STAND_IN_CALL(function)                                      \
  const std::lock_guard<std::recursive_mutex> lock(mutex);                \
  if (const cudaError_t error = begin(#function); error != cudaSuccess) { \
    return error;                                                         \
  }

// What a pool has besides: a device's keeps what was given back.
uint64_t pool_kept() {
  return std::min(state.use.device_bytes / 4, state.machine.memory_bytes - state.use.device_bytes);
}

size_t padded(size_t bytes) { return (bytes + 2 * kGuardBytes + 511) / 512 * 512; }

void protect_arena(bool open) {
  if (!state.machine.guard_device_memory || state.arena_used == 0) return;
  mprotect(state.arena, (state.arena_used + 4095) / 4096 * 4096, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

struct DeviceMemoryOpen {
  DeviceMemoryOpen() {
    if (depth++ == 0) protect_arena(true);
  }
  ~DeviceMemoryOpen() {
    if (--depth == 0) protect_arena(false);
  }
  static inline int depth = 0;
};

std::byte* take(size_t bytes) {
  const size_t size = padded(bytes);
  std::byte* base = nullptr;
  if (const auto found = state.free_list.find(size); found != state.free_list.end()) {
    base = found->second;
    state.free_list.erase(found);
  } else {
    if (state.arena == nullptr) {
      void* mapped = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      QIAO_ASSERT(mapped != MAP_FAILED);
      state.arena = static_cast<std::byte*>(mapped);
    }
    if (state.arena_used + size > kArenaBytes) return nullptr;
    base = state.arena + state.arena_used;
    state.arena_used += size;
  }
  const DeviceMemoryOpen open;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base, size);
#endif
  std::memset(base, kPoison, size);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(base, kGuardBytes);
  __asan_poison_memory_region(base + kGuardBytes + bytes, size - kGuardBytes - bytes);
#endif
  return base + kGuardBytes;
}

void note_fault(const std::string& what) { state.faults.push_back(what); }

// Gives back, looking at the guards.
void give(std::byte* data, size_t bytes) {
  const DeviceMemoryOpen open;
  std::byte* base = data - kGuardBytes;
  const size_t size = padded(bytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base, size);
#endif
  for (size_t i = 0; i < size; ++i) {
    if (i == kGuardBytes) i += bytes;
    if (base[i] != std::byte{kPoison}) {
      note_fault(fmt::format("device memory of {} bytes was written at offset {}", bytes,
                             static_cast<int64_t>(i) - static_cast<int64_t>(kGuardBytes)));
      break;
    }
  }
  std::memset(base, kPoison, size);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(base, size);
#endif
  state.free_list.emplace(size, base);
}

// At once: of memory that no stream has to do with any more.
void give_now(std::byte* data) {
  const auto found = state.live.find(data);
  if (found == state.live.end()) return;  // of a machine before reset()
  const size_t bytes = found->second;
  state.live.erase(found);
  state.use.device_bytes -= bytes;
  --state.use.allocations;
  give(data, bytes);
}

// What those of `work` from `at` on that may begin before it has ended read until they wait for it.
template <class Works>
void look_ahead(Works& work, size_t at) {
  for (; at < work.size(); ++at) {
    Work& next = work[at];
    if (next.waits && !next.looks_ahead) return;
    if (next.looks_ahead && !std::exchange(next.has_looked, true)) next.looks_ahead();
  }
}

cudaError_t run_until(StandInStream* stream, uint64_t place) {
  if (stream->done >= place || stream->work.empty()) return state.sticky;
  const DeviceMemoryOpen open;
  while (stream->done < place && !stream->work.empty()) {
    const Work work = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    if (state.sticky != cudaSuccess) continue;  // a lost device does nothing more
    look_ahead(stream->work, 0);
    if (const cudaError_t error = work.run(); error != cudaSuccess) keep(error);
  }
  return state.sticky;
}

cudaError_t give_work(StandInStream* stream, Work work) {
  if (stream->capture) {
    stream->capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->work.push_back(std::move(work));
  ++stream->given;
  return cudaSuccess;
}
cudaError_t give_work(StandInStream* stream, std::function<cudaError_t()> run, bool waits = true) {
  return give_work(stream, Work{std::move(run), nullptr, waits});
}

}  // namespace

namespace qiao::stand_in {

void reset(const Machine& machine) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  protect_arena(true);
  std::byte* arena = state.arena;
#if defined(__SANITIZE_ADDRESS__)
  if (arena != nullptr) __asan_unpoison_memory_region(arena, state.arena_used);
#endif
  if (arena != nullptr) madvise(arena, state.arena_used, MADV_DONTNEED);
  state = State{};
  state.machine = machine;
  state.arena = arena;
}

void fail_call(const std::string& function, int64_t n, cudaError_t error) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  state.plan = {function, n, error};
}

std::vector<std::string> faults() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return state.faults;
}

Use use() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  Use use = state.use;
  use.lost = state.sticky != cudaSuccess;
  return use;
}

cudaError_t launch(std::function<void()> kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, bool early) {
  QIAO_STAND_IN_CALL(cudaLaunchKernel)
  const auto reads = std::make_shared<EarlyReads>();
  Work work;
  if (early) {
    work.looks_ahead = [kernel, grid, block, shared_bytes, reads] {
      reads->clear();
      look_ahead(grid, block, shared_bytes, kernel, reads.get());
    };
  }
  work.run = [kernel = std::move(kernel), grid, block, shared_bytes, reads] {
    FaultPlan& plan = state.plan;
    if (plan.function == "kernel" && plan.left > 0 && --plan.left == 0) return plan.error;
    ++state.use.launches;
    const uint64_t seed =
        state.machine.schedule_seed == 0 ? 0 : state.machine.schedule_seed + state.launched++;
    std::string fault = reads->changed();
    if (fault.empty()) fault = run_grid(grid, block, shared_bytes, seed, kernel);
    if (fault.empty()) return cudaSuccess;
    note_fault(fault);
    state.detail = fault;
    return cudaErrorLaunchFailure;
  };
  return give_work(stream, std::move(work));
}

}  // namespace qiao::stand_in

cudaError_t cudaGetDeviceCount(int* count) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (const cudaError_t error = begin("cudaGetDeviceCount"); error != cudaSuccess) return error;
  if (state.machine.no_devices != cudaSuccess) return keep(state.machine.no_devices);
  *count = state.machine.devices;
  return state.machine.devices > 0 ? cudaSuccess : keep(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  QIAO_STAND_IN_CALL(cudaSetDevice)
  return device >= 0 && device < state.machine.devices ? cudaSuccess : keep(cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceSynchronize() {
  QIAO_STAND_IN_CALL(cudaDeviceSynchronize)
  return cudaSuccess;  // called where no stream is left
}

// What sticks is gone, and with it all device memory.
cudaError_t cudaDeviceReset() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const cudaError_t lost = std::exchange(state.sticky, cudaSuccess);
  if (const cudaError_t error = begin("cudaDeviceReset"); error != cudaSuccess) {
    state.sticky = lost;
    return error;
  }
  state.last = cudaSuccess;
  state.detail.clear();
  while (!state.live.empty()) give_now(state.live.begin()->first);
  ++state.use.resets;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  QIAO_STAND_IN_CALL(cudaGetDeviceProperties)
  *properties = {"Stand-in", state.machine.memory_bytes};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  QIAO_STAND_IN_CALL(cudaDeviceGetAttribute)
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = state.machine.multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = state.machine.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = state.machine.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = state.machine.block_shared_bytes;
      break;
    case cudaDevAttrMemoryPoolsSupported:
      *value = state.machine.pools ? 1 : 0;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  QIAO_STAND_IN_CALL(cudaDriverGetVersion)
  *version = state.machine.driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  QIAO_STAND_IN_CALL(cudaRuntimeGetVersion)
  *version = state.machine.runtime_version;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const cudaError_t error = state.sticky != cudaSuccess ? state.sticky : state.last;
  state.last = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return state.sticky != cudaSuccess ? state.sticky : state.last;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    default:
      return "an error of the stand-in";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorLaunchFailure: {
      const std::lock_guard<std::recursive_mutex> lock(mutex);
      return state.detail.empty() ? "unspecified launch failure" : state.detail.c_str();
    }
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  QIAO_STAND_IN_CALL(cudaMemGetInfo)
  *total = state.machine.memory_bytes;
  *free = state.machine.memory_bytes - state.use.device_bytes - pool_kept();
  return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  QIAO_STAND_IN_CALL(cudaMemPoolCreate)
  *pool = new StandInPool;
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  delete pool;
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  QIAO_STAND_IN_CALL(cudaMemPoolSetAttribute)
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
  QIAO_STAND_IN_CALL(cudaMemPoolGetAttribute)
  if (attribute == cudaMemPoolAttrReleaseThreshold) return keep(cudaErrorInvalidValue);
  const uint64_t used = state.use.device_bytes;
  const uint64_t kept = attribute == cudaMemPoolAttrReservedMemCurrent ? pool_kept() : 0;
  *static_cast<uint64_t*>(value) = used + kept;
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  QIAO_STAND_IN_CALL(cudaMemPoolTrimTo)
  return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void** data, size_t bytes, cudaMemPool_t, cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaMallocFromPoolAsync)
  if (bytes == 0) return keep(cudaErrorInvalidValue);
  if (bytes > state.machine.memory_bytes - state.use.device_bytes) return keep(cudaErrorMemoryAllocation);
  std::byte* taken = take(bytes);
  if (taken == nullptr) return keep(cudaErrorMemoryAllocation);
  state.live[taken] = bytes;
  state.use.device_bytes += bytes;
  ++state.use.allocations;
  *data = taken;
  if (stream->capture) stream->capture->memory->push_back(taken);
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaFreeAsync)
  const auto found = state.live.find(static_cast<std::byte*>(data));
  if (found == state.live.end()) {
    note_fault("cudaFreeAsync of what is no allocation");
    return keep(cudaErrorInvalidValue);
  }
  const auto [address, bytes] = *found;
  if (stream->capture) {
    // What it holds is lost here, each time.
    const auto poison = [address = address, bytes = bytes] {
      std::memset(address, kPoison, bytes);
      return cudaSuccess;
    };
    return give_work(stream, poison, false);
  }
  state.live.erase(found);
  state.use.device_bytes -= bytes;
  --state.use.allocations;
  const auto give_back = [address = address, bytes = bytes] {
    give(address, bytes);
    return cudaSuccess;
  };
  return give_work(stream, give_back, false);
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  QIAO_STAND_IN_CALL(cudaMallocHost)
  *data = ::operator new (bytes, std::align_val_t{4096});
  std::memset(*data, kPoison, bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  ::operator delete (data, std::align_val_t{4096});
  return cudaSuccess;
}

// As a device does it: from plain host memory the bytes are taken at once, to it the call waits. Who knows
// better (pinned memory) pays nothing for that here.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaMemcpyAsync)
  const cudaError_t given = give_work(stream, [to, from, bytes] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
  static_cast<void>(kind);
  return given;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaMemsetAsync)
  return give_work(stream, [data, value, bytes] {
    std::memset(data, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  QIAO_STAND_IN_CALL(cudaStreamCreateWithFlags)
  *stream = new StandInStream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  run_until(stream, stream->given);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaStreamSynchronize)
  if (stream->capture) return keep(cudaErrorStreamCaptureUnsupported);
  if (!stream->work.empty()) ++state.use.host_waits;
  return run_until(stream, stream->given);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  QIAO_STAND_IN_CALL(cudaStreamWaitEvent)
  if (event->stream == nullptr || event->stream == stream) return cudaSuccess;
  return give_work(stream, [on = event->stream, place = event->place] { return run_until(on, place); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  QIAO_STAND_IN_CALL(cudaEventCreateWithFlags)
  *event = new StandInEvent;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (event->stream != nullptr) run_until(event->stream, event->place);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaEventRecord)
  if (stream->capture) return cudaSuccess;
  const auto note_time = [event] {
    event->at = Clock::now();
    return cudaSuccess;
  };
  const cudaError_t given = give_work(stream, note_time, false);
  event->stream = stream;
  event->place = stream->given;
  return given;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  QIAO_STAND_IN_CALL(cudaEventSynchronize)
  if (event->stream == nullptr) return cudaSuccess;
  if (event->stream->done < event->place) ++state.use.host_waits;
  return run_until(event->stream, event->place);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin_event, cudaEvent_t end_event) {
  QIAO_STAND_IN_CALL(cudaEventElapsedTime)
  *milliseconds = std::chrono::duration<float, std::milli>(end_event->at - begin_event->at).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  QIAO_STAND_IN_CALL(cudaStreamBeginCapture)
  if (stream->capture) return keep(cudaErrorInvalidValue);
  stream->capture = std::make_unique<StandInGraph>();
  stream->capture->memory = {new std::vector<void*>, [](std::vector<void*>* owned) {
                               for (void* data : *owned) give_now(static_cast<std::byte*>(data));
                               delete owned;
                             }};
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (const cudaError_t error = begin("cudaStreamEndCapture"); error != cudaSuccess) {
    stream->capture.reset();  // it ends in any case
    return error;
  }
  if (!stream->capture) return keep(cudaErrorInvalidValue);
  *graph = stream->capture.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  QIAO_STAND_IN_CALL(cudaGraphInstantiate)
  *executable = new StandInGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  QIAO_STAND_IN_CALL(cudaGraphLaunch)
  ++state.use.graph_launches;
  return give_work(stream, [work = executable->work, memory = executable->memory]() mutable {
    for (size_t i = 0; i < work.size(); ++i) {
      look_ahead(work, i + 1);
      if (const cudaError_t error = work[i].run(); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
