// The CUDA chip above its kernels, on the stand-in: devices that are not there, memory, uploads, graphs, and
// what becomes of each error.
#include "backend/cuda/cuda_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/error.h"
#include "tensor/dequantize.h"

namespace qiao::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Failure {
  ErrorKind kind{};
  std::string what;
};
template <class Call>
Failure failure_of(Call call) {
  try {
    call();
  } catch (const Error& e) {
    return {e.kind(), e.what()};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

Failure failure_on(const stand_in::Machine& machine, int device = 0) {
  stand_in::reset(machine);
  BackendOptions options;
  options.device = device;
  return failure_of([&] { make_cuda_backend(options); });
}

TEST(CudaDeviceTest, WhatIsNotThereIsToldInOneLine) {
  stand_in::Machine machine;
  machine.devices = 0;
  Failure failure = failure_on(machine);
  EXPECT_EQ(failure.kind, ErrorKind::kUnavailable);
  EXPECT_THAT(failure.what, HasSubstr("the driver sees no GPU"));

  machine = {};
  machine.no_devices = cudaErrorInsufficientDriver;
  machine.driver_version = 0;
  failure = failure_on(machine);
  EXPECT_EQ(failure.kind, ErrorKind::kUnavailable);
  EXPECT_THAT(failure.what, HasSubstr("no NVIDIA driver here; install one for CUDA 13.0"));

  machine.driver_version = 12040;
  failure = failure_on(machine);
  EXPECT_EQ(failure.kind, ErrorKind::kUnavailable);
  EXPECT_THAT(failure.what, HasSubstr("the NVIDIA driver is for CUDA 12.4, expected 13.0 or newer"));

  machine.no_devices = cudaErrorSystemNotReady;
  failure = failure_on(machine);
  EXPECT_EQ(failure.kind, ErrorKind::kUnavailable);
  EXPECT_THAT(failure.what, HasSubstr("the driver refuses"));

  machine = {};
  failure = failure_on(machine, 1);
  EXPECT_EQ(failure.kind, ErrorKind::kUnavailable);
  EXPECT_EQ(failure.what, "cuda:1: there is 1 GPU, counted from 0");

  machine.major = 7, machine.minor = 5;
  failure = failure_on(machine);
  EXPECT_EQ(failure.kind, ErrorKind::kUnavailable);
  EXPECT_THAT(failure.what, HasSubstr("its compute capability is 7.5, expected 8.0"));

  machine = {};
  machine.pools = false;
  EXPECT_THAT(failure_on(machine).what, HasSubstr("no memory pools"));
}

class CudaBackendTest : public ::testing::Test {
 protected:
  explicit CudaBackendTest(const stand_in::Machine& machine = {}) {
    stand_in::reset(machine);
    chip_ = std::make_unique<CudaBackend>(BackendOptions{});
    chip_->synchronize();
    own_allocations_ = stand_in::use().allocations;
  }
  ~CudaBackendTest() override {
    chip_.reset();
    EXPECT_THAT(stand_in::faults(), IsEmpty());
    EXPECT_EQ(stand_in::use().allocations, 0);
  }
  // Of device memory, without the chip's own.
  int64_t allocations() const { return stand_in::use().allocations - own_allocations_; }

  std::unique_ptr<CudaBackend> chip_;

 private:
  int64_t own_allocations_ = 0;
};

TEST_F(CudaBackendTest, DescribesItself) {
  const DeviceInfo info = chip_->describe();
  EXPECT_EQ(info.name, "Stand-in, 4 multiprocessors, compute capability 9.0");
  EXPECT_EQ(info.memory_bytes, uint64_t{4} << 30);
  const Buffer some = chip_->allocate(size_t{1} << 20);
  EXPECT_EQ(chip_->describe().free_bytes, info.free_bytes - (size_t{1} << 20));
}

TEST_F(CudaBackendTest, MeasuresWhatItReaches) {
  const DevicePeaks peaks = chip_->measure_peaks();
  EXPECT_GT(peaks.read_bytes_per_second, 0);
  EXPECT_GT(peaks.f32_flops, 0);
  EXPECT_GT(peaks.bf16_flops, 0);
  EXPECT_GT(peaks.int8_ops, 0);
  EXPECT_GT(peaks.f8_flops, 0);
}

TEST_F(CudaBackendTest, BytesComeBackAndTheHostsAreFreeAtOnce) {
  // Longer than both halves of the staging memory together, and parts of all sizes between.
  const size_t bytes = 2 * Uploader::kHalfBytes + 12345;
  std::vector<std::byte> sent(bytes);
  for (size_t i = 0; i < bytes; ++i) sent[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  const std::vector<std::byte> kept = sent;
  const Buffer buffer = chip_->allocate(bytes);
  chip_->upload(buffer.data(), sent.data(), bytes);
  std::fill(sent.begin(), sent.end(), std::byte{0});
  std::vector<std::byte> got(bytes);
  chip_->download(got.data(), buffer.data(), bytes);
  EXPECT_TRUE(got == kept);
  const int64_t waits = stand_in::use().host_waits;
  for (int i = 0; i < 1000; ++i) {
    std::vector<std::byte> small(static_cast<size_t>(i % 7) + 1, static_cast<std::byte>(i));
    chip_->upload(static_cast<std::byte*>(buffer.data()) + 16 * i, small.data(), small.size());
  }
  EXPECT_EQ(stand_in::use().host_waits, waits) << "small uploads wait for nothing";
  chip_->download(got.data(), buffer.data(), 16 * 1000);
  for (size_t i = 0; i < 1000; ++i) EXPECT_EQ(got[16 * i + i % 7], static_cast<std::byte>(i));
  chip_->upload(nullptr, nullptr, 0);
  chip_->download(nullptr, nullptr, 0);
}

class SmallCudaTest : public CudaBackendTest {
 protected:
  static stand_in::Machine small() {
    stand_in::Machine machine;
    machine.memory_bytes = 1 << 20;
    return machine;
  }
  SmallCudaTest() : CudaBackendTest(small()) {}
};

TEST_F(SmallCudaTest, MemoryThatIsNotThereIsToldWithBothSizes) {
  const size_t all = chip_->describe().free_bytes;
  const Buffer most = chip_->allocate(all - 1024);
  const Failure failure = failure_of([&] { chip_->allocate(2048); });
  EXPECT_EQ(failure.kind, ErrorKind::kTooLarge);
  EXPECT_EQ(failure.what, "cuda: 2048 bytes of device memory are needed, 1024 are free");
  const Buffer rest = chip_->allocate(1024);  // and the chip goes on
  EXPECT_NE(rest.data(), nullptr);
}

TEST_F(CudaBackendTest, MemoryIsAlignedAndGivenBack) {
  for (int round = 0; round < 3; ++round) {
    std::vector<Buffer> buffers;
    for (const size_t bytes : {0, 1, 63, 64, 1000, 1 << 20}) {
      buffers.push_back(chip_->allocate(bytes));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffers.back().data()) % 256, 0u);
    }
    EXPECT_EQ(allocations(), 6);
  }
  EXPECT_EQ(allocations(), 0);
}

// An op that uses scratch memory, and the same error in each of its calls.
TEST_F(CudaBackendTest, AnErrorOfAnyCallIsOneOfQiao) {
  const Buffer memory = chip_->allocate(4096);
  const std::vector<float> zeros(1024);
  chip_->upload(memory.data(), zeros.data(), 4096);
  Buffer sum = chip_->allocate(8);
  chip_->upload(sum.data(), zeros.data(), 8);
  SumOfSquares op;
  op.x = Tensor(memory.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF64, {1});
  for (const char* call : {"cudaLaunchKernel", "cudaSetDevice", "cudaMallocFromPoolAsync"}) {
    stand_in::fail_call(call, 1, cudaErrorInvalidValue);
    const Failure failure = failure_of([&] { chip_->sum_of_squares(op); });
    EXPECT_EQ(failure.kind, ErrorKind::kIo) << call;
  }
  double value = -1;
  chip_->sum_of_squares(op);
  chip_->download(&value, sum.data(), sizeof value);
  EXPECT_EQ(value, 0.0);
  // Out of memory in mid-run: one more try after what is given back has been waited for, then the error.
  stand_in::fail_call("cudaMallocFromPoolAsync", 1, cudaErrorMemoryAllocation);
  chip_->sum_of_squares(op);
}

TEST(CudaLostDeviceTest, EveryCallAfterALostDeviceSaysSo) {
  for (const cudaError_t error :
       {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable}) {
    stand_in::reset();
    CudaBackend chip(BackendOptions{});
    const Buffer x = chip.allocate(4096), sum = chip.allocate(4096);
    Accumulate op;
    op.x = Tensor(x.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF32, {1024});
    stand_in::fail_call("kernel", 2, error);
    chip.accumulate(op);
    chip.synchronize();
    chip.accumulate(op);  // a launch says nothing of what becomes of it
    const Failure failure = failure_of([&] { chip.synchronize(); });
    EXPECT_EQ(failure.kind, ErrorKind::kDeviceLost);
    EXPECT_THAT(failure.what, HasSubstr("cuda: cudaStreamSynchronize: "));
    std::vector<float> host(1024);
    EXPECT_EQ(failure_of([&] { chip.download(host.data(), sum.data(), 4096); }).kind, ErrorKind::kDeviceLost);
    EXPECT_EQ(failure_of([&] { chip.upload(sum.data(), host.data(), 4096); }).kind, ErrorKind::kDeviceLost);
    EXPECT_EQ(failure_of([&] { chip.allocate(1); }).kind, ErrorKind::kDeviceLost);
    EXPECT_EQ(failure_of([&] { chip.accumulate(op); }).kind, ErrorKind::kDeviceLost);
  }
  stand_in::reset();
}

TEST_F(CudaBackendTest, AGraphGivesItsWorkAgain) {
  const Buffer x = chip_->allocate(4096), sum = chip_->allocate(4096);
  const std::vector<float> ones(1024, 1.0f), zeros(1024);
  chip_->upload(x.data(), ones.data(), 4096);
  chip_->upload(sum.data(), zeros.data(), 4096);
  Accumulate op;
  op.x = Tensor(x.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF32, {1024});
  Graph::begin(chip_->stream());
  chip_->accumulate(op);
  chip_->accumulate(op);
  const Graph graph = Graph::end(chip_->stream());
  for (int i = 0; i < 3; ++i) graph.launch(chip_->stream());
  std::vector<float> got(1024);
  chip_->download(got.data(), sum.data(), 4096);
  EXPECT_EQ(got, std::vector<float>(1024, 6.0f));  // captured work did not run by itself
  EXPECT_EQ(stand_in::use().graph_launches, 3);
}

// Memory that an op takes for itself while a graph is made is the graph's.
TEST_F(CudaBackendTest, AGraphHasItsOpsScratchMemory) {
  const Buffer x = chip_->allocate(4096), sum = chip_->allocate(8);
  const std::vector<float> ones(1024, 1.0f), zeros(2);
  chip_->upload(x.data(), ones.data(), 4096);
  chip_->upload(sum.data(), zeros.data(), 8);
  SumOfSquares op;
  op.x = Tensor(x.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF64, {1});
  {
    Graph::begin(chip_->stream());
    chip_->sum_of_squares(op);
    const Graph graph = Graph::end(chip_->stream());
    for (int i = 0; i < 3; ++i) graph.launch(chip_->stream());
    double got = 0;
    chip_->download(&got, sum.data(), sizeof got);
    EXPECT_EQ(got, 3072.0);
  }
  EXPECT_EQ(allocations(), 2);
}

TEST_F(CudaBackendTest, AGraphIsNotMadeOfWaiting) {
  Graph::begin(chip_->stream());
  EXPECT_EQ(failure_of([&] { chip_->synchronize(); }).kind, ErrorKind::kIo);
  Graph::end(chip_->stream());
}

// Called once, then recorded, then given again; what was recorded reads what its tensors hold by then.
TEST_F(CudaBackendTest, RepeatedWorkIsRecordedOnceAndGivenAgain) {
  const Buffer x = chip_->allocate(4096), sum = chip_->allocate(4096);
  const std::vector<float> ones(1024, 1.0f), zeros(1024), tens(1024, 10.0f);
  chip_->upload(x.data(), ones.data(), 4096);
  chip_->upload(sum.data(), zeros.data(), 4096);
  Accumulate op;
  op.x = Tensor(x.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF32, {1024});
  int calls = 0;
  std::unique_ptr<Recording> recording;
  const auto repeat = [&] {
    chip_->repeat(recording, [&] {
      ++calls;
      chip_->accumulate(op);
      chip_->accumulate(op);
    });
  };
  const int launched = stand_in::use().graph_launches;
  for (int i = 0; i < 3; ++i) repeat();
  chip_->upload(x.data(), tens.data(), 4096);
  repeat();
  std::vector<float> got(1024);
  chip_->download(got.data(), sum.data(), 4096);
  EXPECT_EQ(got, std::vector<float>(1024, 26.0f));
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(stand_in::use().graph_launches - launched, 3);
}

// For lack of memory, say: it is given op by op then, this time and from then on.
TEST_F(CudaBackendTest, WorkThatCannotBeRecordedIsDoneAllTheSame) {
  const Buffer x = chip_->allocate(4096), sum = chip_->allocate(4096);
  const std::vector<float> ones(1024, 1.0f), zeros(1024);
  chip_->upload(x.data(), ones.data(), 4096);
  chip_->upload(sum.data(), zeros.data(), 4096);
  Accumulate op;
  op.x = Tensor(x.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF32, {1024});
  bool fails = false;
  std::unique_ptr<Recording> recording;
  const auto repeat = [&] {
    chip_->repeat(recording, [&] {
      chip_->accumulate(op);
      if (std::exchange(fails, false)) throw_error(ErrorKind::kTooLarge, "no more");
    });
  };
  repeat();
  fails = true;
  const int launched = stand_in::use().graph_launches;
  repeat();
  repeat();
  EXPECT_EQ(stand_in::use().graph_launches, launched);
  std::vector<float> got(1024);
  chip_->download(got.data(), sum.data(), 4096);
  EXPECT_EQ(got, std::vector<float>(1024, 3.0f));
}

// Whichever call of a recording fails, none goes on behind it.
TEST_F(CudaBackendTest, ARecordingThatCannotEndRecordsNoMore) {
  const Buffer x = chip_->allocate(4096), sum = chip_->allocate(4096);
  const std::vector<float> ones(1024, 1.0f), zeros(1024);
  chip_->upload(x.data(), ones.data(), 4096);
  Accumulate op;
  op.x = Tensor(x.data(), DType::kF32, {1024}), op.sum = Tensor(sum.data(), DType::kF32, {1024});
  for (const char* function : {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"}) {
    chip_->upload(sum.data(), zeros.data(), 4096);
    std::unique_ptr<Recording> recording;
    const auto repeat = [&] { chip_->repeat(recording, [&] { chip_->accumulate(op); }); };
    repeat();
    stand_in::fail_call(function, 1, cudaErrorInvalidValue);
    repeat();
    repeat();
    std::vector<float> got(1024);
    chip_->download(got.data(), sum.data(), 4096);
    EXPECT_EQ(got, std::vector<float>(1024, 3.0f)) << function;
  }
}

class GuardedCudaTest : public CudaBackendTest {
 protected:
  static stand_in::Machine guarded() {
    stand_in::Machine machine;
    machine.guard_device_memory = true;
    return machine;
  }
  GuardedCudaTest() : CudaBackendTest(guarded()) {}
};

TEST_F(GuardedCudaTest, TheHostCannotReadDeviceMemory) {
  const Buffer buffer = chip_->allocate(64);
  const int sent = 7;
  chip_->upload(buffer.data(), &sent, sizeof sent);
  int got = 0;
  chip_->download(&got, buffer.data(), sizeof got);
  EXPECT_EQ(got, 7);
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile int*>(buffer.data())), "");
}

// Each block format as it comes out of the weight's layout on the chip, to the last bit the host's: random
// bytes, in time every one in every place of a block, scales that are NaN or infinite included.
TEST_F(CudaBackendTest, EachFormatIsTheHosts) {
  uint32_t state = 1;
  int formats = 0;
  for (int d = 0; d < kDTypeCount; ++d) {
    const auto dtype = static_cast<DType>(d);
    const bool is_plain = dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
    if (!is_plain && !traits(dtype).quantized) continue;
    ++formats;
    constexpr int64_t kRows = 37, kColumns = 512;
    std::vector<std::byte> bytes(static_cast<size_t>(kRows * row_bytes(dtype, kColumns)));
    for (std::byte& b : bytes) {
      state = state * 1664525u + 1013904223u;
      b = static_cast<std::byte>(state >> 24);
    }
    const auto elements = static_cast<size_t>(kRows * kColumns);
    std::vector<float> expected(elements), got(elements);
    dequantize(dtype, bytes.data(), kRows * kColumns, expected.data());
    const std::unique_ptr<Weight> weight =
        chip_->make_weight({1, kColumns, {{dtype, kRows, bytes.data()}}, {}});
    std::vector<std::byte> back(bytes.size());
    chip_->read_weight(*weight, 0, 0, back.data());
    EXPECT_TRUE(back == bytes) << traits(dtype).name;
    std::vector<int32_t> rows(static_cast<size_t>(kRows));
    std::iota(rows.begin(), rows.end(), 0);
    const Buffer ids = chip_->allocate(rows.size() * sizeof(int32_t)), out = chip_->allocate(elements * 4);
    chip_->upload(ids.data(), rows.data(), rows.size() * sizeof(int32_t));
    chip_->gather({weight.get(), Tensor(ids.data(), DType::kI32, {kRows}), 1.0f,
                   Tensor(out.data(), DType::kF32, {kRows, kColumns})});
    chip_->download(got.data(), out.data(), elements * 4);
    for (size_t i = 0; i < elements; ++i) {
      ASSERT_TRUE(got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i])))
          << traits(dtype).name << " row " << i / kColumns << " column " << i % kColumns << ": " << got[i]
          << ", expected " << expected[i];
    }
  }
  EXPECT_EQ(formats, 17);
}

}  // namespace
}  // namespace qiao::cuda
