// What the device reaches, measured: a copy between two places of its memory (bytes read and written), chains
// of fused multiply-adds, and tensor-core products: of BF16 and E4M3 by wgmma on Hopper, else by mma.sync, as
// those of 8 bits are everywhere (matmul_mma.h has them). Each loop runs longer until it takes a hundredth of
// a second; the best of some runs counts. Operands are drawn: of zeros a chip makes more, as no product does
// that anybody wants, for they draw less power.
#include <algorithm>
#include <type_traits>

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

// Operands of a thread's own: two numbers of BF16, or four of E4M3, of 1/2 to 2 and either sign. (The mixing
// is Wellons' lowbias32.)
template <bool kE4M3>
__device__ uint32_t drawn(unsigned seed) {
  uint32_t x = seed + 1;
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  x ^= x >> 16;
  return kE4M3 ? (x & 0x8f8f8f8fu) | 0x30303030u : (x & 0x80ff80ffu) | 0x3f003f00u;
}

// By mma.sync: of BF16, or of 8 bits.
template <bool kQuants>
__global__ void __launch_bounds__(kPeakThreads) peak_mma(int iterations, float* sink) {
  begin_kernel();
  using Sum = std::conditional_t<kQuants, int, float>;
  Sum sums[kChains][4] = {};
  uint32_t a[4], b[2];
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) a[i] = drawn<kQuants>(6 * threadIdx.x + i);
#pragma unroll
  for (unsigned i = 0; i < 2; ++i) b[i] = drawn<kQuants>(6 * threadIdx.x + 4 + i);
  for (int n = 0; n < iterations; ++n) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      if constexpr (kQuants) {
        multiply_add_s8(sums[i], a, b);
      } else {
        multiply_add_bf16(sums[i], a, b);
      }
    }
  }
  Sum all = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (all == static_cast<Sum>(-1)) *sink = static_cast<float>(all);
}

// On Hopper. A warpgroup's products of 64 rows and 128 columns, of which two blocks' keep a multiprocessor
// busy.
constexpr int kPeakColumns = 128, kPeakRowBytes = 128;
template <bool kE4M3>
__global__ void __launch_bounds__(kPeakThreads) peak_wgmma(int iterations, float* sink) {
  begin_kernel();
  auto* rows = shared_memory<uint32_t>();
  for (unsigned i = threadIdx.x; i < kPeakColumns * kPeakRowBytes / 4; i += kPeakThreads) {
    rows[i] = drawn<kE4M3>(i);
  }
  multiply_stored();
  __syncthreads();
  float sums[kPeakColumns / 2] = {};
  uint32_t a[4];
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) a[i] = drawn<kE4M3>(4 * threadIdx.x + i);
  for (int n = 0; n < iterations; ++n) {
    multiply_begin();
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      if constexpr (kE4M3) {
        multiply_async_e4m3(sums, a, multiply_operand(rows, i % 4), true);
      } else {
        multiply_async(sums, a, multiply_operand(rows, i % 4));
      }
    }
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
  const auto by_mma = [&](auto kernel, int columns) {  // of K a product
    return rate(stream_, warps * kChains * 2 * 16 * 8 * columns, [&](int iterations) {
      launch("peak_mma", stream_, kernel, blocks, kPeakThreads, 0, iterations, sink.as<float>());
    });
  };
  peaks.int8_ops = by_mma(peak_mma<true>, 32);
  if (stream_.compute_major() != 9) {
    peaks.bf16_flops = peaks.f8_flops = by_mma(peak_mma<false>, 16);  // E4M3 as F16 (matmul_f8.h)
    return peaks;
  }
  const auto two_each = static_cast<unsigned>(2 * multiprocessors());
  const double warpgroups = static_cast<double>(two_each) * kPeakThreads / 128;
  const auto by_wgmma = [&](auto kernel, int columns) {
    return rate(stream_, warpgroups * kChains * 2 * 64 * kPeakColumns * columns, [&](int iterations) {
      launch("peak_wgmma", stream_, kernel, two_each, kPeakThreads, kPeakColumns * kPeakRowBytes, iterations,
             sink.as<float>());
    });
  };
  peaks.bf16_flops = by_wgmma(peak_wgmma<false>, 16);
  peaks.f8_flops = by_wgmma(peak_wgmma<true>, 32);
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
