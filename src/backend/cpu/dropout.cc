// Dropout: dropout_inl.h has the plan; here, rows are shared out over the threads.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/dropout_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const DropoutKernels kDropoutGeneric = {DropoutKernel<generic::Simd>::rows};

void CpuBackend::do_dropout(const Dropout& op) {
  const DropoutKernels& kernels = choose(kDropoutGeneric, kDropoutAvx2, kDropoutAvx512);
  pool_.parallel_for(op.y.shape[0], row_grain(4 * op.y.shape[1]),
                     [&](int64_t begin, int64_t end, int) { kernels.rows(op, begin, end); });
}

}  // namespace qiao::cpu
