#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace qiao::cpu {

// Rows that are added up: a table's, or on the way back those of dout.
struct BagTable {
  const void* data;
  DType dtype;     // F32, F16 or BF16
  int64_t stride;  // elements from a row to the next
  int64_t rows, columns;

  bool has(int32_t id) const { return id >= 0 && id < rows; }
};

struct BagSum {
  const int32_t* ids;    // those the table has not are left out
  const float* weights;  // null: 1 each
  int64_t count;
  int64_t readable;  // ids from the first on, of this bag and of those that follow: they are asked for early
  bool mean;
  bool add;    // to what is in out
  float* out;  // [columns]
};

struct EmbeddingBagKernels {
  void (*sum)(const BagTable& table, const BagSum& bag);
  float (*dot)(const BagTable& table, int64_t row, const float* x);
};
extern const EmbeddingBagKernels kEmbeddingBagGeneric, kEmbeddingBagAvx2, kEmbeddingBagAvx512;

}  // namespace qiao::cpu
