// The peak of vpdpbusd.
#include "backend/cpu/peaks.h"

#if defined(__x86_64__)
#include "backend/cpu/peaks_avx512_inl.h"

namespace qiao::cpu {
namespace {

#define QIAO_DOT(r) "vpdpbusd %%zmm30, %%zmm31, %%zmm" r "\n\t"
double int8(int64_t iterations) {
  const double operations = static_cast<double>(iterations) * 16 * 64 * 2;
  QIAO_LOOP(iterations, QIAO_DOT);
  return operations;
}

}  // namespace

void add_peak_loops_vnni(PeakLoops& loops) { loops.int8 = int8; }

}  // namespace qiao::cpu
#endif
