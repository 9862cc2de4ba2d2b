#include "backend/cpu/add_products_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const AddProductsKernels kAddProductsGeneric = {AddProductsKernel<generic::Simd>::add};

}  // namespace qiao::cpu
