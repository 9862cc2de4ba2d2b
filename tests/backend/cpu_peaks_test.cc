#include "backend/cpu/peaks.h"

#include <gtest/gtest.h>

#include "cpu_weights.h"

namespace qiao::cpu {
namespace {

// Bounds that any machine of the last twenty years and the next ten keeps, so that a factor of a thousand
// (a wrong unit, an optimised-away loop) shows.
TEST(CpuPeaks, ArePlausibleForEveryInstructionSet) {
  ThreadPool pool(1);
  for (const Isa isa : {Isa::kGeneric, widest_isa()}) {
    const DevicePeaks peaks = measure_peaks(isa, pool, size_t{16} << 20);
    EXPECT_GT(peaks.read_bytes_per_second, 2e8) << name(isa);
    EXPECT_LT(peaks.read_bytes_per_second, 1e12) << name(isa);
    EXPECT_GT(peaks.f32_flops, 1e8) << name(isa);
    EXPECT_LT(peaks.f32_flops, 1e13) << name(isa);
    // More than of F32 where a core is ours alone: who shares it may have slowed one of them down.
    if (isa >= Isa::kAvx512Vnni) {
      EXPECT_GT(peaks.int8_ops, peaks.f32_flops / 8) << name(isa);
    }
    if (isa >= Isa::kAvx512Bf16) {
      EXPECT_GT(peaks.bf16_flops, peaks.f32_flops / 8) << name(isa);
    }
  }
}

}  // namespace
}  // namespace qiao::cpu
