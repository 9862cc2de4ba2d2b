// What the device reaches, measured: a copy between two places of its memory (bytes read and written), chains
// of fused multiply-adds, and tensor-core products by mma.sync, whose share of what Hopper's wgmma reaches is
// the machine's own; those of E4M3, which Hopper has by wgmma alone, by that. Each loop runs longer until it
// takes a hundredth of a second; the best of some runs counts.
#include <algorithm>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {
namespace {

constexpr int kPeakThreads = 256, kChains = 8;

__global__ void __launch_bounds__(kPeakThreads) peak_f32(int iterations, float factor, float* sink) {
  begin_kernel();
  float sums[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  for (int n = 0; n < iterations; ++n) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) sums[i] = fmaf(sums[i], factor, factor);
  }
  float all = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sums[i];
  if (all == -1.0f) *sink = all;  // never: but the loop must be run to know
}

__global__ void __launch_bounds__(kPeakThreads) peak_bf16(int iterations, uint32_t bits, float* sink) {
  begin_kernel();
  float sums[kChains][4] = {};
  const uint32_t a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
  for (int n = 0; n < iterations; ++n) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) multiply_add_bf16(sums[i], a, b);
  }
  float all = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (all == -1.0f) *sink = all;
}

__global__ void __launch_bounds__(kPeakThreads) peak_s8(int iterations, uint32_t bits, float* sink) {
  begin_kernel();
  int sums[kChains][4] = {};
  const uint32_t a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
  for (int n = 0; n < iterations; ++n) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) multiply_add_s8(sums[i], a, b);
  }
  int all = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (all == -1) *sink = static_cast<float>(all);
}

// On Hopper. A warpgroup's products of 64 rows and 128 columns, of which two blocks' keep a multiprocessor
// busy.
constexpr int kPeakColumns = 128, kPeakRowBytes = 128;
__global__ void __launch_bounds__(kPeakThreads) peak_e4m3(int iterations, uint32_t bits, float* sink) {
  begin_kernel();
  auto* rows = shared_memory<uint32_t>();
  for (unsigned i = threadIdx.x; i < kPeakColumns * kPeakRowBytes / 4; i += kPeakThreads) rows[i] = bits;
  multiply_stored();
  __syncthreads();
  float sums[kPeakColumns / 2] = {};
  const uint32_t a[4] = {bits, bits, bits, bits};
  for (int n = 0; n < iterations; ++n) {
    multiply_begin();
#pragma unroll
    for (int i = 0; i < kChains; ++i) multiply_async_e4m3(sums, a, multiply_operand(rows, i % 4), true);
    multiply_commit();
    multiply_wait<0>(sums);
  }
  float all = 0;
#pragma unroll
  for (int i = 0; i < kPeakColumns / 2; ++i) all += sums[i];
  if (all == -1.0f) *sink = all;
}

// The rate of call(iterations), which does `work` in each: of the best of three runs, each long enough.
template <class Call>
double rate(const Stream& stream, double work, Call call) {
  Event begin(true), end(true);
  const auto seconds_of = [&](int iterations) {
    begin.record(stream);
    call(iterations);
    end.record(stream);
    end.synchronize();
    return end.seconds_since(begin);
  };
  int iterations = 4;
  double seconds = seconds_of(iterations);
  while (seconds < 0.01 && iterations < (1 << 28)) {
    iterations *= seconds < 0.001 ? 8 : 2;
    seconds = seconds_of(iterations);
  }
  for (int run = 0; run < 2; ++run) seconds = std::min(seconds, seconds_of(iterations));
  return seconds > 0 ? work * iterations / seconds : 0;
}

}  // namespace

DevicePeaks CudaBackend::measure_arithmetic() {
  const Scratch sink(memory_, sizeof(float));
  const auto blocks = static_cast<unsigned>(8 * multiprocessors());
  const double threads = static_cast<double>(blocks) * kPeakThreads, warps = threads / 32;
  DevicePeaks peaks;
  peaks.f32_flops = rate(stream_, threads * kChains * 2, [&](int iterations) {
    launch("peak_f32", stream_, peak_f32, blocks, kPeakThreads, 0, iterations, 0.999f, sink.as<float>());
  });
  // Zeros: random operands draw more power, and a chip at its limit runs slower with them.
  peaks.bf16_flops = rate(stream_, warps * kChains * 2 * 16 * 8 * 16, [&](int iterations) {
    launch("peak_bf16", stream_, peak_bf16, blocks, kPeakThreads, 0, iterations, 0u, sink.as<float>());
  });
  peaks.int8_ops = rate(stream_, warps * kChains * 2 * 16 * 8 * 32, [&](int iterations) {
    launch("peak_s8", stream_, peak_s8, blocks, kPeakThreads, 0, iterations, 0u, sink.as<float>());
  });
  peaks.f8_flops = peaks.bf16_flops;  // as F16 (matmul_f8.h), whose rate is BF16's
  if (stream_.compute_major() != 9) return peaks;
  const auto two_each = static_cast<unsigned>(2 * multiprocessors());
  const double warpgroups = static_cast<double>(two_each) * kPeakThreads / 128;
  peaks.f8_flops = rate(stream_, warpgroups * kChains * 2 * 64 * kPeakColumns * 32, [&](int iterations) {
    launch("peak_e4m3", stream_, peak_e4m3, two_each, kPeakThreads, kPeakColumns * kPeakRowBytes, iterations,
           0u, sink.as<float>());
  });
  return peaks;
}

DevicePeaks CudaBackend::measure_peaks() {
  DevicePeaks peaks = measure_arithmetic();
  const size_t bytes = std::min<size_t>(size_t{1} << 30, memory_.free_bytes() / 64);
  const Scratch from(memory_, bytes), to(memory_, bytes);
  QIAO_CUDA(cudaMemsetAsync(from.as<std::byte>(), 0, bytes, stream_.handle()));
  peaks.read_bytes_per_second = rate(stream_, 2 * static_cast<double>(bytes), [&](int iterations) {
    for (int i = 0; i < iterations; ++i) {
      QIAO_CUDA(cudaMemcpyAsync(to.as<std::byte>(), from.as<std::byte>(), bytes, cudaMemcpyDeviceToDevice,
                                stream_.handle()));
    }
  });
  return peaks;
}

}  // namespace qiao::cuda
