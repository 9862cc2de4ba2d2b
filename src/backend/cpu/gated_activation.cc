// Gated activations: gated_activation_inl.h has the plan; here, rows are shared out over the threads.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/gated_activation_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const GatedActivationKernels kGatedActivationGeneric = {GatedActivationKernel<generic::Simd>::rows,
                                                        GatedActivationKernel<generic::Simd>::backward,
                                                        GatedActivationKernel<generic::Simd>::activate};

void CpuBackend::do_gated_activation(const GatedActivation& op) {
  const GatedActivationKernels& kernels =
      choose(kGatedActivationGeneric, kGatedActivationAvx2, kGatedActivationAvx512);
  pool_.parallel_for(op.y.shape[0], row_grain(4 * op.y.shape[1]),
                     [&](int64_t begin, int64_t end, int) { kernels.rows(op, begin, end); });
}

void CpuBackend::do_gated_activation_backward(const GatedActivationBackward& op) {
  const GatedActivationKernels& kernels =
      choose(kGatedActivationGeneric, kGatedActivationAvx2, kGatedActivationAvx512);
  pool_.parallel_for(op.dy.shape[0], row_grain(8 * op.dy.shape[1]),
                     [&](int64_t begin, int64_t end, int) { kernels.backward(op, begin, end); });
}

}  // namespace qiao::cpu
