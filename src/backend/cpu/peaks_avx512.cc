// Peaks of AVX-512: fused multiply-adds, and byte dot products as vpmaddubsw and vpaddw.
#include "backend/cpu/peaks.h"

#if defined(__x86_64__)
#include "backend/cpu/peaks_avx512_inl.h"

namespace qiao::cpu {
namespace {

#define QIAO_FMA(r) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" r "\n\t"
double f32(int64_t iterations) {
  const double operations = static_cast<double>(iterations) * 16 * 16 * 2;
  QIAO_LOOP(iterations, QIAO_FMA);
  return operations;
}

#define QIAO_MADD(r) "vpmaddubsw %%zmm30, %%zmm31, %%zmm29\n\tvpaddw %%zmm29, %%zmm" r ", %%zmm" r "\n\t"
double int8(int64_t iterations) {
  const double operations = static_cast<double>(iterations) * 16 * 64 * 2;
  QIAO_LOOP(iterations, QIAO_MADD);
  return operations;
}

}  // namespace

void add_peak_loops_avx512(PeakLoops& loops) {
  loops.f32 = f32;
  loops.int8 = int8;
}

}  // namespace qiao::cpu
#endif
