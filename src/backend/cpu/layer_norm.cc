// Layer normalisation: layer_norm_inl.h has the plan; here, rows are shared out over the threads.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/layer_norm_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const LayerNormKernels kLayerNormGeneric = {LayerNormKernel<generic::Simd>::rows};

void CpuBackend::do_layer_norm(const LayerNorm& op) {
  const LayerNormKernels& kernels = choose(kLayerNormGeneric, kLayerNormAvx2, kLayerNormAvx512);
  pool_.parallel_for(op.x.shape[0], row_grain(2 * op.x.shape[1]),
                     [&](int64_t begin, int64_t end, int) { kernels.rows(op, begin, end); });
}

}  // namespace qiao::cpu
