// The peak of vdpbf16ps.
#include "backend/cpu/peaks.h"

#if defined(__x86_64__)
#include "backend/cpu/peaks_avx512_inl.h"

namespace qiao::cpu {
namespace {

#define QIAO_DOT(r) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" r "\n\t"
double bf16(int64_t iterations) {
  const double operations = static_cast<double>(iterations) * 16 * 32 * 2;
  QIAO_LOOP(iterations, QIAO_DOT);
  return operations;
}

}  // namespace

void add_peak_loops_bf16(PeakLoops& loops) { loops.bf16 = bf16; }

}  // namespace qiao::cpu
#endif
