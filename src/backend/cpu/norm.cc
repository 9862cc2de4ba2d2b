// RMSNorm with the residual's addition: norm_inl.h has the plan; here, rows are shared out over the threads.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/norm_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const NormKernels kNormGeneric = {NormKernel<generic::Simd>::rows};

void CpuBackend::do_add_rms_norm(const AddRmsNorm& op) {
  const NormKernels& kernels = choose(kNormGeneric, kNormAvx2, kNormAvx512);
  const int64_t columns = op.x.shape[static_cast<size_t>(op.x.rank - 1)];
  pool_.parallel_for(op.x.elements() / columns, row_grain(columns),
                     [&](int64_t begin, int64_t end, int) { kernels.rows(op, begin, end); });
}

}  // namespace qiao::cpu
