// Writing keys and values to their pages: kv_write_inl.h has the plan; here, tokens are shared out over the
// threads, sixteen at least, so that groups of keys stay whole.
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/kv_pages.h"
#include "backend/cpu/kv_write_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

using GenericKvWriting = KvWriteKernel<generic::Simd>;
const KvWriteKernels kKvWriteGeneric = {GenericKvWriting::tokens<float>, GenericKvWriting::tokens<Half>,
                                        GenericKvWriting::tokens<Brain>, GenericKvWriting::q8_tokens,
                                        GenericKvWriting::f8_tokens};

void CpuBackend::do_kv_write(const KvWrite& op) {
  const auto& pages = static_cast<const CpuKvPages&>(*op.pages);
  const KvPagesSpec& spec = pages.spec();
  const KvTarget target = {pages.keys(),  pages.values(), spec.page_tokens, spec.kv_heads,
                           spec.head_dim, pages.pitch(),  pages.grouped()};
  const KvWriteKernels& kernels = choose(kKvWriteGeneric, kKvWriteAvx2, kKvWriteAvx512);
  const auto write = spec.dtype == DType::kF32    ? kernels.f32
                     : spec.dtype == DType::kF16  ? kernels.f16
                     : spec.dtype == DType::kBF16 ? kernels.bf16
                     : spec.dtype == DType::kQ8_0 ? kernels.q8
                                                  : kernels.f8;
  const int64_t grain = (row_grain(2 * spec.kv_heads * spec.head_dim) + 15) / 16 * 16;
  pool_.parallel_for(op.k.shape[0], grain,
                     [&](int64_t begin, int64_t end, int) { write(op, target, begin, end); });
}

}  // namespace qiao::cpu
