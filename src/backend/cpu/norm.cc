// RMSNorm with the residual's addition: norm_inl.h has the plan; here, rows are shared out over the threads.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/norm_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const NormKernels kNormGeneric = {NormKernel<generic::Simd>::rows, NormKernel<generic::Simd>::factors,
                                  NormKernel<generic::Simd>::dgamma, NormKernel<generic::Simd>::dh};

void CpuBackend::do_add_rms_norm(const AddRmsNorm& op) {
  const NormKernels& kernels = choose(kNormGeneric, kNormAvx2, kNormAvx512);
  const int64_t columns = op.x.shape[static_cast<size_t>(op.x.rank - 1)];
  pool_.parallel_for(op.x.elements() / columns, row_grain(columns),
                     [&](int64_t begin, int64_t end, int) { kernels.rows(op, begin, end); });
}

// In runs of rows: their factors, then dgamma, for which threads own columns, then dh, which may replace dy.
void CpuBackend::do_add_rms_norm_backward(const AddRmsNormBackward& op) {
  constexpr int64_t kRun = 512;
  constexpr int64_t kLeastColumns = 64;
  const NormKernels& kernels = choose(kNormGeneric, kNormAvx2, kNormAvx512);
  const int64_t columns = op.dy.shape[static_cast<size_t>(op.dy.rank - 1)];
  const int64_t rows = op.dy.elements() / columns;
  float factors[kRun];
  for (int64_t from = 0; from < rows; from += kRun) {
    const int64_t count = std::min(kRun, rows - from);
    pool_.parallel_for(count, row_grain(columns), [&](int64_t begin, int64_t end, int) {
      kernels.factors(op, from + begin, from + end, factors + begin);
    });
    if (op.dgamma.present()) {
      const int64_t share = (columns + pool_.size() - 1) / pool_.size();
      const int64_t grain = std::max(kLeastColumns, (share + 15) / 16 * 16);
      pool_.parallel_for(columns, grain, [&](int64_t begin, int64_t end, int) {
        kernels.dgamma(op, from, from + count, begin, end, factors);
      });
    }
    pool_.parallel_for(count, row_grain(2 * columns), [&](int64_t begin, int64_t end, int) {
      kernels.dh(op, from + begin, from + end, factors + begin);
    });
  }
}

}  // namespace qiao::cpu
