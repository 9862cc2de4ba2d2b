#pragma once

#include <cstdint>

namespace qiao::cpu {

// out[i, c] += sum over r < terms of weight(i, r) * y[r, c], r ascending, each product fused with its
// addition where the instruction set does so. Nothing overlaps.
struct AddProducts {
  const float* weights;  // weight(i, r) at [i * row_step + r * term_step]
  int64_t row_step, term_step;
  const float* y;
  int64_t y_stride, terms;  // terms beyond some 128: y falls out of the L1 cache
  float* out;
  int64_t out_stride, rows, columns;
};

struct AddProductsKernels {
  void (*add)(const AddProducts& products);
};
extern const AddProductsKernels kAddProductsGeneric, kAddProductsAvx2, kAddProductsAvx512;

}  // namespace qiao::cpu
