#include "backend/cpu/peaks.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>

#include "backend/cpu/cpu_class.h"
#include "backend/cpu/memory.h"

namespace qiao::cpu {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Plain C++, 8 independent chains of 4 lanes.
double plain_f32(int64_t iterations) {
  std::array<float, 32> sums{};
  volatile float factor = 0.999f;
  const float f = factor;
  for (int64_t i = 0; i < iterations; ++i) {
    for (float& sum : sums) sum = sum * f + f;
  }
  volatile float sink = 0;
  for (const float sum : sums) sink = sink + sum;
  return static_cast<double>(iterations) * 64;
}

uint64_t plain_read(const std::byte* data, size_t bytes) {
  std::array<uint64_t, 16> sums{};
  for (size_t at = 0; at < bytes; at += sizeof sums) {
    std::array<uint64_t, 16> words;
    std::memcpy(words.data(), data + at, sizeof words);
    for (size_t i = 0; i < words.size(); ++i) sums[i] += words[i];
  }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum += s;
  return sum;
}

PeakLoops loops_of(Isa isa) {
  PeakLoops loops;
  loops.f32 = plain_f32;
  loops.read = plain_read;
#if defined(__x86_64__)
  if (isa >= Isa::kAvx2) add_peak_loops_avx2(loops);
  if (isa >= Isa::kAvx512) add_peak_loops_avx512(loops);
  if (isa >= Isa::kAvx512Vnni) add_peak_loops_vnni(loops);
  if (isa >= Isa::kAvx512Bf16) add_peak_loops_bf16(loops);
#else
  static_cast<void>(isa);
#endif
  return loops;
}

// The best of several short runs on all threads: other programs only ever slow a run down.
double operations_per_second(PeakLoop loop, ThreadPool& pool) {
  if (loop == nullptr) return 0;
  int64_t iterations = 1000;
  double seconds = 0;
  while (seconds < 0.002) {  // long enough for the clock
    iterations *= 2;
    const auto start = Clock::now();
    loop(iterations);
    seconds = seconds_since(start);
  }
  iterations = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(iterations) * 0.003 / seconds));
  double best = 0;
  for (int run = 0; run < 30; ++run) {
    std::atomic<double> operations = 0;
    const auto start = Clock::now();
    pool.run([&](int) { operations += loop(iterations); });
    best = std::max(best, operations / seconds_since(start));
  }
  return best;
}

double read_bytes_per_second(const PeakLoops& loops, ThreadPool& pool, size_t buffer) {
  constexpr size_t kPiece = size_t{1} << 20;
  const size_t bytes = std::min<size_t>(buffer, free_memory() / 4) / kPiece * kPiece;
  if (bytes == 0) return 0;
  const std::unique_ptr<std::byte, void (*)(void*)> memory(static_cast<std::byte*>(allocate_aligned(bytes)),
                                                           free_aligned);
  const auto pieces = static_cast<int64_t>(bytes / kPiece);
  pool.parallel_for(pieces, 8, [&](int64_t begin, int64_t end, int) {
    std::memset(memory.get() + static_cast<size_t>(begin) * kPiece, 1,
                static_cast<size_t>(end - begin) * kPiece);
  });
  double best = 0;
  std::atomic<uint64_t> sink = 0;
  for (int run = 0; run < 7; ++run) {
    const auto start = Clock::now();
    pool.parallel_for(pieces, 8, [&](int64_t begin, int64_t end, int) {
      sink += loops.read(memory.get() + static_cast<size_t>(begin) * kPiece,
                         static_cast<size_t>(end - begin) * kPiece);
    });
    best = std::max(best, static_cast<double>(bytes) / seconds_since(start));
  }
  return best;
}

}  // namespace

DevicePeaks measure_peaks(Isa isa, ThreadPool& pool, size_t buffer) {
  const PeakLoops loops = loops_of(isa);
  DevicePeaks peaks;
  peaks.f32_flops = operations_per_second(loops.f32, pool);
  peaks.bf16_flops = operations_per_second(loops.bf16, pool);
  peaks.int8_ops = operations_per_second(loops.int8, pool);
  peaks.read_bytes_per_second = read_bytes_per_second(loops, pool, buffer);
  return peaks;
}

DevicePeaks CpuBackend::measure_peaks() { return cpu::measure_peaks(active_isa(), pool_); }
DevicePeaks CpuBackend::measure_arithmetic() { return cpu::measure_peaks(active_isa(), pool_, 0); }

}  // namespace qiao::cpu
