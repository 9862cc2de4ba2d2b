#include "backend/cpu/add_products_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const AddProductsKernels kAddProductsAvx512 = {AddProductsKernel<avx512::Simd>::add};

}  // namespace qiao::cpu
