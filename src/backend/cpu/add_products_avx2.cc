#include "backend/cpu/add_products_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const AddProductsKernels kAddProductsAvx2 = {AddProductsKernel<avx2::Simd>::add};

}  // namespace qiao::cpu
