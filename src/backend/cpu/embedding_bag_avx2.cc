#include "backend/cpu/embedding_bag_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const EmbeddingBagKernels kEmbeddingBagAvx2 = {EmbeddingBagKernel<avx2::Simd>::sum,
                                               EmbeddingBagKernel<avx2::Simd>::dot};

}  // namespace qiao::cpu
