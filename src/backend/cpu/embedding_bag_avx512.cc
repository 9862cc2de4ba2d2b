#include "backend/cpu/embedding_bag_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const EmbeddingBagKernels kEmbeddingBagAvx512 = {EmbeddingBagKernel<avx512::Simd>::sum,
                                                 EmbeddingBagKernel<avx512::Simd>::dot};

}  // namespace qiao::cpu
