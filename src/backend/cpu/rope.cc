// Rotary embedding: rope_inl.h has the plan; here, tokens are shared out over the threads.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/rope_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const RopeKernels kRopeGeneric = {RopeKernel<generic::Simd>::tokens};

void CpuBackend::do_rope(const Rope& op) {
  const RopeKernels& kernels = choose(kRopeGeneric, kRopeAvx2, kRopeAvx512);
  const int64_t heads = op.q.shape[1] + (op.k.present() ? op.k.shape[1] : 0);
  pool_.parallel_for(op.q.shape[0], row_grain(2 * (heads + 4) * op.inverse_frequencies.shape[0]),
                     [&](int64_t begin, int64_t end, int) { kernels.tokens(op, begin, end); });
}

}  // namespace qiao::cpu
