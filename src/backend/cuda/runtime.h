// CUDA's runtime with C++'s manners: each call's return code becomes an Error, each thing is given back by
// its owner's end. No fmt here: kernels include it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace qiao::cuda {

// Throws where `error` is none: "cuda: CALL: MESSAGE". kTooLarge for memory, kUnavailable for no device or an
// old driver, kDeviceLost where the device will do nothing more as it is (an illegal address, a hardware
// fault): every later call fails likewise, until DeviceHold has reset it, or in a new process.
void check(cudaError_t error, const char* call);
#define QIAO_CUDA(call) ::qiao::cuda::check(call, #call)

// Looks for device `index`, as Error(kUnavailable) where there is none that Qiao can use: no driver, too old
// a one, no device of that number, compute capability below 8.0. Makes it this thread's.
void select_device(int index);

int device_attribute(cudaDeviceAttr which, int device);

// That somebody uses a device. The last one to end resets it where it was lost: all that this process had
// there is gone then, and it may begin anew. Where the driver does not allow that, the next call says so.
class DeviceHold {
 public:
  explicit DeviceHold(int device);
  ~DeviceHold();
  DeviceHold(const DeviceHold&) = delete;
  DeviceHold& operator=(const DeviceHold&) = delete;

 private:
  int device_;
};

// How often devices were reset: what the driver was told of kernels before is forgotten.
int64_t device_resets();

// In-order work of one device.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  // The handle, for a call of this thread, whose device becomes the stream's.
  cudaStream_t handle() const;
  cudaStream_t raw() const { return stream_; }  // where nothing may be thrown
  void synchronize() const;
  int device() const { return device_; }
  int compute_major() const { return compute_major_; }  // of the device's compute capability
  int multiprocessors() const { return multiprocessors_; }
  // Whether the next kernel may begin before the last has ended (instructions.h): where the device is one
  // that the machine code was made for, 9.0. What reads weights before it waits must not follow the kernel
  // that wrote them: that one calls hold_next().
  bool next_begins_early() const { return std::exchange(next_may_, compute_major_ == 9); }
  void hold_next() const { next_may_ = false, ++holds_; }
  // How often that was: kernels given since the last time begin when all that was given before it has ended.
  int64_t holds() const { return holds_; }

 private:
  int device_, compute_major_, multiprocessors_;
  mutable bool next_may_;
  mutable int64_t holds_ = 0;
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  explicit Event(bool timing = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream);
  void synchronize();  // at once where it was never recorded
  double seconds_since(const Event& begin) const;

 private:
  cudaEvent_t event_ = nullptr;
};

// Carries bytes of any host memory to the device, in the stream's order; the host memory is free again when
// copy() returns. Two halves of pinned memory in turn: one is filled while the other is on its way.
class Uploader {
 public:
  explicit Uploader(const Stream& stream) : stream_(stream) {}
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;
  void copy(void* device, const void* host, size_t bytes);
  static constexpr size_t kHalfBytes = size_t{16} << 20;

 private:
  const Stream& stream_;
  std::byte* halves_[2] = {nullptr, nullptr};  // made at first use
  Event done_[2];                              // what the half was last filled for has left it
  int half_ = 0;
  size_t used_ = 0;  // of that half
};

// Memory of one device, from one pool that keeps what is given back; in the stream's order.
class Memory {
 public:
  explicit Memory(const Stream& stream);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  // 256-byte aligned. Error(kTooLarge), with both sizes, where there is not enough.
  void* allocate(size_t bytes);
  void free(void* data, size_t bytes);
  size_t live_bytes() const { return live_bytes_; }
  size_t free_bytes() const;  // of the device, and what the pool keeps of what was given back

 private:
  const Stream& stream_;
  cudaMemPool_t pool_ = nullptr;
  size_t live_bytes_ = 0;
};

// Device memory for the kernels of one op; given back in the stream's order.
class Scratch {
 public:
  Scratch(Memory& memory, size_t bytes) : memory_(memory), bytes_(bytes), data_(memory.allocate(bytes)) {}
  ~Scratch() { memory_.free(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Memory& memory_;
  size_t bytes_;
  void* data_;
};

// What a stream was given between begin and end, to be given again by one call.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  static void begin(const Stream& stream);
  static Graph end(const Stream& stream);
  static void abandon(const Stream& stream) noexcept;  // of a begin, where something failed
  bool launch(const Stream& stream) const;  // false, and nothing given, where the device has no room for it

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace qiao::cuda
